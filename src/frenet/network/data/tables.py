"""Tables: from the columns of a source to prompts and completions. The one place that reads rows.

Every column is read, ignored at the user's request, named in a note, or refused.
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
from frenet.network.data.sources import Source, rows_of

IGNORE, SYSTEM = "ignore", "system"
FIELDS = tuple(dict.fromkeys(name for template in KNOWN for name in template.fields))
ROLES = (*FIELDS, *PAIR, *TASK_FIELDS, "split", OTHER_ANSWER, SYSTEM, IGNORE)
# Columns that are usually part of a prompt.
PART_OF_PROMPT = frozenset({
    "instruction", "instructions", "system", "system_prompt", "context", "contexts", "passage",
    "document", "article", "input", "question", "query", "premise", "choices", "options", "history",
    "prompt", "background", "tools", "functions",
})  # fmt: skip
LABELS = frozenset({"label", "labels"})
# Columns that are usually a label or an answer, if the schema reads plain text only.
PART_OF_LABEL = LABELS | {
    "sentiment", "class", "category", "target", "answer", "answers", "output", "outputs",
    "response", "responses", "completion", "completions", "emotion", "intent", "polarity", "stance",
    "gold", "solution",
}  # fmt: skip
# Columns that can be part of a prompt in addition to a conversation.
SYSTEM_MESSAGES = frozenset({"system", "system_prompt"})
BESIDE_MESSAGES = SYSTEM_MESSAGES | {"tools", "functions"}
BETWEEN = "\n\n"
# The key of the number of messages that are the prompt of a row.
GIVEN = "(given)"

Columns = Mapping[str, str | Sequence[str]] | Sequence[str]


@dataclass(frozen=True)
class Reading:
    """The user's settings for reading the rows of a source.

    Attributes:
        columns: the columns of each role, such as ``prompt``, ``completion``, ``label``, any
            field of a known schema, ``system`` or ``ignore``. Several columns of one role are
            joined by an empty line; empty ones are left out.
        template: how a row becomes prompt and completion; None recognises the known schemas.
        prompt: a template that replaces the schema's prompt.
        completion: a template that replaces the schema's completion.
        words: replacements for the values of a label.
        chat: whether prompts and completions go through the tokenizer's chat template, as the
            user's and the assistant's turn.
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
        """Check a user's settings; ``columns`` and ``words`` are mappings or NAME=VALUE texts.

        Raises:
            ValueError: an unknown or repeated role, or a template together with other settings.
        """
        if template is not None and (prompt is not None or completion is not None or columns):
            raise UsageError("pass a template, or columns, prompt and completion; not both")
        mapped = words if isinstance(words, Mapping) else _pairs("words", words or (), "0=false")
        return cls(_roles(columns or ()), template, prompt, completion, dict(mapped), chat)

    @property
    def named(self) -> tuple[str, ...]:
        """The roles that a schema has to read."""
        outside = (IGNORE, SYSTEM, "split", OTHER_ANSWER, *TASK_FIELDS)
        return tuple(role for role in self.columns if role not in outside)


class Table(NamedTuple):
    """A source as text.

    Attributes:
        source: path or name of the source.
        schema: fields of the known schema that fits; empty if the user wrote the whole template.
        template: how the rows became prompts and completions.
        by_task: the records by task; without a task field, under the name of the source.
        notes: what was left out or decided, one sentence each.
        bad: rows left out under ``on_bad="skip"``.
        chat: whether a chat template wrote the texts.
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
    """Rows with columns renamed as in the schemas.

    Attributes:
        rows: the rows.
        spelled: for every name in ``rows``, the spelling in the source.
        ignored: names of the columns that the user ignores.
    """

    rows: Rows
    spelled: Mapping[str, str]
    ignored: frozenset[str]

    def name(self, field_name: str) -> str:
        """The column that a field in a user's template refers to."""
        if field_name in self.spelled:
            return field_name
        key = folded(field_name)
        by_file = [role for role, name in self.spelled.items() if folded(name) == key]
        by_role = [role for role in self.spelled if folded(role) == key]
        # The name of a column may end in a question mark.
        marked = [role for role in self.spelled if role == f"{field_name}?"]
        return next(iter((*by_file, *by_role, *marked)), field_name)

    @property
    def is_pairs(self) -> bool:
        """Whether at least half of the rows are pairs of texts."""
        rows = self.rows.values
        return 2 * sum(all(key in row for key in PAIR) for row in rows) >= len(rows)


def named_rows(source: Source, reading: Reading, *, on_bad: OnBad = "error") -> Named:
    """The rows of a source, with the user's roles as names of their columns.

    Names are compared without case, and include some aliases of published data sets.

    Raises:
        RowError: a bad row.
        ValueError: no row has a named column, or a column has two roles.
    """
    rows = rows_of(source, on_bad=on_bad)
    keys = tuple(dict.fromkeys(key for row in rows.values for key in row))
    roles = {role: _columns(names, keys, rows.source) for role, names in reading.columns.items()}
    taken = [name for role, names in roles.items() if role != IGNORE for name in names]
    if twice := [name for name in taken if taken.count(name) > 1]:
        raise UsageError(f"columns: {twice[0]!r} is given two roles; pass one")
    ignored = roles.pop(IGNORE, ())
    to = {name: role for role, names in roles.items() for name in names}
    for name in keys:
        if name not in to:
            to[name] = _own_name(name, keys, set(roles))
    several = {role: names for role, names in roles.items() if len(names) > 1}
    values = tuple(_as_messages(_renamed(row, to, several)) for row in rows.values)
    spelled: dict[str, str] = {}
    for name in keys:
        spelled.setdefault(to[name], name)
    spelled |= {role: ", ".join(names) for role, names in several.items()}
    if any(GIVEN in row for row in values):
        spelled["messages"] = ", ".join(spelled.pop(name) for name in ("prompt", "completion"))
    return Named(replace(rows, values=values), spelled, frozenset(to[name] for name in ignored))


def read_table(
    source: Source,
    reading: Reading,
    *,
    on_bad: OnBad = "error",
    tokenizer: Any = None,
    labelled: bool = False,
) -> Table:
    """The rows of a source as prompts and completions.

    Args:
        source: a file, ``frenet:NAME``, rows in memory, or the name of a data set on the hub.
        reading: how the rows are read.
        on_bad: "error" stops at the first bad row, "skip" leaves it out.
        tokenizer: the model's tokenizer, for its chat template; None if only names are needed.
        labelled: whether completions are labels, whatever the template says.

    Raises:
        RowError: a bad row.
        ValueError: no known schema fits, or an unread column is usually part of a prompt or a
            label.
    """
    return table_of(
        named_rows(source, reading, on_bad=on_bad), reading,
        on_bad=on_bad, tokenizer=tokenizer, labelled=labelled,
    )  # fmt: skip


def table_of(
    named: Named,
    reading: Reading,
    *,
    on_bad: OnBad = "error",
    tokenizer: Any = None,
    labelled: bool = False,
    prompts: Mapping[tuple[str, ...], str] | None = None,
) -> Table:
    """``read_table`` for named rows; ``prompts`` replace the prompts of known schemas."""
    rows, (schema, template) = named.rows, template_of(named, reading)
    if reading.prompt is None and prompts and schema in prompts:
        template = replace(template, prompt=prompts[schema])
    notes = [*rows.notes]
    if schema == CHOICES:
        rows, letters = lettered(rows, on_bad=on_bad)
        template, notes = replace(template, labels=letters), [*rows.notes]
    is_chat = reading.chat or schema in (MESSAGES, RESPONSE)
    if SYSTEM in reading.columns and not is_chat:
        raise UsageError("columns: 'system' is a turn of a chat; also pass --chat (chat=True)")
    read = {*template.read, template.task_field}
    read |= {OTHER_ANSWER} if schema == BEHAVIOUR else set()
    read |= {SYSTEM} if is_chat else set()
    notes.append(columns_read(named, read, template, reading))
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
        notes.append(f"{turns.unanswered} conversations end with messages that are not used")
    return Table(
        rows.source, schema, template, by_task, tuple(notes), (*rows.skipped, *bad), is_chat
    )


def columns_read(
    named: Named, read: Collection[str | None], template: Template, reading: Reading
) -> str:
    """A note on the columns that are read, and on the others.

    Args:
        named: the rows.
        read: names of the columns that are read.
        template: the template that reads them.
        reading: the user's settings.

    Raises:
        ValueError: an unread column is usually part of a prompt or a label, and the user has
            given it no role.
    """
    done = {*read, "split"}
    unread = [name for name in named.spelled if name not in done and name not in named.ignored]
    for name in unread:
        _refuse(name, named, template, reading)
    columns = ", ".join(spelled for name, spelled in named.spelled.items() if name in done)
    others = ", ".join(named.spelled[name] or "''" for name in unread)
    return f"columns read: {columns}" + (f"; not read: {others}" if others else "")


def _refuse(name: str, named: Named, template: Template, reading: Reading) -> None:
    """Raise ValueError if an unread column is usually part of a prompt or a label."""
    if reading.template is not None:
        return
    label, roles = named.spelled[name], reading.columns.keys()
    word, fields = folded(label), [named.spelled.get(f, f) for f in template.fields]
    plain = not template.prompt and template.fields != MESSAGES
    prompts = BESIDE_MESSAGES if template.fields == MESSAGES else PART_OF_PROMPT
    if word in prompts and not reading.prompt and "prompt" not in roles:
        what, hint = "prompt", _prompt_hint(label, named, template)
    elif word in (PART_OF_LABEL if plain else LABELS) and not (
        reading.completion or {"completion", "label"} & roles
    ):
        what, hint = "label", f"label={label}"
    else:
        return
    remedy = f"give it a role with --columns {hint} (columns= in Python), or " if hint else ""
    raise UsageError(
        f"{named.rows.source}: the column {shown(label)} is usually part of a {what}, and the "
        f"schema that fits reads only {', '.join(fields)}; {remedy}leave it out with --columns "
        f"ignore={label}"
    )


def _prompt_hint(label: str, named: Named, template: Template) -> str:
    """The option that puts a column before the fields of a schema; "" if there is none."""
    if template.fields == MESSAGES:
        return f"system={label}" if folded(label) in SYSTEM_MESSAGES else ""
    fields = Template(template.prompt, "").read
    first = [name for name in fields if name not in TASK_FIELDS]
    if not first:
        return f"prompt={label} completion={named.spelled.get('text', 'text')}"
    spelled = named.spelled.get(first[0], first[0])
    if template.words or len(fields) > 1 or len(Template("", template.completion).read) > 1:
        return f"{first[0]}={label},{spelled}"
    role, last = "label" if template.labels is not None else "completion", _last(template)
    return f"prompt={label},{spelled} {role}={named.spelled.get(last, last)}"


def _last(template: Template) -> str:
    return Template("", template.completion).read[-1]


def template_of(named: Named, reading: Reading) -> tuple[tuple[str, ...], Template]:
    """How rows become prompts and completions: by the user's settings, or by a known schema.

    Returns:
        The fields of the known schema, empty if the user wrote the whole template; the template.
    """
    reading = _respelled(reading, named)
    if reading.template is not None:
        return (), _worded(reading.template, reading)
    if reading.prompt is not None and reading.completion is not None:
        label = Template("", reading.completion).read == ("label",)
        template = Template(
            reading.prompt, reading.completion, labels="seen" if label else None,
            task_field=task_field(named.rows),
        )  # fmt: skip
        return (), _worded(template, reading)
    template = recognise(named.rows, reading.named)
    schema = template.fields
    if schema == MESSAGES and (reading.prompt is not None or reading.completion is not None):
        raise UsageError(
            f"{named.rows.source}: the chat template writes rows of messages; pass both "
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


def _respelled(reading: Reading, named: Named) -> Reading:
    """The user's settings, with the names of the rows' columns in templates."""

    def spelled(text: str | None) -> str | None:
        return None if text is None else renamed(text, named.name)

    template = reading.template
    if template is not None:
        template = replace(
            template,
            prompt=renamed(template.prompt, named.name),
            completion=renamed(template.completion, named.name),
            task_field=template.task_field and named.name(template.task_field),
        )
    return replace(
        reading, template=template, prompt=spelled(reading.prompt),
        completion=spelled(reading.completion),
    )  # fmt: skip


def _own_name(name: str, keys: Sequence[str], given: set[str]) -> str:
    """The name of a column without a role from the user: a role of that name, if there is one.

    If the user gave this role to another column, the name gets a mark.
    """
    if name in given:
        return f"{name} (the file's own)"
    if name in ROLES:
        return name
    alike = [each for each in keys if folded(each) == folded(name)]
    for role in (folded(name), ALIASES.get(folded(name), "")):
        if len(alike) == 1 and role in ROLES and role not in keys and role not in given:
            return role
    return name


def _renamed(
    row: Mapping[str, Any], to: Mapping[str, str], several: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """A row with roles as names, and with the columns of one role joined."""
    made = {to[key]: value for key, value in row.items() if to[key] not in several}
    for role, names in several.items():
        values = [row[name] for name in names if not is_blank(row.get(name))]
        odd = [value for value in values if not isinstance(value, str | int | float)]
        if any(name in row for name in names):
            made[role] = odd[0] if odd else BETWEEN.join(map(str, values))
    return made


def _one_spelling(part: list[Record]) -> tuple[list[Record], list[str]]:
    """The records with one spelling of labels that differ only in space or case, and a note."""
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
    """A row as one conversation, if its prompt and completion are lists of messages."""
    parts: list[Any] = [row.get(name) for name in ("prompt", "completion")]
    if not all(isinstance(part, list) and part and isinstance(part[0], dict) for part in parts):
        return row
    rest = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
    return {**rest, "messages": [*parts[0], *parts[1]], GIVEN: len(parts[0])}


class _Turns:
    """Applies a chat template to rows."""

    def __init__(self, tokenizer: Any, template: Template, labelled: bool) -> None:
        self.tokenizer, self.template, self.labelled = tokenizer, template, labelled
        self.unanswered = 0

    def __call__(self, row: Mapping[str, Any], record: Record) -> list[Record]:
        if self.template.fields == MESSAGES:
            return self._conversation(row, record)
        if not self.template.prompt:
            raise UsageError("plain text has no turns; omit --chat")
        system = chat.system_of(row)
        if self.labelled:
            prompt = chat.opened(self.tokenizer, record.prompt, system)
            return [record._replace(prompt=prompt)]
        texts = chat.answered(self.tokenizer, record.prompt, record.completion, system)
        return [record._replace(prompt=texts[0], completion=texts[1])]

    def _conversation(self, row: Mapping[str, Any], record: Record) -> list[Record]:
        """One record per turn of the assistant, so that each of its tokens is scored once."""
        if "messages" not in row:
            raise UsageError(f"missing key 'messages'; keys found: {', '.join(map(repr, row))}")
        messages = chat.messages_of(row["messages"])
        system = chat.system_of(row)
        if system.strip():
            messages = [{"role": "system", "content": system}, *messages]
        first = row.get(GIVEN, 0) + bool(system.strip())
        turns = chat.turns(self.tokenizer, messages, first=first)
        self.unanswered += messages[-1]["role"] != "assistant"
        key = turns[0][0] or None
        return [record._replace(prompt=a, completion=b, key=key) for a, b in turns]


def _roles(columns: Columns) -> dict[str, str | tuple[str, ...]]:
    """The user's columns by role."""
    if isinstance(columns, Mapping):
        pairs = [(k, v if isinstance(v, str) else tuple(v)) for k, v in columns.items()]
    else:
        pairs = list(_pairs("columns", columns, "prompt=text").items())
    by_role: dict[str, str | tuple[str, ...]] = {}
    for name, value in pairs:
        role = folded(name)
        if role not in ROLES:
            listed = "prompt, completion, label, ignore, system, task, split, positive, negative"
            raise UsageError(
                f"columns: {name!r} is no role of a column; roles are {listed}, and the fields of "
                f"the known schemas ({', '.join(FIELDS)})"
            )
        by_role[role] = value
    return by_role


def _pairs(what: str, texts: Sequence[str], example: str) -> dict[str, str]:
    """Texts NAME=VALUE as a mapping."""
    values: dict[str, str] = {}
    for text in [texts] if isinstance(texts, str) else texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise UsageError(f"{what}: {text!r} is not NAME=VALUE, such as {example}")
        if name.strip() in values:
            raise UsageError(f"{what}: {name.strip()!r} is given twice; separate values by commas")
        values[name.strip()] = value.strip()
    return values


def _columns(names: str | Sequence[str], keys: Sequence[str], source: str) -> tuple[str, ...]:
    """The named columns: one of this name, or several separated by commas."""
    if isinstance(names, str):
        names = [names] if _column(names, keys) else names.split(",")
    columns = []
    for name in names:
        column = _column(name, keys)
        if column is None:
            listed = ", ".join(keys)
            raise UsageError(f"{source}: no row has the column {name!r}; columns are {listed}")
        columns.append(column)
    return tuple(columns)


def _column(name: str, keys: Sequence[str]) -> str | None:
    """The column of that name, else the only one that differs from it only in case."""
    alike = [each for each in keys if folded(each) == folded(name)]
    if name.strip() in keys:
        return name.strip()
    return alike[0] if len(alike) == 1 else None
