"""The content of a run folder as text: configurations, rows and cells in canonical JSON.

The rule for values: a row is a flat dict of ``str``, ``int``, ``float``, ``bool`` and ``None``.
NaN and the infinities are stored as null, since JSON cannot express them; anything else (a tensor,
a NumPy scalar that is no Python float, a list) is an error that names table, column and type. In a
configuration a number that is not finite is an error: it cannot identify a run.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from frenet._errors import UsageError
from frenet._files import (
    DamagedFileError,
    canonical,
    parse_json,
    require_object,
    sealed,
)
from frenet.experiments.experiment import Cell, Column, Study
from frenet.network.checkpoints.fingerprint import sampled
from frenet.network.checkpoints.folders import adapter_settings
from frenet.runs.files import DamagedRunError
from frenet.runs.header import FORMAT, FORMATS, without_seal

MAX_STEM = 100
WHOLE_FILE_BYTES = 64 << 20
# The fields of configurations that name files and folders; other texts may only look like names.
SOURCES = (
    "model", "adapter", "tokenizer", "tasks", "vectors", "contrasts", "steering", "trajectory",
    "neutral",
)  # fmt: skip
SYNTHETIC_NAMES = ("model", "tasks")


def encode_row(row: Mapping[str, Any], tables: Mapping[str, Sequence[str]]) -> str:
    """The stored line of one row, after checking it against the columns of its table.

    Args:
        row: flat dict of JSON scalars with the key ``table``.
        tables: names of the columns that each table declares.

    Returns:
        Canonical JSON, numbers that are not finite as null.

    Raises:
        ValueError: unknown table, undeclared column, or a value that is no JSON scalar.

    >>> encode_row({"table": "t", "loss": float("nan"), "k": 2}, {"t": ("k", "loss")})
    '{"k":2,"loss":null,"table":"t"}'
    """
    table = row.get("table")
    if not isinstance(table, str) or table not in tables:
        raise UsageError(f"a row names the table {table!r}; declared are {sorted(tables)}")
    clean: dict[str, Any] = {}
    for column, value in row.items():
        if column != "table" and column not in tables[table]:
            known = ", ".join(tables[table])
            raise UsageError(f"table {table!r} has no column {column!r}; declared are: {known}")
        if value is not None and not isinstance(value, str | int | float):
            raise UsageError(
                f"table {table!r}, column {column!r}: a row holds str, int, float, bool or None, "
                f"not {type(value).__name__}; convert it, e.g. with float()"
            )
        clean[column] = None if isinstance(value, float) and not math.isfinite(value) else value
    return canonical(clean)


def table_columns(tables: Mapping[str, Sequence[Column]]) -> dict[str, tuple[str, ...]]:
    """The names of the columns that each table declares."""
    return {table: tuple(column.name for column in columns) for table, columns in tables.items()}


def config_dict(config: Any) -> dict[str, Any]:
    """The fields of a configuration as JSON values, tuples as lists.

    Raises:
        TypeError: a field holds something other than JSON scalars and sequences or dicts of them.
        ValueError: a number is not finite.
    """
    return {
        field.name: _plain(getattr(config, field.name), field.name)
        for field in dataclasses.fields(config)
    }


def _plain(value: Any, field: str) -> Any:
    """A configuration value as JSON; ``field`` names it in errors."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"configuration field {field}={value} is not finite")
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item, field) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item, f"{field}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        return config_dict(value)
    raise TypeError(
        f"configuration field {field} is a {type(value).__name__}; "
        f"use str, int, float, bool, None or tuples of them"
    )


def config_digest(experiment: str, config: Mapping[str, Any]) -> str:
    """SHA-256 of an experiment's name and configuration, in hex."""
    text = canonical({"experiment": experiment, "config": config})
    return hashlib.sha256(text.encode()).hexdigest()


def default_out(experiment: Study, config: Any) -> Path:
    """The default folder of a run; the same configuration gives the same folder."""
    digest = config_digest(experiment.name, config_dict(config))
    return Path("runs") / f"{experiment.name}-{digest[:8]}"


def reproduction_out(preset: str, reproduction: Any) -> Path:
    """The default folder of a reproduction, by its preset, networks, tasks and experiments."""
    digest = config_digest(f"reproduce {preset}", config_dict(reproduction))
    return Path("runs") / f"reproduce-{preset}-{digest[:8]}"


def cell_stem(cell: Cell) -> str:
    """A file name for a cell: its id, with a digest if the id alone may be ambiguous.

    >>> cell_stem(Cell((("seed", 0), ("task", "sort"))))
    'seed=0,task=sort'
    >>> cell_stem(Cell((("task", "a/b"),))) == cell_stem(Cell((("task", "a:b"),)))
    False
    """
    text = cell.id
    # Replaced characters, cut names and file systems that ignore case could make two cells one.
    if "~" not in text and len(text) <= MAX_STEM and text == text.lower():
        return text
    return f"{text[:MAX_STEM]}.{hashlib.sha256(canonical(cell.keys).encode()).hexdigest()[:8]}"


class StoredCell(NamedTuple):
    """A cell's file: its head, and the lines of its rows, each with its line end.

    ``sealed``: whether it has digests; without them, damage cannot be detected.
    """

    head: dict[str, Any]
    lines: list[str]
    sealed: bool


def encode_cell(
    cell: Cell, lines: Sequence[str], *, run: str, about: Mapping[str, Any] | None = None
) -> str:
    """The content of a cell's file: a head with digests of the rows and of itself, then the rows.

    Args:
        cell: the cell of the rows.
        lines: as ``encode_row`` gives them.
        run: the digest of experiment and configuration.
        about: further entries of the head.
    """
    text = "".join(f"{line}\n" for line in lines)
    head = {
        **(about or {}),
        "format": FORMAT,
        "cell": dict(cell.keys),
        "name": cell_stem(cell),
        "run": run,
        "rows": len(lines),
        "rows_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    return f"{canonical(sealed(head))}\n{text}"


def read_cell(file: Path, *, run: str) -> StoredCell:
    """A cell's file, after comparing it with its head.

    Args:
        file: in the folder of cells.
        run: the digest of experiment and configuration of the run.

    Raises:
        DamagedRunError: it is damaged, or the file of another cell or run.
    """
    try:
        return _cell(file, run)
    except DamagedFileError as error:
        raise DamagedRunError.of(
            error, "run the same command again, which runs this cell again"
        ) from error


def _cell(file: Path, run: str) -> StoredCell:
    data = file.read_bytes()
    first, _, text = data.partition(b"\n")
    # JSON is split at LF alone; the rows of format 1 have none inside, either.
    lines = [f"{line}\n" for line in _text(text, file).split("\n")[:-1]]
    head = require_object(parse_json(first, file), file, cell=dict, seconds=(int, float))
    head.setdefault("format", 1)
    if head["format"] not in FORMATS:
        raise DamagedFileError(file, f"has the unknown format {head['format']!r}")
    head = without_seal(head, file)
    if has_seal := head["format"] != 1:
        require_object(head, file, rows=int, rows_sha256=str)
        if (head.get("name"), head.get("run")) != (file.stem, run):
            raise DamagedFileError(file, "is the file of another cell or of another run")
        if head["rows"] != len(lines) or head["rows_sha256"] != _sha256(text):
            raise DamagedFileError(file, f"does not hold its {head['rows']} rows as written")
    elif not _may_be_of(head["cell"], file.stem):
        raise DamagedFileError(file, "is the file of another cell")
    elif text and not text.endswith(b"\n"):
        raise DamagedFileError(file, "ends inside a row")
    else:
        for number, line in enumerate(lines, start=2):
            require_object(parse_json(line, file), f"{file}, line {number},", table=str)
    return StoredCell(head, lines, has_seal)


def _text(data: bytes, file: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DamagedFileError(file, f"is not UTF-8 at {error.start}") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _may_be_of(keys: Mapping[str, Any], stem: str) -> bool:
    """Whether a cell with these keys may have this name; format 1 does not store their order."""
    parts = [f"{key}={value}" for key, value in keys.items()]
    text = ",".join(parts)
    marked = cell_stem(Cell(tuple(keys.items()))) != Cell(tuple(keys.items())).id
    return marked or (len(text) == len(stem) and all(part in stem for part in parts))


def input_digests(config: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the files and folders that a configuration names, to detect a change.

    Of a recorded training only the steps are read, not the report in its folder. The folder of an
    adapter includes the base that it names. Models and data from the hub have no digest; the notes
    of the rows name their revision.
    """
    made_here = SYNTHETIC_NAMES if config.get("model") == "synthetic" else ()
    names: set[str] = set()
    for value in (config[name] for name in SOURCES if name in config and name not in made_here):
        names.update(v for v in (value if isinstance(value, list) else [value]) if _is_path(v))
    names.update(base for name in names.copy() if _is_path(base := _base_of(name)))
    read = {name: Path(name).expanduser() for name in sorted(names)}
    run = config.get("trajectory")
    if run in read and (steps := read[run] / "trajectory").is_dir():
        read[run] = steps
    return {name: _digest(path) for name, path in read.items()}


def _is_path(value: object) -> bool:
    """Whether a configuration value names something on disk."""
    try:
        return isinstance(value, str) and value != "" and Path(value).expanduser().exists()
    # Too long for a name, a NUL byte, or an unknown user's home: text, not a path.
    except (OSError, ValueError, RuntimeError):
        return False


def _base_of(name: str) -> Any:
    """The base that an adapter's folder names; None if it is no adapter, or cannot be read."""
    try:
        return adapter_settings(Path(name).expanduser()).get("base_model_name_or_path")
    except (OSError, ValueError, RuntimeError):  # loading it will report the error
        return None


def _digest(path: Path) -> str:
    """Digest of a file, or of the names and contents of the files directly in a folder."""
    state = hashlib.sha256()
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    for file in files:
        size = file.stat().st_size
        state.update(canonical([file.name, size]).encode())
        # Large checkpoints are distinguished without reading all of them.
        for part in [file.read_bytes()] if size <= WHOLE_FILE_BYTES else sampled(file):
            state.update(part)
    return state.hexdigest()[:16]
