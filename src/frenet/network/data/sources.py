"""Rows from a file, from memory, from a data set on the hub, or from a built-in data set."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from frenet._errors import UsageError
from frenet.network.data.builtin_data import is_made, made_rows
from frenet.network.data.files import OnBad, Rows, read_rows
from frenet.network.data.hub import hub_rows, is_path, split_rows
from frenet.network.data.schemas import PAIR

# A name, or rows in memory: mappings from columns to values, pairs of texts, or a data set of the
# library datasets.
Source = str | Path | Iterable[Any]
# The source of rows in memory, in messages and as the name of a task without one.
GIVEN_ROWS = "rows"


def rows_of(source: Source, *, on_bad: OnBad = "error") -> Rows:
    """The rows of a source: ``frenet:NAME``, a file, rows in memory, or a data set on the hub.

    Raises:
        RowError: a bad row of a file.
        ValueError: there is no built-in data set of that name, a file has no good row, or rows in
            memory are none.
        FileNotFoundError, ConnectionError: the source cannot be reached.
    """
    if not isinstance(source, str | Path):
        return _in_memory(source)
    if is_made(source):
        return made_rows(str(source))
    return read_rows(source, on_bad=on_bad) if is_path(source) else hub_rows(str(source))


def _in_memory(source: Iterable[Any]) -> Rows:
    """Rows of a list, or of a data set with or without splits."""
    if isinstance(source, Mapping):
        if all(hasattr(part, "features") for part in source.values()):
            return split_rows(GIVEN_ROWS, source)
        raise UsageError(
            "a mapping is no list of rows; pass a list of mappings such as {'prompt': 'a', "
            "'completion': 'b'}, or a DatasetDict"
        )
    if hasattr(source, "features"):
        return split_rows(GIVEN_ROWS, {"": source})
    values = tuple(_row(number, row) for number, row in enumerate(source, start=1))
    if not values:
        raise UsageError("there are no rows; pass at least one")
    return Rows(GIVEN_ROWS, values, tuple(range(1, len(values) + 1)))


def _row(number: int, row: Any) -> dict[str, Any]:
    """One row: a mapping, or a pair of texts."""
    if isinstance(row, Mapping):
        return {str(key): value for key, value in row.items()}
    if isinstance(row, tuple | list) and len(row) == 2 and all(isinstance(t, str) for t in row):
        return dict(zip(PAIR, row, strict=True))
    size = f" of {len(row)}" if isinstance(row, tuple | list) else ""
    raise UsageError(
        f"row {number} is a {type(row).__name__}{size}; pass a mapping from columns to values, or "
        "a pair of texts (positive, negative)"
    )
