"""Ray: a cluster found or started, and work handed to its workers until all of it is done."""

import contextlib
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# So often an item is tried: what kills three workers would kill all of them.
TRIES = 3
MISSING = "the Ray engine needs Ray; install it with: pip install 'frenet[ray]'"
UNREACHABLE = (
    "no Ray cluster answers at {address} ({why}); check the address, give a head node that was "
    "just started half a minute, set RAY_AUTH_TOKEN where the cluster asks for a token, or leave "
    "--address out to start one on this machine"
)
PATIENCE_S = 10.0
# How Ray says that a worker is gone; the memory monitor's way is not an error of an actor.
DEATHS = ("RayActorError", "OutOfMemoryError", "NodeDiedError", "WorkerCrashedError")
STILLBORN = "a worker cannot take its work over: {why}; {remedy}"


class Work(NamedTuple):
    """What workers are asked to do.

    Attributes:
        hire: starts a worker.
        ask: hands an item to a worker; a reference to the result comes back.
        killed: the result of an item that ended three workers, from the item and the error; or it
            raises.
        remedy: what to do where a worker cannot even start.
    """

    hire: Callable[[], Any]
    ask: Callable[[Any, Any], Any]
    killed: Callable[[Any, Exception], Any]
    remedy: str


def require_ray() -> Any:
    """Ray, or the error that says how to get it."""
    try:
        import ray
    except ImportError as error:
        raise ImportError(MISSING) from error
    return ray


def require_reachable(address: str) -> None:
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
def cluster(address: str | None, workers: int | None, threads: int) -> Iterator[Any]:
    """Ray, connected to a cluster or to one that is started here and ended afterwards."""
    ray = require_ray()
    if ray.is_initialized():  # the caller's own connection
        yield ray
        return
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        cpus = None if workers is None else workers * threads
        # Without an address Ray would join that of RAY_ADDRESS, or one that was left running here.
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
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


def processors(ray: Any) -> list[int]:
    """The whole processors of each machine of the cluster that is alive."""
    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return [int(resources.get("CPU", 0)) for resources in nodes]


def shared_out(
    machines: Sequence[int], workers: int | None, threads: int, *, given: bool = False
) -> tuple[int, int]:
    """Number of workers, and processors of each, so that every worker fits on a machine.

    One that fits on none would wait for ever.

    Args:
        machines: whole processors of each machine.
        workers: their number, >= 1; None: as many as fit.
        threads: processors that each should have, >= 1; fewer where the workers would not fit.
        given: the user asked for these threads, so that one machine has to have as many.

    Raises:
        ValueError: no processors, more workers than processors, or threads that no machine has.

    >>> shared_out([8], None, 2), shared_out([3, 3, 3], None, 2), shared_out([2], 2, 2)
    ((4, 2), (3, 2), (2, 1))
    """
    most, cpus = max(machines, default=0), sum(machines)
    if not cpus:
        raise ValueError("no machine of the Ray cluster offers a CPU; start one with --num-cpus")
    if workers is not None and workers > cpus:
        raise ValueError(f"workers={workers}, but the cluster has {cpus} CPUs; pass at most {cpus}")
    if given and threads > most:
        raise ValueError(
            f"threads={threads}, but no machine of the cluster has more than {most} CPUs; pass at "
            f"most {most}"
        )
    each = min(threads, most)
    while sum(own // each for own in machines) < (workers or 1):
        each -= 1
    return workers or sum(own // each for own in machines), each


def handed_out(
    ray: Any, queue: deque[Item], work: Work, *, count: int
) -> Iterator[tuple[Item, Any]]:
    """Give every worker one item at a time until the queue is empty; one that dies is replaced.

    The queue may grow while the results are being read.
    """
    deaths = tuple(getattr(ray.exceptions, name) for name in DEATHS)
    again: deque[tuple[Item, int]] = deque()
    running: dict[Any, tuple[Any, Item, int]] = {}
    idle = deque(work.hire() for _ in range(count))
    while queue or again or running:
        while idle and (queue or again):
            item, attempt = again.popleft() if again else (queue.popleft(), 1)
            worker = idle.popleft()
            running[work.ask(worker, item)] = (worker, item, attempt)
        (ended, *_), _ = ray.wait(list(running), num_returns=1)
        worker, item, attempt = running.pop(ended)
        try:
            result = ray.get(ended)
        except deaths as error:
            if getattr(error, "actor_init_failed", False):
                why = _last_line(error)
                raise RuntimeError(STILLBORN.format(why=why, remedy=work.remedy)) from None
            worker = work.hire()
            if attempt < TRIES:
                again.append((item, attempt + 1))
            else:
                yield item, work.killed(item, error)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        else:
            yield item, result
        idle.append(worker)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
