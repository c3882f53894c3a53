"""Fenced blocks of Markdown pages, and the commands in them."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# The last line of an output of which a block shows only the beginning.
CUT = "..."


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line of the page that the text starts on."""

    language: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [block_of(found) for found in FENCE.finditer(page)]


def block_of(found: re.Match[str]) -> Block:
    """The block of a match of ``FENCE``."""
    return Block(found[1], found[2], found.string.count("\n", 0, found.start()) + 2)


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines of its output that are shown.

    A command is what follows a prompt, with its continued lines and here-documents.
    """
    lines = text.splitlines()
    while lines:
        parts = [lines.pop(0).removeprefix("$ ")]
        while parts[-1].endswith("\\"):
            parts.append(lines.pop(0))
        if found := re.search(r"<<\s*'?(\w+)'?", parts[0]):
            while parts[-1] != found[1]:
                parts.append(lines.pop(0))
        shown = []
        while lines and not lines[0].startswith("$ "):
            shown.append(lines.pop(0))
        yield "\n".join(parts), shown


def console(every: Iterable[tuple[str, list[str]]]) -> str:
    """A console block of commands with the lines that they print."""
    lines = (line for command, shown in every for line in (f"$ {command}", *shown))
    return "\n".join(["```console", *lines, "```"])
