"""The change of the residual stream under a step of the weights."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet.measure.activations import record
from frenet.measure.forward_passes import (
    TOKENS,
    Collected,
    ending_after,
    fitting_groups,
    run_blocks,
)
from frenet.network.forward_mode import derivative_along
from frenet.network.hooks.sites import Site
from frenet.network.measuring import transformable
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, Functional, collate


def activation_shift(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    delta: Float[Tensor, " d"],
    *,
    space: ParamSpace,
    blocks: Sequence[int],
    path: str | None = None,
    tokens: int = TOKENS,
) -> Float[Tensor, "n l h"]:
    """The derivative of the stream at the last token of every row along a step of the weights.

    J_l(theta) delta = d/dt h_l(theta + t delta) at t = 0, exactly, in forward mode, with the
    attention kernel that has forward derivatives.

    Args:
        model: a decoder; left unchanged.
        rows: n lists of token ids.
        delta: the step, in the coordinates of ``space``.
        space: the d parameters that move.
        blocks: l block indices.
        path: dotted name of the list of blocks; None: frenet looks for it.
        tokens: most tokens in one forward pass, padding included.

    Returns:
        float32, on the model's device.

    Raises:
        FloatingPointError: a value is not finite; names row, block and dtype.

    >>> from torch import nn
    >>> model = nn.Module(); model.embed = nn.Embedding(3, 2)
    >>> model.layers = nn.ModuleList([nn.Linear(2, 2, bias=False)])
    >>> model.forward = lambda input_ids: model.layers[0](model.embed(input_ids))
    >>> space = ParamSpace.select(model, "layers")
    >>> step = torch.tensor([1.0, 0.0, 0.0, 1.0])  # W <- W + t I, so h moves by the input
    >>> moved = activation_shift(model, [[1, 2]], step, space=space, blocks=[0])
    >>> torch.equal(moved[0, 0], model.embed.weight[2].detach())
    True
    """
    parameters = space.parameters(model)
    held = {n: p.detach() for n, p in zip(space.names, parameters, strict=True)}
    parts = space.unflatten(delta.to(parameters[0].device, torch.float32))
    tangents = {name: part.to(held[name].dtype) for name, part in parts.items()}
    collected = Collected(blocks)
    with transformable(model), torch.no_grad():
        for group in fitting_groups(model, rows, tokens, padding_side="right"):
            batch = collate([(list(rows[i]), []) for i in group], padding_side="right")
            streams = _streams(model, batch, blocks, path)
            collected.put(group, derivative_along(streams, held, tangents))
    return collected.whole()


def _streams(
    model: nn.Module, batch: Batch, blocks: Sequence[int], path: str | None
) -> Callable[[dict[str, Tensor]], Tensor]:
    """The streams at the last tokens, (b, l, h), as a function of the parameters."""
    real = batch["attention_mask"].bool()
    last = real & (real.cumsum(1) == real.sum(1, keepdim=True))
    sites = [Site(block, last) for block in blocks]

    def streams(tensors: dict[str, Tensor]) -> Tensor:
        with record(model, sites, path=path) as seen, ending_after(model, blocks, path=path):
            run_blocks(Functional(model, tensors, keep=1), batch)
        return seen.stacked(sites)

    return streams
