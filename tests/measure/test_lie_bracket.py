"""The Lie bracket of two gradient fields, against closed forms and dense Hessians."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from frenet._errors import UsageError
from frenet.geometry.linalg import norm
from frenet.geometry.nulls import gaussian_like
from frenet.measure import lie_bracket as module
from frenet.measure.gradients import gradient
from frenet.measure.lie_bracket import (
    Minibatch,
    above_rounding,
    cost_of_pairs,
    lie_bracket,
    lie_brackets,
    rounding_floor,
)
from frenet.network.adapters import attach_lora
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTask, SyntheticTransformer
from frenet.network.tasks import Functional
from measure.conftest import build, task_for
from measure.quadratic import Quadratic, quadratic, spectrum_matrix

D = 6
CURVED = torch.tensor([1.0, 0.5, 3.0, 2.0, 4.0, 0.1])


def fixed(task, seed=0, size=16):
    return Minibatch(task, next(task.batches("train", size, seed)))


def two_quadratics(*, commuting=False):
    """A model and two quadratics; commuting ones share their eigenvectors and their minimum."""
    model, first, space = quadratic(CURVED, seed=1)
    draw = torch.Generator().manual_seed(5)
    if commuting:
        H = first.H @ first.H + 2 * first.H
        return model, first, replace(first, H=H, name="other"), space
    H, _ = spectrum_matrix(torch.linspace(0.2, 2, D), draw)
    other = Quadratic(H, torch.randn(D, generator=draw), name="other")
    return model, first, other, space


def closed_form(model, first, second):
    x = model().detach()
    return second.H @ first.gradient(x) - first.H @ second.gradient(x)


@pytest.mark.parametrize("float64", [False, True])
def test_of_quadratics_it_is_the_closed_form(float64):
    """H_B H_A (x - m_A) - H_A H_B (x - m_B)."""
    model, first, second, space = two_quadratics()
    exact = closed_form(model, first, second)
    found = lie_bracket(model, fixed(first), fixed(second), space=space, float64=float64)
    assert norm(found.vector - exact) < 2e-6 * norm(exact)
    assert norm(found.vector - exact) < found.rounding
    both = first.gradient(model().detach()) + second.gradient(model().detach())
    kappa = float(exact.norm() / both.norm())
    assert found.kappa == pytest.approx(kappa, rel=1e-5)
    assert found.onset == pytest.approx(0.1 / kappa, rel=1e-5)
    assert found.predicted(0.02) == pytest.approx(0.02 * kappa, rel=1e-5)
    assert found.is_clear


def test_swapped_tasks_have_the_negative_bracket_and_the_same_onset():
    model, first, second, space = two_quadratics()
    one = lie_bracket(model, fixed(first), fixed(second), space=space)
    other = lie_bracket(model, fixed(second), fixed(first), space=space)
    assert torch.equal(one.vector, -other.vector)
    assert one.onset == other.onset


def test_commuting_tasks_have_none_above_rounding():
    """Hessians that commute around one minimum: H_B H_A = H_A H_B, so the order never matters."""
    model, first, second, space = two_quadratics(commuting=True)
    found = lie_bracket(model, fixed(first), fixed(second), space=space)
    crossed = norm(second.H @ first.gradient(model().detach()))
    assert norm(found.vector) < 1e-6 * crossed
    assert not found.is_clear
    with pytest.raises(UsageError, match="the order does not matter below step size"):
        found.require_clear()
    double = lie_bracket(model, fixed(first), fixed(second), space=space, float64=True)
    assert norm(double.vector) < 1e-6 * crossed


def test_a_bracket_of_exactly_zero_has_no_onset():
    """Diagonal Hessians in powers of two, whose products are exact."""
    model, first, space = quadratic(torch.ones(4))
    first = replace(first, H=torch.diag(torch.tensor([1.0, 2.0, 4.0, 1.0])).double())
    second = replace(first, H=2 * first.H, name="other")
    found = lie_bracket(model, fixed(first), fixed(second), space=space)
    assert (found.kappa, found.onset, found.least_step) == (0.0, float("inf"), float("inf"))


def test_of_a_network_it_is_that_of_dense_hessians():
    model = SyntheticTransformer(SyntheticConfig(width=4, layers=1, heads=2), seed=1).eval()
    space = ParamSpace.select(model)
    pair = fixed(SyntheticTask("reverse")), fixed(SyntheticTask("copy"))
    found = lie_bracket(model, *pair, space=space)
    double = copy.deepcopy(model).double()
    theta = torch.cat([p.detach().flatten() for p in space.parameters(double)])

    def derivatives(minibatch):
        def loss(vector):
            inside = Functional(double, space.unflatten(vector))
            return minibatch.task.loss(inside, minibatch.batch)

        derived = torch.autograd.functional
        return derived.jacobian(loss, theta), derived.hessian(loss, theta, vectorize=True)

    with sdpa_kernel(SDPBackend.MATH):
        (g_A, H_A), (g_B, H_B) = map(derivatives, pair)
    exact = H_B @ g_A - H_A @ g_B
    assert norm(found.vector - exact) < 1e-5 * norm(exact)
    assert norm(found.vector - exact) < found.rounding


def test_pairs_are_those_taken_one_by_one_and_the_weights_as_before():
    model = build("gpt2-lora")
    space, task = ParamSpace.select(model, "lora_"), task_for("gpt2-lora")
    batches = [fixed(replace(task, name=str(i), rows=(row,))) for i, row in enumerate(task.rows)]
    before = [p.clone() for p in model.parameters()]
    every = lie_brackets(model, batches, space=space)
    assert list(every) == [(0, 1), (0, 2), (1, 2)]
    for (i, j), found in every.items():
        alone = lie_bracket(model, batches[i], batches[j], space=space, check=False)
        assert norm(found.vector - alone.vector) < 1e-5 * norm(alone.vector)
        assert found.names == (str(i), str(j))
        assert alone.clear == (None, None)
    lie_bracket(model, batches[0], batches[1], space=space, float64=True)
    assert all(map(torch.equal, model.parameters(), before))


def test_random_steps_give_what_dense_hessians_give():
    model, first, second, space = two_quadratics()
    pair = fixed(first), fixed(second)
    found = lie_bracket(model, *pair, space=space, null=torch.Generator().manual_seed(3))
    g = torch.stack(found.gradients)
    u, v = gaussian_like(g, space.sizes, torch.Generator().manual_seed(3)).double()
    exact = second.H @ u - first.H @ v
    assert norm(found.null - exact) < 1e-6 * norm(exact)
    both = norm(found.gradients[0] + found.gradients[1])
    assert found.null_kappa == pytest.approx(float(exact.norm()) / both, rel=1e-5)
    alone = lie_bracket(model, *pair, space=space)
    assert norm(alone.vector - found.vector) < 1e-6 * norm(alone.vector)
    assert alone.null_kappa is None


def test_the_bracket_of_a_batch_with_itself_is_rounding(learned):
    space = ParamSpace.select(learned)
    own = fixed(SyntheticTask("copy"))
    found = lie_bracket(learned, own, fixed(SyntheticTask("reverse")), space=space)
    single = rounding_floor(learned, own, space=space)
    assert 0 < single < found.rounding < norm(found.vector) / 100
    assert rounding_floor(learned, own, space=space, float64=True) < single / 10


def test_a_gradient_below_its_rounding_is_refused_and_float64_lifts_it():
    """A slope that cancels nearly all of H (x - m), of which float32 leaves no digit."""
    model, first, second, space = two_quadratics()
    first = replace(first, H=first.H.float())
    own = fixed(first)
    own.batch["slope"] = (1e-7 - gradient(model, first, own.batch, space=space))[None]
    with pytest.raises(UsageError, match=r"gradient of task quadratic on 1 examples is only .* in"):
        lie_bracket(model, own, fixed(second), space=space)
    found = lie_bracket(model, own, fixed(second), space=space, float64=True)
    assert found.clear[0] > 1e7
    assert found.is_clear


def test_the_size_of_a_batch_that_would_be_enough_is_named(monkeypatch):
    """Ten times the rounding error from 4 times it takes (10 / 4)^2 = 6.25 times the rows."""
    model, first, _, space = two_quadratics()
    monkeypatch.setattr(module, "norm_over_rounding", lambda *_, **__: 4.0)
    with pytest.raises(UsageError, match=r"about 2e\+09 times, or on about 7 examples"):
        above_rounding(model, fixed(first), space=space)
    assert above_rounding(model, fixed(first), space=space, float64=True) == 4.0 * 2**29
    monkeypatch.setattr(module, "norm_over_rounding", lambda *_, **__: 10.0)
    assert above_rounding(model, fixed(first), space=space) == 10.0


def test_what_cannot_have_an_order_is_refused():
    model, first, second, space = two_quadratics()
    with pytest.raises(UsageError, match="same rows of task quadratic, and have no order"):
        lie_bracket(model, fixed(first), fixed(first), space=space)
    with pytest.raises(UsageError, match="1 task has no order"):
        lie_brackets(model, [fixed(first)], space=space)
    against = replace(second, H=-first.H, minimum=first.minimum)
    with pytest.raises(UsageError, match="quadratic and other are opposite"):
        lie_bracket(model, fixed(first), fixed(against), space=space)
    space.write(model, first.minimum)
    at_minimum = replace(first, H=torch.eye(D, dtype=torch.float64))
    with pytest.raises(UsageError, match="gradient of task quadratic on 1 examples is zero"):
        lie_bracket(model, fixed(at_minimum), fixed(second), space=space)
    with pytest.raises(UsageError, match="gradient of task quadratic on 1 examples is zero"):
        lie_bracket(model, fixed(at_minimum), fixed(second), space=space, check=False)


def test_half_of_an_adapter_at_zero_is_refused():
    model = attach_lora(SyntheticTransformer(SyntheticConfig(width=8)), rank=2, targets=["q_proj"])
    space = ParamSpace.select(model)
    pair = fixed(SyntheticTask("copy")), fixed(SyntheticTask("reverse"))
    with pytest.raises(UsageError, match=r"structurally zero .* train the adapter"):
        lie_bracket(model, *pair, space=space)


class Backward(torch.autograd.Function):
    """The square, with a backward pass as compiled kernels have it: no second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class Kernel(Quadratic):
    def loss(self, model, batch):
        return Backward.apply(model() - self.minimum.to(model().dtype)).sum()


def test_a_layer_without_second_derivatives_is_named():
    model, first, second, space = two_quadratics()
    kernel = Kernel(first.H, first.minimum, name="kernel")
    assert gradient(model, kernel, fixed(kernel).batch, space=space).any()
    with pytest.raises(UsageError, match="slopes and Hessian products cannot be measured"):
        lie_bracket(model, fixed(kernel), fixed(second), space=space)


def test_many_tasks_are_announced_with_their_cost(monkeypatch):
    model, first, second, space = two_quadratics()
    monkeypatch.setattr(module, "MANY", 2)
    three = [fixed(first), fixed(second), fixed(replace(first, minimum=-first.minimum, name="c"))]
    with pytest.warns(RuntimeWarning, match="3 pairs take 3 gradients and 6 Hessian products"):
        assert len(lie_brackets(model, three, space=space)) == 3
    assert cost_of_pairs(10).endswith("45 pairs take 10 gradients and 90 Hessian products")


def test_it_describes_itself():
    model, first, second, space = two_quadratics()
    found = lie_bracket(model, fixed(first), fixed(second), space=space)
    assert f"{found.onset:.4g}" in repr(found)
    assert [name for name, _, _ in found._entries()][:2] == ["kappa", "onset"]
