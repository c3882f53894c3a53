"""``frenet reproduce``: all experiments on several networks, and one report."""

import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    from frenet.experiments.reproduce.power import Power
    from frenet.runs import Run
    from frenet.runs.forecast import Forecast

ABOUT = (
    "The whole argument: all experiments on every network, and one report with the claims on each. "
    "Presets: smoke (a minute or two), demo (minutes), cpu (an evening on two cores), gpu "
    "(downloads small models from the hub). Estimates time and memory before it starts. To resume "
    "a stopped reproduction, repeat the command."
)

ABLE = "What the seeds decide in 80% of repetitions"
# Time and memory of a part without measured costs.
NOT_KNOWN = "not known yet"


@dataclass(frozen=True)
class Reproducing(Work):
    """How the reproduction runs."""

    plan: Switch = False
    """Only show what would run, and the time and memory that it needs."""
    declare: Path | None = None
    """Only write this file: rules, settings and seeds of what would run, to be committed first."""
    registered: Path | None = None
    """Run what such a file declares, if rules and settings are still those. Its digest is stored in
    every run."""


def reproduce(
    args: list[str], *, command: str = "reproduce", networks: tuple[str, ...] = ()
) -> int:
    """``frenet reproduce``, or a command that is one with other networks by default."""
    from rich.console import Console

    from frenet._files import write_whole
    from frenet.experiments.reproduce import PRESETS, folder_names, parts
    from frenet.experiments.reproduce.power import powers
    from frenet.experiments.reproduce.registered import declaration, read_registered
    from frenet.runs import reproduction_out

    name = preset_of(args)
    settings = named(name, PRESETS, f"preset of {command}")
    settings = replace(settings, networks=networks or settings.networks)
    work, settings = parse_both(
        Reproducing, settings, args, command=command, about=ABOUT,
        titles=("running", "networks"),
    )  # fmt: skip
    refuse_unused(work.address, work.engine)
    registered = read_registered(work.registered) if work.registered else None
    if registered is not None:
        name, settings = registered.preset, replace(settings, seeds=registered.seeds)
    with printing(work.json) as show:
        todo = parts(settings, name)
        if work.declare is not None:
            file = write_whole(work.declare, declaration(todo, name), moves="--declare FILE")
            show({"declaration": path_text(file)} if work.json else f"declaration: {file}")
            return DONE
        if registered is not None:
            todo = registered.chosen(todo)
        out = work.out or reproduction_out(name, settings)
        planned = [
            Planned(
                part.experiment, part.config, out / folder,
                registered.of(part.experiment) if registered else None,
            )
            for part, folder in zip(todo, folder_names(todo), strict=True)
        ]  # fmt: skip
        forecasts, before = _forecasts(todo, [task.out for task in planned], name, work)
        facts = _say_costs(todo, forecasts, before, work, out=out)
        if not work.plan:
            return _run(planned, work, out, facts, show)
        able = powers(todo)
        if work.json:
            show(facts | {"power": [power._asdict() for power in able]})
        elif able:
            Console(highlight=False).print(_power_table(able))
    return DONE


def _run(
    planned: Sequence[Planned],
    work: Reproducing,
    out: Path,
    facts: dict[str, Any],
    show: Callable[[Any], None],
) -> int:
    """Run everything, write the report, and print what was found."""
    from frenet.report import write_report

    so_far = _Reports(out / "report.html", quiet=work.quiet)
    runs, failed = execute_all(planned, work, so_far=so_far)
    report = write_report(runs, out / "report.html") if runs else None
    facts |= {"failed": failed, "report": path_text(report)}
    show_runs(show, runs, facts, as_json=work.json, why=work.why)
    if report is not None and not work.json:
        show(f"report: {report}")
    return NO_RESULT if failed or any(run.failures for run in runs) else DONE


# Seconds between two reports of a reproduction: each takes some seconds itself.
BETWEEN = 30.0


class _Reports:
    """Writes the report of what is finished, and says where it is when it is there.

    It has no still pictures, which take most of the time of a report, and is not written again
    within ``BETWEEN`` seconds.
    """

    def __init__(self, path: Path, *, quiet: bool) -> None:
        self._path, self._quiet, self._said = path, quiet, False
        self._last = -BETWEEN

    def __call__(self, runs: "Mapping[Path, Run]", waiting: Sequence[Planned]) -> None:
        from frenet.experiments.reproduce import short_name
        from frenet.report import write_report

        if time.monotonic() - self._last < BETWEEN:
            return
        several = len({task.config.model for task in waiting}) > 1
        names = [
            f"{'the rest of ' if task.out in runs else ''}{task.experiment.name}"
            f"{f' on {short_name(task.config.model)}' if several else ''}"
            for task in waiting
        ]
        write_report(list(runs.values()), self._path, static=False, waiting=names)
        self._last = time.monotonic()
        if not self._said and not self._quiet:
            text = f"report of the first results, to be extended: {self._path}"
            print(one_line(text), file=sys.stderr, flush=True)
        self._said = True


def _say_costs(
    todo: "Sequence[Part]",
    forecasts: "Sequence[Forecast]",
    before: float,
    work: Reproducing,
    *,
    out: Path,
) -> dict[str, Any]:
    """Show time and memory before anything runs, and return both as facts.

    Raises:
        MemoryError: a real run would need more memory than there is.
    """
    from rich.console import Console

    unknown = _unknown(todo, forecasts)
    seconds = sum(f.duration for f in forecasts)
    longest = sum(f.longest_duration for f in forecasts)
    memory = max(f.memory for f in forecasts)
    # A plan is the result of --plan; otherwise it belongs to the progress.
    console = Console(stderr=work.json or not work.plan, highlight=False)
    if not work.quiet:
        console.print(_plan_table(todo, forecasts))
        for line in (*_sums(todo, forecasts, before, work), f"Results: {one_line(out)}"):
            console.print(line, markup=False)
    shortage = _memory_shortage(forecasts) if work.engine == "processes" else None
    if shortage is not None:
        if not work.plan:
            raise shortage
        if not work.quiet:
            console.print(f"too much: {one_line(shortage)}", markup=False)
    return {
        "command": "reproduce", "preset": work.preset, "out": str(out),
        "expected_seconds": round(seconds, 1), "longest_seconds": round(longest, 1),
        "preparing_seconds": round(before, 1), "not_known": unknown,
        "expected_mib": round(memory), "lacking_memory": str(shortage) if shortage else None,
        "cells": sum(f.cells for f in forecasts), "finished": sum(f.finished for f in forecasts),
    }  # fmt: skip


def _sums(
    todo: "Sequence[Part]", forecasts: "Sequence[Forecast]", before: float, work: Reproducing
) -> list[str]:
    """Time and memory of all that is left, as far as they are known."""
    from frenet.runs.progress import duration

    training = f"Training networks that are not in the cache: up to {duration(before)} more."
    if any(f.pending for f in forecasts) and not any(f.known and f.pending for f in forecasts):
        return [f"Time and memory: {NOT_KNOWN}.", training]
    workers = max(f.crew for f in forecasts)
    left_out = _left_out(_unknown(todo, forecasts))
    return [
        f"Time: about {duration(sum(f.duration for f in forecasts))} with {workers} "
        f"worker{'' if workers == 1 else 's'}{_cluster_size(work, workers)}"
        f"{_at_most(todo, forecasts)}{left_out}.",
        training,
        f"Memory: at most {max(f.memory for f in forecasts):,.0f} MiB{left_out}.",
    ]


def _unknown(todo: "Sequence[Part]", forecasts: "Sequence[Forecast]") -> list[str]:
    """The experiments that are still to run and whose cost is not known."""
    return _names(todo, forecasts, lambda f: not f.known and f.pending > 0)


def _names(
    todo: "Sequence[Part]", forecasts: "Sequence[Forecast]", test: "Callable[[Forecast], bool]"
) -> list[str]:
    """The experiments with a forecast that passes the test, on some network."""
    both = zip(todo, forecasts, strict=True)
    return list(dict.fromkeys(part.experiment.name for part, forecast in both if test(forecast)))


def _left_out(unknown: Sequence[str]) -> str:
    """What the sums leave out."""
    return f", without {listed(unknown)}: {NOT_KNOWN}" if unknown else ""


def _at_most(todo: "Sequence[Part]", forecasts: "Sequence[Forecast]") -> str:
    """How long it takes if recoveries take all the steps that they may."""
    from frenet.runs.progress import duration

    names = _names(todo, forecasts, lambda f: f.longest_duration > f.duration)
    if not names:
        return ""
    longest = duration(sum(f.longest_duration for f in forecasts))
    return f" ({longest} if recoveries in {listed(names)} take all the steps that they may)"


def _cluster_size(work: Reproducing, workers: int) -> str:
    """The size that the forecast assumes, since a plan does not connect to the cluster."""
    if work.engine == "processes":
        return ""
    return f" (on a cluster with {workers} processors like this machine's)"


def _forecasts(
    todo: "Sequence[Part]", folders: Sequence[Path], preset: str, work: Reproducing
) -> "tuple[list[Forecast], float]":
    """What every part still costs, and how long all preparations take.

    A network with only finished parts is not loaded again.
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
    left = [
        part
        for part, folder in zip(todo, folders, strict=True)
        if pending_cells(part, folder, retry_failed=work.retry_failed)
    ]
    speeds = {network: network_speed(mine) for network, mine in by_network(left).items()}
    idle = Speed(0.0, 0.0)
    forecasts = [
        forecast(
            part, preset, speeds.get(part.network, idle), folder=folder,
            workers=work.workers, local=local, retry_failed=work.retry_failed,
        )
        for part, folder in zip(todo, folders, strict=True)
    ]  # fmt: skip
    # A network is trained once for all experiments.
    before = sum(
        max(
            preparation(
                part,
                speeds.get(network, idle),
                processors=at_once(part, work.workers, local=local),
            )
            for part in of_network
        )
        for network, of_network in by_network(todo).items()
    )
    return forecasts, before


def _memory_shortage(forecasts: "Sequence[Forecast]") -> MemoryError | None:
    """An error if the system would have to kill workers for lack of memory, else None."""
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


def _plan_table(todo: "Sequence[Part]", forecasts: "Sequence[Forecast]") -> Any:
    """What will run: for every network its name, and a table with a sum."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown: list[Any] = []
    pairs = zip(todo, forecasts, strict=True)
    for network, of_network in itertools.groupby(pairs, key=lambda pair: pair[0].network):
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("  experiment", min_width=20)
        for heading, width in (("cells", 5), ("finished", 8), ("about", 12), ("of a worker", 12)):
            table.add_column(heading, justify="right", min_width=width)
        costs = []
        for part, cost in of_network:
            table.add_row(f"  {part.experiment.name}", *_cells(cost))
            costs.append(cost)
        if len(costs) > 1:
            table.add_row("  together", *_sum(costs), style="italic")
        shown += [Text(one_line(network), style="bold"), table]
    return Group(*shown)


def _power_table(able: "Sequence[Power]") -> Any:
    """What the seeds can show, as a table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), title=ABLE, title_justify="left")
    for heading in ("claim", "network"):
        # A long name takes several lines; its beginning alone may be that of another network.
        table.add_column(heading, overflow="fold")
    table.add_column("seeds", justify="right")
    table.add_column("is shown to be")
    before: tuple[str, str] | None = None
    for power in able:
        same, before = before == power[:2], power[:2]
        names = ("", "", "") if same else (power.claim, one_line(power.network), str(power.seeds))
        table.add_row(*map(Text, names), str(power))
    return table


def _cells(cost: "Forecast") -> tuple[str, str, str, str]:
    """Cells, time and memory of an experiment on a network."""
    from frenet.runs.progress import duration

    counts = str(cost.cells), str(cost.finished)
    if not cost.known:
        return *counts, NOT_KNOWN, NOT_KNOWN
    return *counts, duration(cost.duration), f"{cost.mib:,.0f} MiB"


def _sum(costs: "Sequence[Forecast]") -> tuple[str, str, str, str]:
    """The same for all experiments on a network, without those whose costs are not known."""
    from frenet.runs.progress import duration

    known = [cost for cost in costs if cost.known]
    return (
        str(sum(cost.cells for cost in costs)),
        str(sum(cost.finished for cost in costs)),
        duration(sum((cost.duration for cost in known), 0.0)),
        f"{max((cost.mib for cost in known), default=0):,.0f} MiB",
    )
