"""Columns and figures of `frenet pair`."""

import itertools
from typing import TYPE_CHECKING, Any

from frenet.experiments.experiment import Column, Figure, Row, Rows, number
from frenet.experiments.figures.charts import Axis, Rule, dots, lines
from frenet.experiments.figures.parts import channel, in_words, panels, slim, tooltip
from frenet.experiments.figures.series import GREY, HEAT, PALETTE
from frenet.experiments.figures.wording import between, two
from frenet.experiments.intervals import select
from frenet.experiments.setup import columns
from frenet.experiments.setup.check import CHECK, LOSSES

if TYPE_CHECKING:
    import altair as alt

# The second order is drawn up to this many times the largest interaction.
SHOWN = 2.0
ZERO = Rule("nothing", 0.0)
HELD_OUT, USUAL = "on held-out examples", "1.0 and 1.0"


def map_chart(rows: Rows) -> "alt.LayerChart | alt.FacetChart":
    """The change of each task's loss over both coefficients, with the box of both single radii."""
    import altair as alt

    table, ends = _cells_and_boxes(rows)
    x, y = Axis("x", "coefficient of A", domain=ends), Axis("y", "coefficient of B", domain=ends)
    value = Axis("change", "change of the loss in nats per token")
    worst = max((abs(number(row, "change")) for row in table if "change" in row), default=1.0)
    shade = alt.Scale(domain=[0, worst], range=[0.02, 1], clamp=True)
    place = {
        "x": channel(alt.X, x, field="left"), "x2": alt.X2(field="right"),
        "y": channel(alt.Y, y, field="below"), "y2": alt.Y2(field="above"),
        "tooltip": tooltip((x, y, value), facet="task", rows=table),
    }  # fmt: skip
    # Two colours by their opacity, since colours of the page cannot be mixed.
    layers: list[Any] = [
        alt.Chart()
        .transform_filter(f"isValid(datum.change) && {sign} * datum.change >= 0")
        .transform_calculate(size="abs(datum.change)")
        .mark_rect(color=colour)
        .encode(**place, opacity=alt.Opacity("size:Q", scale=shade, legend=None))
        for sign, colour in ((-1, HEAT), (1, PALETTE[1]))
    ]
    figure = alt.Text(field="change", type="quantitative", format="+.2f")
    middle = alt.Chart().transform_filter("isValid(datum.change)").mark_text(fontSize=8)
    layers.append(middle.encode(x=channel(alt.X, x), y=channel(alt.Y, y), text=figure))
    if any("box_x" in row for row in table):
        frame = alt.Chart().transform_filter("isValid(datum.box_x)")
        frame = frame.mark_rect(filled=False, stroke=GREY, strokeWidth=2, strokeDash=[6, 4])
        corner = {"x": channel(alt.X, x, field="box_0"), "y": channel(alt.Y, y, field="box_0")}
        layers.append(frame.encode(**corner, x2=alt.X2(field="box_x"), y2=alt.Y2(field="box_y")))
    words = in_words([row for row in table if "change" in row], (x, value), None)
    drawn = slim(table, dict.fromkeys(key for row in table for key in row))
    return panels(layers, drawn, facet="task", height=280, words=words)


def _cells_and_boxes(rows: Rows) -> tuple[list[Row], tuple[float, float]]:
    """The corners of every cell of the map and of every box, and the ends of both axes."""
    table: list[Row] = []
    steps = sorted({number(row, "x") for row in select(rows, kind="loss")})
    half = min((b - a for a, b in itertools.pairwise(steps)), default=1.0) / 2
    least, most = min(steps, default=0.0) - half, max(steps, default=1.0) + half
    for row in select(rows, kind="loss"):
        x, y = number(row, "x"), number(row, "y")
        cell: Row = {"left": x - half, "right": x + half, "below": y - half, "above": y + half}
        change = number(row, "loss") - number(row, "without")
        table.append({"task": row["task"], "x": x, "y": y, "change": change, **cell})
    for row in select(rows, kind="box"):
        # A radius beyond the map, or an unknown one, leaves its side of the box open.
        x, y = (
            most if (end := row.get(key)) is None else min(most, float(end)) for key in ("x", "y")
        )
        table.append({"task": row["task"], "box_x": x, "box_y": y, "box_0": 0.0})
    return table, (least, most)


def map_finding(rows: Rows) -> str:
    """Where the mean change of the losses is lowest, and that of the plain sum."""
    changes: dict[tuple[float, float], list[float]] = {}
    for row in select(rows, kind="loss"):
        place = number(row, "x"), number(row, "y")
        changes.setdefault(place, []).append(number(row, "loss") - number(row, "without"))
    means = {place: sum(some) / len(some) for place, some in changes.items()}
    if (1.0, 1.0) not in means:
        return ""
    x, y = min(means, key=means.__getitem__)
    best, plain = (f"{means[place]:+.2f}" for place in ((x, y), (1.0, 1.0)))
    return (
        f"Of the coefficients tried, {x:g} for A and {y:g} for B lower the mean loss most ({best} "
        f"nats per token); with the plain sum it changes by {plain}."
    )


def interaction_chart(rows: Rows) -> "alt.LayerChart | alt.FacetChart":
    """The interaction of both directions along a common scale, with its second order."""
    table: list[Row] = []
    reach = {
        task: SHOWN * max(abs(number(row, "interaction")) for row in select(rows, task=task))
        for task in dict.fromkeys(row["task"] for row in rows)
    }
    for row in rows:
        bare: Row = {"task": row["task"], "s": row["s"]}
        ends: Row = {"low": row["low"], "high": row["high"]}
        table.append(bare | ends | {"value": row["interaction"], "series": "measured"})
        second = row["second_order"]
        if second is not None and abs(float(second)) <= reach[row["task"]]:
            open_: Row = {"low": None, "high": None}
            table.append(bare | open_ | {"value": second, "series": "second order"})
    return lines(
        table,
        x=Axis("s", "common scale of A and B"),
        y=Axis("value", "interaction, nats per token", apart=True),
        facet="task",
        rules=["second order", ZERO],
    )


def interaction_finding(rows: Rows) -> str:
    """The interaction at full length as a share, and the share that ends the radius."""
    full = [row for row in select(rows, s=1.0) if row["share"] is not None]
    if not full:
        return ""
    return (
        f"At full length the interaction is {between(full, 'task', 'share')} times as large as the "
        f"two changes alone; up to {two(number(full[0], 'eps'))} they count as adding up."
    )


def merge_chart(rows: Rows) -> "alt.LayerChart | alt.FacetChart":
    """The score of every merge on held-out examples."""
    table = [{**row, "value": row["score"]} for row in rows if row.get("score") is not None]
    unit = str(table[0]["unit"]) if table else "score"
    usual = [Rule(USUAL, number(table[0], "at_whole"))] if table else []
    return dots(table, x=Axis("value", f"{unit}, {HELD_OUT}"), row="merge", rules=usual)


def merge_finding(rows: Rows) -> str:
    """The score of the merge that was chosen on other examples, and that of the plain sum."""
    chosen = [row for row in rows if row.get("chosen") and row.get("score") is not None]
    if not chosen:
        return ""
    row = chosen[0]
    return (
        f"“{row['merge']}”, chosen on other examples, has a {row['unit']} of "
        f"{two(number(row, 'score'))}; the plain sum has {two(number(row, 'at_whole'))}."
    )


def block_chart(rows: Rows) -> "alt.LayerChart | alt.FacetChart":
    """The interaction of one direction with the part of the other in each block."""
    table = [{**row, "value": row["interaction"]} for row in rows]
    return dots(
        table,
        x=Axis("value", "interaction, nats per token"),
        row="block",
        colour="task",
        rules=[ZERO],
    )


def block_finding(rows: Rows) -> str:
    """The largest interaction with the part in one block, and that of equal parts."""
    if not rows:
        return ""
    most = max(rows, key=lambda row: abs(number(row, "interaction")))
    measured, even = (f"{number(most, name):+.2g}" for name in ("interaction", "even"))
    return (
        f"They interact most in {most['block']}, on {most['task']}: {measured} nats per token; "
        f"equal parts of the whole interaction would be {even}."
    )


_UNIT, _OWN = "nats/token", Column("own", "", "direction of this task", "key")
_OTHER = Column("other", "", "the other direction", "key")
_SIDES = (("a", "A"), ("b", "B"))
TABLES = {
    "check": (columns.TASK, _OWN, _OTHER, *CHECK, *LOSSES),
    "vectors": (
        Column("a", "", "direction A", "key"),
        Column("b", "", "direction B", "key"),
        Column("cosine", "", "between both, over all weights", "measure", "chance"),
        Column("chance", "", "1 / sqrt(d), of random directions", "reference"),
        Column("norm_a", "2-norm", "length of A", "key"),
        Column("norm_b", "2-norm", "length of B", "key"),
    ),
    "losses": (
        columns.TASK, _OWN, _OTHER,
        Column("without", _UNIT, "loss of the model as it is", "reference"),
        Column("with_own", _UNIT, "with its own direction", "measure", "without"),
        Column("with_other", _UNIT, "with the other direction", "measure", "without"),
        Column("with_both", _UNIT, "with both", "measure", "with_random"),
        Column("with_random", _UNIT, "with its own and a random direction like the other, of equal "
               "norm in every tensor", "reference"),
        Column("harm", _UNIT, "change by the other direction alone", "measure", "no_harm"),
        Column("harm_low", _UNIT, "lower end of its 95% interval over examples", "reference"),
        Column("harm_high", _UNIT, "its upper end", "reference"),
        Column("no_harm", _UNIT, "no change", "reference"),
    ),
    "kept": (
        columns.TASK, _OWN, _OTHER,
        Column("gain", _UNIT, "loss that its own direction takes off", "measure", "no_gain"),
        Column("gain_low", _UNIT, "lower end of its 95% interval over examples", "reference"),
        Column("gain_high", _UNIT, "its upper end", "reference"),
        Column("no_gain", _UNIT, "no gain", "reference"),
        Column("kept", "", "share of the gain that the sum keeps; empty: its own direction takes "
               "less than a tenth off the loss", "measure", "whole"),
        Column("kept_low", "", "lower end of its 95% interval over examples", "reference"),
        Column("kept_high", "", "its upper end", "reference"),
        Column("whole", "", "nothing lost", "reference"),
        Column("kept_random", "", "the same with a random direction in place of the other",
               "reference"),
        Column("transfer", "", "gain by the other direction alone, as a share", "measure", "whole"),
    ),
    "scale": (
        columns.TASK,
        Column("directions", "", "the direction, or both at a common scale", "key"),
        Column("kind", "", "own or other: one direction alone, along which the loss is linear; "
               "both: their changes add up; random: the same with a random direction", "key"),
        Column("times", "", "radius, in lengths of the directions; empty: only its bracket is "
               "known", "measure", "limit"),
        Column("times_low", "", "the last scale inside", "reference"),
        Column("times_high", "", "the first one outside; empty: beyond the limit", "reference"),
        Column("low", "", "lower end of its 95% interval over examples", "reference"),
        Column("high", "", "its upper end; empty: beyond the limit", "reference"),
        Column("unbounded", "", "whether it holds as far as was looked", "key"),
        Column("limit", "", "largest scale that was looked at", "reference"),
        Column("eps", "", "allowed relative deviation", "reference"),
    ),
    "interaction": (
        columns.TASK,
        Column("s", "", "common scale of both directions", "key"),
        Column("interaction", _UNIT, "loss with both, beyond the sum of the two changes alone",
               "measure", "none"),
        Column("low", _UNIT, "lower end of its 95% interval over examples", "reference"),
        Column("high", _UNIT, "its upper end", "reference"),
        Column("none", _UNIT, "both changes add up", "reference"),
        Column("second_order", _UNIT, "s^2 a^T H b; empty: no Hessian product", "reference"),
        Column("share", "", "size of the interaction, over those of both changes alone", "measure",
               "eps"),
        Column("eps", "", "the share that ends the composition radius", "reference"),
        Column("first", _UNIT, "change by the task's own direction", "reference"),
        Column("second", _UNIT, "change by the other one", "reference"),
        Column("both", _UNIT, "change by both", "measure", "none"),
    ),
    "map": (
        columns.TASK,
        Column("kind", "", "loss: a pair of coefficients; box: the single radii of A and B on this "
               "task, in their lengths", "key"),
        Column("x", "", "coefficient of A", "key"),
        Column("y", "", "coefficient of B", "key"),
        Column("loss", _UNIT, "on the examples to choose on", "measure", "without"),
        Column("without", _UNIT, "without a change", "reference"),
        Column("kept", "", "share of the task's gain", "measure", "whole"),
        Column("whole", "", "nothing lost", "reference"),
    ),
    "block": (
        columns.TASK, _OWN, _OTHER,
        Column("block", "", "where the other direction is added, and nowhere else", "key"),
        Column("interaction", _UNIT, "of the task's own direction with that part, at full length, "
               "on the examples to choose on", "measure", "even"),
        Column("low", _UNIT, "lower end of its 95% interval over examples", "reference"),
        Column("high", _UNIT, "its upper end", "reference"),
        Column("even", _UNIT, "interaction of both whole directions, over the number of blocks",
               "reference"),
        Column("second_order", _UNIT, "a^T H b of that part; empty: no Hessian product",
               "reference"),
        Column("whole", _UNIT, "interaction of both whole directions", "reference"),
    ),
    "left_out": (
        columns.TASK, _OWN, _OTHER,
        Column("what", "", "direction without its part in the blocks, or both", "key"),
        Column("blocks", "", "in which both interact most", "key"),
        Column("loss", _UNIT, "with the rest of both", "measure", "with_both"),
        Column("with_both", _UNIT, "with both whole", "reference"),
        Column("change", _UNIT, "the difference", "measure", "no_change"),
        Column("change_low", _UNIT, "lower end of its 95% interval over examples", "reference"),
        Column("change_high", _UNIT, "its upper end", "reference"),
        Column("no_change", _UNIT, "no difference", "reference"),
        Column("kept", "", "share of the task's gain", "measure", "kept_both"),
        Column("kept_both", "", "with both whole", "reference"),
        Column("chosen", "", "best of the three on the examples to choose on", "key"),
    ),
    "order": (
        Column("first", "", "one task", "key"),
        Column("second", "", "the other task", "key"),
        Column("kappa", "", "norm of the Lie bracket over that of both gradients together: the "
               "distance of both orders at step size 1, over the length of the step, to leading "
               "order", "measure", "rounding"),
        Column("rounding", "", "what rounding alone may give", "reference"),
        Column("onset", "", "step size from which on two orders end 10% of their step apart",
               "measure", "least_step"),
        Column("least_step", "", "step size below which rounding hides the difference",
               "reference"),
        Column("step", "", "length of both steps at the onset, over that of A + B", "measure",
               "whole"),
        Column("whole", "", "as long as A + B", "reference"),
        Column("length", "2-norm", "of A + B", "key"),
        Column("eta", "", "step size of the measured steps", "reference"),
        Column("measured", "", "distance of both orders there, over the length of the step",
               "measure", "predicted"),
        Column("predicted", "", "the same by the Lie bracket", "reference"),
        Column("cosine", "", "of the measured difference with the Lie bracket", "measure",
               "aligned"),
        Column("aligned", "", "the same direction", "reference"),
        Column("why", "", "why it is not known", "key"),
    ),
    "coefficient": (
        Column("block", "", "where the coefficients hold", "key"),
        Column("a", "", "coefficient of A", "measure", "usual"),
        Column("b", "", "coefficient of B", "measure", "usual"),
        Column("usual", "", "the plain sum", "reference"),
    ),
    "merge": (
        Column("merge", "", "way to merge", "key"),
        Column("kind", "", "the way without its settings", "key"),
        Column("a", "", "coefficient of A; empty: one per block", "key"),
        Column("b", "", "coefficient of B", "key"),
        Column("density", "", "share of the entries that are kept", "key"),
        Column("rank", "", "of the adapter that peft makes", "key"),
        Column("error", "", "of peft's kind at density 1: distance from the exact change (of "
               "ties_svd and dare_ties_svd: of the first adapter with itself, from that adapter)",
               "measure", "exact"),
        Column("exact", "", "no distance", "reference"),
        Column("selected", "", "score on the second half of the examples to choose on", "measure",
               "none"),
        Column("score", "", "on held-out examples: mean share of both gains, or minus the mean "
               "loss; larger is better", "measure", "at_whole"),
        Column("low", "", "lower end of its 95% interval over examples", "reference"),
        Column("high", "", "its upper end", "reference"),
        Column("none", "", "a score without a gain", "reference"),
        Column("at_whole", "", "score of the plain sum", "reference"),
        Column("at_average", "", "score of the plain average", "reference"),
        Column("over_whole", "", "score beyond that of the plain sum", "measure", "none"),
        Column("over_whole_low", "", "lower end of its 95% interval, paired by examples",
               "reference"),
        Column("over_whole_high", "", "its upper end", "reference"),
        Column("over_average", "", "score beyond that of the plain average", "measure", "none"),
        Column("over_average_low", "", "lower end of its 95% interval, paired by examples",
               "reference"),
        Column("over_average_high", "", "its upper end", "reference"),
        Column("unit", "", "of the score", "key"),
        *(
            column
            for short, side in _SIDES
            for column in (
                Column(f"loss_{short}", _UNIT, f"of the task of {side}", "measure",
                       f"without_{short}"),
                Column(f"without_{short}", _UNIT, "the same without a change", "reference"),
                Column(f"kept_{short}", "", f"share of the gain of the task of {side}", "measure",
                       "none"),
            )
        ),
        Column("chosen", "", "best of all on the examples to choose on", "key"),
        Column("left_out", "", "why there is no score", "key"),
    ),
    "notes": (Column("note", "", "caveats about the model, the directions and the data", "key"),),
}  # fmt: skip

FIGURES = (
    Figure(
        "map",
        "What do both coefficients do together?",
        "Change of each task's loss where A and B are added with these coefficients: blue is "
        "lower than without them, orange is higher. The dashed box holds the coefficients for "
        "which each direction alone is linear within the allowed deviation on this task; a side at "
        "the frame is open. If both changes added up, every cell would be the sum of its two cells "
        "on the axes. Measured on the examples on which coefficients are chosen.",
        "map",
        map_chart,
        front=True,
        finds=map_finding,
    ),
    Figure(
        "interaction",
        "How much do both directions interact?",
        "The loss with both directions beyond the sum of the two changes alone, against their "
        "common scale. Above 0, the sum is worse than both changes suggest. The grey line is the "
        "second order, s^2 a^T H b, as far as it stays near. Intervals are over held-out examples.",
        "interaction",
        interaction_chart,
        finds=interaction_finding,
    ),
    Figure(
        "merge",
        "Which way to merge keeps most?",
        "Score on held-out examples: the mean share of both gains that a merge keeps. "
        "Coefficients, densities and weights were chosen on other examples. The line is the plain "
        "sum.",
        "merge",
        merge_chart,
        finds=merge_finding,
    ),
    Figure(
        "block",
        "In which blocks do they interact?",
        "Interaction of the direction of each task with the part of the other one in a single "
        "block. Intervals are over the examples to choose on.",
        "block",
        block_chart,
        finds=block_finding,
    ),
)
