"""Straight lines in weights or factors: how far they move the weights."""

from collections.abc import Callable

import torch
from torch import nn

from frenet.methods.task_vectors import from_step
from frenet.network.checkpoints.weight_space import coordinates_of, weights_norm
from frenet.network.space import ParamSpace


def weight_share(
    model: nn.Module, direction: torch.Tensor | None, *, space: ParamSpace
) -> Callable[[float], float]:
    r"""||Delta W|| / ||W|| at a distance along a line, of weights or of factors.

    Args:
        model: at the start of the line.
        direction: (d,), not zero; None is enough for a line of weights, where all are alike.
        space: of its coordinates.
    """
    if direction is None or coordinates_of(space) == "weights":
        moved = weights_norm(model, space)
        return lambda r: abs(r) / moved
    start = space.read(model).cpu()
    unit = direction.cpu() / float(direction.double().norm())
    weights = weights_norm(model, from_step(model, unit, space=space).space(model))

    def share(r: float) -> float:
        return from_step(model, r * unit, space=space, start=start).norm() / weights

    return share
