"""Columns and figures of `frenet steer recommend`."""

from typing import TYPE_CHECKING

from frenet.experiments.experiment import Column, Figure, Row, Rows, number
from frenet.experiments.figures.charts import Axis, Rule, dots, lines
from frenet.experiments.figures.wording import two

if TYPE_CHECKING:
    import altair as alt

NULL, VECTOR = "largest null vector", "contrast vector"


def curve_chart(rows: Rows) -> "alt.LayerChart | alt.FacetChart":
    """P(answer) against the cost on neutral text."""
    table: list[Row] = []
    for row in rows:
        cost: Row = {"cost": row["cost"]}
        change = number(row, "share")
        before = change - number(row, "change")
        ends: Row = {
            name: None if row[f"change_{name}"] is None else before + number(row, f"change_{name}")
            for name in ("low", "high")
        }
        table.append(cost | ends | {"value": change, "series": VECTOR})
        table.append(cost | {"low": None, "high": None, "value": row["null"], "series": NULL})
    limits = [Rule("limit of the cost", number(row, "max_cost"), axis="x") for row in rows[:1]]
    without = [Rule("without a vector", number(row, "before")) for row in rows[:1]]
    return lines(
        table,
        x=Axis("cost", "KL divergence on neutral text (nats per token)"),
        y=Axis("value", "P(positive answer)"),
        rules=[NULL, *without, *limits],
    )


def curve_finding(rows: Rows) -> str:
    """The effect and the cost of the chosen dose, beside the largest null."""
    chosen = [row for row in rows if row["chosen"]]
    if not chosen:
        return ""
    row = chosen[0]
    before, after, null, cost = (
        two(number(row, name)) for name in ("before", "share", "null", "cost")
    )
    return (
        f"Dose {row['dose']:g} moves P(positive answer) from {before} to {after}, the best null "
        f"vector to {null}; neutral text pays {cost} nats per token."
    )


def block_chart(rows: Rows) -> "alt.LayerChart | alt.FacetChart":
    """The best dose within the cost at every block that was tried."""
    best: dict[int, Row] = {}
    for row in rows:
        block = int(number(row, "block"))
        if block not in best or number(row, "share") > number(best[block], "value"):
            name = f"block {block}, dose {number(row, 'dose'):g}"
            best[block] = {"value": row["share"], "block": name}
    without = [Rule("without a vector", number(row, "before")) for row in rows[:1]]
    return dots(
        [best[block] for block in sorted(best)],
        x=Axis("value", "P(positive answer)"),
        row="block",
        interval=None,
        rules=without,
    )


def block_finding(rows: Rows) -> str:
    """The block and the dose that steer most, and the answers without a vector."""
    if not rows:
        return ""
    best = max(rows, key=lambda row: number(row, "share"))
    after, before = (two(number(best, name)) for name in ("share", "before"))
    return (
        f"Block {best['block']} steers most, at dose {number(best, 'dose'):g}: P(positive answer) "
        f"is {after} there, {before} without a vector."
    )


_CONTRAST = Column("contrast", "", "contrast", "key")
_BLOCK = Column("block", "", "0-based block whose output the vector is added to", "key")
_DOSE = Column("dose", "", "length of what is added, over the stream's norm there", "key")
_UNIT = "nats/token"
_LIMIT = Column("max_cost", _UNIT, "limit of the cost", "reference")
_EFFECT = (
    Column("share", "", "mean P(positive answer) with the vector", "measure", "null"),
    Column("before", "", "the same without a vector", "reference"),
    Column("change", "", "the difference", "measure", "none"),
    Column("change_low", "", "lower end of its 95% interval over prompts", "reference"),
    Column("change_high", "", "its upper end", "reference"),
    Column("none", "", "no change", "reference"),
    Column("null", "", "P(positive answer) with the null vector of equal length that steers most "
           "to it, of all draws in both directions", "reference"),
    Column("null_kind", "", "kind of that vector", "key"),
    Column("nulls", "", "how many null vectors there are", "key"),
    Column("lead", "", "share beyond that with the largest null vector", "measure", "none"),
    Column("lead_low", "", "lower end of its 95% interval, paired by prompts", "reference"),
    Column("lead_high", "", "its upper end", "reference"),
    Column("cost", _UNIT, "KL divergence on held-out neutral text, with the vector at every token",
           "measure", "cost_random"),
    Column("cost_low", _UNIT, "lower end of its 95% interval over texts", "reference"),
    Column("cost_high", _UNIT, "its upper end", "reference"),
    Column("cost_random", _UNIT, "the same with a random vector of equal length and the stream's "
           "covariance", "reference"),
    _LIMIT,
    Column("loss_change", _UNIT, "change of the loss on the same text", "measure",
           "loss_change_random"),
    Column("loss_change_low", _UNIT, "lower end of its 95% interval over texts", "reference"),
    Column("loss_change_high", _UNIT, "its upper end", "reference"),
    Column("loss_change_random", _UNIT, "the same with the random vector", "reference"),
)  # fmt: skip
TABLES = {
    "tried": (
        _CONTRAST, _BLOCK, _DOSE,
        Column("share", "", "mean P(positive answer) on the prompts to choose on", "measure",
               "before"),
        Column("before", "", "the same without a vector", "reference"),
        Column("cost", _UNIT, "KL divergence on the neutral text to choose on; empty: not "
               "measured, since that of a larger dose is within the limit", "measure", "max_cost"),
        Column("cost_high", _UNIT, "upper end of its one-sided 95% interval over texts, which "
               "stays below the limit", "reference"),
        _LIMIT,
    ),
    "dose": (
        _CONTRAST, _BLOCK, _DOSE, *_EFFECT,
        Column("chosen", "", "whether this dose was chosen on other prompts", "key"),
    ),
    "advice": (
        _CONTRAST, _BLOCK, _DOSE, *_EFFECT,
        Column("answer", "", "the positive answer", "key"),
        Column("reason", "", "why no dose is advised: null, cost or held-out cost; empty: one is",
               "key"),
        Column("at_edge", "", "whether the dose is the largest that was tried", "key"),
        Column("least_dose", "", "smallest dose that was tried", "key"),
        Column("dose_low", "", "smallest reported dose that beats every null vector within the "
               "cost", "measure", "dose_high"),
        Column("dose_high", "", "the largest one", "reference"),
        Column("served", "", "P(positive answer) with the vector at every token of the prompts",
               "measure", "before"),
        Column("stream_norm", "", "root mean square norm of the stream after the block: dose 1",
               "key"),
        Column("vector_norm", "", "norm of the contrast vector there", "key"),
        Column("kind", "", "of the contrast", "key"),
        Column("prompts", "", "that the model's own answers were read on", "key"),
        Column("accuracy", "", "of the model's own answers", "measure", "chance"),
        Column("separation", "", "of statements: share of pairs of prompts that they put in order",
               "measure", "chance"),
        Column("known_low", "", "lower end of the 95% interval of the separation (of choices: the "
               "accuracy) over prompts", "reference"),
        Column("known_high", "", "its upper end", "reference"),
        Column("chance", "", "of a guess", "reference"),
    ),
    "notes": (Column("note", "", "caveats about the model and the data", "key"),),
}  # fmt: skip
FIGURES = (
    Figure(
        "curve",
        "What does the effect cost?",
        "The positive answer's probability at the advised block, against the cost of the same dose "
        "on neutral text, both on held-out prompts and texts; each point is a dose. Grey: the null "
        "vector of equal length that steers most (labels shuffled, random with the stream's "
        "covariance, other contrasts).",
        "dose",
        curve_chart,
        front=True,
        finds=curve_finding,
    ),
    Figure(
        "blocks",
        "Which block steers most?",
        "The largest probability of the positive answer at a dose within the limit of the cost, on "
        "the prompts to choose on.",
        "tried",
        block_chart,
        finds=block_finding,
    ),
)
