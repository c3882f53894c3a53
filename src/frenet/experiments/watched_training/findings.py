"""What the figures of a watched training show, in a sentence each."""

from collections.abc import Mapping

from frenet.experiments.experiment import Rows, Scalar, number
from frenet.experiments.figures.wording import between, span, two
from frenet.experiments.intervals import select

# The source of a loss that is not of a probe.
TRAINING = "training (Trainer's log)"


def drift_finding(rows: Rows) -> str:
    """What the initial bases hold at the last step, beside control and chance."""
    return _held(
        rows,
        "After {steps} the initial basis holds {held} of what a fresh one holds; without training "
        "{control}, by chance {chance}.",
    )


def prefix_finding(rows: Rows) -> str:
    """What the first steps hold of the displacement at the last step, beside a random walk."""
    last = _last(rows, "captured")
    if not last:
        return ""
    row = last[0]
    ours, walk = (two(number(row, name)) for name in ("captured", "random_walk"))
    return (
        f"The first {row['k']} steps hold {ours} of the displacement after {_steps(last)}; of a "
        f"random walk with equal steps {walk}."
    )


def loss_finding(rows: Rows) -> str:
    """The losses of the probes whose loss falls most and least, from the first look to the last."""
    last = _last([row for row in rows if row["source"] != TRAINING], "loss")
    if not last:
        return ""
    last.sort(key=lambda row: number(row, "loss") - number(row, "loss_0"))
    ends = [last[0], *last[1:][-1:]]
    parts = [
        f"from {two(number(row, 'loss_0'))} to {two(number(row, 'loss'))} on {row['source']}"
        for row in ends
    ]
    which = f" (most and least fall of {len(last)} probes)" if len(last) > 2 else ""
    return f"In {_steps(last)} the loss goes {' and '.join(parts)}, in nats per token{which}."


def order_finding(rows: Rows) -> str:
    """The smallest step size at which the order matters at the last look, beside random steps."""
    last = _last(rows, "onset")
    if not last:
        return ""
    row = min(last, key=lambda row: number(row, "onset"))
    random = row.get("null_onset")
    beside = "" if random is None else f"; for random steps, from {two(float(random))} on"
    return (
        f"After {_steps(last)} the order matters from step size {two(number(row, 'onset'))} on "
        f"({row['pair']}){beside}."
    )


def projection_finding(rows: Rows) -> str:
    """What the initial projections hold at the last step, beside the control; chance is 0."""
    return _held(
        rows,
        "After {steps} the initial projections of rank {rank} hold {held} of what fresh ones hold "
        "above chance; without training {control}.",
    )


def _held(rows: Rows, sentence: str) -> str:
    """A sentence with what old directions hold at the last step; empty if nothing is known."""
    last = _last(rows, "ratio")
    if not last:
        return ""
    spans = {name: _span(last, name) for name in ("control", "chance") if name in last[0]}
    held = between(last, "probe", "ratio")
    return sentence.format(steps=_steps(last), held=held, rank=last[0].get("rank"), **spans)


def _last(rows: Rows, value: str) -> list[Mapping[str, Scalar]]:
    """The rows of the last step after the start with a number in this column."""
    known = [row for row in rows if row.get(value) is not None and number(row, "step") > 0]
    return select(known, step=max((number(row, "step") for row in known), default=None))


def _steps(rows: Rows) -> str:
    count = number(rows[0], "step")
    return f"{count:,.0f} step{'' if count == 1 else 's'}"


def _span(rows: Rows, column: str) -> str:
    return span([number(row, column) for row in rows if row[column] is not None])
