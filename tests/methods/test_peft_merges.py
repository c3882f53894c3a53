"""Merges by PEFT: each gives what it should at density 1, or is left out."""

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model

from frenet.geometry.rng import generator
from frenet.methods.lora_from_delta import save_sum
from frenet.methods.peft_merges import KINDS, PRUNED, peft_merges
from frenet.methods.task_vectors import from_adapter
from frenet.methods.vector_files import plain_base, vectors_from_disk
from frenet.network.adapters import quiet_peft
from frenet.network.checkpoints.adapter_delta import stored_products
from methods.test_task_vectors import logits
from network.models import tiny_gpt2, tiny_llama


def adapter(folder, make, *, seed, targets, rank=3, **settings):
    """An adapter on disk without a half of zeros; its scale is not 1."""
    config = LoraConfig(r=rank, lora_alpha=5, target_modules=targets, **settings)
    with quiet_peft():
        model = get_peft_model(make(), config)
    draw = generator(seed, "adapter")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(0.2 * torch.randn(p.shape, generator=draw))
    with quiet_peft(), warnings.catch_warnings():
        # An adapter on the embedding makes PEFT save the embedding too.
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers`")
        model.save_pretrained(folder)
    return folder


def two(
    tmp_path, make=tiny_llama, first=("q_proj", "up_proj"), second=("q_proj", "v_proj"), **more
):
    return [
        adapter(tmp_path / "one", make, seed=1, targets=list(first), **more),
        adapter(tmp_path / "other", make, seed=2, targets=list(second), rank=2),
    ]


def merged(tmp_path, make=tiny_llama, **more):
    folders = two(tmp_path, make, **more)
    model = make()
    vectors = list(vectors_from_disk(model, list(map(str, folders))))
    return vectors, peft_merges(model, folders, vectors, densities=(0.5, 0.2), seed=0)


def test_every_kind_is_checked_and_pruned_kinds_come_in_every_density(tmp_path):
    before = tiny_llama().state_dict()
    vectors, found = merged(tmp_path)
    assert [(m.kind, m.density) for m in found] == [
        (kind, density) for kind in KINDS for density in ((0.5, 0.2) if kind in PRUNED else (None,))
    ]
    assert all(m.error < 1e-5 and not m.left_out for m in found)
    both = vectors[0] + vectors[1]
    by_kind = {(m.kind, m.density): m for m in found}
    cat, svd = by_kind["cat", None], by_kind["svd", None]
    assert (cat.vector - both).norm() < 1e-5 * both.norm()
    # The larger of two ranks loses something of their sum.
    assert (cat.rank, svd.rank) == (5, 3)
    assert 1e-3 < (svd.vector - both).norm() / both.norm() < 1
    for kind in PRUNED:
        assert by_kind[kind, 0.2].vector.norm() != by_kind[kind, 0.5].vector.norm()
        assert (by_kind[kind, 0.5].vector - both).norm() > 1e-2 * both.norm()
    assert all(
        torch.equal(value, tiny_llama().state_dict()[name]) for name, value in before.items()
    )


def test_draws_come_from_the_seed_and_leave_the_global_generator_alone(tmp_path):
    folders = two(tmp_path)
    model = tiny_llama()
    vectors = list(vectors_from_disk(model, list(map(str, folders))))
    state = torch.get_rng_state()

    def dare(seed):
        found = peft_merges(model, folders, vectors, densities=(0.5,), seed=seed)
        return next(m.vector for m in found if m.kind == "dare_linear_svd")

    first, again, other = dare(0), dare(0), dare(1)
    assert (first - again).norm() == 0
    assert (first - other).norm() > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_scale_that_counts_otherwise_is_found_and_the_kind_left_out(tmp_path):
    """PEFT keeps rsLoRA for the merged adapter, whose scale is then the root of its rank."""
    _, found = merged(tmp_path, use_rslora=True)
    cat = next(m for m in found if m.kind == "cat")
    assert cat.vector is None
    assert cat.error == pytest.approx(5**0.5 - 1, rel=1e-4)
    assert cat.left_out == "at density 1 it is 2.24 times the sum, so its scale is wrong"
    assert all(m.left_out for m in found)


def test_conv1d_too(tmp_path):
    _, found = merged(
        tmp_path, tiny_gpt2, first=("c_attn",), second=("c_proj",), fan_in_fan_out=True
    )
    assert all(not m.left_out for m in found)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_a_sum_of_adapters_is_one_adapter_of_both_ranks(tmp_path, make):
    """By logits of the model with the adapter that PEFT loads, and by its weights."""
    names = {tiny_llama: ("q_proj", "up_proj"), tiny_gpt2: ("c_attn",)}[make]
    folders = two(tmp_path, make, first=names, second=names)
    base = make()
    plain = plain_base(base)
    products = [stored_products(folder, plain) for folder in folders]
    fit = save_sum(
        [(lambda name: -0.5, products[0]), (lambda name: 2.0, products[1])],
        tmp_path / "sum", base=plain,
    )  # fmt: skip
    assert set(fit.ranks.values()) == {5}
    vectors = list(vectors_from_disk(base, list(map(str, folders))))
    expected = -0.5 * vectors[0] + 2 * vectors[1]
    found = from_adapter(tmp_path / "sum", base=plain)
    assert (found - expected).norm() < 1e-6 * expected.norm()
    from peft import PeftModel

    with quiet_peft():
        loaded = PeftModel.from_pretrained(make(), tmp_path / "sum")
    with expected.applied(base):
        torch.testing.assert_close(logits(loaded), logits(base), atol=1e-5, rtol=1e-4)


def test_a_coefficient_of_zero_takes_no_rank_and_all_of_them_no_adapter(tmp_path):
    folders = two(tmp_path)
    plain = plain_base(tiny_llama())
    one, other = (stored_products(folder, plain) for folder in folders)
    fit = save_sum(
        [(lambda name: 1.0 if "layers.0" in name else 0.0, one), (lambda name: 0.0, other)],
        tmp_path / "sum", base=plain,
    )  # fmt: skip
    assert set(fit.ranks.values()) == {3}
    assert all("layers.0" in name for name in fit.ranks)
    with pytest.raises(ValueError, match="every coefficient is 0"):
        save_sum([(lambda name: 0.0, one)], tmp_path / "none", base=plain)
    assert not (tmp_path / "none").exists()


def test_an_embedding_is_no_weight_of_a_linear_module(tmp_path):
    folder = adapter(tmp_path / "e", tiny_llama, seed=1, targets=["embed_tokens"])
    plain = plain_base(tiny_llama())
    with pytest.raises(
        ValueError, match=r"changes model\.embed_tokens\.weight, which is no weight"
    ):
        save_sum([(lambda name: 1.0, stored_products(folder, plain))], tmp_path / "s", base=plain)
