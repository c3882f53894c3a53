"""A stored DoRA adapter at several scales, against its formula."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from frenet.geometry.rng import generator
from frenet.measure.displaced import adapter_curve
from frenet.network.adapters import quiet_peft
from frenet.network.checkpoints.scaled_adapter import ScaledAdapter, is_dora
from frenet.network.tasks import collate, example_losses
from network.models import tiny_llama


def saved(folder, *, dora):
    """An adapter on two modules of a tiny model, as if it had been trained."""
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_dora=dora)
    with quiet_peft(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(tiny_llama(), config)
    draw = generator(0, "trained")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=draw))
            if "magnitude" in name:
                p.mul_(1 + 0.2 * torch.rand(p.shape, generator=draw))
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def batch():
    rows = torch.randint(3, 30, (6, 10), generator=generator(0, "rows")).tolist()
    return collate([(row[:4], row[4:]) for row in rows])


def by_formula(model, scale):
    """The tiny model with m (W + c s B A) / ||W + c s B A||, by rows, in float64."""
    plain, s = tiny_llama().double(), 2.0
    for name, module in model.named_modules():
        if not hasattr(module, "lora_magnitude_vector"):
            continue
        A, B = (getattr(module, f"lora_{half}")["default"].weight.double() for half in "AB")
        changed = module.base_layer.weight.double() + scale * s * B @ A
        m = module.lora_magnitude_vector["default"].weight.double()
        made = m[:, None] * changed / changed.norm(dim=1, keepdim=True)
        plain.get_parameter(f"{name.removeprefix('base_model.model.')}.weight").data = made
    return plain


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_dora_adapter_is_scaled_as_its_formula_says(tmp_path, batch, scale):
    tuned = saved(tmp_path, dora=True)
    base = tiny_llama()
    before = {name: p.clone() for name, p in base.named_parameters()}
    curve = adapter_curve(ScaledAdapter(base, tmp_path), batch)
    with torch.no_grad():
        expected = example_losses(by_formula(tuned, scale), batch)[0]
        without, counts = example_losses(base, batch)
    torch.testing.assert_close(curve.at(scale), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(curve.at(0.0), without.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(curve.counts, counts.double())
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters())


def test_only_dora_is_taken_for_it(tmp_path):
    saved(tmp_path / "dora", dora=True)
    saved(tmp_path / "lora", dora=False)
    tiny_llama().save_pretrained(tmp_path / "model")
    found = {name: is_dora(tmp_path / name) for name in ("dora", "lora", "model", "nowhere")}
    assert found == {"dora": True, "lora": False, "model": False, "nowhere": False}
