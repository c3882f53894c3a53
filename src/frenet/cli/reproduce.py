"""``frenet reproduce``: all experiments on several networks, and one report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frenet._notebook import listed, one_line
from frenet.cli.codes import DONE, NO_RESULT
from frenet.cli.execution import (
    Planned,
    execute_all,
    path_text,
    preset_of,
    refuse_unused,
    show_runs,
)
from frenet.cli.options import Switch, Work, named, parse_both, printing

if TYPE_CHECKING:
    from frenet.experiments.reproduce import Part
    from frenet.runs.forecast import Forecast

ABOUT = (
    "The whole argument: all experiments on every network, one report with the claims on each of "
    "them. Presets: smoke (a minute or two), demo (minutes), cpu (an evening on two cores), gpu "
    "(small models of the hub, which it asks for). Says beforehand what it will cost; stopped at "
    "any time, the same command goes on."
)

# Of what a part takes.
NOT_KNOWN = "not known yet"


@dataclass(frozen=True)
class Reproducing(Work):
    """How the reproduction runs."""

    plan: Switch = False
    """Only say what would run, how long it will take and how much memory it needs."""


def reproduce(args: list[str]) -> int:
    """``frenet reproduce``."""
    from frenet.experiments.reproduce import PRESETS, folder_names, parts
    from frenet.report import write_report
    from frenet.runs import reproduction_out

    name = preset_of(args)
    settings = named(name, PRESETS, "preset of reproduce")
    work, wanted = parse_both(
        Reproducing, settings, args, command="reproduce", about=ABOUT,
        titles=("running", "networks"),
    )  # fmt: skip
    refuse_unused(work.address, work.engine)
    with printing(work.json) as show:
        todo = parts(wanted, name)
        out = work.out or reproduction_out(name, wanted)
        folders = [out / folder for folder in folder_names(todo)]
        forecasts, before = _forecasts(todo, folders, name, work)
        facts = _say_costs(todo, forecasts, before, work, out=out)
        if not work.plan:
            planned = zip(todo, folders, strict=True)
            runs, failed = execute_all(
                [Planned(part.experiment, part.config, folder) for part, folder in planned], work
            )
            report = write_report(runs, out / "report.html") if runs else None
            facts |= {"failed": failed, "report": path_text(report)}
            show_runs(show, runs, facts, as_json=work.json)
            if report is not None and not work.json:
                show(f"report: {report}")
            return NO_RESULT if failed or any(run.failures for run in runs) else DONE
        if work.json:
            show(facts)
    return DONE


def _say_costs(
    todo: "Sequence[Part]",
    forecasts: "Sequence[Forecast]",
    before: float,
    work: Reproducing,
    *,
    out: Path,
) -> dict[str, Any]:
    """Show time and memory on standard error before anything runs; the same as facts.

    Raises:
        MemoryError: the workers would need more memory than there is, and it is not only a plan.
    """
    from rich.console import Console

    from frenet.runs.progress import duration

    workers = max(f.crew for f in forecasts)
    unknown = _names(todo, forecasts, lambda f: not f.known and f.pending > 0)
    seconds = sum(f.duration for f in forecasts)
    longest = sum(f.longest_duration for f in forecasts)
    memory = max(f.memory for f in forecasts)
    console = Console(stderr=True, highlight=False)
    if not work.quiet:
        console.print(_plan_table(todo, forecasts))
        console.print(
            f"about {duration(seconds)}{_at_most(todo, forecasts)}, and up to {duration(before)} "
            f"for networks that are not in the cache, with {workers} workers"
            f"{_reckoned(work, workers)} and at most {memory:,.0f} MiB{_besides(unknown)}; "
            f"into {one_line(out)}",
            markup=False,
        )
    lacking = _lacking_memory(forecasts) if work.engine == "processes" else None
    if lacking is not None:
        if not work.plan:
            raise lacking
        if not work.quiet:
            console.print(f"too much: {one_line(lacking)}", markup=False)
    return {
        "command": "reproduce", "preset": work.preset, "out": str(out),
        "expected_seconds": round(seconds, 1), "longest_seconds": round(longest, 1),
        "preparing_seconds": round(before, 1), "not_known": unknown,
        "expected_mib": round(memory), "lacking_memory": str(lacking) if lacking else None,
        "cells": sum(f.cells for f in forecasts), "finished": sum(f.finished for f in forecasts),
    }  # fmt: skip


def _names(
    todo: "Sequence[Part]", forecasts: "Sequence[Forecast]", wanted: "Callable[[Forecast], bool]"
) -> list[str]:
    """The experiments that have such a forecast on some network."""
    both = zip(todo, forecasts, strict=True)
    return list(dict.fromkeys(part.experiment.name for part, found in both if wanted(found)))


def _besides(unknown: Sequence[str]) -> str:
    """What the sums leave out."""
    return f", without {listed(unknown)}: {NOT_KNOWN}" if unknown else ""


def _at_most(todo: "Sequence[Part]", forecasts: "Sequence[Forecast]") -> str:
    """How long it takes where recoveries take all the steps that they may."""
    from frenet.runs.progress import duration

    names = _names(todo, forecasts, lambda f: f.longest_duration > f.duration)
    if not names:
        return ""
    longest = duration(sum(f.longest_duration for f in forecasts))
    return f" ({longest} if recoveries in {listed(names)} take all the steps that they may)"


def _reckoned(work: Reproducing, workers: int) -> str:
    """Whose time it is, where nobody asks the cluster how large it is."""
    if work.engine == "processes":
        return ""
    return f" (on a cluster that has {workers} processors like this machine's for them)"


def _forecasts(
    todo: "Sequence[Part]", folders: Sequence[Path], preset: str, work: Reproducing
) -> "tuple[list[Forecast], float]":
    """What every part still costs, and how long preparations take in all.

    Networks whose parts are finished are not loaded again.
    """
    from frenet.experiments.reproduce import by_network
    from frenet.runs.forecast import (
        Speed,
        at_once,
        forecast,
        network_speed,
        pending_cells,
        preparation,
    )

    local = work.engine == "processes"
    speeds: dict[str, Speed] = {}
    for part, folder in zip(todo, folders, strict=True):
        left = pending_cells(part, folder, retry_failed=work.retry_failed)
        if left and part.network not in speeds:
            speeds[part.network] = network_speed(part)
    idle = Speed(0.0, 0.0)
    found = [
        forecast(
            part, preset, speeds.get(part.network, idle), folder=folder,
            workers=work.workers, local=local, retry_failed=work.retry_failed,
        )
        for part, folder in zip(todo, folders, strict=True)
    ]  # fmt: skip
    # What a network learns is learned once for all experiments.
    before = sum(
        max(
            preparation(
                part,
                speeds.get(network, idle),
                processors=at_once(part, work.workers, local=local),
            )
            for part in mine
        )
        for network, mine in by_network(todo).items()
    )
    return found, before


def _lacking_memory(forecasts: "Sequence[Forecast]") -> MemoryError | None:
    """The error of what would end in the system's killing of workers; None where all fits."""
    import torch

    from frenet.network.memory import require_memory

    most = max(forecasts, key=lambda f: f.memory)
    try:
        require_memory(
            round(most.memory * 2**20),
            f"{most.workers} workers of {most.mib:,.0f} MiB each",
            device=torch.device("cpu"),
            remedy="pass fewer --workers (with more --threads), or smaller --networks",
        )
    except MemoryError as error:
        return error
    return None


def _told(cost: "Forecast") -> tuple[str, str]:
    """Time and memory in the table."""
    from frenet.runs.progress import duration

    if not cost.known:
        return NOT_KNOWN, NOT_KNOWN
    return duration(cost.duration), f"{cost.mib:,.0f} MiB"


def _plan_table(todo: "Sequence[Part]", forecasts: "Sequence[Forecast]") -> Any:
    """What will run, for people."""
    from rich.table import Table
    from rich.text import Text

    table = Table("network", "experiment", "cells", "finished", "about", "memory of a worker")
    for part, cost in zip(todo, forecasts, strict=True):
        table.add_row(
            Text(one_line(part.network)), part.experiment.name, str(cost.cells), str(cost.finished),
            *_told(cost),
        )  # fmt: skip
    return table
