"""The files of a merged checkpoint, and the rounding of its dtype in known cases."""

import pytest
import torch
from safetensors.torch import load_file

from frenet.methods.merge import save_merged
from frenet.methods.task_vectors import TaskVector
from network.models import tiny_llama

NAMES = [f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)]


def moves(changes):
    return TaskVector({n: tuple(c.shape) for n, c in changes.items()}, changes.__getitem__, "hand")


@pytest.fixture
def low(tmp_path):
    """A checkpoint in bf16 with all weights 1; the next number is 1 + 2^-7."""
    model = tiny_llama().bfloat16()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    model.save_pretrained(tmp_path / "low")
    return tmp_path / "low"


def test_what_rounds_back_and_what_it_costs_in_closed_form(low, tmp_path):
    """Steps of 2^-7 survive rounding, of 2^-10 do not; entries with tau = 0 do not count.

    One of the weights does not change at all.
    """
    first, second = torch.zeros(16, 16), torch.zeros(16, 16)
    first[0, :3] = 2**-7
    first[1, :5] = 2**-10
    found = save_merged(low, moves(dict(zip(NAMES, (first, second), strict=True))), tmp_path / "m")
    assert found.unmoved == pytest.approx(5 / 8, rel=1e-12)
    assert found.rounding == pytest.approx((5 / (3 * 64 + 5)) ** 0.5, rel=1e-12)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    assert (tensors[NAMES[0]][0, :3] == 1 + 2**-7).all()
    assert sum(int((tensor != 1).sum()) for tensor in tensors.values()) == 3


def test_files_beside_the_weights_go_along_but_for_weights_and_folders(low, tmp_path):
    kept = {path.name for path in low.iterdir()} | {"tokenizer.json"}
    (low / "tokenizer.json").write_text("{}")
    for name in ("old.bin", "old.pt", "old.pth", "old.gguf", "adapter_config.json"):
        (low / name).write_text("{}")
    (low / "pytorch_model.bin.index.json").write_text("{}")
    (low / "runs").mkdir()
    change = torch.zeros(16, 16)
    change[2, 3] = 1.0
    save_merged(low, moves({NAMES[0]: change}), tmp_path / "m")
    assert {path.name for path in (tmp_path / "m").iterdir()} == kept
