"""Display of results: one line in a console, a small table in a notebook."""

import hashlib
import html
import re
from collections.abc import Iterable

Fact = tuple[str, object, str]

HEADINGS = ("", "value", "compare with")
# Characters that neither HTML nor XML can hold (control characters, halves of surrogate pairs) or
# that a terminal interprets, and those that end a line or reverse the direction of the text, which
# can make one name look like another.
UNSHOWABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
BREAKS = re.compile("[\t\n\r]")
# A longer line is cut at the end.
LONGEST = 120
# A longer message is cut in the middle.
LONGEST_MESSAGE = 2000
# A longer text is not the name of a task.
LONGEST_NAME = 1000
# The notebook's style sheet is unknown: colours are inherited, so that the text stays readable.
TABLE = "border-collapse: collapse; color: inherit; background: none; overflow-wrap: anywhere"
CAPTION = "caption-side: top; text-align: left; color: inherit; padding: 0.3em 0"
CELL = "text-align: left; padding: 0.2em 1em 0.2em 0; border-top: 1px solid rgb(128 128 128 / 50%)"


class Shown:
    """A result that is one line in a console and a table in a notebook.

    A dataclass that inherits from it needs ``repr=False``. ``_summary`` describes it, and computes
    nothing. ``_entries`` yields its numbers: name, value, and the chance level, null, ceiling or
    interval of the value.
    """

    def _summary(self) -> str:
        raise NotImplementedError(f"{type(self).__name__} does not describe itself")

    def _entries(self) -> Iterable[Fact]:
        raise NotImplementedError(f"{type(self).__name__} does not describe itself")

    def __repr__(self) -> str:
        summary = showable(" ".join(self._summary().split()))
        return f"<{type(self).__name__}: {clipped(summary)}>"

    def _repr_html_(self) -> str:
        return table(f"{type(self).__name__}: {self._summary()}", self._entries())


def table(caption: str, facts: Iterable[Fact]) -> str:
    """An HTML table with three columns and escaped texts, without script or class.

    >>> table("a < b", [("x", 0.123456, "chance 0")]).count("<td"), "a &lt; b" in table("a < b", [])
    (2, True)
    """
    rows = "".join(
        f'<tr><th scope="row" style="{CELL}; font-weight: inherit">{_escaped(name)}</th>'
        f'<td style="{CELL}">{_escaped(number(value))}</td>'
        f'<td style="{CELL}">{_escaped(reference)}</td></tr>'
        for name, value, reference in facts
    )
    heads = "".join(f'<th scope="col" style="{CELL}">{heading}</th>' for heading in HEADINGS)
    body = f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>" if rows else ""
    title = f'<caption style="{CAPTION}">{_escaped(caption)}</caption>'
    return f'<table style="{TABLE}">{title}{body}</table>'


def number(value: object) -> str:
    """A value for display: floats to four digits, integers with thousands separators.

    >>> number(0.123456), number(102592), number(None), number("as it is")
    ('0.1235', '102,592', 'not known', 'as it is')
    """
    if value is None:
        return "not known"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def clipped(text: str) -> str:
    """The text, cut at the end if it is too long for a line.

    >>> len(clipped("long" * 100))
    120
    """
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def showable(text: str) -> str:
    """The text, with an escape for every character that a page cannot hold.

    >>> showable("a" + chr(0) + chr(0x202E))
    'a\\\\x00\\\\u202e'
    """
    return UNSHOWABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: object, longest: int = LONGEST_MESSAGE) -> str:
    """Any text as one line that a terminal or page shows and does not interpret.

    Control characters and line ends become escapes; the middle of a text that is too long is left
    out.

    >>> one_line("task" + chr(27) + "[31m" + chr(10) + "error: forged")
    'task\\\\x1b[31m\\\\nerror: forged'
    """
    plain = showable(shortened(str(text), longest))
    return BREAKS.sub(lambda found: ascii(found[0])[1:-1], plain)


def listed(names: Iterable[str]) -> str:
    """Names for a message, with escapes for control characters.

    >>> listed(["plural", "past" + chr(10)])
    'plural, past\\\\n'
    """
    return ", ".join(one_line(name, LONGEST) for name in names)


def shortened(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """Start and end of a text that is too long, with its length and digest.

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
