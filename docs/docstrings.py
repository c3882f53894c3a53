"""An extension for the reference: every name once, in its module, with doctests as examples."""

from typing import Any

import griffe


class Reference(griffe.Extension):
    """Changes docstrings and imported names before mkdocstrings renders them."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Puts ``Examples:`` before the first prompt, as in the Google style."""
        if obj.docstring is None:
            return
        lines = obj.docstring.value.splitlines()
        first = next((i for i, line in enumerate(lines) if line.startswith(">>> ")), None)
        if first is not None:
            tests = [f"    {line}" if line else "" for line in lines[first:]]
            obj.docstring.value = "\n".join([*lines[:first], "Examples:", *tests])

    def on_alias(self, *, alias: griffe.Alias, **_: Any) -> None:
        """Hides a name that a module imports."""
        alias.public = False
