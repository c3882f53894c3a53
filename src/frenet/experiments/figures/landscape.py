"""How far against for how long: directions as marks with their names beside them."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from frenet.experiments.experiment import Reach, Row, number
from frenet.experiments.figures.labels import MARK, PLACES, Box, around, name_at, sides
from frenet.experiments.figures.names import label
from frenet.experiments.figures.parts import Axis, channel, panels, sentence, short, ticks
from frenet.experiments.figures.series import GREY, INK, Series

if TYPE_CHECKING:
    import altair as alt

FAR = "loss follows its slope up to this share of the norm"
LONG = "training steps until half is gone"
# The size of a panel in pixels, for which names are placed.
WIDE, HIGH = 290.0, 250.0
# Where lifetimes of less than a step are drawn; room beside the outer marks in pixels.
LEAST, ROOM = 0.5, 30.0
NOTHING = "No direction has both a radius and a lifetime, so that there is no map."


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
    means = _placed(_means(seeds), [*seeds, *chance], span, ends, shared=shared)
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
        *(name_at(of["mean"], "name", side, alt.value(INK)) for side in PLACES),
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
    made = channel(alt.X, axis._replace(domain=None))
    made.scale = alt.Scale(type="log", nice=False, padding=ROOM)
    made.axis = alt.Axis(format="~%", values=ticks(1e-7, 1e4, dense=short(low, high)), grid=False)
    return made


def _y(axis: Axis) -> "alt.Y":
    import altair as alt

    made = channel(alt.Y, axis)
    made.axis = alt.Axis(format="~g", values=ticks(*(axis.domain or (LEAST, 1e6)), dense=False))
    return made


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


def _placed(
    means: Sequence[Row],
    others: Sequence[Row],
    span: tuple[float, float],
    ends: Iterable[tuple[str, float]],
    *,
    shared: bool,
) -> list[Row]:
    """The means with the side on which each name covers least, panel by panel.

    Args:
        means: the rows of large marks.
        others: those of small marks and ticks.
        span: the range of the vertical axis.
        ends: panels with the last step of their runs, at which a line is drawn.
        shared: whether all panels have the same horizontal axis.
    """
    placed: list[Row] = []
    every = _range([*means, *others])
    for panel in dict.fromkeys(row["panel"] for row in means):
        mine, rest = ([r for r in some if r["panel"] == panel] for some in (means, others))
        across = every if shared else _range([*mine, *rest])
        spots, small = (_spots(some, across, span) for some in (mine, rest))
        last = [Box(0.0, y - 2, WIDE, y + 2) for p, end in ends if p == panel
                for y in (_down(end, span),)]  # fmt: skip
        taken = [*(around(spot, MARK / 2) for spot in small), *last]
        names = [str(row["name"]) for row in mine]
        chosen = sides(names, spots, taken, (WIDE, HIGH))
        placed += [{**row, "side": side} for row, side in zip(mine, chosen, strict=True)]
    return placed


def _range(rows: Sequence[Row]) -> tuple[float, float]:
    far = [float(row["far"]) for row in rows]  # type: ignore[arg-type]
    return min(far), max(far)


def _spots(
    rows: Sequence[Row], across: tuple[float, float], span: tuple[float, float]
) -> list[tuple[float, float]]:
    """The places of marks in pixels, on the axes of a panel."""
    low, width = math.log(across[0]), math.log(across[1] / across[0]) or 1.0
    right = [(math.log(float(row["far"])) - low) / width for row in rows]  # type: ignore[arg-type]
    down = [_down(float(row.get("life") or span[0]), span) for row in rows]
    return [(ROOM + (WIDE - 2 * ROOM) * x, y) for x, y in zip(right, down, strict=True)]


def _down(life: float, span: tuple[float, float]) -> float:
    low, high = map(math.log, span)
    return HIGH * (high - math.log(life)) / (high - low)


def _mark(base: Any, shape: Any, tips: list[Any], *, hollow: bool) -> Any:
    mine = base.transform_filter("datum.open" if hollow else "!datum.open")
    how: dict[str, Any] = {"filled": not hollow, "size": 150, "opacity": 1}
    return mine.mark_point(**how, strokeWidth=2.5 if hollow else 0).encode(
        shape=shape, tooltip=tips
    )


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
