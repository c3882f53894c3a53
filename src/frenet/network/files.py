"""Rows of text from JSONL and CSV files as people really save them."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

OnBad = Literal["error", "skip"]
SUFFIXES = (".jsonl", ".csv")


class RowError(ValueError):
    """One bad row: the file, the physical line it starts on, and what is wrong with it."""

    def __init__(self, source: str | Path, line: int, why: str) -> None:
        super().__init__(f"{source}, line {line}: {why}")
        self.line = line
        self.why = why


@dataclass(frozen=True)
class Rows:
    """Rows in file order; ``lines[i]`` is the physical line on which ``values[i]`` starts.

    Cells of a CSV file are text, whatever they look like ("NA", "null", "1"); values of a JSONL
    file are what the JSON says. ``skipped`` holds the rows left out under ``on_bad="skip"``, and
    ``notes`` says what else was left out, one sentence each.
    """

    source: str
    values: tuple[dict[str, Any], ...]
    lines: tuple[int, ...]
    skipped: tuple[RowError, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)


def read_rows(path: str | Path, *, required: Sequence[str] = (), on_bad: OnBad = "error") -> Rows:
    r"""Read a JSONL or CSV file: UTF-8 with or without BOM, any line ends, blank lines ignored.

    Line breaks inside quoted CSV cells are kept, written as ``\n``.

    Args:
        path: a file that ends in ``.jsonl`` or ``.csv``; a CSV file starts with a header.
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
    parse = _parse_csv if path.suffix.lower() == ".csv" else _parse_jsonl
    good: list[tuple[int, dict[str, Any]]] = []
    skipped: list[RowError] = []
    for item in parse(path, text):
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
        raise ValueError(f"{path} holds no usable row{first}")
    lines, values = zip(*good, strict=True)
    return Rows(str(path), values, lines, tuple(skipped))


def _read_text(path: Path) -> str:
    """The whole file with line ends as LF and without BOM."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name one {' or '.join(SUFFIXES)} file in it")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{path} ends in {path.suffix or 'no extension'}; rows are read from "
            f"{' and '.join(SUFFIXES)} files: save it as one of them"
        )
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file "
            "with the encoding UTF-8"
        ) from None
    if not text.strip():
        raise ValueError(f"{path} is empty")
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
            if isinstance(value, dict):
                yield number, value
            else:
                yield RowError(
                    path, number, f"holds {shown(value)}; every line must be one JSON object"
                )


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} occurs twice")
        found[key] = value
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON; write it as text or leave the key out")


def _parse_csv(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]] | RowError]:
    # strict: a quote that is never closed would otherwise swallow the rest of the file silently.
    reader = csv.reader(io.StringIO(text), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise RowError(path, line, f"the header cannot be read: {error}") from None
            yield RowError(path, line, f"not CSV: {error}")
            continue
        if len(cells) <= 1 and not "".join(cells).strip():
            continue
        if header is None:
            header = _header(path, line, cells)
        elif len(cells) == len(header):
            yield line, dict(zip(header, cells, strict=True))
        else:
            yield RowError(path, line, _wrong_width(header, cells))


def _header(path: Path, line: int, cells: list[str]) -> list[str]:
    twice = {name for name in cells if cells.count(name) > 1}
    if twice:
        raise RowError(path, line, f"the column {min(twice)!r} occurs twice in the header")
    return cells


def _wrong_width(header: list[str], cells: list[str]) -> str:
    if len(cells) < len(header):
        lacking = ", ".join(map(repr, header[len(cells) :]))
        return f"{len(cells)} of {len(header)} cells, {shown(cells)}; missing column {lacking}"
    return (
        f"{len(cells)} cells for {len(header)} columns, the first one too many is "
        f"{shown(cells[len(header)])}; put quotes around a cell that holds a comma"
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
