"""Contrasts: prompts with two sides, from labelled statements, A/B questions and pairs of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from frenet._errors import UsageError
from frenet.network.data.chat import asked, opened, system_of
from frenet.network.data.contrast import Contrast, Item, Kind
from frenet.network.data.files import RowError, shown
from frenet.network.data.schemas import (
    BEHAVIOUR,
    CHOICES,
    MESSAGES,
    PAIR,
    TASK_FIELDS,
    Record,
    Template,
    folded,
    task_of,
)
from frenet.network.data.sources import Source
from frenet.network.data.tables import (
    SYSTEM,
    Columns,
    Named,
    Reading,
    Table,
    columns_read,
    named_rows,
    table_of,
    template_of,
)
from frenet.network.data.tokens import Encoded, encode, join, of_one_prompt, text_ids, token_notes

# Labels that count as the positive side unless the user names one.
POSITIVE = ("yes", "true", "positive", "1")
_LETTERS = ("(A)", "(B)")
# A question about the statement, with the answers Yes and No: with "True or false:" models
# separate the classes much less well (Qwen2.5-0.5B: 0.48 instead of 0.80 of pairs in order).
STATEMENT = ("statement", "label")
ASKED, ANSWERED = "Question: Is the following statement true? {statement}\nAnswer:", ("Yes", "No")


class _Settings(NamedTuple):
    """Settings that turn the rows of a source into contrasts."""

    source: str
    tokenizer: Any
    max_length: int
    positive: str | None = None
    words: tuple[str, str] | None = None
    chat: bool = False
    choices: bool = False


def contrasts(
    source: Source,
    tokenizer: Any,
    *,
    max_length: int,
    columns: Columns | None = None,
    prompt: str | None = None,
    completion: str | None = None,
    positive: str | None = None,
    words: tuple[str, str] | None = None,
    chat: bool = False,
    template: Template | None = None,
) -> dict[str, Contrast]:
    """The contrasts of a file, of rows in memory, or of a data set on the hub, by name.

    Rows with the keys ``positive`` and ``negative`` (and optionally ``prompt``, the beginning of
    both) are pairs of texts. Rows of ``question`` and ``answer_matching_behavior``, with the
    answers (A) and (B) or Yes and No, are choices between the matching answer and the other one;
    so are multiple-choice questions with two choices. Other rows with two labels are statements.
    Repeated rows count once, with a note.

    Args:
        source: a JSONL, JSON or CSV file; a list of pairs of texts (positive, negative), or of
            mappings from columns to values; a ``datasets.Dataset``; "frenet:comparisons"; or, if
            there is no such path, the name of a data set on the hub.
        tokenizer: the model's tokenizer; it does not change.
        max_length: the model's context length in tokens, or less.
        columns: the columns of each role, as for ``text_tasks``; also positive and negative.
        prompt: text with ``{field}`` that replaces the schema's prompt.
        completion: the same for the label.
        positive: label of the positive side; None: yes, true, positive or 1, else the first
            label.
        words: answers of the positive and the negative side, instead of the labels. Rows of
            ``statement`` and ``label`` become questions with the answers Yes and No.
        chat: a prompt is the user's turn in the tokenizer's chat template, and an answer the
            beginning of the assistant's turn; without a prompt each text of a pair is the user's
            turn.
        template: how a row becomes prompt and label; None recognises the known schemas.

    Raises:
        RowError: a bad row, a label that the schema does not have, or a prompt with both labels;
            names file, line and value.
        ValueError: there are not exactly two labels, or there is a single pair, or an unread
            column is usually part of a prompt or a label.
    """
    reading = Reading.of(
        columns, template=template, prompt=prompt, completion=completion, chat=chat
    )
    named = named_rows(source, reading)
    settings = _Settings(named.rows.source, tokenizer, max_length, positive, words, chat)
    if _as_pairs(named, reading):
        return _pairs(named, reading, settings)
    table = _labels(named, reading, tokenizer)
    if table.schema == STATEMENT:
        settings = settings._replace(words=words or ANSWERED)
    settings = settings._replace(chat=table.chat, choices=table.schema in (BEHAVIOUR, CHOICES))
    made = {key: _labelled(key, part, settings) for key, part in table.by_task.items()}
    return {key: replace(each, notes=table.notes + each.notes) for key, each in made.items()}


def contrast(source: Source, tokenizer: Any, *, max_length: int = 256, **reading: Any) -> Contrast:
    """The only contrast of a source.

    Args:
        source: as for ``contrasts``, such as a list of pairs of texts (positive, negative).
        tokenizer: the model's tokenizer; it does not change.
        max_length: the model's context length in tokens, or less.
        reading: the further arguments of ``contrasts``.

    Raises:
        RowError, ValueError: as ``contrasts``; or there are several contrasts.
    """
    found = contrasts(source, tokenizer, max_length=max_length, **reading)
    if len(found) != 1:
        raise UsageError(
            f"there are {len(found)} contrasts, not one: {', '.join(found)}; take one of those "
            "that frenet.contrasts gives"
        )
    return next(iter(found.values()))


def answered_names(source: Source, reading: Reading | None = None) -> tuple[str, ...]:
    """Names of the contrasts of a source, which must have answers; needs no tokenizer.

    Raises:
        RowError: a bad row.
        ValueError: rows of no known schema, or pairs of texts.
    """
    reading = reading or Reading()
    named = named_rows(source, reading)
    if _as_pairs(named, reading):
        raise UsageError(
            f"{named.rows.source} holds pairs of texts, which have no answer to push towards; pass "
            "labelled statements or A/B questions ('frenet steer extract' takes pairs)"
        )
    return tuple(_labels(named, reading, None).by_task)


def _as_pairs(named: Named, reading: Reading) -> bool:
    """Whether the rows are pairs of texts, and the user does not read them in another way."""
    other = reading.template or reading.completion or set(reading.named) - {*PAIR, "prompt"}
    return named.is_pairs and not other


def _labels(named: Named, reading: Reading, tokenizer: Any) -> Table:
    """The rows as prompts and labels; RowError for a label that the schema does not have."""
    if template_of(named, reading)[0] == MESSAGES:
        raise UsageError(
            f"{named.rows.source} holds conversations, which have no two sides; pass prompts with "
            "labels, A/B questions, or pairs of texts (positive, negative)"
        )
    table = table_of(named, reading, tokenizer=tokenizer, labelled=True, prompts={STATEMENT: ASKED})
    labels = table.template.labels
    for record in (record for part in table.by_task.values() for record in part):
        if isinstance(labels, tuple) and record.completion not in labels:
            why = f"unknown label {shown(record.completion)}; known are {', '.join(labels)}"
            remedy = (
                "read other answers as rows of prompt and label (--columns prompt=question "
                f"label={BEHAVIOUR[1]})"
            )
            raise RowError(table.source, record.line, f"{why}; {remedy}")
    return table


def _pairs(named: Named, reading: Reading, settings: _Settings) -> dict[str, Contrast]:
    """Pairs of texts, grouped by the field that names a behaviour, if there is one."""
    rows = named.rows
    prompted = reading.prompt or ("{prompt?}" if "prompt" in named.spelled else "")
    templates = [Template(prompted, f"{{{side}}}") for side in PAIR]
    key = next((f for f in TASK_FIELDS if any(f in row for row in rows.values)), None)
    read = {*templates[0].read, *PAIR, key, SYSTEM if settings.chat else key}
    notes = (*rows.notes, columns_read(named, read, Template("{prompt}", "{positive}"), reading))
    by_name: dict[str, list[Item]] = {}
    for line, row in zip(rows.lines, rows.values, strict=True):
        try:
            texts = [_side(row, template, settings) for template in templates]
        except ValueError as problem:
            raise RowError(rows.source, line, str(problem)) from None
        if texts[0] == texts[1]:
            raise RowError(rows.source, line, f"both sides of the pair are {shown(texts[0])}")
        ids = _whole(texts, settings, line)
        item = Item(texts[0], [], (ids[0], ids[1]), None, line)
        name = Path(rows.source).stem if key is None else task_of(row, key)
        by_name.setdefault(name, []).append(item)
    made = {}
    for name, pairs in by_name.items():
        items, dropped = _once(name, pairs, rows.source)
        if len(items) < 2:
            raise UsageError(f"contrast {name!r} has a single pair; pass at least 2")
        made[name] = Contrast(name, "pairs", (), items, notes + dropped)
    return made


def _side(row: Mapping[str, Any], template: Template, settings: _Settings) -> str:
    """One text of a pair, after the prompt of its row."""
    prompt, text = template.parts(row)
    if not settings.chat:
        return join(prompt, text)
    system = system_of(row)
    if prompt.strip():
        return opened(settings.tokenizer, prompt, system) + text
    return asked(settings.tokenizer, text, system)


def _once(
    name: str, items: Sequence[Item], source: str
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """Each item once, so that parts of a contrast share none, and a note on dropped items.

    Raises:
        RowError: the same tokens occur on both sides, or in both classes.
    """
    first: dict[tuple[tuple[int, ...], ...], Item] = {}
    for item in items:
        key = tuple(sorted(map(tuple, item.sides)))
        same = first.setdefault(key, item)
        if (same.sides, same.label) != (item.sides, item.label):
            why = f"{shown(item.text)} has the tokens of line {same.line}, on the other side"
            raise RowError(source, item.line, f"{why}; remove one of them")
    repeated = len(items) - len(first)
    notes = (f"{name}: {repeated} repeated rows dropped",) if repeated else ()
    return tuple(first.values()), notes


def _whole(texts: Sequence[str], settings: _Settings, line: int) -> list[list[int]]:
    tokens = text_ids(settings.tokenizer, texts, chat=settings.chat)
    for text, ids in zip(texts, tokens, strict=True):
        if len(ids) > settings.max_length:
            why = f"{shown(text)} has {len(ids)} tokens, the model reads {settings.max_length}"
            remedy = "shorten it, since the stream is read at its last token"
            raise RowError(settings.source, line, f"{why}; {remedy}")
    _require_apart(tokens, texts, settings.source, line)
    return tokens


def _require_apart(ids: Sequence[list[int]], texts: Sequence[str], source: str, line: int) -> None:
    """Raise RowError if two texts are the same tokens."""
    if ids[0] == ids[1]:
        both = " and ".join(map(shown, texts))
        raise RowError(source, line, f"{both} are the same tokens to this tokenizer")


def _labelled(name: str, rows: Sequence[Record], settings: _Settings) -> Contrast:
    """Statements or choices of one behaviour."""
    source, words = settings.source, settings.words
    labels = sorted({row.completion for row in rows})
    label_words = _words(name, labels, settings.positive)
    choices = settings.choices or tuple(labels) == _LETTERS
    # The answer of "(A)" is the letter; the closing bracket adds nothing.
    lettered = tuple(labels) == _LETTERS
    written = [word.removesuffix(")") if lettered else word for word in words or label_words]
    pairs = [(row.prompt, word) for row in rows for word in written]
    tokens = encode(
        settings.tokenizer, pairs,
        max_length=settings.max_length, end=False, chat=settings.chat,
    )  # fmt: skip
    items, read = [], []
    for i, row in enumerate(rows):
        both = _usable(tokens[2 * i : 2 * i + 2], source=source, line=row.line)
        context, sides = _sides(both, source=source, line=row.line)
        _require_apart(sides, written, source, row.line)
        read.append(max(both, key=lambda side: (side.cut, side.spans_join)))
        side = label_words.index(row.completion)
        if choices and side == 1:
            sides = sides[::-1]
        label = None if choices else side == 0
        items.append(Item(row.prompt, context, sides, label, row.line))
    distinct, notes = _once(name, items, source)
    on_tokens = token_notes(settings.tokenizer, read, [row.line for row in rows], "prompts")
    notes = (*(f"{name}: {note}" for note in on_tokens), *notes)
    if cut := sum(side.cut > 0 for side in read):
        notes = (f"{name}: {cut} of {len(rows)} prompts lost their beginning", *notes)
    kind: Kind = "choices" if choices else "statements"
    return Contrast(name, kind, tuple(words or label_words), distinct, notes)


def _words(name: str, labels: Sequence[str], positive: str | None) -> list[str]:
    """The labels, the positive one first."""
    if len(labels) == 1:
        raise UsageError(
            f"all labels of contrast {name!r} are {labels[0]!r}; a contrast needs both sides"
        )
    if len(labels) != 2:
        listed = ", ".join(map(repr, labels[:5]))
        raise UsageError(
            f"contrast {name!r} has {len(labels)} labels ({listed} ...), and a contrast has two; "
            "pass a template with two labels, or pairs of texts (positive, negative)"
        )
    if positive is not None:
        positive = next((w for w in labels if folded(w) == folded(positive)), positive)
    if positive is not None and positive not in labels:
        raise UsageError(
            f"positive={positive!r} is no label of contrast {name!r}; it has "
            f"{' and '.join(map(repr, labels))}"
        )
    first = positive or next((w for w in labels if w.strip().lower() in POSITIVE), labels[0])
    return [first, *(word for word in labels if word != first)]


def _usable(both: Sequence[Encoded | str], *, source: str, line: int) -> list[Encoded]:
    """Both sides, with the prompt cut as the longer one needs.

    Raises:
        RowError: a text cannot be used.
    """
    sides: list[Encoded] = []
    for item in both:
        if isinstance(item, str):
            raise RowError(source, line, item)
        sides.append(item)
    return of_one_prompt(sides)


def _sides(
    both: Sequence[Encoded], *, source: str, line: int
) -> tuple[list[int], tuple[list[int], list[int]]]:
    """The prompt with the beginning that both answers share, and the whole texts of both sides.

    Raises:
        RowError: the end of the prompt is tokenised differently before the two answers.
    """
    prompt = max((side.context for side in both), key=len)
    first, second = (side.context + side.target for side in both)
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    shared = len(list(alike))
    if shared < len(prompt) or not prompt:
        why = "the end of the prompt and the beginning of an answer form one token"
        raise RowError(source, line, f"{why}; end the prompt with a colon or a line break")
    if shared == min(len(first), len(second)):
        # One answer is the beginning of the other: there is nothing that both go on from.
        shared = len(prompt)
    return first[:shared], (first, second)
