"""How far a gradient stands above its own rounding error."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from frenet._errors import UsageError
from frenet.geometry.linalg import norm
from frenet.measure.gradients import gradient
from frenet.network.memory import require_memory
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, Task


class UnknownRoundingError(UsageError):
    """The rounding error of a gradient cannot be measured; the message says why."""


def norm_over_rounding(model: nn.Module, task: Task, batch: Batch, *, space: ParamSpace) -> float:
    """The norm of a gradient over the norm of its rounding error, ||g|| / ||g - g_64||.

    g_64 is the gradient of the same weights in float64. Another order of the rows would not do: it
    changes only the last sum, and at a trained point most of the error is in the probabilities near
    1, which are the same bits in any order.

    Args:
        model: the network; its weights take 8 bytes each while this runs, and are restored bit for
            bit.
        task: gives the loss.
        batch: of the task.
        space: the parameters.

    Returns:
        0 for a zero gradient, and at most 2^23, the resolution of the gradient itself in float32.

    Raises:
        UnknownRoundingError: float64 weights do not fit into memory, or the model or its device
            cannot use them.
    """
    g = gradient(model, task, batch, space=space)
    try:
        with in_float64(model):
            exact = gradient(model, task, batch, space=space)
    except (MemoryError, RuntimeError, TypeError) as error:
        raise UnknownRoundingError(
            f"the rounding error of gradients of {task.name} is not known, because the model does "
            f"not run in float64: {error}"
        ) from error
    length = norm(g)
    if length == 0:
        return 0.0
    return length / max(norm(g - exact), torch.finfo(g.dtype).eps * length)


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """The model with its weights and buffers in float64; restored bit for bit afterwards.

    Raises:
        MemoryError: they do not fit into memory.
    """
    held = [
        (tensor, tensor.data)
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.is_floating_point()
    ]
    require_memory(
        8 * sum(data.numel() for _, data in held),
        "a copy of the weights in float64",
        device=next(model.parameters()).device,
        remedy="use a device with more memory",
    )
    try:
        for tensor, data in held:
            tensor.data = data.double()
        yield
    finally:
        for tensor, data in held:
            tensor.data = data
