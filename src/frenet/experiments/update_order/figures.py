"""Columns and figures of `update_order`."""

import math
import statistics
from collections.abc import Mapping, Sequence

from frenet.experiments.experiment import Column, Figure, Row, Rows, Scalar, finite, number
from frenet.experiments.figures import charts
from frenet.experiments.figures.charts import Axis, dots, lines, scatter
from frenet.experiments.figures.names import label
from frenet.experiments.figures.wording import between, two
from frenet.experiments.intervals import over_seeds, select, series_over_seeds
from frenet.experiments.setup import columns
from frenet.experiments.setup.comparable import by_coordinates

# Kinds of pairs: of two learned tasks, of one with a task that the network has not learned, and of
# two minibatches of one task.
OTHER, NEW, SAME = "two tasks", "with a new task", "one task, other minibatches"
# The order that the others are compared with.
OTHERS = "first, then second"
# Measured over predicted length, and how far from 1 a pair may be.
EQUAL, CLOSE = (0.95, 1.05), 0.1


def named(rows: Rows) -> list[Row]:
    """The rows with the name of their pair."""
    return [{**row, "pair": f"{row['first']}, {row['second']}"} for row in rows]


def medians(rows: Rows, by: Sequence[str], of: Sequence[str]) -> list[Row]:
    """Medians over the pairs of each seed: a few pairs far beyond their window would move means."""
    groups: dict[tuple[Scalar, ...], list[Mapping[str, Scalar]]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in ("seed", *by)), []).append(row)
    found: list[Row] = []
    for keys, group in groups.items():
        row = dict(zip(("seed", *by), keys, strict=True))
        for column in of:
            values = [v for each in group if (v := finite(each.get(column))) is not None]
            row[column] = statistics.median(values) if values else None
        found.append(row)
    return found


def ratio_chart(rows: Rows) -> object:
    """Measured over predicted difference against the step size."""
    mine = by_coordinates(rows)[""]
    by = ("fraction", "kind")
    return lines(
        over_seeds(medians(mine, by, ("ratio",)), by=by, value="ratio", least=0.0, most=math.inf),
        x=Axis("fraction", "step size as a share of the onset", log=True),
        y=Axis("value", "median of measured / predicted difference"),
        colour="kind",
        rules=[charts.Rule("equal within 0.05", *EQUAL)],
    )


def ratio_finding(rows: Rows) -> str:
    """The ratio at the smallest and at the largest step size, of two learned tasks."""
    mine = select(by_coordinates(rows)[""], kind=OTHER)
    means = over_seeds(medians(mine, ("fraction",), ("ratio",)), by=("fraction",), value="ratio")
    if not means:
        return ""
    ends = [
        {**row, "at": f"at {row['fraction']:g} of the onset"}
        for row in sorted(means, key=lambda row: number(row, "fraction"))
    ]
    told = " and ".join(f"{two(number(row, 'value'))} {row['at']}" for row in (ends[0], ends[-1]))
    return f"For two tasks, the measured difference over the predicted one is {told}."


def direction_chart(rows: Rows) -> object:
    """The cosine of the measured difference with the bracket, and with a random one."""
    mine = medians(
        select(by_coordinates(rows)[""], kind=OTHER), ("fraction",), ("cosine", "null_cosine")
    )
    values = {"cosine": "with the Lie bracket", "null_cosine": "with that of random directions"}
    return lines(
        series_over_seeds(mine, by=("fraction",), values=values, least=-1.0),
        x=Axis("fraction", "step size as a share of the onset", log=True),
        y=Axis("value", "median cosine of the measured difference", domain=(-0.1, 1)),
        rules=["with that of random directions", charts.Rule("0.99", 0.99)],
    )


def direction_finding(rows: Rows) -> str:
    """The cosine at the smallest step size, beside that of random directions."""
    mine = select(by_coordinates(rows)[""], kind=OTHER)
    least = min((number(row, "fraction") for row in mine), default=0.0)
    names = ("cosine", "null_cosine")
    at = medians(select(mine, fraction=least), ("fraction",), names)
    means = [over_seeds(at, by=(), value=name) for name in names]
    if not all(means):
        return ""
    ours, chance = (two(number(mean[0], "value")) for mean in means)
    return (
        f"At {least:g} of the onset its cosine with the Lie bracket is {ours}, with that of "
        f"random directions {chance}."
    )


def window_chart(rows: Rows) -> object:
    """Onset against the window of single steps, pair by pair."""
    mine = named(select(by_coordinates(rows)[""], kind=OTHER))
    series = {"onset": "gradients", "null_onset": "random directions, equal norms"}
    table = [
        {**row, "onset": onset, "directions": label}
        for column, label in series.items()
        for row in mine
        if (onset := finite(row.get(column))) and finite(row.get("window"))
    ]
    return scatter(
        table,
        x=Axis("window", "largest step size at which both single steps are linear", log=True),
        y=Axis("onset", "step size from which on the order matters", log=True),
        colour="directions",
    )


def window_finding(rows: Rows) -> str:
    """In how many pairs the order matters where single steps are linear."""
    mine = [
        row
        for row in select(by_coordinates(rows)[""], kind=OTHER)
        if finite(row.get("onset")) and finite(row.get("window"))
    ]
    if not mine:
        return ""
    inside = sum(number(row, "onset") < number(row, "window") for row in mine)
    return f"It does in {inside} of {len(mine)} pairs of tasks and seeds."


def memory_chart(rows: Rows) -> object:
    """One step on each task by an optimiser: what is its memory, and what is curvature."""
    mine: list[Row] = [{**row, "step": f"{row['optimizer']}, {row['state']}"} for row in rows]
    values = {
        "difference": "both orders",
        "curvature": "by the change of the gradients",
        "frozen": "with frozen gradients",
    }
    return dots(
        series_over_seeds(mine, by=("step",), values=values, least=0.0, most=math.inf),
        x=Axis("value", "distance of the two ends over the length of the step"),
        row="step",
        colour="series",
        rules=[charts.Rule("the order matters", 0.1)],
    )


def memory_finding(rows: Rows) -> str:
    """The share of the distance that frozen gradients give, over optimisers and their states."""
    shares: list[Row] = []
    for step in dict.fromkeys((row["optimizer"], row["state"]) for row in rows):
        mine = select(rows, optimizer=step[0], state=step[1])
        whole, frozen = (over_seeds(mine, by=(), value=n) for n in ("difference", "frozen"))
        if whole and frozen and number(whole[0], "value") > 0:
            share = number(frozen[0], "value") / number(whole[0], "value")
            shares.append({"step": f"{label(str(step[0]))}, {step[1]}", "value": share})
    if not shares:
        return ""
    return (
        "With frozen gradients, when only the optimiser's memory acts, two orders end "
        f"{between(shares, 'step')} times as far apart as without freezing."
    )


def stretch_chart(rows: Rows) -> object:
    """Held-out losses after trainings of equal length in four orders."""
    mine: list[Row] = [
        {**row, "what": f"{row['first']}, {row['second']}: {row['optimizer']}"} for row in rows
    ]
    values = {"loss_first": "loss of the first task", "loss_second": "loss of the second task"}
    return dots(
        series_over_seeds(mine, by=("order", "what"), values=values, least=0.0, most=math.inf),
        x=Axis("value", "held-out loss (nats/token)"),
        row="order",
        colour="series",
        facet="what",
    )


def stretch_finding(rows: Rows) -> str:
    """The mean held-out loss of both tasks, from the best order to the worst, and at the start."""
    both: list[Row] = [
        {**row, "value": number(row, f"{what}_first") / 2 + number(row, f"{what}_second") / 2,
         "at": row["order"] if what == "loss" else "start"}
        for row in rows
        for what in ("loss", "start")
    ]  # fmt: skip
    means = over_seeds(both, by=("at",), value="value") if both else []
    ends = [row for row in means if row["at"] != "start"]
    if not ends:
        return ""
    (start,) = select(means, at="start")
    return (
        f"The mean held-out loss of both tasks ends at {between(ends, 'at')} nats per token; at "
        f"the start it is {two(number(start, 'value'))}."
    )


_FIRST = Column("first", "", "the task A", "key")
_SECOND = Column("second", "", "the task B", "key")
_KIND = Column("kind", "", "two learned tasks, one and a new one, or two minibatches of one", "key")
_PAIR = (columns.SEED, columns.SPACE, columns.COORDINATES, _KIND, _FIRST, _SECOND)
_SHARE = "share of the step"

TABLES = {
    "window": (
        columns.SEED, columns.SPACE, columns.COORDINATES, columns.TASK,
        Column("norm", "nats/token per unit", "norm of the task's gradient", "measure", "clear"),
        Column("clear", "", "that norm over its rounding error; empty: not known", "reference"),
        Column(
            "window", "step size", "largest gradient step within which the task's loss is linear",
            "measure", "eps",
        ),
        Column("low", "step size", "lower end of its 95% interval over examples", "reference"),
        Column("high", "step size", "its upper end; empty: beyond the limit", "reference"),
        Column("predicted", "step size", "the same if the loss were a quadratic", "reference"),
        Column("unbounded", "", "whether the window may be larger", "key"),
        Column("eps", "fraction", "relative deviation that ends the window", "reference"),
    ),
    "bracket": (
        *_PAIR,
        Column(
            "kappa", "1 / step size", "norm of the Lie bracket over that of g_A + g_B", "measure",
            "null_kappa",
        ),
        Column(
            "null_kappa", "1 / step size",
            "the same with random steps of equal norm in every tensor", "reference",
        ),
        Column(
            "floor", "1 / step size", "the same of a batch with itself, rows in reverse order",
            "reference",
        ),
        Column("rounding", "1 / step size", "upper bound of the rounding of kappa", "reference"),
        Column(
            "onset", "step size", "0.10 / kappa: two orders end 10% of their step apart",
            "measure", "null_onset",
        ),
        Column("null_onset", "step size", "the same with random steps", "reference"),
        Column("window", "step size", "smaller window of the two tasks", "reference"),
        Column("inside", "", "whether the onset is inside that window", "measure", "null_inside"),
        Column("null_inside", "", "the same with random steps", "reference"),
        Column("cosine", "", "of the two gradients", "key"),
        Column("clear_first", "", "norm of g_A over its rounding error", "reference"),
        Column("clear_second", "", "norm of g_B over its rounding error", "reference"),
    ),
    "order": (
        *_PAIR,
        Column("of_window", "", "step size over the smaller window of single steps", "key"),
        Column("fraction", "", "step size as a share of the onset in the parameters", "key"),
        Column("of_onset", "", "the same of the onset in these coordinates", "key"),
        Column("eta", "step size", "of both gradient steps", "key"),
        Column(
            "difference", _SHARE, "distance of the two ends over the length of both steps",
            "measure", "predicted",
        ),
        Column("predicted", _SHARE, "eta kappa, by the Lie bracket", "reference"),
        Column("ratio", "", "measured over predicted", "measure", "rounding"),
        Column("rounding", "", "of the ratio; 0: not known", "reference"),
        Column("null_ratio", "", "measured over what random steps predict", "reference"),
        Column("cosine", "", "of the difference with the bracket", "measure", "null_cosine"),
        Column("null_cosine", "", "with the bracket of random steps", "reference"),
    ),
    "optimizer": (
        *_PAIR,
        columns.OPTIMIZER,
        Column("state", "", "of the optimiser at the start: fresh or carried", "key"),
        Column(
            "difference", _SHARE, "distance of the two ends over the length of both steps",
            "measure", "frozen",
        ),
        Column("frozen", _SHARE, "the same with the gradients of the start", "reference"),
        Column(
            "curvature", _SHARE, "what the change of the gradients adds", "measure", "onset"
        ),
        Column("onset", _SHARE, "from which on the order matters", "reference"),
    ),
    "stretch": (
        columns.SEED, columns.SPACE, _FIRST, _SECOND, columns.OPTIMIZER,
        Column("order", "", "of the training", "key"),
        Column("replicate", "", "of the minibatches", "key"),
        Column("steps", "", "on each task", "key"),
        Column("loss_first", "nats/token", "held-out loss of A", "measure", "start_first"),
        Column("start_first", "nats/token", "the same before the training", "reference"),
        Column("loss_second", "nats/token", "held-out loss of B", "measure", "start_second"),
        Column("start_second", "nats/token", "the same before the training", "reference"),
        Column(
            "apart", _SHARE, "distance from the end of: first, then second", "measure", "spread"
        ),
        Column(
            "spread", _SHARE, "distance of that end from the same with other minibatches",
            "reference",
        ),
        Column(
            "predicted", _SHARE, "steps eta kappa, of unclipped SGD: second, then first",
            "reference",
        ),
    ),
}  # fmt: skip

FIGURES = (
    Figure(
        "ratio",
        "Does the Lie bracket predict how far apart two orders end?",
        "Two gradient steps in both orders; median over pairs. The band is equality within 0.05. "
        "To the right of 1 the prediction is no longer small.",
        "order",
        ratio_chart,
        finds=ratio_finding,
    ),
    Figure(
        "direction",
        "Does it predict the direction?",
        "Cosine of theta_AB - theta_BA with the Lie bracket, and with that of random steps of "
        "equal norm in every tensor.",
        "order",
        direction_chart,
        finds=direction_finding,
    ),
    Figure(
        "window",
        "Does the order matter where single steps are still linear?",
        "Every point is a pair in one seed. Below the line the two orders end 10% of their step "
        "apart at a step size at which each task's own loss still follows its slope.",
        "bracket",
        window_chart,
        finds=window_finding,
    ),
    Figure(
        "memory",
        "How much of it is the optimiser's memory?",
        "One step on each task in both orders. An optimiser with momentum counts the first "
        "gradient twice, so that its two orders differ at any rate.",
        "optimizer",
        memory_chart,
        finds=memory_finding,
    ),
    Figure(
        "stretch",
        "What do longer trainings in four orders end at?",
        "Held-out losses of both tasks after trainings of equal length, mean over two sets of "
        "minibatches.",
        "stretch",
        stretch_chart,
        finds=stretch_finding,
    ),
)
