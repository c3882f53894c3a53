"""Files of the cache: kept whole, compared with what was written, made again where they are not."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from frenet import _files
from frenet._files import TEMPORARY, DiskFullError
from frenet.network.checkpoints.cache import kept_tensors
from frenet.network.checkpoints.gguf import _digest

MADE = {
    "theta": torch.arange(6.0).reshape(2, 3),
    "count": torch.tensor([7]),
    "half": torch.ones(3, dtype=torch.bfloat16),
}


def counted(calls):
    def make():
        calls.append(1)
        return MADE

    return make


def same(found):
    return found.keys() == MADE.keys() and all(torch.equal(found[k], MADE[k]) for k in MADE)


def test_a_file_is_made_once_and_read_by_others(tmp_path):
    path, calls = tmp_path / "folder" / "theta.safetensors", []
    assert same(kept_tensors(path, counted(calls)))
    assert same(kept_tensors(path, counted(calls)))
    assert len(calls) == 1
    assert [p.name for p in path.parent.iterdir()] == ["theta.safetensors"]
    assert same(load_file(path))


def test_the_same_tensors_are_the_same_bytes(tmp_path):
    for name in "ab":
        kept_tensors(tmp_path / name / "x.safetensors", lambda: MADE)
    assert len({(tmp_path / name / "x.safetensors").read_bytes() for name in "ab"}) == 1


def test_a_making_that_is_stopped_leaves_nothing(tmp_path):
    path = tmp_path / "theta.safetensors"

    def stopped():
        raise KeyboardInterrupt("stop here")

    with pytest.raises(KeyboardInterrupt, match="stop here"):
        kept_tensors(path, stopped)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [3, 40, 120, 400, -30, -9, -1])
def test_a_flipped_bit_anywhere_is_named_and_made_again(tmp_path, capsys, place):
    path, calls = tmp_path / "theta.safetensors", []
    kept_tensors(path, lambda: MADE)
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)
    assert same(kept_tensors(path, counted(calls)))
    assert len(calls) == 1
    assert str(path) in (said := capsys.readouterr().err)
    assert "it is made again" in said
    assert same(kept_tensors(path, counted(calls)))
    assert len(calls) == 1


@pytest.mark.parametrize("length", [0, 5, 300, -1])
def test_a_cut_file_is_made_again(tmp_path, capsys, length):
    path, calls = tmp_path / "theta.safetensors", []
    kept_tensors(path, lambda: MADE)
    path.write_bytes(path.read_bytes()[:length])
    assert same(kept_tensors(path, counted(calls)))
    assert len(calls) == 1


def test_files_of_other_networks_and_of_early_builds_are_made_again(tmp_path, capsys):
    one, other, calls = tmp_path / "seed0.safetensors", tmp_path / "seed1.safetensors", []
    kept_tensors(one, lambda: MADE)
    kept_tensors(other, lambda: {"theta": torch.zeros(2, 3)})
    other.replace(one)
    assert same(kept_tensors(one, counted(calls)))
    assert "has the content of seed1.safetensors" in capsys.readouterr().err
    save_file({"theta": torch.zeros(2, 3)}, one)
    assert same(kept_tensors(one, counted(calls)))
    assert "has no digests" in capsys.readouterr().err
    assert len(calls) == 2


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    kept_tensors(tmp_path / "first.safetensors", lambda: MADE)
    machine = "0" * 8
    dead, alive = (tmp_path / f"{TEMPORARY}x.{machine}-{n}" for n in (1, 2))
    for file in (dead, alive):
        file.touch()
    os.utime(dead, (0, 0))
    _files._tidied.clear()  # a folder is tidied once by each process
    kept_tensors(tmp_path / "second.safetensors", lambda: MADE)
    assert not dead.exists()
    assert alive.exists()


def test_a_cache_that_cannot_be_is_named_before_anything_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    calls = []
    with pytest.raises(OSError, match=r"file.* cannot be written: .* with FRENET_CACHE"):
        kept_tensors(tmp_path / "file" / "x.safetensors", counted(calls))
    assert calls == []

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"disk full: .*x\.safetensors .* with FRENET_CACHE"):
        kept_tensors(tmp_path / "x.safetensors", counted(calls))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_converted_files_are_found_by_the_name_that_they_were_given_once(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(bytes(range(251)) * 1000)
    assert _digest(file)[:16] == "a3072095936539c0"
