"""Fenced blocks of Markdown pages, and the commands in them."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line of the page that the text starts on."""

    language: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [
        Block(found[1], found[2], page.count("\n", 0, found.start()) + 2)
        for found in _FENCE.finditer(page)
    ]


def commands(text: str) -> Iterator[str]:
    """The commands of a console block: lines after a prompt, with their here-documents."""
    lines = iter(text.splitlines())
    for line in lines:
        if not line.startswith("$ "):
            continue
        parts = [line[2:]]
        while parts[-1].endswith("\\"):
            parts.append(next(lines))
        if found := re.search(r"<<\s*'?(\w+)'?", parts[0]):
            while parts[-1] != found[1]:
                parts.append(next(lines))
        yield "\n".join(parts)
