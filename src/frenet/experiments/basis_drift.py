"""How long does a gradient basis stay useful while training moves on? (M3, claim C3)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from frenet.experiments.charts import Axis, Rule, dots, lines
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
from frenet.experiments.networks import NetworkConfig, build, prepare, task_names

if TYPE_CHECKING:
    from frenet.experiments.networks import Network
    from frenet.network.tasks import Task

LAG, CEILING, CONTROL = 100, 0.7, 0.95


@dataclass(frozen=True)
class Config(DamageConfig, NetworkConfig):
    """Train, sample gradients along the way, and compare old bases with fresh ones."""

    modes: tuple[str, ...] = ("recovery", "finetune")
    """'recovery' retrains a damaged task, 'finetune' learns one that the network has not seen."""
    optimizers: tuple[str, ...] = ("adam:3e-5", "adam:3e-4", "adam:1e-3", "sgd:0.01")
    """Optimisers of all weights, with their rates: drift depends on the step size."""
    lora_optimizers: tuple[str, ...] = ("adam:3e-4", "adam:1e-3", "adam:3e-3")
    """Optimisers of LoRA, with their rates."""
    protocol: str = "wrong-answers"
    """Damage before recovery."""
    k: int = 10
    """Basis dimension."""
    n: int = 48
    """Gradients in each of three sets at every step that is looked at."""
    batch_size: int = 64
    """Examples in a minibatch, of training and of the sampled gradients."""
    lags: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    """Steps after the start at which to look."""
    window: int = 30
    """Steps in a window of updates, for the drift of the updates' own basis."""


def cells(config: Config) -> list[Cell]:
    """One cell a seed, space, mode, task and optimiser."""
    return [
        Cell(
            (
                ("seed", seed),
                ("space", space),
                ("mode", mode),
                ("task", task),
                ("optimizer", optimizer),
            )
        )
        for seed in config.seeds
        for space in config.spaces
        for mode in config.modes
        for task in _names(config, mode)
        for optimizer in (config.lora_optimizers if space == "lora" else config.optimizers)
    ]


def _names(config: Config, mode: str) -> tuple[str, ...]:
    """Fine-tuning the synthetic network is on tasks that it has not learned."""
    if mode == "finetune" and config.model == "synthetic":
        return ("predecessor",)
    return task_names(config)


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables drift and half_life."""
    from frenet.measure.drift import train_and_compare, update_drift
    from frenet.measure.trajectory import Training

    network = build(config, space=cell["space"], seed=cell["seed"])
    steps = max(config.lags)
    training = Training(cell["optimizer"], config.batch_size, steps, seed=cell["seed"])
    with _start(network, config, cell) as task:
        path, drifts, losses = train_and_compare(
            network.model,
            task,
            training,
            space=network.space,
            lags=config.lags,
            n=config.n,
            k=config.k,
        )
    k = min(config.k, config.window // 3)
    kinds = {
        "gradients": (config.k, drifts),
        "updates": (k, update_drift(path.steps, window=config.window, k=k)),
    }
    for kind, (dimension, found) in kinds.items():
        keys: Row = {"table": "drift", **dict(cell.keys), "kind": kind, "k": dimension}
        moved: dict[float, float] = {
            lag: float(path.displacement(0, lag).norm()) for lag in (0, *found)
        }
        for lag, drift in found.items():
            measured: Row = {**drift._asdict(), "displacement": moved[lag]}
            measured["chance"] = dimension / network.space.dim / drift.fresh
            yield {**keys, "lag": lag, **measured, "loss": losses.get(lag), "loss_0": losses[0]}
        ratios: dict[float, float] = {0: 1.0, **{lag: drift.ratio for lag, drift in found.items()}}
        yield {**keys, "table": "half_life", **_half_life(ratios, moved)}


@contextmanager
def _start(network: "Network", config: Config, cell: Cell) -> "Iterator[Task]":
    """The network where training begins, and the task to train on; all is put back after."""
    task = {**network.tasks, **network.unseen}[cell["task"]]
    with network.space.restored(network.model):
        if cell["mode"] == "recovery":
            with damaged(network, task, config, protocol=config.protocol, seed=cell["seed"]):
                yield task
            return
        if network.untrained is not None:
            network.space.write(network.model, network.untrained)
        yield task


def _half_life(ratios: Mapping[float, float], moved: Mapping[float, float]) -> Row:
    """Half-life in steps and in displacement norm; None where it is longer than the run."""
    from frenet.measure.drift import half_life

    return {
        "steps": half_life(ratios),
        "longest": max(moved),
        "distance": half_life({moved[lag]: ratio for lag, ratio in ratios.items()}),
        "farthest": max(moved.values()),
    }


def decide(rows: Rows) -> Finding:
    """Supported where the ratio at lag 100 is below 0.7 while the frozen control is above 0.95."""
    verdict: Verdict
    at_lag = select(rows, table="drift", kind="gradients", lag=LAG)
    ratio, control = estimate(at_lag, "ratio"), estimate(at_lag, "control")
    if low(control) <= CONTROL:
        verdict, why = "undecided", f"the frozen control is not clearly above {CONTROL}"
    elif high(ratio) < CEILING:
        verdict, why = "supported", f"the ratio is below {CEILING}, the control above {CONTROL}"
    elif low(ratio) > CEILING:
        verdict, why = "contradicted", f"the interval lies above {CEILING}"
    else:
        verdict, why = "undecided", f"the interval straddles {CEILING}, or there is one seed only"
    return Finding(
        claim="C3",
        verdict=verdict,
        quantity=f"energy of new gradients in the basis of {LAG} steps ago, over a fresh basis",
        estimate=ratio,
        reference="frozen control",
        reference_estimate=control,
        why=why,
        notes=_notes(rows, at_lag),
    )


def _notes(rows: Rows, at_lag: Rows) -> tuple[str, ...]:
    """The step size decides: say it by optimiser, with half-lives."""
    notes = []
    for row in over_seeds(at_lag, by=("mode", "optimizer"), value="ratio"):
        lives = [
            life["steps"]
            for life in select(
                rows,
                table="half_life",
                kind="gradients",
                mode=row["mode"],
                optimizer=row["optimizer"],
            )
        ]
        reached = sorted(float(str(life)) for life in lives if life is not None)
        half = (
            f"half-life {reached[0]:.0f} to {reached[-1]:.0f} steps in {len(reached)} of "
            f"{len(lives)} runs, longer than the run in the others"
            if reached
            else "half-life longer than the run in every one"
        )
        notes.append(f"{row['mode']}, {row['optimizer']}: ratio {row['value']:.2f}; {half}.")
    return tuple(notes)


def drift_chart(rows: Rows) -> object:
    """Energy ratio against lag, by optimiser, with the frozen control."""
    table = over_seeds(
        select(rows, kind="gradients"), by=("mode", "optimizer", "lag"), value="ratio"
    )
    control = over_seeds(select(rows, kind="gradients"), by=("mode", "lag"), value="control")
    table += [{**row, "optimizer": "frozen control"} for row in control]
    return lines(
        table,
        x=Axis("lag", "steps since the basis was made", log=True),
        y=Axis("value", "energy ratio"),
        colour=Axis("optimizer", "optimiser"),
        facet="mode",
        rules=["frozen control", Rule("threshold", CEILING)],
    )


def distance_chart(rows: Rows) -> object:
    """The same against the distance travelled: is it steps or distance that wears a basis out?"""
    keys = ("mode", "optimizer", "lag")
    gradients = select(rows, kind="gradients")
    table = over_seeds(gradients, by=keys, value="ratio")
    moved = {
        tuple(row[key] for key in keys): row["value"]
        for row in over_seeds(gradients, by=keys, value="displacement")
    }
    for row in table:
        row["displacement"] = moved[tuple(row[key] for key in keys)]
    return lines(
        table,
        x=Axis("displacement", "distance from the start (2-norm)", log=True),
        y=Axis("value", "energy ratio"),
        colour=Axis("optimizer", "optimiser"),
        facet="mode",
        rules=[Rule("threshold", CEILING)],
    )


def overlap_chart(rows: Rows) -> object:
    """Ratio and corrected overlap at lag 100 side by side: they disagree."""
    table = series_over_seeds(
        select(rows, kind="gradients", lag=LAG),
        by=("optimizer",),
        values={"ratio": "energy ratio", "overlap": "overlap over ceiling", "control": "control"},
    )
    return dots(
        table,
        x=Axis("value", f"at lag {LAG}"),
        row=Axis("optimizer", "optimiser"),
        colour="series",
        rules=["control"],
    )


_KEYS = (
    Column("seed", "", "seed of network, data and minibatches", "key"),
    Column("space", "", "parameters: all weights, or LoRA adapters", "key"),
    Column("mode", "", "recovery after damage, or fine-tuning on a new task", "key"),
    Column("task", "", "task", "key"),
    Column("optimizer", "", "optimiser and rate", "key"),
    Column("kind", "", "basis of gradients, or of windows of updates", "key"),
    Column("k", "", "basis dimension", "key"),
)
_TABLES = {
    "drift": (
        *_KEYS,
        Column("lag", "steps", "steps between the basis and the gradients", "key"),
        Column(
            "ratio", "", "held-out energy in the old basis over a fresh one", "measure", "control"
        ),
        Column("control", "", "the same without any step between: the ceiling", "reference"),
        Column("chance", "", "a random basis in place of the old one", "reference"),
        Column("fresh", "fraction", "held-out energy in the fresh basis", "reference"),
        Column("overlap", "", "overlap over the ceilings; may exceed 1", "measure", "ceiling_s"),
        Column("ceiling_s", "fraction", "overlap of two old bases", "reference"),
        Column("ceiling_t", "fraction", "overlap of two fresh bases", "reference"),
        Column("displacement", "2-norm", "distance travelled", "key"),
        Column("loss", "nats/token", "loss on the select split", "measure", "loss_0"),
        Column("loss_0", "nats/token", "loss at the start", "reference"),
    ),
    "half_life": (
        *_KEYS,
        Column(
            "steps", "steps", "lag at which the ratio is 0.5; empty: longer", "measure", "longest"
        ),
        Column("longest", "steps", "longest lag that was looked at", "reference"),
        Column("distance", "2-norm", "the same in distance travelled", "measure", "farthest"),
        Column("farthest", "2-norm", "greatest distance that was looked at", "reference"),
    ),
}

EXPERIMENT = Experiment(
    name="basis-drift",
    question="How long does a gradient basis stay useful while training moves on?",
    claims=(
        Claim(
            id="C3",
            statement="The useful basis drifts substantially within 100 steps",
            paper="within about 100 steps",
            rule=f"the energy ratio at lag {LAG} is below {CEILING} and the frozen control above "
            f"{CONTROL}, each with its whole interval",
            decide=decide,
            figure="drift",
        ),
    ),
    config=Config,
    cells=cells,
    run=run,
    tables=_TABLES,
    figures=(
        Figure(
            "drift",
            "How much an old basis holds of new gradients",
            "Held-out gradient energy in the basis made at the start, over that in a basis made on "
            "the spot. The frozen control is the same without any training in between.",
            "drift",
            drift_chart,
        ),
        Figure(
            "distance",
            "Steps or distance?",
            "The same against the distance travelled. Where the curves of different step sizes "
            "fall together, it is distance that wears a basis out.",
            "drift",
            distance_chart,
        ),
        Figure(
            "overlap",
            "Two measures of the same drift",
            "The overlap weighs all k directions alike, the energy ratio by how much gradient they "
            "carry; the overlap may exceed 1 since its ceilings are estimates.",
            "drift",
            overlap_chart,
        ),
    ),
    presets={
        "smoke": Config(
            only=("reverse",),
            seeds=(0, 1),
            modes=("recovery",),
            optimizers=("adam:3e-4",),
            n=8,
            k=4,
            batch_size=16,
            lags=(1, 10, 100),
            damage_batch=16,
            width=32,
            train_steps=300,
        ),
        "demo": Config(
            only=("reverse",),
            optimizers=("adam:3e-5", "adam:3e-4", "sgd:0.01"),
            n=32,
            lags=(1, 3, 10, 30, 100),
        ),
        "cpu": Config(spaces=("full", "lora")),
        "gpu": Config(spaces=("full", "lora"), seeds=(0, 1, 2, 3, 4)),
        "lm": Config(
            spaces=("lora",),
            max_tasks=3,
            lora_optimizers=("adamw:1e-3",),
            damage_optimizer="adamw:2e-3",
            damage_batch=8,
            damage_steps=60,
            depth=0.5,
            batch_size=8,
            n=16,
            k=8,
            lags=(1, 3, 10, 30, 100),
            window=24,
        ),
    },
    prepare=prepare,
)
