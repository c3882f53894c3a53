"""The rounding error of a gradient, against exact arithmetic, and what it must not leave behind."""

import copy
from fractions import Fraction

import pytest
import torch
from torch import nn

from frenet.measure.gradients import gradient
from frenet.measure.rounding import UnknownRoundingError, in_float64, norm_over_rounding
from frenet.network import memory
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticTask
from measure.conftest import build, task_for
from measure.quadratic import quadratic


def bits(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in (*model.parameters(), *model.buffers())]


def test_of_a_quadratic_it_is_that_of_exact_arithmetic():
    """The gradient H (x - m) + s, in rational numbers, where s cancels nearly all of it."""
    model, task, space = quadratic(torch.tensor([1.0, 1e-3, 3.0, 0.5, 20.0, 7.0]), seed=3)
    task = type(task)(task.H.float(), task.minimum)
    slope = 1e-4 - gradient(model, task, {"slope": torch.zeros(1, 6)}, space=space)
    H, x, s = task.H.tolist(), model().tolist(), slope.tolist()
    away = [Fraction(a) - Fraction(b) for a, b in zip(x, task.minimum.tolist(), strict=True)]
    # Autograd's gradient of the form is that of its symmetric part.
    exact = [
        sum((Fraction(H[i][j]) + Fraction(H[j][i])) / 2 * away[j] for j in range(6))
        + Fraction(s[i])
        for i in range(6)
    ]
    batch = {"slope": slope[None]}
    g = gradient(model, task, batch, space=space).double()
    error = g - torch.tensor(list(map(float, exact)), dtype=torch.float64)
    found = norm_over_rounding(model, task, batch, space=space)
    assert 100 < found < 1e4
    assert found == pytest.approx(float(g.norm() / error.norm()), rel=1e-3)


def test_a_zero_gradient_is_nothing_and_a_float64_model_as_good_as_float32_holds():
    model, task, space = quadratic(torch.ones(4))
    batch = next(task.batches("train", 1, 0))
    with torch.no_grad():
        space.write(model, task.minimum)
    assert norm_over_rounding(model, task, batch, space=space) == 0
    space.write(model, task.minimum + 1)
    assert norm_over_rounding(model.double(), task, batch, space=space) == pytest.approx(2**23)


def test_it_sees_the_rounding_that_another_order_of_rows_does_not(learned):
    """Nearly all of a well-learned task's error is in probabilities near 1, the same in any order.

    A logit margin of c times its value takes the loss to nearly 0, and the gradient with it.
    """
    task, space = SyntheticTask("copy"), ParamSpace.select(learned)
    batch = next(task.batches("train", 16, 0))
    with torch.no_grad():
        for head in (learned.get_parameter(name) for name in space.names[-2:]):
            head *= 8
    g = gradient(learned, task, batch, space=space)
    turned = gradient(learned, task, {k: v.flip(0) for k, v in batch.items()}, space=space)
    found = norm_over_rounding(learned, task, batch, space=space)
    assert found < float(g.norm() / (g - turned).norm()) / 10


@pytest.mark.parametrize("name", ["synthetic", "gpt2", "llama", "qwen2-lora"])
def test_weights_and_gradients_are_as_before_bit_for_bit(name):
    model, task = build(name), task_for(name)
    space, before = ParamSpace.select(model), bits(model)
    batch = next(task.batches("train", 3, 0))
    g = gradient(model, task, batch, space=space)
    assert 1e3 < norm_over_rounding(model, task, batch, space=space) <= 2**23
    assert all(map(torch.equal, bits(model), before))
    assert torch.equal(gradient(model, task, batch, space=space), g)
    with in_float64(model):
        assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_reason_if_the_model_does_not_run_in_float64(monkeypatch):
    model, task = build("gpt2"), task_for("gpt2")
    space, batch = ParamSpace.select(model), next(task.batches("train", 3, 0))
    picky = copy.deepcopy(model)
    picky.transformer.wte.register_forward_hook(lambda *_: require_single(picky))
    with pytest.raises(UnknownRoundingError, match="does not run in float64: no kernel"):
        norm_over_rounding(picky, task, batch, space=space)
    assert {p.dtype for p in picky.parameters()} == {torch.float32}
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1000)
    with pytest.raises(UnknownRoundingError, match="copy of the weights in float64 needs"):
        norm_over_rounding(model, task, batch, space=space)


def require_single(model: nn.Module) -> None:
    """What a kernel without float64 does."""
    if next(model.parameters()).dtype == torch.float64:
        raise RuntimeError("no kernel for float64")
