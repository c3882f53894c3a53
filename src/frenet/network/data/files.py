"""Rows of text from JSONL, JSON and CSV files as people really save them."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from frenet._errors import UsageError

OnBad = Literal["error", "skip"]
KINDS = (".jsonl", ".csv")
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
# What may stand between the cells of a table; the first one where several fit as well.
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
# Lists of objects that are a value of a row, not the rows of a file.
OF_A_ROW = {
    "messages", "conversations", "prompt", "completion", "chosen", "rejected", "tools", "functions",
}  # fmt: skip
# Lines of a table that are looked at to see which of them it is.
LOOKED_AT = 200


class RowError(UsageError):
    """One bad row: the file, the physical line it starts on, and what is wrong with it."""

    def __init__(self, source: str | Path, line: int, why: str) -> None:
        super().__init__(f"{source}, line {line}: {why}")
        self.line = line
        self.why = why


@dataclass(frozen=True)
class Rows:
    """Rows in file order; ``lines[i]`` is the physical line on which ``values[i]`` starts.

    Cells of a CSV file are text, whatever they look like ("NA", "null", "1"); values of a JSON
    file are what the JSON says. White space around the names of columns is left out. ``skipped``
    holds the rows left out under ``on_bad="skip"``, and ``notes`` says what else was left out or
    decided, one sentence each.
    """

    source: str
    values: tuple[dict[str, Any], ...]
    lines: tuple[int, ...]
    skipped: tuple[RowError, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)


def read_rows(path: str | Path, *, required: Sequence[str] = (), on_bad: OnBad = "error") -> Rows:
    r"""Read a JSONL, JSON or CSV file: UTF-8 with or without BOM, any line ends, no blank lines.

    Line breaks inside quoted CSV cells are kept, written as ``\n``. Cells stand between commas,
    semicolons, tabs or bars: what a first line ``sep=;`` says, or else the one that gives the
    header two columns or more and the most rows as many cells as the header; a note names it where
    it is no comma.

    Args:
        path: a file that ends in ``.jsonl``; in ``.json``, one list of objects, alone or as the
            only one in an object; or in ``.csv`` or ``.tsv``, which start with a header.
        required: keys that every row must have, with a value that is not null and not blank.
        on_bad: "error" stops at the first bad row; "skip" leaves it out and lists it in
            ``Rows.skipped``.

    Raises:
        FileNotFoundError: there is no such file.
        RowError: a bad row; the message names file, line, key and value.
        ValueError: the file as a whole cannot be read, or holds no good row.
    """
    path = Path(path).expanduser()
    text = _read_text(path)
    items, notes = _parsed(path, text)
    good: list[tuple[int, dict[str, Any]]] = []
    skipped: list[RowError] = []
    for item in items:
        error = item if isinstance(item, RowError) else _missing(path, item, required)
        if error is None:
            assert not isinstance(item, RowError)
            good.append(item)
        elif on_bad == "error":
            raise error
        else:
            skipped.append(error)
    if not good:
        first = f"; the first of {len(skipped)} bad ones: {skipped[0]}" if skipped else ""
        raise UsageError(f"{path} holds no usable row{first}")
    lines, values = zip(*good, strict=True)
    return Rows(str(path), values, lines, tuple(skipped), notes)


def _parsed(
    path: Path, text: str
) -> tuple[Iterator[tuple[int, dict[str, Any]] | RowError], tuple[str, ...]]:
    """The rows of a text by the kind of its file, and what has to be said of them."""
    if path.suffix.lower() in (".csv", ".tsv"):
        told, text = _told_separator(text)
        separator = told or _separator(text)
        notes = [f"cells stand between {SEPARATORS[separator]}s"] if separator != "," else []
        return _parse_csv(path, text, separator, first=2 if told else 1), tuple(notes)
    if path.suffix.lower() == ".json":
        if text.lstrip().startswith("["):
            return _objects(path, _json(path, text)), ()
        if found := _one_object(text):
            values, note = _wrapped(path, found)
            return _objects(path, values), note
    return _parse_jsonl(path, text), ()


def _read_text(path: Path) -> str:
    """The whole file with line ends as LF and without BOM."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name one {' or '.join(KINDS)} file in it")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"{path} ends in {path.suffix or 'no extension'}; rows are read from "
            f"{' and '.join(KINDS)} files ({', '.join(SUFFIXES)}): save it as one of them"
        )
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file "
            "with the encoding UTF-8"
        ) from None
    if not text.strip():
        raise UsageError(f"{path} is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _parse_jsonl(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]] | RowError]:
    # Only LF ends a line: U+2028 and its kind may stand unescaped inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_no_twice, parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            yield RowError(path, number, f"not JSON at column {error.colno}: {error.msg}")
        except ValueError as error:
            yield RowError(path, number, str(error))
        except RecursionError:
            yield RowError(path, number, "nested too deeply to be read")
        else:
            yield _object(path, number, value, "line")


def _json(path: Path, text: str) -> Any:
    """The value of a text that is JSON as a whole."""
    try:
        return json.loads(text, object_pairs_hook=_no_twice, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        why = f"not JSON at column {error.colno}: {error.msg}"
        raise RowError(path, error.lineno, why) from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply to be read") from None


def _one_object(text: str) -> dict[str, Any] | None:
    """The object that a text is as a whole; None where it is none, as a file with one a line."""
    try:
        found = json.loads(text, object_pairs_hook=_no_twice, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # said of the line that has it
        return None
    return found if isinstance(found, dict) else None


def _wrapped(path: Path, found: dict[str, Any]) -> tuple[Sequence[Any], tuple[str, ...]]:
    """The rows of a file that holds one object: its one list of objects, or else itself."""
    lists = [
        name
        for name, value in found.items()
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    ]
    remedy = "save its rows as one list of objects, or one object a line"
    if len(lists) == 1 and lists[0].casefold() not in OF_A_ROW:
        others = [name for name in found if name not in lists]
        also = f"; not read: {', '.join(others)}" if others else ""
        return found[lists[0]], (f"the rows are the list {shown(lists[0])} of the file{also}",)
    if not OF_A_ROW & {name.casefold() for name in lists}:
        if lists:
            raise UsageError(f"{path} holds the lists {', '.join(map(shown, lists))}; {remedy}")
        if len(found) > 1 and all(isinstance(value, dict | list) for value in found.values()):
            raise UsageError(
                f"{path} holds one object of columns, and no rows; {remedy} (pandas: orient="
                "'records')"
            )
    return [found], ()


def _objects(path: Path, values: Sequence[Any]) -> Iterator[tuple[int, dict[str, Any]] | RowError]:
    """The objects of one list; their numbers stand in place of lines."""
    for number, value in enumerate(values, start=1):
        yield _object(path, number, value, "element of the list")


def _object(
    path: Path, number: int, value: Any, what: str
) -> tuple[int, dict[str, Any]] | RowError:
    if isinstance(value, dict):
        return number, value
    return RowError(path, number, f"holds {shown(value)}; every {what} must be one JSON object")


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        key = name.strip()
        if key in found:
            raise UsageError(f"the key {key!r} occurs twice")
        found[key] = value
    return found


def _no_constant(name: str) -> None:
    raise UsageError(f"{name} is not JSON; write it as text or leave the key out")


def _told_separator(text: str) -> tuple[str | None, str]:
    """What a first line such as ``sep=;`` says, as spreadsheets write it, and the text after it."""
    first, _, rest = text.lstrip("\n").partition("\n")
    line = first.strip().strip('"')
    if line.lower().startswith("sep=") and line[4:] in SEPARATORS:
        return line[4:], rest
    return ("\t", rest) if first.strip(" ").strip('"').lower() == "sep=\t" else (None, text)


def _separator(text: str) -> str:
    """The separator under which the header has several columns and most rows fit it; a comma else.

    Not what ``csv.Sniffer`` guesses: by the frequency of characters it takes a letter of prose.
    """
    sizes = {}
    for separator in SEPARATORS:
        widths = []
        with _long_cells(text):
            try:
                for cells in csv.reader(io.StringIO(text), delimiter=separator):
                    widths += [len(cells)] if "".join(cells).strip() else []
                    if len(widths) > LOOKED_AT:
                        break
            except csv.Error:
                pass
        if widths and widths[0] > 1:
            sizes[separator] = widths.count(widths[0]) / len(widths)
    return max(sizes, key=lambda each: sizes[each]) if sizes else ","


@contextmanager
def _long_cells(text: str) -> Iterator[None]:
    """Let a cell be as long as the whole text; the limit is one of the whole process."""
    before = csv.field_size_limit(len(text) + 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parse_csv(
    path: Path, text: str, separator: str, *, first: int
) -> Iterator[tuple[int, dict[str, Any]] | RowError]:
    header: list[str] | None = None
    for line, cells in _cells(text, separator):
        number = line + first - 1
        if isinstance(cells, csv.Error):
            if header is None:
                raise RowError(path, number, f"the header cannot be read: {cells}") from None
            yield RowError(path, number, f"not CSV: {cells}")
        elif len(cells) <= 1 and not "".join(cells).strip():
            continue
        elif header is None:
            header = _header(path, number, cells)
        elif len(cells) == len(header):
            yield number, dict(zip(header, cells, strict=True))
        else:
            yield RowError(path, number, _wrong_width(header, cells, SEPARATORS[separator]))


def _cells(text: str, separator: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """The cells of every row with the line on which it starts."""
    start = text.lstrip("\n").partition("\n")[0]
    spaced = separator in start and start.count(separator) == start.count(f"{separator} ")
    # strict: a quote that is never closed would otherwise swallow the rest of the file silently.
    reader = csv.reader(
        io.StringIO(text), strict=True, delimiter=separator, skipinitialspace=spaced
    )
    while True:
        line = reader.line_num + 1
        with _long_cells(text):
            try:
                cells: list[str] | csv.Error = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                cells = error
        yield line, cells


def _header(path: Path, line: int, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise RowError(path, line, f"the column {min(twice)!r} occurs twice in the header")
    return names


def _wrong_width(header: list[str], cells: list[str], separator: str) -> str:
    if len(cells) < len(header):
        lacking = ", ".join(map(repr, header[len(cells) :]))
        return f"{len(cells)} of {len(header)} cells, {shown(cells)}; missing column {lacking}"
    return (
        f"{len(cells)} cells for {len(header)} columns, the first one too many is "
        f"{shown(cells[len(header)])}; put quotes around a cell that holds a {separator}"
    )


def _missing(
    path: Path, item: tuple[int, dict[str, Any]], required: Sequence[str]
) -> RowError | None:
    """The error of a row that lacks a required key, or holds nothing there."""
    line, row = item
    for key in required:
        if key not in row:
            found = ", ".join(map(repr, row)) or "none"
            return RowError(path, line, f"missing key {key!r}; keys found: {found}")
        if row[key] is None or (isinstance(row[key], str) and not row[key].strip()):
            return RowError(path, line, f"{key!r} is empty: {shown(row[key])}")
    return None


def shown(value: Any, limit: int = 60) -> str:
    """A value as it may stand in a message, cut to ``limit`` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
