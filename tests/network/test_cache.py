"""Files of the cache are whole or not there."""

import json
import os

import pytest
import safetensors.torch
import torch

from frenet.network.cache import save_atomically
from frenet.network.gguf import _digest


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "theta.safetensors"

    def interrupted(tensors, target):
        target.write_bytes(b"half")
        raise KeyboardInterrupt("stop here")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", interrupted)
        with pytest.raises(KeyboardInterrupt, match="stop here"):
            save_atomically({"theta": torch.ones(3)}, path)
    assert not path.exists()
    save_atomically({"theta": torch.ones(3).expand(2, 3)}, path)
    assert [p.name for p in path.parent.iterdir()] == ["theta.safetensors"]
    header = path.read_bytes()[8:]
    assert json.loads(header[: header.index(b"}}") + 2])["theta"]["shape"] == [2, 3]
    assert str(os.getpid()) not in path.name


def test_converted_files_are_found_by_the_name_that_they_were_given_once(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(bytes(range(251)) * 1000)
    assert _digest(file)[:16] == "a3072095936539c0"
