"""The path through the checkpoints of a training: its steps, its numbers, what it refuses."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from frenet._errors import UsageError
from frenet.measure.lifetime import follow, lifetime
from frenet.measure.trajectory import Trajectory
from frenet.network.adapters import attach_lora
from frenet.network.space import ParamSpace
from network.models import tiny_llama


def save(folder, model, step, *, state=True):
    """A checkpoint as Trainer writes it."""
    path = folder / f"checkpoint-{step}"
    model.save_pretrained(path)
    if state:
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def moved_by(model, space, vector):
    space.write(model, space.read(model) + vector)


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_steps_are_the_differences_in_the_order_of_the_steps(tmp_path, kind):
    model = tiny_llama()
    if kind == "adapter":
        model = attach_lora(model, rank=2, seed=0)
    space = ParamSpace.select(model)
    moves = torch.randn(2, space.dim) / 64
    start = space.read(model)
    folders = [save(tmp_path, model, 10, state=False)]
    for step, move in zip((100, 40), moves.flip(0), strict=True):
        space.write(model, start + (moves.sum(0) if step == 100 else move))
        folders.append(save(tmp_path, model, step))
    path = Trajectory.from_checkpoints(folders, space=space)
    assert path.numbers == (10, 40, 100)
    assert path.lags == (0, 30, 90)
    assert torch.equal(path.start, start)
    assert torch.allclose(path.steps, moves, atol=1e-6)
    assert path.moved()[90] == pytest.approx(float(moves.sum(0).norm()), rel=1e-4)
    assert "3 checkpoints of steps 10 to 100" in repr(path)
    assert path.truncated(1).numbers == (10, 40)
    whole = Trajectory.from_checkpoints(folders)
    assert set(space.names) <= {*whole.space.names}
    # What is measured along it is known between two checkpoints.
    seen = {0: 1.0, 30: 0.8, 90: 0.1}
    values = follow(model, path, space=space, lags=(30, 90), look=lambda lag: {"value": seen[lag]})
    found = lifetime(values["value"], path.moved())
    assert str(found.steps) == "between 30 and 90"
    assert found.distance.high == pytest.approx(path.moved()[90])
    with pytest.raises(UsageError, match=r"after 60 steps, which is between two checkpoints"):
        follow(model, path, space=space, lags=(60,), look=lambda lag: {})


def test_checkpoints_that_make_no_path_are_refused(tmp_path):
    one = save(tmp_path, tiny_llama(), 1)
    with pytest.raises(UsageError, match="1 checkpoint makes no path"):
        Trajectory.from_checkpoints([one])
    with pytest.raises(UsageError, match="are both of step 1"):
        Trajectory.from_checkpoints([one, one])
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        Trajectory.from_checkpoints([one, tmp_path / "checkpoint-2"])
    unnamed = tmp_path / "last"
    tiny_llama().save_pretrained(unnamed)
    with pytest.raises(UsageError, match="name it checkpoint-STEP"):
        Trajectory.from_checkpoints([one, unnamed])


@pytest.mark.parametrize(("change", "why"), [("shape", "has shape"), ("name", "is missing in")])
def test_checkpoints_of_different_models_are_refused(tmp_path, change, why):
    folders = []
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        width = 3 if change == "shape" and step == 2 else 2
        name = "v" if change == "name" and step == 2 else "w"
        save_file({name: torch.zeros(width)}, folder / "model.safetensors")
        folders.append(folder)
    with pytest.raises(UsageError, match="are checkpoints of different models: w") as caught:
        Trajectory.from_checkpoints(folders)
    assert re.search(why, str(caught.value))


def test_a_space_that_the_checkpoints_do_not_have_is_refused(tmp_path):
    folders = [save(tmp_path, tiny_llama(), step) for step in (1, 2)]
    space = ParamSpace(("nowhere",), ((2,),))
    with pytest.raises(UsageError, match=r"the space has nowhere of shape \(2,\)"):
        Trajectory.from_checkpoints(folders, space=space)
