"""The line of the log-odds: slopes against finite differences, radius of a linear model."""

import pytest
import torch

from frenet.geometry.rng import generator
from frenet.methods.effect_line import effect_line
from frenet.methods.linear_range import radius
from frenet.methods.steering_effect import Prompted
from methods.test_steering_effect import PROMPTS, SEVERAL, Linear
from network.models import tiny_gpt2, tiny_llama


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("prompts", [PROMPTS, SEVERAL])
def test_slopes_are_derivatives(make, block, prompts):
    line = effect_line(make(), prompts, torch.randn(16, generator=generator(0, "v")), block=block)
    h = 1e-2
    middle = (line.at(h) - line.at(-h)) / (2 * h)
    torch.testing.assert_close(line.slopes, middle, rtol=0.02, atol=2e-3)
    assert line.counts.tolist() == [1.0] * len(prompts)


def test_a_linear_model_has_no_end():
    """logits = W (h + r u): linear at every distance, with slope (w_a - w_b).u."""
    model, prompts = Linear(), [Prompted([3, 1], ([4], [5])), Prompted([2, 7], ([5], [4]))]
    v = torch.tensor([3.0, 4.0, 0.0])
    line = effect_line(model, prompts[:1], v, block=0)
    W = model.head.weight.detach()
    apart = W[4] - W[5]
    # The unit of the line is the 2-norm: u = (0.6, 0.8, 0).
    assert line.slope == pytest.approx(float(0.6 * apart[0] + 0.8 * apart[1]), rel=1e-5)
    found = radius(line, start=0.1, limit=50.0, generator=generator(0, "b"))
    assert found.unbounded
    assert found.predicted is None
    both = effect_line(model, prompts, v, block=0)
    with pytest.raises(ValueError, match="too small to distinguish from rounding"):
        radius(both, start=0.1, limit=50.0, generator=generator(0, "b"))
    with pytest.raises(ValueError, match="the vector is zero"):
        effect_line(model, prompts, 0 * v, block=0)
