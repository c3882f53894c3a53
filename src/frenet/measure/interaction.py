"""How much two displacements interact to second order, in all and block by block."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from frenet.geometry.linalg import dot
from frenet.measure.curvature import hessian_product
from frenet.network.blocks import parameter_blocks
from frenet.network.checkpoints.tensor_files import Read
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, Task


class SecondOrder(NamedTuple):
    """a^T H b, the second derivative of the mean loss along two displacements.

    Attributes:
        total: a^T H b, in nats per token.
        by_block: a^T H b_j by the name of the block j, b_j the part of b in its parameters; they
            sum to the total. Blocks in which b is zero are left out.
    """

    total: float
    by_block: Mapping[str, float]


def second_order(
    model: nn.Module, task: Task, batch: Batch, first: Read, second: Read, *, space: ParamSpace
) -> SecondOrder:
    r"""The interaction of two displacements to second order, at scale 1.

    $$L(\theta + s(a + b)) - L(\theta + s a) - L(\theta + s b) + L(\theta)
      = s^2\, a^\top H b + O(s^3)$$

    One Hessian product, H a, gives all blocks. It takes two vectors over the weights of the space;
    b is read tensor by tensor.

    Args:
        model: the network; left unchanged.
        task: gives the loss.
        batch: the examples.
        first: a, by parameter.
        second: b, by parameter.
        space: the parameters that move.

    Raises:
        ValueError: a layer has no second derivative, for example a compiled kernel.
        FloatingPointError: the product is not finite; names the parameter.
    """
    a = space.flatten({name: read_on_cpu(first, name) for name in space.names})
    image = space.unflatten(hessian_product(model, task, batch, space=space)(a).cpu())
    by_block: dict[str, float] = {}
    for name, block in parameter_blocks(model, space.names).items():
        part = read_on_cpu(second, name)
        if part.any():
            by_block[block] = by_block.get(block, 0.0) + dot(part, image[name])
    return SecondOrder(sum(by_block.values()), by_block)


def read_on_cpu(read: Read, name: str) -> torch.Tensor:
    """The part of a displacement in one parameter, float32 on the CPU."""
    return read(name).detach().float().cpu()
