"""Rows of text from JSONL, JSON and CSV files."""

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
# Separators of cells; if several fit equally well, the first one counts.
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
# Lists of objects with these names are a value of a row, not the rows of a file.
OF_A_ROW = {
    "messages", "conversations", "prompt", "completion", "chosen", "rejected", "tools", "functions",
}  # fmt: skip
# Lines of a table that decide its separator.
LOOKED_AT = 200


class RowError(UsageError):
    """One bad row: the file, the physical line of its start, and the reason."""

    def __init__(self, source: str | Path, line: int, why: str) -> None:
        super().__init__(f"{source}, line {line}: {why}")
        self.line = line
        self.why = why


@dataclass(frozen=True)
class Rows:
    """Rows in file order; ``lines[i]`` is the physical line on which ``values[i]`` starts.

    Cells of a CSV file are text, whatever they look like ("NA", "null", "1"); values of a JSON
    file have their JSON types. White space around the names of columns is removed. ``skipped``
    contains the rows that ``on_bad="skip"`` left out, and ``notes`` says what else was left out or
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

    Line breaks inside quoted CSV cells become ``\n``. A first line such as ``sep=;`` sets the
    separator of cells. Otherwise it is the comma, semicolon, tab or bar that gives the header at
    least two columns, and most rows as many cells as the header. A note names a separator other
    than the comma.

    Args:
        path: a ``.jsonl`` file; a ``.json`` file with one list of objects, alone or as the only
            list in an object; or a ``.csv`` or ``.tsv`` file with a header.
        required: keys that every row must have, with a value that is not null and not blank.
        on_bad: "error" stops at the first bad row; "skip" leaves it out and lists it in
            ``Rows.skipped``.

    Raises:
        FileNotFoundError: there is no such file.
        RowError: a bad row; the message names file, line, key and value.
        ValueError: the file as a whole cannot be read, or has no good row.
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
    """The rows of a text, by the suffix of its file, and notes."""
    if path.suffix.lower() in (".csv", ".tsv"):
        stated, text = _stated_separator(text)
        separator = stated or _separator(text)
        notes = [f"cells are separated by {SEPARATORS[separator]}s"] if separator != "," else []
        return _parse_csv(path, text, separator, first=2 if stated else 1), tuple(notes)
    if path.suffix.lower() == ".json":
        if text.lstrip().startswith("["):
            return _objects(path, _json(path, text)), ()
        if content := _one_object(text):
            values, note = _wrapped(path, content)
            return _objects(path, values), note
    return _parse_jsonl(path, text), ()


def _read_text(path: Path) -> str:
    """The text of the file, with LF as line end and without BOM."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name one {' or '.join(KINDS)} file in it")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"{path} ends in {path.suffix or 'no extension'}; save its rows as one of "
            f"{', '.join(SUFFIXES)}"
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
    # Only LF ends a line: U+2028 and the like may occur unescaped in a JSON string.
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
    """The value of a text that is one JSON document."""
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
    """The object if the whole text is one; None otherwise, as for one object per line."""
    try:
        content = json.loads(text, object_pairs_hook=_no_twice, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # reported later, with its line
        return None
    return content if isinstance(content, dict) else None


def _wrapped(path: Path, content: dict[str, Any]) -> tuple[Sequence[Any], tuple[str, ...]]:
    """The rows of a file with one object: its only list of objects, or else the object."""
    lists = [
        name
        for name, value in content.items()
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    ]
    remedy = "save its rows as one list of objects, or one object per line"
    if len(lists) == 1 and lists[0].casefold() not in OF_A_ROW:
        others = [name for name in content if name not in lists]
        also = f"; not read: {', '.join(others)}" if others else ""
        return content[lists[0]], (f"the rows are the list {shown(lists[0])} of the file{also}",)
    if not OF_A_ROW & {name.casefold() for name in lists}:
        if lists:
            raise UsageError(f"{path} holds the lists {', '.join(map(shown, lists))}; {remedy}")
        if len(content) > 1 and all(isinstance(value, dict | list) for value in content.values()):
            raise UsageError(
                f"{path} holds one object of columns, and no rows; {remedy} (pandas: orient="
                "'records')"
            )
    return [content], ()


def _objects(path: Path, values: Sequence[Any]) -> Iterator[tuple[int, dict[str, Any]] | RowError]:
    """The objects of one list, with their numbers instead of lines."""
    for number, value in enumerate(values, start=1):
        yield _object(path, number, value, "element of the list")


def _object(
    path: Path, number: int, value: Any, what: str
) -> tuple[int, dict[str, Any]] | RowError:
    if isinstance(value, dict):
        return number, value
    return RowError(path, number, f"holds {shown(value)}; every {what} must be one JSON object")


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        key = name.strip()
        if key in values:
            raise UsageError(f"the key {key!r} occurs twice")
        values[key] = value
    return values


def _no_constant(name: str) -> None:
    raise UsageError(f"{name} is not JSON; write it as text or remove the key")


def _stated_separator(text: str) -> tuple[str | None, str]:
    """The separator in a first line such as ``sep=;`` of spreadsheets, and the text after it."""
    first, _, rest = text.lstrip("\n").partition("\n")
    line = first.strip().strip('"')
    if line.lower().startswith("sep=") and line[4:] in SEPARATORS:
        return line[4:], rest
    return ("\t", rest) if first.strip(" ").strip('"').lower() == "sep=\t" else (None, text)


def _separator(text: str) -> str:
    """The separator that gives the header several columns and fits most rows; else the comma.

    ``csv.Sniffer`` counts characters, and may choose a letter of the prose.
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
    """Allow cells as long as the text; the limit belongs to the whole process."""
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
    """The cells of every row, with its first line."""
    start = text.lstrip("\n").partition("\n")[0]
    spaced = separator in start and start.count(separator) == start.count(f"{separator} ")
    # strict: otherwise a quote that is never closed would swallow the rest of the file.
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
        missing = ", ".join(map(repr, header[len(cells) :]))
        return f"{len(cells)} of {len(header)} cells, {shown(cells)}; missing column {missing}"
    return (
        f"{len(cells)} cells for {len(header)} columns, the first extra one is "
        f"{shown(cells[len(header)])}; put quotes around a cell that contains a {separator}"
    )


def _missing(
    path: Path, item: tuple[int, dict[str, Any]], required: Sequence[str]
) -> RowError | None:
    """The error of a row without a required key, or with an empty value."""
    line, row = item
    for key in required:
        if key not in row:
            keys = ", ".join(map(repr, row)) or "none"
            return RowError(path, line, f"missing key {key!r}; keys found: {keys}")
        if row[key] is None or (isinstance(row[key], str) and not row[key].strip()):
            return RowError(path, line, f"{key!r} is empty: {shown(row[key])}")
    return None


def shown(value: Any, limit: int = 60) -> str:
    """A value for a message, cut to ``limit`` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
