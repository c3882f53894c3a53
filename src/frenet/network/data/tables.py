"""Tables: from the columns of a source to prompts and completions. The one place that reads rows.

What is there is compared with what is used: every column is read, ignored because the user said so,
named in a note, or refused.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from frenet._errors import UsageError
from frenet.network.data import chat
from frenet.network.data.choices import lettered
from frenet.network.data.files import OnBad, RowError, Rows, shown
from frenet.network.data.schemas import (
    ALIASES,
    BEHAVIOUR,
    CHOICES,
    KNOWN,
    MESSAGES,
    OTHER_ANSWER,
    PAIR,
    RESPONSE,
    TASK_FIELDS,
    Record,
    Template,
    folded,
    is_blank,
    recognise,
    records,
    renamed,
    task_field,
)
from frenet.network.data.sources import rows_of

IGNORE, SYSTEM = "ignore", "system"
FIELDS = tuple(dict.fromkeys(name for template in KNOWN for name in template.fields))
ROLES = (*FIELDS, *PAIR, *TASK_FIELDS, "split", OTHER_ANSWER, SYSTEM, IGNORE)
# Columns that are usually part of a prompt, and of what is to be said.
PART_OF_PROMPT = frozenset({
    "instruction", "instructions", "system", "system_prompt", "context", "contexts", "passage",
    "document", "article", "input", "question", "query", "premise", "choices", "options", "history",
    "prompt", "background", "tools", "functions",
})  # fmt: skip
LABELS = frozenset({"label", "labels"})
# Said to be a label or an answer where nothing else is.
PART_OF_LABEL = LABELS | {
    "sentiment", "class", "category", "target", "answer", "answers", "output", "outputs",
    "response", "responses", "completion", "completions", "emotion", "intent", "polarity", "stance",
    "gold", "solution",
}  # fmt: skip
# What can be a part of a prompt beside a whole conversation.
SYSTEM_MESSAGES = frozenset({"system", "system_prompt"})
BESIDE_MESSAGES = SYSTEM_MESSAGES | {"tools", "functions"}
BETWEEN = "\n\n"
# How many messages of a row are its prompt.
GIVEN = "(given)"

Columns = Mapping[str, str | Sequence[str]] | Sequence[str]


@dataclass(frozen=True)
class Reading:
    """How the rows of a source are read, beyond what their columns say by themselves.

    Attributes:
        columns: which columns play which role, such as ``prompt``, ``completion``, ``label``, any
            field of a known schema, ``system`` or ``ignore``. Several columns of one role are
            joined by an empty line, those that are empty left out.
        template: how a row becomes prompt and completion; None recognises the known schemas.
        prompt: a template of the prompt, in place of the schema's own.
        completion: a template of the completion, the same.
        words: what to write for the values of a label.
        chat: prompts and completions go through the tokenizer's chat template, as the user's and
            the assistant's turn.
    """

    columns: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    template: Template | None = None
    prompt: str | None = None
    completion: str | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    chat: bool = False

    @classmethod
    def of(
        cls,
        columns: Columns | None = None,
        *,
        template: Template | None = None,
        prompt: str | None = None,
        completion: str | None = None,
        words: Mapping[str, str] | Sequence[str] | None = None,
        chat: bool = False,
    ) -> "Reading":
        """What a user gave, checked; ``columns`` and ``words`` as mappings or as NAME=VALUE texts.

        Raises:
            ValueError: a role that is not known or is given twice, or a template beside others.
        """
        if template is not None and (prompt is not None or completion is not None or columns):
            raise UsageError("pass a template, or columns, prompt and completion; not both")
        given = words if isinstance(words, Mapping) else _pairs("words", words or (), "0=false")
        return cls(_roles(columns or ()), template, prompt, completion, dict(given), chat)

    @property
    def named(self) -> tuple[str, ...]:
        """The roles that a schema has to read."""
        beside = (IGNORE, SYSTEM, "split", OTHER_ANSWER, *TASK_FIELDS)
        return tuple(role for role in self.columns if role not in beside)


class Table(NamedTuple):
    """A source as text.

    Attributes:
        source: its path or name.
        schema: fields of the known schema that fits; none where the user wrote the whole template.
        template: how its rows became prompts and completions.
        by_task: its records, by the name of their task; its own name where none is given.
        notes: what was left out or decided, one sentence each.
        bad: rows left out under ``on_bad="skip"``.
        chat: the texts are what a chat template wrote.
    """

    source: str
    schema: tuple[str, ...]
    template: Template
    by_task: dict[str, list[Record]]
    notes: tuple[str, ...]
    bad: tuple[RowError, ...]
    chat: bool


@dataclass(frozen=True)
class Named:
    """Rows with the names that schemas give their columns.

    Attributes:
        rows: the rows.
        spelled: every column by its name in ``rows``, as the source spells it.
        ignored: names of those that the user said are not to be read.
    """

    rows: Rows
    spelled: Mapping[str, str]
    ignored: frozenset[str]

    def name(self, field_name: str) -> str:
        """The column that a template of the user means by a field."""
        if field_name in self.spelled:
            return field_name
        by_file = [own for own, name in self.spelled.items() if folded(name) == folded(field_name)]
        by_own = [own for own in self.spelled if folded(own) == folded(field_name)]
        # A name that ends in a question mark is no optional one.
        marked = [own for own in self.spelled if own == f"{field_name}?"]
        return next(iter((*by_file, *by_own, *marked)), field_name)

    @property
    def is_pairs(self) -> bool:
        """Whether at least half of the rows are pairs of texts."""
        rows = self.rows.values
        return 2 * sum(all(key in row for key in PAIR) for row in rows) >= len(rows)


def named_rows(source: str | Path, reading: Reading, *, on_bad: OnBad = "error") -> Named:
    """The rows of a source, their columns named by the roles that they were given.

    Names are compared without case, and other names that published data have are known.

    Raises:
        RowError: a bad row.
        ValueError: a column that is named and that no row has, or that has two roles.
    """
    rows = rows_of(source, on_bad=on_bad)
    found = tuple(dict.fromkeys(key for row in rows.values for key in row))
    roles = {role: _found(names, found, rows.source) for role, names in reading.columns.items()}
    taken = [name for role, names in roles.items() if role != IGNORE for name in names]
    if twice := [name for name in taken if taken.count(name) > 1]:
        raise UsageError(f"columns: {twice[0]!r} is given two roles; pass one")
    ignored = roles.pop(IGNORE, ())
    to = {name: role for role, names in roles.items() for name in names}
    for name in found:
        if name not in to:
            to[name] = _own_name(name, found, set(roles))
    several = {role: names for role, names in roles.items() if len(names) > 1}
    values = tuple(_as_messages(_renamed(row, to, several)) for row in rows.values)
    spelled: dict[str, str] = {}
    for name in found:
        spelled.setdefault(to[name], name)
    spelled |= {role: ", ".join(names) for role, names in several.items()}
    if any(GIVEN in row for row in values):
        spelled["messages"] = ", ".join(spelled.pop(name) for name in ("prompt", "completion"))
    return Named(replace(rows, values=values), spelled, frozenset(to[name] for name in ignored))


def read_table(
    source: str | Path,
    reading: Reading,
    *,
    on_bad: OnBad = "error",
    tokenizer: Any = None,
    labelled: bool = False,
) -> Table:
    """The rows of a source as prompts and completions.

    Args:
        source: a file, ``frenet:NAME``, or the name of a data set on the hub.
        reading: how the rows are read.
        on_bad: "error" stops at the first bad row, "skip" leaves it out.
        tokenizer: of the model, for its chat template; None where only names are asked for.
        labelled: completions are labels, whatever the template says.

    Raises:
        RowError: a bad row.
        ValueError: no known schema fits, or a column is left that is usually part of a prompt or a
            label.
    """
    return table_of(
        named_rows(source, reading, on_bad=on_bad), reading,
        on_bad=on_bad, tokenizer=tokenizer, labelled=labelled,
    )  # fmt: skip


def table_of(
    found: Named,
    reading: Reading,
    *,
    on_bad: OnBad = "error",
    tokenizer: Any = None,
    labelled: bool = False,
    prompts: Mapping[tuple[str, ...], str] | None = None,
) -> Table:
    """``read_table`` of rows that are named; ``prompts`` are other ones for known schemas."""
    rows, (schema, template) = found.rows, template_of(found, reading)
    if reading.prompt is None and prompts and schema in prompts:
        template = replace(template, prompt=prompts[schema])
    notes = [*rows.notes]
    if schema == CHOICES:
        rows, letters = lettered(rows, on_bad=on_bad)
        template, notes = replace(template, labels=letters), [*rows.notes]
    is_chat = reading.chat or schema in (MESSAGES, RESPONSE)
    if SYSTEM in reading.columns and not is_chat:
        raise UsageError("columns: 'system' is a turn of a chat; pass --chat (chat=True) with it")
    read = {*template.read, template.task_field}
    read |= {OTHER_ANSWER} if schema == BEHAVIOUR else set()
    read |= {SYSTEM} if is_chat else set()
    notes.append(columns_read(found, read, template, reading))
    labelled = labelled or template.labels is not None
    turns = _Turns(tokenizer, template, labelled) if is_chat and tokenizer is not None else None
    texts, bad = records(rows, template, on_bad=on_bad, turns=turns)
    by_task: dict[str, list[Record]] = {}
    for record in texts:
        by_task.setdefault(record.task or Path(rows.source).stem, []).append(record)
    if not by_task:
        raise UsageError(f"{rows.source} holds no usable row; the first bad one: {bad[0]}")
    if labelled:
        for name, part in by_task.items():
            by_task[name], merged = _one_spelling(part)
            notes += merged
    if turns and turns.unanswered:
        notes.append(f"{turns.unanswered} conversations end with messages that are not read")
    return Table(
        rows.source, schema, template, by_task, tuple(notes), (*rows.skipped, *bad), is_chat
    )


def columns_read(
    found: Named, read: Collection[str | None], template: Template, reading: Reading
) -> str:
    """A note on the columns that are read, and on those that are not.

    Args:
        found: the rows.
        read: names of the columns that are.
        template: that reads them.
        reading: what the user has said.

    Raises:
        ValueError: one that is not read is usually part of a prompt or a label, and the user has
            not said what it is.
    """
    done = {*read, "split"}
    unread = [name for name in found.spelled if name not in done and name not in found.ignored]
    for name in unread:
        _refuse(name, found, template, reading)
    own = ", ".join(spelled for name, spelled in found.spelled.items() if name in done)
    others = ", ".join(found.spelled[name] or "''" for name in unread)
    return f"columns read: {own}" + (f"; not read: {others}" if others else "")


def _refuse(name: str, found: Named, template: Template, reading: Reading) -> None:
    """Raise ValueError where an unread column is usually part of what is read."""
    if reading.template is not None:
        return
    label, said = found.spelled[name], reading.columns.keys()
    word, fields = folded(label), [found.spelled.get(f, f) for f in template.fields]
    plain = not template.prompt and template.fields != MESSAGES
    prompts = BESIDE_MESSAGES if template.fields == MESSAGES else PART_OF_PROMPT
    if word in prompts and not reading.prompt and "prompt" not in said:
        what, hint = "prompt", _prompt_hint(label, found, template)
    elif word in (PART_OF_LABEL if plain else LABELS) and not (
        reading.completion or {"completion", "label"} & said
    ):
        what, hint = "label", f"label={label}"
    else:
        return
    remedy = f"say what it is, as with --columns {hint} (columns= in Python), or " if hint else ""
    raise UsageError(
        f"{found.rows.source}: the column {shown(label)} is usually part of a {what}, and the "
        f"schema that fits reads {', '.join(fields)} only; {remedy}leave it with --columns "
        f"ignore={label}"
    )


def _prompt_hint(label: str, found: Named, template: Template) -> str:
    """How a column comes before what a schema reads; nothing where it cannot."""
    if template.fields == MESSAGES:
        return f"system={label}" if folded(label) in SYSTEM_MESSAGES else ""
    fields = Template(template.prompt, "").read
    first = [name for name in fields if name not in TASK_FIELDS]
    if not first:
        return f"prompt={label} completion={found.spelled.get('text', 'text')}"
    spelled = found.spelled.get(first[0], first[0])
    if template.words or len(fields) > 1 or len(Template("", template.completion).read) > 1:
        return f"{first[0]}={label},{spelled}"
    role, last = "label" if template.labels is not None else "completion", _last(template)
    return f"prompt={label},{spelled} {role}={found.spelled.get(last, last)}"


def _last(template: Template) -> str:
    return Template("", template.completion).read[-1]


def template_of(found: Named, reading: Reading) -> tuple[tuple[str, ...], Template]:
    """How rows become prompts and completions: as the user says, or by a known schema.

    Returns:
        The fields of the known schema, none where the user wrote the whole; the template.
    """
    reading = _respelled(reading, found)
    if reading.template is not None:
        return (), _worded(reading.template, reading)
    if reading.prompt is not None and reading.completion is not None:
        label = Template("", reading.completion).read == ("label",)
        template = Template(
            reading.prompt, reading.completion, labels="seen" if label else None,
            task_field=task_field(found.rows),
        )  # fmt: skip
        return (), _worded(template, reading)
    template = recognise(found.rows, reading.named)
    schema = template.fields
    if schema == MESSAGES and (reading.prompt is not None or reading.completion is not None):
        raise UsageError(
            f"{found.rows.source}: rows of messages are written by the chat template; pass both "
            "--prompt and --completion to read other columns, or neither"
        )
    if reading.prompt is not None:
        template = replace(template, prompt=reading.prompt)
    if reading.completion is not None:
        template = replace(template, completion=reading.completion, labels=None, words={})
    return schema, _worded(template, reading)


def _worded(template: Template, reading: Reading) -> Template:
    """The template with the user's words for the values of a label."""
    if not reading.words:
        return template
    labels = tuple(dict.fromkeys(reading.words.values()))
    return replace(template, words=reading.words, labels=labels)


def _respelled(reading: Reading, found: Named) -> Reading:
    """What the user wrote, with the fields of templates named as the rows' columns are."""

    def spelled(text: str | None) -> str | None:
        return None if text is None else renamed(text, found.name)

    template = reading.template
    if template is not None:
        template = replace(
            template,
            prompt=renamed(template.prompt, found.name),
            completion=renamed(template.completion, found.name),
            task_field=template.task_field and found.name(template.task_field),
        )
    return replace(
        reading, template=template, prompt=spelled(reading.prompt),
        completion=spelled(reading.completion),
    )  # fmt: skip


def _own_name(name: str, found: Sequence[str], given: set[str]) -> str:
    """What a column is called that the user gave no role: the name of a role, if it is one.

    A column whose name the user gave to another one keeps its own under a mark.
    """
    if name in given:
        return f"{name} (the file's own)"
    if name in ROLES:
        return name
    alike = [each for each in found if folded(each) == folded(name)]
    for role in (folded(name), ALIASES.get(folded(name), "")):
        if len(alike) == 1 and role in ROLES and role not in found and role not in given:
            return role
    return name


def _renamed(
    row: Mapping[str, Any], to: Mapping[str, str], several: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """A row with the names of the roles, and columns of one role joined."""
    made = {to[key]: value for key, value in row.items() if to[key] not in several}
    for role, names in several.items():
        values = [row[name] for name in names if not is_blank(row.get(name))]
        odd = [value for value in values if not isinstance(value, str | int | float)]
        if any(name in row for name in names):
            made[role] = odd[0] if odd else BETWEEN.join(map(str, values))
    return made


def _one_spelling(part: list[Record]) -> tuple[list[Record], list[str]]:
    """The records with labels that differ only in space or case as one, and a note on those."""
    counts = Counter(record.completion for record in part)
    groups: dict[str, Counter[str]] = {}
    for text, n in counts.items():
        groups.setdefault(folded(text), Counter())[text.strip()] += n
    one = {key: spellings.most_common(1)[0][0] for key, spellings in groups.items()}
    merged = [
        f"{', '.join(map(shown, spellings))} as {shown(one[key])}"
        for key in groups
        if len(spellings := [text for text in counts if folded(text) == key]) > 1
    ]
    note = f"labels that differ only in space or case are read as one: {'; '.join(merged)}"
    same = [record._replace(completion=one[folded(record.completion)]) for record in part]
    return same, [note] if merged else []


def _as_messages(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose prompt and completion are lists of messages, as one conversation."""
    parts: list[Any] = [row.get(name) for name in ("prompt", "completion")]
    if not all(isinstance(part, list) and part and isinstance(part[0], dict) for part in parts):
        return row
    rest = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
    return {**rest, "messages": [*parts[0], *parts[1]], GIVEN: len(parts[0])}


class _Turns:
    """Rows through a chat template."""

    def __init__(self, tokenizer: Any, template: Template, labelled: bool) -> None:
        self.tokenizer, self.template, self.labelled = tokenizer, template, labelled
        self.unanswered = 0

    def __call__(self, row: Mapping[str, Any], record: Record) -> list[Record]:
        if self.template.fields == MESSAGES:
            return self._conversation(row, record)
        if not self.template.prompt:
            raise UsageError("plain text has no turns; leave --chat out")
        system = chat.system_of(row)
        if self.labelled:
            prompt = chat.opened(self.tokenizer, record.prompt, system)
            return [record._replace(prompt=prompt)]
        texts = chat.answered(self.tokenizer, record.prompt, record.completion, system)
        return [record._replace(prompt=texts[0], completion=texts[1])]

    def _conversation(self, row: Mapping[str, Any], record: Record) -> list[Record]:
        """One record for every turn of the assistant, so that each of its tokens is scored once."""
        if "messages" not in row:
            raise UsageError(f"missing key 'messages'; keys found: {', '.join(map(repr, row))}")
        messages = chat.messages_of(row["messages"])
        system = chat.system_of(row)
        if system.strip():
            messages = [{"role": "system", "content": system}, *messages]
        first = row.get(GIVEN, 0) + bool(system.strip())
        found = chat.turns(self.tokenizer, messages, first=first)
        self.unanswered += messages[-1]["role"] != "assistant"
        key = found[0][0] or None
        return [record._replace(prompt=a, completion=b, key=key) for a, b in found]


def _roles(columns: Columns) -> dict[str, str | tuple[str, ...]]:
    """Columns by role, as the user gave them."""
    if isinstance(columns, Mapping):
        pairs = [(k, v if isinstance(v, str) else tuple(v)) for k, v in columns.items()]
    else:
        pairs = list(_pairs("columns", columns, "prompt=text").items())
    found: dict[str, str | tuple[str, ...]] = {}
    for name, value in pairs:
        role = folded(name)
        if role not in ROLES:
            listed = "prompt, completion, label, ignore, system, task, split, positive, negative"
            raise UsageError(
                f"columns: {name!r} is no role of a column; roles are {listed}, and the fields of "
                f"the known schemas ({', '.join(FIELDS)})"
            )
        found[role] = value
    return found


def _pairs(what: str, given: Sequence[str], example: str) -> dict[str, str]:
    """Texts NAME=VALUE as a mapping."""
    found: dict[str, str] = {}
    for text in [given] if isinstance(given, str) else given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise UsageError(f"{what}: {text!r} is not NAME=VALUE, such as {example}")
        if name.strip() in found:
            raise UsageError(f"{what}: {name.strip()!r} is given twice; separate values by commas")
        found[name.strip()] = value.strip()
    return found


def _found(names: str | Sequence[str], found: Sequence[str], source: str) -> tuple[str, ...]:
    """The columns that are meant: one of that name, or several with commas between them."""
    if isinstance(names, str):
        names = [names] if _column(names, found) else names.split(",")
    columns = []
    for name in names:
        column = _column(name, found)
        if column is None:
            listed = ", ".join(found)
            raise UsageError(f"{source}: no row has the column {name!r}; columns are {listed}")
        columns.append(column)
    return tuple(columns)


def _column(name: str, found: Sequence[str]) -> str | None:
    """The column of that name, else the only one that differs from it in case only."""
    alike = [each for each in found if folded(each) == folded(name)]
    if name.strip() in found:
        return name.strip()
    return alike[0] if len(alike) == 1 else None
