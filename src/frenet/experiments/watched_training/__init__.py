"""Settings, columns and figures of `FrenetCallback`.

The callback fills a folder while Trainer trains; it is read and reported like that of an
experiment.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frenet.experiments.experiment import Cell, Column, Figure, Row, Rows, Study
from frenet.experiments.figures.charts import Axis, Rule, lines
from frenet.experiments.intervals import select
from frenet.experiments.setup import brackets
from frenet.experiments.setup.brackets import life_columns, life_of, step_columns
from frenet.experiments.watched_training.advice import HELD
from frenet.experiments.watched_training.advice import STALE as STALE
from frenet.experiments.watched_training.advice import sentences as sentences
from frenet.experiments.watched_training.findings import TRAINING as TRAINING
from frenet.experiments.watched_training.findings import (
    drift_finding,
    loss_finding,
    order_finding,
    prefix_finding,
    projection_finding,
)

# Measured steps before the first multiple of ``every``: directions go stale fastest at the start of
# a training run.
EARLY = (1, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class WatchConfig:
    """What to record of a training run, and how often."""

    model: str
    """The name in the model's configuration."""
    probes: tuple[str, ...]
    """Names of the probe tasks."""
    every: int
    """Steps between measurements, after the early ones."""
    k: int
    """Number of first steps in the prefix, and dimension of the gradient bases (at most n)."""
    n: int
    """Gradients of single examples in each of three sets."""
    gradients: bool
    """Whether the gradients of all steps are recorded."""
    where: str
    """Regular expression for the names of the parameters; empty: all trained ones."""
    order: bool = False
    """Whether the order of updates on every pair of probes is looked at."""
    projection_rank: int = 0
    """Rank of the projections of each matrix's gradient that are looked at; 0: none."""


def looks(every: int, steps: int) -> list[int]:
    """The measured steps of a training run of ``steps`` steps, in order.

    They are the start, the early ones, the multiples of ``every``, and the last step.

    >>> looks(200, 450)
    [0, 1, 5, 10, 20, 50, 100, 200, 400, 450]
    >>> looks(4, 10)
    [0, 1, 4, 8, 10]
    """
    early = [step for step in EARLY if is_look(step, every) and step < steps]
    return sorted({0, *early, *range(every, steps + 1, every), steps})


def is_look(step: int, every: int) -> bool:
    """Whether a training is measured after this step, if it is not the last."""
    return (step in EARLY and step < every) or step % every == 0


def cells(config: WatchConfig, *, steps: int) -> list[Cell]:
    """One cell per measured step, and one for the end."""
    return [*(Cell.of(step=step) for step in looks(config.every, steps)), Cell.of(part="end")]


def command(config: Mapping[str, Any]) -> str:
    """The line of Python that watches a training run in this way."""
    names = ("every", "k", "n", "gradients", "where")
    given = {name: config[name] for name in names}
    given["where"] = given["where"] or None
    given |= {name: config[name] for name in ("order", "projection_rank") if config.get(name)}
    settings = ", ".join(f"{name}={value!r}" for name, value in given.items())
    return (
        f"# probes: {', '.join(config['probes']) or 'none'}\n"
        f'FrenetCallback(probes, out="OUT", {settings}).attach(trainer)'
    )


def reread(rows: Rows) -> list[Row]:
    """Rows with half-lives as brackets; those of earlier versions are converted."""
    return brackets.reread(rows, looks="drift", lives="half_life", keys=("probe",), lag="step")


def projection_chart(rows: Rows) -> object:
    """What the projections of the start still hold, over matrices, one panel per probe."""
    band = {"low": None, "high": None}
    table: list[Row] = []
    for row in rows:
        at: Row = {"step": row["step"], "panel": row["probe"]}
        ends: Row = {"low": row["low"], "high": row["high"]}
        table.append(at | ends | {"value": row["ratio"], "series": "median over matrices"})
        table.append(at | band | {"value": row["control"], "series": "control"})
    return lines(
        table,
        x=Axis("step", "step", whole=True),
        y=Axis("value", "share of a fresh projection's energy above chance"),
        facet="panel",
        rules=["control", Rule("half", STALE), Rule("chance", 0.0)],
    )


def drift_chart(rows: Rows) -> object:
    """Energy ratio against step, one panel per probe, with control and chance level."""
    series = {"ratio": "energy ratio", "control": "control", "chance": "chance"}
    table: list[Row] = []
    for probe in dict.fromkeys(row["probe"] for row in rows):
        part = select(rows, probe=probe)
        title = f"{probe}\n{half_life_of(part)}"
        for column, label in series.items():
            table += [
                {"step": row["step"], "value": row[column], "series": label, "panel": title}
                for row in part
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
    life = life_of(rows, lag="step")
    return "no half-life" if life is None else f"half-life {life.steps.in_words('step')}"


def prefix_chart(rows: Rows) -> object:
    """Share of the displacement, and of its rest, in the first k steps, with a random walk's."""
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
    """Loss of every probe, and the training loss, against step."""
    return lines(
        [{**row, "series": row["source"]} for row in rows],
        x=Axis("step", "step", whole=True),
        y=Axis("loss", "loss (nats/token)"),
        interval=None,
    )


def order_chart(rows: Rows) -> object:
    """The step size from which on the order of two probes matters, against step."""
    return lines(
        [row for row in rows if row.get("onset")],
        x=Axis("step", "step", whole=True),
        y=Axis("onset", "step size from which on the order matters", log=True),
        interval=None,
        colour="pair",
    )


_STEP = Column("step", "steps", "optimiser steps taken", "key")
_PROJECTED = (
    Column("probe", "", "probe task", "key"),
    Column("rank", "", "of the projections", "key"),
)
TABLES = {
    "drift": (
        Column("probe", "", "probe task", "key"),
        _STEP,
        Column("k", "", "dimension of the bases", "key"),
        Column("displacement", "2-norm", "distance from the start", "key"),
        Column(
            "ratio",
            "",
            "held-out gradient energy in the initial basis over that in a fresh one",
            "measure",
            "control",
        ),
        Column("control", "", "the ratio at the start, for other examples", "reference"),
        Column("chance", "", "the ratio for a random basis", "reference"),
        Column("fresh", "fraction", "held-out energy in the fresh basis", "measure", "random"),
        Column("random", "fraction", "k / d, energy in a random basis", "reference"),
        Column("overlap", "", "overlap over its ceilings; may exceed 1", "measure", "ceiling_s"),
        Column("ceiling_s", "fraction", "overlap of two initial bases", "reference"),
        Column("ceiling_t", "fraction", "overlap of two fresh bases", "reference"),
    ),
    "half_life": (
        Column("probe", "", "probe task", "key"),
        *life_columns("step at ratio 0.5"),
    ),
    "prefix": (
        _STEP,
        Column("k", "", "number of first steps in the basis", "key"),
        Column("k_share", "fraction", "k over the steps so far", "key"),
        Column("rank", "", "dimension of the basis", "key"),
        Column(
            "captured", "fraction", "of the squared displacement so far", "measure", "random_walk"
        ),
        Column("random_walk", "fraction", "share of a random walk", "reference"),
        Column("lift", "", "captured over random_walk", "measure", "one"),
        Column("one", "", "lift of a random walk", "reference"),
        Column("rest", "fraction", "the same after step k", "measure", "random"),
        Column("random", "fraction", "rank / d, capture of a random basis", "reference"),
    ),
    "path": (
        _STEP,
        Column("displacement", "2-norm", "distance from the start", "measure", "walk"),
        Column("walk", "2-norm", "of a random walk with equal steps", "reference"),
        Column("unmoved", "fraction", "coordinates that do not move, mean", "measure", "zeros"),
        Column(
            "zeros",
            "fraction",
            "coordinates with a gradient of zero, mean; empty: no gradient was available",
            "reference",
        ),
        Column(
            "unseen",
            "fraction",
            "coordinates without an available gradient (frozen, or used up inside the backward "
            "pass), mean",
            "reference",
        ),
    ),
    "loss": (
        Column("source", "", "a probe, or the training: the mean since Trainer's last log", "key"),
        _STEP,
        Column("loss", "nats/token", "mean loss", "measure", "loss_0"),
        Column("loss_0", "nats/token", "the first of this source", "reference"),
    ),
    "order": (
        Column("pair", "", "two probes", "key"),
        _STEP,
        Column(
            "kappa",
            "1 / step size",
            "difference of two orders of a gradient step each, over step size and length of both",
            "measure",
            "null_kappa",
        ),
        Column("null_kappa", "1 / step size", "the same for random steps", "reference"),
        Column("rounding", "1 / step size", "upper bound of the rounding of kappa", "reference"),
        Column(
            "onset",
            "step size",
            "0.10 / kappa: from here on the order matters; empty: rounding",
            "measure",
            "null_onset",
        ),
        Column("null_onset", "step size", "the same for random steps", "reference"),
    ),
    "projection": (
        *_PROJECTED,
        Column("matrix", "", "parameter with two sides", "key"),
        _STEP,
        Column("displacement", "2-norm", "distance from the start", "key"),
        Column(
            "ratio",
            "",
            "of the held-out energy that a fresh projection has above chance, the share that the "
            "initial one has; empty: a fresh one has none",
            "measure",
            "control",
        ),
        Column("control", "", "the ratio at the start, for other examples", "reference"),
        Column("energy", "fraction", "held-out energy in the initial one", "measure", "chance"),
        Column("fresh", "fraction", "held-out energy in a fresh one", "measure", "chance"),
        Column("chance", "fraction", "rank / shorter side, energy in a random one", "reference"),
    ),
    "projections": (
        *_PROJECTED,
        Column("matrices", "", "number of matrices", "key"),
        _STEP,
        Column("ratio", "", "median ratio over the matrices", "measure", "control"),
        Column("control", "", "median ratio of other examples at the start", "reference"),
        Column("low", "", "least ratio of a matrix", "measure", "nothing"),
        Column("high", "", "greatest ratio of a matrix", "measure", "control"),
        Column("nothing", "", "ratio of a random projection", "reference"),
    ),
    "update_gap": (
        *_PROJECTED,
        Column("matrix", "", "parameter with two sides", "key"),
        *step_columns(f"end of the longest gap that holds {HELD:g}"),
        Column(
            "held",
            "",
            "of the energy above chance in fresh projections, the share in the initial one, over "
            "all steps",
            "measure",
            "nothing",
        ),
        Column("nothing", "", "share of a random projection", "reference"),
    ),
    "notes": (
        _STEP,
        Column("note", "", "caveats about this training run", "key"),
    ),
}
FIGURES = (
    Figure(
        "drift",
        "How much of new gradients does the initial basis hold?",
        "Energy of held-out gradients of each probe in the basis made before training, relative to "
        "a basis made at the current step: 1 is as good as new; below a half the directions have "
        "gone stale. The control replaces the initial examples by others, without any training. A "
        "ratio no farther from 1 than the control may come from the choice of examples alone.",
        "drift",
        drift_chart,
        finds=drift_finding,
    ),
    Figure(
        "prefix",
        "How much of the displacement do the first steps hold?",
        "Share of the squared displacement from the start that lies in the span of the first k "
        "steps, and of the displacement after them. The dashed line is the share of a random walk "
        "with equal steps: only a share above it shows that the first steps knew the direction.",
        "prefix",
        prefix_chart,
        finds=prefix_finding,
    ),
    Figure(
        "loss",
        "How did the losses go?",
        "Mean loss of each probe on examples that are not used otherwise, and the training loss "
        "that Trainer logs, the mean since its last log.",
        "loss",
        loss_chart,
        finds=loss_finding,
    ),
    Figure(
        "order",
        "Would the order of updates on the probes matter?",
        "The step size at which a gradient step on each of two probes ends 10% of their length "
        "apart in the two orders, by the Lie bracket. Far below it two steps may be taken in any "
        "order.",
        "order",
        order_chart,
        finds=order_finding,
    ),
    Figure(
        "projections",
        "How much do the initial projections of the matrices hold?",
        "Each matrix's gradient on held-out examples is projected to the leading singular vectors "
        "of its gradient at the start, and to fresh ones. 1 is as good as fresh, 0 is chance; "
        "below a half a projection has gone stale. The line is the median over matrices, the band "
        "holds all of them. The control replaces the initial examples by others, without any "
        "training.",
        "projections",
        projection_chart,
        finds=projection_finding,
    ),
)
STUDY = Study(
    name="watched-training",
    question="How far, and for how long, could directions be trusted in this training?",
    claims=(),
    config=WatchConfig,
    tables=TABLES,
    figures=FIGURES,
    command=command,
    reread=reread,
    answers=sentences,
)
