"""From a row to a prompt and its completion: templates, and the known schemas."""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from frenet._errors import UsageError
from frenet._notebook import LONGEST_NAME
from frenet.network.data.files import OnBad, RowError, Rows, shown

# Fields that split one file into several tasks in all known schemas.
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
    """One row as text, with its line, task and split.

    ``split`` is train, dev, val or test; None if the file does not say. ``key`` may not occur in
    two splits; None: the prompt. For the turns of a conversation it is their common beginning.
    """

    prompt: str
    completion: str
    line: int
    task: str | None
    split: str | None
    key: str | None = None


@dataclass(frozen=True)
class Template:
    """How a row becomes a prompt and a completion.

    Args:
        prompt: text with ``{field}`` for a field of the row, or ``{field?}`` for one that may be
            empty or missing; empty for plain text, where every token but the first is a target.
        completion: the same for the scored part. If neither side of the join has a space, one is
            added.
        labels: the label set of a classification task; "seen" collects it from the train rows;
            None for open-ended completions.
        task_field: the field that splits the file into several tasks.
        words: replacements for the values of a one-field completion ("0" -> "false"); values are
            compared without case and without the white space around them.

    >>> Template("{a} + {b} = {unit?}", "{sum}").fields
    ('a', 'b', 'sum')
    """

    prompt: str = "{prompt}"
    completion: str = "{completion}"
    labels: tuple[str, ...] | Literal["seen"] | None = None
    task_field: str | None = None
    words: Mapping[str, str] = field(default_factory=dict)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that a row needs, each once."""
        return tuple(name for name in self.read if name not in self.optional)

    @property
    def read(self) -> tuple[str, ...]:
        """The fields that are read, each once: required and optional."""
        names = _names(self.prompt) + _names(self.completion)
        return tuple(dict.fromkeys(name.removesuffix("?") for name in names))

    @property
    def optional(self) -> frozenset[str]:
        """The fields that a row may lack in all places of the template."""
        names = _names(self.prompt) + _names(self.completion)
        needed = {name for name in names if not name.endswith("?")}
        return frozenset(name.removesuffix("?") for name in names) - needed

    def parts(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """Prompt and completion of one row without checks; they may be blank."""
        return _fill(self.prompt, row), _fill(self.completion, row)

    def render(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """Prompt and completion of one row; ValueError says what is wrong with a value."""
        prompt, completion = self.parts(row)
        if self.words:
            words = {folded(value): word for value, word in self.words.items()}
            if folded(completion) not in words:
                raise UsageError(
                    f"unknown label {shown(completion)}; known are {', '.join(self.words)}"
                )
            completion = words[folded(completion)]
        if not completion.strip() or (self.prompt and not prompt.strip()):
            raise UsageError("the prompt or the completion is blank")
        return prompt, completion


# Schemas with a meaning beyond a template, for contrasts or for chat templates.
CHOICES = ("question", "choices", "answer")
BEHAVIOUR = ("question", "answer_matching_behavior")
OTHER_ANSWER = "answer_not_matching_behavior"
RESPONSE = ("prompt", "response")
MESSAGES = ("messages",)
# Possible answers of a behaviour; the pair that most rows have is used.
ANSWERS = (("(A)", "(B)"), ("Yes", "No"), ("A", "B"), ("True", "False"))
PAIR = ("positive", "negative")
# Names of the two answers in rows of preferences (DPO), the better one first.
PREFERENCES = (("chosen", "rejected"), ("preferred", "dispreferred"))
# Other names of the fields below in published data sets.
ALIASES = {"options": "choices", "answerkey": "answer", "conversations": "messages"}
# The most specific first: the first schema that fits most rows is used.
KNOWN = (
    Template("{task}: {input} ->", "{output}"),
    Template("{input} ->", "{output}"),
    Template("Question: {question}\n{choices}\nAnswer:", "{answer}", labels="seen"),
    Template(
        "{passage}\nQuestion: {question}\nAnswer:", "{answer}", labels=("yes", "no"), words=_YES_NO
    ),
    Template("Question: {question}\nAnswer:", "{solution}\n#### {answer}"),
    Template(
        "{question}\n\nAnswer:",
        "{answer_matching_behavior}",
        labels=ANSWERS[0],
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
    Template("{prompt}", "{response}"),
    Template("", "{messages}"),
    Template("{prompt}", "{label}", labels="seen"),
    Template("Text: {text}\nLabel:", "{label}", labels="seen"),
    Template("", "{text}"),
)


def recognise(rows: Rows, roles: Sequence[str] = ()) -> Template:
    """The template of the first known schema that fits at least half of the rows.

    Half, not all: a row without a label is then an error that names the row, and does not turn a
    classification file into plain text.

    Args:
        rows: rows with the fields' own names.
        roles: fields that the template has to read.

    Raises:
        ValueError: no known schema fits; the message lists the keys of the rows and the known
            schemas.
    """
    for template in KNOWN:
        fields = template.fields
        complete = sum(_has_all(row, fields) for row in rows.values)
        if 2 * complete >= len(rows) and set(roles) <= set(fields):
            if fields == BEHAVIOUR:
                template = replace(template, labels=_answers(rows))
            return replace(template, task_field=task_field(rows))
    keys = ", ".join(dict.fromkeys(key for row in rows.values for key in row))
    if hint := _of_pairs(rows):
        raise UsageError(f"{rows.source}: no task has the keys {keys}; {hint}")
    known = "; ".join("{" + ", ".join(t.fields) + "}" for t in KNOWN)
    raise UsageError(
        f"{rows.source}: no known schema fits the keys {keys}; known are {known}; name the "
        "columns, --columns prompt=NAME completion=NAME (or label=NAME), or write templates, "
        "--prompt '{NAME} ...' --completion '{NAME}' (in Python columns=, prompt=, completion=)"
    )


def _of_pairs(rows: Rows) -> str:
    """How to read rows with pairs of texts; "" for other rows."""
    if any(_has_all(row, PAIR) for row in rows.values):
        return "positive and negative are pairs of texts, which frenet steer extract takes"
    for names in PREFERENCES:
        keys = [
            next((k for row in rows.values for k in row if folded(k) == n), None) for n in names
        ]
        if None not in keys:
            return (
                f"{keys[0]} and {keys[1]} are pairs of texts: pass --columns positive={keys[0]} "
                f"negative={keys[1]} to frenet steer extract, or --columns completion={keys[0]} "
                f"ignore={keys[1]} for a task"
            )
    return ""


def task_field(rows: Rows) -> str | None:
    """The field that splits the rows into tasks, if at least half of them have one."""
    return next((f for f in TASK_FIELDS if _most_have(rows, f)), None)


def _answers(rows: Rows) -> tuple[str, str]:
    """The pair of answers that most rows of a behaviour have."""
    given = [folded(str(row.get(BEHAVIOUR[1], ""))) for row in rows.values]
    return max(ANSWERS, key=lambda pair: sum(given.count(folded(word)) for word in pair))


def records(
    rows: Rows,
    template: Template,
    *,
    on_bad: OnBad,
    turns: Callable[[Mapping[str, Any], Record], list[Record]] | None = None,
) -> tuple[list[Record], list[RowError]]:
    """All rows as text, and the rows left out under ``on_bad="skip"``.

    Args:
        rows: rows with the fields' own names.
        template: how a row becomes prompt and completion.
        on_bad: "error" stops at the first bad row, "skip" leaves it out.
        turns: applies a chat template to a row and its record.

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
            record = _record(row, line, template=template, has_split=has_split)
            good += turns(row, record) if turns else [record]
        except ValueError as problem:
            error = RowError(rows.source, line, str(problem))
            if on_bad == "error":
                raise error from None
            bad.append(error)
    return good, bad


def _record(row: Mapping[str, Any], line: int, *, template: Template, has_split: bool) -> Record:
    task = task_of(row, template.task_field) if template.task_field else None
    split = _split(row) if has_split else None
    if template.fields == MESSAGES:
        return Record("", "", line, task, split)
    prompt, completion = template.render(row)
    # Answers of published A/B questions are " (A)"; the join adds the space itself.
    if isinstance(template.labels, tuple):
        spellings = {folded(label): label for label in template.labels}
        completion = spellings.get(folded(completion), completion)
    return Record(prompt, completion, line, task, split)


def _split(row: Mapping[str, Any]) -> str:
    text = text_of(row, "split")
    if folded(text) not in _SPLIT:
        raise UsageError(f"unknown split {shown(text)}; known are {', '.join(_SPLIT)}")
    return _SPLIT[folded(text)]


def _check_fields(rows: Rows, template: Template) -> None:
    fields = template.read + ((template.task_field,) if template.task_field else ())
    keys = dict.fromkeys(key for row in rows.values for key in row)
    for name in fields:
        if name not in keys:
            raise UsageError(
                f"{rows.source}: the template names {name!r}, which no row has; keys found: "
                f"{', '.join(keys)}"
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
        raise UsageError(
            f"the template {template!r} is malformed: {error}; write {{{{ for a brace"
        ) from None
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if not name.rstrip("?") or spec or conversion or set(name) & set(".[]"):
            raise UsageError(
                f"the template {template!r} has the field {{{name}}}; put only plain field names "
                "in braces, with a ? at the end of one that a row may lack"
            )
        names.append(name)
    return tuple(names)


def _fill(template: str, row: Mapping[str, Any]) -> str:
    texts = {name: _optional(row, name) for name in _names(template)}
    return "".join(
        literal + (texts[name] if name is not None else "")
        for literal, name, _, _ in string.Formatter().parse(template)
    )


def _optional(row: Mapping[str, Any], name: str) -> str:
    """The value of a field of a template; "" if an optional one is empty."""
    key = name.removesuffix("?")
    if name != key and is_blank(row.get(key)):
        return ""
    return text_of(row, key)


def is_blank(value: Any) -> bool:
    """Whether a value holds nothing: null, white space, or an empty list."""
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def folded(text: str) -> str:
    """A name or label for comparisons: without case and without the white space around it."""
    return text.strip().casefold()


def renamed(template: str, name: Callable[[str], str]) -> str:
    """A template with renamed fields.

    >>> renamed("{{{A}}} {b?}", str.lower)
    '{{{a}}} {b?}'
    """
    _names(template)
    parts = []
    for literal, field_name, _, _ in string.Formatter().parse(template):
        parts.append(literal.replace("{", "{{").replace("}", "}}"))
        if field_name is not None:
            bare = field_name.removesuffix("?")
            parts.append(f"{{{name(bare)}{field_name[len(bare) :]}}}")
    return "".join(parts)


def text_of(row: Mapping[str, Any], key: str) -> str:
    """The value of a field as text: numbers as JSON writes them, lists joined by commas."""
    if key not in row:
        raise UsageError(f"missing key {key!r}; keys found: {', '.join(map(repr, row))}")
    value = row[key]
    if isinstance(value, list) and all(isinstance(v, str | int | float) for v in value):
        text = ", ".join(_scalar(v) for v in value)
    elif isinstance(value, str | int | float):
        text = _scalar(value)
    else:
        raise UsageError(f"{key!r} is {shown(value)}; pass text, a number or a list of them")
    if not text.strip():
        raise UsageError(f"{key!r} is empty: {shown(value)}")
    if not text.isascii() and any(0xD800 <= ord(c) < 0xE000 for c in text):
        raise UsageError(f"{key!r} holds half a surrogate pair, which is no character")
    return text


def task_of(row: Mapping[str, Any], key: str) -> str:
    """The name of the task that a row belongs to."""
    name = text_of(row, key)
    if len(name) > LONGEST_NAME:
        raise UsageError(
            f"{key!r} is {shown(name)}, {len(name):,} characters long; it names the task of a row, "
            f"and a name has at most {LONGEST_NAME:,}"
        )
    return name


def _scalar(value: str | int | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
