"""The logit difference of prompts along a direction of the residual stream."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.measure.activations import add
from frenet.measure.forward_passes import run_blocks
from frenet.measure.loss_line import LossLine
from frenet.methods.steering_effect import Prompted, steered_differences
from frenet.network.hooks.sites import Site
from frenet.network.measuring import measuring
from frenet.network.tasks import collate


def effect_line(
    model: nn.Module,
    prompts: Sequence[Prompted],
    vector: Float[Tensor, " h"],
    *,
    block: int,
    path: str | None = None,
) -> LossLine:
    """logit(positive) - logit(negative) with r v / ||v|| added after a block, at the last token.

    Args:
        model: a decoder; left unchanged.
        prompts: n prompts with their answers.
        vector: v, not zero.
        block: 0-based index.
        path: dotted name of the list of blocks; None: frenet looks for it.

    Raises:
        ValueError: the vector is zero, or the model has no such block.
    """
    norm = float(vector.double().norm())
    if norm == 0:
        raise UsageError("the vector is zero and gives no direction")
    unit = (vector / norm).float()

    def at(r: float) -> Float[Tensor, " n"]:
        moved = {block: (r * unit)[None]}
        return steered_differences(model, prompts, moved, path=path)[:, 0].double()

    slopes = torch.empty(len(prompts), dtype=torch.float64)
    with measuring(model), torch.enable_grad():
        for i, prompt in enumerate(prompts):
            probe = torch.zeros_like(unit, requires_grad=True)
            with add(model, {Site(block): probe}, path=path):
                logits = run_blocks(model, collate([(prompt.context, [])])).logits[0, -1]
            difference = logits[prompt.answers[0]] - logits[prompt.answers[1]]
            slopes[i] = float(torch.autograd.grad(difference, probe)[0].double() @ unit.double())
    return LossLine(at, slopes, torch.ones(len(prompts), dtype=torch.float64))
