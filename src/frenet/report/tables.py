"""Rows as an HTML table that sorts, and as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from markupsafe import Markup

from frenet.experiments.experiment import Column, Rows, Study
from frenet.report.markup import join, tag
from frenet.report.numbers import NONE, figure

SHOWN = 200
# As many as the style sheet prints.
PRINTED = 15
# Texts up to this length stay on one line of their cell.
SHORT = 32
TABLE_KEY = "table"
# What a spreadsheet takes for the start of a formula. CSV has no sign that a cell is text.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def tables_of(experiment: Study, rows: Rows) -> dict[str, tuple[tuple[Column, ...], Rows]]:
    """Every table that has rows, declared ones first, as name -> (columns, rows)."""
    stored = {str(row.get(TABLE_KEY)) for row in rows}
    names = [name for name in experiment.tables if name in stored]
    names += sorted(stored.difference(names))
    tables: dict[str, tuple[tuple[Column, ...], Rows]] = {}
    for name in names:
        mine = [row for row in rows if str(row.get(TABLE_KEY)) == name]
        tables[name] = (arranged(experiment.tables.get(name, ()), mine), mine)
    return tables


def arranged(columns: Sequence[Column], rows: Rows) -> tuple[Column, ...]:
    """Keys, then every measure followed by its reference, then all other columns."""
    by_name = {column.name: column for column in columns}
    order = [column for column in columns if column.role == "key"]
    for column in columns:
        if column.role == "measure":
            order += [column, *([by_name[column.beside]] if column.beside in by_name else [])]
    order += columns
    declared = list(dict.fromkeys(order))
    undeclared = dict.fromkeys(key for row in rows for key in row if key not in by_name)
    undeclared.pop(TABLE_KEY, None)
    extra = [Column(name, "", "not described by the experiment", "key") for name in undeclared]
    return (*declared, *extra)


def csv_bytes(columns: Sequence[Column], rows: Rows) -> bytes:
    """The rows as RFC 4180 in UTF-8: doubled quotes, CRLF, full precision, nothing for None.

    Text that a spreadsheet would run as a formula gets an apostrophe; numbers stay numbers.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(column.name for column in columns)
    for row in rows:
        writer.writerow(_plain(row.get(column.name)) for column in columns)
    # Half of a surrogate pair has no form in UTF-8.
    return text.getvalue().encode("utf-8", "backslashreplace")


def html_table(name: str, columns: Sequence[Column], rows: Rows, *, file: str, id: str) -> Markup:
    """A closed ``details`` with the table, the meaning of its columns, and a link to its CSV."""
    count = f"{len(rows):,} row{'' if len(rows) == 1 else 's'}"
    summary = tag("summary", "Table ", tag("b", name), tag("span", f" {count}", class_="count"))
    shown = f"The first {SHOWN} of {count} are shown and sorted; the file has all."
    link = tag("a", "Download CSV", href=_data_link(csv_bytes(columns, rows)), download=file)
    note = f"{shown if len(rows) > SHOWN else ''} Choose a heading to sort by it."
    bar = tag("p", link, tag("span", note, class_="count screen"), class_="bar")
    head = tag("thead", tag("tr", *(_heading(column) for column in columns)))
    body = tag("tbody", *(_row(columns, row) for row in rows[:SHOWN]))
    grid = tag("table", tag("caption", f"Table {name}", class_="hidden"), head, body, class_="data")
    scroll = tag(
        "div", grid, class_="scroll", tabindex="0", role="region", aria_label=f"Table {name}"
    )
    short = f"On paper: the first {PRINTED} rows." if len(rows) > PRINTED else ""
    paper = tag("p", short, class_="paper count") if short else Markup("")
    return tag("details", summary, bar, scroll, paper, _legend(columns), class_="table", id=id)


def _plain(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULA) and not _number(value) else value
    return str(value).lower() if isinstance(value, bool) else value


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _data_link(content: bytes) -> str:
    return "data:text/csv;charset=utf-8," + quote(content, safe="-._~,:;=+/()[]@")


def _heading(column: Column) -> Markup:
    unit = tag("span", column.unit, class_="unit") if column.unit else Markup("")
    hint = f"{column.meaning} ({column.unit})" if column.unit else column.meaning
    button = tag("button", column.name, unit, type="button", title=hint)
    return tag("th", button, scope="col", class_=column.role, aria_sort="none")


def _row(columns: Sequence[Column], row: Mapping[str, object]) -> Markup:
    return tag("tr", *(_cell(column, row.get(column.name)) for column in columns))


def _cell(column: Column, value: object) -> Markup:
    if isinstance(value, str):
        short = " short" if len(value) <= SHORT else ""
        return tag("td", value, class_=f"{column.role}{short}", dir="auto")
    exact = None if value is None or isinstance(value, bool) else repr(value)
    text = figure(value)
    label = "no value" if text == NONE else None
    # data-value: the page sorts by the number, not by the text that was rounded.
    number = {"data_value": exact, "title": exact if isinstance(value, float) else label}
    return tag("td", text, class_=f"{column.role} number", **number)


def _legend(columns: Sequence[Column]) -> Markup:
    entries = []
    for column in (c for c in columns if c.meaning):
        unit = tag("span", column.unit, class_="unit") if column.unit else Markup("")
        other = f"; compare with {column.beside}" if column.beside else ""
        entries.append(tag("div", tag("dt", column.name, unit), tag("dd", column.meaning, other)))
    return tag("dl", join(entries), class_="legend") if entries else Markup("")
