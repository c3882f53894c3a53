"""Damage, measure, recover: one damaged task with the losses that its recovery is judged by."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from frenet.experiments.experiment import Cell, Row
from frenet.experiments.setup.damage import NotDamagedError, damaged, require_damage
from frenet.experiments.setup.networks import Network
from frenet.measure.damage import fixed_loss
from frenet.measure.recovery import Recovery, evaluate_at, recover, recovered_loss, regained
from frenet.measure.trajectory import Training
from frenet.network.tasks import Evaluation, Split, Task


@dataclass(frozen=True)
class Case:
    """One damaged task, with its network at the damaged point.

    Attributes:
        network: the model, its tasks and the parameters that recover.
        task: the damaged one.
        config: batch sizes, probe sizes and steps.
        cell: space, optimiser and seed of the recovery.
        loss_0: held-out loss before the damage, in nats per token.
        loss_d: the same after it.
        threshold: the loss on the select split that counts as recovered.
    """

    network: Network
    task: Task
    config: Any
    cell: Cell
    loss_0: float
    loss_d: float
    threshold: float

    @property
    def losses(self) -> Row:
        """The held-out loss before and after the damage, as columns."""
        return {"loss_0": self.loss_0, "loss_d": self.loss_d}

    def training(self, steps: int, *, seed: int) -> Training:
        """The recovery's optimiser, rate and batch size."""
        return Training(self.cell["optimizer"], self.config.batch_size, steps, seed=seed)

    def recover(self, *, seed: int, most: int, every: int = 1) -> Recovery:
        """A recovery of at most ``most`` steps; the weights return to the damaged point."""
        with self.network.space.restored(self.network.model):
            return recover(
                self.network.model,
                self.task,
                self.training(most, seed=seed),
                space=self.network.space,
                threshold=self.threshold,
                probe_size=self.config.probe_size,
                every=every,
            )

    def regained(self, loss: float) -> float:
        """Share of the lost loss that is regained."""
        return regained(loss, self.loss_0, self.loss_d, self.network.chance)

    def evaluate_at(self, delta: Tensor) -> Evaluation:
        """Held-out loss and accuracy at the damaged point plus a displacement."""
        batch = next(self.task.batches("test", self.config.probe_size, 0))
        return evaluate_at(self.network.model, batch, space=self.network.space, delta=delta)


@contextmanager
def damaged_case(network: Network, config: Any, cell: Cell) -> Iterator[Case]:
    """The task of a cell, damaged as the cell says; the weights are restored afterwards.

    Raises:
        NotDamagedError: the loss rose by less than a tenth of the target, on the split that damage
            uses or on the held-out one; it carries the measured losses.
    """
    task = network.tasks[cell["task"]]

    def loss(split: Split) -> float:
        return fixed_loss(network.model, task, split=split, size=config.probe_size)

    before, select_before = loss("test"), loss("select")
    losses: Row = {"loss_0": before}
    try:
        with damaged(network, task, config, protocol=cell["protocol"], seed=cell.seed):
            losses["loss_d"] = after = loss("test")
            threshold = recovered_loss(select_before, loss("select"), network.chance)
            require_damage(task, before, after, depth=config.depth, chance=network.chance)
            yield Case(network, task, config, cell, before, after, threshold)
    except NotDamagedError as error:
        error.losses = losses
        raise
