"""What the rows of `frenet pair` say, in sentences."""

from collections.abc import Iterator, Mapping

from frenet._errors import UsageError
from frenet.experiments.experiment import Answer, Row, Rows, Scalar, number
from frenet.experiments.intervals import select
from frenet.experiments.setup.check import check_sentence

# The two merges that every other one is compared with.
WHOLE, AVERAGE = "1.0 and 1.0", "average"
# What a merge is judged by.
SHARE, LOSS = "share of the gains", "minus nats/token"
KEYS: Row = {}


def sentences(rows: Rows) -> list[Answer]:
    """How the tasks are read, then the answers, the losses first and what to do last."""
    parts = (_checks, _losses, _scales, _kept, _blocks, _order, _merge)
    return [answer for part in parts for answer in part(rows)]


def _checks(rows: Rows) -> Iterator[Answer]:
    """How both tasks are read."""
    for row in select(rows, table="check"):
        sentence = check_sentence(row, check_losses(row))
        yield Answer(f"check, {row['task']}", KEYS, sentence)


def check_losses(row: Mapping[str, Scalar]) -> list[tuple[str, float]]:
    """The losses of a row of the table check, with their words."""
    return [("without", number(row, "without")), (f"with {row['own']}", number(row, "with"))]


def _losses(rows: Rows) -> Iterator[Answer]:
    """Both tasks without, with each, and with both directions."""
    for row in select(rows, table="losses"):
        own, other = row["own"], row["other"]
        at = {name: f"{number(row, name):.3g}" for name in
              ("without", "with_own", "with_other", "with_both", "with_random")}  # fmt: skip
        said = (
            f"loss {at['without']} without, {at['with_own']} with {own}, {at['with_other']} with "
            f"{other}, {at['with_both']} with both ({at['with_random']} with {own} and a random "
            "direction), in nats per token"
        )
        if number(row, "harm_low") > 0:
            change = _interval(row, "harm", "+.2g")
            said += f"; {other} harms this task ({change})"
        yield Answer(str(row["task"]), KEYS, said)


def _scales(rows: Rows) -> Iterator[Answer]:
    """How far both can be scaled together, beside each alone and a random one."""
    found = select(rows, table="scale")
    for task in dict.fromkeys(str(row["task"]) for row in found):
        of = {str(row["kind"]): row for row in select(found, task=task)}
        if "both" not in of:
            continue
        both = of["both"]
        said = (
            f"{both['directions']} add up within {number(both, 'eps'):.0%} {_far(both)} of their "
            "lengths"
        )
        if "random" in of:
            said += f" (with a random direction in place of the other: {_far(of['random'])})"
        alone = [f"{of[kind]['directions']} {_far(of[kind])}" for kind in ("own", "other")
                 if kind in of]  # fmt: skip
        if alone:
            said += f"; alone linear: {', '.join(alone)}"
        yield Answer(f"how far together, {task}", KEYS, said)


def _far(row: Mapping[str, Scalar]) -> str:
    """A radius with its interval."""
    low = f"{number(row, 'low'):.2g}"
    high = "more" if row["high"] is None else f"{number(row, 'high'):.2g}"
    if row["unbounded"]:
        return f"up to at least {number(row, 'times_low'):.2g} [{low}, {high}]"
    if row["times"] is not None:
        return f"up to {number(row, 'times'):.2g} [{low}, {high}]"
    below, above = number(row, "times_low"), number(row, "times_high")
    if below == 0:
        return f"up to less than {above:.2g} [{low}, {high}]"
    return f"up to between {below:.2g} and {above:.2g} [{low}, {high}]"


def _kept(rows: Rows) -> Iterator[Answer]:
    """How much of each gain the sum keeps."""
    for row in select(rows, table="kept"):
        own, other = row["own"], row["other"]
        if row.get("kept") is None:
            said = (
                f"{own} takes {number(row, 'gain'):.2g} nats per token off it, less than a tenth "
                "of its loss: there is no gain to keep"
            )
        else:
            said = (
                f"the sum keeps {_percent(row, 'kept')} of the gain of {own} "
                f"[{_percent(row, 'kept_low')}, {_percent(row, 'kept_high')}]; with a random "
                f"direction in place of {other} it is {_percent(row, 'kept_random')}; {other} "
                f"alone gains {_percent(row, 'transfer')}"
            )
        yield Answer(f"kept, {row['task']}", KEYS, said)


def _blocks(rows: Rows) -> Iterator[Answer]:
    """Where both interact most, and what leaving those blocks out restores."""
    left = select(rows, table="left_out", chosen=True)
    if not select(rows, table="block"):
        return
    if not left:
        yield Answer("blocks", KEYS, "in no block does one direction harm what the other gains")
        return
    what = left[0]["what"]
    who = "either" if what == "both" else what
    parts = []
    for row in left:
        if row.get("kept") is not None:
            now, before = _percent(row, "kept"), _percent(row, "kept_both")
            parts.append(f"{row['task']} keeps {now} of its gain instead of {before}")
        else:
            now, before = (f"{number(row, name):.3g}" for name in ("loss", "with_both"))
            parts.append(f"the loss of {row['task']} is {now} instead of {before}")
    yield Answer(
        "blocks", KEYS,
        f"both interact most in {left[0]['blocks']}; without {who} there, {' and '.join(parts)}",
    )  # fmt: skip


def _order(rows: Rows) -> Iterator[Answer]:
    """Whether the order of training matters, and from which step size on."""
    for row in select(rows, table="order"):
        tasks = f"{row['first']} and {row['second']}"
        if row.get("why"):
            said = f"not known: {row['why']}"
        elif row["onset"] is None:
            said = f"to leading order it does not matter for gradient steps on {tasks}"
        else:
            said = (
                f"gradient steps on {tasks} end 10% of their length apart from step size "
                f"{number(row, 'onset'):.2g} on, where both steps are {number(row, 'step'):.2g} "
                "times as long as the sum of both directions; below, the order hardly matters"
            )
            if row.get("measured") is not None:
                said += (
                    f" (at {number(row, 'eta'):.2g}: {number(row, 'measured'):.1%} measured, "
                    f"{number(row, 'predicted'):.1%} predicted)"
                )
        yield Answer("order of training", KEYS, said)


def _merge(rows: Rows) -> Iterator[Answer]:
    """Which merge to take."""
    found = select(rows, table="merge", chosen=True)
    if not found:
        return
    row = found[0]
    said = f"chosen: {_way(row)}, {_score(row, 'score')} {_ends(row)} on held-out examples"
    said += f"; 1.0 and 1.0: {_score(row, 'at_whole')}, the average: {_score(row, 'at_average')}"
    if row["kind"] == WHOLE:
        said += "; none is shown to beat 1.0 and 1.0"
    elif number(row, "over_whole_low") <= 0:
        over = _interval(row, "over_whole", "+.2g")
        said += f"; none is shown to beat 1.0 and 1.0 (this one by {over})"
    else:
        said += f"; it beats 1.0 and 1.0 by {_interval(row, 'over_whole', '+.2g')}"
        over = _interval(row, "over_average", "+.2g")
        if number(row, "over_average_low") > 0:
            said += f" and the average by {over}"
        elif row["kind"] != AVERAGE:
            said += f" and is not shown to beat the average ({over})"
    yield Answer("merge", KEYS, said)


def advised(rows: Rows) -> Mapping[str, Scalar]:
    """The row of the merge to take: the chosen one if it is shown to beat the plain sum, else that.

    Raises:
        ValueError: the rows have no merge.
    """
    found = select(rows, table="merge", chosen=True)
    if not found:
        raise UsageError("no merge was measured, so there is none to take")
    if number(found[0], "over_whole_low") > 0:
        return found[0]
    return select(rows, table="merge", kind=WHOLE)[0]


def _way(row: Mapping[str, Scalar]) -> str:
    """A merge with its coefficients."""
    if row.get("a") is None:
        return f"{row['merge']}"
    return f"{row['merge']} ({number(row, 'a'):g} and {number(row, 'b'):g})"


def _score(row: Mapping[str, Scalar], name: str) -> str:
    """A score in words."""
    if row["unit"] == SHARE:
        return f"{_percent(row, name)} of the gains"
    return f"a mean loss of {-number(row, name):.3g}"


def _ends(row: Mapping[str, Scalar]) -> str:
    """The interval of a score; a loss is minus its score, so that the ends change places."""
    if row["unit"] == SHARE:
        return f"[{_percent(row, 'low')}, {_percent(row, 'high')}]"
    return f"[{-number(row, 'high'):.3g}, {-number(row, 'low'):.3g}]"


def _percent(row: Mapping[str, Scalar], name: str) -> str:
    return f"{number(row, name):.0%}"


def _interval(row: Mapping[str, Scalar], name: str, form: str) -> str:
    value, low, high = (number(row, f"{name}{end}") for end in ("", "_low", "_high"))
    return f"{value:{form}} [{low:.2g}, {high:.2g}]"
