"""Contrasts: prompts with two sides, from labelled statements, A/B questions and pairs of texts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from frenet.network.contrast import Contrast, Item, Kind
from frenet.network.files import RowError, Rows, shown
from frenet.network.schemas import TASK_FIELDS, Record, Template, recognise, records
from frenet.network.sources import rows_of
from frenet.network.tokens import Encoded, encode, join, of_one_prompt, text_ids, token_notes

# Words for the positive side, where the data do not say which one it is.
POSITIVE = ("yes", "true", "positive", "1")
PAIR = ("positive", "negative")
_LETTERS = ("(A)", "(B)")
# Statements are asked about, and answered Yes or No: models that are asked to complete "True or
# false:" tell the two apart much less well (Qwen2.5-0.5B: 0.48 against 0.80 of pairs in order).
STATEMENT = ("statement", "label")
ASKED, ANSWERED = "Question: Is the following statement true? {statement}\nAnswer:", ("Yes", "No")


def contrasts(
    source: str | Path,
    tokenizer: Any,
    *,
    max_length: int,
    template: Template | None = None,
    prompt: str | None = None,
    positive: str | None = None,
    words: tuple[str, str] | None = None,
) -> dict[str, Contrast]:
    """The contrasts of a JSONL or CSV file, or of a data set on the hub, by name.

    Rows with the keys ``positive`` and ``negative`` (and perhaps ``prompt``, which stands before
    both) are pairs of texts; rows with two labels are statements, those answered with the letters
    (A) and (B) choices. Repeated rows count once, with a note.

    Args:
        source: a file; "frenet:comparisons"; or, where that is no path, the name of a data set
            on the hub.
        tokenizer: the model's own; used, never changed.
        max_length: the model's context length in tokens, or less.
        template: how a row becomes prompt and label; None recognises the known schemas.
        prompt: text with ``{field}`` in place of the template's own prompt.
        positive: the label word of the positive side; None: yes, true, positive or 1, else the
            first one.
        words: what the positive and the negative side answer with, in place of the labels. Rows
            of ``statement`` and ``label`` are asked about, and answered Yes or No.

    Raises:
        RowError: a bad row, a label that the template does not have, or a prompt with either
            label; names file, line and value.
        ValueError: labels that are not two, one class only, or a single pair.
    """
    rows, name = _read(source)
    if template is None and _is_pairs(rows):
        return _pairs(rows, name, tokenizer, max_length)
    chosen = template or recognise(rows)
    if template is None and chosen.fields == STATEMENT:
        prompt, words = prompt or ASKED, words or ANSWERED
    if prompt is not None:
        chosen = replace(chosen, prompt=prompt)
    found = _known(rows, chosen)
    by_name: dict[str, list[Record]] = {}
    for record in found:
        by_name.setdefault(record.task or name, []).append(record)
    made = {
        key: _labelled(
            key, part, rows.source, tokenizer,
            max_length=max_length, positive=positive, words=words,
        )
        for key, part in by_name.items()
    }  # fmt: skip
    return {key: replace(each, notes=rows.notes + each.notes) for key, each in made.items()}


def answered_names(source: str | Path) -> tuple[str, ...]:
    """Names of the contrasts of a source whose prompts have answers; no tokenizer is needed.

    Raises:
        RowError: a bad row.
        ValueError: rows of no known schema, or pairs of texts.
    """
    rows, name = _read(source)
    if _is_pairs(rows):
        raise ValueError(
            f"{rows.source} holds pairs of texts, which have no answer to push towards; pass "
            "labelled statements or A/B questions ('frenet steer extract' takes pairs)"
        )
    found = _known(rows, recognise(rows))
    return tuple(dict.fromkeys(record.task or name for record in found))


def _read(source: str | Path) -> tuple[Rows, str]:
    """The rows of a source, and the name of a contrast that no field names."""
    rows = rows_of(source)
    return rows, Path(rows.source).stem


def _known(rows: Rows, template: Template) -> list[Record]:
    """The rows as text; RowError where a label is not of the template's own."""
    found, _ = records(rows, template, on_bad="error")
    labels = template.labels
    for record in found:
        if isinstance(labels, tuple) and record.completion not in labels:
            why = f"unknown label {shown(record.completion)}; known are {', '.join(labels)}"
            remedy = "write other answers as rows of prompt and label, or pass a template for them"
            raise RowError(rows.source, record.line, f"{why}; {remedy}")
    return found


def _is_pairs(rows: Rows) -> bool:
    return 2 * sum(all(key in row for key in PAIR) for row in rows.values) >= len(rows)


def _pairs(rows: Rows, name: str, tokenizer: Any, max_length: int) -> dict[str, Contrast]:
    """Pairs of texts, by the field that names a behaviour where there is one."""
    prompted = any("prompt" in row for row in rows.values)
    templates = [Template("{prompt}" if prompted else "", f"{{{side}}}") for side in PAIR]
    key = next((f for f in TASK_FIELDS if any(f in row for row in rows.values)), None)
    sides = [
        records(rows, replace(template, task_field=key), on_bad="error")[0]
        for template in templates
    ]
    by_name: dict[str, list[Item]] = {}
    for first, second in zip(*sides, strict=True):
        texts = [join(record.prompt, record.completion) for record in (first, second)]
        if texts[0] == texts[1]:
            raise RowError(rows.source, first.line, f"both sides of the pair are {shown(texts[0])}")
        ids = _whole(tokenizer, texts, max_length, rows.source, first.line)
        item = Item(texts[0], [], (ids[0], ids[1]), None, None, first.line)
        by_name.setdefault(first.task or name, []).append(item)
    found = {}
    for key_name, pairs in by_name.items():
        items, notes = _once(key_name, pairs, rows.source)
        if len(items) < 2:
            raise ValueError(f"contrast {key_name!r} has a single pair; pass at least 2")
        found[key_name] = Contrast(key_name, "pairs", (), items, notes)
    return found


def _once(
    name: str, items: Sequence[Item], source: str
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """Each item once, since the parts of a contrast share none, and a note on those left out.

    Raises:
        RowError: the same tokens stand on either side, or in either class.
    """
    first: dict[tuple[tuple[int, ...], ...], Item] = {}
    for item in items:
        key = tuple(sorted(map(tuple, item.sides)))
        same = first.setdefault(key, item)
        if (same.sides, same.label) != (item.sides, item.label):
            why = f"{shown(item.text)} has the tokens of line {same.line}, on the other side"
            raise RowError(source, item.line, f"{why}; leave one of them out")
    repeated = len(items) - len(first)
    notes = (f"{name}: {repeated} repeated rows dropped",) if repeated else ()
    return tuple(first.values()), notes


def _whole(
    tokenizer: Any, texts: Sequence[str], max_length: int, source: str, line: int
) -> list[list[int]]:
    found = text_ids(tokenizer, texts)
    for text, ids in zip(texts, found, strict=True):
        if len(ids) > max_length:
            why = f"{shown(text)} has {len(ids)} tokens, the model reads {max_length}"
            raise RowError(source, line, f"{why}; shorten it, since its last token is what is read")
    _require_apart(found, texts, source, line)
    return found


def _require_apart(ids: Sequence[list[int]], texts: Sequence[str], source: str, line: int) -> None:
    """Raise RowError if two texts are the same tokens."""
    if ids[0] == ids[1]:
        both = " and ".join(map(shown, texts))
        raise RowError(source, line, f"{both} are the same tokens to this tokenizer")


def _labelled(
    name: str,
    rows: Sequence[Record],
    source: str,
    tokenizer: Any,
    *,
    max_length: int,
    positive: str | None,
    words: tuple[str, str] | None,
) -> Contrast:
    """Statements or choices of one behaviour."""
    found = sorted({row.completion for row in rows})
    found_words = _words(name, found, positive)
    choices = tuple(found) == _LETTERS
    # Of "(A)" the letter is what is answered; the bracket behind it says nothing more.
    written = [word.removesuffix(")") if choices else word for word in words or found_words]
    pairs = [(row.prompt, word) for row in rows for word in written]
    tokens = encode(tokenizer, pairs, max_length=max_length, end=False)
    items, read = [], []
    for i, row in enumerate(rows):
        both = _usable(tokens[2 * i : 2 * i + 2], source=source, line=row.line)
        context, sides, answers = _answers(both, source=source, line=row.line)
        _require_apart(sides, written, source, row.line)
        read.append(max(both, key=lambda side: (side.cut, side.spans_join)))
        own = found_words.index(row.completion)
        if choices and own == 1:
            sides, answers = sides[::-1], answers and answers[::-1]
        label = None if choices else own == 0
        items.append(Item(row.prompt, context, sides, answers, label, row.line))
    kept, notes = _once(name, items, source)
    told = token_notes(tokenizer, read, [row.line for row in rows], "prompts")
    notes = (*(f"{name}: {note}" for note in told), *notes)
    if cut := sum(side.cut > 0 for side in read):
        notes = (f"{name}: {cut} of {len(rows)} prompts lost their beginning", *notes)
    kind: Kind = "choices" if choices else "statements"
    return Contrast(name, kind, tuple(words or found_words), kept, notes)


def _words(name: str, found: Sequence[str], positive: str | None) -> list[str]:
    """The label words, the positive one first."""
    if len(found) == 1:
        raise ValueError(
            f"all labels of contrast {name!r} are {found[0]!r}; a contrast needs both sides"
        )
    if len(found) != 2:
        listed = ", ".join(map(repr, found[:5]))
        raise ValueError(
            f"contrast {name!r} has {len(found)} labels ({listed} ...), and a contrast has two; "
            "pass a template with two labels, or pairs of texts (positive, negative)"
        )
    if positive is not None and positive not in found:
        raise ValueError(
            f"positive={positive!r} is no label of contrast {name!r}; it has "
            f"{' and '.join(map(repr, found))}"
        )
    first = positive or next((w for w in found if w.strip().lower() in POSITIVE), found[0])
    return [first, *(word for word in found if word != first)]


def _usable(both: Sequence[Encoded | str], *, source: str, line: int) -> list[Encoded]:
    """Both sides, after what is left of the prompt by the longer one.

    Raises:
        RowError: a text cannot be used.
    """
    sides: list[Encoded] = []
    for item in both:
        if isinstance(item, str):
            raise RowError(source, line, item)
        sides.append(item)
    return of_one_prompt(sides)


def _answers(
    both: Sequence[Encoded], *, source: str, line: int
) -> tuple[list[int], tuple[list[int], list[int]], tuple[int, int] | None]:
    """The prompt, the whole texts of both sides, and the answers where each is one token.

    Raises:
        RowError: the prompt ends differently before the two answers.
    """
    contexts = [side.context for side in both]
    first, second = (context + side.target for context, side in zip(contexts, both, strict=True))
    if first[:-1] == second[:-1] and len(first) > 1:
        return first[:-1], (first, second), (first[-1], second[-1])
    if contexts[0] != contexts[1] or not contexts[0]:
        why = "the end of the prompt is one token with the beginning of an answer"
        raise RowError(source, line, f"{why}; end the prompt with a colon or a line break")
    return contexts[0], (first, second), None
