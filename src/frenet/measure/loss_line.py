"""A quantity of some examples along a line, such as the loss through parameter space."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jvp

from frenet._errors import UsageError
from frenet.geometry.linalg import norm
from frenet.measure.checked import check_slope
from frenet.network.checkpoints.tensor_files import Read
from frenet.network.measuring import measuring, twice_forward
from frenet.network.padding import arranged
from frenet.network.space import ParamSpace
from frenet.network.tasks import (
    Batch,
    Functional,
    Task,
    columns_to_keep,
    example_losses,
    in_parts,
)

# Examples on which the derivatives of the model are checked.
CHECKED = 8
# Numbers in memory for each logit of a pass with two derivatives, as measured on SmolLM2.
TWICE = 20


class LossLine(NamedTuple):
    """A quantity of n examples at distance r along a unit direction u.

    The mean over examples is sum_i values_i / sum_i counts_i.

    Attributes:
        at: the values of all examples at r, (n,) in float64.
        slopes: their derivatives at r = 0, (n,).
        counts: weight of each example, (n,): target tokens for a loss, 1 for log-odds.
        curvature: second derivative of the mean at 0; None if unknown.
        length: norm of the direction that u was made from; None if there is none.
        size: norm of the parameters that move; None if the line is not one of parameters.
    """

    at: Callable[[float], Float[Tensor, " n"]]
    slopes: Float[Tensor, " n"]
    counts: Float[Tensor, " n"]
    curvature: float | None = None
    length: float | None = None
    size: float | None = None

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
    direction: Float[Tensor, " d"] | Read,
    *,
    space: ParamSpace,
) -> Iterator[LossLine]:
    """The loss of every example of a batch at theta + r u, u = direction / ||direction||.

    Slopes and curvature are exact, by forward mode in one pass. Every distance is one pass, and is
    evaluated once. Rows whose logits would take much memory go through several passes. Afterwards
    the parameters are restored, bit for bit.

    Args:
        model: the network.
        task: with a loss in nats per target token.
        batch: the examples.
        direction: not zero, in the coordinates of ``space``; or a function that returns its part in
            a parameter by the name, such as ``TaskVector.read``. A function is called again at
            every distance, so that no vector over all weights is kept.
        space: the d parameters that move.

    Raises:
        ValueError: the direction is zero, or parameters are below float32, which rounds small
            steps away, or the model's gradient is not that of its loss.
        FloatingPointError: a slope is not finite.
    """
    read = space.unflatten(direction).__getitem__ if isinstance(direction, Tensor) else direction
    length = math.hypot(*(norm(read(name)) for name in space.names))
    if length == 0:
        raise UsageError("the direction is zero and gives no line")
    space.require_float32(model, "a line through the weights")
    few = {key: value[:CHECKED] for key, value in batch.items()}
    check_slope(model, task, few, space=space)
    device = next(model.parameters()).device

    def unit(name: str) -> Tensor:
        return (read(name) / length).to(device)

    slopes, bends, counts = _derivatives(model, batch, unit, space)
    if not torch.isfinite(slopes).all():
        raise FloatingPointError("the slope of the loss along the direction is not finite")
    with space.restored(model) as start:
        parameters = space.parameters(model)

        @cache
        def at(r: float) -> Float[Tensor, " n"]:
            with torch.no_grad(), measuring(model):
                for name, parameter, here in zip(space.names, parameters, start, strict=True):
                    parameter.copy_(here + r * unit(name))
                return example_losses(model, batch)[0].double().cpu()

        bend = float(bends.sum() / counts.sum())
        yield LossLine(at, slopes, counts, bend, length, space.norm(model))


def _derivatives(
    model: nn.Module, batch: Batch, unit: Read, space: ParamSpace
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """First and second derivative of every example's loss along u, and its target tokens."""
    held = {n: p.detach() for n, p in zip(space.names, space.parameters(model), strict=True)}
    tangents = {name: unit(name).to(tensor.dtype) for name, tensor in held.items()}
    parts = in_parts(model, batch, copies=TWICE)
    found: list[Any] = []
    for part in parts:
        keep = columns_to_keep(part)
        arranged(model, part)  # How padded rows run is measured before the transform.

        def losses(
            tensors: dict[str, Tensor], part: Batch = part, keep: int = keep
        ) -> tuple[Tensor, Tensor]:
            return example_losses(Functional(model, tensors, keep=keep), part)

        def slopes(tensors: dict[str, Tensor], losses: Any = losses) -> tuple[Tensor, Tensor]:
            derivatives: Any = jvp(losses, (tensors,), (tangents,), has_aux=True)
            _, slope, counts = derivatives
            return slope, counts

        with twice_forward(model):
            found.append(jvp(slopes, (held,), (tangents,), has_aux=True))
    slope, bend, counts = (torch.cat(column).double().cpu() for column in zip(*found, strict=True))
    return slope, bend, counts
