"""What the rows of `direction_scale` say: columns and figures."""

import math
from typing import TYPE_CHECKING

from frenet.experiments import brackets
from frenet.experiments.brackets import bracket_of, life_columns
from frenet.experiments.experiment import Column, Figure, Row, Rows, integer, number
from frenet.experiments.figures.charts import Axis, Rule, dots, lines, scatter
from frenet.experiments.intervals import over_seeds, select
from frenet.experiments.setup import columns
from frenet.experiments.setup.describe import labelled_rows

if TYPE_CHECKING:
    from frenet.measure.bracket import Bracket

# Directions that are made anew at every step that is looked at, and compared with that.
FRESH = ("gradient", "Adam step")
KINDS = (
    *FRESH, "prefix", "task vector", "damage line", "search winner", "random", "steering",
)  # fmt: skip
QUADRATIC, FOUND = "where a quadratic would leave the linear", "found"
AT_LEAST = "at least: linear as far as was looked"
# The unit of both kinds of line, and of the stream.
RADIUS = "radius, over the norm of the weights (stream)"
EARLIER = (
    "stored by an earlier build: with LoRA every direction but those from disk was followed along "
    "the straight line of the factors A and B, also prefix, task vector and damage line; radii are "
    "shares of the norm of the factors"
)


def reread(rows: Rows) -> Rows:
    """Rows of any version with lifetimes as brackets, and with the labels of their lines."""
    keys = ("seed", "space", "task", "direction")
    return labelled(brackets.reread(rows, looks="share", lives="lifetime", keys=keys, lag="lag"))


def labelled(rows: Rows) -> Rows:
    """Rows of builds that went along the factors of LoRA without saying so, with the labels."""
    return labelled_rows(rows, _labels, earlier=EARLIER)


def _labels(row: Row) -> Row:
    """What a row of an earlier build does not say of itself."""
    factors = row["space"] == "lora" and row["direction"] in KINDS
    coordinates = "factors" if factors else "weights"
    if row["direction"] == "steering":
        coordinates = "stream"
    added: Row = {"coordinates": coordinates}
    if "relative" in row:
        added["share_of"] = coordinates
    if row["table"] == "radius":
        ends = ("low", "high", "predicted", "limit")
        added |= {f"relative_{end}": _scaled(row, end) for end in ends}
    return added


def _scaled(row: Row, end: str) -> float | None:
    """A length of a radius row in the unit of its ``relative``."""
    if row.get(end) is None:
        return None
    return number(row, end) * number(row, "relative") / number(row, "radius")


def _panelled(rows: Rows) -> list[Row]:
    """Rows with a panel for each space, which says where its unit is not the shared one."""
    factors = {row["space"] for row in rows if row.get("share_of") == "factors"}
    unit = dict.fromkeys(factors, ", over the norm of the factors")
    return [{**row, "panel": f"{row['space']}{unit.get(row['space'], '')}"} for row in rows]


def _geometric(rows: Rows, value: str, *, by: tuple[str, ...]) -> list[Row]:
    """Geometric means over seeds with their intervals: radii differ by factors."""
    logs = [
        {**row, "log": math.log(number(row, value))}
        for row in rows
        if row.get(value) is not None and number(row, value) > 0
    ]
    if not logs:
        return []
    found = over_seeds(logs, by=by, value="log")
    for row in found:
        for end in ("value", "low", "high"):
            row[end] = None if row[end] is None else math.exp(number(row, end))
    return found


def radius_chart(rows: Rows) -> object:
    """Radius along every direction, over the norm of what it moves, with the quadratic's."""
    along = _panelled(select(rows, sign=1))
    by = ("panel", "direction")
    table: list[Row] = [
        {**row, "series": series}
        for value, series in (("relative", FOUND), ("relative_predicted", QUADRATIC))
        for row in _geometric(along, value, by=by)
    ]
    ends = {tuple(row[key] for key in by) for row in along if row.get("unbounded")}
    for row in table:
        if row["series"] == FOUND and tuple(row[key] for key in by) in ends:
            row["series"] = AT_LEAST
    return dots(
        table,
        x=Axis("value", RADIUS, log=True),
        row="direction",
        colour="series",
        facet="panel",
        rules=[QUADRATIC],
    )


def deviation_chart(rows: Rows) -> object:
    """How the change leaves the linear, along every direction, of the first seed."""
    first = min(integer(row, "seed") for row in rows)
    table = [
        row
        for row in select(rows, seed=first, sign=1)
        if row["deviation"] and 1e-3 < number(row, "share") < 30
    ]
    return lines(
        table,
        x=Axis("share", "distance, over the radius", log=True),
        y=Axis("deviation", "deviation from the linear", log=True),
        interval=None,
        colour="direction",
        facet="task",
        rules=[Rule("limit", number(rows[0], "eps"))],
    )


def share_chart(rows: Rows) -> object:
    """What a direction still holds, against steps of training."""
    known = [row for row in rows if row["ratio"] is not None and row["lag"] != 0]
    return lines(
        over_seeds(known, by=("space", "direction", "lag"), value="ratio"),
        x=Axis("lag", "steps of training", log=True),
        y=Axis("value", "what it holds, over the start", domain=(0.0, 1.2)),
        colour="space",
        facet="direction",
        rules=[Rule("stale", 0.5)],
    )


def map_chart(rows: Rows) -> object:
    """Radius against lifetime: one point a direction, seed and task."""
    table = [
        {**row, **_life(found)}
        for row in _panelled(rows)
        if row["has_share"] and row.get("relative") is not None and (found := bracket_of(row))
    ]
    return scatter(
        table,
        x=Axis("relative", RADIUS, log=True),
        y=Axis("life", "lifetime in steps", log=True),
        interval=("after", "by"),
        colour="direction",
        facet="panel",
        diagonal=False,
    )


def _life(found: "Bracket") -> Row:
    """A bracket on a logarithmic axis: the line of its two ends, and a point on one of them."""
    if found.high is None:
        return {"life": found.low, "after": None, "by": None}
    return {"life": found.high, "after": max(found.low, 0.5), "by": found.high}


_KEYS = (
    columns.SEED,
    columns.SPACE,
    columns.TASK,
    Column("direction", "", "kind of direction, or its file", "key"),
)
_COORDINATES = Column(
    "coordinates", "", "in which the line is straight, and in which gradients are compared with "
    "it: the weights, the factors A and B of LoRA, the stream of activations", "key",
)  # fmt: skip
_SHARE_OF = Column(
    "share_of", "", "whose norm relative is a share of; factors: of an earlier build", "key"
)
TABLES = {
    "radius": (
        *_KEYS,
        _COORDINATES,
        Column("where", "", "weights, or the block of a steering vector", "key"),
        Column("sign", "", "1 along the direction, -1 against it", "key"),
        Column("radius", "2-norm", "largest distance at which the change is linear within eps",
               "measure", "limit"),
        Column("low", "2-norm", "lower end of its 95% interval over examples", "reference"),
        Column("high", "2-norm", "upper end; empty: beyond what was looked at", "reference"),
        Column("predicted", "2-norm", "of a quadratic, 2 eps |slope / curvature|; empty: not "
               "known", "reference"),
        Column("unbounded", "", "linear as far as was looked", "key"),
        Column("limit", "2-norm", "how far that is", "reference"),
        Column("length", "2-norm", "of the direction itself, where it has one", "reference"),
        Column("times", "", "radius over that length", "measure", "length"),
        Column("relative", "", "||Delta W|| / ||W|| at the radius, of a line in the factors as of "
               "one in the weights; of a steering vector radius over the norm of the stream",
               "measure", "relative_limit"),
        Column("relative_low", "", "the same at low", "reference"),
        Column("relative_high", "", "the same at high", "reference"),
        Column("relative_predicted", "", "the same at predicted", "reference"),
        Column("relative_limit", "", "the same at limit", "reference"),
        _SHARE_OF,
        Column("slope", "nats/token", "of the loss, or of the logit difference, per unit", "key"),
        Column("eps", "", "relative deviation that is allowed", "reference"),
    ),
    "line": (
        *_KEYS,
        _COORDINATES,
        Column("sign", "", "1 along the direction, -1 against it", "key"),
        Column("r", "2-norm", "distance", "key"),
        Column("share", "", "distance over the radius", "key"),
        Column("change", "nats/token", "of the loss, or of the logit difference", "measure",
               "linear"),
        Column("linear", "nats/token", "distance times slope", "reference"),
        Column("deviation", "", "|change - linear| / |linear|", "measure", "eps"),
        Column("eps", "", "relative deviation that is allowed", "reference"),
    ),
    "share": (
        *_KEYS,
        _COORDINATES,
        Column("lag", "steps", "steps of training", "key"),
        Column("value", "", "share of held-out gradients along it; of a gradient or Adam step over "
               "a fresh one's; of a steering vector the cosine with a fresh one", "measure",
               "start"),
        Column("start", "", "the same before training", "reference"),
        Column("chance", "", "1 / d of a share, 1 / sqrt(h) of a cosine", "reference"),
        Column("ratio", "", "value over start; empty: no share to lose", "measure", "half"),
        Column("half", "", "where a direction counts as stale", "reference"),
        Column("displacement", "2-norm", "distance travelled, with LoRA by the factors", "key"),
    ),
    "lifetime": (
        *_KEYS,
        _COORDINATES,
        Column("against", "", "what is compared", "key"),
        Column("has_share", "", "ten times chance at the start, twice of a cosine", "key"),
        *life_columns("until half"),
        Column("relative", "", "||Delta W|| / ||W|| at its radius; of a steering vector radius "
               "over the norm of the stream", "key"),
        _SHARE_OF,
    ),
}  # fmt: skip

FIGURES = (
    Figure(
        "radius",
        "How far",
        "The distance up to which the change of the loss (of a steering vector: of the logit "
        "difference) is what the slope says, within 20%, given as the change of the weights there "
        "over the norm of those that move (of the stream). With LoRA gradient, Adam step, random "
        "and search winner are lines in the factors, all others in the weights. Geometric mean and "
        "interval over seeds. The tick is where a quadratic with the measured curvature would "
        "leave the linear: where the radius is smaller, higher orders come first; where it is "
        "larger, they make up for the curvature. A direction that was linear as far as was looked, "
        "on any seed or task, stands with the least that is known.",
        "radius",
        radius_chart,
    ),
    Figure(
        "share",
        "For how long",
        "What a direction made at the start still holds while training goes on with other "
        "minibatches: its share of the gradient (of gradient and Adam step: over that of one made "
        "on the spot), or the cosine of a steering vector with one made on the spot. Directions "
        "that hold no more of the gradient than chance are left out. With LoRA the gradients are "
        "those of the factors for gradient, Adam step and search winner, and those of the weights "
        "for the others. Intervals are cut at the frame, which shows 0 to 1.2 and every mean.",
        "share",
        share_chart,
    ),
    Figure(
        "map",
        "How far and for how long",
        "Both at once: to the right, far; up, long. With LoRA gradient, Adam step, random and "
        "search winner are lines in the factors, all others in the weights; both by the change of "
        "the weights at the radius. A panel over the norm of the factors is of an earlier build, "
        "which followed all its lines there. Points of all seeds and tasks. A lifetime ends "
        "somewhere on the line below its point, between the two looks that it joins; directions "
        "that outlive the run have no line, at the last step that was looked at. Directions that "
        "hold no more of the gradient than chance, as random ones do, have no lifetime and no "
        "point.",
        "lifetime",
        map_chart,
        front=True,
    ),
    Figure(
        "deviation",
        "Along the line",
        "The relative deviation from the linear against distance, in units of the radius: of a "
        "quadratic it grows in proportion.",
        "line",
        deviation_chart,
    ),
)
