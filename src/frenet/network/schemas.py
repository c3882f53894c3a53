"""From a row to a prompt and its completion: templates, and the row schemas that need none."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from frenet._notebook import LONGEST_NAME
from frenet.network.files import OnBad, RowError, Rows, shown

# Fields that split one file into several tasks, where the schema is a known one.
TASK_FIELDS = ("task", "dataset", "behavior")
_YES_NO = {"true": "yes", "false": "no", "yes": "yes", "no": "no", "1": "yes", "0": "no"}
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "dev": ("dev", "development"),
    "val": ("val", "valid", "validation", "select"),
    "test": ("test", "testing"),
}
_SPLIT = {name: split for split, names in _SPLIT_NAMES.items() for name in names}
_TRUE_FALSE = {"1": "true", "0": "false", "true": "true", "false": "false"}


class Record(NamedTuple):
    """One row as text: what the model reads, what it should say, and where the row belongs.

    ``split`` is the row's own: train, dev, val or test; None where the file does not say.
    """

    prompt: str
    completion: str
    line: int
    task: str | None
    split: str | None


@dataclass(frozen=True)
class Template:
    """How a row becomes a prompt and a completion.

    Args:
        prompt: text with ``{field}`` in the places that a row fills; empty for plain text, of
            which every token but the first is then a target.
        completion: the same for the scored part. A space is put before it where neither side of
            the join has one.
        labels: the label set of a classification task; "seen" collects it from the train rows;
            None for open-ended completions.
        task_field: the field that splits the file into several tasks.
        words: what to write for the values of a one-field completion ("0" -> "false").

    >>> Template("{a} + {b} =", "{sum}").fields
    ('a', 'b', 'sum')
    """

    prompt: str = "{prompt}"
    completion: str = "{completion}"
    labels: tuple[str, ...] | Literal["seen"] | None = None
    task_field: str | None = None
    words: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_fields(cls, prompt: str, completion: str) -> "Template":
        """The template that takes one field as prompt and one as completion."""
        return cls(f"{{{prompt}}}", f"{{{completion}}}")

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that a row needs, each once."""
        names = _names(self.prompt) + _names(self.completion)
        return tuple(dict.fromkeys(names))

    def render(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """Prompt and completion of one row; ValueError says what is wrong with a value."""
        prompt = _fill(self.prompt, row)
        completion = _fill(self.completion, row)
        if self.words:
            if completion.lower() not in self.words:
                raise ValueError(
                    f"unknown label {shown(completion)}; known are {', '.join(self.words)}"
                )
            completion = self.words[completion.lower()]
        if not completion.strip() or (self.prompt and not prompt.strip()):
            raise ValueError("the prompt or the completion is blank")
        return prompt, completion


# The most specific first: the first one whose fields most rows have is taken.
KNOWN = (
    Template("{task}: {input} ->", "{output}"),
    Template("{input} ->", "{output}"),
    Template(
        "{passage}\nQuestion: {question}\nAnswer:", "{answer}", labels=("yes", "no"), words=_YES_NO
    ),
    Template("Question: {question}\nAnswer:", "{solution}\n#### {answer}"),
    Template(
        "{question}\n\nAnswer:",
        "{answer_matching_behavior}",
        labels=("(A)", "(B)"),
    ),
    Template(
        "Statement: {statement}\nTrue or false:",
        "{label}",
        labels=("true", "false"),
        words=_TRUE_FALSE,
    ),
    Template("Premise: {premise}\nHypothesis: {hypothesis}\nRelation:", "{label}", labels="seen"),
    Template("Numbers: {nums}\nTarget: {target}\nExpression:", "{solution}"),
    Template("English: {en}\nFrench:", "{fr}"),
    Template("Facts: {mr}\nText:", "{ref}"),
    Template("{prompt}", "{completion}"),
    Template("{prompt}", "{label}", labels="seen"),
    Template("Text: {text}\nLabel:", "{label}", labels="seen"),
    Template("", "{text}"),
)


def recognise(rows: Rows) -> Template:
    """The template for rows of a known schema: the first whose fields at least half of them have.

    Half, not all: a row without a label is then an error that names the row, and does not turn a
    classification file into plain text.

    Raises:
        ValueError: no known schema fits; the message lists the keys found and the schemas known.
    """
    for template in KNOWN:
        fields = template.fields
        complete = sum(_has_all(row, fields) for row in rows.values)
        if 2 * complete >= len(rows):
            field_name = next((f for f in TASK_FIELDS if _most_have(rows, f)), None)
            return replace(template, task_field=field_name)
    found = ", ".join(dict.fromkeys(key for row in rows.values for key in row))
    known = "; ".join("{" + ", ".join(t.fields) + "}" for t in KNOWN)
    raise ValueError(
        f"{rows.source}: no known schema fits the keys {found}; known are {known}; or pass a "
        "Template(prompt, completion) that names these keys"
    )


def records(
    rows: Rows, template: Template, *, on_bad: OnBad
) -> tuple[list[Record], list[RowError]]:
    """All rows as text, and the rows left out under ``on_bad="skip"``.

    Raises:
        RowError: a row lacks a field of the template, or a value cannot be used.
        ValueError: the template names a field that no row has.
    """
    _check_fields(rows, template)
    has_split = any("split" in row for row in rows.values)
    good: list[Record] = []
    bad: list[RowError] = []
    for line, row in zip(rows.lines, rows.values, strict=True):
        try:
            good.append(_record(row, line, template=template, has_split=has_split))
        except ValueError as problem:
            error = RowError(rows.source, line, str(problem))
            if on_bad == "error":
                raise error from None
            bad.append(error)
    return good, bad


def _record(row: Mapping[str, Any], line: int, *, template: Template, has_split: bool) -> Record:
    prompt, completion = template.render(row)
    # Published A/B questions are answered " (A)"; the join would write that space itself.
    if isinstance(template.labels, tuple) and completion.strip() in template.labels:
        completion = completion.strip()
    task = _task(row, template.task_field) if template.task_field else None
    return Record(prompt, completion, line, task, _split(row) if has_split else None)


def _split(row: Mapping[str, Any]) -> str:
    text = _text(row, "split")
    if text.lower() not in _SPLIT:
        raise ValueError(f"unknown split {shown(text)}; known are {', '.join(_SPLIT)}")
    return _SPLIT[text.lower()]


def _check_fields(rows: Rows, template: Template) -> None:
    wanted = template.fields + ((template.task_field,) if template.task_field else ())
    found = dict.fromkeys(key for row in rows.values for key in row)
    for name in wanted:
        if name not in found:
            raise ValueError(
                f"{rows.source}: the template names {name!r}, which no row has; keys found: "
                f"{', '.join(found)}"
            )


def _has_all(row: Mapping[str, Any], keys: Sequence[str]) -> bool:
    return all(key in row for key in keys)


def _most_have(rows: Rows, key: str) -> bool:
    return 2 * sum(key in row for row in rows.values) >= len(rows)


def _names(template: str) -> tuple[str, ...]:
    """The field names of a template, in order; only plain ``{name}`` is allowed."""
    names: list[str] = []
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"the template {template!r} is malformed: {error}; write {{{{ for a brace"
        ) from None
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if not name or spec or conversion or set(name) & set(".[]"):
            raise ValueError(
                f"the template {template!r} has the field {{{name}}}; only plain field names "
                "can stand in braces"
            )
        names.append(name)
    return tuple(names)


def _fill(template: str, row: Mapping[str, Any]) -> str:
    texts = {name: _text(row, name) for name in _names(template)}
    return "".join(
        literal + (texts[name] if name is not None else "")
        for literal, name, _, _ in string.Formatter().parse(template)
    )


def _text(row: Mapping[str, Any], key: str) -> str:
    """The value of a field as text: numbers as JSON writes them, lists joined by commas."""
    if key not in row:
        raise ValueError(f"missing key {key!r}; keys found: {', '.join(map(repr, row))}")
    value = row[key]
    if isinstance(value, list) and all(isinstance(v, str | int | float) for v in value):
        text = ", ".join(_scalar(v) for v in value)
    elif isinstance(value, str | int | float):
        text = _scalar(value)
    else:
        raise ValueError(f"{key!r} is {shown(value)}; text, a number or a list of them is needed")
    if not text.strip():
        raise ValueError(f"{key!r} is empty: {shown(value)}")
    if not text.isascii() and any(0xD800 <= ord(c) < 0xE000 for c in text):
        raise ValueError(f"{key!r} holds half a surrogate pair, which is no character")
    return text


def _task(row: Mapping[str, Any], key: str) -> str:
    """The name of the task that a row belongs to."""
    name = _text(row, key)
    if len(name) > LONGEST_NAME:
        raise ValueError(
            f"{key!r} is {shown(name)}, {len(name):,} characters long; it names the task of a row, "
            f"and a name has at most {LONGEST_NAME:,}"
        )
    return name


def _scalar(value: str | int | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
