"""A training by transformers' Trainer or TRL's SFTTrainer, watched by one line of code."""

import logging
import math
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback

from frenet._errors import UsageError
from frenet.experiments.experiment import Row
from frenet.experiments.watched_training import TRAINING, WatchConfig
from frenet.integrations.checks import check_training, refuse_sharded, require_room
from frenet.integrations.probes import make_probes
from frenet.integrations.recording import read_trajectory
from frenet.integrations.session import Plan, Session
from frenet.integrations.trained import Trained, trained_space
from frenet.network.space import Where
from frenet.network.tasks import Task

__all__ = ["FrenetCallback", "read_trajectory"]

logger = logging.getLogger("frenet")
# Who watches at present: one training has one watcher, and one folder has one.
_WATCHING: "weakref.WeakSet[FrenetCallback]" = weakref.WeakSet()
# Column of a table -> what it is called in Trainer's log, behind "frenet/" and the probe's name.
_LOGGED = {
    "drift": {
        "ratio": "energy_ratio",
        "control": "energy_ratio_control",
        "chance": "energy_ratio_chance",
    },
    "prefix": {
        "captured": "prefix_captured",
        "random_walk": "prefix_random_walk",
        "lift": "prefix_lift",
        "rest": "prefix_rest",
    },
    "path": {"displacement": "displacement", "walk": "random_walk", "unmoved": "unmoved"},
    "loss": {"loss": "loss"},
}


class FrenetCallback(TrainerCallback):  # type: ignore[misc]
    """Records every step of a training, and asks how long directions of its start stay good.

    ``FrenetCallback(probes, out="runs/mine").attach(trainer)`` before ``trainer.train()``. The
    training ends with the same weights, bit for bit, as without it.

    A recorded step is the realised move, theta_{t+1} - theta_t of the parameters as they are,
    subtracted in float32: with float32 weights the optimiser's step up to the rounding of the
    weights, with bfloat16 weights what was left of it after rounding. The table ``path`` has the
    share of coordinates that did not move. Recorded gradients are those of Trainer just before the
    optimiser's step: accumulated, averaged over processes, and clipped already.

    It looks at each probe at the start, after steps 1, 2, 5, 10, 20, 50 and 100, every ``every``
    steps, and at the last step: energy of
    held-out gradients in the basis of the start over that in a fresh one, with a control without
    training; overlap; loss. And at the displacement so far: the share inside the span of the first
    k steps, beside a random walk's. A look leaves no trace in model, gradients or random numbers.
    What happens between two looks is not seen, so a half-life is given by the looks around it.

    Without ``where`` all parameters are recorded that require a gradient or that the optimiser has,
    so that those which are unfrozen later, or in turn, belong to the path. Where others begin to
    train or change all the same (an adapter that is added, or merged into weights that are not
    recorded; embeddings that grow), recording stops, and log and report name parameter and step.
    A gradient that is not there just before the optimiser's step, of a frozen parameter, or of an
    optimiser that steps inside the backward pass, counts as not seen, and is recorded as NaN.

    Only the main process of a data parallel training records. A training that is resumed from a
    checkpoint goes on in the same folder; what was recorded beyond the checkpoint is cut off.

    Args:
        probes: tasks to look at, such as the values of ``frenet.text_tasks``; may be empty. Each
            needs 3n examples to train on and n held out; gradients are of single examples.
        out: folder for steps and results; ``frenet report`` reads it, with ``--partial`` also
            during training.
        every: steps from one look to the next, >= 1, from the first multiple of it on.
        k: first steps that make the prefix, below the number of steps; also the dimension of the
            gradient bases, where n allows.
        n: gradients in each of three sets, >= 2; a look costs as much as training on 3n examples
            of each probe.
        where: the parameters, as in ``ParamSpace.select``; what it leaves out is not looked after.
            None: all that may train.
        gradients: record the gradients too, which doubles the size.

    Raises:
        ValueError: a number out of range, two probes of one name, too few examples, or an example
            without a target token.
    """

    def __init__(
        self,
        probes: Sequence[Task],
        *,
        out: Path | str,
        every: int = 500,
        k: int = 10,
        n: int = 8,
        where: Where = None,
        gradients: bool = False,
    ) -> None:
        for name, value, least in (("every", every, 1), ("k", k, 1), ("n", n, 2)):
            if value < least:
                raise UsageError(f"{name}={value}; pass at least {least}")
        self.out = Path(out)
        self._probes = make_probes(probes, n=n)
        names = tuple(task.name for task in probes)
        pattern = where if isinstance(where, str) else "" if where is None else "a function"
        self._where = where
        self._config = WatchConfig("", names, every, k, n, gradients, pattern)
        self._trainer: Trainer | None = None
        self._session: Session | None = None
        self._training: Any = None

    def attach(self, trainer: Trainer) -> "FrenetCallback":
        """Add this callback to a trainer, and log through it.

        Raises:
            ValueError: the trainer has such a callback.
        """
        if any(isinstance(other, FrenetCallback) for other in trainer.callback_handler.callbacks):
            raise UsageError(
                "this trainer has a FrenetCallback already; give it one, with all probes, either "
                "in callbacks= or by attach"
            )
        trainer.add_callback(self)
        self._trainer = trainer
        return self

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, **others: Any
    ) -> None:
        """Open the folder, and look at the start, or at the end of what was trained before."""
        refuse_sharded(model, others.get("optimizer"))
        if not state.is_world_process_zero:
            return
        retried = self._session is not None and bool(args.auto_find_batch_size)
        self._take_over(state)
        space = trained_space(model, self._where, others.get("optimizer"))
        plan = Plan(state.max_steps, state.global_step)
        check_training(args, plan.steps, self._config)
        left = plan.steps - plan.done
        logger.info("frenet: %s", require_room(space, self._config, steps=left, out=self.out))
        name = str(getattr(getattr(model, "config", None), "_name_or_path", "")) or "the model"
        self._session = Session(
            Trained(model, space, self._where), self._probes, replace(self._config, model=name),
            out=self.out, plan=plan, start_over=retried,
        )  # fmt: skip
        if self._trainer is None and args.report_to:
            logger.warning(
                "frenet: its scalars reach the log history and %s, but not %s, to which a callback "
                "has no way; use FrenetCallback(...).attach(trainer) in place of callbacks=[...]",
                self.out,
                ", ".join(args.report_to),
            )
        # Trainer has no epoch left, at whose end the last look is made, for a finished training.
        if not plan.done or plan.done >= plan.steps:
            self._look(state, control)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Note the gradients, which are complete here."""
        if self._session is not None:
            self._session.before_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Record the step."""
        if self._session is not None:
            self._session.after_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Look, where it is time; a checkpoint that follows finds its steps on disk."""
        if self._session is None:
            return
        if state.global_step in self._session.planned:
            self._look(state, control)
        self._before_saving(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Look at the last step, while the model is still there and not the best checkpoint."""
        if control.should_training_stop or state.global_step >= state.max_steps:
            self._look(state, control)
        self._before_saving(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """A checkpoint may follow if the metric is the best so far."""
        if self._session is not None:
            self._session.recording.flush()

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Whatever asked for the checkpoint, its steps are on disk."""
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
        """Into Trainer's log, which neither its own averages nor its schedule notice."""
        if self._trainer is None:
            at = {"epoch": state.epoch, "step": state.global_step}
            state.log_history.append({**scalars, **at})
            return
        # Logging anything tells Trainer that it has logged this step's loss. And not by the
        # trainer's own method: SFTTrainer's empties its averages at every call.
        asked = control.should_log
        Trainer.log(self._trainer, scalars)
        control.should_log = asked

    def _take_over(self, state: Any) -> None:
        """Be the only watcher of this training, and let go of one that was broken off."""
        for other in _WATCHING:
            if other._session is None:
                continue
            if other._training is state:
                raise UsageError(
                    "this training has two FrenetCallbacks, or the same one twice; give it one, "
                    "with all probes, either in callbacks= or by attach"
                )
            if other is self or other.out.resolve() == self.out.resolve():
                other._session.folder.close()
                other._session = None
        self._training = state
        _WATCHING.add(self)


def logged(rows: Sequence[Row]) -> dict[str, float]:
    """The numbers of a look as Trainer logs them."""
    found = {}
    for row in rows:
        table, source = str(row["table"]), row.get("probe") or row.get("source")
        if source == TRAINING:
            continue
        for column, name in _LOGGED.get(table, {}).items():
            value = row[column]
            if isinstance(value, float) and math.isfinite(value):
                found["/".join(["frenet", *([str(source)] if source else []), name])] = value
    return found
