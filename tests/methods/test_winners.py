"""Winners come back from their seeds, and from files that others read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from frenet._errors import UsageError
from frenet._files import sealed
from frenet.geometry.basis import random_basis
from frenet.geometry.rng import generator
from frenet.methods.candidates import Candidates, Noise
from frenet.methods.search import Selection, random_search
from frenet.methods.search_result_files import load_winner, save_winner
from frenet.network.adapters import attach_lora, quiet_peft
from frenet.network.checkpoints.adapter_load import load_adapter
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTask, SyntheticTransformer
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
    with pytest.raises(ValueError, match="belongs to other weights"):
        load_winner(other, space, tmp_path)
    with pytest.raises(ValueError, match=r"other parameters, first blocks\.0\.ln_1\.weight"):
        load_winner(model, ParamSpace.select(model, "head"), tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no search result"):
        load_winner(model, space, tmp_path / "nothing")


def test_a_basis_is_the_one_that_was_searched_in(tmp_path):
    model = SyntheticTransformer(SyntheticConfig(width=16), seed=0)
    space = ParamSpace.select(model, "blocks")
    basis, other = (random_basis(space.dim, 3, generator(seed), space=space) for seed in (0, 1))
    inside = save_winner(model, basis, searched(model, basis), tmp_path / "inside")
    delta = load_winner(model, basis, inside)
    torch.testing.assert_close(basis.project(delta), delta)
    with pytest.raises(ValueError, match=r"in a basis \(random\), but another one \(random\) was"):
        load_winner(model, other, inside)
    with pytest.raises(ValueError, match=r"in a basis \(random\), but no basis was passed"):
        load_winner(model, space, inside)
    whole = save_winner(model, space, searched(model, space), tmp_path / "whole")
    with pytest.raises(ValueError, match=r"without a basis, but a basis \(random\) was passed"):
        load_winner(model, basis, whole)


def test_a_basis_that_the_record_does_not_identify_is_refused(tmp_path):
    model = SyntheticTransformer(SyntheticConfig(width=16), seed=0)
    space = ParamSpace.select(model, "blocks")
    basis = random_basis(space.dim, 3, generator(0), space=space)
    path = save_winner(model, basis, searched(model, basis), tmp_path) / "candidate.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["basis_fingerprint"], record["sha256"]
    path.write_text(json.dumps(sealed(record)), encoding="utf-8")
    for asked in (basis, space):
        with pytest.raises(ValueError, match=r"is from a search in a basis \(random\)"):
            load_winner(model, asked, tmp_path)


@pytest.mark.parametrize("earlier", [1, 2])
def test_a_record_of_the_earlier_draw_is_refused_with_the_version_that_replays_it(
    tmp_path, earlier
):
    model = SyntheticTransformer(SyntheticConfig(width=16), seed=0)
    space = ParamSpace.select(model, "blocks")
    path = save_winner(model, space, searched(model, space), tmp_path) / "candidate.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record |= {"format": earlier, "frenet": "0.1.0"}
    del record["sha256"]
    path.write_text(json.dumps(record if earlier == 1 else sealed(record)), encoding="utf-8")
    with pytest.raises(UsageError, match=r"replay the record with frenet 0\.1\.0"):
        load_winner(model, space, tmp_path)


def damaged(path):
    """A file with a digit or byte changed at several places, and cut at several."""
    data = path.read_bytes()
    for place in range(0, len(data), max(1, len(data) // 12)):
        yield data[:place] + bytes([data[place] ^ 2]) + data[place + 1 :]
        yield data[:place]
    path.write_bytes(data)


@pytest.fixture(scope="module")
def adapter_winner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("winner")
    model = attach_lora(tiny_llama(), rank=2, seed=0)
    space = ParamSpace.select(model)
    save_winner(model, space, searched(model, space), folder)
    return model, space, folder


def test_a_damaged_seed_record_is_named_and_gives_no_other_winner(adapter_winner):
    model, space, folder = adapter_winner
    expected = load_winner(model, space, folder)
    for content in damaged(folder / "candidate.json"):
        (folder / "candidate.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"candidate\.json"):
            load_winner(model, space, folder)
    assert torch.equal(load_winner(model, space, folder), expected)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_damaged_adapter_is_named_and_not_applied(adapter_winner, name):
    _, _, folder = adapter_winner
    for content in damaged(folder / name):
        (folder / name).write_bytes(content)
        try:
            found, _ = load_adapter(tiny_llama(), folder)
        except ValueError as error:
            assert "adapter" in str(error)  # noqa: PT017
        else:  # what people change when they move a base or an adapter
            assert name == "adapter_config.json"
            theirs = ParamSpace.select(found).read(found)
            assert torch.equal(theirs, expected_of(adapter_winner))


def expected_of(winner):
    model, space, folder = winner
    return space.read(model) + load_winner(model, space, folder)


HASHED = """
import sys
import torch
from frenet.methods.candidates import Noise
from frenet.methods.search import Selection, random_search
from frenet.methods.search_result_files import save_winner
from frenet.network.adapters import attach_lora
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticTask
from network.models import tiny_llama

model = attach_lora(tiny_llama(), rank=2, targets=["q_proj", "v_proj", "up_proj"], seed=0)
space = ParamSpace.select(model)
result = random_search(
    model, SyntheticTask("reverse"), space, noise=Noise(0.1, seed=3), num_candidates=2,
    selection=Selection(select_size=4, test_size=4),
)
save_winner(model, space, result, sys.argv[1])
"""


def test_the_files_are_the_same_bytes_in_every_process_and_nothing_is_said(tmp_path):
    """PEFT writes sets in the order of their hashes, which differ between processes."""
    tests = Path(__file__).parents[1]
    sources = [str(tests), str(tests.parent / "src")]
    for seed in ("1", "2"):
        own = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sources)}
        done = subprocess.run(
            [sys.executable, "-c", HASHED, str(tmp_path / seed)],
            env=own, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "Repo card" not in done.stdout + done.stderr
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / seed).iterdir()} for seed in "12"
    )
    assert first == second
    assert set(first) == {"adapter_config.json", "adapter_model.safetensors", "candidate.json"}
