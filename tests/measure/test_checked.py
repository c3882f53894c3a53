"""Derivatives against differences of losses, once at the start of a measurement."""

import pytest
import torch
from torch import nn

from frenet.measure import checked
from frenet.measure.checked import check_slope
from frenet.measure.gradients import gradient
from frenet.measure.loss_line import loss_line
from frenet.methods.local_model import Effort, survey
from frenet.network.space import ParamSpace
from frenet.network.tasks import collate
from measure.quadratic import ROWS, Point, Quadratic, RowsTask, quadratic
from network.models import tiny_llama, tiny_mixtral, tiny_qwen2

BATCH = collate(ROWS)


class Stopped(nn.Module):
    """A point with a loss that drops a share of its gradient."""

    def __init__(self, share):
        super().__init__()
        self.point, self.share = Point(torch.arange(1.0, 7.0)), share

    def forward(self):
        x = self.point()
        return x + self.share * (x.detach() - x)


def bowl(scale=1.0):
    return Quadratic(scale * torch.eye(6), torch.zeros(6))


def one_batch(task):
    return next(task.batches("train", 1, 0))


def test_the_slope_of_a_quadratic_is_found_exactly():
    """Central differences of a quadratic have no error but rounding."""
    model, task, space = quadratic(torch.tensor([3.0, 2.0, 1.0, 1.0]))
    found = check_slope(model, task, one_batch(task), space=space)
    expected = gradient(model, task, one_batch(task), space=space).double().norm()
    assert found.slope == pytest.approx(float(expected), rel=1e-6)
    assert found.error < 1e-4
    assert not found.note


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2, tiny_mixtral])
def test_language_models_pass(make):
    model = make()
    before = [p.detach().clone() for p in model.parameters()]
    found = check_slope(model, RowsTask(), BATCH, space=ParamSpace.select(model))
    assert found.error < 0.01
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("share", [0.1, 0.5, -0.5])
def test_a_gradient_that_is_stopped_in_part_is_an_error(share):
    """(1 - share) of the true slope: for a half, differences find twice what the gradient says."""
    model = Stopped(share)
    space, task = ParamSpace.select(model), bowl()
    with pytest.raises(ValueError, match=r"gradient of Stopped is not the derivative .* quadratic"):
        check_slope(model, task, one_batch(task), space=space)


def test_a_disagreement_of_less_than_five_per_cent_is_told():
    model, task = Stopped(0.03), bowl()
    found = check_slope(model, task, one_batch(task), space=ParamSpace.select(model))
    assert found.error == pytest.approx(0.03 / 0.97, rel=0.02)


def test_half_precision_hides_the_slope():
    model = tiny_llama().bfloat16()
    found = check_slope(model, RowsTask(), BATCH, space=ParamSpace.select(model))
    assert found.error is None
    assert found.note.startswith("derivatives not checked: rounding hides the slope")


def test_a_gradient_of_zero_is_not_checked():
    model = Stopped(1.0)
    found = check_slope(model, bowl(), one_batch(bowl()), space=ParamSpace.select(model))
    assert (found.slope, found.error) == (0, None)
    assert "gradient of task quadratic is zero" in found.note


def test_a_network_is_checked_once_for_each_task(monkeypatch):
    model, asked = tiny_llama(), []
    space, check = ParamSpace.select(model), checked._check
    monkeypatch.setattr(checked, "_check", lambda *a: asked.append(1) or check(*a))
    for name in ("one", "one", "two"):
        check_slope(model, RowsTask(name=name), BATCH, space=space)
    assert len(asked) == 2


def test_lines_and_surveys_begin_with_the_check():
    model, task = Stopped(0.5), bowl()
    space = ParamSpace.select(model)
    with pytest.raises(ValueError, match="gradient of Stopped"):
        survey(model, task, space, effort=Effort(2))
    other = Stopped(0.5)
    with (
        pytest.raises(ValueError, match="gradient of Stopped"),
        loss_line(other, task, one_batch(task), torch.ones(6), space=space),
    ):
        pass
