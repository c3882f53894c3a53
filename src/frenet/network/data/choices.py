"""Multiple-choice rows: choices as lettered lines, answers as letters."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from string import ascii_uppercase as LETTERS
from typing import Any, NamedTuple

from frenet._errors import UsageError
from frenet.network.data.files import OnBad, RowError, Rows, shown
from frenet.network.data.schemas import folded

# How an answer may name a choice, in the order of trial.
_WAYS = {
    "label": "the choices' own labels",
    "text": "the text of a choice",
    "letter": "letters",
    "from 0": "numbers from 0",
    "from 1": "numbers from 1",
}


class _Question(NamedTuple):
    """The choices of a row, their labels if they have any, and the answer as in the file."""

    texts: list[str]
    labels: list[str]
    answer: Any

    def places(self) -> dict[str, int]:
        """The choice that the answer names, for every way in which it names one."""
        choices, number = {}, _number(self.answer)
        named = folded(str(self.answer))
        for way, names in (("label", self.labels), ("text", self.texts)):
            places = [i for i, name in enumerate(names) if folded(name) == named]
            if len(places) == 1:
                choices[way] = places[0]
        bare = named.strip("().: ").upper()
        if len(bare) == 1 and bare in LETTERS[: len(self.texts)]:
            choices["letter"] = LETTERS.index(bare)
        if number is not None and 0 <= number < len(self.texts):
            choices["from 0"] = number
        if number is not None and 1 <= number <= len(self.texts):
            choices["from 1"] = number - 1
        return choices


def lettered(rows: Rows, *, on_bad: OnBad) -> tuple[Rows, tuple[str, ...]]:
    """Rows with their choices as lines ``A. ...`` and their answers as letters, and the letters.

    All answers of a file are read in the same way: as labels or texts of the choices, as letters,
    or as numbers from 0 or from 1. It is the way that fits most rows; if all answers are numbers,
    numbers are tried first. A note says which way.

    Raises:
        RowError: a row has no list of choices, or its answer names none of them.
    """
    questions: list[_Question] = []
    good, bad = [], list(rows.skipped)
    for i, row in enumerate(rows.values):
        try:
            questions.append(_question(row))
            good.append(i)
        except ValueError as problem:
            _reject(RowError(rows.source, rows.lines[i], str(problem)), bad, on_bad)
    if not questions:
        raise UsageError(f"{rows.source} holds no usable row; the first bad one: {bad[0]}")
    way = _way(questions)
    values, lines = [], []
    for i, each in zip(good, questions, strict=True):
        place = each.places().get(way)
        if place is None:
            why = f"'answer' is {shown(each.answer)}, which is none of {len(each.texts)} choices"
            remedy = f"the answers of this file are read as {_WAYS[way]}"
            _reject(RowError(rows.source, rows.lines[i], f"{why}; {remedy}"), bad, on_bad)
            continue
        listed = "\n".join(f"{a}. {b}" for a, b in zip(LETTERS, each.texts, strict=False))
        values.append({**rows.values[i], "choices": listed, "answer": LETTERS[place]})
        lines.append(rows.lines[i])
    note = f"answers are read as {_WAYS[way]}"
    read = replace(
        rows, values=tuple(values), lines=tuple(lines), skipped=tuple(bad),
        notes=(*rows.notes, note),
    )  # fmt: skip
    return read, tuple(LETTERS[: max(len(each.texts) for each in questions)])


def _reject(error: RowError, bad: list[RowError], on_bad: OnBad) -> None:
    if on_bad == "error":
        raise error
    bad.append(error)


def _way(questions: Sequence[_Question]) -> str:
    """The first of the ways in which most answers name a choice."""
    numbers = all(isinstance(each.answer, int) for each in questions)
    ways = ("from 0", "from 1", "label", "text") if numbers else tuple(_WAYS)
    places = [each.places() for each in questions]
    return max(ways, key=lambda way: sum(way in named for named in places))


def _question(row: Mapping[str, Any]) -> _Question:
    """Choices and answer of a row."""
    for key in ("choices", "answer"):
        if key not in row:
            raise UsageError(f"missing key {key!r}; keys found: {', '.join(map(repr, row))}")
    value, labels = row["choices"], []
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = json.loads(value)
        except ValueError:
            raise UsageError(f"'choices' is {shown(value)}, which is no JSON") from None
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        labels = [str(label) for label in value.get("label") or ()]
        value = value["text"]
    good = isinstance(value, list) and all(isinstance(v, str | int | float) for v in value)
    if not good or not 2 <= len(value) <= len(LETTERS):
        raise UsageError(f"'choices' is {shown(value)}; pass a list of 2 to {len(LETTERS)} texts")
    texts = [str(v).strip() for v in value]
    if "" in texts:
        raise UsageError(f"choice {texts.index('') + 1} of {len(texts)} is empty")
    answer = row["answer"]
    if isinstance(answer, bool) or not isinstance(answer, str | int) or answer == "":
        raise UsageError(f"'answer' is {shown(answer)}; pass a letter, a number or a text")
    return _Question(texts, labels, answer)


def _number(value: Any) -> int | None:
    text = str(value).strip()
    return int(text) if text.isdecimal() else None
