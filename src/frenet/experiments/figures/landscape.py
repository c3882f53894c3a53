"""How far against for how long: directions as marks with their names beside them."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from frenet.experiments.experiment import Reach, Row, number
from frenet.experiments.figures.names import label
from frenet.experiments.figures.parts import Axis, channel, panels, sentence
from frenet.experiments.figures.series import GREY, Series

if TYPE_CHECKING:
    import altair as alt

FAR = "loss follows its slope up to this share of the norm"
LONG = "training steps until half is gone"
# The size of a panel, of a letter and of a mark in pixels, for which names are placed.
WIDE, HIGH, LETTER, LINE, MARK = 290.0, 250.0, 7.2, 14.0, 7.0
# Where a name may stand: its anchor, and how far from the mark.
PLACES = {
    "right": ("left", 11, 0),
    "left": ("right", -11, 0),
    "above": ("center", 0, -15),
    "below": ("center", 0, 16),
    "right above": ("left", 8, -13),
    "right below": ("left", 8, 14),
    "left above": ("right", -8, -13),
    "left below": ("right", -8, 14),
    "far above": ("center", 0, -29),
    "far below": ("center", 0, 31),
    "far right": ("left", 8, 29),
    "far left": ("right", -8, 29),
    "high right": ("left", 8, -28),
    "high left": ("right", -8, -28),
}
# Where lifetimes of less than a step are drawn; room beside the outer marks in pixels.
LEAST, ROOM = 0.5, 30.0
# The ticks of every decade, and those of an axis that is shorter than the factor.
TICKS, DENSE, SHORT = (1.0, 3.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), 9
NOTHING = "No direction has both a radius and a lifetime, so that there is no map."


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        """The area that two rectangles share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)


def panel(one: Reach) -> str:
    """The panel of a direction: the space, and what it moves if that is not the weights."""
    where = {"stream": "activations", "factors": "factors (earlier build)"}
    moved = where.get(one.share_of, "")
    return f"{label(one.space)}: {moved}" if moved else label(one.space)


def landscape(panelled: Sequence[tuple[str, Reach]], *, shared: bool = False) -> Any:
    """A panel of radius against lifetime for every name; ``shared``: with the same axes.

    A large mark is the geometric mean over seeds, small ones are seeds on the two measured steps
    between which half is lost. It is hollow if the direction was still good at the last step on
    some seed. Grey ticks are directions that hold no more than chance and so have no lifetime. If
    no direction went stale, there is no chart but a sentence.

    Args:
        panelled: the panel and the reach of every direction and seed.
        shared: use the same axes in all panels.
    """
    import altair as alt

    seeds = [_seed(panel, one) for panel, one in panelled if one.life is not None and one.far]
    if not seeds or all(row["open"] for row in seeds):
        return sentence(_stale(panelled, bool(seeds)))
    ends = dict.fromkeys((panel, one.longest) for panel, one in panelled if one.longest)
    low = min(float(row["after"]) for row in seeds)  # type: ignore[arg-type]
    span = (0.8 * low, 1.3 * max(longest for _, longest in ends))
    chance = _chance(panelled, {row["panel"] for row in seeds})
    means = _placed(_means(seeds), [*seeds, *chance], span)
    names = list(dict.fromkeys(str(row["name"]) for row in means))
    series = Series("name", None, names, [], [], {}, legend=False)
    x = Axis("far", FAR, log=True, domain=_narrowest([*seeds, *chance]))
    y = Axis("life", LONG, log=True, domain=span)
    base = alt.Chart().encode(x=_x(x), y=_y(y), color=series.colour())
    shape = series.shape()
    of = {kind: base.transform_filter(f"datum.kind == {kind!r}") for kind in ("seed", "mean")}
    tips = [
        alt.Tooltip(field="name", type="nominal", title="direction"),
        alt.Tooltip(field="far", type="quantitative", format=".2%", title="up to"),
        alt.Tooltip(field="steps", type="nominal", title="lasts"),
        alt.Tooltip(field="which", type="nominal", title="of"),
    ]
    end = alt.Chart().transform_filter("datum.kind == 'end'").mark_rule(strokeDash=[4, 4])
    layers = [
        end.encode(y=_y(y), color=alt.value(GREY)),
        of["seed"]
        .mark_rule(strokeWidth=1.5, opacity=0.4)
        .encode(y=_y(y._replace(field="after")), y2=alt.Y2(field="by")),
        of["seed"].mark_point(filled=True, size=26, opacity=0.6).encode(shape=shape, tooltip=tips),
        *(_mark(of["mean"], shape, tips, hollow=hollow) for hollow in (False, True)),
        *(_name(of["mean"], place) for place in PLACES),
        _chanceless(x),
    ]
    last: list[Row] = [{"panel": panel, "kind": "end", "life": longest} for panel, longest in ends]
    table: list[Row] = [*seeds, *means, *last, *chance]
    chart = panels(layers, table, facet="panel", height=int(HIGH), words=_words(means))
    chart.columns = min(2, chart.columns)
    # In some panels a layer has no mark, which is no reason to warn.
    chart.usermeta = {"quiet": True}
    return chart if shared else chart.resolve_scale(x="independent")


def _x(axis: Axis) -> "alt.X":
    """The horizontal axis of every panel; ``domain`` only says how dense its ticks are."""
    import altair as alt

    low, high = axis.domain or (1.0, 1.0)
    dense = DENSE if high < SHORT * low else TICKS
    made = channel(alt.X, axis._replace(domain=None))
    made.scale = alt.Scale(type="log", nice=False, padding=ROOM)
    made.axis = alt.Axis(format="~%", values=_ticks(1e-7, 1e4, dense), grid=False)
    return made


def _y(axis: Axis) -> "alt.Y":
    import altair as alt

    made = channel(alt.Y, axis)
    made.axis = alt.Axis(format="~g", values=_ticks(*(axis.domain or (LEAST, 1e6)), TICKS))
    return made


def _ticks(low: float, high: float, steps: Sequence[float]) -> list[float]:
    every = (float(f"{step * 10.0**n:.3g}") for n in range(-7, 7) for step in steps)
    return [value for value in every if low <= value <= high]


def _narrowest(rows: Sequence[Row]) -> tuple[float, float]:
    """The range of distances in the panel where it is the smallest factor."""
    groups: dict[object, list[float]] = {}
    for row in rows:
        groups.setdefault(row["panel"], []).append(float(row["far"]))  # type: ignore[arg-type]
    return min(((min(v), max(v)) for v in groups.values()), key=lambda ends: ends[1] / ends[0])


def _seed(panel: str, one: Reach) -> Row:
    """The row of one seed."""
    assert one.life is not None
    low, high = one.life
    low = max(low, LEAST)
    middle = low if high is None else math.sqrt(low * high)
    steps = f"more than {low:g} steps" if high is None else f"{low:g} to {high:g} steps"
    return {
        "panel": panel, "kind": "seed", "name": label(one.direction), "far": one.far,
        "life": middle, "after": low, "by": high or low, "open": high is None, "steps": steps,
        "which": f"seed {one.seed}",
    }  # fmt: skip


def _means(seeds: Sequence[Row]) -> list[Row]:
    """The geometric means over seeds."""
    groups: dict[tuple[object, object], list[Row]] = {}
    for row in seeds:
        groups.setdefault((row["panel"], row["name"]), []).append(row)
    return [
        {
            **rows[0], "kind": "mean", "open": any(row["open"] for row in rows),
            **{key: _geometric([row[key] for row in rows]) for key in ("far", "life")},
            "steps": _steps(rows),
            "which": f"{len(rows)} seed{'' if len(rows) == 1 else 's'}",
        }
        for rows in groups.values()
    ]  # fmt: skip


def _steps(rows: Sequence[Row]) -> str:
    """From the least to the greatest end of the brackets of seeds."""
    low, high = min(number(row, "after") for row in rows), max(number(row, "by") for row in rows)
    return f"{low:g} to {high:g} steps"


def _geometric(values: Sequence[Any]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


def _placed(means: Sequence[Row], others: Sequence[Row], span: tuple[float, float]) -> list[Row]:
    """The means with the side on which each name covers least, panel by panel."""
    placed: list[Row] = []
    for panel in dict.fromkeys(row["panel"] for row in means):
        mine = [row for row in means if row["panel"] == panel]
        every = [*mine, *(row for row in others if row["panel"] == panel)]
        spots = _spots(every, span)
        sizes = [MARK] * len(mine) + [MARK / 2] * (len(every) - len(mine))
        taken = [Box(x - r, y - r, x + r, y + r) for (x, y), r in zip(spots, sizes, strict=True)]
        for row, spot in zip(mine, spots, strict=False):
            side = min(PLACES, key=lambda side: _cost(_box(str(row["name"]), spot, side), taken))
            taken.append(_box(str(row["name"]), spot, side))
            placed.append({**row, "side": side})
    return placed


def _spots(rows: Sequence[Row], span: tuple[float, float]) -> list[tuple[float, float]]:
    """The places of marks in pixels, on the axes of a panel."""
    far = [math.log(float(row["far"])) for row in rows]  # type: ignore[arg-type]
    life = [math.log(float(row.get("life") or span[0])) for row in rows]
    low, high = map(math.log, span)
    width = max(far) - min(far) or 1.0
    across = [ROOM + (WIDE - 2 * ROOM) * (value - min(far)) / width for value in far]
    down = [HIGH * (high - value) / (high - low) for value in life]
    return list(zip(across, down, strict=True))


def _box(name: str, spot: tuple[float, float], side: str) -> Box:
    anchor, dx, dy = PLACES[side]
    width, x, y = LETTER * len(name), spot[0] + dx, spot[1] + dy
    left = {"left": x, "right": x - width, "center": x - width / 2}[anchor]
    return Box(left, y - LINE / 2, left + width, y + LINE / 2)


def _cost(box: Box, taken: Sequence[Box]) -> float:
    """The area that a name would cover, or that would lie outside the panel."""
    inside = Box(0.0, 0.0, WIDE, HIGH)
    whole = (box.right - box.left) * (box.bottom - box.top)
    return sum(box.overlap(other) for other in taken) + 2 * (whole - box.overlap(inside))


def _mark(base: Any, shape: Any, tips: list[Any], *, hollow: bool) -> Any:
    mine = base.transform_filter("datum.open" if hollow else "!datum.open")
    how: dict[str, Any] = {"filled": not hollow, "size": 150, "opacity": 1}
    return mine.mark_point(**how, strokeWidth=2.5 if hollow else 0).encode(
        shape=shape, tooltip=tips
    )


def _name(base: Any, side: str) -> Any:
    """The names on one side of their marks."""
    import altair as alt

    anchor, dx, dy = PLACES[side]
    mine = base.transform_filter(f"datum.side == {side!r}")
    text = mine.mark_text(
        align=anchor, baseline="middle", dx=dx, dy=dy, fontWeight=600, fontSize=12
    )
    return text.encode(text=alt.Text(field="name", type="nominal"), color=alt.value("#1d2329"))


def _chance(panelled: Sequence[tuple[str, Reach]], shown: set[Any]) -> list[Row]:
    """The distances of directions that hold no more than chance."""
    return [
        {"panel": panel, "kind": "chance", "far": one.far, "name": label(one.direction)}
        for panel, one in panelled
        if one.far and not one.has_share and panel in shown
    ]


def _chanceless(x: Axis) -> Any:
    """Ticks at these distances."""
    import altair as alt

    tips = [
        alt.Tooltip(field="name", type="nominal", title="holds no more than chance"),
        alt.Tooltip(field="far", type="quantitative", format=".2%", title="up to"),
    ]
    mine = alt.Chart().transform_filter("datum.kind == 'chance'")
    tick = mine.mark_tick(orient="vertical", thickness=2, size=14, color=GREY)
    return tick.encode(x=_x(x), y=alt.value(HIGH - 7), tooltip=tips)


def _stale(panelled: Sequence[tuple[str, Reach]], lived: bool) -> str:
    """Why there is no map."""
    longest = max((one.longest for _, one in panelled), default=0.0)
    stale = f"No direction went stale within the {longest:g} steps of the run; try later steps."
    return stale if lived else NOTHING


def _words(means: Sequence[Row]) -> str:
    """The map as text."""
    parts = [f"{row['name']} up to {row['far']:.2%}, {row['steps']}" for row in means]
    return f"How far and for how long. {'; '.join(parts)}."
