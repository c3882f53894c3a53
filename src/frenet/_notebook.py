"""How results show themselves: one line in a console, a small table in a notebook."""

import hashlib
import html
import re
from collections.abc import Iterable

Fact = tuple[str, object, str]

HEADINGS = ("", "value", "to be read beside")
# What neither HTML nor XML can hold (control characters, halves of surrogate pairs), what a
# terminal obeys instead of showing it, and the signs that end a line or turn the direction of what
# follows them, with which one name can be made to look another.
UNSHOWABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
BREAKS = re.compile("[\t\n\r]")
# Of a longer line the start is shown.
LONGEST = 120
# Of a longer message the start and the end are shown.
LONGEST_MESSAGE = 2000
# A longer text is no name of a task.
LONGEST_NAME = 1000
# Of a notebook's own style sheet nothing is known but that its text can be read.
TABLE = "border-collapse: collapse; color: inherit; background: none; overflow-wrap: anywhere"
CAPTION = "caption-side: top; text-align: left; color: inherit; padding: 0.3em 0"
CELL = "text-align: left; padding: 0.2em 1em 0.2em 0; border-top: 1px solid rgb(128 128 128 / 50%)"


class Shown:
    """A result that is one line in a console and a table in a notebook.

    A dataclass that inherits from it is made with ``repr=False``. ``_summary`` says what it is and
    computes nothing. ``_entries`` are its numbers: each has a name, a value, and the chance level,
    null, ceiling or interval of the value.
    """

    def _summary(self) -> str:
        raise NotImplementedError(f"{type(self).__name__} says nothing of itself")

    def _entries(self) -> Iterable[Fact]:
        raise NotImplementedError(f"{type(self).__name__} says nothing of itself")

    def __repr__(self) -> str:
        told = showable(" ".join(self._summary().split()))
        return f"<{type(self).__name__}: {clipped(told)}>"

    def _repr_html_(self) -> str:
        return table(f"{type(self).__name__}: {self._summary()}", self._entries())


def table(caption: str, facts: Iterable[Fact]) -> str:
    """A table with three columns as HTML, every text in it escaped, without script or class.

    >>> table("a < b", [("x", 0.123456, "chance 0")]).count("<td"), "a &lt; b" in table("a < b", [])
    (2, True)
    """
    rows = "".join(
        f'<tr><th scope="row" style="{CELL}; font-weight: inherit">{_escaped(name)}</th>'
        f'<td style="{CELL}">{_escaped(number(value))}</td>'
        f'<td style="{CELL}">{_escaped(beside)}</td></tr>'
        for name, value, beside in facts
    )
    heads = "".join(f'<th scope="col" style="{CELL}">{heading}</th>' for heading in HEADINGS)
    body = f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>" if rows else ""
    title = f'<caption style="{CAPTION}">{_escaped(caption)}</caption>'
    return f'<table style="{TABLE}">{title}{body}</table>'


def number(value: object) -> str:
    """A value as people read it: floats to four digits, whole numbers in groups of three.

    >>> number(0.123456), number(102592), number(None), number("as it is")
    ('0.1235', '102,592', 'not known', 'as it is')
    """
    if value is None:
        return "not known"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def clipped(text: str) -> str:
    """The start of a text that is too long for a line.

    >>> len(clipped("long" * 100))
    120
    """
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def showable(text: str) -> str:
    """The text with whatever a page cannot hold written out as an escape.

    >>> showable("a" + chr(0) + chr(0x202E))
    'a\\\\x00\\\\u202e'
    """
    return UNSHOWABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: object, longest: int = LONGEST_MESSAGE) -> str:
    """One line of a terminal or a page that shows any text and obeys none of it.

    Whatever a terminal would obey, and line ends, are written out as escapes; the middle of a text
    that is too long is left out.

    >>> one_line("task" + chr(27) + "[31m" + chr(10) + "error: forged")
    'task\\\\x1b[31m\\\\nerror: forged'
    """
    plain = showable(shortened(str(text), longest))
    return BREAKS.sub(lambda found: ascii(found[0])[1:-1], plain)


def listed(names: Iterable[str]) -> str:
    """Names in a message, whatever is in them.

    >>> listed(["plural", "past" + chr(10)])
    'plural, past\\\\n'
    """
    return ", ".join(one_line(name, LONGEST) for name in names)


def shortened(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """Start and end of a text that is too long, its length, and what tells it from others.

    >>> shortened("long" * 1000, 40)
    'longlonglongl... (4,000 characters, 59f1d666) ...nglong'
    """
    if len(text) <= longest:
        return text
    name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    head, end = text[: longest // 3], text[-(longest // 6) :]
    return f"{head}... ({len(text):,} characters, {name}) ...{end}"


def _escaped(text: str) -> str:
    return html.escape(showable(text))
