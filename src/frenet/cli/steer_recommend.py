"""``frenet steer recommend``: at which block, and how strongly, should a vector be added?"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from frenet._notebook import one_line
from frenet.cli.codes import DONE, NO_RESULT
from frenet.cli.execution import path_text, show_notes
from frenet.cli.options import parse_both, printing
from frenet.cli.steer_options import Recommending
from frenet.experiments.experiment import Rows, answered
from frenet.experiments.intervals import select
from frenet.experiments.steer_command import RECOMMEND, Config
from frenet.experiments.steer_command.answers import advised

ABOUT = (
    "At which block, and how strongly, should a contrast's steering vector be added? Block and "
    "dose are chosen on some prompts and tested on others: the effect has to exceed that of every "
    "null vector of equal length (labels shuffled, random with the stream's covariance, other "
    "contrasts), and the cost on neutral text to stay within --max-cost."
)
VECTOR = "vector.safetensors"


def recommend(args: list[str]) -> int:
    """``frenet steer recommend``."""
    running, config = parse_both(
        Recommending, Config, args, command="steer recommend", about=ABOUT,
        titles=("running", "advice"),
    )  # fmt: skip
    with printing(running.json) as show:
        from frenet.report import write_report
        from frenet.runs import default_out, run_experiment
        from frenet.runs.header import read_header
        from frenet.runs.machine import cpu_count

        out = running.out or default_out(RECOMMEND, config)
        # One process does everything, so it can have all processors, and loads the model once.
        threads = running.threads
        if threads is None and read_header(out) is None:
            threads = cpu_count()

        def say(text: str) -> None:
            if not running.quiet:
                print(one_line(text), file=sys.stderr, flush=True)

        measure: Callable[..., Any] = RECOMMEND.run
        telling = replace(RECOMMEND, run=partial(measure, say=say))
        run = run_experiment(
            telling, config, out, workers=1, threads=threads, quiet=running.quiet,
            retry_failed=running.retry_failed,
        )  # fmt: skip
        report = write_report([run], out / "report.html")
        vector = _written(config, run.rows, out)
        if running.json:
            facts: dict[str, Any] = {"command": "steer recommend", "out": str(out)}
            facts |= {"report": str(report), "vector": path_text(vector), **_numbers(run.rows)}
            show(facts | {"notes": run.notes, "failures": run.failures})
        else:
            for answer in answered(RECOMMEND, run.rows):
                show(str(answer))
            _show_curve(run.rows)
            show_notes(show, run.notes)
            for failure in run.failures:
                show(f"failed: {failure['error']}")
            if vector is not None:
                show(f"vector: {vector}")
            show(f"results: {out}")
            show(f"report: {report}")
    return NO_RESULT if run.failures else DONE


def _written(config: Config, rows: Rows, out: Path) -> Path | None:
    """Write the vector with its advice, if there is one and it is not there yet."""
    row = advised(rows)
    if row is None:
        return None
    from frenet.experiments.steer_command.subject import advised_vector, load_subject
    from frenet.methods.steering_vector import save_vector

    path = out / VECTOR
    return path if path.exists() else save_vector(advised_vector(load_subject(config), row), path)


def _numbers(rows: Rows) -> dict[str, Any]:
    """The sentences, and the rows of every table but the notes."""
    answers = [{"subject": a.subject, "sentence": a.sentence} for a in answered(RECOMMEND, rows)]
    tables = {
        name: [{k: v for k, v in row.items() if k != "table"} for row in select(rows, table=name)]
        for name in ("advice", "dose", "tried")
    }
    return {"answers": answers, **tables}


def _show_curve(rows: Rows) -> None:
    """The table of effect against cost for the terminal."""
    from rich.console import Console
    from rich.table import Table

    found = select(rows, table="dose")
    if not found:
        return
    title = f"block {found[0]['block']}, held-out prompts and texts"
    table = Table("dose", "P", "largest null", "cost", "random vector's cost", title=title)
    for row in found:
        dose = f"{row['dose']:g}" + (" (chosen)" if row["chosen"] else "")
        shares = (f"{row[name]:.3f}" for name in ("share", "null"))
        costs = (f"{row[name]:.2g}" for name in ("cost", "cost_random"))
        table.add_row(dose, *shares, *costs)
    Console().print(table)
