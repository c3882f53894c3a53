"""Ranks, errors and refusals of a fitted adapter, compared with values by hand."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from frenet.methods.lora_from_delta import save_as_adapter
from frenet.methods.task_vectors import TaskVector, from_adapter
from network.models import tiny_gpt2, tiny_llama, tiny_qwen2

QUERY = "model.layers.{}.self_attn.q_proj.weight"


def by_hand(changes):
    return TaskVector({n: tuple(c.shape) for n, c in changes.items()}, changes.__getitem__, "hand")


def diagonal(*values, shape=(16, 16)):
    change = torch.zeros(shape)
    change.diagonal()[: len(values)] = torch.tensor(values)
    return change


def test_the_rest_may_be_the_tolerance_and_no_more(tmp_path):
    """Of four equal singular values one holds a quarter of the energy, and half of the norm."""
    vector = by_hand({QUERY.format(0): diagonal(1.0, 1.0, 1.0, 1.0)})
    for tolerance, rank in ((0.5, 3), (0.4999, 4)):
        fit = save_as_adapter(vector, tmp_path / "a", base=tiny_llama(), tolerance=tolerance)
        assert list(fit.ranks.values()) == [rank]
        assert fit.error == (4 - rank) ** 0.5 / 2


@pytest.mark.parametrize("tolerance", [-0.1, 0.0, 1.0, 1.5])
def test_a_tolerance_is_between_nothing_and_everything(tmp_path, tolerance):
    vector = by_hand({QUERY.format(0): diagonal(1.0)})
    with pytest.raises(ValueError, match=f"tolerance={tolerance} is not in"):
        save_as_adapter(vector, tmp_path / "a", base=tiny_llama(), tolerance=tolerance)
    assert not (tmp_path / "a").exists()


def test_the_error_is_of_all_weights_together_those_that_stand_still_included(tmp_path):
    """Cut to rank 1: 3 of 5 and 4 of 4 squared are lost of 25 + 32, and none of a zero."""
    vector = by_hand({
        QUERY.format(0): diagonal(4.0, 3.0),
        QUERY.format(1): torch.zeros(16, 16),
        "lm_head.weight": diagonal(4.0, 4.0, shape=(64, 16)),
    })  # fmt: skip
    fit = save_as_adapter(vector, tmp_path / "a", base=tiny_llama(), max_rank=1)
    assert fit.ranks == {QUERY.format(0): 1, "lm_head.weight": 1}
    assert fit.error == pytest.approx(((9 + 16) / (25 + 32)) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.self_attn.q_proj.bias"])
def test_a_norm_or_a_bias_may_stand_still_and_not_change_in_one_entry(tmp_path, name):
    base = tiny_qwen2()
    changes = {QUERY.format(0): diagonal(1.0), name: torch.zeros(base.get_parameter(name).shape)}
    fit = save_as_adapter(by_hand(changes), tmp_path / "a", base=base)
    assert list(fit.ranks) == [QUERY.format(0)]
    changes[name][3] = 1e-3
    with pytest.raises(
        ValueError, match=f"changes {name} .1 such weights.*does not fit into an adapter"
    ):
        save_as_adapter(by_hand(changes), tmp_path / "b", base=base)


def test_weights_of_both_orientations_come_back_from_one_adapter(tmp_path):
    """GPT-2 stores its blocks as (in, out) and an untied head as (out, in)."""
    settings = tiny_gpt2().config.to_dict() | {"tie_word_embeddings": False}
    base = GPT2LMHeadModel(GPT2Config(**settings))
    names = ["transformer.h.1.attn.c_attn.weight", "lm_head.weight"]
    shapes = [tuple(base.get_parameter(name).shape) for name in names]
    vector = by_hand(
        {n: diagonal(2.0, 1.0, shape=s).roll(5, 1) for n, s in zip(names, shapes, strict=True)}
    )
    fit = save_as_adapter(vector, tmp_path / "a", base=base)
    assert fit.ranks == dict.fromkeys(names, 2)
    again = from_adapter(tmp_path / "a", base=base)
    assert (again - vector).norm() < 1e-6
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["fan_in_fan_out"]
