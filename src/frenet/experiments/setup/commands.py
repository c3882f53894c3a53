"""The command line that repeats a stored run."""

import dataclasses
from collections.abc import Mapping
from typing import Any


def flags_of(
    kind: type[Any], stored: Mapping[str, Any], *, leave: tuple[str, ...] = ()
) -> list[str]:
    """The flags of a stored configuration, without those that have their defaults.

    Args:
        kind: the type of the configuration.
        stored: its fields as JSON values.
        leave: fields that have no flag.

    >>> @dataclasses.dataclass
    ... class Config:
    ...     model: str
    ...     rows: int = 8
    ...     only: tuple[str, ...] = ()
    ...     chat: bool = False
    >>> flags_of(Config, {"model": "m", "rows": 8, "only": ["a", "b"], "chat": True})
    ['--model', 'm', '--only', 'a', 'b', '--chat']
    """
    words: list[str] = []
    for field in dataclasses.fields(kind):
        value = stored.get(field.name)
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        if field.name in leave or value is None or value == default:
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, list) else [value]
            words += [f"--{flag}", *map(str, values)]
    return words
