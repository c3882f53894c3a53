"""Are task gradients locally low-rank, and is it the task that is? (M1, claim C1)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from frenet.experiments.damaged import DamageConfig, NotDamagedError, damaged
from frenet.experiments.experiment import (
    Cell,
    Experiment,
    Row,
)
from frenet.experiments.networks import (
    NETWORK_TABLES,
    NetworkConfig,
    build,
    describe,
    note,
    prepare,
)
from frenet.experiments.rank_findings import CLAIMS, FIGURES, TABLES, K

if TYPE_CHECKING:
    import torch

    from frenet.experiments.networks import Network
    from frenet.network.tasks import Task


@dataclass(frozen=True)
class Config(DamageConfig, NetworkConfig):
    """Gradients of every task at one point: what a basis from half of them holds of the rest."""

    n: int = 64
    """Gradients in each half."""
    batch_sizes: tuple[int, ...] = (16, 64)
    """Examples in a minibatch; the apparent rank falls as it grows."""
    ks: tuple[int, ...] = (1, 2, 5, 10, 20, 32)
    """Basis dimensions."""
    points: tuple[str, ...] = ("none", "wrong-answers")
    """Where to measure: 'none' is the trained network, a damage protocol the network after it."""
    repeats: int = 20
    """Random splits into halves."""
    nulls: int = 4
    """Draws of each null."""


def cells(config: Config) -> list[Cell]:
    """One cell a seed, space, point and batch size: overlaps need all tasks together."""
    return [
        Cell((("seed", seed), ("space", space), ("point", point), ("batch_size", size)))
        for seed in config.seeds
        for space in config.spaces
        for point in config.points
        for size in config.batch_sizes
    ]


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables energy, spectrum and overlap."""
    from frenet.geometry import rng
    from frenet.geometry.energy import half_splits
    from frenet.measure.spectra import NullSpectra, effective_ranks, held_out_energy

    network = build(config, space=cell["space"], seed=cell["seed"])
    yield from describe(network, cell, cells(config))
    keys: Row = {"table": "energy", **dict(cell.keys)}
    gradients: dict[str, torch.Tensor] = {}
    for name in network.measured:
        task = network.tasks[name]
        try:
            with damaged(network, task, config, protocol=cell["point"], seed=cell["seed"]):
                gradients[name] = _sample(network, task, config, cell)
                shuffled = _sample(network, task.shuffled(cell["seed"]), config, cell)
        except NotDamagedError as error:
            yield note(cell, f"{cell['point']} left out: {error}")
            continue
        draw = rng.generator(cell["seed"], "gradient-rank", cell.id, name)
        sizes = network.space.sizes
        draws = [NullSpectra.draw(gradients[name], sizes, draw) for _ in range(config.nulls)]
        splits = half_splits(2 * config.n, config.repeats, draw)
        table = held_out_energy(gradients[name], shuffled, splits=splits, draws=draws, ks=config.ks)
        for i, k in enumerate(config.ks):
            measured = {column: values[i] for column, values in table.items()}
            yield {**keys, "task": name, "k": k, **measured, "chance": k / network.space.dim}
        ranks = effective_ranks(gradients[name], draws[0])
        yield {**keys, "table": "spectrum", "task": name, **ranks}
    yield from _overlaps(gradients, config, {**keys, "table": "overlap"})


def _sample(network: "Network", task: "Task", config: Config, cell: Cell) -> "torch.Tensor":
    """2n gradients of the task at the present point."""
    from frenet.measure.gradients import gradient_matrix

    return gradient_matrix(
        network.model,
        task,
        space=network.space,
        n=2 * config.n,
        batch_size=cell["batch_size"],
        seed=cell["seed"],
    )


def _overlaps(gradients: "dict[str, torch.Tensor]", config: Config, keys: Row) -> Iterator[Row]:
    """Overlap of the top bases of two tasks; of the two halves of one task on the diagonal."""
    from frenet.geometry.basis import svd_basis
    from frenet.geometry.linalg import subspace_overlap

    k = min(K, config.n)
    halves = {n: [svd_basis(h, k) for h in rows.split(config.n)] for n, rows in gradients.items()}
    for name, (first, _) in halves.items():
        for other, (_, second) in halves.items():
            overlap = subspace_overlap(first.U, second.U)
            pair: Row = {"task": name, "other": other, "k": k, "overlap": overlap}
            yield {**keys, **pair, "chance": k / first.d}


EXPERIMENT = Experiment(
    name="gradient-rank",
    question="Are task gradients locally low-rank, and is it the task that is?",
    claims=CLAIMS,
    config=Config,
    cells=cells,
    run=run,
    tables=TABLES | NETWORK_TABLES,
    figures=FIGURES,
    presets={
        "smoke": Config(
            only=("reverse", "sort"),
            seeds=(0, 1),
            n=12,
            batch_sizes=(16,),
            nulls=1,
            repeats=4,
            ks=(1, 5, 10),
            points=("none",),
            width=32,
            train_steps=300,
        ),
        "demo": Config(only=("reverse", "sort", "addition"), n=32, nulls=1),
        "cpu": Config(spaces=("full", "lora")),
        "gpu": Config(spaces=("full", "lora"), seeds=(0, 1, 2, 3, 4)),
        "lm": Config(
            spaces=("lora",),
            max_tasks=3,
            n=32,
            batch_sizes=(8,),
            damage_optimizer="adamw:2e-3",
            damage_batch=8,
            damage_steps=60,
            depth=0.5,
        ),
    },
    prepare=prepare,
)
