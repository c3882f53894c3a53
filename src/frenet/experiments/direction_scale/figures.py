"""What the rows of `direction_scale` say: columns and figures."""

from frenet.experiments.direction_scale.kinds import KINDS
from frenet.experiments.direction_scale.reach import reach
from frenet.experiments.experiment import Column, Figure, Row, Rows, integer, number
from frenet.experiments.figures.charts import Axis, Rule, dots, lines
from frenet.experiments.figures.landscape import landscape, panel
from frenet.experiments.figures.names import label
from frenet.experiments.figures.wording import between
from frenet.experiments.intervals import geometric_over_seeds, over_seeds, select
from frenet.experiments.setup import brackets, columns
from frenet.experiments.setup.brackets import life_columns
from frenet.experiments.setup.describe import labelled_rows

QUADRATIC, FOUND = "where a quadratic would leave the linear", "found"
AT_LEAST = "at least: linear as far as was looked"
# The unit of both kinds of line, and of the stream.
RADIUS = "radius, relative to the norm of the weights (stream)"
# The directions whose line is drawn.
ALONG = ("gradient", "task vector", "random")
EARLIER = (
    "stored by an earlier build: with LoRA, every direction except those from disk was followed "
    "along a straight line in the factors A and B, including prefix, task vector and damage line; "
    "radii are shares of the norm of the factors"
)


def reread(rows: Rows) -> Rows:
    """Rows of any version, with lifetimes as brackets and with the coordinates of their lines."""
    keys = ("seed", "space", "task", "direction")
    return labelled(brackets.reread(rows, looks="share", lives="lifetime", keys=keys, lag="lag"))


def labelled(rows: Rows) -> Rows:
    """Rows of earlier builds, with the coordinates of their lines."""
    return labelled_rows(rows, _labels, earlier=EARLIER)


def _labels(row: Row) -> Row:
    """The columns missing from a row of an earlier build."""
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
    """Rows with a panel for each space; it names the unit if that is not the usual one."""
    factors = {row["space"] for row in rows if row.get("share_of") == "factors"}
    unit = dict.fromkeys(factors, ", over the norm of the factors")
    return [
        {**row, "panel": f"{label(str(row['space']))}{unit.get(row['space'], '')}"} for row in rows
    ]


def radius_chart(rows: Rows) -> object:
    """Radius along every direction, relative to the norm of what it moves, with a quadratic's."""
    along = _panelled(select(rows, sign=1))
    by = ("panel", "direction")
    table: list[Row] = [
        {**row, "series": series}
        for value, series in (("relative", FOUND), ("relative_predicted", QUADRATIC))
        for row in geometric_over_seeds(along, by=by, value=value)
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


def radius_finding(rows: Rows) -> str:
    """The shortest and the longest radius in the weights, in the first space."""
    along = [row for row in select(rows, sign=1) if row.get("share_of") != "stream"]
    first = [row for row in along if row["space"] == along[0]["space"]]
    means = geometric_over_seeds(first, by=("direction",), value="relative")
    if not means:
        return ""
    return (
        f"The loss follows its slope up to {between(means, 'direction')} of the norm of the "
        f"weights ({label(str(first[0]['space']))})."
    )


def deviation_chart(rows: Rows) -> object:
    """How the change departs from linearity along three directions, for the first seed."""
    first = min(integer(row, "seed") for row in rows)
    table = [
        row
        for row in select(rows, seed=first, sign=1)
        if row["direction"] in ALONG and row["deviation"] and 1e-3 < number(row, "share") < 30
    ]
    return lines(
        table,
        x=Axis("share", "distance over radius", log=True),
        y=Axis("deviation", "deviation from linearity", log=True),
        interval=None,
        colour="direction",
        facet="task",
        rules=[Rule("the radius ends here", number(rows[0], "eps"))],
    )


def share_chart(rows: Rows) -> object:
    """What a direction still holds, against training steps."""
    later = [row for row in rows if row["ratio"] is not None and row["lag"] != 0]
    return lines(
        over_seeds(later, by=("space", "direction", "lag"), value="ratio"),
        x=Axis("lag", "steps of training", log=True),
        y=Axis("value", "what it holds, relative to the start", domain=(0.0, 1.2)),
        colour="space",
        facet="direction",
        rules=[Rule("stale", 0.5)],
    )


def map_chart(rows: Rows) -> object:
    """Radius against lifetime of every direction, weights and activations apart."""
    return landscape([(panel(one), one) for one in reach(rows)])


_KEYS = (
    columns.SEED,
    columns.SPACE,
    columns.TASK,
    Column("direction", "", "kind of direction, or its file", "key"),
)
_COORDINATES = Column(
    "coordinates", "", "in which the line is straight and gradients are compared with it: the "
    "weights, the factors A and B of LoRA, or the stream of activations", "key",
)  # fmt: skip
_SHARE_OF = Column(
    "share_of", "", "the norm that relative is a share of; factors: earlier builds", "key"
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
        Column("high", "2-norm", "its upper end; empty: beyond the limit", "reference"),
        Column("predicted", "2-norm", "of a quadratic, 2 eps |slope / curvature|; empty: unknown",
               "reference"),
        Column("unbounded", "", "whether it is still linear at the limit", "key"),
        Column("limit", "2-norm", "largest distance tried", "reference"),
        Column("length", "2-norm", "of the direction, if it has one", "reference"),
        Column("times", "", "radius over that length", "measure", "length"),
        Column("relative", "", "||Delta W|| / ||W|| at the radius, for lines in the weights and in "
               "the factors; for a steering vector, radius over the norm of the stream",
               "measure", "relative_limit"),
        Column("relative_low", "", "the same at low", "reference"),
        Column("relative_high", "", "the same at high", "reference"),
        Column("relative_predicted", "", "the same at predicted", "reference"),
        Column("relative_limit", "", "the same at limit", "reference"),
        _SHARE_OF,
        Column("slope", "nats/token", "of the loss, or of the log-odds, per unit", "key"),
        Column("eps", "", "allowed relative deviation", "reference"),
    ),
    "line": (
        *_KEYS,
        _COORDINATES,
        Column("sign", "", "1 along the direction, -1 against it", "key"),
        Column("r", "2-norm", "distance", "key"),
        Column("share", "", "distance over the radius", "key"),
        Column("change", "nats/token", "of the loss, or of the log-odds", "measure", "linear"),
        Column("linear", "nats/token", "distance times slope", "reference"),
        Column("deviation", "", "|change - linear| / |linear|", "measure", "eps"),
        Column("eps", "", "allowed relative deviation", "reference"),
    ),
    "share": (
        *_KEYS,
        _COORDINATES,
        Column("lag", "steps", "training steps", "key"),
        Column("value", "", "share of held-out gradients along it; for a gradient or Adam step, "
               "relative to a fresh one; for a steering vector, the cosine with a fresh one",
               "measure", "start"),
        Column("start", "", "the same before training", "reference"),
        Column("chance", "", "1 / d for a share, 1 / sqrt(h) for a cosine", "reference"),
        Column("ratio", "", "value over start; empty: no share to lose", "measure", "half"),
        Column("half", "", "a direction counts as stale below it", "reference"),
        Column("displacement", "2-norm", "distance travelled (with LoRA, by the factors)", "key"),
    ),
    "lifetime": (
        *_KEYS,
        _COORDINATES,
        Column("against", "", "what is compared", "key"),
        Column("has_share", "", "at the start 10 times chance (a cosine: twice)", "key"),
        *life_columns("until half"),
        Column("relative", "", "||Delta W|| / ||W|| at its radius; for a steering vector, radius "
               "over the norm of the stream", "key"),
        _SHARE_OF,
    ),
}  # fmt: skip

FIGURES = (
    Figure(
        "radius",
        "How far can each direction be followed?",
        "The distance up to which the change of the loss (for a steering vector, of the answers' "
        "log-odds) follows the slope within 20%. It is given as the change of the weights there, "
        "relative to the norm of the weights that move (of the stream). With LoRA, gradient, Adam "
        "step, random and search winner are lines in the factors, all others in the weights. "
        "Large marks are geometric means, small ones seeds. The tick is where a quadratic with "
        "the measured curvature would stop being linear. Below it, higher orders act first; "
        "beyond it, they compensate the curvature. If a direction was still linear at the largest "
        "distance tried, on any seed or task, its dot is a lower bound.",
        "radius",
        radius_chart,
        finds=radius_finding,
    ),
    Figure(
        "share",
        "What does each direction still hold later?",
        "What a direction made at the start still holds while training continues on other "
        "minibatches: its share of the gradient (for gradient and Adam step, relative to a fresh "
        "one), or the cosine of a steering vector with a fresh one. Directions that hold no more "
        "of the gradient than chance are left out. With LoRA, gradient, Adam step and search "
        "winner are compared with gradients of the factors, the others with gradients of the "
        "weights. Thin lines are seeds.",
        "share",
        share_chart,
        more=True,
    ),
    Figure(
        "map",
        "How far and for how long can a direction be followed?",
        "Farther right: can be followed farther. Higher: lasts longer. Large marks are geometric "
        "means over seeds, small ones are seeds. A lifetime ends somewhere on the line through a "
        "small mark, between two measured steps; a large mark is hollow if some seed was still "
        "good at the last step, the dashed line. Grey ticks: directions that are linear this far, "
        "but hold no more of the gradient than chance, such as random ones. A task vector is the "
        "end of a run as long as the steps that are looked at, so it lasts nearly as long by "
        "construction. Gradient and Adam step are compared with fresh ones, all others with their "
        "own start.",
        "lifetime",
        map_chart,
        front=True,
    ),
    Figure(
        "deviation",
        "How does the loss leave its slope?",
        "Relative deviation from linearity against distance, in units of the radius, for the first "
        "seed. For a quadratic it grows in proportion; a dip is a change of sign. The table has "
        "all directions.",
        "line",
        deviation_chart,
        more=True,
    ),
)
