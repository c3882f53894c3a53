"""Records of a benchmark run: JSON lines, one for every row as it comes.

A job is a script on a model. Its lines are one ``{"job", "environment"}``, its rows as
``{"job", "row"}``, and ``{"job", "seconds"}`` at its end; a repeated job counts from its last line
of the first kind.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Job:
    """The records of one job."""

    environment: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float | None = None


def add(path: Path, **record: Any) -> None:
    """Append one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read(path: Path) -> dict[str, Job]:
    """The last finished attempt at every job, or the last one if none finished.

    Raises:
        ValueError: a line is no record, except for an incomplete last one.
    """
    done: dict[str, Job] = {}
    begun: dict[str, Job] = {}
    for record in _lines(path):
        name = record["job"]
        if "environment" in record:
            begun[name] = Job(record["environment"])
        elif "row" in record:
            begun[name].rows.append(record["row"])
        else:
            begun[name].seconds = record["seconds"]
            done[name] = begun[name]
    return begun | done


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            # A process that is killed while it writes leaves an incomplete last line.
            if number < len(lines):
                raise ValueError(f"line {number} of {path.name} is no record: {error}") from None
    return entries
