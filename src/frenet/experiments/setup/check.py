"""A check before an answer: how frenet reads a task, and what the task's loss is."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from frenet._notebook import one_line
from frenet.experiments.experiment import Column, Row, Scalar, number

if TYPE_CHECKING:
    from frenet.network.tasks import Task

# Characters of the prompt that are shown: its beginning and its end.
HEAD, TAIL = 24, 40
# Characters of the completion, and tokens of it.
COMPLETION, TOKENS = 30, 6

CHECK = (
    Column("prompt", "", "of the first test row, shortened; empty: plain text", "key"),
    Column("completion", "", "of that row, shortened", "key"),
    Column("tokens", "", "its first scored tokens, as the tokenizer writes them", "key"),
    Column("scored", "tokens", "scored in that row", "key"),
)
LOSSES = (
    Column("rows", "", "test rows of the losses", "key"),
    Column("without", "nats/token", "loss without the direction", "reference"),
    Column("with", "nats/token", "loss with it, at its own length", "measure", "without"),
)


def check_row(task: "Task") -> Row:
    """Cells of the columns ``CHECK``: the first test row as the tokenizer reads it.

    A task that is no text has none.
    """
    from frenet.network.data.text import TextTask

    if not isinstance(task, TextTask) or not task.examples.get("test"):
        return {}
    first = task.examples["test"][0]
    scored = [text for _, text, counts in task.tokens("test", 0) if counts]
    more = " ..." if len(scored) > TOKENS else ""
    return {
        "prompt": _cut(first.prompt, HEAD, TAIL),
        "completion": _cut(first.completion, COMPLETION, 0),
        "tokens": one_line(" ".join(scored[:TOKENS])) + more,
        "scored": len(scored),
    }


def _cut(text: str, head: int, tail: int) -> str:
    """The beginning and the end of a text, in one line."""
    if len(text) <= head + tail + len(" ... "):
        return one_line(text)
    return one_line(f"{text[:head]} ... {text[len(text) - tail :] if tail else ''}".rstrip())


def check_sentence(row: Mapping[str, Scalar], losses: Sequence[tuple[str, float]] = ()) -> str:
    """How a task is read, in one line.

    Args:
        row: with the columns ``CHECK``, as far as they are known, and ``rows``.
        losses: words and the loss that they name, such as ("without it", 8.4).

    >>> row = {"prompt": "1 + 1 =", "completion": "2", "tokens": "_2", "scored": 1, "rows": 32}
    >>> check_sentence(row, [("without it", 3.14159), ("with it", 0.5)])
    'reads "1 + 1 =" -> "2" (scored: _2); loss 3.14 without it, 0.5 with it on 32 test rows'
    """
    parts = []
    if row.get("scored"):
        given = f'"{row["prompt"]}" -> ' if row["prompt"] else "plain text "
        parts.append(f'reads {given}"{row["completion"]}" (scored: {row["tokens"]})')
    if losses:
        said = ", ".join(f"{value:.3g} {words}".rstrip() for words, value in losses)
        parts.append(f"loss {said} on {number(row, 'rows'):.0f} test rows")
    return "; ".join(parts)
