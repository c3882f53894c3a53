"""How a watched training shows itself: settings, columns and figures of `FrenetCallback`.

It is no experiment with a question and cells of its own: the callback fills the folder while
Trainer trains, and the folder is read and reported like that of one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from frenet.experiments import brackets
from frenet.experiments.brackets import bracket_of, life_columns, life_of
from frenet.experiments.experiment import Answer, Cell, Column, Experiment, Figure, Row, Rows
from frenet.experiments.figures.charts import Axis, Rule, lines
from frenet.experiments.intervals import select

STALE = 0.5
# Steps that are looked at before the first multiple of ``every``: directions go stale fastest at
# the start of a training.
EARLY = (1, 2, 5, 10, 20, 50, 100)
# Where a loss comes from that is no probe's.
TRAINING = "training (Trainer's log)"


@dataclass(frozen=True)
class WatchConfig:
    """What is watched of a training, and how closely."""

    model: str
    """What the model calls itself."""
    probes: tuple[str, ...]
    """Names of the probe tasks."""
    every: int
    """Steps from one look to the next, after the early ones."""
    k: int
    """First steps that make the prefix, and dimension of the gradient bases (at most n)."""
    n: int
    """Gradients of single examples in each of three sets."""
    gradients: bool
    """The gradients of all steps are recorded."""
    where: str
    """Which parameters: a regular expression; empty: those that are trained."""


def looks(every: int, steps: int) -> list[int]:
    """The steps at which a training of ``steps`` steps is looked at, in order.

    The start, the early ones, the multiples of ``every``, and the last step.

    >>> looks(200, 450)
    [0, 1, 2, 5, 10, 20, 50, 100, 200, 400, 450]
    >>> looks(4, 10)
    [0, 1, 2, 4, 8, 10]
    """
    early = [step for step in EARLY if step < min(every, steps)]
    return sorted({0, *early, *range(every, steps + 1, every), steps})


def cells(config: WatchConfig, *, steps: int) -> list[Cell]:
    """One cell a look, and one for the end."""
    return [*(Cell.of(step=step) for step in looks(config.every, steps)), Cell.of(part="end")]


def run(config: WatchConfig, cell: Cell) -> Iterator[Row]:
    """A look needs the training that is looked at: the callback makes the rows."""
    raise NotImplementedError("watch a training with frenet.FrenetCallback")


def command(config: Mapping[str, Any]) -> str:
    """The line of Python that watches a training like this one."""
    names = ("every", "k", "n", "gradients", "where")
    given = {name: config[name] for name in names}
    given["where"] = given["where"] or None
    settings = ", ".join(f"{name}={value!r}" for name, value in given.items())
    return (
        f"# probes: {', '.join(config['probes']) or 'none'}\n"
        f'FrenetCallback(probes, out="OUT", {settings}).attach(trainer)'
    )


def reread(rows: Rows) -> list[Row]:
    """Rows with half-lives as brackets, also those of earlier versions."""
    return brackets.reread(rows, looks="drift", lives="half_life", keys=("probe",), lag="step")


def sentences(rows: Rows) -> list[Answer]:
    """How long the gradient basis of each probe stays good, once the training has ended."""
    found = []
    for row in select(rows, table="half_life"):
        if life := bracket_of(row):
            ends = "is stale after" if life.found else "stays good for"
            said = f"the gradient basis of the start {ends} {life.in_words('step')}"
            found.append(Answer(str(row["probe"]), {}, said))
    return found


def drift_chart(rows: Rows) -> object:
    """Energy ratio against step, one panel a probe, with its control and what chance gives."""
    series = {"ratio": "energy ratio", "control": "control", "chance": "chance"}
    table: list[Row] = []
    for probe in dict.fromkeys(row["probe"] for row in rows):
        own = select(rows, probe=probe)
        title = f"{probe}: {half_life_of(own)}"
        for column, label in series.items():
            table += [
                {"step": row["step"], "value": row[column], "series": label, "panel": title}
                for row in own
            ]
    return lines(
        table,
        x=Axis("step", "step", whole=True),
        y=Axis("value", "energy ratio", domain=(0, 1)),
        interval=None,
        facet="panel",
        rules=["control", "chance", Rule("half", STALE)],
    )


def half_life_of(rows: Rows) -> str:
    """The half-life of one probe's basis in words, from its rows of the table drift."""
    found = life_of(rows, lag="step")
    return "no half-life" if found is None else f"half-life {found.steps.in_words('step')}"


def prefix_chart(rows: Rows) -> object:
    """What the first k steps hold of the displacement and of its rest, with a random walk's."""
    series = {
        "captured": "displacement so far",
        "rest": "displacement after step k",
        "random_walk": "so far, random walk",
    }
    table: list[Row] = [
        {"step": row["step"], "value": row[column], "series": label}
        for column, label in series.items()
        for row in rows
    ]
    return lines(
        table,
        x=Axis("step", "step", whole=True),
        y=Axis("value", "captured fraction", domain=(0, 1)),
        interval=None,
        rules=[series["random_walk"]],
    )


def loss_chart(rows: Rows) -> object:
    """Loss of every probe, and of the training itself, against step."""
    return lines(
        [{**row, "series": row["source"]} for row in rows],
        x=Axis("step", "step", whole=True),
        y=Axis("loss", "loss (nats/token)"),
        interval=None,
    )


_STEP = Column("step", "steps", "optimiser steps taken", "key")
TABLES = {
    "drift": (
        Column("probe", "", "probe task", "key"),
        _STEP,
        Column("k", "", "dimension of the bases", "key"),
        Column("displacement", "2-norm", "distance from the start", "key"),
        Column(
            "ratio",
            "",
            "held-out gradient energy in the start's basis over that in a fresh one",
            "measure",
            "control",
        ),
        Column("control", "", "start: basis of other examples over the basis", "reference"),
        Column("chance", "", "a random basis in place of the start's", "reference"),
        Column("fresh", "fraction", "held-out energy in the fresh basis", "measure", "random"),
        Column("random", "fraction", "k / d, energy in a random basis", "reference"),
        Column("overlap", "", "overlap over the ceilings; may exceed 1", "measure", "ceiling_s"),
        Column("ceiling_s", "fraction", "overlap of two bases of the start", "reference"),
        Column("ceiling_t", "fraction", "overlap of two fresh bases", "reference"),
    ),
    "half_life": (
        Column("probe", "", "probe task", "key"),
        *life_columns("step at ratio 0.5"),
    ),
    "prefix": (
        _STEP,
        Column("k", "", "first steps that make the basis", "key"),
        Column("k_share", "fraction", "k over the steps so far", "key"),
        Column("rank", "", "directions in it", "key"),
        Column(
            "captured", "fraction", "of the squared displacement so far", "measure", "random_walk"
        ),
        Column("random_walk", "fraction", "what a random walk would give", "reference"),
        Column("lift", "", "captured over random_walk", "measure", "one"),
        Column("one", "", "lift of a random walk", "reference"),
        Column("rest", "fraction", "the same after step k", "measure", "random"),
        Column("random", "fraction", "rank / d, capture of a random basis", "reference"),
    ),
    "path": (
        _STEP,
        Column("displacement", "2-norm", "distance from the start", "measure", "walk"),
        Column("walk", "2-norm", "of a random walk with steps as long", "reference"),
        Column("unmoved", "fraction", "coordinates a step left alone, mean", "measure", "zeros"),
        Column(
            "zeros",
            "fraction",
            "coordinates with a gradient of zero, mean; empty: no gradient was there to see",
            "reference",
        ),
        Column(
            "unseen",
            "fraction",
            "coordinates whose gradient was not there to see: frozen, or "
            "used up inside the backward pass; mean",
            "reference",
        ),
    ),
    "loss": (
        Column("source", "", "a probe, or the training: the mean since Trainer's last log", "key"),
        _STEP,
        Column("loss", "nats/token", "mean loss", "measure", "loss_0"),
        Column("loss_0", "nats/token", "the first of this source", "reference"),
    ),
    "notes": (
        _STEP,
        Column("note", "", "what must be known about this training", "key"),
    ),
}
FIGURES = (
    Figure(
        "drift",
        "How much the start's gradient basis holds of new gradients",
        "Energy of held-out gradients of each probe in the basis made before training, over that "
        "in a basis made on the spot: 1 is as good as new, below a half the directions have gone "
        "stale. The control swaps the start's examples for others without any training: as far as "
        "it is from 1, a ratio may be by the choice of examples alone.",
        "drift",
        drift_chart,
    ),
    Figure(
        "prefix",
        "How much the first steps hold of the displacement",
        "Share of the squared displacement from the start that lies in the span of the first k "
        "steps, and of the displacement after them. A random walk with steps as long would have "
        "the dashed share: only what is above it says that the first steps knew the direction.",
        "prefix",
        prefix_chart,
    ),
    Figure(
        "loss",
        "Losses",
        "Mean loss of each probe on examples that are used for nothing else here, and the training "
        "loss as Trainer logged it, the mean since its last log.",
        "loss",
        loss_chart,
    ),
)
WATCHED = Experiment(
    name="watched-training",
    question="How far, and for how long, could directions be trusted in this training?",
    claims=(),
    config=WatchConfig,
    cells=lambda config: cells(config, steps=0),
    run=run,
    tables=TABLES,
    figures=FIGURES,
    presets={},
    command=command,
    reread=reread,
    answers=sentences,
)
