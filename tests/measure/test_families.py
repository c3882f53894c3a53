"""Families with unusual attention or experts: derivatives are those of the model itself."""

import pytest
import torch

from frenet.measure.activation_shift import activation_shift
from frenet.measure.curvature import hessian_product
from frenet.measure.gradients import gradient
from frenet.measure.loss_line import loss_line
from frenet.measure.per_example import vmapped_rows
from frenet.network.measuring import transformable
from frenet.network.space import ParamSpace
from frenet.network.tasks import collate
from measure.conftest import lora
from measure.quadratic import ROWS, RowsTask
from network.models import tiny_bloom, tiny_falcon, tiny_gemma2, tiny_mistral, tiny_mixtral
from oracles import finite_shift


def tiny_mistral_lora():
    return lora(tiny_mistral(), ["q_proj", "v_proj"]).eval()


FAMILIES = {
    "mistral": tiny_mistral,
    "mistral-lora": tiny_mistral_lora,
    "gemma2": tiny_gemma2,
    "bloom": tiny_bloom,
    "falcon": tiny_falcon,
    "mixtral": tiny_mixtral,
}
TASK, BATCH = RowsTask(), collate(ROWS)


@pytest.fixture(params=FAMILIES)
def network(request):
    model = FAMILIES[request.param]()
    space = ParamSpace.select(model)
    step = torch.randn(space.dim, generator=torch.Generator().manual_seed(0))
    return model, space, step / step.norm()


def test_the_hessian_product_is_the_double_backward(network):
    model, space, step = network
    found = hessian_product(model, TASK, BATCH, space=space)(step)
    inner = getattr(model, "base_model", model)
    inner.set_attn_implementation("eager")
    if model.config.model_type == "mixtral":
        inner.set_experts_implementation("eager")
    parameters = space.parameters(model)
    slopes = torch.autograd.grad(TASK.loss(model, BATCH), parameters, create_graph=True)
    parts = space.unflatten(step).values()
    along = sum((s * v).sum() for s, v in zip(slopes, parts, strict=True))
    images = torch.autograd.grad(along, parameters)
    expected = space.flatten(dict(zip(space.names, images, strict=True)))
    assert (found - expected).norm() < 2e-5 * expected.norm()


def test_the_slopes_along_a_line_are_those_of_the_gradient(network):
    model, space, step = network
    with loss_line(model, TASK, BATCH, step, space=space) as line:
        pass
    for i, row in enumerate(ROWS):
        expected = float(gradient(model, TASK, collate([row]), space=space) @ step) * len(row[1])
        assert float(line.slopes[i]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_batched_gradients_are_those_of_one_example_at_a_time(network):
    model, space, _ = network
    if model.config.model_type == "mixtral":
        pytest.skip("which experts a token has is looked at, so examples go one at a time")
    found = vmapped_rows(model, TASK, BATCH, space=space)
    for row, own in zip(ROWS, found, strict=True):
        expected = gradient(model, TASK, collate([row]), space=space)
        assert (own - expected).norm() < 1e-5 * expected.norm()


def test_the_shift_of_the_stream_is_the_limit_of_finite_steps(network):
    model, space, step = network
    ids = [context + target for context, target in ROWS]
    found = activation_shift(model, ids, step, space=space, blocks=[0, 1])
    ahead, behind = (
        finite_shift(model, ids, sign * 1e-2 * step, space=space, blocks=[0, 1]) for sign in (1, -1)
    )
    expected = (ahead - behind) / 2e-2
    assert (found - expected).norm() < 1e-3 * expected.norm()


def test_the_way_of_the_experts_is_as_before():
    model = tiny_mixtral()
    before = model.config._experts_implementation
    assert before == "grouped_mm"
    with transformable(model):
        assert model.config._experts_implementation == "eager"
    assert model.config._experts_implementation == before
