"""From records to tokenised examples: splits, label checks, errors for bad rows."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch

from frenet._errors import UsageError
from frenet.geometry import rng
from frenet.network.data.files import OnBad, RowError, shown
from frenet.network.data.schemas import Record
from frenet.network.data.splits import completed, own_splits
from frenet.network.data.tokens import Encoded, encode, token_notes
from frenet.network.tasks import Split


class Example(NamedTuple):
    """One row of a task: its text, its token ids, and its line in the source."""

    prompt: str
    completion: str
    encoded: Encoded
    line: int


class Options(NamedTuple):
    """Settings that fix the examples of a task, given its rows; see ``text_tasks``."""

    source: str
    tokenizer: Any
    max_length: int
    seed: int = 0
    labels: tuple[str, ...] | Literal["seen"] | None = None
    on_bad: OnBad = "error"
    limit: int | None = None
    chat: bool = False


class Prepared(NamedTuple):
    """The examples of one task, its label set (empty: open-ended), and notes."""

    examples: dict[Split, tuple[Example, ...]]
    labels: tuple[str, ...]
    notes: tuple[str, ...]


def prepare(name: str, rows: Sequence[Record], options: Options) -> Prepared:
    """The examples of one task: split, with checked labels, tokenised.

    Raises:
        RowError: a label is not in the label set, or a completion does not fit the context.
        ValueError: a split ends up without rows.
    """
    splits, roles = own_splits(rows)
    labels = options.labels or ()
    if labels == "seen":
        labels = tuple(sorted({row.completion for row in splits["train"]}))
    bad: list[RowError] = []
    if labels:
        splits = {s: _known(part, labels, bad=bad, options=options) for s, part in splits.items()}
        _require_apart(labels, splits, options)
    parts, changes = completed(splits, name=name, seed=options.seed)
    examples: dict[Split, tuple[Example, ...]] = {}
    counts: list[str] = []
    for split, part in parts.items():
        order = rng.generator(options.seed, "limit", name, split)
        examples[split] = encoded(_limited(part, options.limit, order), options, bad=bad)
        counts += _counts(split, examples[split], options.tokenizer)
        if not examples[split]:
            raise UsageError(f"task {name!r} has no usable {split} row; the last: {bad[-1]}")
    skipped = [f"skipped: {error}" for error in bad]
    return Prepared(examples, labels, (*roles, *changes, *skipped, *counts))


def encoded(
    rows: Iterable[Record | Example], options: Options, *, bad: list[RowError]
) -> tuple[Example, ...]:
    """The rows as token ids; rows that cannot be scored are errors, or go to ``bad``."""
    texts = [(row.prompt, row.completion, row.line) for row in rows]
    pairs = [(prompt, completion) for prompt, completion, _ in texts]
    tokens = encode(options.tokenizer, pairs, max_length=options.max_length, chat=options.chat)
    good = []
    for (prompt, completion, line), item in zip(texts, tokens, strict=True):
        if isinstance(item, Encoded):
            good.append(Example(prompt, completion, item, line))
        else:
            _reject(RowError(options.source, line, item), bad, options.on_bad)
    return tuple(good)


def _known(
    rows: Sequence[Record], labels: tuple[str, ...], *, bad: list[RowError], options: Options
) -> list[Record]:
    """The rows with a completion in the label set; other rows are errors, or go to ``bad``."""
    good = []
    for row in rows:
        if row.completion in labels:
            good.append(row)
            continue
        why = f"unknown label {shown(row.completion)}; known are {', '.join(labels)}"
        _reject(RowError(options.source, row.line, why), bad, options.on_bad)
    return good


def _require_apart(
    labels: tuple[str, ...], splits: dict[Split, list[Record]], options: Options
) -> None:
    """Raise ValueError if two labels are the same tokens, so that their scores are equal."""
    prompt = next((row.prompt for part in splits.values() for row in part), None)
    if not prompt:
        return
    pairs = [(prompt, label) for label in labels]
    seen: dict[tuple[int, ...], str] = {}
    tokens = encode(options.tokenizer, pairs, max_length=sys.maxsize, chat=options.chat)
    for label, item in zip(labels, tokens, strict=True):
        if not isinstance(item, Encoded):
            raise UsageError(f"{options.source}: the label {shown(label)}: {item}")
        if (same := seen.setdefault(tuple(item.context + item.target), label)) != label:
            raise UsageError(
                f"{options.source}: the labels {shown(same)} and {shown(label)} are the same "
                "tokens to this tokenizer; write one of them as another word"
            )


def _reject(error: RowError, bad: list[RowError], on_bad: OnBad) -> None:
    if on_bad == "error":
        raise error
    bad.append(error)


def _limited(rows: list[Record], limit: int | None, generator: torch.Generator) -> list[Record]:
    """At most ``limit`` rows, in file order."""
    if limit is None or limit >= len(rows):
        return rows
    chosen = torch.randperm(len(rows), generator=generator)[:limit].sort().values
    return [rows[i] for i in chosen.tolist()]


def _counts(split: Split, examples: Sequence[Example], tokenizer: Any) -> list[str]:
    """Notes on prompts that were cut, and on unexpected tokens."""
    cut = [example.encoded.cut for example in examples if example.encoded.cut]
    notes = []
    if cut:
        notes.append(f"{split}: {len(cut)} of {len(examples)} rows cut, {sum(cut)} tokens in all")
    items = [example.encoded for example in examples]
    on_tokens = token_notes(tokenizer, items, [example.line for example in examples])
    return [*notes, *(f"{split}: {note}" for note in on_tokens)]
