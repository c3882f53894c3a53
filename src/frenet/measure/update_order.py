"""Two updates in both orders: how far apart they end, and what the Lie bracket predicts of it."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet._notebook import Fact, Shown
from frenet.geometry.alignment import cosine
from frenet.geometry.linalg import norm
from frenet.measure.lie_bracket import (
    CLEAR,
    LieBracket,
    Minibatch,
    precision,
    require_trained_adapter,
)
from frenet.measure.trajectory import Descent, Training
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import Task, repeatable

# What an optimiser has stored, such as the moments of Adam.
State = dict[Any, Any]


def gradient_step(eta: float) -> Training:
    """Plain gradient steps of size eta, to which the Lie bracket belongs.

    >>> gradient_step(0.01).optimizer, gradient_step(0.01).clip
    ('sgd:0.01', None)
    """
    return Training(f"sgd:{eta!r}", clip=None)


class Agreement(NamedTuple):
    """A measured difference of two orders beside the Lie bracket's prediction.

    Attributes:
        ratio: measured over predicted length; 1 to leading order.
        cosine: of the measured difference with the bracket; 1 to leading order.
        rounding: of the ratio.
    """

    ratio: float
    cosine: float
    rounding: float


@dataclass(frozen=True, repr=False)
class OrderDifference(Shown):
    r"""theta_AB - theta_BA, where two updates in both orders end.

    Attributes:
        names: of the tasks A and B.
        optimizer: and its rate.
        vector: theta_AB - theta_BA, (d,), float64.
        end: theta_BA - theta, (d,), float64.
        step: mean displacement of both orders if the gradients stay those of the start, (d,),
            float64; for gradient steps -eta (g_A + g_B).
        still: difference of the two orders in that case, (d,), float64. It is 0 for gradient steps;
            an optimiser with momentum counts the first gradient twice.
    """

    names: tuple[str, str]
    optimizer: str
    vector: Float[Tensor, " d"]
    end: Float[Tensor, " d"]
    step: Float[Tensor, " d"]
    still: Float[Tensor, " d"]

    def _summary(self) -> str:
        first, second = self.names
        return f"{first} and {second}, two orders of {self.optimizer} {self.relative:.3g} apart"

    def _entries(self) -> Iterator[Fact]:
        yield (
            "difference over step",
            self.relative,
            f"{self.frozen_relative:.3g} with frozen gradients",
        )
        yield "length of the step", norm(self.step), "of both updates together"

    @property
    def relative(self) -> float:
        """||theta_AB - theta_BA|| over the length of the step."""
        return norm(self.vector) / norm(self.step)

    @property
    def frozen_relative(self) -> float:
        """The part that is the optimiser's memory and not curvature, in the same unit."""
        return norm(self.still) / norm(self.step)

    def against(self, bracket: LieBracket, eta: float) -> Agreement:
        """The difference of two gradient steps of size eta beside the bracket's prediction.

        Raises:
            ValueError: the step is so small, or the bracket, that rounding would be measured.
        """
        bracket.require_clear()
        if eta < bracket.least_step:
            raise UsageError(
                f"step size {eta:.3g} is too small for the order of {self.names[0]} and "
                f"{self.names[1]}: below {bracket.least_step:.3g} the difference is less than "
                f"{CLEAR:g} times its rounding error; pass a larger step, or float64"
            )
        predicted = bracket.predicted(eta)
        return Agreement(
            self.relative / predicted,
            cosine(self.vector, bracket.vector.to(self.vector)),
            bracket.order_rounding / predicted,
        )


def order_difference(
    model: nn.Module,
    first: Minibatch,
    second: Minibatch,
    training: Training,
    *,
    space: ParamSpace,
    carried: State | None = None,
    float64: bool = False,
) -> OrderDifference:
    """Take one step on each of two tasks, in both orders, and compare where they end.

    Takes four gradients. The weights are restored bit for bit. The optimiser works in float64.

    Args:
        model: the network.
        first: task A on a fixed batch.
        second: task B on a fixed batch.
        training: the optimiser with its rate, and clipping; ``gradient_step(eta)`` for plain
            gradient steps. Its number of steps and its batch size do not count.
        space: the d parameters that move.
        carried: state of the optimiser at the start, from ``carried_state``; None: a fresh one.
        float64: run the model with its weights in float64, which take 8 bytes each. In float32 the
            model gets rounded weights.

    Raises:
        ValueError: half of an adapter is zero, or both steps together are zero.
        FloatingPointError: a loss or a gradient is not finite.
    """
    require_trained_adapter(model, space)
    walk = _Walk(model, space, training, carried)
    with precision(model, float64=float64), measuring(model, space), torch.enable_grad():
        (ab, g_A), (ba, g_B) = walk.on(first, second), walk.on(second, first)
        still_ab, still_ba = walk.along(g_A, g_B), walk.along(g_B, g_A)
    step = (still_ab + still_ba) / 2
    names = first.name, second.name
    if not step.any():
        raise UsageError(
            f"the steps of {training.optimizer} on {names[0]} and {names[1]} are zero together; "
            "pass another rate, or measure where the tasks are not yet learned"
        )
    return OrderDifference(names, training.optimizer, ab - ba, ba, step, still_ab - still_ba)


@dataclass
class _Walk:
    """Two steps of one optimiser from the current point."""

    model: nn.Module
    space: ParamSpace
    training: Training
    carried: State | None

    def on(
        self, first: Minibatch, second: Minibatch
    ) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """The displacement by a step on each minibatch, and the first one's gradient."""
        with self.space.restored(self.model):
            descent = self._start()
            start, begin = descent.point.clone(), self._gradient(descent, first)
            descent.advance(begin)
            descent.advance(self._gradient(descent, second))
            return descent.point - start, begin

    def along(self, *gradients: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """The displacement by a step with each of some gradients."""
        with self.space.restored(self.model):
            descent = self._start()
            start = descent.point.clone()
            for gradient in gradients:
                descent.advance(gradient)
            return descent.point - start

    def _start(self) -> Descent:
        descent = Descent(self.model, self.space, self.training)
        if self.carried is not None:
            groups = descent.optimizer.state_dict()["param_groups"]
            state = {"state": copy.deepcopy(self.carried), "param_groups": groups}
            descent.optimizer.load_state_dict(state)
        return descent

    def _gradient(self, descent: Descent, minibatch: Minibatch) -> Float[Tensor, " d"]:
        loss = minibatch.task.loss(self.model, minibatch.batch)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"the loss of task {minibatch.name} is {loss.item()} in two steps of "
                f"{self.training.optimizer}; lower the rate"
            )
        return descent.gradient(loss, f"the gradient of task {minibatch.name}")


def carried_state(model: nn.Module, task: Task, training: Training, *, space: ParamSpace) -> State:
    """State of an optimiser that has seen some minibatches at the current point.

    It is what a training that has slowed down here would carry: ``training.steps`` minibatches,
    with a rate of zero, so that the weights stay.

    Args:
        model: the network; left unchanged.
        task: a ``Mixture`` of all tasks, for a state that prefers none of them.
        training: the optimiser, with number, size and seed of the minibatches.
        space: the d parameters.
    """
    name, _, _ = training.optimizer.partition(":")
    still = replace(training, optimizer=f"{name}:0")
    batches = repeatable(task, "train", training.batch_size, training.seed)
    with space.restored(model), measuring(model, space), torch.enable_grad():
        descent = Descent(model, space, still)
        for _, batch in zip(range(training.steps), batches, strict=False):
            loss = task.loss(model, batch)
            descent.advance(descent.gradient(loss, f"the gradient of task {task.name}"))
    state: State = descent.optimizer.state_dict()["state"]
    return copy.deepcopy(state)
