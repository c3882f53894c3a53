"""The command that repeats a run, from its stored configuration."""

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any


def command_line(name: str, defaults: Any, config: Mapping[str, Any], *, first: str = "") -> str:
    """A command with every setting that differs from its default.

    Args:
        name: of the command, such as "frenet pair".
        defaults: its configuration without any flag.
        config: a configuration as it is stored.
        first: the setting whose values come without a flag.
    """
    words = [*name.split(), *(config[first] if first else ())]
    for field in dataclasses.fields(defaults):
        value, default = config.get(field.name), getattr(defaults, field.name)
        default = list(default) if isinstance(default, tuple) else default
        if field.name == first or value is None or value == default:
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, list) else [value]
            words += [f"--{flag}", *map(str, values)]
    return shlex.join(words)
