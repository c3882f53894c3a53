"""What one process does with one cell: run it, check its rows, and never raise."""

import contextlib
import errno
import io
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from frenet._errors import UsageError
from frenet.experiments.experiment import Cell
from frenet.runs.machine import peak_mib
from frenet.runs.records import encode_row
from frenet.runs.store import Failure

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
USER_ERRORS = (
    UsageError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
# A name that is too long, links in a circle, characters that the file system does not know.
NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EILSEQ)


class Job(NamedTuple):
    """One call of an experiment's function: ``prepare`` for a cell, or ``run`` for a cell.

    ``threads`` are its torch threads.
    """

    stage: str
    call: Callable[[Any, Cell], Any]
    config: Any
    cell: Cell
    tables: Mapping[str, Sequence[str]]
    threads: int


class Outcome(NamedTuple):
    """The outcome of a job: the lines of its rows, or why there are none.

    ``peak_mib`` is the peak memory of its process so far.
    """

    lines: tuple[str, ...]
    seconds: float
    failure: Failure | None = None
    peak_mib: int | None = None


def perform(job: Job) -> Outcome:
    """Do a job; an exception becomes part of the outcome, with the rows so far."""
    start = time.perf_counter()
    lines: list[str] = []
    try:
        from frenet.network.measuring import torch_threads

        with torch_threads(job.threads):
            result = job.call(job.config, job.cell)
            if job.stage == "run":
                lines.extend(encode_row(row, job.tables) for row in result)
    except Exception as error:
        failure = describe_failure(job.stage, error, lines)
        return Outcome((), time.perf_counter() - start, failure)
    return Outcome(tuple(lines), time.perf_counter() - start, peak_mib=peak_mib())


def perform_pickled(payload: bytes) -> Outcome:
    """Do a job in a worker process, where even importing its function may fail."""
    try:
        job: Job = pickle.loads(payload)
    except Exception as error:
        return Outcome((), 0.0, describe_failure("start", error, []))
    return perform(job)


def perform_logged(payload: bytes, log: str) -> Outcome:
    """``perform_pickled`` in a process that serves several runs: it prints to the log of this one.

    Args:
        payload: a pickled job.
        log: file that everything printed here is appended to.
    """
    _print_to(log)
    return perform_pickled(payload)


def describe_failure(stage: str, error: Exception, lines: Sequence[str]) -> Failure:
    """An exception as it is stored."""
    return Failure(
        stage=stage,
        type=type(error).__name__,
        error=message_of(error),
        traceback="".join(traceback.format_exception(error)),
        user_mistake=is_user_mistake(error),
        rows=tuple(lines),
    )


def message_of(error: BaseException) -> str:
    """The words of an exception; KeyError would put them in quotes."""
    if isinstance(error, KeyError) and len(error.args) == 1:
        return str(error.args[0])
    return str(error) or type(error).__name__


def is_user_mistake(error: BaseException) -> bool:
    """Whether an exception comes from the user's input.

    Missing and forbidden files do, and paths that cannot exist. Any other exception does only if
    frenet raises it as such: an exception of a library points to a bug in frenet.
    """
    if isinstance(error, OSError) and error.errno in NO_PATH:
        return True
    return isinstance(error, USER_ERRORS)


def start_worker(threads: int, lifeline: Connection, log: str) -> None:
    """Make a fresh process a worker: it leaves Ctrl-C to its parent and dies with it.

    Args:
        threads: torch threads, and those of the other numerical libraries.
        lifeline: a pipe that nobody writes to; it ends when the parent closes it or dies.
        log: file for everything printed here, so that progress stays readable and standard output
            belongs to the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    for standard in (sys.stdout, sys.stderr):
        if isinstance(standard, io.TextIOWrapper):
            # A character that cannot be encoded must not fail the cell.
            standard.reconfigure(encoding="utf-8", errors="backslashreplace")
    _print_to(log)
    # Read by the libraries when they are loaded, which has not happened in this process yet.
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    import torch

    torch.set_num_threads(threads)


def _print_to(log: str) -> None:
    """Append everything that this process prints to a file."""
    for standard in (sys.stdout, sys.stderr):
        standard.flush()
    stream = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.close(stream)


def _die_with_parent(lifeline: Connection) -> None:
    """Wait for the end of the pipe, then end this process at once."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)
