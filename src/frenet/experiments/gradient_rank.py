"""Are task gradients locally low-rank, and is it the task that is? (M1, claim C1)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from frenet.experiments.charts import Axis, Rule, dots, heatmap, lines
from frenet.experiments.damaged import DamageConfig, damaged
from frenet.experiments.experiment import (
    Cell,
    Claim,
    Column,
    Experiment,
    Figure,
    Finding,
    Row,
    Rows,
    Verdict,
)
from frenet.experiments.intervals import (
    estimate,
    high,
    low,
    over_seeds,
    select,
    series_over_seeds,
)
from frenet.experiments.networks import NetworkConfig, build, prepare

if TYPE_CHECKING:
    import torch

    from frenet.experiments.networks import Network
    from frenet.network.tasks import Task

K = 10
FLOOR = 0.4


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
    keys: Row = {"table": "energy", **dict(cell.keys)}
    gradients: dict[str, torch.Tensor] = {}
    for name, task in network.tasks.items():
        with damaged(network, task, config, protocol=cell["point"], seed=cell["seed"]):
            gradients[name] = _sample(network, task, config, cell)
            shuffled = _sample(network, task.shuffled(cell["seed"]), config, cell)
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


def decide(rows: Rows) -> Finding:
    """Supported where the interval at k = 10 is above 0.4 and above every null."""
    verdict: Verdict
    at_k = select(rows, table="energy", k=K, point="none")
    energy = estimate(at_k, "energy")
    null = max(
        (found for name in NULLS if (found := estimate(at_k, name)) is not None),
        key=high,
        default=None,
    )
    floor = max(FLOOR, high(null))
    if low(energy) > floor:
        verdict, why = "supported", f"the interval lies above {floor:.2f}"
    elif high(energy) < floor:
        verdict, why = "contradicted", f"the interval lies below {floor:.2f}"
    else:
        verdict, why = "undecided", f"the interval straddles {floor:.2f}, or there is one seed only"
    return Finding(
        claim="C1",
        verdict=verdict,
        quantity=f"held-out gradient energy in the top {K} directions",
        estimate=energy,
        reference="highest null",
        reference_estimate=null,
        why=why,
        notes=_notes(rows, at_k),
    )


def _notes(rows: Rows, at_k: Rows) -> tuple[str, ...]:
    """Is it the task that is low-rank?"""
    shuffled, held = estimate(at_k, "label_shuffled"), estimate(at_k, "in_shuffled_basis")
    overlaps = select(rows, table="overlap", point="none")
    other = estimate([r for r in overlaps if r["task"] != r["other"]], "overlap")
    same = estimate([r for r in overlaps if r["task"] == r["other"]], "overlap")
    notes = []
    if shuffled and held:
        notes.append(
            f"Gradients of the same inputs with shuffled labels have {shuffled.value:.2f} of their "
            f"energy in their own top {K}: low rank by itself says nothing about the task. Their "
            f"basis holds {held.value:.2f} of the true gradients."
        )
    if other and same:
        notes.append(
            f"Bases of two tasks overlap by {other.value:.2f}, two halves of one task by "
            f"{same.value:.2f}."
        )
    by_size = over_seeds(
        select(rows, table="energy", k=K, point="none"), by=("batch_size",), value="energy"
    )
    if len(by_size) > 1:
        listed = ", ".join(f"{row['value']:.2f} at {row['batch_size']}" for row in by_size)
        notes.append(f"By batch size: {listed}.")
    return tuple(notes)


def energy_chart(rows: Rows) -> object:
    """Energy against k with every null, at the trained point."""
    measured = {
        "energy": "task",
        "label_shuffled": "labels shuffled",
        "ceiling": "ceiling (own basis)",
        "null_gaussian": "Gaussian null",
        "null_shuffle": "shuffle null",
    }
    table = series_over_seeds(select(rows, point="none"), by=("k",), values=measured)
    return lines(
        table,
        x=Axis("k", "basis dimension k", log=True),
        y=Axis("value", "held-out energy (fraction)", domain=(0, 1)),
        rules=["ceiling (own basis)", "Gaussian null", "shuffle null", Rule("threshold", FLOOR)],
    )


def task_chart(rows: Rows) -> object:
    """Energy at k = 10 by task and point."""
    table = over_seeds(select(rows, k=K), by=("task", "point"), value="energy")
    return dots(
        table,
        x=Axis("value", f"held-out energy in the top {K} (fraction)", domain=(0, 1)),
        row=Axis("task", "task"),
        colour=Axis("point", "damage"),
        rules=[Rule("threshold", FLOOR)],
    )


def overlap_chart(rows: Rows) -> object:
    """Task against task, split halves on the diagonal."""
    table = over_seeds(select(rows, point="none"), by=("task", "other"), value="overlap")
    return heatmap(
        table,
        x=Axis("other", "basis of the other half"),
        y=Axis("task", "basis of one half"),
        value=Axis("value", "overlap"),
    )


NULLS = ("null_gaussian", "null_shuffle")
_KEYS = (
    Column("seed", "", "seed of network, data and draws", "key"),
    Column("space", "", "parameters: all weights, or LoRA adapters", "key"),
    Column("point", "", "none: the trained network; else after this damage", "key"),
    Column("batch_size", "examples", "examples in a minibatch", "key"),
    Column("task", "", "task", "key"),
)
_TABLES = {
    "energy": (
        *_KEYS,
        Column("k", "", "basis dimension", "key"),
        Column(
            "energy",
            "fraction",
            "energy of the other half's unit gradients in the top-k basis of one half",
            "measure",
            "null_gaussian",
        ),
        Column("null_gaussian", "fraction", "highest of Gaussian draws, equal norms", "reference"),
        Column("null_shuffle", "fraction", "highest of coordinate shuffles", "reference"),
        Column("null_sign", "fraction", "highest of random signs", "reference"),
        Column("ceiling", "fraction", "the other half in its own top k", "reference"),
        Column(
            "centred", "fraction", "energy with the basis half's mean removed", "measure", "ceiling"
        ),
        Column(
            "label_shuffled",
            "fraction",
            "the label-shuffled task in its own basis",
            "measure",
            "null_gaussian",
        ),
        Column(
            "in_shuffled_basis",
            "fraction",
            "the task's gradients in the label-shuffled task's basis",
            "measure",
            "chance",
        ),
        Column("chance", "fraction", "k / d", "reference"),
    ),
    "spectrum": (
        *_KEYS,
        Column("participation_ratio", "", "effective rank", "measure", "participation_ratio_null"),
        Column("participation_ratio_null", "", "the same for the Gaussian null", "reference"),
        Column("stable_rank", "", "squared Frobenius over spectral", "measure", "stable_rank_null"),
        Column("stable_rank_null", "", "the same for the Gaussian null", "reference"),
        Column("rank", "", "numerical rank of the gradients", "measure", "rank_null"),
        Column("rank_null", "", "the same for the Gaussian null", "reference"),
        Column(
            "mean_share", "fraction", "energy of the mean gradient", "measure", "mean_share_null"
        ),
        Column("mean_share_null", "fraction", "the same for the Gaussian null", "reference"),
        Column("zero_share", "fraction", "coordinates with no gradient at all", "key"),
    ),
    "overlap": (
        *_KEYS,
        Column("other", "", "the other task", "key"),
        Column("k", "", "basis dimension", "key"),
        Column("overlap", "fraction", "||U^T V||^2 / k between two halves", "measure", "chance"),
        Column("chance", "fraction", "k / d", "reference"),
    ),
}

EXPERIMENT = Experiment(
    name="gradient-rank",
    question="Are task gradients locally low-rank, and is it the task that is?",
    claims=(
        Claim(
            id="C1",
            statement="Task gradients are locally low-rank",
            paper="strongly low-rank",
            rule=f"at k = {K}, the interval's lower end is above {FLOOR} and above the upper end "
            "of every Gaussian and shuffle null",
            decide=decide,
            figure="energy",
        ),
    ),
    config=Config,
    cells=cells,
    run=run,
    tables=_TABLES,
    figures=(
        Figure(
            "energy",
            "How much of a new gradient lies in the top directions of others",
            "Basis from half of the minibatches, energy of the other half. The nulls have the same "
            "number of gradients and the same norms. Shuffled labels: the same inputs with answers "
            "that cannot be learned.",
            "energy",
            energy_chart,
        ),
        Figure(
            "tasks",
            "The same by task, before and after damage",
            f"Held-out energy in the top {K}, 95% interval over seeds.",
            "energy",
            task_chart,
        ),
        Figure(
            "overlap",
            "Do tasks share their directions?",
            "Overlap of the bases of two tasks; the diagonal compares two halves of one task and "
            "is the ceiling. Chance is k / d, below 0.001 here.",
            "overlap",
            overlap_chart,
        ),
    ),
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
