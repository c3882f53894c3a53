"""``frenet search``: plan a random search around a model's weights, or run it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from frenet._errors import UsageError
from frenet.cli.codes import DONE
from frenet.cli.execution import refuse_unused, show_notes, teller, threads_of
from frenet.cli.options import Count, Folder, Switch, parse_both, printing
from frenet.experiments.experiment import number
from frenet.experiments.search_command import SearchConfig

if TYPE_CHECKING:
    from frenet.experiments.experiment import Row
    from frenet.methods.search import Engine

# What a score is called; the vote of a search by the loss is counted in tokens.
SCORES = {
    "loss": "share of right tokens",
    "accuracy": "share of right tokens",
    "exact": "share of right answers",
}
ABOUT = "Score random perturbations of a model's weights on a task, and keep the best."


@dataclass(frozen=True)
class Running:
    """How the search runs."""

    plan: Switch = False
    """Only predict the gain for each sigma and number of candidates."""
    worth: Annotated[float | None, tyro.conf.arg(metavar="NATS")] = None
    """Gain on held-out data, in nats per token, for which 100 candidates are worth their time. A
    plan then says after how many candidates a search is no longer worth it, and a search says, as
    it goes, whether more are."""
    out: Folder = None
    """Folder for the results. By default runs/ and a name made from the settings."""
    engine: Literal["local", "ray"] = "local"
    """Evaluate candidates in this process, or on a Ray cluster."""
    address: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = ""
    """Ray cluster, such as ray://host:10001. Empty: one is started on this machine."""
    workers: Count = None
    """Number of Ray workers. By default one for every two processors of the cluster."""
    threads: Count = None
    """Torch threads of this process. By default one per processor, or what a resumed search began
    with."""
    quiet: Switch = False
    """Show no progress."""
    json: Switch = False
    """Print only JSON on standard output."""


def search(args: list[str]) -> int:
    """``frenet search``."""
    running, config = parse_both(
        Running, SearchConfig, args, command="search", about=ABOUT, titles=("running", "search")
    )
    with printing(running.json) as show:
        from frenet.experiments.search_command import STUDY
        from frenet.network.measuring import torch_threads
        from frenet.runs import default_out

        out = running.out or default_out(STUDY, config)
        with torch_threads(threads_of(running.threads, out)):
            if running.plan:
                _plan(running, config, show)
            else:
                _run(running, config, out, show)
    return DONE


def _plan(running: Running, config: SearchConfig, show: Any) -> None:
    """Predict what a search will gain."""
    from frenet.experiments.search_command.setup import (
        load_subject,
        make_plan,
        plan_notes,
        plan_rows,
        require_worth,
    )

    require_worth(config, running.worth)
    subject = load_subject(config)
    made = make_plan(config, subject, teller(quiet=running.quiet), worth=running.worth)
    rows, notes = plan_rows(made), plan_notes(subject)
    if running.json:
        worth = None if made.worth is None else made.worth._asdict()
        facts = {"command": "search", "plan": rows, "advice": made.advice, "worth": worth}
        show(facts | {"notes": notes})
        return
    show(made.advice)
    _print_plan(rows)
    show_notes(show, notes)


def _run(running: Running, config: SearchConfig, out: Path, show: Any) -> None:
    """Search, write the report, and show the results."""
    from frenet.experiments.search_command.setup import further_advice
    from frenet.report import write_report
    from frenet.runs.search import WINNER, run_search

    say = teller(quiet=running.quiet)
    run = run_search(config, out, engine=_engine(running, say), say=say, worth=running.worth)
    report = write_report([run], out / "report.html")
    results = [row for row in run.rows if row["table"] == "result"]
    if running.json:
        facts = {"command": "search", "out": str(out), "report": str(report), "result": results}
        show(facts | {"notes": run.notes})
        return
    for row in results:
        show(_sentence(row, config.score))
        if row.get("further") is not None:
            show(further_advice(number(row, "further"), running.worth))
    show_notes(show, run.notes)
    for what, where in (
        ("weights of the winner", out / WINNER),
        ("results", out),
        ("report", report),
    ):
        show(f"{what}: {where}")


def _engine(running: Running, say: Callable[[str], None]) -> "Engine | None":
    """The chosen engine; None for this process."""
    refuse_unused(running.address, running.engine)
    if running.engine == "local":
        if running.workers is not None:
            raise UsageError("--workers are those of a Ray cluster; pass --engine ray too")
        return None
    from frenet.runs.ray_engine import ray_engine

    return ray_engine(address=running.address or None, workers=running.workers, say=say)


def _sentence(row: "Row", score: str) -> str:
    """One result as a sentence, in the unit of its score."""
    vote = str(row["what"]).startswith("vote")
    is_loss = score == "loss" and not vote
    quantity, sign = ("loss", -1) if is_loss else (SCORES[score], 1)
    unit = " nats per token" if is_loss else ""
    selected = ""
    if row.get("selected") is not None:
        selected = f"; {row['selected']:.4g} on the selection batch"
    if row.get("expected") is not None:
        selected += f"; {row['expected']:.4g} expected"
    # A single held-out example gives no interval.
    ends = "" if row["low"] is None else f" [{row['low']:.4g}, {row['high']:.4g}]"
    return (
        f"{row['what']}: held-out {quantity} {sign * number(row, 'before'):.4g} -> "
        f"{sign * number(row, 'after'):.4g}{unit}, gain {row['gain']:.4g}{ends}{selected}"
    )


def _print_plan(rows: "Sequence[Row]") -> None:
    """The plan as a table for the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table("sigma", "candidates", "gain in selection", "held-out gain", "")
    for row in rows:
        numbers = (f"{row['sigma']:.3g}", str(row["candidates"]))
        gains = (f"{row['selected']:.3g}", f"{row['held_out']:.3g}")
        table.add_row(*numbers, *gains, "advised" if row["chosen"] else "")
    Console().print(table)
