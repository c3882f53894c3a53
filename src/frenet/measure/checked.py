"""A check before a measurement: are the derivatives those of the loss?"""

import math
from itertools import pairwise
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.measure.gradients import gradient
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, Task, base_model

# Displacements, as shares of the loss that a step along the gradient would remove.
SHARES = (1e-1, 1e-2, 1e-3)
# Largest disagreement, and rounding of a loss in units of the last place.
LIMIT, LAST_PLACES = 0.05, 32


class Check(NamedTuple):
    """The slope of a loss along its gradient, compared with central differences.

    Attributes:
        slope: ||g||, in nats per token per unit of length.
        error: relative disagreement with the closest central difference; None: not checked.
        why: the reason if it is not checked.
    """

    slope: float
    error: float | None
    why: str = ""

    @property
    def note(self) -> str:
        """A sentence for the report if the derivatives are not checked, else nothing."""
        return "" if self.error is not None else f"derivatives not checked: {self.why}"


_CHECKED: "WeakKeyDictionary[nn.Module, dict[tuple[str, ...], Check]]" = WeakKeyDictionary()


def check_slope(model: nn.Module, task: Task, batch: Batch, *, space: ParamSpace) -> Check:
    """Compare ||g|| with (L(theta + h g/||g||) - L(theta - h g/||g||)) / 2h at three steps h.

    Takes one gradient and seven losses, once for each model object, task and space. The weights are
    restored bit for bit.

    Args:
        model: the network.
        task: gives the loss.
        batch: a few examples.
        space: the d parameters.

    Returns:
        The check. It has no error for a gradient of zero, or if no two of the three differences
        agree, because rounding hides the slope or the loss bends or jumps.

    Raises:
        ValueError: the differences agree with each other but not with the slope, by more than 5%
            beyond the bound of rounding; the message names the model.
    """
    checks = _CHECKED.setdefault(base_model(model), {})
    key = (task.name, *space.names)
    if key not in checks:
        checks[key] = _check(model, task, batch, space)
    return checks[key]


def _check(model: nn.Module, task: Task, batch: Batch, space: ParamSpace) -> Check:
    g = gradient(model, task, batch, space=space)
    slope = float(g.double().norm())
    start = abs(_loss(model, task, batch))
    if slope == 0 or start == 0:
        return Check(slope, None, f"the gradient of task {task.name} is zero")
    rounding = _rounding(model, g, space, loss=start)
    bounds = [rounding / (share * start) for share in SHARES]
    ratios = []
    for share in SHARES:
        step = share * start / slope
        with space.displaced(model, g, step / slope):
            ahead = _loss(model, task, batch)
        with space.displaced(model, g, -step / slope):
            behind = _loss(model, task, batch)
        ratios.append((ahead - behind) / (2 * step * slope))
    # A correct slope has the ratio 1.
    pairs = sorted(zip(bounds, ratios, strict=True))
    seen = [(bound, ratio) for bound, ratio in pairs if bound <= LIMIT]
    if not seen:
        return Check(slope, None, f"rounding hides the slope of task {task.name}")
    agreeing = [abs(ratio - 1) for bound, ratio in seen if abs(ratio - 1) <= LIMIT + bound]
    if agreeing:
        return Check(slope, min(agreeing))
    steady = any(
        abs(one - other) <= LIMIT * max(abs(one), abs(other)) + low + high
        for (low, one), (high, other) in pairwise(seen)
    )
    if not steady:
        return Check(slope, None, f"the loss of task {task.name} bends or jumps at these steps")
    raise UsageError(
        f"the gradient of {type(base_model(model)).__name__} is not the derivative of its loss on "
        f"task {task.name}: its slope is {slope:.4g} per unit of length, and central differences "
        f"at three steps give {', '.join(f'{ratio * slope:.4g}' for ratio in ratios)}. A part of "
        "the model stops or replaces gradients; measure parameters after that part, or another "
        "model"
    )


def _rounding(model: nn.Module, g: Float[Tensor, " d"], space: ParamSpace, *, loss: float) -> float:
    """Bound in nats of the loss error from rounding of the loss and of the moved weights."""
    parameters = space.parameters(model)
    parts = zip(parameters, space.unflatten(g).values(), strict=True)
    moved = math.fsum(float((p.detach().float() * own).double().norm()) ** 2 for p, own in parts)
    eps = max(torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point())
    return eps * (LAST_PLACES * max(loss, 1.0) + math.sqrt(moved))


def _loss(model: nn.Module, task: Task, batch: Batch) -> float:
    with measuring(model), torch.no_grad():
        return float(task.loss(model, batch))
