"""What the commands that run experiments share: running, and showing what came of it."""

import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from frenet._errors import UsageError
from frenet._notebook import one_line
from frenet.cli.options import DEFAULT_PRESET, Work
from frenet.experiments.experiment import LANGUAGE_MODEL_PRESET, SYNTHETIC, Kind, kind_of

if TYPE_CHECKING:
    from frenet.experiments import Experiment
    from frenet.runs import Run


class Planned(NamedTuple):
    """One experiment that is to run into a folder."""

    experiment: "Experiment"
    config: Any
    out: Path


def preset_of(args: Sequence[str]) -> str:
    """The preset asked for, which has to be known before the other flags have defaults."""
    usual = DEFAULT_PRESET if kind_asked(args) == SYNTHETIC else LANGUAGE_MODEL_PRESET
    return _value("--preset", args) or usual


def kind_asked(args: Sequence[str]) -> Kind:
    """The kind of network asked for, for which a preset has settings of its own."""
    return kind_of(_value("--model", args) or SYNTHETIC)


def _value(name: str, args: Sequence[str]) -> str | None:
    """What follows a flag on the command line."""
    for flag, value in itertools.pairwise([*args, ""]):
        if flag == name or flag.startswith(f"{name}="):
            return flag.partition("=")[2] or value
    return None


def refuse_unused(address: str | None, engine: str) -> None:
    """Refuse the address of a cluster that another option would leave without effect."""
    if address and engine != "ray":
        raise UsageError("--address is of a Ray cluster; pass --engine ray with it")


def execute(experiment: "Experiment", config: Any, out: Path, work: Work) -> "Run":
    """Run one experiment as the options say."""
    from frenet.runs import run_experiment

    return run_experiment(
        experiment,
        config,
        out,
        workers=work.workers,
        threads=work.threads,
        engine=work.engine,
        address=work.address,
        quiet=work.quiet,
        retry_failed=work.retry_failed,
    )


def execute_all(todo: Sequence[Planned], work: Work) -> "tuple[list[Run], dict[str, str]]":
    """One after the other; what fails altogether is told, and does not stop what follows."""
    from frenet.runs import RunFailedError

    runs: list[Run] = []
    failed: dict[str, str] = {}
    for task in todo:
        try:
            runs.append(execute(task.experiment, task.config, task.out, work))
        except RunFailedError as error:
            failed[task.out.name] = str(error)
            print(f"frenet: {one_line(f'{task.out.name}: {error}')}", file=sys.stderr)
    return runs, failed


def show_runs(
    show: Callable[[Any], None], runs: "Sequence[Run]", facts: dict[str, Any], *, as_json: bool
) -> None:
    """Print the claims of the runs: as JSON with further facts, or as a table for people."""
    from rich.console import Console

    from frenet.experiments import described
    from frenet.runs import claims_table, decide_claims, run_dict

    known = described()
    decided = [decide_claims(known[r.experiment], r) if r.experiment in known else [] for r in runs]
    if as_json:
        show(facts | {"runs": [run_dict(run, d) for run, d in zip(runs, decided, strict=True)]})
        return
    models = [str(run.config.get("model", "")) for run in runs]
    networks = list(dict.fromkeys(models))
    for network in networks:
        mine = (found for model, found in zip(models, decided, strict=True) if model == network)
        findings = sorted((pair for some in mine for pair in some), key=lambda pair: pair[0].id)
        if findings:
            if len(networks) > 1:
                show("")
                show(network)
            Console().print(claims_table(findings))
        for claim, finding in findings:
            show(f"{claim.id}: {finding.why}")
    show_notes(show, [note for run in runs for note in run.notes])
    for run in runs:
        for failure in run.failures:
            what = f"{failure['type']}: {failure['error']}"
            show(f"{run.experiment}, {failure['cell']} failed: {what}")


def show_notes(show: Callable[[Any], None], notes: Iterable[str]) -> None:
    """Print what must be known of models and data, each sentence once."""
    for note in dict.fromkeys(notes):
        show(f"note: {note}")


def path_text(path: Path | None) -> str | None:
    """A path as JSON knows it."""
    return None if path is None else str(path)
