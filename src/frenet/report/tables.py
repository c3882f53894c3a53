"""Rows as an HTML table that sorts, and as CSV."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from frenet._notebook import showable
from frenet.experiments.experiment import Column, Rows, Scalar, Study
from frenet.report.markup import join, packed, tag

SHOWN = 200
# As many as the style sheet prints.
PRINTED = 15
# Significant digits of the numbers on a page, and the largest integer of its script.
DIGITS, EXACT = 6, 2**53
DIGITS_NOTE = f"Numbers have {DIGITS} digits; the run has all of them."
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
    """A closed ``details`` that the script of the page fills with the table when it is opened.

    The rows are inside it once, packed by columns; the script also makes the CSV from them.
    """
    count = f"{len(rows):,} row{'' if len(rows) == 1 else 's'}"
    summary = tag("summary", "Table ", tag("b", name), tag("span", f" {count}", class_="count"))
    shown = f"The first {SHOWN} of {count} in this order are shown; the file has all. "
    button = tag("button", "Download CSV", type="button", class_="csv", data_file=file)
    note = f"{shown if len(rows) > SHOWN else ''}Choose a heading to sort by it. {DIGITS_NOTE}"
    bar = tag("p", button, tag("span", note, class_="count screen"), class_="bar")
    scroll = tag("div", class_="scroll", tabindex="0", role="region", aria_label=f"Table {name}")
    short = f"On paper: the first {PRINTED} rows." if len(rows) > PRINTED else ""
    paper = tag("p", short, class_="paper count") if short else Markup("")
    data = packed(_by_columns(name, columns, rows), id=f"{id}-rows")
    whole = (summary, bar, scroll, paper, _legend(columns), data)
    return tag("details", *whole, class_="table", id=id, data_rows=f"{id}-rows")


def _by_columns(name: str, columns: Sequence[Column], rows: Rows) -> dict[str, Any]:
    """The rows for the script of the page: a list for each column, numbers of six digits."""
    return {
        "name": name,
        "shown": SHOWN,
        "columns": [
            {
                "name": column.name,
                "unit": column.unit,
                "hint": f"{column.meaning} ({column.unit})" if column.unit else column.meaning,
                "role": column.role,
                "values": [_packable(row.get(column.name)) for row in rows],
            }
            for column in columns
        ],
    }


def _packable(value: Scalar) -> Scalar:
    if isinstance(value, str):
        return showable(value)
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(value)
    # A number of JavaScript has 53 bits; a seed may have 64.
    return str(value) if isinstance(value, int) and abs(value) > EXACT else value


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


def _legend(columns: Sequence[Column]) -> Markup:
    entries = []
    for column in (c for c in columns if c.meaning):
        unit = tag("span", column.unit, class_="unit") if column.unit else Markup("")
        other = f"; compare with {column.beside}" if column.beside else ""
        entries.append(tag("div", tag("dt", column.name, unit), tag("dd", column.meaning, other)))
    return tag("dl", join(entries), class_="legend") if entries else Markup("")
