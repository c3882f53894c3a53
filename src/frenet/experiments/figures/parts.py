"""What the four charts of `charts` share: rows, axes, levels, panels, words."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from frenet._errors import UsageError
from frenet.experiments.experiment import Row, Rows, finite
from frenet.experiments.figures.names import label
from frenet.experiments.figures.series import Series
from frenet.experiments.intervals import EACH, OF, each_of, seed_name

if TYPE_CHECKING:
    import altair as alt

# A text alternative names this many series and says how many more there are.
NAMED = 12
# The column with the number of a single value, such as a seed; rows of means have none.
UNIT = "single"
# On a logarithmic axis, marks at 1, 3, 10 and so on; more on an axis shorter than the factor.
TICKS, DENSE, SHORT = (1.0, 3.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), 9
# The width in pixels of all panels of a row, for which titles and names of points are placed.
ACROSS = 560
# The width of a letter of a panel's title in pixels, and the fewest and most of them in a line.
LETTER, SHORTEST, TITLE = 6.5, 12, 45


class Axis(NamedTuple):
    """A column on an axis.

    ``title`` names the quantity and its unit. ``domain`` is the least range of the axis: values
    outside widen it, intervals are cut at the frame. ``whole`` marks whole numbers only. ``apart``
    gives every panel its own scale. ``span`` is the range of the values, which `placed` finds.
    """

    field: str
    title: str | None = None
    log: bool = False
    domain: tuple[float, float] | None = None
    whole: bool = False
    apart: bool = False
    span: tuple[float, float] | None = None


class Rule(NamedTuple):
    """A level, or with ``to`` a band, across the chart; ``axis`` is the one it is read on."""

    label: str
    at: float
    to: float | None = None
    axis: Literal["x", "y"] = "y"


def resolve(axis: str | Axis) -> Axis:
    """An axis with a title: the column's name, in words, unless one was given."""
    axis = Axis(axis) if isinstance(axis, str) else axis
    return axis if axis.title else axis._replace(title=axis.field.replace("_", " "))


def placed(
    x: str | Axis, y: str | Axis, *, rows: Rows, rules: Sequence[str | Rule]
) -> tuple[Axis, Axis]:
    """Both axes with titles, and with room for every value and level."""
    levels = [rule for rule in rules if isinstance(rule, Rule)]
    ends = [(r.axis, float(end)) for r in levels for end in (r.at, r.to) if end is not None]
    across = [end for axis, end in ends if axis == "x"]
    up = [end for axis, end in ends if axis == "y"]
    return _widened(resolve(x), rows, across), _widened(resolve(y), rows, up)


def _widened(axis: Axis, rows: Rows, ends: Sequence[float]) -> Axis:
    values = [v for row in rows if (v := finite(row.get(axis.field))) is not None]
    values += [*ends, *(axis.domain or ())]
    span = (float(min(values)), float(max(values))) if values else None
    return axis._replace(span=span, domain=span if axis.domain else None)


def ticks(low: float, high: float, *, dense: bool) -> list[float]:
    """The marks of a logarithmic axis; ``dense``: more in every decade."""
    steps = DENSE if dense else TICKS
    every = (float(f"{step * 10.0**n:.3g}") for n in range(-9, 9) for step in steps)
    return [value for value in every if low <= value <= high]


def short(low: float, high: float) -> bool:
    """Whether a logarithmic axis needs more marks than 1, 3 and 10."""
    return high < SHORT * low


def slim(rows: Rows, fields: Iterable[str]) -> list[dict[str, Any]]:
    """The named columns only, with numbers of six digits, so that a page of charts stays small."""
    fields = list(dict.fromkeys(fields))
    for field in fields:
        if rows and not any(field in row for row in rows):
            known = ", ".join(sorted({key for row in rows for key in row}))
            raise UsageError(f"no row has the column {field!r} to draw; the rows have {known}")
    table = []
    for row in rows:
        entry = {field: row.get(field) for field in fields}
        for field, value in entry.items():
            if isinstance(value, float):
                shown = finite(value)
                entry[field] = None if shown is None else float(f"{shown:.6g}")
        table.append(entry)
    return table


def with_units(rows: Rows, field: str, *, log: bool) -> list[Row]:
    """The rows, and behind them one row for every single value, with its number in ``unit``.

    Args:
        rows: as `aggregate` gives them.
        field: the column of the value.
        log: leave out values that a logarithmic axis cannot show.
    """
    singles: list[Row] = []
    for row in rows if field == "value" else ():
        for unit, (name, value) in enumerate(each_of(row).items()):
            if value > 0 or not log:
                singles.append({**row, field: value, UNIT: unit, OF: name, EACH: None})
    return [*map(dict, rows), *singles]


def inline(rows: Rows) -> Any:
    """Rows as Altair's data.

    They are in a plain dict, since `alt.InlineData` takes seconds to check cells, and in a tuple,
    which Altair passes on where it copies every row of a list at each step of a chart.
    """
    return {"values": tuple(rows)}


def prepare(
    rows: Rows,
    axes: tuple[Axis, Axis],
    *,
    interval: tuple[str, str] | None,
    colour: str | Axis | None,
    facet: str | None,
    rules: Sequence[str | Rule],
    shaded: str = "",
    also: Sequence[str] = (),
) -> tuple[list[dict[str, Any]], Series]:
    """The rows as the chart needs them, with further columns, and the look of its series."""
    # "series" is no heading for a legend.
    plain = Axis("series", axes[1].title if colour is None else None)
    key = plain if colour in (None, "series") else resolve(colour)
    fields = [axis.field for axis in axes] + list(interval or ())
    fields += also
    rows = [{OF: seed_name(row) or None, **row} for row in rows]
    fields += [name for name in (UNIT, OF) if any(row.get(name) is not None for row in rows)]
    table = slim(rows, [*fields, *([key.field] if colour else []), *([facet] if facet else [])])
    for entry in table:
        entry[key.field] = label(str(entry[key.field])) if colour else str(axes[1].title)
        if facet:
            entry[facet] = label(str(entry[facet]))
    for axis in axes:
        bad = [row[axis.field] for row in table if axis.log and not _positive(row[axis.field])]
        if bad:
            raise UsageError(
                f"the logarithmic axis {axis.field!r} got the value {bad[0]!r}; "
                "leave such rows out or pass log=False"
            )
    names = list(dict.fromkeys(entry[key.field] for entry in table))
    # A null that no row of this run has is left out: the measure is still worth drawing.
    labels = [label(rule) for rule in (*rules, shaded) if isinstance(rule, str)]
    named = [name for name in labels if name in names]
    drawn = [rule.label for rule in rules if isinstance(rule, Rule)]
    areas = [rule.label for rule in rules if isinstance(rule, Rule) and rule.to is not None]
    areas += [name for name in named if name == label(shaded)]
    names = [n for n in names if n not in named] + named + drawn
    return table, Series(
        key.field, key.title if colour else None, names, named, drawn, {}, areas=areas
    )


def _positive(value: Any) -> bool:
    shown = finite(value)
    return shown is None or shown > 0


def channel(kind: Any, axis: Axis, *, field: str | None = None) -> Any:
    """The x or y channel (``kind``: `alt.X` or `alt.Y`); ``field`` replaces the axis's column."""
    import altair as alt

    scale: dict[str, Any] = {"zero": False, "nice": True}
    if axis.log:
        scale = {"type": "log", "nice": False}
    if axis.domain:
        # Clamped: only intervals reach further, and they must not push the panels apart.
        scale |= {"domain": list(axis.domain), "nice": False, "clamp": True}
    marks = alt.Axis(tickCount=6)
    if axis.log and axis.span:
        low, high = axis.span
        # Without a domain, intervals may reach further than the values.
        more = 1.0 if axis.domain else 100.0
        marked = ticks(low / more, high * more, dense=short(low, high))
        marks = alt.Axis(format="~g", values=marked)
    if axis.whole:
        whole = "datum.value % 1 === 0 ? datum.label : ''"
        marks = alt.Axis(tickCount=6, labelExpr=whole)
    return kind(
        field=field or axis.field,
        type="quantitative",
        title=axis.title,
        scale=alt.Scale(**scale),
        axis=marks,
    )


def tooltip(
    axes: Iterable[Axis],
    *,
    interval: tuple[str, str] | None = None,
    series: Series | None = None,
    facet: str | None = None,
    rows: Rows = (),
) -> list[Any]:
    """What hovering over a mark says, numbers to four digits."""
    import altair as alt

    tips = [alt.Tooltip(field=facet, type="nominal")] if facet else []
    if series and len(series.names) > 1:
        tips.append(alt.Tooltip(field=series.field, type="nominal", title=series.title or "series"))
    for axis in axes:
        numeric = any(finite(row.get(axis.field)) is not None for row in rows)
        form: dict[str, Any] = (
            {"type": "quantitative", "format": ".4~g"} if numeric else {"type": "nominal"}
        )
        tips.append(alt.Tooltip(field=axis.field, title=axis.title, **form))
    tips += [alt.Tooltip(field=end, type="quantitative", format=".4~g") for end in interval or ()]
    if any(row.get(OF) is not None for row in rows):
        tips.append(alt.Tooltip(field=OF, type="nominal"))
    return tips


def whole(chart: Any, interval: tuple[str, str]) -> Any:
    """The chart without rows that have no interval (a single seed)."""
    ends = " && ".join(f"isValid(datum[{end!r}])" for end in interval)
    return chart.transform_filter(ends)


def bounded(table: Rows, interval: tuple[str, str]) -> bool:
    """Whether any row has both ends; Vega warns of a layer that has no row to draw."""
    return any(all(finite(row.get(end)) is not None for end in interval) for row in table)


def means_and_units(every: Any, table: Rows, series: Series) -> tuple[Any, Any]:
    """The chart of the means, and that of single values of measured series; None without any."""
    import altair as alt

    if not any(row.get(UNIT) is not None for row in table):
        return every, None
    means = every.transform_filter(f"!isValid(datum.{UNIT})")
    singles = every.transform_filter(f"isValid(datum.{UNIT})")
    measured = alt.FieldOneOfPredicate(series.field, series.measured())
    return means, singles.transform_filter(measured)


def levels(rules: Sequence[str | Rule], series: Series, axes: tuple[Axis, Axis]) -> list[Any]:
    """A dashed line for every `Rule` that is one level."""
    import altair as alt

    drawn = []
    for rule in rules:
        if isinstance(rule, Rule) and rule.to is None:
            data = inline([{series.field: rule.label, "at": rule.at}])
            mark = alt.Chart(data).mark_rule(strokeWidth=1.5)
            mark = mark.encode(**_across(rule, axes), color=series.colour())
            drawn.append(mark.encode(strokeDash=series.dash(), tooltip=[_named(series)]))
    return drawn


def bands(rules: Sequence[str | Rule], series: Series, axes: tuple[Axis, Axis]) -> list[Any]:
    """A pale band for every `Rule` that has two ends."""
    import altair as alt

    drawn = []
    for rule in rules:
        if isinstance(rule, Rule) and rule.to is not None:
            data = inline([{series.field: rule.label, "at": rule.at, "to": rule.to}])
            mark = alt.Chart(data).mark_rect(opacity=0.18)
            other = {"x": alt.X2, "y": alt.Y2}[rule.axis](field="to")
            ends = _across(rule, axes) | {f"{rule.axis}2": other}
            drawn.append(mark.encode(**ends, color=series.colour(), tooltip=[_named(series)]))
    return drawn


def _across(rule: Rule, axes: tuple[Axis, Axis]) -> dict[str, Any]:
    import altair as alt

    if rule.axis == "x":
        return {"x": channel(alt.X, axes[0], field="at")}
    return {"y": channel(alt.Y, axes[1], field="at")}


def _named(series: Series) -> Any:
    import altair as alt

    return alt.Tooltip(field=series.field, type="nominal", title="line")


def panels(
    layers: Sequence[Any],
    table: Rows,
    *,
    facet: str | None,
    height: int,
    words: str,
    apart: bool = False,
    room: int = 0,
) -> "alt.LayerChart | alt.FacetChart":
    """The layers over one table, in one frame or in one panel per value of ``facet``.

    ``room``: the width in pixels of names to the right of panels, for whoever sizes them.
    """
    import altair as alt

    if facet is None:
        chart = alt.layer(*layers, data=inline(list(table)))
        return chart.properties(height=height, width=ACROSS, description=words)
    columns = in_row(len({row[facet] for row in table}))
    letters = max(SHORTEST, min(TITLE, int((ACROSS - room) / columns / LETTER)))
    table = [{**row, facet: broken(str(row[facet]), letters)} for row in table]
    chart = alt.layer(*layers, data=inline(table))
    order: Any = list(dict.fromkeys(row[facet] for row in table))
    header = alt.Header(labelExpr="split(datum.label, '\\n')")
    panel = alt.Facet(field=facet, type="nominal", title=None, sort=order, header=header)
    framed = chart.properties(height=height, width=round(ACROSS / columns))
    faceted = framed.facet(facet=panel, columns=columns)
    # Only the column with names is as wide as they need.
    faceted = faceted.properties(description=words, usermeta={"room": room}, align="each")
    # A shared axis would also be drawn below empty places in the last row.
    described = faceted.resolve_axis(x="independent")
    return described.resolve_scale(y="independent") if apart else described


def broken(title: str, letters: int) -> str:
    """The lines of a title, in more lines if they have more letters.

    >>> broken("stories260K\\nall weights", 20), broken("a-network-of-mine, Adam", 12)
    ('stories260K\\nall weights', 'a-network-\\nof-mine,\\nAdam')
    """
    lines = [part for line in title.split("\n") for part in textwrap.wrap(line, letters) or [""]]
    return "\n".join(lines)


def in_row(panels: int) -> int:
    """How many panels a row has; the last row is not left with one of four."""
    return 2 if panels == 4 else max(1, min(3, panels))


def sentence(words: str) -> Any:
    """A chart without rows, with the sentence that a page shows in its place."""
    import altair as alt

    return alt.Chart(inline([])).mark_point().properties(usermeta={"instead": words})


def in_words(table: Rows, axes: tuple[Axis, Axis], series: Series | None) -> str:
    """A text alternative: the range of every series."""
    x, y = axes
    groups: dict[str, list[float]] = {}
    for row in table:
        value = finite(row.get(y.field)) if row.get(UNIT) is None else None
        if value is not None:
            groups.setdefault(str(row[series.field]) if series else "all", []).append(value)
    parts = [f"{name} from {min(vs):.3g} to {max(vs):.3g}" for name, vs in groups.items()]
    if len(parts) > NAMED:
        parts = [*parts[:NAMED], f"and {len(parts) - NAMED} more series"]
    return f"{y.title} against {x.title}: {'; '.join(parts) or 'no values'}."
