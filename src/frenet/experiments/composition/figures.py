"""The figures of `composition`."""

import math

from frenet.experiments.composition.findings import FULL_SCALE, LINE
from frenet.experiments.composition.tables import ALL, STEPS, VECTORS
from frenet.experiments.experiment import Figure, Row, Rows, Scalar, integer, number
from frenet.experiments.figures.charts import Axis, Rule, dots, heatmap, lines
from frenet.experiments.figures.wording import two
from frenet.experiments.intervals import geometric_over_seeds, over_seeds, select, series_over_seeds

RANDOM = "with a random second one"
BOTH, BEYOND = "both together", "both together, at least"
SINGLES = {"single_first": "the first alone, linear", "single_second": "the second alone, linear"}


def curve_chart(rows: Rows) -> object:
    """Additivity error against the common scale, at every depth."""
    panelled = _panelled(rows, "depth")
    series = {
        VECTORS: (select(panelled, kind=VECTORS), "error"),
        STEPS: (select(panelled, kind=STEPS), "error"),
        RANDOM: (select(panelled, kind=VECTORS), "random"),
    }
    table: list[Row] = [
        {**row, "series": name}
        for name, (mine, column) in series.items()
        for row in over_seeds(mine, by=("panel", "s"), value=column, least=0.0, most=math.inf)
    ]
    return lines(
        table,
        x=Axis("s", "common scale of both displacements"),
        y=Axis("value", "additivity error", domain=(0.0, 2 * LINE)),
        colour="series",
        facet="panel",
        rules=[RANDOM, Rule("line", LINE)],
    )


def curve_finding(rows: Rows) -> str:
    """The error of task vectors at full length, beside that with a random second one."""
    full = select(rows, kind=VECTORS, s=FULL_SCALE)
    error, random = (over_seeds(full, by=(), value=name) for name in ("error", "random"))
    if not error or not random:
        return ""
    return (
        f"At full length the shifts of two task vectors miss their sum by "
        f"{two(number(error[0], 'value'))} of it, with a random second one by "
        f"{two(number(random[0], 'value'))}."
    )


def radius_chart(rows: Rows) -> object:
    """The composition radius of every pair and task, beside what each displacement allows."""
    table: list[Row] = []
    named = [
        {**row, "pair": f"{row['first']} + {row['second']},\non {row['task']}"}
        for row in _panelled(rows, "kind")
    ]
    beyond = {(r["panel"], r["pair"]) for r in named if r["radius_high"] is None}
    for column, series in {"at": BOTH, "random_at": RANDOM, **SINGLES}.items():
        placed: list[Row] = [{**r, **_middles(r)} for r in named]
        for row in geometric_over_seeds(placed, by=("panel", "pair"), value=column):
            shown = series
            if series == BOTH and (row["panel"], row["pair"]) in beyond:
                shown = BEYOND
            table.append({**row, "series": shown})
    return dots(
        table,
        x=Axis("value", "scale, in lengths of the displacements", log=True),
        row=Axis("pair", "pair, and task whose loss is measured"),
        colour="series",
        facet="panel",
        rules=[RANDOM],
    )


def radius_finding(rows: Rows) -> str:
    """The mean composition radius of task vectors, beside that with a random second one."""
    mine = select(rows, kind=VECTORS)
    placed: list[Row] = [{**row, **_middles(dict(row))} for row in mine]
    both, random = (geometric_over_seeds(placed, by=(), value=n) for n in ("at", "random_at"))
    if not both or not random:
        return ""
    # A border beyond the largest scale counts as that scale.
    ours, chance = (
        ("at least " if any(row[end] is None for row in mine) else "")
        + two(number(means[0], "value"))
        for means, end in ((both, "radius_high"), (random, "random_high"))
    )
    return (
        f"Two task vectors compose up to {ours} times their lengths, one with a random second one "
        f"up to {chance} times (geometric means over pairs and tasks)."
    )


def _middles(row: Row) -> Row:
    """The scales to draw for two brackets."""
    return {
        "at": _middle(row["radius_low"], row["radius_high"], number(row, "limit")),
        "random_at": _middle(row["random_low"], row["random_high"], number(row, "limit")),
    }


def _middle(low: object, high: object, limit: float) -> float | None:
    """Between the ends on a logarithmic axis; the limit without a crossing, the end at a first."""
    assert isinstance(low, int | float)
    if high is None:
        return limit
    assert isinstance(high, int | float)
    return math.sqrt(low * high) if low > 0 else float(high)


def block_chart(rows: Rows) -> object:
    """Which blocks hold the interaction: shares of its absolute sum over blocks."""
    panelled = _panelled(select(_shares(rows)), "")
    values = {"interaction": "measured", "predicted": "second order", "random": RANDOM}
    return dots(
        series_over_seeds(panelled, by=("panel", "block"), values=values, least=0.0),
        x=Axis("value", "share of the interaction", domain=(0.0, 1.0)),
        row=Axis("block", "block that the second one is restricted to"),
        colour="series",
        facet="panel",
        rules=[RANDOM],
    )


def block_finding(rows: Rows) -> str:
    """The block with the largest share, and the share if all were equal."""
    means = over_seeds(_shares(rows), by=("block",), value="interaction")
    if len(means) < 2:
        return ""
    most = max(means, key=lambda row: number(row, "value"))
    return (
        f"The largest share of the interaction, {two(number(most, 'value'))}, is in "
        f"{most['block']}; equal shares are {two(1 / len(means))}."
    )


def _shares(rows: Rows) -> list[Row]:
    """|interaction| of every block over the sum of all blocks, for each pair and task.

    That with a random displacement is in the same unit, so that it shows the size of chance.
    """
    keys = ("seed", "space", "first", "second", "task")
    found: list[Row] = []
    parts = [row for row in rows if row["block"] != ALL]
    for case in dict.fromkeys(tuple(row[key] for key in keys) for row in parts):
        mine = select(parts, **dict(zip(keys, case, strict=True)))
        measured, predicted = _absolute(mine, "interaction"), _absolute(mine, "predicted")
        sums = {"interaction": measured, "predicted": predicted, "random": measured}
        found += [{**row, **{n: _over(row[n], whole) for n, whole in sums.items()}} for row in mine]
    return found


def _absolute(rows: Rows, name: str) -> float:
    return sum(abs(number(row, name)) for row in rows if row[name] is not None)


def _over(value: Scalar, whole: float) -> float | None:
    """The size of a value as a share; None if one of them is not known."""
    return abs(value) / whole if isinstance(value, int | float) and whole > 0 else None


def map_chart(rows: Rows) -> object:
    """Loss of both tasks over both scales, for the pair that interacts most, at the first seed."""
    first = select(rows, seed=min(integer(row, "seed") for row in rows), kind=VECTORS)
    pairs = dict.fromkeys((row["space"], row["first"], row["second"]) for row in first)
    space, a, b = max(pairs, key=lambda pair: _interaction(first, *pair))
    mine = select(first, space=space, first=a, second=b)
    table: list[Row] = [
        {"x": f"{x:g}", "y": f"{y:g}", "value": _kept(mine, x, y)}
        for y in sorted({number(row, "y") for row in mine}, reverse=True)
        for x in sorted({number(row, "x") for row in mine})
    ]
    return heatmap(
        table,
        x=Axis("x", f"scale of the vector of {a} ({space})"),
        y=Axis("y", f"scale of the vector of {b}"),
        value=Axis("value", "loss over the loss at the start, mean of both tasks"),
    )


def _kept(rows: Rows, x: float, y: float) -> float | None:
    """The loss at a place over that at the start, averaged over tasks."""
    ratios = [
        number(row, "loss") / number(row, "start") if row["loss"] is not None else None
        for row in select(rows, x=x, y=y)
    ]
    known = [ratio for ratio in ratios if ratio is not None]
    return sum(known) / len(known) if len(known) == len(ratios) and known else None


def _interaction(rows: Rows, space: object, a: object, b: object) -> float:
    """How much a pair interacts at full scale, in the unit of the map."""
    mine = [row for row in rows if (row["space"], row["first"], row["second"]) == (space, a, b)]
    ends = ((FULL_SCALE, FULL_SCALE), (FULL_SCALE, 0.0), (0.0, FULL_SCALE), (0.0, 0.0))
    both, first, second, none = (_kept(mine, *place) for place in ends)
    if both is None or first is None or second is None or none is None:
        return -1.0
    return abs(both - first - second + none)


def _panelled(rows: Rows, column: str) -> list[Row]:
    """Rows with a panel for each value of a column and, if there are several, each space."""
    several = len({row["space"] for row in rows}) > 1

    def panel(row: Row) -> str:
        parts = [str(row[column])] if column else []
        return ", ".join([*parts, *([str(row["space"])] if several or not parts else [])])

    return [{**row, "panel": panel(dict(row))} for row in rows]


FIGURES = (
    Figure(
        "curve",
        "Do shifts of activations add up?",
        "Distance of the shift by both displacements from the sum of the two shifts, relative to "
        "that sum, at the last token of the prompts of both tasks. At scale 1 a task vector has "
        "its full length; first steps are as long.",
        "curve",
        curve_chart,
        front=True,
        finds=curve_finding,
    ),
    Figure(
        "radius",
        "How far can both be scaled together?",
        "Common scale up to which the interaction is at most a fifth of the two changes alone, on "
        "the loss of each task, beside the scales up to which the loss is linear along each one. "
        "Means over seeds on a logarithmic scale; where the border lies between two scales, "
        "their middle; what composes at all scales is drawn at the largest.",
        "radius",
        radius_chart,
        finds=radius_finding,
    ),
    Figure(
        "blocks",
        "Where do they meet?",
        "Size of the interaction with the second vector restricted to one block at a time, as a "
        "share of the sum over blocks, averaged over pairs and tasks; the same by the second "
        "order. With a random second one, over the same sum.",
        "block",
        block_chart,
        finds=block_finding,
    ),
    Figure(
        "map",
        "What do both scales do together?",
        "Mean of both tasks' losses over their losses at the start, for the pair with the largest "
        "interaction at the first seed. Below 1 the vectors help; (1, 1) is the plain sum.",
        "map",
        map_chart,
        more=True,
    ),
)
