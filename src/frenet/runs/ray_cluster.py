"""Ray: join or start a cluster, and have its workers do items until all are done.

Every item is a Ray task, and Ray assigns it to a processor of any machine. This module adds what
Ray does not do. It submits no more items than workers fit on the current machines, so that it never
waits for a lost one. It limits the attempts for an item that kills its worker (Ray would repeat a
task that runs out of memory for ever). And it reports machines that leave and join.
"""

import contextlib
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

from frenet._errors import MissingExtraError, UnreachableError, UsageError

# Attempts per item: an item that kills three workers would kill all of them.
TRIES = 3
MISSING = "the Ray engine needs Ray; install it with: pip install 'frenet[ray]'"
UNREACHABLE = (
    "no Ray cluster answers at {address} ({why}); check the address, give a new head node half a "
    "minute to start, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN if the cluster needs a token, or "
    "leave --address out to start a cluster on this machine"
)
PATIENCE_S = 10.0
# Seconds between counts of the machines.
LOOK_S = 1.0
# Seconds to wait for a cluster without room for a worker: a machine starts within them.
ABANDONED_S = 120.0
# Ray's errors for a lost worker, or for a result that was lost with its machine.
LOSSES = (
    "WorkerCrashedError", "OutOfMemoryError", "NodeDiedError", "RayActorError", "ObjectLostError",
)  # fmt: skip
UNUSABLE = "a worker cannot load its work: {why}; {remedy}"
# Ray's message if the machine does not have the function of a task.
NOT_IMPORTED = "failed to import on the worker"
EMPTY = (
    "no machine of the Ray cluster has {each} processors for a worker, and none has joined in "
    "{seconds:.0f} s; what is finished is stored: start machines, then run the same command again"
)


class Work(NamedTuple):
    """What workers do with items.

    Attributes:
        perform: called on a worker with the subject and a packed item; imported there by its name.
        pack: turns an item into what is sent.
        name: gives the name of an item in messages.
        killed: gives the result of an item that killed three workers, from item and error; or
            raises.
        remedy: what to do if a worker cannot load its work.
        subject: what all items share; it is sent to every machine once.
    """

    perform: Callable[[Any, Any], Any]
    pack: Callable[[Any], Any]
    name: Callable[[Any], str]
    killed: Callable[[Any, Exception], Any]
    remedy: str
    subject: Any = None


class ClusterSpec(NamedTuple):
    """The workers.

    Attributes:
        address: of the cluster; None starts one here.
        workers: number of workers; None: as many as fit on the machines.
        threads: processors, and torch threads, that each should have.
        given: whether the user set ``threads``; if not, workers may have fewer processors.
        say: takes a line of text for the user.
    """

    address: str | None
    workers: int | None
    threads: int
    given: bool
    say: Callable[[str], None]


class UnusableError(RuntimeError):
    """A worker cannot read its work."""


def on_cluster(
    queue: deque[Any], work: Work, crew: ClusterSpec
) -> Generator[tuple[Any, Any], None, None]:
    """Do the items of the queue on a Ray cluster, in the order in which they end.

    Args:
        queue: the items; it may grow while the results are being read.
        work: what to do with them.
        crew: the workers.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: no cluster answers at the address.
        ValueError: more workers than processors, or threads that no machine has.
        RuntimeError: a worker cannot read its work, or no machine is left.
    """
    require_ray()
    if crew.address is not None:
        require_reachable(crew.address)
    with cluster(crew.address, crew.workers, crew.threads) as ray:
        machines = list(processors(ray).values())
        count, each = shared_out(machines, crew.workers, crew.threads, given=crew.given)
        crew.say(
            f"{_plural(count, 'worker')} with {_plural(each, 'processor')} each, on a Ray cluster "
            f"of {_counted(machines)}"
        )
        if each < crew.threads:
            crew.say(
                f"{crew.threads} threads on {_plural(each, 'processor')} are slow; pass --threads "
                f"{each}"
            )
        fleet = Fleet(ray, workers=crew.workers, each=each, say=crew.say)
        yield from handed_out(ray, queue, work, fleet=fleet)


def require_ray() -> Any:
    """Ray, or the error that says how to get it."""
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(MISSING) from error
    return ray


def require_reachable(address: str) -> None:
    """Raise ConnectionError if nothing listens: Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        if address == "auto":
            return
        raise UsageError(f"address={address!r}; pass ray://host:10001, host:port, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE_S).close()
    except OSError as error:
        raise UnreachableError(UNREACHABLE.format(address=address, why=error)) from error


@contextlib.contextmanager
def cluster(address: str | None, workers: int | None, threads: int) -> Iterator[Any]:
    """Ray, connected to a cluster or to one that is started here and ended afterwards."""
    ray = require_ray()
    if ray.is_initialized():  # the caller's own connection
        yield ray
        return
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    with _own_sigterm() as take_back:
        if address is None:
            cpus = None if workers is None else workers * threads
            # Without an address Ray would join RAY_ADDRESS, or one that was left running here.
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        else:
            _joined(ray, address, quiet)
        take_back()
        try:
            yield ray
        finally:
            ray.shutdown()


def _joined(ray: Any, address: str, quiet: dict[str, Any]) -> None:
    """Connect to the cluster at the address, or say why not."""
    refusals = (ConnectionError, RuntimeError, ValueError, ImportError)
    try:
        ray.init(address=address, **quiet)
    except (*refusals, ray.exceptions.RayError) as error:  # of authentication, for one
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnreachableError(UNREACHABLE.format(address=address, why=why)) from error


@contextlib.contextmanager
def _own_sigterm() -> Iterator[Callable[[], None]]:
    """A function that gives SIGTERM back to whoever handled it: Ray's handler prints a C stack."""
    before = signal.getsignal(signal.SIGTERM)
    mine = threading.current_thread() is threading.main_thread()

    def take_back() -> None:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)

    try:
        yield take_back
    finally:
        take_back()


def processors(ray: Any) -> dict[str, int]:
    """Whole processors of each live machine of the cluster, by its ID."""
    alive = (node for node in ray.nodes() if node["Alive"])
    return {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in alive}


def shared_out(
    machines: Sequence[int], workers: int | None, threads: int, *, given: bool = False
) -> tuple[int, int]:
    """Number of workers, and processors of each, so that every worker fits on a machine.

    A worker that fits on no machine would wait for ever.

    Args:
        machines: whole processors of each machine.
        workers: their number, >= 1; None: as many as fit.
        threads: processors that each should have, >= 1; fewer if the workers would not fit.
        given: whether the user set ``threads``, so that one machine must have as many processors.

    Raises:
        ValueError: no processors, more workers than processors, or threads that no machine has.

    >>> shared_out([8], None, 2), shared_out([3, 3, 3], None, 2), shared_out([2], 2, 2)
    ((4, 2), (3, 2), (2, 1))
    """
    most, cpus = max(machines, default=0), sum(machines)
    if not cpus:
        raise UsageError("no machine of the Ray cluster offers a CPU; start one with --num-cpus")
    if workers is not None and workers > cpus:
        raise UsageError(f"workers={workers}, but the cluster has {cpus} CPUs; pass at most {cpus}")
    if given and threads > most:
        raise UsageError(
            f"threads={threads}, but no machine of the cluster has more than {most} CPUs; pass at "
            f"most {most}"
        )
    each = min(threads, most)
    while sum(count // each for count in machines) < (workers or 1):
        each -= 1
    return workers or sum(count // each for count in machines), each


class Fleet:
    """The machines of a cluster, counted repeatedly while workers run on them.

    Args:
        ray: Ray, connected to the cluster.
        workers: the most workers at a time; None: as many as fit on the machines.
        each: processors of a worker.
        say: takes a line for the user when machines come or go.
    """

    def __init__(
        self, ray: Any, *, workers: int | None, each: int, say: Callable[[str], None]
    ) -> None:
        self._ray, self._workers = ray, workers
        self.each, self.say = each, say
        self._machines = processors(ray)
        self._looked = self._useful = time.monotonic()

    @property
    def size(self) -> int:
        """How many workers fit on the current machines."""
        fit = sum(count // self.each for count in self._machines.values())
        return fit if self._workers is None else min(fit, self._workers)

    def ended(self, running: Sequence[Any]) -> list[Any]:
        """The tasks that have ended, after waiting for one of them, or for machines.

        Raises:
            RuntimeError: no machine has had room for a worker for a while.
        """
        ended: list[Any] = []
        if running:
            ended, _ = self._ray.wait(list(running), num_returns=1, timeout=LOOK_S)
        else:  # since no worker fits anywhere
            time.sleep(LOOK_S)
        if time.monotonic() - self._looked >= LOOK_S:
            self._look()
        return ended

    def _look(self) -> None:
        """Count the machines, and report changes."""
        before, self._machines = self._machines, processors(self._ray)
        self._looked = time.monotonic()
        left = _counted(list(self._machines.values()))
        if gone := len(before.keys() - self._machines.keys()):
            self.say(f"the Ray cluster lost {_plural(gone, 'machine')}: {left} left")
        if came := len(self._machines.keys() - before.keys()):
            self.say(f"{_plural(came, 'machine')} joined the Ray cluster: {left} now")
        if self.size:
            self._useful = self._looked
        elif self._looked - self._useful > ABANDONED_S:
            raise RuntimeError(EMPTY.format(each=self.each, seconds=ABANDONED_S))


def handed_out(
    ray: Any, queue: deque[Any], work: Work, *, fleet: Fleet
) -> Iterator[tuple[Any, Any]]:
    """Have the items done, at most as many at a time as workers fit on the machines.

    The queue may grow while the results are being read.
    """
    losses = tuple(getattr(ray.exceptions, name) for name in LOSSES)
    # No retries by Ray: it would repeat a task that runs out of memory for ever.
    task = ray.remote(_perform).options(num_cpus=fleet.each, max_retries=0)
    # In a list, so that a worker that cannot read it can say so.
    shared = [ray.put(work.subject)]
    again: deque[tuple[Any, int]] = deque()
    running: dict[Any, tuple[Any, int]] = {}
    try:
        while queue or again or running:
            while (queue or again) and len(running) < fleet.size:
                item, attempt = again.popleft() if again else (queue.popleft(), 1)
                reference = task.remote(work.perform, shared, work.pack(item), fleet.each)
                running[reference] = (item, attempt)
            for reference in fleet.ended(list(running)):
                item, attempt = running.pop(reference)
                try:
                    result = ray.get(reference)
                except losses as error:
                    if attempt == TRIES:
                        yield item, work.killed(item, error)
                        continue
                    fleet.say(f"a worker was lost during {work.name(item)}: trying again")
                    again.append((item, attempt + 1))
                except ray.exceptions.RayTaskError as error:
                    raise _cause(error, work) from None
                else:
                    yield item, result
    finally:
        for reference in running:
            with contextlib.suppress(Exception):
                ray.cancel(reference, force=True)


def _perform(
    perform: Callable[[Any, Any], Any], shared: Sequence[Any], item: Any, threads: int
) -> Any:
    """Do an item, on a worker."""
    import ray
    import torch

    torch.set_num_threads(threads)
    try:
        (subject,) = ray.get(shared)
    except ray.exceptions.ObjectLostError:
        raise
    except Exception as error:
        raise UnusableError(f"{type(error).__name__}: {_last_line(error)}") from None
    return perform(subject, item)


def _cause(error: Any, work: Work) -> Exception:
    """What went wrong on a worker, or why it could not begin."""
    cause: Exception = error.cause
    if isinstance(cause, UnusableError) or NOT_IMPORTED in str(cause):
        return RuntimeError(UNUSABLE.format(why=_last_line(cause), remedy=work.remedy))
    return cause


def _counted(machines: Sequence[int]) -> str:
    return f"{_plural(len(machines), 'machine')} with {_plural(sum(machines), 'processor')}"


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
