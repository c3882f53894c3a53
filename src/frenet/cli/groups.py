"""Options in groups: the help of a command begins with what its question is about."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

MODEL = "model and task"
# The options that most commands have, by group; all others are in a group of the command's name.
COMMON: Mapping[str, tuple[str, ...]] = {
    MODEL: ("model", "networks", "tasks", "only", "max_tasks"),
    "file": (
        "columns", "prompt", "completion", "chat", "max_length", "words",
    ),
    "contrast": (
        "contrasts", "contrast_columns", "contrast_prompt", "behaviour", "statements",
        "statement_columns", "statement_prompt",
    ),
    "seed and adapter": ("seeds", "spaces", "rank", "targets"),
    "damage": (
        "protocol", "protocols", "depth", "damage_optimizer", "damage_steps", "damage_batch",
    ),
    "network training": (
        "width", "train_steps", "learn_steps", "learn_optimizer", "learn_batch",
    ),
    "loading": ("dtype", "device", "tokenizer", "untie"),
}  # fmt: skip
# What one value of an option with several is called.
FILES: Mapping[str, str] = {
    "tasks": "FILE", "statements": "FILE", "vectors": "PATH", "networks": "NETWORK",
}  # fmt: skip
KINDS: Mapping[type[Any], str] = {str: "NAME", int: "N", float: "X"}
OF = {name: title for title, names in COMMON.items() for name in names}


class Groups(NamedTuple):
    """A dataclass of options, divided for its help.

    Attributes:
        kind: the dataclass.
        parts: a dataclass with some of its fields, by the title of the group.
    """

    kind: type[Any]
    parts: Mapping[str, type[Any]]

    @classmethod
    def of(cls, options: Any, title: str) -> "Groups":
        """Divide a dataclass, or the fields of an instance, whose values become the defaults.

        Args:
            options: the dataclass or instance.
            title: of the group of the fields that are not common to many commands.
        """
        kind = options if isinstance(options, type) else type(options)
        hints = get_type_hints(kind, include_extras=True)
        helps = dict(_helps(kind))
        divided: dict[str, list[Any]] = {MODEL: [], title: [], **{name: [] for name in COMMON}}
        for part in fields(kind):
            value = part.default if options is kind else getattr(options, part.name)
            given = {} if value is MISSING else {"default": value}
            shown = tyro.conf.arg(
                help=helps.get(part.name),
                help_behavior_hint=_hint,
                metavar=_values(part.name, hints[part.name]),
            )
            item = (part.name, Annotated[hints[part.name], shown], field(**given))
            divided[OF.get(part.name, title)].append(item)
        return cls(
            kind,
            {
                name: make_dataclass(name.title().replace(" ", ""), _required_first(items))
                for name, items in divided.items()
                if items
            },
        )

    def whole(self, parsed: Any) -> Any:
        """The dataclass from its parsed parts."""
        found = [getattr(parsed, identifier(title)) for title in self.parts]
        return self.kind(
            **{part.name: getattr(group, part.name) for group in found for part in fields(group)}
        )


def identifier(title: str) -> str:
    """The name of the field of a group."""
    return title.replace(" ", "_")


def _required_first(items: list[Any]) -> list[Any]:
    return sorted(items, key=lambda item: item[2].default is not MISSING)


def _helps(kind: type[Any]) -> Iterator[tuple[str, str]]:
    """The text below every field, of bases first."""
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            for part in docstring_parser.parse_from_object(base).params:
                if part.description:
                    yield part.arg_name, " ".join(part.description.split())


def _values(name: str, hint: Any) -> str | None:
    """What an option with several values takes; None: as its type says."""
    one = get_args(hint)[:1] if get_origin(hint) is tuple else ()
    return f"{FILES.get(name) or KINDS[one[0]]} ..." if one and one[0] in KINDS else None


def _hint(default: str) -> str:
    """The default in the help, unless it is nothing."""
    if default in ("", "''", "None", "False", "(required)"):
        return default if default == "(required)" else ""
    return f"(default: {default})"
