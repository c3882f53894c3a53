"""Winners come back from their seeds, and from files that others read."""

import pytest
import torch
from safetensors.torch import load_file

from frenet.methods.candidates import Candidates, Noise
from frenet.methods.search import Selection, random_search
from frenet.methods.winners import load_winner, save_winner
from frenet.network.adapters import attach_lora, quiet_peft
from frenet.network.space import ParamSpace
from frenet.network.synthetic import SyntheticConfig, SyntheticTask, SyntheticTransformer
from network.models import tiny_llama

TASK = SyntheticTask("reverse")
SMALL = Selection(select_size=8, test_size=16)


def searched(model, space):
    return random_search(
        model, TASK, space, noise=Noise(0.1, seed=3), num_candidates=6, selection=SMALL
    )


def test_full_weights_come_back_from_the_seed_and_from_the_file(tmp_path):
    model = SyntheticTransformer(SyntheticConfig(width=16), seed=0)
    space = ParamSpace.select(model, "blocks")
    start = space.read(model)
    result = searched(model, space)
    save_winner(model, space, result, tmp_path / "winner")
    assert torch.equal(space.read(model), start)
    delta = load_winner(model, space, tmp_path / "winner")
    with Candidates(model, space, result.noise) as candidates:
        assert torch.equal(delta, candidates.delta(result.winner))
    assert torch.equal(
        space.flatten(load_file(tmp_path / "winner" / "weights.safetensors")), start + delta
    )


def test_an_adapter_is_one_that_peft_loads(tmp_path):
    from peft import PeftModel

    model = attach_lora(tiny_llama(), rank=2, seed=0)
    space = ParamSpace.select(model)
    result = searched(model, space)
    save_winner(model, space, result, tmp_path)
    with quiet_peft():
        loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True)
    wanted = space.read(model) + load_winner(model, space, tmp_path)
    assert torch.equal(ParamSpace.select(loaded).read(loaded), wanted)


def test_a_record_of_another_model_is_refused(tmp_path):
    model = SyntheticTransformer(SyntheticConfig(width=16), seed=0)
    space = ParamSpace.select(model, "blocks")
    save_winner(model, space, searched(model, space), tmp_path)
    other = SyntheticTransformer(SyntheticConfig(width=16), seed=1)
    with pytest.raises(ValueError, match="is a result of other weights"):
        load_winner(other, space, tmp_path)
    with pytest.raises(
        ValueError, match=r"other parameters, the first of them blocks\.0\.ln_1\.weight"
    ):
        load_winner(model, ParamSpace.select(model, "head"), tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no search result"):
        load_winner(model, space, tmp_path / "nothing")
