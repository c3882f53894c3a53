"""Rows of `task_vector_range`: along each vector, sums of two, negation, shares in bases."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from frenet.experiments.experiment import Cell, Row
from frenet.experiments.setup.damage import NotDamagedError, damaged
from frenet.experiments.setup.describe import describe, note
from frenet.experiments.setup.lines import weight_share
from frenet.experiments.setup.networks import Network, build, by_space
from frenet.experiments.task_vector_range import Config, cells
from frenet.experiments.task_vector_range.answers import LEAST_GAIN
from frenet.geometry import rng
from frenet.geometry.alignment import cosine
from frenet.geometry.basis import Basis, svd_basis
from frenet.geometry.linalg import norms
from frenet.geometry.nulls import random_walk_share
from frenet.measure.gradients import adam_scale, gradient_matrix
from frenet.measure.loss_line import loss_line
from frenet.measure.trajectory import Training, Trajectory, train_and_record
from frenet.methods.linear_range import LinearRange, looked_between, radius
from frenet.methods.search import drop_duplicates
from frenet.methods.task_vectors import from_training
from frenet.network.checkpoints.weight_space import coordinates_of
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import repeatable

# Relative deviation from linearity that defines the radius.
EPS = 0.2


class Way(NamedTuple):
    """A straight line from theta_0 to the end of a training.

    Attributes:
        coordinates: in which it is straight: weights, or factors of LoRA.
        space: the parameters that it moves.
        tau: (d,), to the end.
        random: (d,), of equal norm.
    """

    coordinates: str
    space: ParamSpace
    tau: torch.Tensor
    random: torch.Tensor


@dataclass(frozen=True)
class Range:
    """A network at theta_0, and for every task two training paths on it alone.

    The second path of a task, with other minibatches, gives the ceiling of any cosine with the
    first.

    Attributes:
        config: settings.
        cell: keys of all rows.
        network: at theta_0.
        paths: by task, in the parameters that train.
        space: the weights that training changes; with LoRA, the adapted ones.
        vectors: by task, the change of these weights by each path.
    """

    config: Config
    cell: Cell
    network: Network
    paths: Mapping[str, tuple[Trajectory, Trajectory]]
    space: ParamSpace
    vectors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]

    def vector(self, task: str, replicate: int = 0) -> torch.Tensor:
        """tau of a task, a change of the weights."""
        return self.vectors[task][replicate]

    def random(self, task: str) -> torch.Tensor:
        """A random change of the same weights, of the norm of tau."""
        return self._as_long(task, self.vector(task))

    def ways(self, task: str) -> Iterator[Way]:
        """Along tau; with LoRA also along the factors, a curve in the weights with the same end."""
        yield Way("weights", self.space, self.vector(task), self.random(task))
        space = self.network.space
        if coordinates_of(space) == "factors":
            step = self.paths[task][0].displacement()
            yield Way("factors", space, step, self._as_long(task, step))

    def _as_long(self, task: str, tau: torch.Tensor) -> torch.Tensor:
        draw = rng.generator(int(self.cell.seed), "task-vector-range", task)
        z = torch.randn(len(tau), generator=draw)
        return z * (tau.norm() / z.norm())

    def losses(self, delta: torch.Tensor, space: ParamSpace | None = None) -> dict[str, float]:
        """Held-out loss of every measured task at theta_0 + delta, in nats per token.

        ``space`` is that of the coordinates of ``delta``; None: the weights.
        """
        network, losses = self.network, {}
        with (space or self.space).displaced(network.model, delta):
            for name in self.paths:
                task = network.tasks[name]
                batch = drop_duplicates(next(repeatable(task, "test", self.config.eval_size, 0)))
                with measuring(network.model), torch.no_grad():
                    losses[name] = float(task.loss(network.model, batch))
        return losses

    @property
    def keys(self) -> Row:
        """Keys of all rows."""
        return dict(self.cell.keys)


def along_rows(spot: Range) -> Iterator[Row]:
    """The table along: losses at theta_0 + a tau, and at a share a of the way along the factors."""
    start = spot.losses(0 * spot.vector(next(iter(spot.paths))))
    for name in spot.paths:
        others = [other for other in spot.paths if other != name]
        before = sum(start[other] for other in others) / len(others) if others else None
        for way in spot.ways(name):
            share = weight_share(spot.network.model, way.tau, space=way.space)
            length = float(way.tau.double().norm())
            for a in spot.config.scales:
                at = spot.losses(a * way.tau, way.space)
                rest = sum(at[other] for other in others) / len(others) if others else None
                yield {
                    "table": "along", **spot.keys, "task": name,
                    "coordinates": way.coordinates, "a": a, "loss": at[name],
                    "start": start[name], "others": rest, "others_start": before,
                    "random": spot.losses(a * way.random, way.space)[name],
                    "relative": share(a * length),
                }  # fmt: skip


def radius_rows(spot: Range) -> Iterator[Row]:
    """The table radius: how far the task's loss follows its slope, on each line."""
    for name in spot.paths:
        for way in spot.ways(name):
            try:
                linear_range, shares = _radius(spot, name, way)
            except ValueError as error:
                yield note(spot.cell, f"{name} in the {way.coordinates}: {error}")
                continue
            length = float(way.tau.double().norm())
            yield {
                "table": "radius", **spot.keys, "task": name, "coordinates": way.coordinates,
                "times": linear_range.radius / length, "low": linear_range.low / length,
                "high": linear_range.high / length if math.isfinite(linear_range.high) else None,
                "whole": 1.0, "unbounded": linear_range.unbounded, "radius": linear_range.radius,
                "length": length, "relative": shares[0], "relative_length": shares[1], "eps": EPS,
            }  # fmt: skip


def _radius(spot: Range, name: str, way: Way) -> tuple[LinearRange, tuple[float, float]]:
    """The radius along a line, and the shares of the weights that it moves there and at its end."""
    model, task, seed = spot.network.model, spot.network.tasks[name], int(spot.cell.seed)
    batch = drop_duplicates(next(repeatable(task, "test", spot.config.eval_size, 0)))
    share = weight_share(model, way.tau, space=way.space)
    length = float(way.tau.double().norm())
    size = float(way.space.read(model).double().norm())
    draw = rng.generator(seed, "task-vector-range", name, way.coordinates)
    with loss_line(model, task, batch, way.tau, space=way.space) as line:
        start, limit = looked_between(line, size, length=length, eps=EPS)
        linear_range = radius(line, start=start, limit=limit, eps=EPS, generator=draw)
    return linear_range, (share(linear_range.radius), share(length))


def pair_rows(spot: Range) -> Iterator[Row]:
    """The table pair: two vectors, and how much of a gain is left in their sum."""
    start = spot.losses(0 * spot.vector(next(iter(spot.paths))))
    for name, other in itertools.permutations(spot.paths, 2):
        tau, added = spot.vector(name), spot.vector(other)
        alone = start[name] - spot.losses(tau)[name]
        gains = {
            "kept": start[name] - spot.losses(tau + added)[name],
            "kept_random": start[name] - spot.losses(tau + spot.random(other))[name],
            "transfer": start[name] - spot.losses(added)[name],
        }
        known = alone >= LEAST_GAIN * start[name]
        yield {
            "table": "pair", **spot.keys, "task": name, "other": other, "coordinates": "weights",
            "gain": alone, "none": 0.0,
            **{key: gain / alone if known else None for key, gain in gains.items()},
            "whole": 1.0,
            "cosine": cosine(tau, added),
            "cosine_ceiling": cosine(tau, spot.vector(name, 1)),
            "cosine_random": spot.space.dim**-0.5,
        }  # fmt: skip


def share_rows(spot: Range) -> Iterator[Row]:
    """The table inside: how much of a training displacement lies in bases of k directions.

    With LoRA it is measured in the factors, as gradients and optimiser steps are.
    """
    network, k = spot.network, spot.config.k
    for name, (path, again) in spot.paths.items():
        rows = gradient_matrix(
            network.model, network.tasks[name], space=network.space, n=2 * k,
            batch_size=spot.config.batch_size, seed=int(spot.cell.seed),
        )  # fmt: skip
        bases: dict[str, Basis] = {
            "gradients": svd_basis(rows, k, space=network.space),
            "Adam-scaled gradients": svd_basis(rows / adam_scale(rows), k, space=network.space),
            "own prefix": path.prefix(k),
            "prefix of the replicate": again.prefix(k),
        }
        walk = random_walk_share(norms(path.steps), k)
        for origin, basis in bases.items():
            yield {
                "table": "inside", **spot.keys, "task": name,
                "coordinates": coordinates_of(network.space), "basis": origin, "k": basis.k,
                "captured": float(basis.captured_fraction(path.displacement())),
                "random": basis.k / network.space.dim,
                "walk": walk if origin == "own prefix" else None,
            }  # fmt: skip


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables along, radius, pair and inside."""
    network = build(config, space=cell["space"], seed=cell.seed)
    yield from describe(network, cell, cells(config), config, test=config.eval_size)
    first = network.tasks[network.measured[0]]
    try:
        with damaged(network, first, config, protocol=config.protocol, seed=cell.seed):
            spot = _trained(config, cell, network)
            for table in (along_rows, radius_rows, pair_rows, share_rows):
                yield from table(spot)
    except NotDamagedError as error:
        yield note(cell, f"{config.protocol} left out: {error}")


def _trained(config: Config, cell: Cell, network: Network) -> Range:
    """The vectors of all measured tasks, twice."""
    model, space, seed = network.model, network.space, cell.seed
    optimizer = by_space(cell["space"], config.optimizer, config.lora_optimizer)
    paths, vectors = {}, {}
    for name in network.measured:
        replicates = []
        for replicate in (0, 1):
            training = Training(
                optimizer, config.batch_size, config.steps, seed=seed + 7919 * replicate
            )
            with space.restored(model):
                replicates.append(
                    train_and_record(model, network.tasks[name], training, space=space)
                )
        paths[name] = (replicates[0], replicates[1])
        weights = from_training(model, replicates[0]).space(model)
        taus = [from_training(model, path).flat(weights) for path in replicates]
        vectors[name] = (taus[0], taus[1])
    return Range(config, cell, network, paths, weights, vectors)
