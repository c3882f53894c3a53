"""How far and for how long every direction can be followed, for the first screen of a report."""

import math
from collections.abc import Mapping

from frenet.experiments.direction_scale.answers import SHARES
from frenet.experiments.direction_scale.kinds import KINDS
from frenet.experiments.experiment import Reach, Rows, Scalar, finite, integer, number
from frenet.experiments.intervals import select
from frenet.experiments.setup.brackets import bracket_of

KEYS = ("direction", "space", "seed")
# The first sentence of a report is about these, and about vectors from disk.
LEADING = ("gradient", "task vector", "steering")


def reach(rows: Rows) -> list[Reach]:
    """One entry for each direction, space and seed; several tasks are averaged.

    Distances are geometric means over tasks. A lifetime is the narrowest bracket around those of
    the tasks; it has no upper end if the direction outlives the run on one of them.
    """
    radii, lives = select(rows, table="radius", sign=1), select(rows, table="lifetime")
    asked = dict.fromkeys(tuple(row[key] for key in KEYS) for row in (*lives, *radii))
    found = (_reach(radii, lives, dict(zip(KEYS, values, strict=True))) for values in asked)
    return [one for one in found if one is not None]


def _reach(radii: Rows, lives: Rows, of: Mapping[str, Scalar]) -> Reach | None:
    far, long = select(radii, **of), select(lives, **of)
    row, name = next(iter((*far, *long))), str(of["direction"])
    # The rows of lifetimes have the distance, too, but not its interval.
    mean, low, high = (_geometric(far or long, column) for column in SHARES)
    shared = [one for one in long if one["has_share"]]
    brackets = [bracket for one in shared if (bracket := bracket_of(one)) is not None]
    life = None
    if brackets:
        ends = [bracket.high for bracket in brackets if bracket.high is not None]
        later = max(ends) if len(ends) == len(brackets) else None
        life = (min(bracket.low for bracket in brackets), later)
    return Reach(
        direction=name,
        space=str(of["space"]),
        share_of=str(row["share_of"]),
        seed=integer(of, "seed"),
        far=mean,
        ends=(low, high),
        unbounded=any(bool(one["unbounded"]) for one in far),
        times=_geometric(far, "times"),
        life=life,
        longest=max((number(one, "longest") for one in long), default=0.0),
        has_share=any(bool(one["has_share"]) for one in long) or not long,
        leads=name in LEADING or (name not in KINDS and not name.startswith("random ")),
    )


def _geometric(rows: Rows, name: str) -> float | None:
    """The geometric mean of a column, if every row has a number above 0."""
    values = [finite(row.get(name)) for row in rows]
    known = [value for value in values if value is not None and value > 0]
    if not known or len(known) < len(values):
        return None
    return math.exp(sum(map(math.log, known)) / len(known))
