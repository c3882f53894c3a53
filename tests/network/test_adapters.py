"""LoRA: where it goes, how it starts, whether it can train, what its gradient means (S6)."""

import pytest
import torch
from models import tiny_gpt2, tiny_llama, tiny_qwen2
from torch import nn
from transformers.pytorch_utils import Conv1D

from frenet.geometry import rng
from frenet.network.adapters import (
    attach_lora,
    linear_modules,
    lora_targets,
    other_half,
    structural_zeros,
)
from frenet.network.checkpoints.weight_space import (
    update_ranks,
    weight_space_gradient,
)
from frenet.network.space import ParamSpace
from frenet.network.tasks import collate, token_loss

MODELS = {"gpt2": tiny_gpt2, "qwen2": tiny_qwen2, "llama": tiny_llama}
BATCH = collate([([5, 9], [3, 7]), ([7, 2, 8], [4]), ([1], [2])])


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def gradients(model):
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def gradient(model, space, batch=BATCH):
    model.zero_grad()
    token_loss(model, batch).backward()
    return space.flatten(gradients(model))


def filled(model, seed=0):
    """The adapter with a B that is not zero."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            generator = rng.generator(seed, name)
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


class Plain(nn.Module):
    """A module without configuration: one linear layer from 2 to 3."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3, bias=False)

    def forward(self, x):
        return self.layer(x)


# Targets


def test_targets_of_known_families():
    assert lora_targets(tiny_gpt2()) == ("c_attn",)
    assert lora_targets(tiny_llama()) == ("q_proj", "v_proj")
    assert lora_targets(tiny_qwen2()) == ("q_proj", "v_proj")


def test_unknown_models_list_their_linear_modules():
    with pytest.raises(ValueError, match=r"a model without configuration; pass targets= .*: layer"):
        attach_lora(Plain())
    odd = tiny_gpt2()
    odd.config.model_type = "odd"
    with pytest.raises(
        ValueError, match=r"model type 'odd'; pass targets= .*: c_attn, c_proj, c_fc"
    ):
        lora_targets(odd)
    assert linear_modules(odd) == ("c_attn", "c_proj", "c_fc", "lm_head")


def test_a_target_that_is_no_module_is_an_error_though_another_one_matches():
    with pytest.raises(
        ValueError, match="no module is called 'q_prj'; the linear modules are q_pr"
    ):
        attach_lora(tiny_llama(), targets=["v_proj", "q_prj"])


def test_settings_that_make_no_sense_are_errors():
    with pytest.raises(ValueError, match="rank=0; pass at least 1"):
        attach_lora(tiny_llama(), rank=0)
    wrapped = attach_lora(tiny_llama())
    with pytest.raises(ValueError, match="already has an adapter"):
        attach_lora(wrapped)


# The fresh adapter


def test_a_fresh_adapter_changes_nothing_and_is_all_that_trains(model):
    ids = torch.tensor([[5, 9, 3]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        wrapped = attach_lora(model, rank=2)
        assert torch.equal(wrapped(input_ids=ids).logits, before)
    for name, parameter in wrapped.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if "lora_B" in name:
            assert not parameter.any()


def test_the_adapter_is_fixed_by_its_seed_and_modules_draw_independently():
    def halves(seed):
        wrapped = attach_lora(tiny_qwen2(), rank=2, seed=seed)
        return {n: p.detach() for n, p in wrapped.named_parameters() if "lora_A" in n}

    first, again, other = halves(0), halves(0), halves(1)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not any(torch.equal(first[n], other[n]) for n in first)
    values = list(first.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(values) for b in values[:i])
    # Uniform in +-1/sqrt(n_in), n_in = 16.
    everything = torch.cat([v.reshape(-1) for v in values])
    assert everything.abs().max() <= 0.25
    assert everything.var().item() == pytest.approx(0.25**2 / 3, rel=0.25)


def test_the_global_random_state_and_the_training_flags_stay(model):
    state = torch.get_rng_state()
    wrapped = attach_lora(model)
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module.training for module in wrapped.modules())


@pytest.mark.parametrize(("alpha", "scale"), [(None, 2.0), (3, 1.5)])
def test_the_scale_is_alpha_over_rank(alpha, scale):
    wrapped = filled(attach_lora(Plain(), rank=2, alpha=alpha, targets=["layer"]))
    own = dict(wrapped.named_parameters())
    (b,), (a,) = ([p for n, p in own.items() if half in n] for half in ("lora_B", "lora_A"))
    weight = next(p for n, p in own.items() if "base_layer" in n)
    expected = weight + scale * b @ a
    assert torch.allclose(wrapped(torch.eye(2)), expected.T, atol=1e-6)


def test_no_dropout_and_gpt2_orientation():
    wrapped = attach_lora(tiny_gpt2(), rank=2)
    config = wrapped.peft_config["default"]
    assert config.lora_dropout == 0
    assert config.fan_in_fan_out
    assert not attach_lora(tiny_llama()).peft_config["default"].fan_in_fan_out


def test_targets_of_both_orientations_are_attached():
    model = Plain()
    model.turned = Conv1D(3, 2)
    wrapped = filled(attach_lora(model, rank=2, targets=["layer", "turned"]))
    for name, shape in (("layer", (3, 2)), ("turned", (2, 3))):
        module = wrapped.base_model.model.get_submodule(name)
        assert module.get_delta_weight("default").shape == shape


# Structural zeros and trainability


def test_other_half():
    assert other_half("a.lora_A.default.weight") == "a.lora_B.default.weight"
    assert other_half("a.lora_B.default.weight") == "a.lora_A.default.weight"
    assert other_half("a.lora_embedding_B.default") == "a.lora_embedding_A.default"
    assert other_half("a.weight") is None


def test_at_the_start_all_gradients_of_a_are_zero_and_all_of_b_are_not(model):
    wrapped = attach_lora(model, rank=2)
    space = ParamSpace.select(wrapped)
    flat = gradient(wrapped, space)
    for name, part in space.unflatten(flat).items():
        assert bool(part.any()) == ("lora_B" in name)
    zeros = structural_zeros(wrapped, space)
    sizes = dict(zip(space.names, space.sizes, strict=True))
    assert zeros == (sum(size for name, size in sizes.items() if "lora_A" in name), space.dim)
    assert zeros.share == zeros.zero / space.dim
    # Not every zero is structural, but every structural one is zero.
    assert int((flat == 0).sum()) >= zeros.zero


def test_a_trained_adapter_has_no_structural_zeros(model):
    wrapped = filled(attach_lora(model, rank=2))
    assert structural_zeros(wrapped, ParamSpace.select(wrapped)).zero == 0


def test_an_embedding_adapter_starts_with_the_other_half_at_zero():
    wrapped = attach_lora(tiny_llama(), rank=2, targets=["embed_tokens"], seed=3)
    space = ParamSpace.select(wrapped)
    assert structural_zeros(wrapped, space).zero == 16 * 2
    parts = space.unflatten(gradient(wrapped, space))
    assert not parts[next(n for n in parts if "embedding_B" in n)].any()
    with pytest.raises(ValueError, match="has no LoRA adapter"):
        weight_space_gradient(wrapped, space, torch.zeros(space.dim))


def test_full_parameters_are_no_structural_zeros():
    model = tiny_gpt2()
    space = ParamSpace.select(model)
    assert structural_zeros(model, space).zero == 0


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_gradient_checkpointing_in_either_mode_gives_b_its_gradient(model, reentrant, before):
    checkpointing = {"use_reentrant": reentrant}
    if before:
        model.activation_checkpointing_enable(checkpointing)
    wrapped = attach_lora(model, rank=2)
    space = ParamSpace.select(wrapped)
    plain = gradient(wrapped, space)
    if not before:
        wrapped.get_base_model().activation_checkpointing_enable(checkpointing)
    without_dropout(wrapped.train())
    found = gradient(wrapped, space)
    assert torch.allclose(found, plain, atol=1e-6)
    for name, part in space.unflatten(found).items():
        assert bool(part.any()) == ("lora_B" in name)


# Case S6: the update in weight space


G = torch.tensor([[1.0, 2], [3, 4], [5, 6]])


def by_hand():
    """W is 3 x 2, A the identity, B zero, scale 2; the loss is the sum of G * W."""
    wrapped = attach_lora(Plain(), rank=2, alpha=4, targets=["layer"])
    own = dict(wrapped.named_parameters())
    next(p for n, p in own.items() if "lora_A" in n).data.copy_(torch.eye(2))
    (G * wrapped(torch.eye(2)).T).sum().backward()
    return wrapped, ParamSpace.select(wrapped)


def test_s6_the_gradient_by_hand():
    parts = gradients(by_hand()[0])
    (a,), (b,) = ([p for n, p in parts.items() if half in n] for half in ("lora_A", "lora_B"))
    assert torch.equal(b, 2 * G)
    assert not a.any()


def test_s6_the_update_has_rank_2_and_4_of_10_coordinates_are_structurally_zero():
    wrapped, space = by_hand()
    flat = space.flatten(gradients(wrapped))
    assert update_ranks(wrapped, space, flat) == {"base_model.model.layer": 2}
    assert structural_zeros(wrapped, space) == (4, 10)
    assert structural_zeros(wrapped, space).share == 0.4
    (update,) = weight_space_gradient(wrapped, space, flat).values()
    assert torch.equal(update, 4 * G)
    assert str(structural_zeros(wrapped, space)) == (
        "4 of 10 coordinates are structurally zero (B = 0)"
    )


def test_s6_on_gpt2_the_rank_is_that_of_the_adapter():
    wrapped = attach_lora(tiny_gpt2(), rank=2)
    space = ParamSpace.select(wrapped)
    ranks = update_ranks(wrapped, space, gradient(wrapped, space))
    assert len(ranks) == 3
    assert set(ranks.values()) == {2}


@pytest.mark.parametrize("start", ["zero", "filled"])
def test_the_weight_space_gradient_is_the_first_order_change_of_the_merged_weight(model, start):
    wrapped = attach_lora(model, rank=2, alpha=3)
    wrapped = filled(wrapped) if start == "filled" else wrapped
    space = ParamSpace.select(wrapped)
    step = gradient(wrapped, space)
    tensors = weight_space_gradient(wrapped, space, step)

    def merged(t):
        with space.displaced(wrapped, t * step):
            found = {}
            for name in tensors:
                module = wrapped.get_submodule(name)
                delta = module.get_delta_weight("default").detach().double()
                found[name] = delta.T if module.fan_in_fan_out else delta
            return found

    def error(t):
        """Distance of the change from its first-order part."""
        ahead, here = merged(t), merged(0.0)
        return sum((ahead[n] - here[n] - t * tensors[n].double()).norm() for n in tensors).item()

    assert set(tensors) == set(update_ranks(wrapped, space, step))
    large, small = error(0.5), error(0.25)
    # What is left is t^2 dB dA: it falls fourfold, and is nothing where A stands still.
    if start == "filled":
        assert large / small == pytest.approx(4, rel=0.05)
    else:
        assert large < 1e-6


def test_ranks_from_the_factors_are_those_of_the_dense_matrices(model):
    wrapped = filled(attach_lora(model, rank=2))
    space = ParamSpace.select(wrapped)
    step = gradient(wrapped, space)
    dense = weight_space_gradient(wrapped, space, step)
    expected = {
        name: int(torch.linalg.matrix_rank(tensor.double(), rtol=1e-6))
        for name, tensor in dense.items()
    }
    assert update_ranks(wrapped, space, step) == expected
    assert max(expected.values()) == 4
    assert set(update_ranks(wrapped, space, 0 * step).values()) == {0}


def test_one_half_alone_moves_while_the_other_stands_still():
    wrapped = filled(attach_lora(tiny_llama(), rank=2))
    both = ParamSpace.select(wrapped)
    only_b = ParamSpace.select(wrapped, "lora_B")
    step = gradient(wrapped, both)
    parts = both.unflatten(step)
    without_a = torch.cat(
        [(0 if "lora_A" in n else 1) * part.reshape(-1) for n, part in parts.items()]
    )
    expected = weight_space_gradient(wrapped, both, without_a)
    found = weight_space_gradient(wrapped, only_b, only_b.flatten(parts))
    assert all(torch.allclose(found[name], expected[name]) for name in expected)


def test_dora_is_refused_in_weight_space():
    from peft import LoraConfig, get_peft_model

    plain = LoraConfig(r=2, target_modules=["layer"], use_dora=True)
    wrapped = get_peft_model(Plain(), plain)
    space = ParamSpace.select(wrapped, "lora_[AB]")
    with pytest.raises(ValueError, match=r"layer has no plain LoRA adapter"):
        weight_space_gradient(wrapped, space, torch.zeros(space.dim))


def test_a_space_without_adapter_has_no_weight_space_gradient():
    model = tiny_gpt2()
    space = ParamSpace.select(model)
    with pytest.raises(ValueError, match="has no LoRA adapter"):
        update_ranks(model, space, torch.zeros(space.dim))
