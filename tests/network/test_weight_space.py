"""What steps of LoRA's factors do to the weights: exactly, in every orientation and scale."""

import warnings

import pytest
import torch
from peft import AdaLoraConfig, LoHaConfig, LoraConfig, get_peft_model
from torch import nn

from frenet.network.adapters import attach_lora, quiet_peft
from frenet.network.checkpoints.weight_space import coordinates_of, weight_change, weights_norm
from frenet.network.space import ParamSpace
from network.adapted import CASES, adapted, dense, draw_step, factors
from network.models import tiny_gpt2, tiny_llama, tiny_mixtral, tiny_qwen2

IDS = torch.tensor([[5, 9, 3, 7, 1, 2]])


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
@pytest.mark.parametrize("case", CASES)
def test_the_whole_change_of_the_weights_is_that_of_the_network(case, trained):
    """Added to the base at theta_0 it gives the network of theta_1; the model is left alone."""
    model = adapted(case, trained=trained)
    space = factors(model)
    step, before = draw_step(space), space.read(model)
    shapes, read = weight_change(model, space, step)
    assert torch.equal(space.read(model), before)
    here = dense(model)
    with space.displaced(model, step):
        there, wanted = dense(model), logits(model)
    assert set(shapes) == set(there)
    for name in shapes:
        torch.testing.assert_close(read(name).double(), there[name] - here[name], rtol=0, atol=1e-6)
    weights = ParamSpace.select(model, lambda name, _: name in shapes)
    with weights.displaced(model, weights.flatten({name: read(name) for name in shapes})):
        torch.testing.assert_close(logits(model), wanted, atol=2e-5, rtol=1e-4)


def test_a_small_step_is_not_the_rounding_of_two_large_products():
    model = adapted("llama", trained=True)
    space = factors(model)
    step, start = draw_step(space, size=1e-6), space.read(model)
    _, read = weight_change(model, space, step, start)
    parts = {n: p.double() for n, p in space.unflatten(step).items()}
    own = {n: p.detach().double() for n, p in model.named_parameters() if n in parts}
    a = next(n for n in parts if "q_proj.lora_A" in n)
    b = a.replace("lora_A", "lora_B")
    name = f"{a.split('.lora_A')[0]}.base_layer.weight"
    s = 5 / 3**0.5  # rsLoRA
    wanted = s * (parts[b] @ (own[a] + parts[a]) + own[b] @ parts[a])
    error = (read(name).double() - wanted).norm() / wanted.norm()
    assert error < 1e-6
    with space.displaced(model, step):
        moved = {n: p.detach() for n, p in model.named_parameters() if n in parts}
        ahead = moved[b] @ moved[a]
    careless = s * (ahead - own[b].float() @ own[a].float()).double()
    assert (careless - wanted).norm() / wanted.norm() > 1e-3


def test_a_start_elsewhere_and_a_half_that_stands_still():
    """The change from a given theta_0 does not depend on where the model stands."""
    model = adapted("qwen2", trained=True)
    space = factors(model)
    start = draw_step(space, seed=7)
    step = draw_step(space, seed=8)
    with space.displaced(model, start - space.read(model)):
        _, wanted = weight_change(model, space, step)
    shapes, found = weight_change(model, space, step, start)
    for name in shapes:
        torch.testing.assert_close(found(name), wanted(name), atol=1e-6, rtol=1e-5)
    only_b = ParamSpace.select(model, "lora_B")
    parts = only_b.unflatten(step[: only_b.dim])
    named = zip(space.names, space.shapes, strict=True)
    flat = {name: parts.get(name, torch.zeros(shape)) for name, shape in named}
    _, half = weight_change(model, only_b, step[: only_b.dim])
    _, both = weight_change(model, space, space.flatten(flat))
    for name in shapes:
        torch.testing.assert_close(half(name), both(name), atol=1e-6, rtol=1e-5)


def test_two_adapters_on_one_weight_change_it_by_the_sum():
    model = adapted("gpt2", trained=True, name="default")
    adapted("gpt2", trained=True, name="second", model=model, seed=4)
    both = ParamSpace.select(model, "lora_")
    step = draw_step(both)
    shapes, found = weight_change(model, both, step)
    parts = both.unflatten(step)
    alone = []
    for name in ("default", "second"):
        space = ParamSpace.select(model, rf"lora_.*\.{name}")
        alone.append(weight_change(model, space, space.flatten(parts))[1])
    for name in shapes:
        torch.testing.assert_close(found(name), alone[0](name) + alone[1](name))


def test_other_parameters_change_by_their_own_step():
    """A norm that trains beside the adapter, and the adapted weight itself."""
    model = adapted("llama", trained=True)
    where = r"lora_|layers\.0\.input_layernorm|layers\.0\.self_attn\.q_proj\.base_layer"
    space = ParamSpace.select(model, where)
    step = draw_step(space)
    shapes, read = weight_change(model, space, step)
    parts = space.unflatten(step)
    norm = next(n for n in parts if "layernorm" in n)
    assert torch.equal(read(norm), parts[norm])
    base = next(n for n in parts if "base_layer" in n)
    adapter = factors(model)
    _, product = weight_change(model, adapter, adapter.flatten(parts))
    torch.testing.assert_close(read(base), product(base) + parts[base])
    assert coordinates_of(space) == "factors"
    plain = ParamSpace.select(tiny_llama())
    step = draw_step(plain)
    shapes, read = weight_change(tiny_llama(), plain, step)
    assert coordinates_of(plain) == "weights"
    assert torch.equal(plain.flatten({name: read(name) for name in shapes}), step)


@pytest.mark.parametrize(
    ("config", "where", "words"),
    [
        (LoraConfig(use_dora=True), None, "no sum of products B A"),
        (LoraConfig(use_dora=True), "lora_[AB]", "no plain LoRA adapter"),
        (LoHaConfig(), None, "no sum of products B A"),
        (AdaLoraConfig(total_step=10), None, "no sum of products B A"),
        (AdaLoraConfig(total_step=10), "lora_[AB]", "something else to its weight"),
        (LoraConfig(target_modules=["lm_head"]), None, "one use of a tied weight"),
        (LoraConfig(lora_bias=True), None, "no plain LoRA adapter"),
    ],
    ids=["DoRA", "DoRA's halves", "LoHa", "AdaLoRA", "AdaLoRA's halves", "tied", "bias of B"],
)
def test_what_is_no_change_of_a_weight_is_refused(config, where, words):
    config.r, config.target_modules = 2, config.target_modules or {"q_proj"}
    with quiet_peft(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(tiny_qwen2(), config)
    space = ParamSpace.select(model, where)
    with pytest.raises(ValueError, match=words):
        weight_change(model, space, torch.zeros(space.dim))


@pytest.mark.parametrize("state", ["active", "merged", "disabled", "unwrapped"])
def test_the_norm_is_that_of_what_the_network_multiplies_with(state):
    model = adapted("gpt2", trained=True)
    weights = ParamSpace.select(model, r"base_layer\.weight")
    base = {name: model.get_parameter(name).detach().double() for name in weights.names}
    added = dense(model)
    whole = torch.cat([(base[name] + added[name]).reshape(-1) for name in weights.names])
    bare = torch.cat([base[name].reshape(-1) for name in weights.names])
    if state == "merged":
        model.merge_adapter()
    if state == "unwrapped":
        plain = tiny_gpt2()
        names = [name for name, module in plain.named_modules() if name.endswith(("attn", "proj"))]
        space = ParamSpace.select(plain, lambda name, _: name.removesuffix(".weight") in names)
        assert weights_norm(plain, space) == pytest.approx(float(bare.norm()), rel=1e-6)
        return
    if state == "disabled":
        with model.disable_adapter():
            assert weights_norm(model, weights) == pytest.approx(float(bare.norm()), rel=1e-6)
        return
    assert float(whole.norm()) != pytest.approx(float(bare.norm()), rel=1e-3)
    assert weights_norm(model, weights) == pytest.approx(float(whole.norm()), rel=1e-6)


def test_a_packed_weight_is_no_matrix_to_add_to():
    """As quantised layers hold it."""
    model = attach_lora(tiny_llama(), rank=2)
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    layer.base_layer.weight = nn.Parameter(layer.base_layer.weight.detach().reshape(-1, 1))
    space = factors(model)
    with pytest.raises(ValueError, match=r"as one matrix of shape .* without quantisation"):
        weight_change(model, space, torch.zeros(space.dim))


def test_experts_in_one_tensor_are_several_products():
    """PEFT's target_parameters: the factors of all experts in one pair of matrices."""
    config = LoraConfig(r=2, target_modules=[], target_parameters=["mlp.experts.gate_up_proj"])
    with quiet_peft(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(tiny_mixtral(), config)
    space = ParamSpace.select(model)
    with pytest.raises(ValueError, match="adds something else to its weight"):
        weight_change(model, space, torch.zeros(space.dim))
