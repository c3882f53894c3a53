"""``frenet reproduce``: all experiments on several networks, and one report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from frenet.cli.codes import DONE, NO_RESULT
from frenet.cli.execution import execute, show_runs
from frenet.cli.options import Work, named, parse_both, preset_of, printing

if TYPE_CHECKING:
    from frenet.experiments.forecast import Forecast
    from frenet.experiments.reproduction import Part
    from frenet.runs import Run

ABOUT = (
    "The whole argument: all experiments on every network, one report with the claims on each of "
    "them. Presets: smoke (a minute or two), demo (minutes), cpu (an evening on two cores), gpu "
    "(small models of the hub, which it asks for). Says beforehand what it will cost; stopped at "
    "any time, the same command goes on."
)


@dataclass(frozen=True)
class Reproducing(Work):
    """How the reproduction runs."""

    plan: bool = False
    """Only say what would run, how long it will take and how much memory it needs."""


def reproduce(args: list[str]) -> int:
    """``frenet reproduce``."""
    from frenet.experiments.reproduction import PRESETS, folder_name, parts

    name = preset_of(args)
    settings = named(name, PRESETS, "preset of reproduce")
    work, wanted = parse_both(
        Reproducing, settings, args, command="reproduce", about=ABOUT,
        titles=("running", "networks"),
    )  # fmt: skip
    with printing(work.json) as show:
        from frenet.report import write_report
        from frenet.runs import config_digest, config_dict

        todo = parts(wanted, name)
        digest = config_digest(f"reproduce-{name}", config_dict(wanted))
        out = work.out or Path("runs") / f"reproduce-{name}-{digest[:8]}"
        forecasts = _forecasts(todo, name, work, out=out, show=show)
        facts: dict[str, Any] = {"command": "reproduce", "preset": name, "out": str(out)}
        facts["expected_seconds"] = round(sum(f.seconds for f in forecasts), 1)
        facts["expected_mib"] = max((f.mib for f in forecasts), default=0)
        if work.plan:
            if work.json:
                show(facts)
            return DONE
        runs, failed = _run_all([(part, out / folder_name(part)) for part in todo], work)
        report = write_report(runs, out / "report.html") if runs else None
        facts |= {"failed": failed, "report": None if report is None else str(report)}
        show_runs(show, runs, facts, as_json=work.json)
        if report is not None and not work.json:
            show(f"report: {report}")
    return NO_RESULT if failed or any(run.failures for run in runs) else DONE


def _forecasts(
    todo: "Sequence[Part]",
    preset: str,
    work: Reproducing,
    *,
    out: Path,
    show: Callable[[Any], None],
) -> "list[Forecast]":
    """What every part still costs, said before anything runs.

    Raises:
        MemoryError: the workers would need more memory than there is.
    """
    from frenet.experiments.forecast import forecast

    raise NotImplementedError


def _run_all(todo: "Sequence[tuple[Part, Path]]", work: Work) -> "tuple[list[Run], dict[str, str]]":
    """Every part, one after the other; one that fails does not stop the others."""
    import sys

    from frenet.runs import RunFailedError

    runs: list[Run] = []
    failed: dict[str, str] = {}
    for part, folder in todo:
        try:
            runs.append(execute(part.experiment, part.config, folder, work))
        except RunFailedError as error:
            failed[folder.name] = str(error)
            print(f"frenet: {folder.name}: {error}", file=sys.stderr)
    return runs, failed
