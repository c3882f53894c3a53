"""Brackets in rows: three columns each, and the columns of half-lives and lifetimes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from frenet.experiments.experiment import Column, Row, Rows, Scalar, integer, number

if TYPE_CHECKING:
    from frenet.measure.bracket import Bracket
    from frenet.measure.lifetime import Lifetime

FACTOR = "interpolated if high / low <= 1.25, else empty"


def step_columns(what: str) -> tuple[Column, ...]:
    """The columns of an event between two measured steps.

    Args:
        what: the event to count steps to.
    """
    return (
        Column("steps", "steps", f"{what}, {FACTOR}", "reference"),
        Column("steps_low", "steps", "last measured step before it", "reference"),
        Column("steps_high", "steps", "first one after it; empty: later", "measure", "longest"),
        Column("longest", "steps", "last measured step of all", "reference"),
    )


def life_columns(what: str) -> tuple[Column, ...]:
    """The columns of a half-life or lifetime, in steps and in distance from the start.

    Args:
        what: the event to count steps to.
    """
    return (
        *step_columns(what),
        Column("distance", "2-norm", "the same in distance from the start", "reference"),
        Column("distance_low", "2-norm", "least distance between those steps", "reference"),
        Column("distance_high", "2-norm", "greatest one; empty: later", "measure", "farthest"),
        Column("farthest", "2-norm", "greatest measured distance", "reference"),
    )


def life_cells(life: "Lifetime | None") -> Row:
    """Both brackets as cells; empty if there is no lifetime."""
    row: Row = {}
    for name in ("steps", "distance"):
        row |= bracket_cells(getattr(life, name, None), name)
    return row


def bracket_cells(bracket: "Bracket | None", name: str = "steps") -> Row:
    """A bracket as three cells, as ``bracket_of`` reads them; empty if there is none."""
    ends = (None, None, None) if bracket is None else (bracket.value, *bracket[:2])
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def bracket_of(row: Mapping[str, Scalar], name: str = "steps") -> "Bracket | None":
    """The bracket in a row; None if there is none."""
    from frenet.measure.bracket import Bracket

    low, high, value = (row.get(key) for key in (f"{name}_low", f"{name}_high", name))
    if low is None:
        return None
    return Bracket(float(low), *(None if end is None else float(end) for end in (high, value)))


def life_of(looks: Rows, *, lag: str) -> "Lifetime | None":
    """The lifetime from rows of single measurements: a lag, a ratio and a displacement each.

    None if no row has a ratio.
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
    """Rows of any version with brackets: earlier versions stored interpolated numbers.

    Args:
        rows: of a run.
        looks: table of the single measurements.
        lives: table of the half-lives or lifetimes.
        keys: columns that assign measurements to lifetimes.
        lag: column of the measurements' lag.
    """
    measured: dict[tuple[Scalar, ...], list[Mapping[str, Scalar]]] = {}
    for row in rows:
        if row["table"] == looks:
            measured.setdefault(tuple(row.get(key) for key in keys), []).append(row)

    def bracketed(row: Mapping[str, Scalar]) -> Row:
        if row["table"] != lives or "steps_low" in row:
            return dict(row)
        of_life = measured.get(tuple(row.get(key) for key in keys), [])
        return {**row, **life_cells(life_of(of_life, lag=lag))}

    return [bracketed(row) for row in rows]
