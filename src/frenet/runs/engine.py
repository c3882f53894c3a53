"""From an experiment and a configuration to a finished run folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from frenet._errors import UsageError
from frenet.experiments.experiment import Cell, Experiment
from frenet.runs.files import DamagedRunError, require_path
from frenet.runs.header import Header, compare_headers, read_header
from frenet.runs.machine import cpu_count, device_of, usual_workers, versions
from frenet.runs.progress import Watch
from frenet.runs.reading import read_run
from frenet.runs.records import cell_stem, config_dict, input_digests, table_columns
from frenet.runs.store import Failure, Run, RunFolder
from frenet.runs.sweep import EngineName, WorkerSpec, refuse_unsendable, share, sweep
from frenet.runs.worker import Job


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message says what is kept and how to go on."""


class RunFailedError(RuntimeError):
    """Every cell failed, so there is no run to look at.

    ``user_mistake`` tells whether all of it comes from what the user gave.
    """

    def __init__(self, message: str, *, failures: Sequence[Failure]) -> None:
        super().__init__(message)
        self.failures = list(failures)
        self.user_mistake = all(failure.user_mistake for failure in failures)


def run_experiment(
    experiment: Experiment,
    config: Any,
    out: Path | str,
    *,
    workers: int | None = None,
    threads: int | None = None,
    engine: EngineName = "processes",
    address: str | None = None,
    quiet: bool = False,
    retry_failed: bool = False,
) -> Run:
    """Run an experiment into a folder, or go on with it, or return what is there.

    Each cell is stored when it is finished; killed at any moment and called again, the run ends
    with the same rows, byte for byte. A cell that fails is stored as such and the others go on.
    The thread count has a say in the last digits of float sums. So its default depends on the
    machine and on the number of cells, not on ``workers``, and a run keeps the one it began with.

    Args:
        experiment: what to run.
        config: an instance of ``experiment.config``.
        out: the run folder, new or of this very run.
        workers: processes, >= 1; 1 runs in this process. Default: the processors at hand, at most
            one for each cell, and 1 for a language model where there is a CUDA device.
        threads: torch threads of each process, >= 1; a preparation that the other workers wait for
            has theirs, too.
        engine: "processes" of this machine, or the workers of a "ray" cluster.
        address: of the cluster, such as ``ray://host:10001`` or ``auto``; None starts one here.
        quiet: show no progress.
        retry_failed: run the failed cells of a finished run again.

    Returns:
        The stored run, as :func:`frenet.runs.read_run` reads it; ``failures`` may not be empty.

    Raises:
        RunFolderError: the folder holds something else, or another process writes into it.
        DiskFullError: no space left; finished cells are kept.
        RunFailedError: every cell failed.
        Interrupted: Ctrl-C; finished cells are kept.
    """
    folder = require_path(out)
    cells = cells_of(experiment, config)
    for name, count in (("workers", workers), ("threads", threads)):
        if count is not None and count < 1:
            raise UsageError(f"{name}={count} is not possible; give 1 or more")
    header = describe_run(experiment, config, cells=cells, threads=threads, folder=folder)
    if engine == "ray":  # workers have devices of their own
        header = replace(header, device=None)
    stored = finished_run(folder, header)
    if stored is not None and not (retry_failed and stored.failures):
        Watch(experiment.name, total=0, done=0, quiet=quiet).say(_already(stored))
        return stored
    with RunFolder(folder, header, restart=retry_failed) as store:
        if not store.finished:
            count = workers or (None if engine == "ray" else natural_workers(cells, config))
            todo = jobs(experiment, config, cells, threads=header.threads)
            crew = WorkerSpec(count, header.threads, engine, address, threads is not None)
            _work(store, todo, crew=crew, quiet=quiet)
            store.finish(cells, workers=count)
    return read_run(folder)


def cells_of(experiment: Experiment, config: Any) -> list[Cell]:
    """The cells of a configuration, after checking both.

    Raises:
        TypeError: a configuration of another experiment.
        ValueError: no cells, or two with the same keys.
    """
    if not isinstance(config, experiment.config):
        wanted, got = experiment.config.__name__, type(config).__name__
        raise TypeError(f"{experiment.name} takes a configuration of type {wanted}, not {got}")
    cells = experiment.cells(config)
    if not cells:
        raise UsageError(f"this configuration of {experiment.name} has no cells: nothing to do")
    stems = [cell_stem(cell) for cell in cells]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise UsageError(f"{experiment.name} has two cells {twice}; give each task and seed once")
    return cells


def describe_run(
    experiment: Experiment, config: Any, *, cells: Sequence[Cell], threads: int | None, folder: Path
) -> Header:
    """What the run is; a run that goes on keeps its threads unless others are asked for."""
    settings = config_dict(config)
    before = read_header(folder)
    if threads is None:
        own = max(1, cpu_count() // natural_workers(cells, config))
        threads = before.threads if before else own
    return Header(
        experiment=experiment.name,
        config=settings,
        cells=[cell_stem(cell) for cell in cells],
        inputs=input_digests(settings),
        threads=threads,
        versions=versions(),
        device=device_of(config),
    )


def natural_workers(cells: Sequence[Cell], config: Any) -> int:
    """How many processes work on these cells unless told otherwise."""
    return min(usual_workers(config), len(cells))


def finished_run(folder: Path, header: Header) -> Run | None:
    """The run, if it is finished and whole; an error if the folder holds another one."""
    if not (folder / "manifest.json").exists():
        return None
    stored = read_header(folder)
    if stored is not None:
        compare_headers(folder, stored=stored, wanted=header, state="finished")
    try:
        return read_run(folder)
    except DamagedRunError:  # opened for writing, the folder says it and makes it again
        return None


def _already(run: Run) -> str:
    """What to say about a run that is there."""
    version, failed = run.manifest["versions"]["frenet"], len(run.failures)
    when = f"{run.path} was finished at {run.manifest['ended']} with frenet {version}"
    again = f"; cells that failed: {failed}, --retry-failed runs them again" if failed else ""
    return f"{when}: nothing to do{again}"


def jobs(experiment: Experiment, config: Any, cells: Sequence[Cell], *, threads: int) -> list[Job]:
    """Every cell's job, preceded by preparations: one for each seed, or one if there are none.

    Where there are fewer preparations than workers, they have the threads of those that wait.
    """
    tables = table_columns(experiment.tables)
    work = [Job("run", experiment.run, config, cell, tables, threads) for cell in cells]
    if experiment.prepare is None:
        return work
    first = {share(job.cell): job.cell for job in reversed(work)}
    more = threads * max(1, natural_workers(cells, config) // len(first))
    before = [Job("prepare", experiment.prepare, config, c, tables, more) for c in first.values()]
    return [*reversed(before), *work]


def _work(store: RunFolder, todo: Sequence[Job], *, crew: WorkerSpec, quiet: bool) -> None:
    """Do the cells that are not stored yet."""
    cells = [job for job in todo if job.stage == "run"]
    pending = [job for job in cells if not store.done(job.cell)]
    done = len(cells) - len(pending)
    shares = {share(job.cell) for job in pending}
    before = [j for j in todo if j.stage == "prepare" and share(j.cell) in shares]
    if crew.workers is not None:
        crew = crew._replace(workers=min(crew.workers, max(1, len(pending))))
    refuse_unsendable(pending, crew)
    with Watch(store.header.experiment, total=len(cells), done=done, quiet=quiet) as watch:
        watch.say(
            f"{store.header.experiment}: {len(cells)} cells, {done} of them finished before; "
            f"workers: {crew.workers or 'the cluster'}, threads of each: {crew.threads}; "
            f"into {store.path}"
        )
        if store.note:
            watch.say(store.note)
        try:
            failures = sweep(store, before, pending=pending, crew=crew, watch=watch)
        except KeyboardInterrupt:
            kept = sum(store.done(job.cell) for job in cells)
            raise Interrupted(
                f"stopped: {kept} of {len(cells)} cells are finished and kept in {store.path}; "
                "start the same command again to go on"
            ) from None
    if len(failures) == len(cells):
        raise RunFailedError(_all_failed(failures, store.path), failures=failures)


def _all_failed(failures: Sequence[Failure], folder: Path) -> str:
    """What to say when nothing worked: the first error, and where the others are."""
    first, count, where = failures[0], len(failures), folder / "failed"
    if count == 1:
        return f"{first.error} (the only cell; details in {where})"
    if all(failure.error == first.error for failure in failures):
        return f"{first.error} (all {count} cells; details in {where})"
    return f"all {count} cells failed, the first: {first.error} (details in {where})"
