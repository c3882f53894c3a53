"""Many candidates in one forward pass against one candidate at a time."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from frenet.geometry.rng import generator
from frenet.network.adapters import attach_lora, quiet_peft
from frenet.network.blocks import block_list
from frenet.network.context import measuring
from frenet.network.grouped import can_group, grouped
from frenet.network.space import ParamSpace
from frenet.network.synthetic import SyntheticConfig, SyntheticTask, SyntheticTransformer
from frenet.network.tasks import IGNORE, collate, target_logits
from network.models import tiny_bloom, tiny_gpt2, tiny_llama, tiny_qwen2

ROWS = [([5, 9, 3], [4, 2]), ([7, 2, 8, 4], [6, 1, 3]), ([11], [2])]
FAMILIES = {"gpt2": tiny_gpt2, "qwen2": tiny_qwen2, "llama": tiny_llama, "bloom": tiny_bloom}


def together_and_apart(model, space, batch, *, count=3, size=0.1):
    """Logits of the target positions of ``count`` candidates, from one pass and one by one."""
    noise = torch.randn(count, space.dim, generator=generator(0, "grouped"))
    thetas = space.read(model) + size * noise
    rows = len(batch["labels"])
    with measuring(model), torch.no_grad():
        with grouped(model, space, thetas, rows=rows):
            together, labels = target_logits(model, batch)
        apart = []
        for theta in thetas:
            with space.restored(model):
                space.write(model, theta)
                apart.append(target_logits(model, batch)[0])
    wanted = labels != IGNORE
    return together.view(count, rows, *together.shape[1:])[:, wanted], torch.stack(apart)[:, wanted]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("rows", [1, 3])
def test_lora_candidates_are_what_they_are_alone(family, side, rows):
    model = attach_lora(FAMILIES[family](), rank=2, seed=0)
    space = ParamSpace.select(model)
    assert can_group(model, space)
    together, apart = together_and_apart(model, space, collate(ROWS[:rows], padding_side=side))
    assert torch.allclose(together, apart, atol=1e-5)
    # Candidates that all gave the same would pass for equal.
    assert (apart[0] - apart[1]).abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_the_blocks_before_the_first_adapter_run_once(family):
    model = attach_lora(FAMILIES[family](), rank=2, seed=0)
    last = len(block_list(model)) - 1
    space = ParamSpace.select(model, lambda name, _: f".{last}." in name and "lora_" in name)
    seen = []
    handles = [
        block.register_forward_hook(
            lambda _, args, out: seen.append((out[0] if isinstance(out, tuple) else out).shape[0])
        )
        for block in block_list(model)
    ]
    together, apart = together_and_apart(model, space, collate(ROWS), count=4)
    for handle in handles:
        handle.remove()
    assert torch.allclose(together, apart, atol=1e-5)
    assert seen[: last + 1] == [3] * last + [12]


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_the_blocks_group_too(family):
    model = FAMILIES[family]()
    space = ParamSpace.select(model, r"(attn|mlp).*(weight|bias)")
    assert can_group(model, space)
    together, apart = together_and_apart(model, space, collate(ROWS))
    assert torch.allclose(together, apart, atol=1e-4)


@pytest.mark.parametrize("where", [None, "head|ln_f", "embed", r"blocks.1.*ln"])
def test_every_parameter_of_the_synthetic_transformer_groups(where):
    """Embeddings, positions, norms and head: those before, in and behind the blocks."""
    model = SyntheticTransformer(SyntheticConfig(width=16), seed=0)
    space = ParamSpace.select(model, where)
    assert can_group(model, space)
    batch = next(SyntheticTask("reverse").batches("train", 4, 0))
    for rows in (1, 4):
        part = {key: value[:rows] for key, value in batch.items()}
        together, apart = together_and_apart(model, space, part)
        assert torch.allclose(together, apart, atol=1e-4)
        assert (apart[0] - apart[1]).abs().max() > 0.01


def test_what_cannot_be_grouped_is_told_and_refused():
    tied = tiny_gpt2()
    assert not can_group(tied, ParamSpace.select(tied, "wte"))
    llama = tiny_llama()
    space = ParamSpace.select(llama, "input_layernorm")
    assert not can_group(llama, space)
    thetas = space.read(llama).repeat(2, 1)
    with (
        pytest.raises(ValueError, match="input_layernorm is a LlamaRMSNorm, which cannot be"),
        grouped(llama, space, thetas, rows=1),
    ):
        pass


def test_factors_that_a_variant_reads_itself_are_not_grouped():
    """DoRA takes the weights of its factors for the norm, so that their candidates come apart."""
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, init_lora_weights=False)
    with quiet_peft():
        model = get_peft_model(tiny_llama(), config)
    space = ParamSpace.select(model, r"lora_[AB]")
    together, apart = together_and_apart(model, space, collate(ROWS), count=4)
    assert (together - apart).abs().max() > 1e-3
    assert not can_group(model, space)
    assert not can_group(model, ParamSpace.select(model, r"q_proj.*base_layer"))
    assert can_group(model, ParamSpace.select(model, "v_proj"))


def test_nothing_is_left_behind_also_after_an_error():
    model = attach_lora(tiny_llama(), rank=2, seed=0)
    space = ParamSpace.select(model)
    before = [(set(m.__dict__), len(m._forward_pre_hooks)) for m in model.modules()]
    theta = space.read(model)
    with pytest.raises(KeyboardInterrupt), grouped(model, space, theta.repeat(2, 1), rows=1):
        raise KeyboardInterrupt
    assert [(set(m.__dict__), len(m._forward_pre_hooks)) for m in model.modules()] == before
    assert torch.equal(space.read(model), theta)


def test_blocks_are_found_by_their_size():
    for make in FAMILIES.values():
        model = make()
        found = list(block_list(model))
        assert len(found) == model.config.num_hidden_layers
        assert list(block_list(attach_lora(model, rank=2, seed=0))) == found
    assert not block_list(nn.Linear(2, 2))
    assert len(block_list(SyntheticTransformer(SyntheticConfig(width=16)))) == 2
