"""Watches a training loop of one's own, with one ``with`` block around it."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from frenet._errors import UsageError
from frenet._notebook import Fact, Shown
from frenet.experiments.watched_training import is_look, sentences
from frenet.integrations.checks import refuse_sharded
from frenet.integrations.session import Plan, Session
from frenet.integrations.trained import optimised
from frenet.integrations.watching import Watching
from frenet.network.space import Where
from frenet.network.tasks import Task
from frenet.runs import read_run

logger = logging.getLogger("frenet")
# Without a number of steps, so many looks are planned.
LOOKS = 1000


class Watched(Shown):
    """A watched loop: its folder, and what the measurements so far say.

    Attributes:
        out: the folder, for ``frenet report`` and ``read_trajectory``.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    @property
    def advice(self) -> list[str]:
        """After the block, one sentence for each probe and one on the first steps; empty before."""
        return [str(answer) for answer in sentences(read_run(self.out, partial=True).rows)]

    def _summary(self) -> str:
        return f"a training in {self.out}"

    def _entries(self) -> Iterator[Fact]:
        for answer in sentences(read_run(self.out, partial=True).rows):
            yield answer.subject, answer.sentence, "a basis of other examples, and a random one"


@contextmanager
def watch(
    model: nn.Module,
    optimizer: Any,
    tasks: Sequence[Task],
    *,
    out: Path | str,
    steps: int | None = None,
    every: int = 1000,
    k: int = 10,
    n: int = 8,
    where: Where = None,
    gradients: bool = False,
    order: bool = False,
    projection_rank: int | None = None,
) -> Iterator[Watched]:
    """Record every step of an optimiser inside the block, and measure as ``FrenetCallback`` does.

    The optimiser's ``step`` calls frenet before and after; the weights that it trains are the same
    as without. At the end of the block the last measurement is made and the folder finished. After
    an exception the steps so far stay on disk, and ``frenet report --partial`` reads them.

    Inside the block the model must stay what it is: if a recorded parameter changes dtype, device
    or shape, another one begins to train, or an unrecorded weight changes, recording stops, and log
    and report name the parameter and the step. A tensor that replaces another one of the same name
    is followed, and the log says so.

    Args:
        model: the trained network.
        optimizer: a ``torch.optim.Optimizer``, or a wrapper with one in ``optimizer``.
        tasks: the probes, as for ``FrenetCallback``; may be empty.
        out: a new folder for steps and results.
        steps: planned steps, for the check of disk space; None: unknown, and not checked.
        every: steps between two measurements after the early ones (1, 5, 10, 20, 50, 100), >= 1.
        k: as in ``FrenetCallback``.
        n: as in ``FrenetCallback``.
        where: as in ``FrenetCallback``.
        gradients: as in ``FrenetCallback``.
        order: as in ``FrenetCallback``.
        projection_rank: as in ``FrenetCallback``.

    Yields:
        The watched training; ``advice`` has sentences after the block.

    Raises:
        ValueError: as for ``FrenetCallback``, or an optimiser without hooks, or of other
            parameters than the model's.
        RunFolderError: the folder holds something else.
        MemoryError: not enough disk space or memory.
    """
    inner = _torch_optimizer(model, optimizer)
    refuse_sharded(model, optimizer)
    watching = Watching.of(
        tasks, every=every, k=k, n=n, where=where, gradients=gradients, order=order,
        projection_rank=projection_rank,
    )  # fmt: skip
    session = watching.begin(
        model, inner, out=Path(out), plan=Plan(steps or LOOKS * every, 0), recorded=steps or 1
    )

    def before(*_: Any) -> None:
        session.before_step()

    def after(*_: Any) -> None:
        session.after_step()
        if is_look(session.path.steps, every):
            session.look(session.path.steps, [])

    hooks = []
    try:
        session.look(0, [])
        hooks = [inner.register_step_pre_hook(before), inner.register_step_post_hook(after)]
        yield Watched(Path(out))
        _end(session)
    except BaseException:
        session.leave()
        raise
    finally:
        for hook in hooks:
            hook.remove()


def _end(session: Session) -> None:
    """The last measurement, and the end of the folder."""
    if not session.path.steps and not session.stopped:
        logger.warning(
            "frenet: the optimiser took no step in the block; pass the one that the loop steps"
        )
    session.look(session.path.steps, [])
    session.finish([])


def _torch_optimizer(model: nn.Module, optimizer: Any) -> Any:
    """The optimiser with hooks, inside a wrapper such as that of accelerate.

    Raises:
        ValueError: there are no hooks, or none of its parameters is the model's.
    """
    inner = optimizer
    while not hasattr(inner, "_optimizer_step_pre_hooks") and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    if not hasattr(inner, "_optimizer_step_pre_hooks"):
        raise UsageError(
            f"{type(optimizer).__name__} is no torch.optim.Optimizer, so frenet cannot see its "
            "steps; pass the optimiser whose step the loop calls"
        )
    given = optimised(inner)
    if not any(id(parameter) in given for parameter in model.parameters()):
        raise UsageError(
            "the optimiser has none of the model's parameters; make it of model.parameters(), "
            "after the model is complete"
        )
    return inner
