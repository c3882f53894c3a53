"""Steps on disk: in chunks, cut anywhere, never in a gap."""

from pathlib import Path

import pytest
import torch

from frenet.integrations import recording
from frenet.integrations.recording import Recording, last_recorded
from frenet.measure.trajectory_files import chunks, in_order, read_tensors
from frenet.network.space import ParamSpace

SPACE = ParamSpace(("a", "b"), ((2,), (1, 3)))


def steps(count):
    return torch.randn(count, SPACE.dim, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def small(monkeypatch):
    """Chunks of three steps."""
    monkeypatch.setattr(recording, "CHUNK_BYTES", 3 * 4 * SPACE.dim)


def filled(folder, count, *, gradients=False):
    made = Recording(folder, SPACE, gradients=gradients)
    made.begin(torch.arange(5.0))
    for i, step in enumerate(steps(count)):
        made.add(step, zeros=i, gradient=-step if gradients else None)
    return made


def stored(made, count):
    parts = list(made.stream(count))
    return torch.cat([p.steps for p in parts]), torch.cat([p.zeros for p in parts])


def test_full_chunks_are_written_and_the_rest_waits(tmp_path, small):
    made = filled(tmp_path, 8)
    assert [(c.first, c.last) for c in chunks(tmp_path)] == [(1, 3), (4, 6)]
    assert len(made) == 8
    assert last_recorded(tmp_path) == 6
    made.flush()
    made.flush()
    assert [(c.first, c.last) for c in chunks(tmp_path)] == [(1, 3), (4, 6), (7, 8)]
    found, zeros = stored(made, 8)
    assert torch.equal(found, steps(8))
    assert zeros.tolist() == list(range(8))
    assert torch.equal(made.start(), torch.arange(5.0))


@pytest.mark.parametrize("kept", [0, 2, 3, 5, 8])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_recording_is_cut_at_any_step_and_goes_on(tmp_path, small, kept, gradients):
    made = filled(tmp_path, 8, gradients=gradients)
    made.flush()
    again = Recording(tmp_path, SPACE, gradients=gradients)
    assert len(again) == 8
    again.cut(kept)
    assert len(again) == last_recorded(tmp_path) == kept
    for step in steps(8)[kept:]:
        again.add(step, zeros=1, gradient=-step if gradients else None)
    again.flush()
    assert torch.equal(stored(again, 8)[0], steps(8))
    assert torch.equal(stored(again, 8)[0][:4], stored(again, 4)[0])


@pytest.mark.parametrize("removed", [0, 1])
def test_a_cut_that_is_interrupted_can_be_made_again(tmp_path, small, monkeypatch, removed):
    """Killed before the old file of the remaining steps is removed, or before any file is."""
    made = filled(tmp_path, 9)
    unlink, done = Path.unlink, []

    def killed(path, **options):
        if len(done) == removed:
            raise KeyboardInterrupt
        done.append(path)
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            made.cut(5)
    last = in_order(tmp_path)[-1].last
    assert torch.equal(read_tensors(in_order(tmp_path)[1].path)["steps"], steps(9)[3:last][:3])
    again = Recording(tmp_path, SPACE, gradients=False)
    assert torch.equal(stored(again, 5)[0], steps(9)[:5])
    again.cut(5)
    assert [(c.first, c.last) for c in chunks(tmp_path)] == [(1, 3), (4, 5)]
    assert len(list(tmp_path.glob("steps-*"))) == 2
    again.cut(0)
    assert not list(tmp_path.glob("steps-*"))


def test_one_step_larger_than_a_chunk_is_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "CHUNK_BYTES", 1)
    filled(tmp_path, 3)
    assert [(c.first, c.last) for c in chunks(tmp_path)] == [(1, 1), (2, 2), (3, 3)]


def test_missing_steps_are_an_error_that_names_them(tmp_path, small):
    filled(tmp_path, 9)
    chunks(tmp_path)[1].path.unlink()
    with pytest.raises(ValueError, match="begins with step 7, not 4"):
        in_order(tmp_path)


def test_a_damaged_file_is_named(tmp_path, small):
    made = filled(tmp_path, 3)
    path = chunks(tmp_path)[0].path
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"steps-00000001-00000003.safetensors cannot be read"):
        list(made.stream(3))
