"""Rows in, Altair charts out: the four kinds of figure that the experiments draw.

Every chart takes rows that are already averaged over seeds (`intervals.aggregate`, `melt`). It
shows few seeds one by one, thin or small, since Student's interval over 3 values covers far more
than they do; of many it shows the interval. Nulls, ceilings and decision lines, with which the
measure is compared (``rules``), are grey, dashed and named in the legend. Series have eight colours
that readers with any colour vision can distinguish, on white and on black; the ninth reuses the
first colour with another dash.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from frenet.experiments.experiment import Rows, finite
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
from frenet.experiments.figures.series import GREY, HEAT, PALETTE, Series

if TYPE_CHECKING:
    import altair as alt

__all__ = ["Axis", "Rule", "dots", "heatmap", "lines", "scatter"]

INTERVAL = ("low", "high")
# How the legends draw marks.
POINTS = {"symbolStrokeWidth": 0, "symbolSize": 110}
# More points than this on one line are drawn for the tooltip only.
CROWD = 24


def lines(
    rows: Rows,
    *,
    x: str | Axis,
    y: str | Axis = "value",
    interval: tuple[str, str] | None = INTERVAL,
    colour: str | Axis | None = "series",
    facet: str | None = None,
    rules: Sequence[str | Rule] = (),
) -> "alt.LayerChart | alt.FacetChart":
    """Mean lines with those of few seeds or a band, one per series; a panel per ``facet``.

    Args:
        rows: one row per point, as `aggregate` or `melt` give them.
        x: column of the horizontal axis; ``Axis(..., log=True)`` for a logarithmic one.
        y: column of the vertical axis.
        interval: the columns of the band's ends, None for no band.
        colour: column that names the series, None for a single line.
        facet: column that names the panel.
        rules: a string names a series of ``colour`` that is a null or ceiling, and is left out
            if no row has that series; a `Rule` is a level.

    Raises:
        ValueError: a logarithmic axis with a value that is not positive, or an unknown column.
    """
    import altair as alt

    x, y = resolve(x), resolve(y)
    rows = with_units(rows, y.field, log=y.log) if interval else rows
    x, y = placed(x, y, rows=rows, rules=rules)
    table, series = prepare(
        rows, (x, y), interval=interval, colour=colour, facet=facet, rules=rules
    )
    series = series._replace(symbols=POINTS)
    every = alt.Chart().encode(x=channel(alt.X, x), y=channel(alt.Y, y), color=series.colour())
    base, singles = means_and_units(every, table, series)
    layers = bands(rules, series, (x, y))
    # Two points are no curve.
    drawn = len({row[x.field] for row in table}) > 2
    if singles is not None:
        thin = singles.mark_line(strokeWidth=1) if drawn else singles.mark_point(size=20)
        layers.append(
            thin.encode(detail=alt.Detail(field=UNIT, type="nominal"), opacity=alt.value(0.4))
        )
    elif interval and bounded(table, interval):
        low = channel(alt.Y, y, field=interval[0])
        band = whole(base, interval).mark_area(opacity=0.16)
        layers.append(band.encode(y=low, y2=alt.Y2(field=interval[1])))
    if drawn:
        layers.append(base.mark_line(strokeWidth=2.5).encode(strokeDash=series.dash()))
    crowded = len({row[x.field] for row in table}) > CROWD
    pointed = series.measured() if drawn else [*series.measured(), *series.nulls]
    seen = alt.FieldOneOfPredicate(series.field, [] if crowded else pointed)
    shown = alt.condition(seen, alt.value(1), alt.value(0))
    points = base.mark_point(filled=True, size=36)
    tip = tooltip((x, y), interval=interval, series=series, facet=facet, rows=table)
    layers.append(points.encode(opacity=shown, tooltip=tip, shape=series.shape()))
    layers += levels(rules, series, (x, y))
    words = in_words(table, (x, y), series)
    return panels(layers, table, facet=facet, height=280, words=words, apart=y.apart)


def dots(
    rows: Rows,
    *,
    x: str | Axis = "value",
    row: str | Axis,
    interval: tuple[str, str] | None = INTERVAL,
    colour: str | Axis | None = None,
    facet: str | None = None,
    rules: Sequence[str | Rule] = (),
    bold: Sequence[str] = (),
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
        bold: categories with a diamond and a thick interval, such as a mean over the others.
    """
    import altair as alt

    rules = [rule if isinstance(rule, str) else rule._replace(axis="x") for rule in rules]
    x, row = resolve(x), resolve(row)
    rows = with_units(rows, x.field, log=x.log) if interval else rows
    x, row = placed(x, row, rows=rows, rules=rules)
    table, series = prepare(
        rows, (x, row), interval=interval, colour=colour, facet=facet, rules=rules
    )
    for entry in table:
        entry[row.field] = label(str(entry[row.field]))
    order = list(dict.fromkeys(str(entry[row.field]) for entry in table))
    tall = any("\n" in name for name in order)
    y = _categories(row.field, order, tall=tall)
    series = series._replace(symbols=POINTS)
    plain = alt.Chart().encode(x=channel(alt.X, x), y=y, color=series.colour())
    base, singles = means_and_units(_in_lanes(plain, series), table, series)
    dot = base.transform_filter(alt.FieldOneOfPredicate(series.field, series.measured()))
    layers = [*bands(rules, series, (x, row)), *levels(rules, series, (x, row))]
    tip = tooltip((row, x), interval=interval, series=series, facet=facet, rows=table)
    shape = series.shape(upright=True)
    if series.nulls:
        layers.append(_null_ticks(plain, series).encode(tooltip=tip, shape=shape))
    if singles is not None:
        layers.append(singles.mark_point(filled=True, size=24, opacity=0.5).encode(shape=shape))
    elif interval and bounded(table, interval):
        low = channel(alt.X, x, field=interval[0])
        whiskers = whole(dot, interval).mark_rule(strokeWidth=2)
        layers.append(whiskers.encode(x=low, x2=alt.X2(field=interval[1])))
    points = dot.mark_point(filled=True, size=80, opacity=1)
    layers.append(points.encode(tooltip=tip, shape=shape))
    if bold:
        layers += _bold(
            dot.transform_filter(alt.FieldOneOfPredicate(row.field, [*map(label, bold)])), x, tip
        )
    lanes = len(series.measured())
    height = max(72, len(order) * max(44 if tall else 28, 13 * lanes + 8))
    words = in_words(table, (row, x), series)
    return panels(layers, table, facet=facet, height=height, words=words)


def _null_ticks(chart: "alt.Chart", series: Series) -> "alt.Chart":
    """A tick for every null."""
    import altair as alt

    nulls = chart.transform_filter(alt.FieldOneOfPredicate(series.field, series.nulls))
    means = nulls.transform_filter(f"!isValid(datum.{UNIT})")
    return means.mark_point(filled=True, size=360, opacity=1)


def _in_lanes(chart: "alt.Chart", series: Series) -> "alt.Chart":
    """The chart with a lane for every measured series of a category, if there are several."""
    import altair as alt

    if len(series.measured()) < 2:
        return chart
    scale = alt.Scale(domain=series.measured(), paddingOuter=0.3)
    return chart.encode(yOffset=alt.YOffset(field=series.field, type="nominal", scale=scale))


def _categories(field: str, order: list[str], *, tall: bool) -> "alt.Y":
    """Categories in this order; ``tall``: names of two lines."""
    import altair as alt

    # Vega puts the first line at the height of the mark; this is half a line up.
    two: dict[str, Any] = {"labelExpr": "split(datum.label, '\\n')", "labelOffset": -7}
    axis = alt.Axis(grid=True, **two) if tall else alt.Axis(grid=True)
    # No title: names explain themselves, and Vega draws a title on top of long ones.
    return alt.Y(field=field, type="nominal", sort=order, title=None, axis=axis)


def _bold(base: "alt.Chart", x: Axis, tip: list[Any]) -> list[Any]:
    """A diamond on a thick interval."""
    import altair as alt

    ends = whole(base, INTERVAL).mark_rule(strokeWidth=5)
    ends = ends.encode(x=channel(alt.X, x, field="low"), x2=alt.X2(field="high"))
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
    return chart.properties(height=max(96, 32 * len(down)), width=560, description=words)


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
    """
    import altair as alt

    x, y = placed(x, y, rows=rows, rules=rules)
    table, series = prepare(
        rows, (x, y), interval=interval, colour=colour, facet=facet, rules=rules
    )
    series = series._replace(symbols=POINTS)
    base = alt.Chart().encode(x=channel(alt.X, x), y=channel(alt.Y, y), color=series.colour())
    layers = [*bands(rules, series, (x, y)), *levels(rules, series, (x, y))]
    if interval and bounded(table, interval):
        low = channel(alt.Y, y, field=interval[0])
        ends = whole(base, interval).mark_rule(strokeWidth=2, opacity=0.6)
        layers.append(ends.encode(y=low, y2=alt.Y2(field=interval[1])))
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
    return panels(layers, table, facet=facet, height=320, words=words)
