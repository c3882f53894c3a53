"""Watches a training by transformers' Trainer or TRL's SFTTrainer, with one line of code."""

import logging
import math
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback

from frenet._errors import UsageError
from frenet.experiments.experiment import Row
from frenet.experiments.watched_training import TRAINING
from frenet.integrations.checks import check_training, refuse_sharded
from frenet.integrations.recording import read_trajectory
from frenet.integrations.session import Plan, Session
from frenet.integrations.watching import Watching
from frenet.network.space import Where
from frenet.network.tasks import Task

__all__ = ["FrenetCallback", "read_trajectory"]

logger = logging.getLogger("frenet")
# The active callbacks: one per training, and one per folder.
_WATCHING: "weakref.WeakSet[FrenetCallback]" = weakref.WeakSet()
# Column of a table -> its name in Trainer's log, after "frenet/" and the probe's name.
_LOGGED = {
    "drift": {
        "ratio": "energy_ratio",
        "control": "energy_ratio_control",
        "chance": "energy_ratio_chance",
    },
    "projections": {"ratio": "projection_ratio", "control": "projection_ratio_control"},
    "prefix": {
        "captured": "prefix_captured",
        "random_walk": "prefix_random_walk",
        "lift": "prefix_lift",
        "rest": "prefix_rest",
    },
    "path": {"displacement": "displacement", "walk": "random_walk", "unmoved": "unmoved"},
    "loss": {"loss": "loss"},
    "order": {
        "kappa": "order_kappa",
        "null_kappa": "order_kappa_random",
        "rounding": "order_kappa_rounding",
        "onset": "order_onset",
    },
}


class FrenetCallback(TrainerCallback):  # type: ignore[misc]
    """Records every step of a training, and measures how long its initial directions stay useful.

    Call ``FrenetCallback(probes, out="runs/mine").attach(trainer)`` before ``trainer.train()``. The
    final weights are the same, bit for bit, as without it.

    A recorded step is the actual move of the parameters, theta_{t+1} - theta_t, subtracted in
    float32. With bfloat16 weights that is the optimiser's step after rounding; the table ``path``
    has the share of coordinates that did not move. Recorded gradients are those of Trainer just
    before the optimiser's step: accumulated, averaged over processes, and clipped.

    The callback measures each probe at the start, after steps 1, 5, 10, 20, 50 and 100, every
    ``every`` steps, and at the last step: the energy of held-out gradients in the initial basis
    divided by that in a fresh one, with a control without training; the overlap; the loss. It also
    measures the share of the displacement inside the span of the first k steps, compared with a
    random walk's. Measuring changes no model, gradient or random number. A half-life is given by
    the measurements before and after it.

    Without ``where`` it records all parameters that require a gradient or are in the optimiser,
    including those that are unfrozen later. If other parameters begin to train or change (an
    adapter is added or merged, or embeddings grow), recording stops, and log and report name the
    parameter and the step. A gradient that does not exist just before the optimiser's step counts
    as not seen, and is recorded as NaN: that of a frozen parameter, or of an optimiser that steps
    inside the backward pass.

    Only the main process of a data-parallel training records. A training that resumes from a
    checkpoint continues in the same folder; steps beyond the checkpoint are removed.

    Args:
        probes: tasks, such as the values of ``frenet.text_tasks``; may be empty. Each needs 3n
            training examples and n for selection; gradients are of single examples.
        out: folder for steps and results; ``frenet report`` reads it, with ``--partial`` also
            during training.
        every: steps between two measurements, >= 1.
        k: number of first steps in the prefix, below the number of steps; also the dimension of
            the gradient bases, if n allows.
        n: gradients in each of three sets, >= 2; a measurement costs as much as training on 3n
            examples of each probe.
        where: the parameters, as in ``ParamSpace.select``; others are not checked. None: all that
            may train.
        gradients: record the gradients too, which doubles the size.
        order: also measure, for every pair of two or more probes, the step size from which on the
            order of an update on each would matter (the Lie bracket of their gradients, on n
            examples of each), and the same for random steps. For p probes it adds p gradients and
            2 p (p - 1) Hessian products to a look, each a few gradients long; above eight probes
            the cost is logged first.
        projection_rank: also measure, for every trained matrix with more rows and columns than
            this, how long the projection of its gradient to as many singular vectors stays useful,
            as GaLore uses it, and advise how often to renew it. It adds three gradients of n
            examples of each probe to a look, and the singular vectors of each matrix; the cost is
            logged first. None: not measured.

    Raises:
        ValueError: a number is out of range, two probes have one name, there are too few examples,
            an example has no target token, or there is no pair of probes with an order.
    """

    def __init__(
        self,
        probes: Sequence[Task],
        *,
        out: Path | str,
        every: int = 1000,
        k: int = 10,
        n: int = 8,
        where: Where = None,
        gradients: bool = False,
        order: bool = False,
        projection_rank: int | None = None,
    ) -> None:
        self.out = Path(out)
        self._watching = Watching.of(
            probes, every=every, k=k, n=n, where=where, gradients=gradients, order=order,
            projection_rank=projection_rank,
        )  # fmt: skip
        self._trainer: Trainer | None = None
        self._session: Session | None = None
        self._training: Any = None

    def attach(self, trainer: Trainer) -> "FrenetCallback":
        """Add this callback to a trainer, and log through it.

        Raises:
            ValueError: the trainer already has such a callback.
        """
        if any(isinstance(other, FrenetCallback) for other in trainer.callback_handler.callbacks):
            raise UsageError(
                "this trainer already has a FrenetCallback; use one with all probes, either in "
                "callbacks= or with attach"
            )
        trainer.add_callback(self)
        self._trainer = trainer
        return self

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, **others: Any
    ) -> None:
        """Open the folder, and measure at the start, or at the end of a finished training."""
        refuse_sharded(model, others.get("optimizer"))
        if not state.is_world_process_zero:
            return
        retried = self._session is not None and bool(args.auto_find_batch_size)
        self._take_over(state)
        plan = Plan(state.max_steps, state.global_step)
        check_training(args, plan.steps, self._watching.config)
        self._session = self._watching.begin(
            model, others.get("optimizer"), out=self.out, plan=plan,
            recorded=plan.steps - plan.done, start_over=retried,
        )  # fmt: skip
        if self._trainer is None and args.report_to:
            logger.warning(
                "frenet: its scalars reach the log history and %s, but not %s; "
                "use FrenetCallback(...).attach(trainer) instead of callbacks=[...]",
                self.out,
                ", ".join(args.report_to),
            )
        # A finished training has no epoch left, at the end of which the last measurement is made.
        if not plan.done or plan.done >= plan.steps:
            self._look(state, control)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Read the gradients, which are complete here."""
        if self._session is not None:
            self._session.before_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Record the step."""
        if self._session is not None:
            self._session.after_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Measure if it is time; a checkpoint that follows has its steps on disk."""
        if self._session is None:
            return
        if state.global_step in self._session.planned:
            self._look(state, control)
        self._before_saving(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Measure at the last step, before Trainer loads the best checkpoint."""
        if control.should_training_stop or state.global_step >= state.max_steps:
            self._look(state, control)
        self._before_saving(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """A checkpoint may follow if the metric is the best so far."""
        if self._session is not None:
            self._session.recording.flush()

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """A checkpoint has its steps on disk, whatever caused it."""
        if self._session is not None:
            self._session.recording.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Finish the folder."""
        if self._session is not None:
            self._session.finish(state.log_history)
            self._session = None

    def _before_saving(self, control: Any) -> None:
        if self._session is not None and control.should_save:
            self._session.recording.flush()

    def _look(self, state: Any, control: Any) -> None:
        if self._session is None:
            return
        rows = self._session.look(state.global_step, state.log_history)
        if scalars := logged(rows):
            self._log(scalars, state, control)

    def _log(self, scalars: dict[str, float], state: Any, control: Any) -> None:
        """Write to Trainer's log, without effect on its averages and schedule."""
        if self._trainer is None:
            at = {"epoch": state.epoch, "step": state.global_step}
            state.log_history.append({**scalars, **at})
            return
        # Any log makes Trainer believe that it has logged this step's loss. Trainer.log, since the
        # method of SFTTrainer clears its averages at every call.
        should_log = control.should_log
        Trainer.log(self._trainer, scalars)
        control.should_log = should_log

    def _take_over(self, state: Any) -> None:
        """Make this the only callback of the training, and close one that was interrupted."""
        for other in _WATCHING:
            if other._session is None:
                continue
            if other._training is state:
                raise UsageError(
                    "this training has two FrenetCallbacks, or the same one twice; use one with "
                    "all probes, either in callbacks= or with attach"
                )
            if other is self or other.out.resolve() == self.out.resolve():
                other._session.folder.close()
                other._session = None
        self._training = state
        _WATCHING.add(self)


def logged(rows: Sequence[Row]) -> dict[str, float]:
    """The numbers of a measurement under their names in Trainer's log."""
    scalars = {}
    for row in rows:
        table, source = str(row["table"]), row.get("probe") or row.get("source") or row.get("pair")
        if source == TRAINING:
            continue
        for column, name in _LOGGED.get(table, {}).items():
            value = row[column]
            if isinstance(value, float) and math.isfinite(value):
                scalars["/".join(["frenet", *([str(source)] if source else []), name])] = value
    return scalars
