"""Rows in, Altair charts out: the four kinds of figure that the experiments draw.

Every chart takes rows that are already averaged over seeds (`intervals.aggregate`, `melt`). It
shows few seeds one by one, thin or small, since Student's interval over 3 values covers far more
than they do; of many it shows the interval. Nulls, ceilings and decision lines, with which the
measure is compared (``rules``), are grey, dashed and named in the legend. Series have eight colours
that readers with any colour vision can distinguish, on white and on black; the ninth reuses the
first colour with another dash.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from frenet.experiments.experiment import Rows, finite
from frenet.experiments.figures import labels
from frenet.experiments.figures.ends import named_ends, named_points, vertical_names
from frenet.experiments.figures.names import label
from frenet.experiments.figures.parts import (
    UNIT,
    Axis,
    Rule,
    bands,
    bounded,
    channel,
    in_words,
    inline,
    levels,
    means_and_units,
    panels,
    placed,
    prepare,
    resolve,
    slim,
    tooltip,
    whole,
    with_units,
)
from frenet.experiments.figures.series import GREY, HEAT, INK, PALETTE, Series

if TYPE_CHECKING:
    import altair as alt

__all__ = ["Axis", "Rule", "dots", "heatmap", "lines", "scatter"]

INTERVAL = ("low", "high")
# The column with the text of a mark.
SAYS = "says"
# How the legends draw marks.
POINTS: dict[str, Any] = {"symbolStrokeWidth": 0, "symbolSize": 110}
# More points than this on one line are drawn for the tooltip only.
CROWD = 24
# Up to so many measured series have their names at the ends of their lines, and no legend.
MOST_NAMED = 6
# The side of a square cell, and the most that a row of them takes, in pixels.
CELL, HEAT_WIDTH = 60, 480
TALL, SQUARE = 280, 320
# Opacity of what chance gives, of a band; of the lines of single seeds.
PALE, THIN = 0.18, 0.4


def lines(
    rows: Rows,
    *,
    x: str | Axis,
    y: str | Axis = "value",
    interval: tuple[str, str] | None = INTERVAL,
    colour: str | Axis | None = "series",
    facet: str | None = None,
    rules: Sequence[str | Rule] = (),
    shaded: str = "",
    ordered: Sequence[str] = (),
    marked: Rows = (),
    direct: bool = True,
) -> "alt.LayerChart | alt.FacetChart":
    """Mean lines with those of few seeds or a band, one per series; a panel per ``facet``.

    Up to six measured series have their names at the ends of their lines: with ``facet`` in the
    last panel of the first row.

    Args:
        rows: one row per point, as `aggregate` or `melt` give them.
        x: column of the horizontal axis; ``Axis(..., log=True)`` for a logarithmic one.
        y: column of the vertical axis.
        interval: the columns of the band's ends, None for no band.
        colour: column that names the series, None for a single line.
        facet: column that names the panel.
        rules: a string names a series of ``colour`` that is a null or ceiling, and is left out
            if no row has that series; a `Rule` is a level.
        shaded: a series of ``colour`` that is drawn as a grey region between its ``low`` and
            ``high``, such as what chance gives.
        ordered: series to draw in one hue from light to dark, such as learning rates.
        marked: points to draw as rings, such as where a line falls below a half: rows with the
            columns of the axes, the series and the panel, and with a text in ``says``.
        direct: False for a legend in any case, if lines end in the middle of the chart.

    Raises:
        ValueError: a logarithmic axis with a value that is not positive, or an unknown column.
    """
    import altair as alt

    x, y = resolve(x), resolve(y)
    rows = with_units(rows, y.field, log=y.log) if interval else rows
    x, y = placed(x, y, rows=rows, rules=rules)
    table, series = prepare(
        rows, (x, y), interval=interval, colour=colour, facet=facet, rules=rules, shaded=shaded
    )
    named = direct and len(series.names) > 1 and len(series.measured()) <= MOST_NAMED
    hue = [name for name in map(label, ordered) if name in series.names]
    series = series._replace(symbols=POINTS, ordered=hue, legend=not named)
    words = in_words(table, (x, y), series)
    every = alt.Chart().encode(x=channel(alt.X, x), y=channel(alt.Y, y), color=series.colour())
    base, singles = means_and_units(every, table, series)
    layers = [*_shade(every, alt.Y, y, series, shaded), *bands(rules, series, (x, y))]
    base = _without(base, series, shaded)
    # Two points are no curve.
    count = len({row[x.field] for row in table})
    drawn, crowded = count > 2, count > CROWD
    if marked:
        base = base.transform_filter(f"!isValid(datum.{SAYS})")
        layers.append(_rings(every, table, series, marked))
    tip = tooltip(() if drawn else (x, y), series=series, facet=facet, rows=table)
    layers += _around(base, singles, _measured(table, series), y, interval, tip, drawn=drawn)
    if drawn:
        layers.append(base.mark_line(strokeWidth=2.5).encode(strokeDash=series.dash()))
    pointed = series.measured() if drawn else [*series.measured(), *series.nulls]
    seen = alt.FieldOneOfPredicate(series.field, [] if crowded else pointed)
    tip = tooltip((x, y), interval=interval, series=series, facet=facet, rows=table)
    points = base.mark_point(filled=True, size=36).encode(tooltip=tip, shape=series.shape())
    layers.append(points.encode(opacity=alt.condition(seen, alt.value(1), alt.value(0))))
    layers += levels(rules, series, (x, y))
    if named:
        layers += named_ends(every, table, series, (x, y), rules, facet=facet, height=TALL)
    room = labels.room(series.names) if named else 0
    return panels(layers, table, facet=facet, height=TALL, words=words, apart=y.apart, room=room)


def _around(
    base: "alt.Chart",
    singles: "alt.Chart | None",
    measured: Rows,
    y: Axis,
    interval: tuple[str, str] | None,
    tip: Any,
    *,
    drawn: bool,
) -> list[Any]:
    """Thin lines of single values, which are points if no line is drawn; or a band.

    ``tip``: of the single values; a line has one text for all its points.
    """
    import altair as alt

    if singles is not None:
        thin = singles.mark_line(strokeWidth=1) if drawn else singles.mark_point(size=20)
        each = alt.Detail(field=UNIT, type="nominal")
        return [thin.encode(detail=each, opacity=alt.value(THIN), tooltip=tip)]
    if interval and bounded(measured, interval):
        band = whole(base, interval).mark_area(opacity=0.16)
        return [band.encode(**_between(alt.Y, y, interval))]
    return []


def _between(kind: Any, axis: Axis, ends: tuple[str, str]) -> dict[str, Any]:
    """The channels of a mark between two columns (``kind``: `alt.X` or `alt.Y`)."""
    import altair as alt

    low = channel(kind, axis, field=ends[0])
    if kind is alt.X:
        return {"x": low, "x2": alt.X2(field=ends[1])}
    return {"y": low, "y2": alt.Y2(field=ends[1])}


def _rings(
    chart: "alt.Chart", table: list[dict[str, Any]], series: Series, marked: Rows
) -> "alt.Chart":
    """Rings with a tooltip; their rows go to the others, so that they are in the right panels."""
    import altair as alt

    # The number of a single value keeps them out of everything that is drawn of means.
    table += [
        {**row, series.field: label(str(row[series.field])), UNIT: -1}
        for row in slim(marked, [key for row in marked for key in row])
    ]
    tips = [
        alt.Tooltip(field=field, type="nominal", title=title)
        for field, title in ((series.field, series.title or "series"), (SAYS, "half is gone"))
    ]
    rings = chart.transform_filter(f"isValid(datum.{SAYS})")
    return rings.mark_point(filled=False, size=110, strokeWidth=2).encode(tooltip=tips)


def _shade(chart: "alt.Chart", kind: Any, axis: Axis, series: Series, shaded: str) -> list[Any]:
    """The region of a series, across blocks or (``kind`` is `alt.X`) in every row."""
    import altair as alt

    if label(shaded) not in series.areas:
        return []
    mine = chart.transform_filter(alt.FieldEqualPredicate(label(shaded), series.field))
    region = mine.mark_bar(opacity=PALE) if kind is alt.X else mine.mark_area(opacity=PALE)
    return [region.encode(**_between(kind, axis, INTERVAL))]


def _measured(table: Rows, series: Series) -> list[Mapping[str, Any]]:
    """The rows of series that are not drawn as a region."""
    return [row for row in table if row[series.field] not in series.areas]


def _without(chart: "alt.Chart", series: Series, shaded: str) -> "alt.Chart":
    """The chart without the series that is drawn as a region."""
    if label(shaded) not in series.areas:
        return chart
    return chart.transform_filter(f"datum[{series.field!r}] !== {label(shaded)!r}")


def dots(
    rows: Rows,
    *,
    x: str | Axis = "value",
    row: str | Axis,
    interval: tuple[str, str] | None = INTERVAL,
    colour: str | Axis | None = None,
    facet: str | None = None,
    rules: Sequence[str | Rule] = (),
    shaded: str = "",
    bold: Sequence[str] = (),
    lane: str | Axis | None = None,
    headings: Mapping[str, str] = MappingProxyType({}),
) -> "alt.LayerChart | alt.FacetChart":
    """A dot with its seeds or its interval for every category; its series share a row.

    Args:
        rows: one row per dot, as `aggregate` or `melt` give them.
        x: column of the measure.
        row: column that names the category (a basis, a layer), in order of first appearance; its
            names may have two lines.
        interval: the columns of the whisker's ends, None for none.
        colour: column that names the series, None for one.
        facet: column that names the panel.
        rules: a string names a series of ``colour`` that is a null or ceiling (drawn as a grey
            tick); a `Rule` is a level on ``x``, regardless of its ``axis``.
        shaded: a series of ``colour`` that is drawn as a grey bar between its ``low`` and
            ``high``, such as what chance gives.
        bold: categories with a diamond and a thick interval, such as a mean over the others.
        lane: column whose values have a shape and a lane each; colours then stand for the groups
            that ``headings`` name, which need no legend.
        headings: category -> the heading above it.
    """
    import altair as alt

    rules = [rule if isinstance(rule, str) else rule._replace(axis="x") for rule in rules]
    x, row, lane = resolve(x), resolve(row), resolve(lane) if lane else None
    rows = with_units(rows, x.field, log=x.log) if interval else rows
    x, row = placed(x, row, rows=rows, rules=rules)
    also = [lane.field] if lane else []
    table, series = prepare(
        rows, (x, row), interval=interval, colour=colour, facet=facet, rules=rules, shaded=shaded,
        also=also)  # fmt: skip
    order = _labelled(table, row.field, *also)
    y = _categories(row.field, order, {label(name): text for name, text in headings.items()})
    series = series._replace(symbols=POINTS, legend=lane is None)
    lanes = _lanes(table, lane) if lane else series
    plain = alt.Chart().encode(x=channel(alt.X, x), y=y, color=series.colour())
    base, singles = means_and_units(_in_lanes(plain, lanes), table, series)
    dot = base.transform_filter(alt.FieldOneOfPredicate(series.field, series.measured()))
    layers = [*_shade(plain, alt.X, x, series, shaded), *bands(rules, series, (x, row))]
    layers += [*levels(rules, series, (x, row)), *vertical_names(rules if lane else (), (x, row))]
    tip = tooltip((row, x), interval=interval, series=lanes, facet=facet, rows=table)
    shape = lanes.shape(upright=True)
    if ticked := [name for name in series.nulls if name not in series.areas]:
        layers.append(_null_ticks(plain, series.field, ticked).encode(tooltip=tip, shape=shape))
    if singles is not None:
        one = tooltip((row, x), series=lanes, facet=facet, rows=table)
        layers.append(_filled(singles, 24, 0.5).encode(shape=shape, tooltip=one))
    elif interval and bounded(_measured(table, series), interval):
        whiskers = whole(dot, interval).mark_rule(strokeWidth=2)
        layers.append(whiskers.encode(**_between(alt.X, x, interval)))
    layers.append(_filled(dot, 80, 1).encode(tooltip=tip, shape=shape))
    means = alt.FieldOneOfPredicate(row.field, [*map(label, bold)])
    layers += _bold(dot.transform_filter(means), x, tip) if bold else []
    each = max(44 if _tall(order) else 28, (9 if lane else 13) * len(lanes.measured()) + 8)
    height = max(72, (len(order) + len(headings)) * each)
    words = in_words(table, (row, x), series)
    return panels(layers, table, facet=facet, height=height, words=words)


def _filled(chart: "alt.Chart", size: int, opacity: int | float) -> "alt.Chart":
    return chart.mark_point(filled=True, size=size, opacity=opacity)


def _null_ticks(chart: "alt.Chart", field: str, names: Sequence[str]) -> "alt.Chart":
    """A tick for every null."""
    import altair as alt

    nulls = chart.transform_filter(alt.FieldOneOfPredicate(field, list(names)))
    means = nulls.transform_filter(f"!isValid(datum.{UNIT})")
    return means.mark_point(filled=True, size=360, opacity=1)


def _in_lanes(chart: "alt.Chart", series: Series) -> "alt.Chart":
    """The chart with a lane for every measured series of a category, if there are several."""
    import altair as alt

    if len(series.measured()) < 2:
        return chart
    scale = alt.Scale(domain=series.measured(), paddingOuter=0.3)
    return chart.encode(yOffset=alt.YOffset(field=series.field, type="nominal", scale=scale))


def _labelled(table: list[dict[str, Any]], category: str, *others: str) -> list[str]:
    """The names of categories in their order; this writes labels into these columns."""
    for entry in table:
        entry |= {field: label(str(entry[field])) for field in (category, *others)}
    return list(dict.fromkeys(str(entry[category]) for entry in table))


def _lanes(table: Rows, lane: Axis) -> Series:
    """The values of a column that have a lane and a shape each."""
    names = list(dict.fromkeys(str(entry[lane.field]) for entry in table))
    # Colours stand for something else, so that the legend has that of text.
    return Series(lane.field, lane.title, names, [], [], POINTS | {"symbolFillColor": INK})


def _tall(order: Sequence[str]) -> bool:
    """Whether names of categories have two lines."""
    return any("\n" in name for name in order)


def _categories(field: str, order: Sequence[str], headings: Mapping[str, str]) -> "alt.Y":
    """Categories in this order, below their headings."""
    import altair as alt

    marks: dict[str, Any] = {"grid": True}
    if _tall(order):
        # Vega puts the first line at the height of the mark; this is half a line up.
        marks |= {"labelExpr": "split(datum.label, '\\n')", "labelOffset": -7}
    lines: list[str] = []
    for name in order:
        lines += [headings[name], name] if name in headings else [name]
    if headings:
        bold = f"indexof({list(headings.values())!r}, datum.value) >= 0"
        marks["labelFontWeight"] = {"condition": {"test": bold, "value": 700}, "value": 400}
    # No title: names explain themselves, and Vega draws a title on top of long ones.
    return alt.Y(
        field=field, type="nominal", sort=lines, title=None, axis=alt.Axis(**marks),
        scale=alt.Scale(domain=lines),
    )  # fmt: skip


def _bold(base: "alt.Chart", x: Axis, tip: list[Any]) -> list[Any]:
    """A diamond on a thick interval."""
    import altair as alt

    ends = whole(base, INTERVAL).mark_rule(strokeWidth=5)
    ends = ends.encode(**_between(alt.X, x, INTERVAL))
    diamond = base.mark_point(filled=True, size=240, opacity=1, shape="diamond")
    return [mark.encode(color=alt.value(PALETTE[1]), tooltip=tip) for mark in (ends, diamond)]


def heatmap(
    rows: Rows, *, x: str | Axis, y: str | Axis, value: str | Axis = "value"
) -> "alt.LayerChart | alt.FacetChart":
    """A table of fractions as shaded cells with the number in each (overlap between tasks).

    Args:
        rows: one row per cell.
        x: column of the columns, in order of first appearance.
        y: column of the rows, likewise.
        value: column of the number; its ``domain`` (default 0, 1) runs from blank to full.
    """
    import altair as alt

    x, y, value = resolve(x), resolve(y), resolve(value)
    table = slim(rows, [x.field, y.field, value.field])
    for row in table:
        row |= {axis.field: label(str(row[axis.field])) for axis in (x, y)}
    across = list(dict.fromkeys(str(row[x.field]) for row in table))
    down = list(dict.fromkeys(str(row[y.field]) for row in table))
    slanted = alt.Axis(labelAngle=-40 if len(across) > 4 else 0, domain=False)
    base = alt.Chart(inline(table)).encode(
        x=alt.X(field=x.field, type="nominal", sort=across, title=x.title, axis=slanted),
        y=alt.Y(
            field=y.field, type="nominal", sort=down, title=y.title, axis=alt.Axis(domain=False)
        ),
        tooltip=tooltip((y, x, value), rows=table),
    )
    shade = alt.Scale(domain=list(value.domain or (0, 1)), range=[0.02, 1], clamp=True)
    opacity = alt.Opacity(field=value.field, type="quantitative", scale=shade, legend=None)
    figure = alt.Text(field=value.field, type="quantitative", format=".2f")
    cells = base.mark_rect(color=HEAT).encode(opacity=opacity)
    chart = alt.layer(cells, base.mark_text(fontSize=11).encode(text=figure))
    words = in_words(table, (y, value), None)
    side = min(CELL, HEAT_WIDTH // len(across)) if across else CELL
    return chart.properties(height=side * len(down), width=alt.Step(side), description=words)


def scatter(
    rows: Rows,
    *,
    x: str | Axis,
    y: str | Axis,
    interval: tuple[str, str] | None = None,
    colour: str | Axis | None = None,
    facet: str | None = None,
    diagonal: bool = True,
    rules: Sequence[str | Rule] = (),
    named: bool = False,
) -> "alt.LayerChart | alt.FacetChart":
    """Points of one measure against another, with the line on which the two agree.

    Args:
        rows: one row per point.
        x: column of the horizontal axis.
        y: column of the vertical axis.
        interval: the columns of the ends of a vertical line for each point, None for none.
        colour: column that names the series, None for one.
        facet: column that names the panel.
        diagonal: draw y = x over the range that both axes share.
        rules: levels, see `lines`.
        named: write the name of the series at each point, in place of a legend.
    """
    import altair as alt

    x, y = placed(x, y, rows=rows, rules=rules)
    table, series = prepare(
        rows, (x, y), interval=interval, colour=colour, facet=facet, rules=rules
    )
    series = series._replace(symbols=POINTS, legend=not named)
    base = alt.Chart().encode(x=channel(alt.X, x), y=channel(alt.Y, y), color=series.colour())
    layers = [*bands(rules, series, (x, y)), *levels(rules, series, (x, y))]
    if interval and bounded(table, interval):
        ends = whole(base, interval).mark_rule(strokeWidth=2, opacity=0.6)
        layers.append(ends.encode(**_between(alt.Y, y, interval)))
    cells = [finite(row[axis.field]) for row in table for axis in (x, y)]
    values = [value for value in cells if value is not None]
    if diagonal and values:
        ends = [{x.field: end, y.field: end} for end in (min(values), max(values))]
        line = alt.Chart(inline(ends)).mark_line(color=GREY, strokeDash=[2, 3])
        layers.append(line.encode(x=channel(alt.X, x), y=channel(alt.Y, y)))
    points = base.mark_point(filled=True, size=70, opacity=0.85)
    tip = tooltip((x, y), interval=interval, series=series, facet=facet, rows=table)
    layers.append(points.encode(shape=series.shape(), tooltip=tip))
    words = in_words(table, (x, y), series)
    if named:
        layers += named_points(base, table, series, (x, y), facet=facet, height=SQUARE)
    return panels(layers, table, facet=facet, height=SQUARE, words=words)
