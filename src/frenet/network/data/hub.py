"""Rows of a data set on the hub."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frenet._errors import UnreachableError, UsageError
from frenet.network.data.files import Rows

# The class number of rows without a label, as in the test splits of GLUE.
_NO_LABEL = -1
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


def is_path(source: str | Path) -> bool:
    """Whether ``source`` means a file: it exists, or it does not look like ``owner/name:config``.

    >>> is_path("./words"), is_path("words.jsonl"), is_path("glue:sst2")
    (True, True, False)
    """
    if isinstance(source, Path) or Path(source).expanduser().exists():
        return True
    looks_like_file = source.startswith((".", "/", "~")) or Path(source).suffix.lower() in (
        ".jsonl", ".json", ".csv", ".tsv", ".txt", ".ndjson", ".parquet",
    )  # fmt: skip
    return looks_like_file or _NAME.fullmatch(source) is None


def hub_rows(name: str) -> Rows:
    """All rows of the splits of a hub data set, see ``split_rows``.

    Args:
        name: ``owner/name`` or ``name``, and the configuration after a colon if there are
            several.

    Raises:
        ConnectionError: the data set cannot be loaded.
        ValueError: no row has a label.
    """
    import datasets

    repository, _, config = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, config or None)
    except (OSError, ValueError, RuntimeError) as error:
        raise UnreachableError(
            f"{name!r} is no file here, and the data set of that name cannot be loaded from the "
            f"hub: {_first_line(error)}; pass the path of a .jsonl or .csv file to stay offline"
        ) from error
    return split_rows(name, loaded)


def split_rows(name: str, splits: Mapping[str, Any]) -> Rows:
    """All rows of a data set; class numbers become the names of the classes.

    Rows with the class -1, which means no label, are left out, with a note.

    Args:
        name: of the data set.
        splits: by name; rows of a split without a name have none.

    Raises:
        ValueError: no row has a label.
    """
    values: list[dict[str, Any]] = []
    lines: list[int] = []
    unlabelled: Counter[str] = Counter()
    for split, rows in splits.items():
        classes = {k: f.names for k, f in rows.features.items() if hasattr(f, "names")}
        for number, row in enumerate(rows, start=1):
            if any(row[k] == _NO_LABEL for k in classes):
                unlabelled[str(split)] += 1
                continue
            named = {k: _named(v, classes.get(k)) for k, v in row.items()}
            values.append({"split": str(split), **named} if split else named)
            lines.append(number)
    notes = tuple(f"{split}: {n} rows without a label left out" for split, n in unlabelled.items())
    if unlabelled and not values:
        raise UsageError(f"{name!r} has no row with a label; pass a data set that has labels")
    return Rows(name, tuple(values), tuple(lines), notes=notes)


def _named(value: Any, classes: list[str] | None) -> Any:
    if classes is None or not isinstance(value, int) or not 0 <= value < len(classes):
        return value
    return classes[value]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
