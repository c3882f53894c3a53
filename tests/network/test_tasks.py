"""Batches, masks and the shared loss: by hand, and through every way a model can be called."""

import math
from types import SimpleNamespace

import pytest
import torch
from models import tiny_gpt2, tiny_llama, tiny_qwen2
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

from frenet.network.adapters import attach_lora
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticTask
from frenet.network.tasks import (
    IGNORE,
    Functional,
    Task,
    causal_mask,
    collate,
    columns_to_keep,
    evaluate,
    example_losses,
    forward_arguments,
    position_ids,
    target_logits,
    token_loss,
)

ROWS = [([5, 9, 3], [4, 8]), ([7, 2, 8, 4, 6, 1], [6, 1, 3]), ([11], [2])]
MODELS = {"gpt2": tiny_gpt2, "qwen2": tiny_qwen2, "llama": tiny_llama}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def test_a_left_padded_batch_by_hand():
    batch = collate([([5, 9], [4]), ([7], [8, 6, 3])], pad_id=1)
    assert batch["input_ids"].tolist() == [[1, 5, 9, 4], [7, 8, 6, 3]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORE, IGNORE, IGNORE, 4], [IGNORE, 8, 6, 3]]
    assert batch["position_ids"].tolist() == [[0, 0, 1, 2], [0, 1, 2, 3]]
    assert all(value.dtype == torch.int64 for value in batch.values())


def test_a_right_padded_batch_by_hand():
    batch = collate([([5, 9], [4]), ([7], [8, 6, 3])], padding_side="right", pad_id=1)
    assert batch["input_ids"].tolist() == [[5, 9, 4, 1], [7, 8, 6, 3]]
    assert batch["labels"].tolist() == [[IGNORE, IGNORE, 4, IGNORE], [IGNORE, 8, 6, 3]]
    # Positions behind the end are never looked at.
    assert position_ids(batch["attention_mask"])[0, :3].tolist() == [0, 1, 2]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_first_token_of_a_row_is_never_a_target(padding_side):
    """On the left it would be predicted from the padding, on the right from nothing."""
    batch = collate([([], [4, 8]), ([7, 2], [6])], padding_side=padding_side)
    assert (batch["labels"] != IGNORE).sum(1).tolist() == [1, 1]
    alone = collate([([4], [8])])
    model = tiny_qwen2()
    losses, _ = example_losses(model, batch)
    assert losses[0].item() == pytest.approx(example_losses(model, alone)[0].item(), abs=1e-5)


def test_a_row_without_tokens_is_refused():
    with pytest.raises(
        ValueError, match=r"row 1 of 2 \(counted from 0\) has no tokens; leave it out"
    ):
        collate([([5], [9]), ([], [])])


def test_the_causal_mask_lets_real_tokens_see_the_real_past_and_padding_itself():
    allowed = causal_mask(torch.tensor([[0, 1, 1], [1, 1, 0]]))
    assert allowed.shape == (2, 1, 3, 3)
    assert allowed[:, 0].int().tolist() == [
        [[1, 0, 0], [0, 1, 0], [0, 1, 1]],
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
    ]
    assert allowed.any(-1).all()  # a row that sees nothing is NaN in some kernels


@pytest.mark.parametrize(
    ("labels", "keep"),
    [
        ([[IGNORE, IGNORE, 3]], 2),
        ([[IGNORE, 5, IGNORE], [IGNORE, IGNORE, 3]], 3),
        ([[1, 2, 3]], 4),  # the first of them cannot be predicted, and is not
    ],
)
def test_the_columns_kept_begin_where_the_first_target_is_predicted(labels, keep):
    assert columns_to_keep({"labels": torch.tensor(labels)}) == keep


def test_a_batch_without_targets_is_refused():
    with pytest.raises(ValueError, match="the batch has no target token: every label is -100"):
        columns_to_keep(collate([([5, 9], [])]))


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_loss_is_the_mean_over_targets_of_minus_log_probability(model, padding_side):
    """Every row alone, every probability by hand."""
    nats = []
    for context, target in ROWS:
        ids = torch.tensor([context + target])
        with torch.no_grad():
            logs = model(input_ids=ids).logits[0].log_softmax(-1)
        first = len(context) - 1
        nats.append(sum(-logs[first + i, token].item() for i, token in enumerate(target)))
    batch = collate(ROWS, padding_side=padding_side)
    losses, counts = example_losses(model, batch)
    assert losses.tolist() == pytest.approx(nats, abs=1e-5)
    assert counts.tolist() == [2, 3, 1]
    assert token_loss(model, batch).item() == pytest.approx(sum(nats) / 6, abs=1e-5)


def test_only_the_columns_with_targets_go_through_the_head(model):
    batch = collate(ROWS)
    widths = []
    model.lm_head.register_forward_hook(lambda _m, inputs, _o: widths.append(inputs[0].shape[1]))
    logits, labels = target_logits(model, batch)
    assert widths == [4]
    assert logits.shape == (3, 3, 64)
    assert torch.equal(labels, batch["labels"][:, -3:])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_the_loss_is_never_in_less_than_float32(dtype, expected):
    assert token_loss(tiny_qwen2().to(dtype), collate(ROWS)).dtype == expected


def test_columns_that_the_model_does_not_know_are_left_out():
    model = tiny_gpt2()
    batch = collate(ROWS)
    expected = token_loss(model, batch)
    assert token_loss(model, {**batch, "row_numbers": torch.arange(3)}) == expected


def test_the_arguments_are_those_of_the_model_inside_wrappers():
    plain = forward_arguments(tiny_gpt2())
    assert {"input_ids", "attention_mask", "position_ids", "logits_to_keep"} <= plain
    assert forward_arguments(attach_lora(tiny_gpt2())) == plain
    assert forward_arguments(Functional(tiny_gpt2(), {})) == plain
    assert forward_arguments(Functional(attach_lora(tiny_gpt2()), {})) == plain


def test_a_functional_model_is_the_displaced_model(model):
    """Tied names follow; the model itself is not touched."""
    space, batch = ParamSpace.select(model), collate(ROWS)
    before = space.read(model)
    moved = before + 0.1 * torch.randn(space.dim, generator=torch.Generator().manual_seed(0))
    functional = Functional(model, space.unflatten(moved), keep=columns_to_keep(batch))
    found = token_loss(functional, batch)
    assert torch.equal(space.read(model), before)
    assert next(functional.parameters()) is next(model.parameters())
    with space.displaced(model, moved - before), torch.no_grad():
        torch.testing.assert_close(found, token_loss(model, batch))
    assert found != token_loss(model, batch)


class Fixed(nn.Module):
    """A model that gives logits that are set by hand."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.logits)


def test_an_evaluation_by_hand():
    """Vocabulary of two; the first row has two targets, one of them right, the second one."""
    batch = collate([([0], [1, 1]), ([0, 0], [1])])
    certain = math.log(3)  # probabilities 3/4 and 1/4
    right, wrong = [0.0, certain], [certain, 0.0]
    logits = torch.tensor([[right, wrong, wrong], [wrong, right, wrong]])
    found = evaluate(Fixed(logits), batch)
    assert found.token_accuracy == pytest.approx(2 / 3)
    assert found.exact_match == pytest.approx(1 / 2)
    assert found.loss == pytest.approx((2 * math.log(4 / 3) + math.log(4)) / 3)


def test_an_evaluation_agrees_with_the_loss_and_needs_no_gradient(model):
    batch = collate(ROWS)
    found = evaluate(model, batch)
    assert found.loss == pytest.approx(token_loss(model, batch).item(), rel=1e-6)
    assert 0 <= found.exact_match <= found.token_accuracy <= 1


@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_no_kernel_makes_nan_of_padding(kernel):
    model = tiny_qwen2()
    with sdpa_kernel(kernel):
        losses, _ = example_losses(model, collate(ROWS))
    assert torch.isfinite(losses).all()


def test_the_synthetic_task_is_a_task():
    assert isinstance(SyntheticTask("copy"), Task)
    assert not isinstance(F, Task)


def test_padding_is_no_row_of_zeros():
    """Gemma 3n takes norms of its streams, which have no derivative at the embedding of padding."""
    config = Gemma3nTextConfig(
        vocab_size=64, vocab_size_per_layer_input=64, hidden_size=16, intermediate_size=[32] * 3,
        hidden_size_per_layer_input=8, num_hidden_layers=3, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, sliding_window=8, max_position_embeddings=64, laurel_rank=4,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        num_kv_shared_layers=0, altup_num_inputs=2, activation_sparsity_pattern=[0.0] * 3,
        initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Gemma3nForCausalLM(config).eval()
    assert not model.get_input_embeddings().weight[0].any()
    rows = [([5, 1], [3]), ([5, 1, 9, 4], [3]), ([7], [2])]
    space = ParamSpace.select(model)

    def gradient(rows):
        model.zero_grad()
        example_losses(model, collate(rows))[0].sum().backward()
        return space.flatten({n: p.grad if p.grad is not None else torch.zeros_like(p)
                              for n, p in model.named_parameters()})  # fmt: skip

    whole = gradient(rows)
    assert whole.isfinite().all()
    torch.testing.assert_close(whole, sum(gradient([row]) for row in rows), atol=1e-3, rtol=1e-3)
