"""Jobs in this process or in several, one outcome at a time; the run survives killed workers."""

import contextlib
import multiprocessing
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from frenet.runs.store import Failure
from frenet.runs.worker import Job, Outcome, perform, perform_logged, start_worker

Outcomes = Generator[tuple[Job, Outcome], None, None]

CANNOT_START = (
    "worker processes do not start. A script that calls run_experiment needs the line "
    "`if __name__ == '__main__':` around the call, since workers import the script; "
    "otherwise use workers=1. The workers' output is in {log}"
)
KILLED = (
    "the worker process was killed twice, the second time while it ran this alone: most likely the "
    "system ran out of memory; use fewer --workers, a smaller model or smaller batches"
)


class WorkerPool:
    """Worker processes for several runs in turn, since each start costs seconds of imports.

    As a context manager it ends them, at once if the block ends with an exception.
    """

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._pool: ProcessPoolExecutor | None = None
        self._workers = self._threads = 0

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._pool = None
        self._open.__exit__(*exception)

    def started(self, workers: int, *, threads: int, log: Path) -> ProcessPoolExecutor:
        """At least ``workers`` processes with this number of torch threads.

        Those of the run before serve again unless they are too few, or have other threads: some
        libraries read that number only when they are loaded.

        Raises:
            RuntimeError: no worker can be started; ``log`` has their output.
        """
        if self._pool is None or workers > self._workers or threads != self._threads:
            self.end()
            self._pool = self._open.enter_context(_pool(workers, threads=threads, log=log))
            self._workers, self._threads = workers, threads
        return self._pool

    def end(self) -> None:
        """End the processes once they have nothing left to do."""
        self._pool = None
        self._open.close()


def here(queue: deque[Job]) -> Outcomes:
    """Do the jobs of the queue in this process, in order.

    The queue may grow while the outcomes are being read.
    """
    while queue:
        job = queue.popleft()
        yield job, perform(job)


def in_workers(
    queue: deque[Job],
    *,
    pool: WorkerPool,
    workers: int,
    threads: int,
    log: Path,
    say: Callable[[str], None],
) -> Outcomes:
    """Do the jobs of the queue in worker processes, in the order in which they end.

    Jobs that ran when a worker was killed are tried once more, each alone in a new process. If
    memory was short, they are most likely to pass there, and the job at fault is identified.

    Args:
        queue: the jobs; it may grow while the outcomes are being read.
        pool: the processes; they may go on to serve another run.
        workers: most jobs at once.
        threads: torch threads of each.
        log: file for what the workers print.
        say: takes a line of text for the user.

    Yields:
        A job and its outcome.

    Raises:
        RuntimeError: no worker can be started.
    """
    while queue:
        processes = pool.started(workers, threads=threads, log=log)
        suspects = yield from _drain(queue, processes, workers=workers, log=log)
        if suspects:
            pool.end()
            names = "; ".join(job.cell.id for job in suspects)
            say(f"a worker process was killed during {names}: trying again, one at a time")
        for job in suspects:
            yield job, _alone(job, threads=threads, log=log)


def _drain(
    queue: deque[Job], pool: ProcessPoolExecutor, *, workers: int, log: Path
) -> Generator[tuple[Job, Outcome], None, list[Job]]:
    """Feed the pool until the queue is empty; return the jobs that were running when it broke."""
    running: dict[Future[Outcome], Job] = {}
    while queue or running:
        try:
            # No more jobs than run at once: only those are suspects when a worker is killed.
            while queue and len(running) < workers:
                running[_submit(pool, queue[0], log)] = queue[0]
                queue.popleft()
        except BrokenProcessPool:
            return list(running.values())
        ended, _ = wait(running, return_when=FIRST_COMPLETED)
        broken = {future for future in ended if _is_broken(future)}
        for future in ended - broken:
            yield running.pop(future), future.result()
        if broken:
            return list(running.values())
    return []


def _submit(pool: ProcessPoolExecutor, job: Job, log: Path) -> Future[Outcome]:
    """Hand a job to the pool, which may start a process for it."""
    payload = pickle.dumps(job)
    with _ctrl_c_waits():
        return pool.submit(perform_logged, payload, str(log))


def _is_broken(future: Future[Any]) -> bool:
    """Whether the process of a job was killed; any other exception is for the caller."""
    return isinstance(future.exception(), BrokenProcessPool)


def _alone(job: Job, *, threads: int, log: Path) -> Outcome:
    """Do one job in a separate process."""
    with _pool(1, threads=threads, log=log) as pool:
        future = _submit(pool, job, log)
        if not _is_broken(future):
            return future.result()
    return Outcome((), 0.0, Failure(job.stage, "WorkerKilled", KILLED, "", user_mistake=False))


@contextlib.contextmanager
def _pool(workers: int, *, threads: int, log: Path) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end with this block, at once if it ends with an exception."""
    context = multiprocessing.get_context("spawn")
    end, lifeline = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        workers, context, initializer=start_worker, initargs=(threads, end, str(log))
    )
    try:
        # As many calls as workers, since the pool starts a process only for waiting work.
        with _ctrl_c_waits():
            calls = [pool.submit(os.getpid) for _ in range(workers)]
        if _is_broken(calls[0]):
            raise RuntimeError(CANNOT_START.format(log=log))
        yield pool
        pool.shutdown()
    finally:
        lifeline.close()
        pool.shutdown(cancel_futures=True)
        end.close()


@contextlib.contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Block Ctrl-C while a process starts, so that the process inherits the block.

    Otherwise a worker that is not yet set up prints a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
