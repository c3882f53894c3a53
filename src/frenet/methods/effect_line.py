"""The log-odds of the answers to prompts along a direction of the residual stream."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.measure.loss_line import LossLine
from frenet.methods.steering_effect import (
    Prompted,
    full_logits,
    log_odds,
    steered_differences,
)
from frenet.network.measuring import measuring


def effect_line(
    model: nn.Module,
    prompts: Sequence[Prompted],
    vector: Float[Tensor, " h"],
    *,
    block: int,
    path: str | None = None,
) -> LossLine:
    """Log-odds of the answers with r v / ||v|| added after a block, at the prompt's last token.

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
            probe = torch.zeros_like(unit[None], requires_grad=True)
            (odds,) = log_odds(
                prompt.answers, full_logits(model, prompt, {block: probe}, path=path)
            )
            slopes[i] = float(torch.autograd.grad(odds, probe)[0][0].double() @ unit.double())
    return LossLine(at, slopes, torch.ones(len(prompts), dtype=torch.float64))
