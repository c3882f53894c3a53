"""A quantity of some examples along a line, such as the loss through parameter space."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jvp

from frenet._errors import UsageError
from frenet.geometry.linalg import dot, norm
from frenet.measure.checked import check_slope
from frenet.measure.curvature import hessian_product
from frenet.network.measuring import measuring, transformable
from frenet.network.padding import arranged
from frenet.network.space import ParamSpace
from frenet.network.tasks import (
    Batch,
    Functional,
    Task,
    columns_to_keep,
    example_losses,
)


class LossLine(NamedTuple):
    """A quantity of n examples at distance r along a unit direction u.

    The mean over examples is sum_i values_i / sum_i counts_i.

    Attributes:
        at: the values of all examples at r, (n,) in float64.
        slopes: their derivatives at r = 0, (n,).
        counts: weight of each example, (n,): target tokens for a loss, 1 for a logit difference.
        curvature: second derivative of the mean at 0; None if unknown.
    """

    at: Callable[[float], Float[Tensor, " n"]]
    slopes: Float[Tensor, " n"]
    counts: Float[Tensor, " n"]
    curvature: float | None = None

    def __repr__(self) -> str:
        return f"<LossLine: {len(self.counts)} examples, slope {self.slope:.4g} at 0>"

    @property
    def slope(self) -> float:
        """Derivative of the mean at 0, <g, u>."""
        return float(self.slopes.sum() / self.counts.sum())


@contextmanager
def loss_line(
    model: nn.Module,
    task: Task,
    batch: Batch,
    direction: Float[Tensor, " d"],
    *,
    space: ParamSpace,
) -> Iterator[LossLine]:
    """The loss of every example of a batch at theta + r u, u = direction / ||direction||.

    Slopes and curvature are exact, by forward mode. Afterwards the parameters are restored, bit for
    bit.

    Args:
        model: the network.
        task: with a loss in nats per target token.
        batch: the examples.
        direction: not zero, in the coordinates of ``space``.
        space: the d parameters that move.

    Raises:
        ValueError: the direction is zero, or parameters are below float32, which rounds small
            steps away, or the model's gradient is not that of its loss.
        FloatingPointError: a slope is not finite.
    """
    length = norm(direction)
    if length == 0:
        raise UsageError("the direction is zero and gives no line")
    space.require_float32(model, "a line through the weights")
    check_slope(model, task, batch, space=space)
    unit = (direction / length).to(next(model.parameters()).device)
    slopes, counts = _slopes(model, batch, unit, space)
    if not torch.isfinite(slopes).all():
        raise FloatingPointError("the slope of the loss along the direction is not finite")
    Hu = hessian_product(model, task, batch, space=space)(unit)
    start = space.read(model)

    def at(r: float) -> Float[Tensor, " n"]:
        space.write(model, start + r * unit)
        with measuring(model), torch.no_grad():
            return example_losses(model, batch)[0].double().cpu()

    with space.restored(model):
        yield LossLine(at, slopes, counts, dot(Hu, unit))


def _slopes(
    model: nn.Module, batch: Batch, unit: Float[Tensor, " d"], space: ParamSpace
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Directional derivative of every example's loss, and its number of target tokens."""
    keep = columns_to_keep(batch)
    arranged(model, batch)  # How padded rows run is measured before the transform.
    held = {n: p.detach() for n, p in zip(space.names, space.parameters(model), strict=True)}
    parts = space.unflatten(unit)
    tangents = {name: part.to(held[name].dtype) for name, part in parts.items()}

    def losses(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return example_losses(Functional(model, tensors, keep=keep), batch)

    with transformable(model), torch.no_grad():
        derivatives: Any = jvp(losses, (held,), (tangents,), has_aux=True)
    _, slopes, counts = derivatives
    return slopes.double().cpu(), counts.double().cpu()
