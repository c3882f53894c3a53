"""Intervals over seeds: the rows of one seed are not independent and are averaged first."""

import json
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from frenet._errors import UsageError
from frenet.experiments.experiment import Breakdown, Row, Rows, Scalar, finite, number
from frenet.statistics.intervals import (
    Estimate,
    bounded_interval,
    mean_interval,
    positive_interval,
)

# The column of single values, and the most that a chart shows one by one; what a value is of.
EACH, MOST_SHOWN, OF = "each", 8, "of"


def each_text(values: Mapping[str, float]) -> str:
    """Named values, such as those of seeds, as a cell of a row, with six digits."""
    return json.dumps({name: float(f"{value:.6g}") for name, value in values.items()})


def each_of(row: Mapping[str, Scalar]) -> dict[str, float]:
    """The values in such a cell by name; none if the row has none."""
    found: dict[str, float] = json.loads(str(row.get(EACH) or "{}"))
    return found


def select(rows: Rows, **values: Scalar) -> list[Mapping[str, Scalar]]:
    """The rows with these values in their columns.

    >>> select([{"k": 1}, {"k": 2}], k=2)
    [{'k': 2}]
    """
    return [row for row in rows if all(row.get(key) == value for key, value in values.items())]


def aggregate(
    rows: Rows,
    *,
    by: Sequence[str],
    value: str,
    level: float = 0.95,
    least: float | None = None,
    most: float = 1.0,
) -> list[Row]:
    """Mean of one column, with its interval, for every combination of the keys.

    Args:
        rows: rows of one table; rows without a number in the column do not count.
        by: the columns that define groups, in their order of appearance; all others (usually the
            seed) are averaged over.
        value: the column to average.
        level: coverage of the interval, in (0, 1).
        least: the least possible value of the quantity, whose interval then stays in its range: 0
            for shares and divergences, -1 for cosines; None: Student's interval.
        most: the greatest possible value; infinity for divergences.

    Returns:
        One row per group with the keys, ``value``, ``low``, ``high`` (None when n = 1) and ``n``;
        with ``of``, which seed or how many seeds; of 2 to 8 values also ``each``, the values as
        text, for charts that show them.

    Raises:
        ValueError: no row has such a column.
    """
    found: list[Row] = []
    for keys, values in _groups(rows, by=by, value=value):
        mean = _mean([one for _, one in values], level=level, least=least, most=most)
        row = {**keys, "value": mean.value, "low": mean.low, "high": mean.high, "n": mean.n}
        names = [name for name, _ in values]
        if len({*names, ""}) == mean.n + 1:
            row[OF] = names[0] if mean.n == 1 else f"{mean.n} seeds"
        else:
            names = [f"value {i + 1}" for i in range(mean.n)]
        if 1 < mean.n <= MOST_SHOWN:
            row[EACH] = each_text({name: one for name, (_, one) in zip(names, values, strict=True)})
        found.append(row)
    return found


def seed_name(row: Mapping[str, Scalar]) -> str:
    """The name of a row's seed; empty if it has none."""
    return "" if row.get("seed") is None else f"seed {row['seed']}"


def _groups(
    rows: Rows, *, by: Sequence[str], value: str
) -> list[tuple[Row, list[tuple[str, float]]]]:
    """The finite numbers of a column in every group, with the names of their seeds."""
    groups: dict[tuple[Scalar, ...], list[tuple[str, float]]] = {}
    for column in (*by, value):
        if rows and not any(column in row for row in rows):
            known = ", ".join(sorted({key for row in rows for key in row}))
            raise UsageError(f"no row has the column {column!r}; the rows have {known}")
    for row in rows:
        finite_value = finite(row.get(value))
        if finite_value is not None:
            group = groups.setdefault(tuple(row.get(key) for key in by), [])
            group.append((seed_name(row), finite_value))
    return [(dict(zip(by, keys, strict=True)), values) for keys, values in groups.items()]


def _mean(
    values: Sequence[float], *, level: float, least: float | None, most: float = 1.0
) -> Estimate:
    if least is None:
        return mean_interval(values, level=level)
    # Rounding may leave the range.
    inside = [min(max(value, least), most) for value in values]
    if math.isinf(most):
        return positive_interval(inside, level=level)
    return bounded_interval(inside, least=least, most=most, level=level)


def melt(
    rows: Rows,
    *,
    by: Sequence[str],
    values: Mapping[str, str],
    level: float = 0.95,
    least: float | None = None,
    most: float = 1.0,
) -> list[Row]:
    """`aggregate` for several columns, stacked: a measure and its nulls become series of one chart.

    Args:
        rows: rows of one table.
        by: the columns that define groups.
        values: column -> the label that its series gets, measure first.
        level: coverage of the intervals, in (0, 1).
        least: as for `aggregate`.
        most: as for `aggregate`.

    Returns:
        The rows of `aggregate`, with the label in the column ``series``.
    """
    stacked: list[Row] = []
    for column, label in values.items():
        summed = aggregate(rows, by=by, value=column, level=level, least=least, most=most)
        stacked.extend(row | {"series": label} for row in summed)
    return stacked


def seed_means(rows: Rows, *, by: Sequence[str], value: str) -> list[Row]:
    """One row per seed and combination of keys: the mean of the known values of a column."""
    known = [row for row in rows if row.get(value) is not None]
    means = aggregate(known, by=(*by, "seed"), value=value)
    return [{key: row[key] for key in (*by, "seed")} | {value: row["value"]} for row in means]


def over_seeds(
    rows: Rows, *, by: Sequence[str], value: str, least: float | None = None, most: float = 1.0
) -> list[Row]:
    """``aggregate`` with the seed as the unit: ``value``, ``low``, ``high`` and ``n`` seeds."""
    means = seed_means(rows, by=by, value=value)
    return aggregate(means, by=by, value=value, least=least, most=most)


def geometric_over_seeds(rows: Rows, *, by: Sequence[str], value: str) -> list[Row]:
    """Geometric means over seeds with their intervals, of numbers that differ by factors.

    Rows without a positive number do not count.
    """
    logs: list[Row] = [
        {**row, value: math.log(number(row, value))}
        for row in rows
        if row.get(value) is not None and number(row, value) > 0
    ]
    means = over_seeds(logs, by=by, value=value) if logs else []
    for row in means:
        for end in ("value", "low", "high"):
            row[end] = None if row[end] is None else math.exp(number(row, end))
        if each := each_of(row):
            row[EACH] = each_text({name: math.exp(one) for name, one in each.items()})
    return means


def series_over_seeds(
    rows: Rows,
    *,
    by: Sequence[str],
    values: Mapping[str, str],
    least: float | None = None,
    most: float = 1.0,
) -> list[Row]:
    """``melt`` with the seed as the unit: several columns as the series of one chart."""
    parts = [
        melt(
            seed_means(rows, by=by, value=column), by=by, values={column: label}, least=least,
            most=most,
        )
        for column, label in values.items()
    ]  # fmt: skip
    return [row for part in parts for row in part]


def breakdown(
    title: str,
    rows: Rows,
    *,
    by: Sequence[str],
    values: Mapping[str, str] = MappingProxyType({}),
    counts: Mapping[str, str] = MappingProxyType({}),
    least: float | None = None,
) -> tuple[Breakdown, ...]:
    """Means over seeds for every combination of keys, as a table; none if it would have no row.

    Args:
        title: what the parts are.
        rows: rows of one table; a column without a value in any of them is left out.
        by: the columns that define the parts.
        values: column -> its heading. The first is the measure, which is shown with its interval
            and the number of seeds; a part without it is left out if nothing is counted in it.
        counts: column -> the heading of the number of rows that have a value in it.
        least: the least possible value of the measure, as for ``share``; None: Student's interval.
    """
    known = {key for row in rows for key, value in row.items() if _given(value)}
    keys = [key for key in by if key in known]
    measure = next(iter(values), None)
    others = {column: name for column, name in values.items() if column in known - {measure}}
    parts: list[Row] = []
    for case in dict.fromkeys(tuple(row.get(key) for key in keys) for row in rows):
        part: Row = dict(zip(keys, case, strict=True))
        same = select(rows, **part)
        counted = {
            name: sum(_given(row.get(column)) for row in same) for column, name in counts.items()
        }
        if measure is not None:
            mean = estimate(same, measure, least=least)
            if mean is None and not any(counted.values()):
                continue
            value, low, high, seeds = mean[:4] if mean else (None, None, None, None)
            part |= {values[measure]: value, "low": low, "high": high, "seeds": seeds}
        for column, name in others.items():
            # A control in the rows of the measure is averaged over the cases that have both; one
            # with rows of its own, over these.
            both = [r for r in same if measure and _given(r.get(measure)) and _given(r.get(column))]
            mean = estimate(both or same, column)
            part[name] = None if mean is None else mean.value
        parts.append({**part, **counted})
    return (Breakdown(title, tuple(parts)),) if parts else ()


def _given(value: Scalar) -> bool:
    """Whether a row has a value: neither None nor NaN."""
    return value is not None and value == value


def estimate(rows: Rows, value: str, *, least: float | None = None) -> Estimate | None:
    """Mean of a column with its 95% interval over seeds; None if no row has it.

    ``least``: as for ``share``.
    """
    means = [number(row, value) for row in seed_means(rows, by=(), value=value)]
    return mean_of(means, least=least) if means else None


def share(rows: Rows, value: str, *, least: float = 0.0) -> Estimate | None:
    """``estimate`` of a column in [least, 1], with an interval for display that stays there.

    The interval on the raw scale decides. The least value of shares is 0, of cosines -1.
    """
    return estimate(rows, value, least=least)


def mean_of(values: Sequence[float], *, unit: str = "seed", least: float | None = None) -> Estimate:
    """Mean of one value per unit, with the intervals that are shown and that decide."""
    raw = mean_interval(values)
    shown = _mean(values, level=0.95, least=least)
    inner = mean_interval(values, level=0.9)
    return shown._replace(unit=unit, raw=_ends(raw), narrow=_ends(inner))


def _ends(value: Estimate) -> tuple[float, float] | None:
    return None if value.low is None or value.high is None else (value.low, value.high)


def paired(
    rows: Rows, first: str, second: str, *, case: Sequence[str] = ("seed",)
) -> Estimate | None:
    """The first column minus the second, paired by seed, as an estimate.

    Only rows that have both count.
    """
    both = [
        {**row, "margin": one - other}
        for row in rows
        if (one := finite(row.get(first))) is not None
        and (other := finite(row.get(second))) is not None
    ]
    return estimate(both, "margin")


def judged(value: Estimate) -> tuple[float, float]:
    """The 95% interval that decides; everything if there is none (one seed decides nothing)."""
    return value.raw or (low(value), high(value))


def narrow(value: Estimate) -> tuple[float, float]:
    """The 90% interval of two one-sided tests at 5%; the 95% interval if it is not known."""
    return value.narrow or judged(value)


def low(value: Estimate | None) -> float:
    """Lower end of the interval that is shown; minus infinity if there is none."""
    return -math.inf if value is None or value.low is None else value.low


def high(value: Estimate | None) -> float:
    """Upper end of the interval that is shown; infinity if there is none."""
    return math.inf if value is None or value.high is None else value.high
