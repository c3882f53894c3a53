"""Names of series in a chart: at the ends of lines, at points, at vertical levels."""

import math
from collections.abc import Sequence
from typing import Any

from frenet.experiments.experiment import finite
from frenet.experiments.figures import labels
from frenet.experiments.figures.parts import ACROSS, UNIT, Axis, Rule, channel, in_row, inline
from frenet.experiments.figures.series import GREY, INK, Series

# The size of a symbol before a name, as in a legend.
SYMBOL = 80
# The columns of a row at which a name stands: the name in lines, and how far it is moved down.
NAME, MOVED = "end_name", "end_moved"

Table = list[dict[str, Any]]


def named_ends(
    chart: Any,
    table: Table,
    series: Series,
    axes: tuple[Axis, Axis],
    rules: Sequence[str | Rule],
    *,
    facet: str | None,
    height: int,
) -> list[Any]:
    """The name of every series once, at the right end of its line, or of its level.

    This writes the name into the last row of each line, and appends a row for each level.

    Args:
        chart: with the axes and colours.
        table: the rows of the chart.
        series: how its series look.
        axes: horizontal and vertical.
        rules: the levels; those on the horizontal axis have their names at their upper ends.
        facet: column that names the panel.
        height: of a panel in pixels.
    """
    if not table:
        return []
    panels = list(dict.fromkeys(row[facet] for row in table)) if facet else [None]
    first = panels[in_row(len(panels)) - 1]
    order = [first, *(panel for panel in panels if panel != first)]
    levels = [
        {series.field: rule.label, axes[1].field: rule.at if rule.to is None else _middle(rule)}
        for rule in rules
        if isinstance(rule, Rule) and rule.axis == "y"
    ]
    ends: dict[Any, Table] = {}
    for name in series.names:
        for panel in order:
            mine = [row for row in table if _of(row, series, name, axes, facet, panel)]
            if mine:
                last = max(mine, key=lambda row: row[axes[0].field])
                ends.setdefault(panel, []).append(last)
                break
    for level in levels:
        right = [row[axes[0].field] for row in table if facet is None or row[facet] == first]
        row = {**level, axes[0].field: max(filter(_known, right), default=None)}
        table.append(row | ({facet: first} if facet else {}))
        ends.setdefault(first, []).append(table[-1])
    for panel, rows in ends.items():
        mine = [row for row in table if facet is None or row[facet] == panel]
        _spread(rows, mine, series.field, axes[1], height)
    named = [row for rows in ends.values() for row in rows]
    return [*_texts(chart, named, series), *vertical_names(rules, axes)]


def _of(
    row: dict[str, Any],
    series: Series,
    name: str,
    axes: tuple[Axis, Axis],
    facet: str | None,
    panel: Any,
) -> bool:
    """Whether this is a mean of a series in a panel."""
    return (
        row[series.field] == name
        and row.get(UNIT) is None
        and (facet is None or row[facet] == panel)
        and all(_known(row[axis.field]) for axis in axes)
    )


def _known(value: Any) -> bool:
    return finite(value) is not None


def _middle(rule: Rule) -> float:
    assert rule.to is not None
    return (rule.at + rule.to) / 2


def _spread(rows: Table, panel: Table, field: str, axis: Axis, height: int) -> None:
    """Write into each row its name and how far it is moved, so that none covers another."""
    values = [float(row[axis.field]) for row in panel if _known(row[axis.field])]
    ends = (min(values), max(values)) if axis.apart and not axis.domain else axis.span
    wanted = [
        height * (1 - _share(float(row[axis.field]), ends or (0.0, 1.0), log=axis.log))
        for row in rows
    ]
    names = [labels.wrapped(str(row[field])) for row in rows]
    heights = [labels.LINE * (name.count("\n") + 1) + 1 for name in names]
    places = labels.apart(wanted, heights, float(height))
    for row, name, place, spot in zip(rows, names, places, wanted, strict=True):
        # Vega puts the first of several lines at the height of the mark.
        up = labels.LINE * name.count("\n") / 2
        row |= {NAME: name, MOVED: round(place - spot - up, 1)}


def _share(value: float, ends: tuple[float, float], *, log: bool) -> float:
    """Where a value lies between the ends of an axis, from 0 to 1."""
    low, high, at = (math.log(v) if log else float(v) for v in (*ends, value))
    return min(1.0, max(0.0, (at - low) / (high - low))) if high > low else 0.5


def _texts(chart: Any, rows: Table, series: Series) -> list[Any]:
    """Symbols and names, a layer for every distance by which they are moved.

    Colours are those of symbols: as text, some of them would be hard to read.
    """
    import altair as alt

    layers = []
    for moved in dict.fromkeys(row[MOVED] for row in rows):
        mine = chart.transform_filter(f"datum.{MOVED} === {moved}")
        symbol = mine.mark_point(filled=True, opacity=1, size=SYMBOL, xOffset=14, yOffset=moved)
        text = mine.mark_text(
            align="left", baseline="middle", dx=24, dy=moved, lineBreak="\n",
            lineHeight=labels.LINE, fontSize=12,
        )  # fmt: skip
        named = alt.Text(field=NAME, type="nominal")
        layers.append(symbol.encode(shape=series.shape()))
        layers.append(text.encode(text=named, color=alt.value(INK)))
    return layers


def named_points(
    chart: Any,
    table: Table,
    series: Series,
    axes: tuple[Axis, Axis],
    *,
    facet: str | None,
    height: int,
) -> list[Any]:
    """The name of the series at every point, where it covers least."""
    panels = list(dict.fromkeys(row[facet] for row in table)) if facet else [None]
    frame = (ACROSS / in_row(len(panels)), float(height))
    for panel in panels:
        mine = [
            row
            for row in table
            if (facet is None or row[facet] == panel) and all(_known(row[a.field]) for a in axes)
        ]
        shares = [
            [_share(float(row[axis.field]), axis.span or (0.0, 1.0), log=axis.log) for axis in axes]
            for row in mine
        ]
        spots = [(x * frame[0], (1 - y) * frame[1]) for x, y in shares]
        names = [str(row[series.field]) for row in mine]
        for row, side in zip(mine, labels.sides(names, spots, (), frame), strict=True):
            row["side"] = side
    used = dict.fromkeys(row["side"] for row in table if "side" in row)
    import altair as alt

    return [labels.name_at(chart, series.field, side, alt.value(INK)) for side in used]


def vertical_names(rules: Sequence[str | Rule], axes: tuple[Axis, Axis]) -> list[Any]:
    """The name of every level on the horizontal axis, at its upper end."""
    import altair as alt

    layers = []
    for rule in rules:
        if isinstance(rule, Rule) and rule.axis == "x" and rule.to is None:
            data = inline([{"at": rule.at, NAME: rule.label}])
            text = alt.Chart(data).mark_text(
                align="left", baseline="top", dx=4, dy=2, fontSize=11, color=GREY
            )
            place = {"x": channel(alt.X, axes[0], field="at"), "y": alt.value(0)}
            layers.append(text.encode(**place, text=alt.Text(field=NAME, type="nominal")))
    return layers
