"""What was measured, when, on what and for how long: the line above the title."""

from collections.abc import Sequence

from frenet._version import __version__
from frenet.report.numbers import join_words
from frenet.report.sections import Section

# As many tasks are named.
NAMED = 3


def facts(parts: Sequence[Section]) -> list[str]:
    """What the runs know of themselves, in the order in which a reader asks for it."""
    return [*measured(parts), f"frenet {__version__}", *_incomplete(parts)]


def measured(parts: Sequence[Section]) -> list[str]:
    """The facts that stay the same in other versions of frenet."""
    return [*_network(parts), *_tasks(parts), *_seeds(parts), *_circumstances(parts)]


def _network(parts: Sequence[Section]) -> list[str]:
    """The network and its size, if there is one."""
    names = list(dict.fromkeys(part.label.removeprefix("the ") for part in parts if part.label))
    if len(names) != 1:
        return [f"{len(names)} networks"] if names else []
    sizes = [size for part in parts if (size := _size(part))]
    return [f"{names[0]} ({max(sizes):,} weights)" if sizes else names[0]]


def _size(part: Section) -> int:
    """The number of weights, from the chance level 1 / d of a share of a gradient; 0: unknown."""
    known = (
        round(1 / chance)
        for row in part.run.rows
        if row.get("space") == "full" and row.get("coordinates") == "weights"
        if isinstance(chance := row.get("chance"), float) and 0 < chance < 1
    )
    return next(known, 0)


def _tasks(parts: Sequence[Section]) -> list[str]:
    names = list(
        dict.fromkeys(
            str(row["task"])
            for part in parts
            for row in part.run.rows
            if row.get("task") is not None and row.get("table") != "learned"
        )
    )
    if not names:
        return []
    if len(names) > NAMED:
        return [f"{len(names)} tasks"]
    return [f"task{'s' * (len(names) > 1)} {join_words([f'“{name}”' for name in names])}"]


def _seeds(parts: Sequence[Section]) -> list[str]:
    seeds = {row["seed"] for part in parts for row in part.run.rows if "seed" in row}
    return [f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}"] if seeds else []


def _circumstances(parts: Sequence[Section]) -> list[str]:
    """Date, device and duration, if the runs recorded them."""
    made = [part.run.manifest for part in parts]
    days = sorted({str(one["ended"])[:10] for one in made if one.get("ended")})
    found = [" to ".join(dict.fromkeys((days[0], days[-1])))] if days else []
    found += sorted({str(one["device"]) for one in made if one.get("device")})
    seconds = sum(float(one.get("cell_seconds") or 0) for one in made)
    return [*found, _duration(seconds)] if seconds else found


def _duration(seconds: float) -> str:
    """A duration in the unit that gives about two digits.

    >>> _duration(45.2), _duration(600.0), _duration(50_000.0)
    ('45 s', '10 min', '14 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


def _incomplete(parts: Sequence[Section]) -> list[str]:
    failed = sum(len(part.run.failures) for part in parts)
    found = [f"{failed} failed cell{'' if failed == 1 else 's'}"] if failed else []
    if any(part.run.manifest.get("complete") is False for part in parts):
        found.append("not finished")
    return found
