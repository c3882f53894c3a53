"""What the rows of `direction_scale` say of each direction, in a sentence."""

from collections.abc import Iterator, Sequence

from frenet.experiments import brackets
from frenet.experiments.brackets import bracket_of
from frenet.experiments.direction_scale.figures import labelled
from frenet.experiments.experiment import Cell, Row, Rows, number

# A direction whose share of the gradient is not this many times chance has no share to lose: one
# squared coordinate of a random direction exceeds it once in 500 draws. A cosine of a steering
# vector has to be twice 1 / sqrt(h).
NO_SHARE = 10
# The radius of a row and the ends of its interval, as shares of the norm of what moves.
SHARES = ("relative", "relative_low", "relative_high")


def answer_rows(cell: Cell, rows: Sequence[Row]) -> Iterator[Row]:
    """One sentence for each direction of a cell."""
    for life in (row for row in rows if row["table"] == "lifetime"):
        name = life["direction"]
        sides = [r for r in rows if r["table"] == "radius" and r["direction"] == name]
        yield {
            "table": "answer", **dict(cell.keys), "direction": name,
            "sentence": f"{name}: {_far(sides)}; {_long(life)}",
        }  # fmt: skip


def _far(sides: Sequence[Row]) -> str:
    """How far, in its own length where it has one."""
    if not sides:
        return "no radius, since its slope is too small to be told from rounding (see the notes)"
    row = next((r for r in sides if r["sign"] == 1), sides[0])
    what = "loss" if row["where"] == "weights" else "logit difference"
    moved = "weights'" if row["where"] == "weights" else "stream's"
    within = f"{what} is linear within {number(row, 'eps'):.0%}"
    # In its own length, or as a share of what it moves.
    one = number(row, "length") if row["length"] else 1.0
    ends = ("radius", "low", "high") if row["length"] else SHARES
    size, low, high = ("?" if row[end] is None else f"{number(row, end) / one:.3g}" for end in ends)
    unit = "its own length" if row["length"] else f"the {moved} norm"
    along = "" if row["where"] != "weights" else f", in the {row['coordinates']}"
    moves = ""
    if row["length"] and row["coordinates"] == "factors":
        moves = f", where the weights have moved by {number(row, 'relative'):.3g} of their norm"
    if row["unbounded"]:
        return f"{within} as far as was looked, {size} of {unit}{along}{moves}"
    side = "" if row["sign"] == 1 else ", against it"
    return f"{within} up to {size} of {unit}{along}{side} [{low}, {high}]{moves}"


def _long(life: Row) -> str:
    """How long."""
    if not life["has_share"]:
        if life["direction"] == "steering":
            return "made from other prompts it is another one, so it has nothing to lose"
        return f"it holds less of the gradient than {NO_SHARE} times chance: nothing to lose"
    found = bracket_of(life)
    return f"lifetime {found.told('step')} of training" if found else "lifetime not known"


def reread(rows: Rows) -> Rows:
    """Rows of any version with lifetimes as brackets, and with sentences that say so."""
    keys = ("seed", "space", "task", "direction")
    found = brackets.reread(rows, looks="share", lives="lifetime", keys=keys, lag="lag")
    lives = {
        tuple(new[key] for key in keys): new
        for old, new in zip(rows, found, strict=True)
        if new["table"] == "lifetime" and new != old
    }
    for row in found:
        life = lives.get(tuple(row.get(key) for key in keys))
        if life is not None and row["table"] == "answer":
            far = str(row["sentence"]).rpartition("; ")[0]
            row["sentence"] = f"{far}; {_long(life)}"
    return labelled(found)
