"""Hessian products, traces and eigenpairs against dense Hessians."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from frenet.geometry.linalg import principal_angles
from frenet.measure import curvature
from frenet.measure.curvature import AT_ONCE, hessian_product, hutchinson, top_eigenpairs
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTask, SyntheticTransformer
from frenet.network.tasks import Functional, collate, target_logits
from measure.conftest import build, task_for
from measure.quadratic import ROWS, RowsTask, quadratic, spectrum_matrix
from network.models import tiny_qwen2


def dense_hessian(model, task, batch, *, space):
    """The whole matrix in float64, by reverse mode over reverse mode."""
    model = model.double()
    theta = torch.cat([p.detach().flatten() for p in space.parameters(model)])

    def loss(vector):
        return task.loss(Functional(model, space.unflatten(vector)), batch)

    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(loss, theta, vectorize=True)


@pytest.fixture(scope="module")
def dense():
    """A network of 476 parameters with its whole Hessian and its Hessian product."""
    model = SyntheticTransformer(SyntheticConfig(width=4, layers=1, heads=2), seed=1)
    task, space = SyntheticTask("reverse"), ParamSpace.select(model)
    batch = next(task.batches("train", 16, 0))
    product = hessian_product(model, task, batch, space=space)
    # The product reads the model at the time of the call, so it goes on in float32.
    return dense_hessian(copy.deepcopy(model), task, batch, space=space), product


def test_products_with_unit_vectors_are_columns_of_the_hessian(dense):
    H, product = dense
    assert H.shape == (476, 476)
    columns = torch.randperm(476, generator=torch.Generator().manual_seed(0))[:60]
    products = torch.stack([product(torch.eye(476)[i]) for i in columns])
    assert (products - H[columns]).norm() < 1e-5 * H[columns].norm()


@pytest.mark.parametrize("count", [1, AT_ONCE, AT_ONCE + 1])
def test_rows_of_a_matrix_have_the_products_of_the_vectors(dense, count):
    H, product = dense
    rows = torch.randn(count, len(H), generator=torch.Generator().manual_seed(0))
    found = product(rows)
    assert found.shape == rows.shape
    expected = rows.double() @ H
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_one_row_that_is_not_finite_is_named(dense):
    _, product = dense
    rows = torch.ones(3, 476)
    rows[1, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="a Hessian product is not finite in parameter"):
        product(rows)


class Same(torch.autograd.Function):
    """The identity, differentiable in both modes, without a rule for vmap."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, slope):
        return slope

    @staticmethod
    def jvp(ctx, tangent):
        return tangent.clone()


def test_what_cannot_be_batched_goes_one_by_one_and_says_so(monkeypatch):
    model, task, space = quadratic(torch.linspace(1, 2, 6))
    plain = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self: Same.apply(plain(self)))
    product = hessian_product(model, task, next(task.batches("train", 1, 0)), space=space)
    rows = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    with pytest.warns(RuntimeWarning, match="cannot be batched over vectors"):
        found = product(rows)
    torch.testing.assert_close(found, (rows.double() @ task.H).float())
    torch.testing.assert_close(product(rows), found)  # and is not tried again


def test_large_vectors_go_one_by_one_and_a_trace_from_them_is_the_same(dense, monkeypatch):
    H, product = dense
    sizes = []

    def watched(rows):
        sizes.append(len(rows))
        return product(rows)

    found = []
    for room in (curvature.ROOM, 3 * len(H), len(H)):
        monkeypatch.setattr(curvature, "ROOM", room)
        draw = torch.Generator().manual_seed(0)
        found.append(hutchinson(watched, len(H), probes=10, generator=draw, cubes=True))
    assert sizes == [8, 8, 2, 2] + [3] * 6 + [1] * 2 + [1] * 20
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4)


def test_the_product_is_linear_and_symmetric(dense):
    H, product = dense
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, len(H), generator=generator)
    expected = 2 * product(x) - 3 * product(y)
    torch.testing.assert_close(product(2 * x - 3 * y), expected, rtol=1e-4, atol=1e-4)
    assert float(x @ product(y)) == pytest.approx(float(y @ product(x)), rel=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama", "gpt2-lora"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_product_of_language_models_is_the_double_backward(name, attention):
    """Also with fused attention, which has no second derivative."""
    model, task, batch = build(name), task_for(name), collate(ROWS)
    getattr(model, "base_model", model).set_attn_implementation(attention)
    space = ParamSpace.select(model)
    vector = torch.randn(space.dim, generator=torch.Generator().manual_seed(0))
    found = hessian_product(model, task, batch, space=space)(vector)
    getattr(model, "base_model", model).set_attn_implementation("eager")
    parameters = space.parameters(model)
    slopes = torch.autograd.grad(task.loss(model, batch), parameters, create_graph=True)
    inner = sum(
        (s * v).sum() for s, v in zip(slopes, space.unflatten(vector).values(), strict=True)
    )
    expected = space.flatten(
        dict(zip(space.names, torch.autograd.grad(inner, parameters), strict=True))
    )
    assert (found - expected).norm() < 2e-5 * expected.norm()


def test_differences_of_gradients_tend_to_the_product():
    """The error of a central difference falls four times when the step halves."""
    model, task = build("gpt2"), RowsTask()
    space, batch = ParamSpace.select(model), collate(ROWS)
    direction = torch.randn(space.dim, generator=torch.Generator().manual_seed(0))
    exact = hessian_product(model, task, batch, space=space)(direction).double()
    model.double()
    theta = torch.cat([p.detach().flatten() for p in space.parameters(model)])

    def slope(step):
        tensors = space.unflatten((theta + step * direction).requires_grad_())
        loss = task.loss(Functional(model, tensors), batch)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(tensors.values()))])

    def error(step):
        return float(((slope(step) - slope(-step)) / (2 * step) - exact).norm() / exact.norm())

    errors = [error(2.0**-power) for power in (11, 12, 13)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)
    assert errors[2] < 1e-3


def test_the_product_is_read_at_the_present_point():
    model, task, space = quadratic(torch.linspace(1, 2, 6))
    product = hessian_product(model, task, next(task.batches("train", 1, 0)), space=space)
    vector = torch.arange(6.0)
    expected = (task.H @ vector.double()).float()
    for _ in range(2):
        torch.testing.assert_close(product(vector), expected)
        space.write(model, torch.randn(6, generator=torch.Generator().manual_seed(0)))


def halved_data(model, batch):
    model.transformer.wte.weight.data.mul_(0.5)


def halved_buffer(model, batch):
    model.scale.mul_(0.5)


def hooked(model, batch):
    model.transformer.h[0].register_forward_hook(lambda module, given, out: 0.5 * out)


def other_batch(model, batch):
    batch["input_ids"][:, -3:] += 1


@pytest.mark.parametrize("change", [halved_data, halved_buffer, hooked, other_batch])
def test_a_change_of_the_model_or_the_batch_changes_the_next_product(change):
    """Also where autograd does not see it, as through ``.data``; a new map gives the same."""
    model, task, batch = build("gpt2").requires_grad_(False), RowsTask(), collate(ROWS)
    model.register_buffer("scale", torch.ones(()))
    model.lm_head.register_forward_hook(lambda module, given, out: model.scale * out)
    space = ParamSpace.select(model, "attn")
    product = hessian_product(model, task, batch, space=space)
    vector = torch.randn(space.dim, generator=torch.Generator().manual_seed(0))
    before = product(vector)
    change(model, batch)
    after = product(vector)
    assert torch.equal(after, hessian_product(model, task, batch, space=space)(vector))
    assert (after - before).norm() > 0.01 * before.norm()


class Mark:
    """Lives as long as the graph that it is attached to."""


class Marked(RowsTask):
    """Attaches a mark to the graph of the logits at every look, and remembers it weakly."""

    def loss(self, model, batch):
        logits, labels = target_logits(model, batch)
        mark = Mark()
        logits.grad_fn.metadata["mark"] = mark
        marks.append(weakref.ref(mark))
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


marks = []


@pytest.fixture
def by_counts():
    """Objects go with their last reference; what is in a circle stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_one_graph_serves_all_products_at_a_point_and_none_outlives_it(by_counts):
    model = build("gpt2")
    space = ParamSpace.select(model, "attn")
    product = hessian_product(model, Marked(), collate(ROWS), space=space)
    vectors = torch.randn(3, space.dim, generator=torch.Generator().manual_seed(0))
    marks.clear()
    for vector in (vectors, *vectors):
        product(vector)
    assert [mark() is not None for mark in marks] == [True]
    space.write(model, 0.5 * space.read(model))
    product(vectors[0])
    assert [mark() is not None for mark in marks] == [False, True]
    del product
    assert [mark() is not None for mark in marks] == [False, False]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_without_memory_for_the_graph_the_product_is_the_same(name, monkeypatch):
    """Forward over reverse agrees to rounding, for one vector and for several."""
    model, task, batch = build(name), RowsTask(), collate(ROWS)
    space = ParamSpace.select(model)
    vectors = torch.randn(3, space.dim, generator=torch.Generator().manual_seed(0))
    expected = hessian_product(model, task, batch, space=space)(vectors)
    looks = []
    monkeypatch.setattr(curvature, "free_bytes", lambda device: looks.append(device) or 0)
    product = hessian_product(model, task, batch, space=space)
    for found, wanted in ((product(vectors), expected), (product(vectors[0]), expected[0])):
        assert (found - wanted).norm() < 1e-5 * wanted.norm()
    assert len(looks) == 1  # what did not fit once is not tried again


def test_parameters_without_curvature_have_zeros():
    """A loss that is linear in one parameter and does not depend on another."""
    model = nn.ParameterDict({name: nn.Parameter(torch.full((2,), 3.0)) for name in "abc"})

    class Loss(RowsTask):
        def loss(self, model, batch):
            a, b = (model.tensors[name] for name in "ab")
            return (a**3).sum() + 2 * b.sum()

    batch = {"labels": torch.zeros(1, 1, dtype=torch.int64)}
    product = hessian_product(model, Loss(), batch, space=ParamSpace.select(model))
    expected = torch.tensor([18.0, 18.0, 0.0, 0.0, 0.0, 0.0])
    assert torch.equal(product(torch.ones(6)), expected)
    assert torch.equal(product(torch.ones(2, 6)), expected.expand(2, 6))


def test_tied_weights_count_both_uses():
    """In the embedding's block of the Hessian, against the dense one in float64."""
    model, task = tiny_qwen2(), RowsTask()
    space = ParamSpace.select(model, "embed_tokens|norm")
    batch = collate(ROWS, padding_side="right")
    product = hessian_product(model, task, batch, space=space)
    vector = torch.zeros(space.dim)
    vector[5 * 16 : 6 * 16] = 1.0
    theta = space.read(model).double().requires_grad_()
    model.set_attn_implementation("eager")
    loss = task.loss(Functional(model.double(), space.unflatten(theta)), batch)
    (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
    (expected,) = torch.autograd.grad(slope @ vector.double(), theta)
    assert (product(vector) - expected).norm() < 1e-4 * expected.norm()
    tensors = {"model.embed_tokens.weight": torch.zeros(64, 16, dtype=torch.float64)}
    logits = functional_call(model, tensors, kwargs={"input_ids": batch["input_ids"]}).logits
    assert not logits.any()


def test_a_product_that_is_not_finite_is_named():
    model, task, space = quadratic(torch.linspace(1, 2, 6))
    product = hessian_product(model, task, next(task.batches("train", 1, 0)), space=space)
    with pytest.raises(FloatingPointError, match="a Hessian product is not finite in parameter f"):
        product(torch.full((6,), torch.nan))


def test_hutchinson_agrees_with_the_dense_trace(dense):
    H, product = dense
    found = hutchinson(product, len(H), probes=40, generator=torch.Generator().manual_seed(0))
    square = float((H @ H).trace())
    assert abs(found.trace - float(H.trace())) < 4 * found.trace_error
    assert abs(found.trace_of_square - square) < 4 * found.trace_of_square_error
    assert found.probes == 40


def test_the_errors_that_hutchinson_states_are_honest():
    """Over 300 estimates: their scatter is the stated error, and the mean is the trace."""
    generator = torch.Generator().manual_seed(0)
    H, _ = spectrum_matrix(torch.cat([torch.tensor([20.0, -8.0]), torch.ones(18)]), generator)
    matrix = H.float()
    runs = [
        hutchinson(lambda V: V @ matrix, 20, probes=16, generator=generator) for _ in range(300)
    ]
    for value, error, exact in (
        ("trace", "trace_error", H.trace()),
        ("trace_of_square", "trace_of_square_error", (H @ H).trace()),
    ):
        values = torch.tensor([getattr(run, value) for run in runs])
        stated = torch.tensor([getattr(run, error) for run in runs])
        assert abs(values.mean() - exact) < 4 * values.std() / 300**0.5
        # The scatter of 300 values is known to 1 / sqrt(600), 4%.
        assert float(stated.square().mean().sqrt() / values.std()) == pytest.approx(1, abs=0.16)


def test_one_probe_is_refused():
    with pytest.raises(ValueError, match="probes=1 gives no standard error; pass at least 2"):
        hutchinson(lambda v: v, 3, probes=1, generator=torch.Generator())


@pytest.mark.parametrize("k", [1, 3])
def test_top_eigenpairs_of_a_known_spectrum(k):
    """By modulus, so that a negative eigenvalue comes before a smaller positive one."""
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.tensor([9.0, -7.0, 5.0]), torch.linspace(-1, 1, 27)])
    H, vectors = spectrum_matrix(values, generator)
    matrix = H.float()
    found = top_eigenpairs(lambda v: matrix @ v, 30, k, generator=generator)
    torch.testing.assert_close(
        found.values, torch.tensor([9.0, -7.0, 5.0]).double()[:k], rtol=1e-5, atol=0
    )
    cosines = (found.basis.U.double() * vectors[:, :k]).sum(0).abs()
    assert (cosines > 1 - 1e-8).all()


def test_top_eigenpairs_of_a_network(dense):
    H, product = dense
    found = top_eigenpairs(product, len(H), 6, generator=torch.Generator().manual_seed(0))
    values, vectors = torch.linalg.eigh(H)
    order = values.abs().argsort(descending=True)[:6]
    torch.testing.assert_close(found.values, values[order], rtol=1e-4, atol=0)
    assert float(principal_angles(found.basis.U, vectors[:, order])[-1]) < 1e-2
    assert found.basis.origin == "Hessian"


@pytest.mark.parametrize("k", [0, 4])
def test_k_must_lie_below_the_dimension(k):
    with pytest.raises(ValueError, match=f"k={k} must be between 1 and 3, one less than the dim"):
        top_eigenpairs(lambda v: v, 4, k, generator=torch.Generator())


class Doubled(torch.autograd.Function):
    """2x, with a backward pass only, as the kernels of other packages have."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope


def test_a_layer_without_forward_mode_is_named():
    model = tiny_qwen2()
    model.model.norm.register_forward_hook(lambda module, given, found: Doubled.apply(found))
    space = ParamSpace.select(model, "norm")
    message = "Qwen2ForCausalLM has a layer without derivatives in forward mode, .* kernels"
    with pytest.raises(ValueError, match=message):
        hessian_product(model, RowsTask(), collate(ROWS), space=space)(torch.ones(space.dim))
