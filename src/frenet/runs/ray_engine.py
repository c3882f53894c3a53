"""Candidates on a Ray cluster: workers hold the model, get indices and send back scores."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from frenet.runs.ray_cluster import (
    TRIES,
    Work,
    cluster,
    handed_out,
    processors,
    require_ray,
    require_reachable,
    shared_out,
)

if TYPE_CHECKING:
    from torch import nn

    from frenet.methods.evaluation import Evaluator
    from frenet.methods.search import Chunk, Engine

THREADS = 2
REMEDY = (
    "a score of one's own has to be defined where workers can import it, or in the script itself"
)
KILLED = (
    "candidates {first} to {last} ended {tries} workers, one after the other: most often a worker "
    "ran out of memory; use fewer --workers or smaller batches"
)


def ray_engine(
    *, address: str | None = None, workers: int | None = None, threads: int | None = None
) -> "Engine":
    """An engine that evaluates candidates on a Ray cluster.

    Model and evaluator travel to every worker once; after that indices go out and scores come back.
    A chunk whose worker dies is given to another one. Which worker has which chunk changes nothing:
    a candidate follows from seed and index alone.

    Args:
        address: of a cluster, such as ``ray://host:10001`` or ``auto``; None starts one here that
            ends with the search.
        workers: number of workers; None: as many as fit on the machines of the cluster.
        threads: torch threads, and Ray CPUs, of each worker, fewer where so many workers do not
            fit; None: two, or one where no machine has more.

    Raises:
        ValueError: fewer than one worker, more than processors, or threads that no machine has.
        ImportError: Ray is not installed.
        ConnectionError: no cluster answers at the address.
        RuntimeError: a chunk has ended three workers.
    """
    for name, number in (("workers", workers), ("threads", threads)):
        if number is not None and number < 1:
            raise ValueError(f"{name}={number} is not possible; give 1 or more")
    require_ray()
    if address is not None:
        require_reachable(address)

    def engine(
        model: "nn.Module", evaluator: "Evaluator", chunks: "Sequence[Chunk]"
    ) -> "Iterator[tuple[Chunk, Sequence[float]]]":
        if not chunks:
            return
        wanted = threads or THREADS
        with cluster(address, workers, wanted) as ray:
            given = threads is not None
            count, each = shared_out(processors(ray), workers, wanted, given=given)
            payload = ray.put((model, evaluator))
            make = ray.remote(_Worker).options(num_cpus=each)
            work = Work(
                hire=lambda: make.remote(payload, each),
                ask=lambda worker, chunk: worker.scores.remote(chunk),
                killed=_refuse,
                remedy=REMEDY,
            )
            yield from handed_out(ray, deque(chunks), work, count=min(count, len(chunks)))

    return engine


class _Worker:
    """Evaluates chunks; lives in a process of its own."""

    def __init__(self, subject: "tuple[nn.Module, Evaluator]", threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._model, self._evaluator = subject

    def scores(self, chunk: "Chunk") -> list[float]:
        return self._evaluator(self._model, chunk)


def _refuse(chunk: "Chunk", error: Exception) -> None:
    ends = {"first": chunk[0], "last": chunk[-1]}
    raise RuntimeError(KILLED.format(**ends, tries=TRIES)) from error
