"""How `subspace_training` shows its rows: columns and figures."""

from statistics import median

from frenet.experiments.experiment import Column, Figure, Row, Rows, integer, number
from frenet.experiments.figures.charts import Axis, dots, lines
from frenet.experiments.figures.wording import between
from frenet.experiments.intervals import over_seeds, seed_means, select
from frenet.experiments.setup import columns
from frenet.experiments.subspace_training.findings import (
    CHANCE,
    FIXED,
    MOVING,
    WHOLE,
    at_k,
    groups,
)

PANELS = {"from the damaged point": FIXED, "after k steps of all coordinates": MOVING}


def curve_chart(rows: Rows) -> object:
    """Median over seeds of the loss against the step, with all seeds in the band."""
    table: list[Row] = []
    for facet, part in _panels(at_k(rows)):
        by = ("basis", "share")
        losses = seed_means(part, by=by, value="loss")
        for basis, share in dict.fromkeys((row["basis"], row["share"]) for row in losses):
            at: Row = {"basis": basis, "share": share}
            values = [number(row, "loss") for row in select(losses, **at)]
            ends = (min(values), max(values)) if len(values) > 1 else (None, None)
            at |= {"panel": facet, "value": median(values)}
            table.append(at | {"low": ends[0], "high": ends[1]})
    return lines(
        table,
        x=Axis("share", "step, as a share of the run"),
        y=Axis("value", "loss (nats per token)"),
        colour=Axis("basis", "trained in"),
        facet="panel",
        rules=WHOLE,
    )


def _panels(rows: Rows) -> list[tuple[str, list[Row]]]:
    """The rows of each space, optimiser and start, named by what differs."""
    panels, several = [], len(groups(rows)) > 1
    for name, group in groups(rows):
        for start, bases in PANELS.items():
            part = [row for row in group if row["basis"] in (*bases, *WHOLE)]
            if any(row["basis"] in bases for row in part):
                panels.append((f"{name},\n{start}" if several else start, part))
    return panels


def dimension_chart(rows: Rows) -> object:
    """Share of the lost loss regained at equal steps, by basis and k."""
    table: list[Row] = []
    for name, group in groups(rows):
        sized = [
            row | {"panel": name, "size": f"k = {row['k']}" if row["basis"] in CHANCE else "d"}
            for row in group
        ]
        table += over_seeds(sized, by=("panel", "basis", "size"), value="regained")
    return dots(
        table,
        x=Axis("value", "share of the lost loss regained", domain=(0, 1)),
        row=Axis("basis", "trained in"),
        colour=Axis("size", "coordinates"),
        facet="panel",
    )


def dimension_finding(rows: Rows) -> str:
    """The range over bases at k = 10, or at the largest k below that more seeds have."""
    compared = [row for row in at_k(rows) if row["basis"] in CHANCE]
    means = over_seeds(compared, by=("basis",), value="regained")
    if not means:
        return ""
    k = max(integer(row, "k") for row in compared)
    return f"In {k} directions training regains {between(means, 'basis')} of the lost loss."


_CASE = (
    columns.SEED,
    columns.SPACE,
    columns.DAMAGED_TASK,
    columns.PROTOCOL,
    columns.OPTIMIZER,
)
_BASIS = (
    Column("basis", "", "what is trained in", "key"),
    Column("k", "", "its dimension; d for all coordinates", "key"),
)
TABLES = {
    "run": (
        *_CASE,
        Column("status", "", "recovered; not recovered; not damaged", "key"),
        columns.LOSS_0,
        columns.LOSS_D,
        Column("loss_end", "nats/token", "select loss at the end", "measure", "threshold"),
        Column("threshold", "nats/token", "5% of min(loss_d, ln V) above loss_0", "reference"),
        Column("stop", "steps", "T_stop of the run", "measure", "longest"),
        Column("longest", "steps", "most steps allowed", "reference"),
        Column("left_out", "", "values of k above 0.35 T_stop, which are not measured", "key"),
        Column("why", "", "why the damage failed", "key"),
    ),
    "trained": (
        *_CASE,
        *_BASIS,
        Column("rate", "", "chosen learning rate / the run's, at steps of equal norm", "key"),
        Column("full_steps", "steps", "steps that moved all coordinates", "key"),
        Column("spent", "gradients", "minibatch gradients for the basis alone", "key"),
        Column("moved", "", "numbers moved: coordinates times steps, summed", "key"),
        Column("loss", "nats/token", "test loss at the end", "measure", "loss_d"),
        columns.LOSS_D,
        Column("regained", "fraction", "share of the lost loss", "measure", "regained_all"),
        Column("regained_all", "fraction", "by all coordinates at their best rate", "reference"),
        Column("chance", "fraction", "by random directions with as many full steps", "reference"),
        Column("regained_steps", "fraction", "by its full steps alone", "reference"),
        Column("accuracy", "fraction", "of test tokens", "measure", "accuracy_all"),
        Column("accuracy_all", "fraction", "by all coordinates at their best rate", "reference"),
        Column("stop", "steps", "T_stop; empty: not recovered by then", "measure", "steps"),
        Column("steps", "steps", "steps taken, the run's T_stop", "reference"),
    ),
    "curve": (
        *_CASE,
        *_BASIS,
        Column("share", "fraction", "step over the steps of the run", "key"),
        Column("step", "steps", "training step", "key"),
        Column("moved", "", "numbers moved: coordinates times steps, summed", "key"),
        Column("loss", "nats/token", "select loss", "measure", "threshold"),
        Column("threshold", "nats/token", "the loss that counts as recovered", "reference"),
    ),
    "rate": (
        *_CASE,
        *_BASIS,
        Column("rate", "", "learning rate / the run's, at steps of equal norm", "key"),
        Column("chosen", "", "whether it has the lowest training loss", "key"),
        Column("at_end", "", "chosen, though a neighbour was not tried", "key"),
        Column(
            "train_loss",
            "nats/token",
            "last fifth of the minibatches; empty: diverged",
            "measure",
            "train_loss_all",
        ),
        Column("train_loss_all", "nats/token", "the same of the run", "reference"),
    ),
}
FIGURES = (
    Figure(
        "curves",
        "How fast does a basis recover?",
        "Held-out loss against the step, with equal steps and equal minibatches for all. k = 10, "
        "or the largest k below that more seeds have. The line is the median over seeds; the band "
        "holds all seeds. Every basis uses the learning rate that was best on the training "
        "minibatches. The dashed grey lines train all coordinates, at their best rate and at the "
        "rate of the run that gives the prefix.",
        "curve",
        curve_chart,
    ),
    Figure(
        "dimension",
        "How many coordinates does it take?",
        "Share of the lost loss regained at equal steps, mean over tasks and protocols; "
        "small marks are seeds. Random directions with as many full steps are the chance level, "
        "all coordinates the ceiling.",
        "trained",
        dimension_chart,
        finds=dimension_finding,
    ),
)
