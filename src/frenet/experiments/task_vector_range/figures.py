"""What the rows of `task_vector_range` say: columns and figures."""

import math
from collections.abc import Mapping

from frenet.experiments.experiment import Column, Figure, Row, Rows, Scalar, integer, number
from frenet.experiments.figures.charts import Axis, Rule, dots, lines
from frenet.experiments.figures.names import label
from frenet.experiments.figures.wording import between, two
from frenet.experiments.intervals import over_seeds, select, series_over_seeds
from frenet.experiments.setup import columns
from frenet.experiments.setup.describe import labelled_rows

# The height of the axis of losses over the largest mean.
ROOM = 1.2
OWN, OTHERS, RANDOM = "its own task", "the other tasks", "its own, along a random vector"
EARLIER = (
    "stored by an earlier build: with LoRA, losses along task vectors, sums and cosines are those "
    "of the factors A and B, not of the weights"
)


def labelled(rows: Rows) -> Rows:
    """Rows of earlier builds, with the coordinates of their lines."""
    return labelled_rows(rows, _labels, earlier=EARLIER)


def _labels(row: Row) -> Row:
    """The column missing from a row of an earlier build."""
    return {"coordinates": "factors" if row["space"] == "lora" else "weights"}


def along_chart(rows: Rows) -> object:
    """Loss against the coefficient, for the vector's task and for the others."""
    by = ("panel", "a")
    columns = {"loss": OWN, "random": RANDOM}
    if any(row["others"] is not None for row in rows):
        columns["others"] = OTHERS
    table = series_over_seeds(_panelled(rows), by=by, values=columns, least=0.0, most=math.inf)
    most = max((number(row, "value") for row in table), default=1.0)
    return lines(
        table,
        x=Axis("a", "coefficient of the vector"),
        y=Axis("value", "loss, nats per token", domain=(0.0, ROOM * most)),
        colour="series",
        facet="panel",
        rules=[RANDOM, Rule("base", 0.0, axis="x"), Rule("trained", 1.0, axis="x")],
    )


def _panelled(rows: Rows) -> list[Row]:
    """Rows with a panel for each task and, if there are several, each space.

    Lines in the factors of LoRA are left out if those in the weights were measured.
    """
    spaces = {row["space"] for row in rows}
    in_weights = {row["space"] for row in rows if row["coordinates"] == "weights"}
    return [
        {**row, "panel": _panel(row, several=len(spaces) > 1)}
        for row in rows
        if row["coordinates"] == "weights" or row["space"] not in in_weights
    ]


def _panel(row: Mapping[str, Scalar], *, several: bool) -> str:
    return f"{row['task']}{', ' + label(str(row['space'])) if several else ''}"


def along_finding(rows: Rows) -> str:
    """The coefficient at which the loss of each task is lowest."""
    lowest: list[Row] = []
    for task in dict.fromkeys(row["panel"] for row in _panelled(rows)):
        mine = select(_panelled(rows), panel=task)
        means = over_seeds(mine, by=("a",), value="loss")
        best = min(means, key=lambda row: number(row, "value"))
        lowest.append({"task": task, "a": best["a"]})
    if not lowest:
        return ""
    return (
        "Of the coefficients that were tried, the loss of the own task is lowest at "
        f"{between(lowest, 'task', 'a')}."
    )


def ways_chart(rows: Rows) -> object:
    """Both straight lines to the end of one training run, for the first seed."""
    first = min(integer(row, "seed") for row in rows)
    several = len({row["space"] for row in rows}) > 1
    table: list[Row] = [
        {
            **row,
            "series": f"in the {row['coordinates']}",
            "panel": _panel(row, several=several),
        }
        for row in select(rows, seed=first)
    ]
    return lines(
        table,
        x=Axis("a", "share of the way to the end of training"),
        y=Axis("loss", "loss, nats per token", domain=(0.0, 1.0), apart=True),
        interval=None,
        colour="series",
        facet="panel",
        rules=[],
    )


def ways_finding(rows: Rows) -> str:
    """The losses at the end of both lines of the first seed, averaged over tasks."""
    first = select(rows, seed=min(integer(row, "seed") for row in rows))
    both = [row for row in first if row["space"] == "lora"]
    far = max((number(row, "a") for row in both), default=0.0)
    means = over_seeds(select(both, a=far), by=("coordinates",), value="loss")
    if len(means) < 2 or far <= 1:
        return ""
    told = " and ".join(f"{two(number(m, 'value'))} in the {m['coordinates']}" for m in means)
    return f"{far:g} times as far as training went, the loss is {told} (LoRA, mean over tasks)."


def kept_chart(rows: Rows) -> object:
    """How much of a task's gain is left when another vector is added."""
    table: list[Row] = [
        {**row, "pair": f"{row['task']} + {row['other']}"}
        for row in rows
        if row["kept"] is not None
    ]
    values = {
        "kept": "with the other vector added",
        "transfer": "by the other vector alone",
        "kept_random": "with a random vector as long added",
    }
    return dots(
        series_over_seeds(table, by=("pair",), values=values),
        x=Axis("value", "share of the first task's gain"),
        row=Axis("pair", "task + added vector"),
        colour="series",
        rules=["with a random vector as long added"],
    )


def kept_finding(rows: Rows) -> str:
    """The range over pairs."""
    table = [{**row, "pair": f"{row['task']} + {row['other']}"} for row in rows]
    means = over_seeds(table, by=("pair",), value="kept")
    if not means:
        return ""
    return f"Of a task's gain, {between(means, 'pair')} is left with another vector added."


def inside_chart(rows: Rows) -> object:
    """Share of the vector in bases of k directions."""
    table = [
        {**row, "series": "captured"}
        for row in over_seeds(rows, by=("basis",), value="captured", least=0.0)
    ]
    for column, name in (("walk", "of a random walk"), ("random", "of a random basis")):
        means = over_seeds(rows, by=("basis",), value=column, least=0.0)
        table += [{**row, "series": name} for row in means]
    return dots(
        table,
        x=Axis("value", "share of the vector's squared norm", domain=(0.0, 1.0)),
        row="basis",
        colour="series",
        rules=["of a random walk", "of a random basis"],
    )


def inside_finding(rows: Rows) -> str:
    """The range over bases."""
    means = over_seeds(rows, by=("basis",), value="captured", least=0.0)
    if not means:
        return ""
    return f"A basis holds {between(means, 'basis')} of a task vector."


_KEYS = (
    columns.SEED,
    columns.SPACE,
    Column("task", "", "task of the vector", "key"),
)
_COORDINATES = Column(
    "coordinates", "", "in which the line is straight: the weights, or the factors A and B of LoRA",
    "key",
)  # fmt: skip
TABLES = {
    "along": (
        *_KEYS,
        _COORDINATES,
        Column("a", "", "coefficient of the vector", "key"),
        Column("loss", "nats/token", "of its task at theta_0 + a tau", "measure", "random"),
        Column("start", "nats/token", "of its task at theta_0", "reference"),
        Column("random", "nats/token", "along a random vector of equal norm", "reference"),
        Column("others", "nats/token", "mean of the other tasks", "measure", "others_start"),
        Column("others_start", "nats/token", "the same at theta_0", "reference"),
        Column("relative", "", "||Delta W|| / ||W|| there", "reference"),
    ),
    "radius": (
        *_KEYS,
        _COORDINATES,
        Column(
            "times",
            "",
            "largest share of the vector at which the change of its task's loss is "
            "linear within eps",
            "measure",
            "whole",
        ),
        Column("low", "", "lower end of its 95% interval over examples", "reference"),
        Column("high", "", "its upper end; empty: beyond the limit", "reference"),
        Column("whole", "", "the end of training", "reference"),
        Column("unbounded", "", "whether it is still linear at the limit", "key"),
        Column("radius", "2-norm", "the same as a distance", "measure", "length"),
        Column("length", "2-norm", "of the vector", "reference"),
        Column("relative", "", "||Delta W|| / ||W|| at the radius", "measure", "relative_length"),
        Column("relative_length", "", "the same at the end of training", "reference"),
        Column("eps", "", "allowed relative deviation", "reference"),
    ),
    "pair": (
        *_KEYS,
        _COORDINATES,
        Column("other", "", "task of the added vector", "key"),
        Column("gain", "nats/token", "loss that the vector takes off its task", "measure", "none"),
        Column("none", "nats/token", "no gain", "reference"),
        Column(
            "kept",
            "",
            "gain of the sum over that of the vector alone; empty: that is less "
            "than a tenth of the loss",
            "measure",
            "whole",
        ),
        Column("whole", "", "nothing lost", "reference"),
        Column("kept_random", "", "the same with a random vector added", "reference"),
        Column("transfer", "", "gain of the other vector alone, over the same", "measure", "whole"),
        Column("cosine", "", "between the two vectors", "measure", "cosine_random"),
        Column("cosine_random", "", "1 / sqrt(d)", "reference"),
        Column("cosine_ceiling", "", "between two vectors of the same task", "reference"),
    ),
    "inside": (
        *_KEYS,
        _COORDINATES,
        Column("basis", "", "kind of directions", "key"),
        Column("k", "", "number of directions", "key"),
        Column("captured", "fraction", "of the vector's squared norm", "measure", "random"),
        Column("random", "fraction", "k / d", "reference"),
        Column("walk", "fraction", "of a random walk with the same step lengths", "reference"),
    ),
}

FIGURES = (
    Figure(
        "ways",
        "What lies beyond the end of a training run?",
        "Loss of the task along straight lines from the start (0) through the end of its training "
        "(1), for the first seed. LoRA has two such lines to the same network: one in the weights, "
        "which an adapter follows when it is scaled, and one in the factors A and B, which is a "
        "parabola in the weights.",
        "along",
        ways_chart,
        front=True,
        finds=ways_finding,
    ),
    Figure(
        "along",
        "What happens to the losses along a task vector?",
        "Loss at theta_0 + a tau. Training ended at 1; below 0 the vector is negated; beyond 1 it "
        "goes further than training did. Thin lines are seeds.",
        "along",
        along_chart,
        finds=along_finding,
    ),
    Figure(
        "kept",
        "What is left of a gain when another vector is added?",
        "How much of a task vector's gain on its task is left after another vector is added (1 is "
        "all of it), and how much the other vector alone gains there. Only vectors that reduce "
        "their task's loss by at least a tenth count. Vectors are added in the weights.",
        "pair",
        kept_chart,
        finds=kept_finding,
    ),
    Figure(
        "inside",
        "Where does a task vector lie?",
        "Share of its squared norm in bases of k directions. The prefix of a random walk with the "
        "same step lengths would hold a share, too. With LoRA this is measured in the factors, as "
        "gradients and steps are.",
        "inside",
        inside_chart,
        finds=inside_finding,
    ),
)
