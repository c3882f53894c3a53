"""Many candidates in one forward pass against one candidate at a time."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from frenet.geometry.rng import generator
from frenet.network.adapters import attach_lora, quiet_peft
from frenet.network.blocks import block_list
from frenet.network.hooks.batched_adapters import Factors, plain_adapters
from frenet.network.hooks.batched_weights import (
    Agreement,
    Axis,
    Layout,
    LayoutError,
    can_group,
    grouped,
    only_lora,
    parts_to_watch,
    starts,
    watched,
)
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTask, SyntheticTransformer
from frenet.network.tasks import IGNORE, collate, target_logits
from network.models import tiny_bloom, tiny_gpt2, tiny_llama, tiny_qwen2

ROWS = [([5, 9, 3], [4, 2]), ([7, 2, 8, 4], [6, 1, 3]), ([11], [2])]
Q = "base_model.model.model.layers.0.self_attn.q_proj"
FAMILIES = {"gpt2": tiny_gpt2, "qwen2": tiny_qwen2, "llama": tiny_llama, "bloom": tiny_bloom}


def observed(model, space, batch):
    """The layout, without a look at whether it leads to the right logits."""
    rows, shapes = len(batch["labels"]), []
    more = {key: torch.cat([value, value[:1]]) for key, value in batch.items()}
    for part in (batch, more):
        with measuring(model), torch.no_grad(), watched(parts_to_watch(model, space)) as seen:
            target_logits(model, part)
        shapes.append(seen)
    return Layout.of(rows, *shapes, starts=starts(model, space))


def together_and_apart(model, space, batch, *, count=3, size=0.1):
    """Logits of the target positions of ``count`` candidates, from one pass and one by one."""
    noise = torch.randn(count, space.dim, generator=generator(0, "grouped"))
    thetas = space.read(model) + size * noise
    rows, layout = len(batch["labels"]), observed(model, space, batch)
    with measuring(model), torch.no_grad():
        with grouped(model, space, thetas, layout=layout):
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
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_lora_candidates_are_what_they_are_alone(family, side, rows):
    """Two rows are as many as there are heads, three as many as blocks of some families."""
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
    # After the two passes in which rows are observed.
    assert seen[2 * (last + 1) :][: last + 1] == [3] * last + [12]


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
        grouped(llama, space, thetas, layout=observed(llama, space, collate(ROWS))),
    ):
        pass


def test_factors_that_a_variant_reads_itself_are_not_grouped():
    """DoRA sends the unit matrix through its factors, for the norm of their product."""
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, init_lora_weights=False)
    with quiet_peft():
        model = get_peft_model(tiny_llama(), config)
    with pytest.raises(LayoutError, match=r"q_proj\.lora_A\S* differs between calls"):
        observed(model, ParamSpace.select(model, r"lora_[AB]"), collate(ROWS))
    together, apart = together_and_apart(model, ParamSpace.select(model, "v_proj"), collate(ROWS))
    assert torch.allclose(together, apart, atol=1e-5)


def lora(model=None, **settings):
    """A LoRA model whose adapter is not zero."""
    config = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    with quiet_peft():
        torch.manual_seed(0)
        return get_peft_model(model or tiny_llama(), LoraConfig(**config | settings)).eval()


FUSED = {
    "plain": lora,
    "stable rank": lambda: lora(use_rslora=True, lora_alpha=3),
    "other ranks": lambda: lora(rank_pattern={"v_proj": 5}, alpha_pattern={"v_proj": 1}),
    "dropout": lambda: lora(lora_dropout=0.5),
    "conv1d": lambda: lora(tiny_gpt2(), target_modules=["c_attn"], fan_in_fan_out=True),
}


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("where", ["lora_", "lora_A", "lora_B", r"lora_|base_layer|k_proj"])
def test_factors_of_a_layer_are_one_product_with_its_output(kind, where):
    """Both factors or one, with the weights below and beside them."""
    model = FUSED[kind]()
    space = ParamSpace.select(model, where if kind != "conv1d" else where.replace("|k_proj", ""))
    assert only_lora(model, space) == ("base" not in where)
    together, apart = together_and_apart(model, space, collate(ROWS))
    assert torch.allclose(together, apart, atol=1e-5)
    assert (apart[0] - apart[1]).abs().max() > 0.01


def test_several_active_adapters_all_count_whichever_moves():
    model = lora()
    with quiet_peft():
        model.add_adapter(
            "other",
            LoraConfig(r=3, lora_alpha=1, target_modules=["q_proj"], init_lora_weights=False),
        )
    model.base_model.set_adapter(["default", "other"])
    for where in ("lora_", r"lora_.*\.other", r"lora_A\.default"):
        space = ParamSpace.select(model, where)
        together, apart = together_and_apart(model.eval(), space, collate(ROWS))
        assert torch.allclose(together, apart, atol=1e-5)
        assert (apart[0] - apart[1]).abs().max() > 0.01


def test_layers_that_compute_more_than_a_product_are_not_fused():
    bias, dora = lora(tiny_qwen2(), lora_bias=True), lora(use_dora=True)
    off, merged, hooked = lora(), lora(), lora()
    off.base_model.disable_adapter_layers()
    merged.merge_adapter()
    hooked.get_submodule(Q + ".lora_A.default").register_forward_hook(lambda *_: None)
    for model in (bias, dora, off, merged, hooked):
        assert plain_adapters(Q, model.get_submodule(Q)) == []
    names = (f"{Q}.lora_A.default", f"{Q}.lora_B.default")
    layer = lora().get_submodule(Q)
    modules = (layer.lora_A["default"], layer.lora_B["default"])
    assert plain_adapters(Q, layer) == [Factors(names, modules, 4.0)]
    space = ParamSpace.select(bias, "lora_")
    together, apart = together_and_apart(bias, space, collate(ROWS))
    assert torch.allclose(together, apart, atol=1e-5)


@pytest.mark.parametrize(
    ("base", "factors", "fused"),
    [
        (torch.bfloat16, torch.bfloat16, True),
        (torch.bfloat16, torch.float32, True),
        (torch.float32, torch.bfloat16, False),
        (torch.float64, torch.float64, True),
    ],
)
def test_precision_is_that_of_the_layer(base, factors, fused):
    """An adapter in float32 on weights in half precision keeps its digits up to the sum."""
    model = lora(tiny_llama().to(base))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(factors)
    assert bool(plain_adapters(Q, model.get_submodule(Q))) == fused
    together, apart = together_and_apart(model, ParamSpace.select(model, "lora_"), collate(ROWS))
    coarse = torch.finfo(min(base, factors, key=lambda d: torch.finfo(d).bits))
    assert (together - apart).abs().max() <= 8 * coarse.eps * apart.abs().max()


def test_what_all_blocks_are_called_with_is_copied_once():
    """The mask and the positions; what a block returns has its copies already."""
    model = attach_lora(tiny_llama(), rank=2, seed=0)
    space, batch, seen = ParamSpace.select(model), collate(ROWS), []
    layout = observed(model, space, batch)
    with (
        measuring(model),
        torch.no_grad(),
        grouped(model, space, space.read(model).repeat(4, 1), layout=layout),
    ):
        for block in block_list(model):
            block.register_forward_pre_hook(
                lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True
            )
        target_logits(model, batch)
    first, *others = seen
    assert len(others) == len(block_list(model)) - 1
    assert first["attention_mask"].shape[0] == 4 * len(batch["labels"])
    for later in others:
        assert later["attention_mask"] is first["attention_mask"]
        for a, b in zip(later["position_embeddings"], first["position_embeddings"], strict=True):
            assert a is b


def test_nothing_is_left_behind_also_after_an_error():
    model = attach_lora(tiny_llama(), rank=2, seed=0)
    space = ParamSpace.select(model)
    before = [(set(m.__dict__), len(m._forward_pre_hooks)) for m in model.modules()]
    theta = space.read(model)
    layout = observed(model, space, collate(ROWS))
    with (
        pytest.raises(KeyboardInterrupt),
        grouped(model, space, theta.repeat(2, 1), layout=layout),
    ):
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


def test_rows_are_the_dimension_that_grows_with_them():
    """Not one that is of their size: heads, positions in front of rows, rows times heads."""
    few = {"block": [{(0,): (4, 7, 16), ("bias",): (4, 1, 7), ("ids",): (3, 4, 7), ("x",): (8, 7)}]}
    more = {
        "block": [{(0,): (5, 7, 16), ("bias",): (4, 1, 7), ("ids",): (3, 5, 7), ("x",): (10, 7)}]
    }
    axes = {(0,): Axis(0, 1), ("bias",): None, ("ids",): Axis(1, 1), ("x",): Axis(0, 2)}
    assert Layout.of(4, few, more) == Layout(4, {"block": axes})


@pytest.mark.parametrize(
    ("few", "more", "words"),
    [
        ([], [], "block is never called"),
        ([{(0,): (4, 16)}], [], "called in another way"),
        ([{(0,): (4, 16)}], [{(0,): (5, 16), ("mask",): (5, 7)}], "called in another way"),
        ([{(0,): (13, 16)}], [{(0,): (17, 16)}], r"\(13, 16\) for 4 rows and of \(17, 16\) for 5"),
        ([{(0,): (4, 4)}], [{(0,): (5, 5)}], "has no batch dimension"),
        (
            [{(0,): (4, 9)}, {(0,): (8, 9)}],
            [{(0,): (5, 9)}, {(0,): (10, 9)}],
            "differs between calls",
        ),
    ],
)
def test_rows_that_cannot_be_told_apart_are_refused(few, more, words):
    with pytest.raises(LayoutError, match=words):
        Layout.of(4, {"block": few}, {"block": more})


def test_other_rows_than_observed_are_refused():
    """As of an expert that gets other tokens under one candidate than under another."""
    model = attach_lora(tiny_llama(), rank=2, seed=0)
    space = ParamSpace.select(model)
    layout = observed(model, space, collate(ROWS))
    thetas = space.read(model).repeat(2, 1)
    with (
        pytest.raises(LayoutError, match=r"is called with \d+ rows, not 3"),
        torch.no_grad(),
        grouped(model, space, thetas, layout=layout),
    ):
        target_logits(model, collate(ROWS[:2]))


def test_agreement_is_rounding_of_the_dtype_and_a_small_part_of_the_change():
    alone = torch.stack([torch.ones(1000), torch.full((1000,), 3.0)])
    size, change = 5**0.5, 2.0
    for dtype, eps in ((torch.float32, 2.0**-23), (torch.bfloat16, 2.0**-7)):
        found = Agreement.of(alone + 1e-3, alone, dtype)
        assert found.error == pytest.approx(1e-3, rel=1e-3)
        assert found.rounding == pytest.approx(4 * eps * size + eps**0.5 / 4 * change)
        assert bool(found) == (dtype == torch.bfloat16)
    assert not Agreement.of(alone * float("nan"), alone, torch.float32)
