"""Padding must not matter: case S1 of the user reports, and pads in loss and gradient."""

import pytest
import torch
from models import EOS, tiny_gpt2, tiny_llama, tiny_qwen2

from frenet.network.space import ParamSpace
from frenet.network.tasks import collate, example_losses, token_loss

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
