"""Candidates on a Ray cluster: workers hold the model, get indices and send back scores."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from frenet.runs.ray_cluster import (
    TRIES,
    Work,
    cluster,
    handed_out,
    require_ray,
    require_reachable,
)

if TYPE_CHECKING:
    from torch import nn

    from frenet.methods.evaluation import Evaluator
    from frenet.methods.search import Chunk, Engine

REMEDY = (
    "a score of one's own has to be defined where workers can import it, or in the script itself"
)
KILLED = (
    "candidates {first} to {last} ended {tries} workers, one after the other: most often a worker "
    "ran out of memory; use fewer --workers or smaller batches"
)


def ray_engine(
    *, address: str | None = None, workers: int | None = None, threads: int = 2
) -> "Engine":
    """An engine that evaluates candidates on a Ray cluster.

    Model and evaluator travel to every worker once; after that indices go out and scores come back.
    A chunk whose worker dies is given to another one. Which worker has which chunk changes nothing:
    a candidate follows from seed and index alone.

    Args:
        address: of a cluster, such as ``ray://host:10001`` or ``auto``; None starts one here that
            ends with the search.
        workers: number of workers; None: one for every ``threads`` processors of the cluster.
        threads: torch threads, and Ray CPUs, of each worker.

    Raises:
        ValueError: fewer than one worker.
        ImportError: Ray is not installed.
        ConnectionError: no cluster answers at the address.
        RuntimeError: a chunk has ended three workers.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers} is not possible; give 1 or more")
    require_ray()
    if address is not None:
        require_reachable(address)

    def engine(
        model: "nn.Module", evaluator: "Evaluator", chunks: "Sequence[Chunk]"
    ) -> "Iterator[tuple[Chunk, Sequence[float]]]":
        if not chunks:
            return
        with cluster(address, workers, threads) as ray:
            cpus = int(ray.cluster_resources().get("CPU", 1))
            count, each = shared_out(cpus, workers, threads)
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


def shared_out(cpus: int, workers: int | None, threads: int) -> tuple[int, int]:
    """Number of workers, and threads of each: a worker without processors would wait for ever.

    Raises:
        ValueError: more workers than processors.

    >>> shared_out(8, None, 2), shared_out(8, 3, 2), shared_out(2, 2, 2), shared_out(1, None, 2)
    ((4, 2), (3, 2), (2, 1), (1, 1))
    """
    if workers is not None and workers > cpus:
        raise ValueError(f"workers={workers}, but the cluster has {cpus} CPUs; pass at most {cpus}")
    count = workers or max(1, cpus // threads)
    return count, max(1, min(threads, cpus // count))


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
