"""From an experiment and a configuration to a finished run folder."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from frenet._errors import UsageError
from frenet.experiments.experiment import Cell, Experiment
from frenet.runs.files import DamagedRunError, require_path
from frenet.runs.header import Header, compare_headers, read_header
from frenet.runs.machine import cpu_count, device_of, usual_workers, versions
from frenet.runs.pool import WorkerPool
from frenet.runs.progress import Watch
from frenet.runs.reading import read_run
from frenet.runs.records import cell_stem, config_dict, input_digests, table_columns
from frenet.runs.store import Failure, Run, RunFolder
from frenet.runs.sweep import EngineName, WorkerSpec, refuse_unsendable, share, sweep
from frenet.runs.worker import Job


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message says what is stored and how to resume."""


class RunFailedError(RuntimeError):
    """Every cell failed, so there is no run to read.

    ``user_mistake`` says whether the user's input caused all failures.
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
    seeds: Sequence[int] | None = None,
    pool: WorkerPool | None = None,
    declared: Mapping[str, Any] | None = None,
) -> Run:
    """Run an experiment into a folder, resume it, or return the finished run.

    Each cell is stored when it is finished. A run that is killed at any moment and called again
    ends with the same rows, byte for byte. A failed cell is stored as such; the others continue.
    The thread count affects the last digits of float sums. So its default depends on the machine
    and on the number of cells, not on ``workers``, and a resumed run keeps its thread count.

    Args:
        experiment: what to run.
        config: an instance of ``experiment.config``.
        out: the run folder, new or of the same run.
        workers: processes, >= 1; 1 runs in this process. Default: one per available processor, at
            most one per cell, and 1 for a language model on a CUDA device.
        threads: torch threads of each process, >= 1; a preparation that other workers wait for uses
            theirs, too.
        engine: "processes" of this machine, or the workers of a "ray" cluster.
        address: of the cluster, such as ``ray://host:10001`` or ``auto``; None starts one here.
        quiet: show no progress.
        retry_failed: run the failed cells of a finished run again.
        seeds: run only the cells of these seeds, for a first look; the run stays unfinished until
            it is called without. None: all.
        pool: worker processes that also serve other runs. Default: own ones.
        declared: what the run was declared as beforehand (``Registered.of``); None: not at all.

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
    header = replace(header, declared=None if declared is None else dict(declared))
    if engine == "ray":  # workers have other devices
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
            _work(store, todo, crew=crew, quiet=quiet, seeds=seeds, pool=pool)
            if seeds is None:
                store.finish(cells, workers=count)
    return read_run(folder, partial=seeds is not None)


def cells_of(experiment: Experiment, config: Any) -> list[Cell]:
    """The cells of a configuration, after checking both.

    Raises:
        TypeError: a configuration of another experiment.
        ValueError: no cells, or two with the same keys.
    """
    if not isinstance(config, experiment.config):
        takes, got = experiment.config.__name__, type(config).__name__
        raise TypeError(f"{experiment.name} takes a configuration of type {takes}, not {got}")
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
    """The header of the run; a resumed run keeps its threads unless ``threads`` is given."""
    settings = config_dict(config)
    before = read_header(folder)
    if threads is None:
        default = max(1, cpu_count() // natural_workers(cells, config))
        threads = before.threads if before else default
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
    """The default number of processes for these cells."""
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
    except DamagedRunError:  # RunFolder reports the damage and repairs it
        return None


def _already(run: Run) -> str:
    """The line about a run that is already finished."""
    version, failed = run.manifest["versions"]["frenet"], len(run.failures)
    when = f"{run.path} was finished at {run.manifest['ended']} with frenet {version}"
    again = f"; failed cells: {failed}, --retry-failed runs them again" if failed else ""
    return f"{when}: nothing to do{again}"


def jobs(experiment: Experiment, config: Any, cells: Sequence[Cell], *, threads: int) -> list[Job]:
    """Every cell's job, preceded by preparations: one for each seed, or one if there are none.

    If there are fewer preparations than workers, they also use the threads of waiting workers.
    """
    tables = table_columns(experiment.tables)
    work = [Job("run", experiment.run, config, cell, tables, threads) for cell in cells]
    if experiment.prepare is None:
        return work
    first = {share(job.cell): job.cell for job in reversed(work)}
    more = threads * max(1, natural_workers(cells, config) // len(first))
    before = [Job("prepare", experiment.prepare, config, c, tables, more) for c in first.values()]
    return [*reversed(before), *work]


def _work(
    store: RunFolder,
    todo: Sequence[Job],
    *,
    crew: WorkerSpec,
    quiet: bool,
    seeds: Sequence[int] | None,
    pool: WorkerPool | None,
) -> None:
    """Do the cells, all or those of some seeds, that are not stored yet."""
    left = [job for job in todo if job.stage == "run" and not store.done(job.cell)]
    cells = [
        job for job in todo if job.stage == "run" and (seeds is None or job.cell.seed in seeds)
    ]
    pending = [job for job in cells if not store.done(job.cell)]
    done = len(cells) - len(pending)
    # Workers that the first look leaves idle prepare later seeds meanwhile, one each: a second one
    # would keep a worker from the cells of the first look.
    shares = [*dict.fromkeys(share(job.cell) for job in [*pending, *left])]
    now = len({share(job.cell) for job in pending})
    prepared = shares[: max(now, crew.workers or 0)]
    before = [j for j in todo if j.stage == "prepare" and share(j.cell) in prepared]
    if crew.workers is not None and pool is None:
        crew = crew._replace(workers=min(crew.workers, max(1, len(pending))))
    refuse_unsendable(pending, crew)
    with Watch(store.header.experiment, total=len(cells), done=done, quiet=quiet) as watch:
        watch.say(
            f"{store.header.experiment}: {len(cells)} cell{'s' * (len(cells) != 1)}, "
            f"{done} already finished; "
            f"workers: {crew.workers or 'the cluster'}, threads of each: {crew.threads}; "
            f"output in {store.path}"
        )
        if store.note:
            watch.say(store.note)
        try:
            with WorkerPool() if pool is None else contextlib.nullcontext(pool) as workers:
                failures = sweep(
                    store, before, pending=pending, crew=crew, watch=watch, pool=workers
                )
        except KeyboardInterrupt:
            finished = sum(store.done(job.cell) for job in cells)
            raise Interrupted(
                f"stopped: {finished} of {len(cells)} cells are finished and stored in "
                f"{store.path}; run the same command again to resume"
            ) from None
    if len(failures) == len(cells):
        raise RunFailedError(_all_failed(failures, store.path), failures=failures)


def _all_failed(failures: Sequence[Failure], folder: Path) -> str:
    """The message if all cells failed: the first error, and where the others are."""
    first, count, where = failures[0], len(failures), folder / "failed"
    if count == 1:
        return f"{first.error} (the only cell; details in {where})"
    if all(failure.error == first.error for failure in failures):
        return f"{first.error} (all {count} cells; details in {where})"
    return f"all {count} cells failed, the first: {first.error} (details in {where})"
