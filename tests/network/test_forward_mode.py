"""Derivatives in forward mode against those of torch.func, in float64."""

import pytest
import torch
from torch.func import jvp
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from frenet.network.forward_mode import derivative_along
from frenet.network.measuring import transformable
from frenet.network.space import ParamSpace
from frenet.network.tasks import Functional, collate, example_losses
from measure.conftest import build
from measure.quadratic import ROWS

# On first use torch compiles some of its formulas; ``transformable`` hides that it says so.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
KEPT = torch.ones(5, 5, dtype=torch.bool).tril()


def drawn(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def both(function, *shapes, moving=None):
    """The derivative of a function of some tensors by us and by torch.func."""
    point, step = (
        {str(i): x for i, x in enumerate(part)} for part in (drawn(*shapes), drawn(*shapes))
    )
    step = {name: x.flip(0) for name, x in step.items()}
    moving = set(point) if moving is None else moving
    held = {name: x for name, x in point.items() if name not in moving}
    point, step = ({n: part[n] for n in point if n in moving} for part in (point, step))

    def of_named(tensors):
        return function(
            *(tensors[n] if n in tensors else held[n] for n in sorted({**held, **tensors}))
        )

    return derivative_along(of_named, point, step), jvp(of_named, (point,), (step,))[1]


FUNCTIONS = {
    "a number": lambda x, y: 3 * x + (y * 2 + 1),
    "a constant": lambda x, y: x * torch.arange(4.0) + y + torch.arange(12).view(3, 4),
    "a wider constant": lambda x, y: x + torch.ones(2, 3, 4) * y.mul(torch.ones(2, 1, 1)),
    "two that move": lambda x, y: x * y + y,
    "a softmax": lambda x, y: F.softmax(x, -1) * torch.softmax(y, 0),
    "a softmax in another dtype": lambda x, y: F.softmax(x.float(), -1, dtype=torch.float64) + y,
    "a layer": lambda x, y: F.linear(x, y, y[:, 0]) + F.linear(y, x),
    "a layer of several": lambda x, y: F.linear(x.expand(2, 3, 4), y),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("moving", [{"0", "1"}, {"0"}, {"1"}])
def test_rules_are_those_of_torch(function, moving):
    ours, theirs = both(function, (3, 4), (3, 4), moving=moving)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs)


ATTENTION = {
    "all": {},
    "causal": {"is_causal": True},
    "mask": {"attn_mask": KEPT},
    "mask of rows": {"attn_mask": KEPT.expand(2, 1, 5, 5)},
    "numbers": {"attn_mask": torch.zeros(5, 5).double().masked_fill(~KEPT, -torch.inf)},
    "scale": {"scale": 0.7, "is_causal": True},
}


@pytest.mark.parametrize("options", ATTENTION.values(), ids=ATTENTION)
@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("moving", [{"0", "1", "2"}, {"0"}])
def test_attention_is_that_of_torch(options, heads, moving):
    def attend(q, k, v):
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, **options, enable_gqa=heads < 4)

    shapes = (2, 4, 5, 3), (2, heads, 5, 3), (2, heads, 5, 6)
    ours, theirs = both(attend, *shapes, moving=moving)
    torch.testing.assert_close(ours, theirs)


def test_keys_that_all_heads_share_are_those_of_torch():
    def attend(q, k, v):
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v)

    ours, theirs = both(attend, (2, 4, 5, 3), (2, 1, 5, 3), (2, 1, 5, 3))
    torch.testing.assert_close(ours, theirs)


def test_a_row_that_sees_nothing_stays_finite_and_leaves_the_others_alone():
    seen = KEPT.clone()
    seen[0] = False

    def attend(q, k, v):
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)

    ours, theirs = both(attend, *[(2, 4, 5, 3)] * 3)
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(ours[:, :, 1:], theirs[:, :, 1:])


def test_what_does_not_depend_on_the_step_has_no_derivative():
    found = derivative_along(lambda t: torch.ones(3), {"x": torch.ones(2)}, {"x": torch.ones(2)})
    assert torch.equal(found, torch.zeros(3))


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama", "gpt2-lora"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_losses_of_padded_rows_move_as_with_torch(name, attention):
    model, batch = build(name).double(), collate(ROWS, padding_side="right")
    getattr(model, "base_model", model).set_attn_implementation(attention)
    space = ParamSpace.select(model)
    point = {n: p.detach() for n, p in zip(space.names, space.parameters(model), strict=True)}
    step = {n: x.flip(0).contiguous() for n, x in point.items()}

    def losses(tensors):
        return example_losses(Functional(model, tensors), batch)[0]

    losses({})
    with transformable(model), torch.no_grad():
        ours, theirs = derivative_along(losses, point, step), jvp(losses, (point,), (step,))[1]
    # Eager attention of Llama and Qwen takes its softmax in float32, in any model.
    off = 1e-5 if attention == "eager" else 1e-10
    assert (ours - theirs).norm() < off * theirs.norm()
