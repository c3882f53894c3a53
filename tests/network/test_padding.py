"""Padding must not matter: case S1 of the user reports, and pads in loss and gradient."""

from types import SimpleNamespace

import pytest
import torch
from models import EOS, VOCABULARY, tiny_gpt2, tiny_llama, tiny_qwen2
from torch import nn
from transformers import RobertaConfig, RobertaForCausalLM
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from frenet.measure.activations import record
from frenet.measure.gradients import gradient
from frenet.network.hooks.sites import Site
from frenet.network.measuring import measuring
from frenet.network.padding import arranged, forward_arguments, padded_way
from frenet.network.space import ParamSpace
from frenet.network.tasks import collate, example_losses, token_loss
from measure.quadratic import ROWS, RowsTask

A, B, C = [5, 9, 3], [7, 2, 8, 4, 6, 1], [11]
MODELS = {"gpt2": tiny_gpt2, "qwen2": tiny_qwen2, "llama": tiny_llama}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def batch_of(texts, side="left", pad_id=0):
    """Rows whose last token is the target, as ``collate`` makes them."""
    return collate([(ids[:-1], ids[-1:]) for ids in texts], padding_side=side, pad_id=pad_id)


def last_states(model, texts, side="left"):
    """Hidden states of each row's last real token at the embedding and after every block."""
    batch = batch_of(texts, side)
    found = []
    with torch.no_grad():
        states = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            output_hidden_states=True,
        ).hidden_states
    for row, mask in enumerate(batch["attention_mask"]):
        last = int(mask.nonzero()[-1])
        found.append(torch.stack([layer[row, last] for layer in states]))
    return found


@pytest.mark.parametrize("side", ["left", "right"])
def test_s1_last_token_states_do_not_depend_on_the_batch(model, side):
    alone = [last_states(model, [ids])[0] for ids in (A, B, C)]
    assert len(alone[0]) == model.config.num_hidden_layers + 1
    together = last_states(model, [A, B, C], side)
    moved = last_states(model, [C, A, B], side)
    for i, expected in enumerate(alone):
        assert torch.allclose(together[i], expected, atol=1e-5, rtol=0)
        assert torch.allclose(moved[(i + 1) % 3], expected, atol=1e-5, rtol=0)


def test_s1_the_states_differ_between_the_texts(model):
    a, b, c = (last_states(model, [ids])[0] for ids in (A, B, C))
    assert (a - b).norm() > 0.1
    assert (a - c).norm() > 0.1


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_s1_the_contrast_of_the_pairs_does_not_depend_on_the_batch_size(model, size):
    texts = [A, C, B, A]
    states = []
    for start in range(0, len(texts), size):
        states += last_states(model, texts[start : start + size])
    contrast = (states[0] - states[1] + states[2] - states[3]) / 2
    one_by_one = [last_states(model, [ids])[0] for ids in texts]
    expected = (one_by_one[0] - one_by_one[1] + one_by_one[2] - one_by_one[3]) / 2
    assert torch.allclose(contrast, expected, atol=1e-5, rtol=0)


def test_gpt2_with_positions_from_the_column_would_fail_this_case():
    model = tiny_gpt2()
    batch = batch_of([A, B])
    with torch.no_grad():
        by_column = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=torch.arange(len(B))[None],
        ).logits[0, -1]
        alone = model(input_ids=torch.tensor([A])).logits[0, -1]
    assert (by_column - alone).abs().max() > 1e-2


@pytest.mark.parametrize("side", ["left", "right"])
def test_row_losses_do_not_depend_on_the_batch(model, side):
    alone = torch.cat([example_losses(model, batch_of([ids]))[0] for ids in (A, B)])
    together, counts = example_losses(model, batch_of([A, B], side))
    assert torch.allclose(together, alone, atol=1e-5, rtol=0)
    assert counts.tolist() == [1, 1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_ids_under_the_mask_change_neither_loss_nor_gradient(model, side):
    space = ParamSpace.select(model)

    def loss_and_gradient(pad_id):
        model.zero_grad()
        loss = token_loss(model, batch_of([A, B, [4, 4]], side, pad_id))
        loss.backward()
        return loss.item(), space.flatten({n: p.grad for n, p in model.named_parameters()})

    loss, gradient = loss_and_gradient(0)
    other_loss, other_gradient = loss_and_gradient(EOS - 1)
    assert other_loss == pytest.approx(loss, abs=1e-6)
    assert torch.allclose(gradient, other_gradient, atol=1e-6, rtol=0)


def test_padding_sides_give_the_same_gradient(model):
    space = ParamSpace.select(model)
    gradients = []
    for side in ("left", "right"):
        model.zero_grad()
        token_loss(model, batch_of([A, B, [4, 4]], side)).backward()
        gradients.append(space.flatten({n: p.grad for n, p in model.named_parameters()}))
    assert torch.allclose(*gradients, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_left_padding_in_half_precision_has_no_nan(model, dtype):
    losses, _ = example_losses(model.to(dtype), batch_of([A, B, [4, 4]]))
    assert torch.isfinite(losses).all()


def test_an_end_token_as_target_is_supervised_though_it_also_fills_the_padding(model):
    batch = batch_of([[3, EOS], B], pad_id=EOS)
    losses, counts = example_losses(model, batch)
    assert counts.tolist() == [1, 1]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[3]])).logits[0, -1].log_softmax(-1)
    assert losses[0].item() == pytest.approx(-logits[EOS].item(), abs=1e-5)


# A model runs padded rows as it can


class Running(nn.Module):
    """The running mean of all embeddings so far, and nothing that knows of a mask."""

    def __init__(self, *, ahead=False):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.head = nn.Linear(8, VOCABULARY)
        self.ahead, self.passes = ahead, 0

    def forward(self, input_ids):
        self.passes += 1
        x = self.embed(input_ids)
        steps = torch.arange(1, x.shape[1] + 1)[:, None]
        x = x.mean(1, keepdim=True).expand_as(x) if self.ahead else x.cumsum(1) / steps
        return SimpleNamespace(logits=self.head(x.tanh()))


class Ignoring(Running):
    """The same with an argument that it does not use."""

    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids)


def seeded(kind, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(**settings).eval()


def alone(model, rows=ROWS):
    return torch.cat([example_losses(model, collate([row]))[0] for row in rows])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("kind", "settings", "passes", "how"),
    [
        (Ignoring, {}, 1, "with padding on the right"),
        (Running, {}, 1, "with padding on the right"),
        (Running, {"ahead": True}, 3, "in groups of one length"),
    ],
)
def test_rows_run_in_the_way_in_which_padding_does_not_matter(kind, settings, passes, how, side):
    model = seeded(kind, **settings)
    expected = alone(model)
    batch = collate(ROWS, padding_side=side)
    if passes == 1 and side == "right":
        found, _ = example_losses(model, batch)
    else:
        with pytest.warns(RuntimeWarning, match=how):
            found, _ = example_losses(model, batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    before = model.passes
    example_losses(model, batch)
    assert model.passes - before == passes


def test_a_model_is_looked_at_once_and_says_so_once(recwarn):
    model = seeded(Ignoring)
    for _ in range(3):
        example_losses(model, collate(ROWS))
    assert len(recwarn) == 1
    # Three rows alone and together in three ways; then three batches.
    assert model.passes == 6 + 3


def test_a_model_that_reads_its_mask_runs_padded_rows_as_they_are(model, recwarn):
    way = padded_way(model, collate(ROWS))
    assert way == (True, True, True)
    assert arranged(model, collate(ROWS)) is None
    assert not recwarn


def test_a_look_at_a_model_leaves_nothing_behind():
    model = tiny_gpt2().train()
    parameter = next(model.parameters())
    parameter.grad = torch.ones_like(parameter)
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    state = torch.get_rng_state()
    padded_way(model, collate(ROWS))
    assert not seen
    assert model.training
    assert model.transformer.h[0].training
    assert parameter.requires_grad
    assert bool((parameter.grad == 1).all())
    assert torch.equal(state, torch.get_rng_state())
    model(input_ids=torch.tensor([[1]]))
    assert seen


def test_a_switched_attention_is_looked_at_anew():
    """Eager attention in float64 is NaN in rows that are padded on the left."""
    model = tiny_qwen2().double()
    batch = collate(ROWS)
    expected = alone(model)
    assert padded_way(model, batch).left
    model.set_attn_implementation("eager")
    with pytest.warns(RuntimeWarning, match="Qwen2ForCausalLM .* with padding on the right"):
        found, _ = example_losses(model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_first_token_of_a_row_is_no_target_behind_padding_either():
    model, batch = tiny_llama(), collate([([5, 9, 3], [4]), ([7], [2])])
    expected = token_loss(model, batch)
    batch["labels"][1, 2] = 7
    assert token_loss(model, batch) == expected


def test_masks_with_holes_are_left_to_the_model():
    batch = collate(ROWS)
    batch["attention_mask"][1, 4] = 0
    assert arranged(seeded(Ignoring), batch) is None


def test_rows_that_would_run_apart_are_refused_where_a_site_is_read():
    model = seeded(Ignoring)
    model.layers = nn.ModuleList([nn.Linear(8, 8)])
    with pytest.warns(RuntimeWarning):
        example_losses(model, collate(ROWS))
    message = "Ignoring .* pass rows of one length, or pad them on the right"
    with record(model, [Site(0)]), pytest.raises(ValueError, match=message):
        example_losses(model, collate(ROWS))


# An id of padding that is also a word


@pytest.mark.parametrize("scaled", [False, True])
def test_a_padding_id_in_the_text_keeps_its_gradient(scaled):
    """nn.Embedding leaves the row of its padding_idx out of the backward pass."""
    model = tiny_llama()
    if scaled:
        table = model.get_input_embeddings().weight
        own = Gemma3TextScaledWordEmbedding(*table.shape, padding_idx=None, embed_scale=2.0)
        own.weight = table
        model.set_input_embeddings(own)
    batch = collate([([5, 3, 9], [3]), ([3], [7, 3])], pad_id=3)
    space = ParamSpace.select(model, "embed_tokens")
    expected = gradient(model, RowsTask(), batch, space=space)
    model.get_input_embeddings().padding_idx = 3
    found = gradient(model, RowsTask(), batch, space=space)
    rows = found.view(VOCABULARY, -1)
    assert bool(rows[3].any())
    assert torch.equal(found, expected)
    assert model.get_input_embeddings().padding_idx == 3


def test_positions_that_are_counted_from_the_padding_id_stay():
    class Positions(nn.Embedding):
        def forward(self, count):
            return super().forward(torch.arange(count) + self.padding_idx)

    positions = Positions(6, 2, padding_idx=1)
    with measuring(positions):
        assert torch.equal(positions(2), positions.weight[1:3])


def test_positions_go_to_models_only_that_count_them_from_zero():
    """RoBERTa counts from behind its padding id, and would shift all positions that it is given."""
    config = RobertaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, pad_token_id=1, is_decoder=True,
        initializer_range=0.2,
    )  # fmt: skip
    model = seeded(RobertaForCausalLM, config=config)
    assert "position_ids" not in forward_arguments(model)
    assert "position_ids" in forward_arguments(tiny_gpt2())
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 9, 3]])).logits[0, -1]
        found, _ = example_losses(model, collate([([5, 9, 3], [7])]))
    assert found.item() == pytest.approx(-logits.log_softmax(-1)[7].item(), abs=1e-5)
