"""Candidates on a Ray cluster: workers hold the model, get indices and send back scores."""

import contextlib
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from frenet.methods.evaluation import Evaluator
    from frenet.methods.search import Chunk, Engine

# So often a chunk is tried: what kills three workers would kill all of them.
TRIES = 3
MISSING = "the Ray engine needs Ray; install it with: pip install 'frenet[ray]'"
UNREACHABLE = (
    "no Ray cluster answers at {address} ({why}); check the address, give a head node that was "
    "just started half a minute, set RAY_AUTH_TOKEN where the cluster asks for a token, or leave "
    "--address out to start one on this machine"
)
PATIENCE_S = 10.0
STILLBORN = (
    "a worker cannot take the model and the score over: {why}; a score of one's own has to be "
    "defined where workers can import it, or in the script itself"
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
    _require_ray()
    if address is not None:
        _require_reachable(address)

    def engine(
        model: "nn.Module", evaluator: "Evaluator", chunks: "Sequence[Chunk]"
    ) -> "Iterator[tuple[Chunk, Sequence[float]]]":
        if not chunks:
            return
        with _cluster(address, workers, threads) as ray:
            cpus = int(ray.cluster_resources().get("CPU", 1))
            count, each = shared_out(cpus, workers, threads)
            payload = ray.put((model, evaluator))
            make = ray.remote(_Worker).options(num_cpus=each)
            yield from _drain(
                ray, lambda: make.remote(payload, each), chunks, min(count, len(chunks))
            )

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


def _drain(
    ray: Any, hire: Callable[[], Any], chunks: "Sequence[Chunk]", count: int
) -> "Iterator[tuple[Chunk, Sequence[float]]]":
    """Give every worker one chunk at a time until all are done; one that dies is replaced."""
    queue = deque((chunk, 1) for chunk in chunks)
    running: dict[Any, tuple[Any, Chunk, int]] = {}
    idle = deque(hire() for _ in range(count))
    while queue or running:
        while queue and idle:
            worker, (chunk, attempt) = idle.popleft(), queue.popleft()
            running[worker.scores.remote(chunk)] = (worker, chunk, attempt)
        (ended, *_), _ = ray.wait(list(running), num_returns=1)
        worker, chunk, attempt = running.pop(ended)
        try:
            scores = ray.get(ended)
        except ray.exceptions.RayActorError as error:
            if error.actor_init_failed:
                raise RuntimeError(STILLBORN.format(why=_last_line(error))) from None
            if attempt == TRIES:
                ends = {"first": chunk[0], "last": chunk[-1]}
                raise RuntimeError(KILLED.format(**ends, tries=TRIES)) from error
            queue.append((chunk, attempt + 1))
            worker = hire()
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        else:
            yield chunk, scores
        idle.append(worker)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _require_ray() -> Any:
    """Ray, or the error that says how to get it."""
    try:
        import ray
    except ImportError as error:
        raise ImportError(MISSING) from error
    return ray


def _require_reachable(address: str) -> None:
    """Raise ConnectionError where nothing listens: Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        if address == "auto":
            return
        raise ValueError(f"address={address!r}; pass ray://host:10001, host:port, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE_S).close()
    except OSError as error:
        raise ConnectionError(UNREACHABLE.format(address=address, why=error)) from error


@contextlib.contextmanager
def _cluster(address: str | None, workers: int | None, threads: int) -> Iterator[Any]:
    """Ray, connected to a cluster or to one that is started here and ended afterwards."""
    ray = _require_ray()
    if ray.is_initialized():  # the caller's own connection
        yield ray
        return
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        cpus = None if workers is None else workers * threads
        ray.init(num_cpus=cpus, include_dashboard=False, **quiet)
    else:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, ImportError) as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConnectionError(UNREACHABLE.format(address=address, why=why)) from error
    try:
        yield ray
    finally:
        ray.shutdown()
