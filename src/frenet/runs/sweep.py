"""The cells of one run: their order, their workers and their outcomes."""

import contextlib
import math
import pickle
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from frenet._errors import UsageError
from frenet.experiments.experiment import Cell
from frenet.runs.pool import Outcomes, WorkerPool, here, in_workers
from frenet.runs.progress import Watch
from frenet.runs.ray_cells import in_cluster
from frenet.runs.store import Failure, RunFolder
from frenet.runs.worker import Job

EngineName = Literal["processes", "ray"]


class WorkerSpec(NamedTuple):
    """The workers: how many processes, with how many torch threads each, here or on a cluster.

    ``workers`` is None if the size of the cluster decides; ``given``: whether the user set
    ``threads``.
    """

    workers: int | None
    threads: int
    engine: EngineName = "processes"
    address: str | None = None
    given: bool = False


def sweep(
    store: RunFolder,
    before: Sequence[Job],
    *,
    pending: Sequence[Job],
    crew: WorkerSpec,
    watch: Watch,
    pool: WorkerPool,
) -> list[Failure]:
    """Do the jobs and store their outcomes; cells start once their preparation is ready."""
    queue = deque(before or pending)
    waiting = list(pending) if before else []
    left = len(before)
    failures: list[Failure] = []
    took: dict[object, float] = {}
    watch.preparing(left)
    found = _outcomes(queue, crew=crew, store=store, watch=watch, pool=pool)
    with contextlib.closing(found) as outcomes:
        for job, outcome in outcomes:
            ready = [job]
            if job.stage == "prepare":
                ready = [other for other in waiting if share(other.cell) == share(job.cell)]
                left -= 1
                watch.preparing(left)
            if outcome.failure is not None:
                for failed in ready:
                    store.store_failure(failed.cell, outcome.failure)
                    watch.failed(failed.cell.id, _headline(outcome.failure))
                    failures.append(outcome.failure)
            elif job.stage == "prepare":
                watch.prepared(f"seed {share(job.cell)}", outcome.seconds)
                queue.extend(ready)
            else:
                store.store(
                    job.cell, outcome.lines, seconds=outcome.seconds, peak_mib=outcome.peak_mib
                )
                watch.finished(job.cell.id, outcome.seconds)
                took[kind(job.cell)] = outcome.seconds
            longest_first(queue, took)
    return failures


def longest_first(queue: deque[Job], took: Mapping[object, float]) -> None:
    """Reorder waiting jobs, so that no long cell is left alone at the end.

    Cells of a kind without a time yet come first. The order does not change the rows.

    Args:
        queue: waiting jobs.
        took: seconds by ``kind``.
    """
    waiting = sorted(queue, key=lambda job: -took.get(kind(job.cell), math.inf))
    queue.clear()
    queue.extend(waiting)


def kind(cell: Cell) -> object:
    """The kind of a cell, all keys but the seed: cells of a kind take about the same time."""
    return tuple(pair for pair in cell.keys if pair[0] != "seed")


def share(cell: Cell) -> object:
    """The key of the preparation that a cell shares with others."""
    return cell.seed


def _outcomes(
    queue: deque[Job], *, crew: WorkerSpec, store: RunFolder, watch: Watch, pool: WorkerPool
) -> Outcomes:
    """Outcomes of the queue, from this process or from workers."""
    if crew.engine == "ray":
        return in_cluster(
            queue, address=crew.address, workers=crew.workers, threads=crew.threads,
            given=crew.given, say=watch.say,
        )  # fmt: skip
    if crew.workers == 1:
        return here(queue)
    assert crew.workers is not None
    log = store.path / "log.txt"
    return in_workers(
        queue, pool=pool, workers=crew.workers, threads=crew.threads, log=log, say=watch.say
    )


def refuse_unsendable(pending: Sequence[Job], crew: WorkerSpec) -> None:
    """Refuse jobs that cannot be sent to another process, before the first process starts."""
    if (crew.workers == 1 and crew.engine == "processes") or not pending:
        return
    try:
        pickle.dumps(pending[0])
    except Exception as error:
        raise UsageError(
            f"the experiment's functions or configuration cannot be sent to worker processes "
            f"({error}); define them at the top level of a module, or use workers=1"
        ) from error


def _headline(failure: Failure) -> str:
    """A failure in one line."""
    lines = failure.error.strip().splitlines() or [""]
    stage = "" if failure.stage == "run" else f"in {failure.stage}: "
    return f"{stage}{failure.type}: {lines[0]}"
