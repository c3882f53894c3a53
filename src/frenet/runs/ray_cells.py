"""Cells of an experiment on a Ray cluster: workers get a cell and send back its rows."""

import pickle
from collections import deque
from collections.abc import Callable
from typing import Any

from frenet.runs.pool import Outcomes
from frenet.runs.ray_cluster import TRIES, ClusterSpec, Work, on_cluster
from frenet.runs.store import Failure
from frenet.runs.worker import Job, Outcome, perform_pickled

REMEDY = "install this version of frenet on every machine of the cluster"
KILLED = (
    f"{TRIES} workers died while they did this, one after the other: most likely a machine ran out "
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

    Machines of one kind give the same rows. Other processors sum in another order, so the last
    digits may differ. Models and files are not sent: their paths must be the same everywhere. The
    preparations of several cells are shared if the machines share ``FRENET_CACHE``; otherwise each
    machine makes them. Machines of one kind then make the same network; on others, training
    amplifies the differences into another network.

    Args:
        queue: the jobs; it may grow while the outcomes are being read.
        address: of the cluster; None starts one here.
        workers: number of workers; None: as many as have ``threads`` processors each.
        threads: torch threads of each.
        given: whether the user set ``threads``; if not, workers may have fewer processors.
        say: takes a line of text for the user.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: no cluster answers at the address.
        ValueError: more workers than processors, or threads that no machine has.
        RuntimeError: a worker cannot read its work, or no machine is left.
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
