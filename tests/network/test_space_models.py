"""Parameter spaces of transformers: tied weights once (case S3 of the user reports)."""

import pytest
import torch
from models import tiny_gpt2, tiny_llama, tiny_qwen2
from safetensors.torch import save_file

from frenet.geometry import rng
from frenet.geometry.subspace import require_same_space
from frenet.network.adapters import attach_lora
from frenet.network.checkpoints.load import load
from frenet.network.space import ParamSpace
from frenet.network.tasks import collate, token_loss

IDS = torch.tensor([[5, 9, 3, 5]])
TIED = {
    "gpt2": (tiny_gpt2, "transformer.wte.weight"),
    "qwen2": (tiny_qwen2, "model.embed_tokens.weight"),
}


@pytest.fixture(params=TIED)
def tied(request):
    build, name = TIED[request.param]
    return build(), name


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def storages(model):
    return {p.untyped_storage().data_ptr(): p.numel() for p in model.parameters()}


def test_s3_gpt2_has_11408_coordinates_and_the_tied_head_is_not_among_them():
    space = ParamSpace.select(tiny_gpt2())
    assert space.dim == 11408
    assert "lm_head.weight" not in space.names


def test_s3_the_dimension_is_the_sum_over_the_storages(tied):
    model, name = tied
    space = ParamSpace.select(model)
    assert space.dim == sum(storages(model).values())
    assert space.names.count(name) == 1


def test_an_untied_head_counts_for_itself():
    model = tiny_llama()
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= set(ParamSpace.select(model).names)


def test_s3_reading_and_writing_back_gives_the_same_logits_bit_for_bit(tied):
    model, _ = tied
    space = ParamSpace.select(model)
    before = logits(model)
    theta = space.read(model)
    space.write(model, space.flatten(space.unflatten(theta)))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("side", ["left", "right"])
def test_s3_the_gradient_of_the_shared_tensor_matches_finite_differences(tied, side):
    model, name = tied
    space = ParamSpace.select(model)
    batch = collate([([5], [9, 3, 5])], padding_side=side)
    token_loss(model, batch).backward()
    gradient = dict(model.named_parameters())[name].grad[5, 3].item()
    values = []
    model.double()
    for sign in (1, -1):
        delta = torch.zeros(space.dim)
        space.unflatten(delta)[name][5, 3] = sign * 1e-3
        with space.displaced(model, delta), torch.no_grad():
            values.append(token_loss(model, batch).item())
    assert gradient == pytest.approx((values[0] - values[1]) / 2e-3, rel=1e-2)
    assert abs(gradient) > 1e-3


def test_s3_both_names_still_share_storage_after_a_displacement(tied):
    model, name = tied
    space = ParamSpace.select(model)
    delta = 0.01 * torch.randn(space.dim, generator=rng.generator(7, "s3"))
    before = logits(model)
    own = dict(model.named_parameters(remove_duplicate=False))
    with space.displaced(model, delta):
        assert own["lm_head.weight"].data_ptr() == own[name].data_ptr()
        assert (logits(model) - before).abs().max() > 1e-3
    assert own["lm_head.weight"].data_ptr() == own[name].data_ptr()
    assert torch.equal(logits(model), before)


def test_s3_noise_on_the_shared_tensor_is_added_once(tied):
    model, name = tied
    space = ParamSpace.select(model)
    delta = 0.01 * torch.randn(space.dim, generator=rng.generator(7, "s3"))
    before = dict(model.named_parameters())[name].detach().clone()
    with space.displaced(model, delta):
        moved = dict(model.named_parameters())[name].detach() - before
    # 1,024 draws: the standard deviation's own standard error is 2.2%.
    assert moved.std().item() == pytest.approx(0.01, rel=4 * 0.022)


def test_s3_saved_and_loaded_again_the_logits_are_equal(tied, tmp_path):
    model, name = tied
    space = ParamSpace.select(model)
    delta = 0.01 * torch.randn(space.dim, generator=rng.generator(7, "s3"))
    space.write(model, space.read(model) + delta)
    model.save_pretrained(tmp_path)
    from models import tiny_tokenizer

    tiny_tokenizer().save_pretrained(tmp_path)
    again = load(tmp_path, device="cpu").model
    assert torch.equal(logits(again), logits(model))
    own = dict(again.named_parameters(remove_duplicate=False))
    assert own["lm_head.weight"].data_ptr() == own[name].data_ptr()
    require_same_space(space, ParamSpace.select(again))


def test_a_vector_of_the_space_is_a_safetensors_file_like_any_other(tmp_path):
    model = tiny_gpt2()
    space = ParamSpace.select(model)
    save_file(space.unflatten(space.read(model)), tmp_path / "theta.safetensors")
    assert (tmp_path / "theta.safetensors").stat().st_size > 4 * 11408


def test_integer_buffers_are_no_coordinates():
    model = tiny_gpt2()
    model.register_buffer("counts", torch.arange(3))
    assert ParamSpace.select(model).dim == 11408


def test_a_lora_model_selects_its_adapter_and_the_base_stays_bit_identical():
    model = tiny_gpt2()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    wrapped = attach_lora(model, rank=2)
    space = ParamSpace.select(wrapped)
    assert all("lora_" in name for name in space.names)
    assert space.dim == 3 * 2 * (16 + 48)
    space.write(wrapped, torch.ones(space.dim))
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            assert torch.equal(before[name.replace("base_layer.", "")], parameter)
