"""What a run folder holds, as text: configurations, rows and cells in one canonical JSON form.

The rule for values: a row is a flat dict of ``str``, ``int``, ``float``, ``bool`` and ``None``.
NaN and the infinities are stored as null, since JSON has no word for them; anything else (a tensor,
a NumPy scalar that is no Python float, a list) is an error that names table, column and type. In a
configuration a number that is not finite is an error: no run can be told apart by it.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frenet.experiments.experiment import Cell, Column, Experiment
from frenet.network.sampled import sampled
from frenet.runs.files import RunFolderError

MAX_STEM = 100
WHOLE_FILE_BYTES = 64 << 20
# The fields of configurations that name files and folders; any other text only may look like one.
SOURCES = ("model", "adapter", "tasks", "vectors", "contrasts", "steering", "trajectory")
SYNTHETIC_NAMES = ("model", "tasks")


def canonical(value: object) -> str:
    """One line of JSON that depends on the value alone: sorted keys, shortest floats, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


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
        raise ValueError(f"a row names the table {table!r}; declared are {sorted(tables)}")
    clean: dict[str, Any] = {}
    for column, value in row.items():
        if column != "table" and column not in tables[table]:
            known = ", ".join(tables[table])
            raise ValueError(f"table {table!r} has no column {column!r}; declared are: {known}")
        if value is not None and not isinstance(value, str | int | float):
            raise ValueError(
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
        raise ValueError(f"configuration field {field}={value} is not finite")
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


def default_out(experiment: Experiment, config: Any) -> Path:
    """Where a run goes unless told otherwise: the same configuration finds the same folder."""
    digest = config_digest(experiment.name, config_dict(config))
    return Path("runs") / f"{experiment.name}-{digest[:8]}"


def demo_out(preset: str, configs: Mapping[str, Any]) -> Path:
    """Where the runs of several experiments go, by the preset and all their configurations."""
    digest = config_digest(preset, {name: config_dict(each) for name, each in configs.items()})
    return Path("runs") / f"{preset}-{digest[:8]}"


def reproduction_out(preset: str, wanted: Any) -> Path:
    """Where a reproduction goes, by its preset and its networks, tasks and experiments."""
    digest = config_digest(f"reproduce {preset}", config_dict(wanted))
    return Path("runs") / f"reproduce-{preset}-{digest[:8]}"


def cell_stem(cell: Cell) -> str:
    """A file name for a cell: its id, marked by a digest where the id alone may be ambiguous.

    >>> cell_stem(Cell((("seed", 0), ("task", "sort"))))
    'seed=0,task=sort'
    >>> cell_stem(Cell((("task", "a/b"),))) == cell_stem(Cell((("task", "a:b"),)))
    False
    """
    text = cell.id
    # Replaced signs, cut names and file systems that ignore case could all make two cells one.
    if "~" not in text and len(text) <= MAX_STEM and text == text.lower():
        return text
    return f"{text[:MAX_STEM]}.{hashlib.sha256(canonical(cell.keys).encode()).hexdigest()[:8]}"


def read_cell(file: Path) -> tuple[dict[str, Any], list[str]]:
    """The head of a cell's file and the lines of its rows, each with its line end."""
    try:
        head, *lines = file.read_text("utf-8").splitlines(keepends=True)
        return dict(json.loads(head)), lines
    except (ValueError, TypeError) as error:
        raise RunFolderError(
            f"{file} is damaged; remove it and start the same command again"
        ) from error


def input_digests(config: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the files and folders that a configuration names, so that a change is noticed.

    Of a recorded training only the steps are read, not the report that lies beside them. The folder
    of an adapter stands for the base that it names, too. What comes from the hub has no digest: the
    revision that was loaded stands among the notes of the rows.
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
    # Too long for a name, a NUL byte, or the home of nobody: text, not a path.
    except (OSError, ValueError, RuntimeError):
        return False


def _base_of(name: str) -> Any:
    """The base that an adapter's folder names; None where it is none, or cannot be read."""
    try:
        text = (Path(name).expanduser() / "adapter_config.json").read_text("utf-8")
        return json.loads(text)["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError):  # loading it will say what is wrong
        return None


def _digest(path: Path) -> str:
    """Digest of a file, or of the names and contents of the files directly in a folder."""
    state = hashlib.sha256()
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    for file in files:
        size = file.stat().st_size
        state.update(canonical([file.name, size]).encode())
        # Checkpoints are told apart without reading GBs.
        for part in [file.read_bytes()] if size <= WHOLE_FILE_BYTES else sampled(file):
            state.update(part)
    return state.hexdigest()[:16]
