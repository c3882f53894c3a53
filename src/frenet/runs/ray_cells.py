"""Cells of an experiment on a Ray cluster: workers get a cell and send back its rows."""

import pickle
from collections import deque
from collections.abc import Callable
from typing import Any

from frenet.runs.pool import Outcomes
from frenet.runs.ray_cluster import TRIES, ClusterSpec, Work, on_cluster
from frenet.runs.store import Failure
from frenet.runs.worker import Job, Outcome, perform_pickled

REMEDY = "frenet, of this very version, has to be installed on every machine of the cluster"
KILLED = (
    f"{TRIES} workers ended while they did this, one after the other: most often a machine ran out "
    "of memory; use fewer --workers, a smaller model or smaller batches"
)


def in_cluster(
    queue: deque[Job],
    *,
    address: str | None,
    workers: int | None,
    threads: int,
    given: bool,
    say: Callable[[str], None],
) -> Outcomes:
    """Do the jobs of the queue on a Ray cluster, in the order in which they end.

    Which of several machines of one kind does a job changes nothing in its rows; another kind of
    processor sums in another order, and its rows differ in the last digits. Models and files are
    not sent: their paths have to mean the same everywhere. What is prepared for several cells is
    found again where the machines share ``FRENET_CACHE``. Where they do not, each makes its own:
    the same on machines of one kind; on others a training, in which such differences grow, ends in
    another network.

    Args:
        queue: the jobs; it may grow while the outcomes are being read.
        address: of the cluster; None starts one here.
        workers: number of workers; None: as many as have ``threads`` processors each.
        threads: torch threads of each.
        given: the user asked for so many threads; else workers may have fewer processors.
        say: takes a line of text for the user.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: no cluster answers at the address.
        ValueError: more workers than processors, or threads that no machine has.
        RuntimeError: a worker cannot read what it is sent, or no machine is left.
    """
    work = Work(
        perform=_perform,
        pack=pickle.dumps,
        name=lambda job: job.cell.id,
        killed=_given_up,
        remedy=REMEDY,
    )
    yield from on_cluster(queue, work, ClusterSpec(address, workers, threads, given, say))


def _perform(_subject: None, payload: bytes) -> Outcome:
    return perform_pickled(payload)


def _given_up(job: Job, error: Exception) -> Any:
    return Outcome((), 0.0, Failure(job.stage, "WorkerKilled", KILLED, "", user_mistake=False))
