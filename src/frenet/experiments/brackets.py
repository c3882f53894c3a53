"""Brackets in rows: three columns for each, and the two columns of a half-life or lifetime."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from frenet.experiments.experiment import Column, Row, Rows, Scalar, integer, number

if TYPE_CHECKING:
    from frenet.measure.bracket import Bracket
    from frenet.measure.lifetime import Lifetime

FACTOR = "interpolated where high / low <= 1.25, else empty"


def life_columns(what: str) -> tuple[Column, ...]:
    """The columns of a half-life or lifetime, in steps and in distance from the start.

    Args:
        what: the event whose steps are counted.
    """
    return (
        Column("steps", "steps", f"{what}, {FACTOR}", "reference"),
        Column("steps_low", "steps", "last look before it", "reference"),
        Column("steps_high", "steps", "first look behind it; empty: later", "measure", "longest"),
        Column("longest", "steps", "most steps that were looked at", "reference"),
        Column("distance", "2-norm", "the same in distance from the start", "reference"),
        Column("distance_low", "2-norm", "least distance between those looks", "reference"),
        Column("distance_high", "2-norm", "greatest one; empty: later", "measure", "farthest"),
        Column("farthest", "2-norm", "greatest distance that was looked at", "reference"),
    )


def life_cells(found: "Lifetime | None") -> Row:
    """Both brackets as cells; empty where there is no lifetime."""
    row: Row = {}
    for name in ("steps", "distance"):
        bracket = getattr(found, name, None)
        ends = (None, None, None) if bracket is None else (bracket.value, *bracket[:2])
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
    return row


def bracket_of(row: Mapping[str, Scalar], name: str = "steps") -> "Bracket | None":
    """The bracket that a row holds; None where it holds none."""
    from frenet.measure.bracket import Bracket

    low, high, value = (row.get(key) for key in (f"{name}_low", f"{name}_high", name))
    if low is None:
        return None
    return Bracket(float(low), *(None if end is None else float(end) for end in (high, value)))


def life_of(looks: Rows, *, lag: str) -> "Lifetime | None":
    """The lifetime that rows of single looks say: a lag, a ratio and a displacement each.

    None where no look has a ratio.
    """
    from frenet.measure.lifetime import Lifetime

    known = {integer(row, lag): row for row in looks if row["ratio"] is not None}
    if not known:
        return None
    ratios = {at: number(row, "ratio") for at, row in known.items()}
    return Lifetime.of(
        ratios, {0: 0.0, **{at: number(row, "displacement") for at, row in known.items()}}
    )


def reread(rows: Rows, *, looks: str, lives: str, keys: Sequence[str], lag: str) -> list[Row]:
    """Rows of any version with brackets: earlier ones stored numbers between two looks.

    Args:
        rows: of a run.
        looks: table of the single looks.
        lives: table of the half-lives or lifetimes.
        keys: columns that say which looks belong to which lifetime.
        lag: column of the looks' lag.
    """
    found: dict[tuple[Scalar, ...], list[Mapping[str, Scalar]]] = {}
    for row in rows:
        if row["table"] == looks:
            found.setdefault(tuple(row.get(key) for key in keys), []).append(row)

    def bracketed(row: Mapping[str, Scalar]) -> Row:
        if row["table"] != lives or "steps_low" in row:
            return dict(row)
        own = found.get(tuple(row.get(key) for key in keys), [])
        return {**row, **life_cells(life_of(own, lag=lag))}

    return [bracketed(row) for row in rows]
