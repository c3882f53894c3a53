"""Display of results: one line in a console, a small table in a notebook."""

import hashlib
import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

Fact = tuple[str, object, str]

HEADINGS = ("what", "value", "compare with")
# Of the picture of an interval, in pixels.
WIDTH, HEIGHT, EDGE = 200, 40, 10
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


class Interval(NamedTuple):
    """A value of an entry that is also drawn: a dot, its interval, and a tick at chance.

    Attributes:
        value: the number.
        low: lower end of its interval; None if there is none.
        high: upper end.
        chance: chance level, null or ceiling; None if there is none.
        word: before the number, such as a verdict.
    """

    value: float
    low: float | None
    high: float | None
    chance: float | None
    word: str = ""

    def __str__(self) -> str:
        text = number(self.value)
        if self.low is not None and self.high is not None:
            text += f" [{number(self.low)}, {number(self.high)}]"
        return f"{self.word}: {text}" if self.word else text

    def picture(self) -> str:
        """An SVG in the colour of the text; without numbers that are finite, nothing."""
        marks = [self.value, self.low, self.high, self.chance]
        finite = [mark for mark in marks if mark is not None and math.isfinite(mark)]
        if not finite or not math.isfinite(self.value):
            return ""
        least, span = min(finite), (max(finite) - min(finite)) or 1.0

        def at(mark: float) -> str:
            inside = min(max(mark, least), least + span)
            return f"{EDGE + (WIDTH - 2 * EDGE) * (inside - least) / span:.1f}"

        middle, parts = HEIGHT // 2, []
        if self.chance is not None and math.isfinite(self.chance):
            ends = f'x1="{at(self.chance)}" x2="{at(self.chance)}" y1="6" y2="{HEIGHT - 6}"'
            parts.append(f'<line {ends} stroke="gray" stroke-width="2" stroke-dasharray="4 3"/>')
        if self.low is not None and self.high is not None:
            ends = f'x1="{at(self.low)}" x2="{at(self.high)}" y1="{middle}" y2="{middle}"'
            parts.append(f'<line {ends} stroke="currentColor" stroke-width="2"/>')
        parts.append(f'<circle cx="{at(self.value)}" cy="{middle}" r="4" fill="currentColor"/>')
        label = html.escape(f"{self}, compared with {number(self.chance)}")
        size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
        return f'<br><svg {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'


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
        f'<td style="{CELL}">{_value(value)}</td>'
        f'<td style="{CELL}">{_escaped(reference)}</td></tr>'
        for name, value, reference in facts
    )
    return _table(caption, HEADINGS, rows)


def grid(
    caption: str,
    corner: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[str, str], float],
    best: tuple[str, str] | None,
) -> str:
    """An HTML table of numbers over two settings, the best one bold; cells may be missing.

    Args:
        caption: what the numbers are, and what to compare them with.
        corner: names the rows and the columns.
        rows: names of the rows.
        columns: names of the columns.
        cells: numbers by row and column.
        best: row and column of the one to use.

    >>> grid("gain", "sigma", ["1"], ["4", "8"], {("1", "8"): 0.5}, ("1", "8")).count("<b>")
    1
    """
    lines = ""
    for row in rows:
        lines += f'<tr><th scope="row" style="{CELL}; font-weight: inherit">{_escaped(row)}</th>'
        for column in columns:
            value = cells.get((row, column))
            text = "" if value is None else _escaped(number(value))
            bold = f"<b>{text}</b>" if (row, column) == best else text
            lines += f'<td style="{CELL}">{bold}</td>'
        lines += "</tr>"
    return _table(caption, (corner, *columns), lines)


def _table(caption: str, headings: Sequence[str], rows: str) -> str:
    heads = "".join(
        f'<th scope="col" style="{CELL}">{_escaped(heading)}</th>' for heading in headings
    )
    body = f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>" if rows else ""
    title = f'<caption style="{CAPTION}">{_escaped(caption)}</caption>'
    return f'<table style="{TABLE}">{title}{body}</table>'


def _value(value: object) -> str:
    """A value as HTML, with the picture of an interval."""
    if isinstance(value, Interval):
        return _escaped(str(value)) + value.picture()
    return _escaped(number(value))


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
