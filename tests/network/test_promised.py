"""config.json is compared with the weights beside it before a model is built."""

import json
import time

import pytest
from models import tiny_gpt2, tiny_llama, tiny_mixtral, tiny_qwen2

from frenet.network.checkpoints.load import load
from frenet.network.checkpoints.promised import require_stored


def edited(folder, model, **changes):
    """A folder with the weights of a model and a changed configuration; bytes of the weights."""
    model.save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | changes), "utf-8")
    return (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_qwen2, tiny_mixtral])
def test_what_is_promised_is_what_the_model_has(make, tmp_path):
    model = make()
    stored = edited(tmp_path, model)
    assert require_stored(tmp_path, stored) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "changes", "words"),
    [
        (tiny_llama, {"num_hidden_layers": 10**7}, "10,000,000 layers"),
        (tiny_llama, {"num_hidden_layers": 10**12}, "1,000,000,000,000 layers"),
        (tiny_llama, {"num_hidden_layers": 10**4}, "a model of at least "),
        (tiny_llama, {"hidden_size": 2**20}, "a model of at least 67,108,864 parameters"),
        (tiny_llama, {"vocab_size": 2**40}, "a model of at least 17,592,186,044,416 parameters"),
        (tiny_llama, {"intermediate_size": 10**9}, "a model of at least 16,000,0"),
        (tiny_gpt2, {"n_layer": 10**7}, "10,000,000 layers"),
        (tiny_gpt2, {"n_positions": 10**9}, "a model of at least 16,000,00"),
        (tiny_qwen2, {"more": [{"num_hidden_layers": 10**9}]}, "1,000,000,000 layers"),
        (tiny_mixtral, {"num_local_experts": 10**7}, "a model of at least "),
    ],
)
def test_more_than_can_be_stored_is_refused_at_once(make, changes, words, tmp_path):
    edited(tmp_path, make(), **changes)
    start = time.monotonic()
    with pytest.raises(ValueError, match=f"promises {words}") as refused:
        load(tmp_path, device="cpu")
    assert str(tmp_path / "config.json") in str(refused.value)
    # 10^7 layers took minutes and 10 GB.
    assert time.monotonic() - start < 20


def test_weights_in_one_bit_each_are_not_too_few(tmp_path):
    model = tiny_llama()
    edited(tmp_path, model)
    count = sum(p.numel() for p in model.parameters())
    assert require_stored(tmp_path, -(-count // 8)) == count
    with pytest.raises(ValueError, match="the weights in this folder have 100 bytes"):
        require_stored(tmp_path, 100)


def test_what_is_wrong_otherwise_is_said_by_the_loader(tmp_path):
    edited(tmp_path, tiny_llama(), hidden_size="wide")
    assert require_stored(tmp_path, 10**6) == 0
    with pytest.raises(ValueError, match="cannot be loaded as a causal language model"):
        load(tmp_path, device="cpu")
