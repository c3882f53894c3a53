"""Rows of `task_vector_range`: along each vector, sums of two, negation, shares in bases."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from frenet.experiments.damaged import DamageConfig
from frenet.experiments.experiment import Cell, Row
from frenet.experiments.networks import Network, NetworkConfig

if TYPE_CHECKING:
    import torch

    from frenet.measure.trajectory import Trajectory


# Of its task's loss: a share of a smaller gain is the noise of the examples, divided by little.
LEAST_GAIN = 0.1
LEAST = "less than a tenth of the loss"


@dataclass(frozen=True)
class Config(DamageConfig, NetworkConfig):
    """Train on one task at a time from one point, and go along the differences."""

    protocol: str = "relative-noise"
    """Damage before, of the first task and by its size of all others; 'none' starts from the
    network as it is."""
    optimizer: str = "adam:3e-4"
    """Optimiser and rate of the training in all weights."""
    lora_optimizer: str = "adam:3e-3"
    """Optimiser and rate of the training of LoRA."""
    steps: int = 100
    """Steps of training on each task."""
    batch_size: int = 64
    """Examples in a minibatch."""
    k: int = 10
    """Directions of the bases."""
    scales: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
    """Coefficients of the vector."""
    eval_size: int = 256
    """Held-out examples of each task; fewer where there are fewer."""


@dataclass(frozen=True)
class Range:
    """A network at theta_0, and for every task the two paths of training on it alone.

    The second path of a task, with other minibatches, is the ceiling of what any vector can have
    with the first.
    """

    config: Config
    cell: Cell
    network: Network
    paths: "Mapping[str, tuple[Trajectory, Trajectory]]"
    random: "Mapping[str, torch.Tensor]"  # by task, as long as its vector

    def vector(self, task: str, replicate: int = 0) -> "torch.Tensor":
        """tau of a task."""
        return self.paths[task][replicate].displacement()

    def losses(self, delta: "torch.Tensor") -> dict[str, float]:
        """Held-out loss of every measured task at theta_0 + delta, in nats per token."""
        import torch

        from frenet.methods.search import distinct
        from frenet.network.context import measuring
        from frenet.network.tasks import repeatable

        network, found = self.network, {}
        with network.space.displaced(network.model, delta):
            for name in self.paths:
                task = network.tasks[name]
                batch = distinct(next(repeatable(task, "test", self.config.eval_size, 0)))
                with measuring(network.model), torch.no_grad():
                    found[name] = float(task.loss(network.model, batch))
        return found

    @property
    def keys(self) -> Row:
        """Keys of all rows."""
        return dict(self.cell.keys)


def along_rows(spot: Range) -> Iterator[Row]:
    """The table along: losses at theta_0 + a tau."""
    start = spot.losses(0 * spot.vector(next(iter(spot.paths))))
    for name in spot.paths:
        tau = spot.vector(name)
        others = [other for other in spot.paths if other != name]
        for a in spot.config.scales:
            at = spot.losses(a * tau)
            rest = sum(at[other] for other in others) / len(others) if others else None
            before = sum(start[other] for other in others) / len(others) if others else None
            yield {
                "table": "along", **spot.keys, "task": name, "a": a, "loss": at[name],
                "start": start[name], "others": rest, "others_start": before,
                "random": spot.losses(a * spot.random[name])[name],
            }  # fmt: skip


def pair_rows(spot: Range) -> Iterator[Row]:
    """The table pair: two vectors, and what is left of a gain in their sum."""
    from frenet.geometry.alignment import cosine

    start = spot.losses(0 * spot.vector(next(iter(spot.paths))))
    for name, other in itertools.permutations(spot.paths, 2):
        tau, added = spot.vector(name), spot.vector(other)
        alone = start[name] - spot.losses(tau)[name]
        gains = {
            "kept": start[name] - spot.losses(tau + added)[name],
            "kept_random": start[name] - spot.losses(tau + spot.random[other])[name],
            "transfer": start[name] - spot.losses(added)[name],
        }
        known = alone >= LEAST_GAIN * start[name]
        yield {
            "table": "pair", **spot.keys, "task": name, "other": other, "gain": alone, "none": 0.0,
            **{key: gain / alone if known else None for key, gain in gains.items()},
            "whole": 1.0,
            "cosine": cosine(tau, added),
            "cosine_ceiling": cosine(tau, spot.vector(name, 1)),
            "cosine_random": spot.network.space.dim**-0.5,
        }  # fmt: skip


def share_rows(spot: Range) -> Iterator[Row]:
    """The table inside: how much of tau lies in bases of k directions."""
    from frenet.geometry.basis import Basis, svd_basis
    from frenet.geometry.linalg import norms
    from frenet.geometry.nulls import random_walk_share
    from frenet.measure.gradients import gradient_matrix

    network, k = spot.network, spot.config.k
    for name, (path, again) in spot.paths.items():
        rows = gradient_matrix(
            network.model, network.tasks[name], space=network.space, n=2 * k,
            batch_size=spot.config.batch_size, seed=int(spot.cell["seed"]),
        )  # fmt: skip
        scaled = rows / (rows.square().mean(0).sqrt() + 1e-8)
        bases: dict[str, Basis] = {
            "gradients": svd_basis(rows, k, space=network.space),
            "Adam-scaled gradients": svd_basis(scaled, k, space=network.space),
            "own prefix": path.prefix(k),
            "prefix of the replicate": again.prefix(k),
        }
        walk = random_walk_share(norms(path.steps), k)
        for origin, basis in bases.items():
            yield {
                "table": "inside", **spot.keys, "task": name, "basis": origin, "k": basis.k,
                "captured": float(basis.captured_fraction(spot.vector(name))),
                "random": basis.k / network.space.dim,
                "walk": walk if origin == "own prefix" else None,
            }  # fmt: skip


def answer_rows(rows: Sequence[Row]) -> Iterator[Row]:
    """One sentence for the vector of each task, from the rows of a cell."""
    for name in dict.fromkeys(row["task"] for row in rows if row["table"] == "along"):
        mine = [row for row in rows if row["task"] == name]
        along = {float(str(row["a"])): row for row in mine if row["table"] == "along"}
        first = next(iter(along.values()))
        looked = [a for a in (1.0, max(along), min(along)) if a in along and a != 0]
        losses = (
            f"{along[a]['loss']:.3g} at {a:g} ({along[a]['random']:.3g} along a random one)"
            for a in looked
        )
        kept = (
            f"{row['kept']:.2f} of its gain is left with that of {row['other']} added "
            f"({row['kept_random']:.2f} with a random one)"
            for row in mine
            if row["table"] == "pair" and row["kept"] is not None
        )
        unknown = any(row["table"] == "pair" and row["kept"] is None for row in mine)
        little = [f"it gains too little to ask what is left of it ({LEAST})"] if unknown else []
        told = "; ".join((", ".join(dict.fromkeys(losses)), *kept, *little))
        yield {
            "table": "answer", "seed": first["seed"], "space": first["space"], "task": name,
            "sentence": f"{name}: loss {first['start']:.3g} without its vector, {told}",
        }  # fmt: skip
