"""Rows from a file, from a data set on the hub, or from a built-in data set."""

from pathlib import Path

from frenet.network.data.builtin_data import is_made, made_rows
from frenet.network.data.files import OnBad, Rows, read_rows
from frenet.network.data.hub import hub_rows, is_path


def rows_of(source: str | Path, *, on_bad: OnBad = "error") -> Rows:
    """The rows of a source: ``frenet:NAME``, a file, or else a data set on the hub.

    Raises:
        RowError: a bad row of a file.
        ValueError: there is no built-in data set of that name, or a file has no good row.
        FileNotFoundError, ConnectionError: the source cannot be reached.
    """
    if is_made(source):
        return made_rows(str(source))
    return read_rows(source, on_bad=on_bad) if is_path(source) else hub_rows(str(source))
