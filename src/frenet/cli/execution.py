"""What the commands that run experiments share: running them, and showing the results."""

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from frenet._errors import UsageError
from frenet._notebook import one_line
from frenet.cli.codes import DONE, NO_RESULT
from frenet.cli.options import OneProcess, Work
from frenet.experiments.experiment import (
    DEFAULT_PRESET,
    LANGUAGE_MODEL_PRESET,
    SYNTHETIC,
    Kind,
    kind_of,
)

if TYPE_CHECKING:
    from frenet.experiments import Experiment
    from frenet.runs import Run, WorkerPool


class Planned(NamedTuple):
    """One experiment, the folder that it will run into, and what it was declared as beforehand."""

    experiment: "Experiment"
    config: Any
    out: Path
    declared: Mapping[str, Any] | None = None


def preset_of(args: Sequence[str], experiment: "Experiment | None" = None) -> str:
    """The preset in the arguments, or the usual one; the defaults of the other flags depend on it.

    If the experiment lacks the usual preset, its first one.
    """
    if given := _value("--preset", args):
        return given
    kind = kind_asked(args)
    if experiment is not None:
        return experiment.usual_preset(kind)
    return DEFAULT_PRESET if kind == SYNTHETIC else LANGUAGE_MODEL_PRESET


def kind_asked(args: Sequence[str]) -> Kind:
    """The kind of network in the arguments; a preset has different settings for each."""
    return kind_of(_value("--model", args) or SYNTHETIC)


def _value(name: str, args: Sequence[str]) -> str | None:
    """The value of a flag on the command line; the last one counts."""
    for flag, value in reversed(list(itertools.pairwise([*args, ""]))):
        if flag == name or flag.startswith(f"{name}="):
            return flag.partition("=")[2] or value
    return None


def refuse_unused(address: str | None, engine: str) -> None:
    """Refuse the address of a cluster that would not be used."""
    if address and engine != "ray":
        raise UsageError("--address is of a Ray cluster; pass --engine ray too")


def execute(
    task: Planned,
    work: Work,
    *,
    seeds: Sequence[int] | None = None,
    pool: "WorkerPool | None" = None,
) -> "Run":
    """Run one experiment as the options say, all of it or some seeds."""
    from frenet.runs import run_experiment

    return run_experiment(
        task.experiment,
        task.config,
        task.out,
        workers=work.workers,
        threads=work.threads,
        engine=work.engine,
        address=work.address,
        quiet=work.quiet,
        retry_failed=work.retry_failed,
        seeds=seeds,
        pool=pool,
        declared=task.declared,
    )


def execute_all(
    todo: Sequence[Planned],
    work: Work,
    *,
    so_far: "Callable[[Mapping[Path, Run], Sequence[Planned]], None]",
) -> "tuple[list[Run], dict[str, str]]":
    """Run them one after another; a failed run is reported and does not stop the others.

    Args:
        todo: the experiments. The first seed of those that lead comes first of all.
        work: how to run them.
        so_far: called when the first seeds are done, and after every run but the last that was not
            finished before, with the runs by their folders and what is not finished.

    Returns:
        The runs, and why others failed, by the name of their folder.
    """
    from frenet.runs import RunFailedError, WorkerPool

    runs: dict[Path, Run] = {}
    failed: dict[str, str] = {}
    with WorkerPool() as pool:
        for task in _leading(todo):
            # The run of all its seeds reports a failure.
            with contextlib.suppress(RunFailedError):
                runs[task.out] = execute(task, work, seeds=task.config.seeds[:1], pool=pool)
        if runs:
            so_far(runs, todo)
        for i, task in enumerate(todo):
            before = _finished(task)
            try:
                runs[task.out] = execute(task, work, pool=pool)
            except RunFailedError as error:
                runs.pop(task.out, None)
                failed[task.out.name] = str(error)
                print(f"frenet: {one_line(f'{task.out.name}: {error}')}", file=sys.stderr)
            if (waiting := todo[i + 1 :]) and runs and not before:
                so_far(runs, waiting)
    return [runs[task.out] for task in todo if task.out in runs], failed


def _leading(todo: Sequence[Planned]) -> list[Planned]:
    """The unfinished experiments on the first network of which one seed makes a first report."""
    return [
        task
        for task in todo
        if task.experiment.leads
        and task.config.model == todo[0].config.model
        and len(task.config.seeds) > 1
        and not _finished(task)
    ]


def _finished(task: Planned) -> bool:
    return (task.out / "manifest.json").exists()


def show_runs(
    show: Callable[[Any], None],
    runs: "Sequence[Run]",
    facts: dict[str, Any],
    *,
    as_json: bool,
    why: bool = False,
    noted: bool = True,
) -> None:
    """Print what the runs found: as JSON with further facts, or as lines for people.

    Args:
        show: prints a line, or JSON.
        runs: of one or several networks.
        facts: further facts, for JSON.
        as_json: whether to print JSON.
        why: whether to give every reason and every note.
        noted: whether to give notes at all.
    """
    from frenet.cli.findings import Decided, notes, show_answers, show_findings, show_reach
    from frenet.experiments import described
    from frenet.experiments.experiment import claim_order
    from frenet.runs import Run, decide_claims, run_dict

    known = described()
    decided = [decide_claims(known[r.experiment], r) if r.experiment in known else [] for r in runs]
    if as_json:
        studies = [known.get(run.experiment) for run in runs]
        show(facts | {"runs": [*map(run_dict, runs, decided, studies)]})
        return
    by_network: dict[str, list[tuple[Run, list[Decided]]]] = {}
    for run, pairs in zip(runs, decided, strict=True):
        by_network.setdefault(str(run.config.get("model", "")), []).append((run, pairs))
    for network, of_network in by_network.items():
        if len(by_network) > 1:
            show("")
            show(network)
        named = [(run, known[run.experiment]) for run, _ in of_network if run.experiment in known]
        read = [study.reach(run.rows) for run, study in named if study.reach]
        show_reach(list(itertools.chain.from_iterable(read)))
        findings = [*itertools.chain.from_iterable(pairs for _, pairs in of_network)]
        show_findings(sorted(findings, key=lambda pair: claim_order(pair[0].id)), why=why)
        # Beside claims, what decides none is left to the report.
        for run, study in named if not findings else ():
            if not study.reach:
                show_answers(show, study, run.rows)
    for line in notes([note for run in runs for note in run.notes], why=why) if noted else ():
        show(line)
    for run in runs:
        for failure in run.failures:
            what = f"{failure['type']}: {failure['error']}"
            show(f"{run.experiment}, {failure['cell']} failed: {what}")


def show_notes(show: Callable[[Any], None], notes: Iterable[str]) -> None:
    """Print the notes about models and data, each once."""
    for note in dict.fromkeys(notes):
        show(f"note: {note}")


class Ended(NamedTuple):
    """A finished run of a command, and its report."""

    run: "Run"
    report: Path

    @property
    def code(self) -> int:
        """The exit code of the command."""
        return NO_RESULT if self.run.failures else DONE

    def facts(self, command: str) -> dict[str, Any]:
        """What the JSON of every such command has."""
        facts = {"command": command, "out": str(self.run.path), "report": str(self.report)}
        return facts | {"notes": self.run.notes, "failures": self.run.failures}

    def show(self, show: Callable[[Any], None], *written: str) -> None:
        """Print notes, failures, and where everything is; ``written`` are further such lines."""
        show_notes(show, self.run.notes)
        for failure in self.run.failures:
            show(f"failed: {failure['error']}")
        for line in (*written, f"results: {self.run.path}", f"report: {self.report}"):
            show(line)


def run_here(experiment: "Experiment", config: Any, options: OneProcess) -> Ended:
    """Run the experiment of a command in this process, and write its report.

    So it loads its model once, and can tell costs and first answers before a long step.
    """
    from frenet.report import write_report
    from frenet.runs import default_out, run_experiment

    out = options.out or default_out(experiment, config)
    measure: Callable[..., Any] = experiment.run
    telling = replace(experiment, run=partial(measure, say=teller(quiet=options.quiet)))
    run = run_experiment(
        telling, config, out, workers=1, threads=threads_of(options.threads, out),
        quiet=options.quiet, retry_failed=options.retry_failed,
    )  # fmt: skip
    return Ended(run, write_report([run], out / "report.html"))


def threads_of(given: int | None, out: Path) -> int:
    """Torch threads of a command that does everything in one process.

    Those that were given, otherwise those that the run in ``out`` began with, otherwise one per
    processor.
    """
    from frenet.runs.files import require_path
    from frenet.runs.header import read_header
    from frenet.runs.machine import cpu_count

    if given is not None:
        return given
    before = read_header(require_path(out))
    return before.threads if before else cpu_count()


def teller(*, quiet: bool) -> Callable[[str], None]:
    """Prints lines of progress on standard error, or nothing if the user wants quiet."""

    def say(text: str) -> None:
        if not quiet:
            print(one_line(text), file=sys.stderr, flush=True)

    return say


def path_text(path: Path | None) -> str | None:
    """A path as a JSON value."""
    return None if path is None else str(path)
