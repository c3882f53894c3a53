"""Candidates on a Ray cluster: workers hold the model, get indices and send back scores."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from frenet._errors import UsageError
from frenet.runs.ray_cluster import (
    TRIES,
    ClusterSpec,
    Work,
    on_cluster,
    require_ray,
    require_reachable,
)

if TYPE_CHECKING:
    from torch import nn

    from frenet.methods.evaluation import Evaluator
    from frenet.methods.search import Chunk, Engine

THREADS = 2
REMEDY = "define a custom score in a module that workers can import, or in the script itself"
KILLED = (
    "candidates {first} to {last} killed {tries} workers, one after the other: most likely each "
    "ran out of memory; use fewer --workers or smaller batches"
)


def ray_engine(
    *,
    address: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    say: Callable[[str], None] | None = None,
) -> "Engine":
    """An engine that evaluates candidates on a Ray cluster.

    Model and evaluator are sent to every machine once; after that, indices go out and scores come
    back. If a worker dies, another one gets its chunk, even if the machine is lost; a machine that
    joins gets chunks, too. The assignment changes nothing: a candidate depends on seed and index
    alone.

    Args:
        address: of a cluster, such as ``ray://host:10001`` or ``auto``; None starts one here that
            ends with the search.
        workers: number of workers; None: as many as fit on the machines of the cluster.
        threads: torch threads, and Ray CPUs, of each worker; fewer if the workers would not fit.
            None: two, or one if no machine has more.
        say: takes a line of text for the user, such as how many machines are left; None: no lines.

    Raises:
        ValueError: fewer than one worker, more than processors, or threads that no machine has.
        ImportError: Ray is not installed.
        ConnectionError: no cluster answers at the address.
        RuntimeError: a chunk has killed three workers, or no machine is left.
    """
    for name, number in (("workers", workers), ("threads", threads)):
        if number is not None and number < 1:
            raise UsageError(f"{name}={number} is not possible; give 1 or more")
    require_ray()
    if address is not None:
        require_reachable(address)

    def engine(
        model: "nn.Module", evaluator: "Evaluator", chunks: "Sequence[Chunk]"
    ) -> "Iterator[tuple[Chunk, Sequence[float]]]":
        if not chunks:
            return
        work = Work(
            perform=_scores,
            pack=list,
            name=lambda chunk: f"candidates {chunk[0]} to {chunk[-1]}",
            killed=_refuse,
            remedy=REMEDY,
            subject=(model, evaluator),
        )
        crew = ClusterSpec(
            address, workers, threads or THREADS, threads is not None, say or _nothing
        )
        yield from on_cluster(deque(chunks), work, crew)

    return engine


def _scores(subject: "tuple[nn.Module, Evaluator]", chunk: "Chunk") -> list[float]:
    model, evaluator = subject
    return evaluator(model, chunk)


def _nothing(text: str) -> None:
    """Discard a line."""


def _refuse(chunk: "Chunk", error: Exception) -> None:
    ends = {"first": chunk[0], "last": chunk[-1]}
    raise RuntimeError(KILLED.format(**ends, tries=TRIES)) from error
