"""What the rows of `direction_scale` say about each direction, in a sentence."""

from collections.abc import Mapping

from frenet.experiments.experiment import Answer, Rows, Scalar, number
from frenet.experiments.intervals import select
from frenet.experiments.setup.brackets import bracket_of

# A direction with less than this many times chance of the gradient has no share to lose: one
# squared coordinate of a random direction exceeds it once in 500 draws. The cosine of a steering
# vector must be at least 2 / sqrt(h).
NO_SHARE = 10
# The radius of a row and the ends of its interval, as shares of the norm of what moves.
SHARES = ("relative", "relative_low", "relative_high")
# What such a share is of.
NORMS = {
    "weights": "the norm of the weights that it moves",
    "factors": "the norm of the factors",
    "stream": "the stream's norm",
}
# The upper end of an interval that nothing measured bounds.
OPEN_END = "beyond what was tried"


def sentences(rows: Rows) -> list[Answer]:
    """One sentence for each direction of each cell: how far, and if it was asked for, how long."""
    radii, lives = select(rows, table="radius"), select(rows, table="lifetime")
    keys = ("seed", "space", "task", "direction")
    asked = dict.fromkeys(tuple(row[key] for key in keys) for row in (lives or radii))
    answers = []
    for values in asked:
        of = dict(zip(keys, values, strict=True))
        parts = [_far(select(radii, **of)), *map(_long, select(lives, **of))]
        answers.append(Answer(str(of.pop("direction")), of, "; ".join(parts)))
    return answers


def _far(sides: Rows) -> str:
    """How far, in units of its length if it has one."""
    if not sides:
        return "no radius: its slope cannot be distinguished from rounding (see the notes)"
    row = next((r for r in sides if r["sign"] == 1), sides[0])
    what = "loss is" if row["where"] == "weights" else "log-odds are"
    within = f"{what} linear within {number(row, 'eps'):.0%}"
    # In units of its length, or as a share of the norm of what it moves.
    one = number(row, "length") if row["length"] else 1.0
    ends = ("radius", "low", "high") if row["length"] else SHARES
    size, low, high = (
        OPEN_END if row[end] is None else f"{number(row, end) / one:.3g}" for end in ends
    )
    unit = "its own length" if row["length"] else NORMS[str(row["share_of"])]
    along = "" if row["where"] != "weights" else f", in the {row['coordinates']}"
    moves = ""
    if row["length"] and row["coordinates"] == "factors" and row["share_of"] == "weights":
        moves = f", which moves the weights by {number(row, 'relative'):.3g} of their norm"
    if row["unbounded"]:
        return f"{within} up to at least {size} of {unit}{along}{moves}"
    side = "" if row["sign"] == 1 else ", backwards"
    return f"{within} up to {size} of {unit}{along}{side} [{low}, {high}]{moves}"


def _long(life: Mapping[str, Scalar]) -> str:
    """How long."""
    if not life["has_share"]:
        if life["direction"] == "steering":
            return "no lifetime: a vector made from other prompts already points elsewhere"
        return f"no lifetime: it holds less of the gradient than {NO_SHARE} times chance"
    bracket = bracket_of(life)
    return f"lifetime {bracket.in_words('step')} of training" if bracket else "lifetime unknown"
