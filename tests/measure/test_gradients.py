"""Gradients against finite differences and a loop, and what they must not depend on."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BatchEncoding

from frenet.measure import gradients, per_example
from frenet.measure.curvature import hessian_product
from frenet.measure.gradients import (
    example_gradients,
    gradient,
    gradient_matrix,
    gradient_rows,
)
from frenet.measure.trajectory import Training, train_and_record
from frenet.network import memory
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTask, SyntheticTransformer
from frenet.network.tasks import IGNORE, collate, evaluate, token_loss
from measure.conftest import build, lora, task_for
from measure.quadratic import ROWS, RowsTask, quadratic
from network.models import tiny_gpt2, tiny_qwen2

NETWORKS = ("gpt2", "qwen2", "llama", "gpt2-lora", "qwen2-lora")


def batch_for(name, padding_side="left"):
    return next(task_for(name, padding_side).batches("train", 3, 0))


def central_difference(model, task, batch, *, space, index, step=1e-5):
    """dL / d theta_i in float64 from two losses."""
    parameters = space.parameters(model)
    flat = torch.cat([p.detach().flatten() for p in parameters])

    def at(value):
        moved = flat.clone()
        moved[index] = value
        with torch.no_grad():
            for parameter, part in zip(parameters, space.unflatten(moved).values(), strict=True):
                parameter.copy_(part)
            return float(task.loss(model, batch))

    slope = (at(flat[index] + step) - at(flat[index] - step)) / (2 * step)
    at(flat[index])
    return slope


def test_every_coordinate_equals_the_central_difference():
    task, batch = task_for("synthetic"), batch_for("synthetic")
    model = SyntheticTransformer(SyntheticConfig(width=4, layers=1, heads=2))
    space = ParamSpace.select(model)
    found = gradient(model, task, batch, space=space)
    model.double()
    slopes = [
        central_difference(model, task, batch, space=space, index=i) for i in range(space.dim)
    ]
    expected = torch.tensor(slopes, dtype=torch.float64)
    assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("name", "step", "error"),
    # The RMS norm of transformers works in float32, in float64 models too: a step of 1e-5 would
    # drown in its rounding.
    [("gpt2", 1e-5, 1e-7), ("gpt2-lora", 1e-5, 1e-7), ("qwen2", 1e-3, 1e-4), ("llama", 1e-3, 1e-4)],
)
def test_the_largest_slope_of_every_tensor_equals_the_central_difference(name, step, error):
    task, batch = task_for(name), batch_for(name)
    space = ParamSpace.select(build(name))
    found = gradient(build(name), task, batch, space=space)
    model = build(name).double()
    start = 0
    for size, tensor in zip(space.sizes, space.names, strict=True):
        index = start + int(found[start : start + size].abs().argmax())
        start += size
        expected = central_difference(model, task, batch, space=space, index=index, step=step)
        assert float(found[index]) == pytest.approx(expected, rel=1e-3, abs=error), tensor


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_qwen2])
def test_the_gradient_of_a_tied_embedding_counts_both_uses(make):
    """Case S3: d loss / d wte[5, 3] for the ids 5, 9, 3, 5."""
    model, task = make(), RowsTask(rows=(([5], [9, 3, 5]),))
    batch = task.collate(task.rows)
    space = ParamSpace.select(model)
    index = 5 * 16 + 3
    assert space.locate(index) in ("transformer.wte.weight", "model.embed_tokens.weight")
    found = float(gradient(model, task, batch, space=space)[index])
    reference = make().double()
    expected = central_difference(reference, task, batch, space=space, index=index, step=1e-3)
    assert found == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_batch_is_the_mean_of_its_rows_weighted_by_their_targets(name, padding_side):
    model, task = build(name), task_for(name, padding_side)
    space = ParamSpace.select(model)
    whole = gradient(model, task, task.collate(ROWS), space=space)
    shares = torch.tensor([len(target) for _, target in ROWS]) / 6
    alone = [gradient(model, task, task.collate([row]), space=space) for row in ROWS]
    torch.testing.assert_close(whole, shares @ torch.stack(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_qwen2])
def test_rows_that_do_not_fit_at_once_have_the_same_gradient_and_evaluation(make, monkeypatch):
    """Every row alone, counted by its targets: the same sums, up to their order."""
    model, task, batch = make(), RowsTask(), collate(ROWS)
    space = ParamSpace.select(model)
    found = gradient(model, task, batch, space=space), evaluate(model, batch)
    monkeypatch.setattr("frenet.network.tasks.ROOM", 1)
    again = gradient(model, task, batch, space=space), evaluate(model, batch)
    torch.testing.assert_close(again[0], found[0], rtol=1e-4, atol=1e-6)
    assert again[1] == pytest.approx(found[1], rel=1e-6)


def test_hooks_of_others_are_kept_and_ours_do_not_stay():
    model = tiny_gpt2()
    space, (first, *rest) = ParamSpace.select(model), model.parameters()
    handle = first.register_hook(lambda g: 2 * g)
    doubled = gradient(model, RowsTask(), collate(ROWS), space=space)
    handle.remove()
    once = gradient(model, RowsTask(), collate(ROWS), space=space)
    n = first.numel()
    torch.testing.assert_close(doubled[:n], 2 * once[:n])
    torch.testing.assert_close(doubled[n:], once[n:])
    assert not any(p._backward_hooks for p in (first, *rest))


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama"])
def test_order_padding_and_filler_change_nothing(name):
    model, task = build(name), RowsTask()
    space = ParamSpace.select(model)
    expected = gradient(model, task, collate(ROWS), space=space)
    wider = collate([*ROWS, ([1] * 9, [1, 1])])
    others = {
        "order": collate(ROWS[::-1]),
        "right": collate(ROWS, padding_side="right"),
        "filler": collate(ROWS, pad_id=63),
        "wider": {key: value[:3] for key, value in wider.items()},
    }
    for what, batch in others.items():
        found = gradient(model, task, batch, space=space)
        assert (found - expected).abs().max() < 1e-5, what


def test_the_rows_of_the_matrix_are_the_gradients_of_the_batches():
    model, task = build("synthetic"), task_for("synthetic")
    space = ParamSpace.select(model)
    matrix = gradient_matrix(model, task, space=space, n=4, batch_size=8, split="select", seed=3)
    stream = task.batches("select", 8, 3)
    for row in matrix:
        assert torch.equal(row, gradient(model, task, next(stream), space=space))
    other = gradient_matrix(model, task, space=space, n=4, batch_size=8, split="select", seed=4)
    assert not torch.allclose(matrix, other)
    plain = gradient_matrix(model, task, space=space, n=3, batch_size=8)
    stream = gradient_rows(model, task, space=space, n=3, batch_size=8)
    wanted = task.batches("train", 8, 0)
    for row, one in zip(plain, stream, strict=True):
        assert torch.equal(row, one)
        assert torch.equal(row, gradient(model, task, next(wanted), space=space))
    # Of a single parameter they are its columns.
    alone = ParamSpace.select(model, lambda name, _: name == space.names[1])
    columns = slice(space.sizes[0], sum(space.sizes[:2]))
    found = gradient_matrix(model, task, space=alone, n=3, batch_size=8)
    torch.testing.assert_close(found, plain[:, columns])
    batch = next(task.batches("train", 3, 0))
    rows = example_gradients(model, task, batch, space=alone)
    torch.testing.assert_close(
        rows, example_gradients(model, task, batch, space=space)[:, columns], rtol=0, atol=1e-6
    )


def test_the_mean_of_many_batches_tends_to_the_gradient_of_their_union():
    """The rows of a quadratic differ only by the slopes of its batches."""
    model, task, space = quadratic(torch.linspace(1, 2, 6), noise=0.1)
    matrix = gradient_matrix(model, task, space=space, n=100, batch_size=1)
    expected = task.gradient(space.read(model))
    assert (matrix.mean(0) - expected).abs().max() < 4 * 0.1 / 100**0.5
    torch.testing.assert_close(matrix.std(0), torch.full((6,), 0.1), rtol=4 / 200**0.5, atol=0)


def test_too_large_a_matrix_is_refused_before_anything_is_allocated(monkeypatch):
    model, task = build("synthetic"), task_for("synthetic")
    space = ParamSpace.select(model)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**20)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("allocated"))
    needed = 4 * 10**6 * space.dim / 2**30
    message = (
        f"a matrix of 1000000 gradients of {space.dim:,} parameters needs {needed:.2f} GiB and "
        "0.00 GiB are free on cpu; pass a smaller n"
    )
    with pytest.raises(MemoryError, match=message):
        gradient_matrix(model, task, space=space, n=10**6, batch_size=8)
    with pytest.raises(MemoryError, match=r"the gradients of 400 examples .* pass fewer examples"):
        example_gradients(model, task, next(task.batches("train", 400, 0)), space=space)


@pytest.mark.parametrize(("chunk", "rows"), [(None, 12), (2, 8), (6, 12), (50, 12)])
def test_the_memory_of_examples_is_asked_for_beforehand(monkeypatch, chunk, rows):
    """The result of six examples, and as many rows again as go through together."""
    model, task = build("synthetic"), task_for("synthetic")
    space, asked = ParamSpace.select(model), []
    monkeypatch.setattr(gradients, "require_memory", lambda size, *_, **__: asked.append(size))
    example_gradients(model, task, next(task.batches("train", 6, 0)), space=space, chunk=chunk)
    assert asked == [4 * rows * space.dim]


def test_a_task_that_runs_out_of_batches_is_named():
    class Short(RowsTask):
        def batches(self, split, batch_size, seed):
            yield self.collate(self.rows)

    model = tiny_qwen2()
    with pytest.raises(ValueError, match="task rows gave only 1 of 3 batches; pass n <= 1"):
        gradient_matrix(model, Short(), space=ParamSpace.select(model), n=3, batch_size=3)


class Roots(nn.Module):
    """Two parameters; the loss takes a square root of the second."""

    def __init__(self, second):
        super().__init__()
        self.first = nn.Parameter(torch.ones(3))
        self.second = nn.Parameter(torch.tensor(second))
        self.idle = nn.Parameter(torch.ones(2, 2))


class RootTask(RowsTask):
    def loss(self, model, batch):
        return model.first.sum() + model.second.sqrt().sum()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ([4.0, 0.0], "gradient of task rows is not finite in parameter second; measure in float32"),
        ([4.0, -1.0], "the loss of task rows is nan"),
    ],
)
def test_a_number_that_is_not_finite_is_named(second, message):
    model = Roots(second)
    space = ParamSpace.select(model)
    with pytest.raises(FloatingPointError, match=message):
        gradient(model, RootTask(), {}, space=space)


def test_a_parameter_that_the_loss_does_not_reach_has_zeros():
    model = Roots([4.0, 1.0])
    found = gradient(model, RootTask(), {}, space=ParamSpace.select(model))
    assert torch.equal(found, torch.tensor([1.0, 1, 1, 0.25, 0.5, 0, 0, 0, 0]))


def test_at_the_start_of_lora_only_b_has_a_gradient():
    """Case S6: B = 0 makes every gradient of A exactly zero."""
    model = lora(tiny_gpt2(), ["c_attn"], zero=True)
    space = ParamSpace.select(model)
    parts = space.unflatten(gradient(model, RowsTask(), collate(ROWS), space=space))
    assert len(parts) == 6
    for name, part in parts.items():
        assert bool(part.any()) == ("lora_B" in name), name


# Per example


def loop(model, task, batch, *, space):
    """One ordinary gradient after the other."""
    count = len(batch["labels"])
    rows = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(count)]
    return torch.stack([gradient(model, task, row, space=space) for row in rows])


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize(
    ("name", "attention", "padding_side"),
    [*itertools.product(NETWORKS, ("sdpa", "eager"), ("left", "right")), ("synthetic", None, None)],
)
def test_examples_equal_a_loop(name, attention, padding_side, chunk):
    model = build(name)
    if attention is not None:
        getattr(model, "base_model", model).set_attn_implementation(attention)
    batch = batch_for(name, padding_side)
    space = ParamSpace.select(model)
    found = example_gradients(model, task_for(name), batch, space=space, chunk=chunk)
    assert found.shape == (3, space.dim)
    expected = loop(model, task_for(name), batch, space=space)
    assert (found - expected).norm() < 5e-6 * expected.norm()


def test_examples_without_a_mask_equal_a_loop():
    model, batch = tiny_gpt2(), collate([row for row in ROWS for _ in (0, 1)][2:4])
    batch = {key: batch[key] for key in ("input_ids", "labels")}
    space = ParamSpace.select(model)
    found = example_gradients(model, RowsTask(), batch, space=space)
    assert (found - loop(model, RowsTask(), batch, space=space)).abs().max() < 1e-5


def test_batches_of_tokenizers_are_taken_as_they_are(unchecked):
    """transformers' BatchEncoding is no dict, and may hold columns that the model does not know."""
    model, batch = tiny_qwen2(), collate(ROWS)
    space = ParamSpace.select(model)
    encoded = BatchEncoding({**batch, "special_tokens_mask": torch.zeros(3, 9)})
    for measure in (gradient, example_gradients):
        expected = measure(model, RowsTask(), batch, space=space)
        assert torch.equal(measure(model, RowsTask(), encoded, space=space), expected)


def test_adapters_need_one_backward_pass_and_whole_models_a_vmap():
    for name, linear in (("gpt2-lora", True), ("qwen2-lora", True), ("gpt2", False)):
        model = build(name)
        rows = per_example.linear_rows(
            model, task_for(name), batch_for(name), space=ParamSpace.select(model)
        )
        assert (rows is not None) == linear, name


def test_weights_and_biases_of_linear_layers_need_one_backward_pass():
    model, task, batch = build("synthetic"), task_for("synthetic"), batch_for("synthetic")
    space = ParamSpace.select(model, "proj")
    found = per_example.linear_rows(model, task, batch, space=space)
    assert any(name.endswith("bias") for name in space.names)
    assert (found - loop(model, task, batch, space=space)).abs().max() < 1e-5


class MeanOfRows(RowsTask):
    """Every row counts alike, whatever its number of targets."""

    def loss(self, model, batch):
        return token_loss(model, batch) * (1 + batch["labels"].ne(IGNORE).sum())


class TwoPasses(RowsTask):
    """The loss of one pass and half of that of another one, on other tokens."""

    def loss(self, model, batch):
        other = {**batch, "input_ids": batch["input_ids"] // 2}
        return token_loss(model, batch) + token_loss(model, other) / 2


class Unvectorised(RowsTask):
    """The loss branches on its value, which vmap does not allow."""

    def loss(self, model, batch):
        loss = token_loss(model, batch)
        return loss if loss > 0 else -loss


@pytest.mark.parametrize(
    ("task", "linear"), [(MeanOfRows(), True), (TwoPasses(), False)], ids=["weighted", "twice"]
)
def test_examples_of_other_losses_equal_a_loop(task, linear):
    model, batch = build("qwen2-lora"), collate(ROWS)
    space = ParamSpace.select(model)
    assert (per_example.linear_rows(model, task, batch, space=space) is not None) == linear
    found = example_gradients(model, task, batch, space=space)
    assert (found - loop(model, task, batch, space=space)).abs().max() < 1e-5


def test_a_weight_used_outside_its_layer_is_noticed():
    """The layer's inputs and slopes alone would miss a part of the gradient."""
    model, task = build("qwen2-lora"), RowsTask()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"]
    model.base_model.model.lm_head.register_forward_hook(
        lambda _module, _inputs, output: output * layer.weight.square().sum()
    )
    space, batch = ParamSpace.select(model), collate(ROWS)
    assert per_example.linear_rows(model, task, batch, space=space) is None
    found = example_gradients(model, task, batch, space=space)
    assert (found - loop(model, task, batch, space=space)).abs().max() < 1e-5


class OwnLoss(RowsTask):
    """A loss as in the manuals of transformers: on the model's device, by the model itself."""

    def loss(self, model, batch):
        assert model.config.vocab_size == 64
        logits = model(**{k: v.to(model.device) for k, v in batch.items() if k != "labels"}).logits
        wanted = batch["labels"][:, 1:].to(model.device)
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), wanted.flatten())


class PositionsFirst(nn.Module):
    """Its layers have the positions before the examples; what it gives has not."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 64)

    def forward(self, input_ids):
        stream = self.embed(input_ids).transpose(0, 1).cumsum(0)
        return SimpleNamespace(logits=self.head(self.mix(stream).tanh()).transpose(0, 1))


@pytest.mark.parametrize("tokens", [3, 4])
def test_positions_are_not_taken_for_examples_where_there_are_as_many(tokens):
    """The rows of both have the same sum."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PositionsFirst()
    space, task = ParamSpace.select(model, "mix|head"), RowsTask()
    batch = collate([(list(range(i, i + tokens - 1)), [9 * i]) for i in (1, 2, 3)])
    assert per_example.linear_rows(model, task, batch, space=space) is None
    found = example_gradients(model, task, batch, space=space)
    assert (found - loop(model, task, batch, space=space)).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["gpt2-lora", "qwen2-lora"])
def test_as_many_examples_as_positions_still_need_one_pass(name):
    model, batch = build(name), collate([([5, 9], [4]), ([7, 2], [6]), ([11], [2])])
    space = ParamSpace.select(model)
    found = per_example.linear_rows(model, RowsTask(), batch, space=space)
    assert found is not None
    assert (found - loop(model, RowsTask(), batch, space=space)).abs().max() < 1e-5


class Decayed(RowsTask):
    """A loss that reads a layer of the model."""

    def loss(self, model, batch):
        return token_loss(model, batch) + model.get_output_embeddings().weight.square().sum()


@pytest.mark.parametrize("name", ["qwen2-lora", "qwen2"])
def test_a_task_may_read_the_settings_of_the_model(name):
    model, batch = build(name), collate(ROWS)
    space = ParamSpace.select(model)
    expected = example_gradients(model, RowsTask(), batch, space=space)
    found = example_gradients(model, OwnLoss(), batch, space=space)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    g = gradient(model, RowsTask(), batch, space=space)
    images = [hessian_product(model, t, batch, space=space)(g) for t in (OwnLoss(), RowsTask())]
    assert (images[0] - images[1]).norm() < 1e-5 * images[1].norm()


def test_a_task_that_reaches_for_a_layer_has_examples_one_by_one_and_no_curvature():
    model, batch = build("qwen2"), collate(ROWS)
    space = ParamSpace.select(model)
    with pytest.warns(RuntimeWarning, match="output only; get_output_embeddings of the model"):
        found = example_gradients(model, Decayed(), batch, space=space)
    assert (found - loop(model, Decayed(), batch, space=space)).abs().max() < 1e-5
    with pytest.raises(AttributeError, match="differentiated through the model's output only"):
        hessian_product(model, Decayed(), batch, space=space)(torch.ones(space.dim))


@pytest.mark.parametrize("name", ["qwen2-lora", "qwen2"])
def test_falling_back_to_a_loop_is_said(name):
    model, batch = build(name), collate(ROWS)
    space = ParamSpace.select(model)
    with pytest.warns(RuntimeWarning, match="cannot be batched over examples .* one gradient at"):
        found = example_gradients(model, Unvectorised(), batch, space=space)
    assert (found - loop(model, Unvectorised(), batch, space=space)).abs().max() < 1e-5


def test_an_example_that_is_not_finite_is_named():
    model = build("qwen2-lora")
    space = ParamSpace.select(model)
    model.get_parameter(space.names[-1]).data[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="a gradient of task rows is not finite in para"):
        example_gradients(model, RowsTask(), collate(ROWS), space=space)


def test_examples_of_half_precision_models_are_close():
    batch = collate(ROWS)
    exact = build("qwen2-lora")
    space = ParamSpace.select(exact)
    expected = example_gradients(exact, RowsTask(), batch, space=space)
    found = example_gradients(build("qwen2-lora").bfloat16(), RowsTask(), batch, space=space)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.05 * expected.norm()


class Shuffling(SyntheticTask):
    """A loader that shuffles with its own random state."""

    def batches(self, split, batch_size, seed):
        LOADER.append(None)
        return super().batches(split, batch_size, seed + len(LOADER))


LOADER: list[None] = []


def test_data_that_cannot_be_repeated_are_named():
    model = build("synthetic")
    space, task = ParamSpace.select(model), Shuffling("reverse")
    with pytest.raises(ValueError, match="task reverse gives another batch of its train split"):
        gradient_matrix(model, task, space=space, n=2, batch_size=4)
    with pytest.raises(ValueError, match="task reverse gives another batch of its train split"):
        train_and_record(model, task, Training("sgd:0.1", steps=2), space=space)
