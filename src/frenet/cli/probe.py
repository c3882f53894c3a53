"""``frenet probe``: how far, and for how long, can directions from a model be followed?"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from frenet._notebook import one_line
from frenet.cli.codes import DONE, NO_RESULT
from frenet.cli.execution import show_notes
from frenet.cli.options import Count, Folder, Switch, parse_both, printing
from frenet.experiments.direction_scale import PROBE, PROBED
from frenet.experiments.direction_scale.advised import checks, sentences
from frenet.experiments.experiment import Answer, Row, Rows, Scalar
from frenet.experiments.intervals import select
from frenet.experiments.setup.brackets import life_columns

ABOUT = (
    "How far can directions from the weights of a model be followed, and which coefficient is "
    "best? Adapters, checkpoints and task vectors from disk (--vectors) get an advice, its cost on "
    "other text, and a random change of equal norm. Steering vectors have a radius only. Without "
    "any of these: the gradient, an Adam step and a random direction. With --lags "
    "also for how long, in a training run that frenet starts; --directions names further kinds."
)
SHOWN = (
    "radius", "low", "high", "predicted", "times", "relative", "unbounded", "length", "coordinates",
)  # fmt: skip


@dataclass(frozen=True)
class Probing:
    """How the probe runs."""

    out: Folder = None
    """Folder for the results. By default runs/ and a name made from the settings."""
    threads: Count = None
    """Torch threads. By default one per processor, or what a resumed run began with."""
    retry_failed: Switch = False
    """Run the failed cells of a finished run again."""
    quiet: Switch = False
    """Show no progress."""
    json: Switch = False
    """Print only JSON on standard output."""


def probe(args: list[str]) -> int:
    """``frenet probe``."""
    probing, config = parse_both(
        Probing, PROBE, args, command="probe", about=ABOUT, titles=("running", "probe")
    )
    with printing(probing.json) as show:
        from frenet.report import write_report
        from frenet.runs import default_out, run_experiment
        from frenet.runs.header import read_header
        from frenet.runs.machine import cpu_count

        out = probing.out or default_out(PROBED, config)
        # One process does all cells, so it can have all processors.
        threads = probing.threads
        if threads is None and read_header(out) is None:
            threads = cpu_count()

        def say(text: str) -> None:
            if not probing.quiet:
                print(one_line(text), file=sys.stderr, flush=True)

        # In this process, so that it can tell costs and first answers before a training starts.
        measure: Callable[..., Any] = PROBED.run
        telling = replace(PROBED, run=partial(measure, say=say))
        run = run_experiment(
            telling, config, out, workers=1, threads=threads, quiet=probing.quiet,
            retry_failed=probing.retry_failed,
        )  # fmt: skip
        report = write_report([run], out / "report.html")
        results = _results(run.rows)
        if probing.json:
            facts: dict[str, Any] = {"command": "probe", "out": str(out), "report": str(report)}
            facts |= {"check": _rows(run.rows, "check"), "directions": results}
            show(facts | {"notes": run.notes, "failures": run.failures})
        else:
            for answer in (*checks(run.rows), *sentences(run.rows)):
                show(f"{named_cell(answer, run.rows)}: {answer.sentence}")
            show_notes(show, run.notes)
            for failure in run.failures:
                show(f"failed: {failure['error']}")
            show(f"results: {out}")
            show(f"report: {report}")
    return NO_RESULT if run.failures else DONE


def named_cell(answer: Answer, rows: Rows) -> str:
    """What an answer is about, with its task, space and seed if the run has several of them."""
    cells = select(rows, table="check")
    several = [
        f"{key} {value}" for key, value in answer.keys.items()
        if len({row[key] for row in cells}) > 1
    ]  # fmt: skip
    return f"{answer.subject} ({', '.join(several)})" if several else answer.subject


def _rows(rows: Rows, table: str, **keys: Scalar) -> list[Row]:
    """The rows of a table, without its name and these keys."""
    left_out = {"table", *keys}
    return [
        {name: value for name, value in row.items() if name not in left_out}
        for row in select(rows, table=table, **keys)
    ]


def _results(rows: Rows) -> list[dict[str, Any]]:
    """Of every direction: its sentences, what is advised, both radii, and the lifetime if asked."""
    results: dict[tuple[Scalar, ...], dict[str, Any]] = {}
    for answer in sentences(rows):
        keys: Row = {**answer.keys, "direction": answer.subject}
        known = results.get(tuple(keys.values()))
        if known is not None:
            known["more"].append(answer.sentence)
            continue
        of_direction = select(rows, **keys)
        sides = {
            "along" if row["sign"] == 1 else "against": {name: row.get(name) for name in SHOWN}
            for row in select(of_direction, table="radius")
        }
        lives = select(of_direction, table="lifetime")
        lifetime = {c.name: lives[0][c.name] for c in life_columns("")} if lives else None
        tables = {f"{name}s": _rows(rows, name, **keys) for name in ("coefficient", "rank")}
        results[tuple(keys.values())] = {
            **keys, "sentence": str(answer), "more": [], **sides, "lifetime": lifetime,
            "advice": next(iter(_rows(rows, "advice", **keys)), None), **tables,
            "held": _rows(rows, "held", **keys),
        }  # fmt: skip
    return list(results.values())
