"""The made-up runs with names in them that try to be something else than text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import made_up

from frenet.experiments.experiment import Experiment, Row
from frenet.runs import Run

NAMES = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(2)</script>",
    "datum['x'] + {{ 1 }} ${alert(3)}",
    "=HYPERLINK('x';'y')",
    "emoji 🧭 مهمة \u202ereversed",
    "null \x00 byte",
    "long" * 75,
)


def names_of(runs: list[Run]) -> list[str]:
    """Every text of the rows that is one of the hostile names, in order."""
    found = (value for run in runs for row in run.rows for value in row.values())
    return list(dict.fromkeys(value for value in found if value in NAMES))


def runs() -> list[Run]:
    """Runs in which tasks, bases, step sizes, failures, models and paths are hostile."""
    spectrum, recovery, drift = made_up.runs()
    tasks = dict(zip(made_up.TASKS, NAMES, strict=False))
    bases = dict(zip(sorted({str(row["basis"]) for row in recovery.rows}), NAMES, strict=False))
    rates = dict(zip(sorted({str(row["rate"]) for row in drift.rows}), NAMES[6:], strict=True))
    failures = [
        {"cell": f"task={name}", "stage": "run", "type": "ValueError", "error": name}
        for name in NAMES
    ]
    return [
        _renamed(spectrum, {"task": tasks, "other": tasks}, failures),
        _renamed(recovery, {"basis": bases}, []),
        _renamed(drift, {"rate": rates}, []),
    ]


def experiments() -> dict[str, Experiment]:
    """The made-up experiments without the figures that cannot be drawn."""
    found = made_up.experiments()
    recovery = found["recovery-basis"]
    kept = tuple(figure for figure in recovery.figures if figure.id not in ("empty", "broken"))
    found["recovery-basis"] = Experiment(**{**recovery.__dict__, "figures": kept})
    return found


def _renamed(
    run: Run, names: Mapping[str, Mapping[str, str]], failures: list[dict[str, Any]]
) -> Run:
    rows: list[Row] = [
        {key: names[key][str(v)] if key in names else v for key, v in row.items()}
        for row in run.rows
    ]
    config = run.config | {"model": NAMES[1], "tasks": list(NAMES)}
    return Run(run.experiment, config, rows, run.manifest, failures, Path("runs") / NAMES[0])
