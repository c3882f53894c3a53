"""A loop of one's own is recorded and measured as by Trainer, and a changed model is named."""

import logging

import pytest
import torch
from torch import nn

import frenet
from frenet._errors import UsageError
from frenet.integrations.trainer import read_trajectory
from frenet.network.space import ParamSpace
from frenet.network.tasks import token_loss
from frenet.runs import RunFolderError, read_run
from integrations.watching import LOOKS, STEPS, model_of, probes, weights

SETTINGS = {"every": 3, "k": 2, "n": 4}


def loop(model, optimizer, *, steps=STEPS, before=lambda step: None):
    """A plain training on the first probe; ``before`` is called before each step."""
    torch.manual_seed(5)
    batches = probes()[0].batches("train", 4, 0)
    model.train()
    for step, batch in zip(range(steps), batches, strict=False):
        before(step)
        optimizer.zero_grad()
        token_loss(model, batch).backward()
        optimizer.step()


def adam(model):
    return torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-2)


def notes(out):
    return [row["note"] for row in read_run(out).rows if row["table"] == "notes"]


@pytest.mark.parametrize("kind", ["gpt2", "lora"])
def test_weights_are_the_same_and_steps_are_the_moves(tmp_path, kind):
    plain, watched = model_of(kind), model_of(kind)
    loop(plain, adam(plain))
    optimizer = adam(watched)
    with frenet.watch(watched, optimizer, probes(), out=tmp_path / "out", **SETTINGS) as seen:
        loop(watched, optimizer)
    expected = weights(plain)
    assert all(torch.equal(value, expected[name]) for name, value in weights(watched).items())
    path = read_trajectory(tmp_path / "out")
    space = ParamSpace.select(watched)
    moved = space.read(watched) - space.read(model_of(kind))
    assert len(path) == STEPS
    assert torch.allclose(path.displacement(), moved, atol=1e-6)
    run = read_run(tmp_path / "out")
    drifts = [row for row in run.rows if row["table"] == "drift" and row["probe"] == "plus"]
    assert [row["step"] for row in drifts] == LOOKS
    assert [text.split(":")[0] for text in seen.advice] == ["plus", "times", "first 2 steps"]
    loop(watched, optimizer, steps=1)  # After the block nothing is recorded.
    assert len(read_trajectory(tmp_path / "out")) == STEPS


def test_a_wrapper_of_an_optimiser_and_skipped_steps(tmp_path):
    """Hooks see the steps that the inner optimiser takes, and only those."""

    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = model_of("gpt2")
    optimizer = adam(model)
    with frenet.watch(model, Wrapper(optimizer), [], out=tmp_path / "out", **SETTINGS):
        loop(model, optimizer, steps=2)
    assert len(read_trajectory(tmp_path / "out")) == 2


def to_double(model):
    return lambda step: model.double() if step == 4 else None


def grow(model):
    def change(step):
        if step == 4:
            model.extra = nn.Linear(2, 2)

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [(to_double, "is now in torch.float64 on cpu, and was in torch.float32"), (grow, "extra")],
)
def test_a_model_that_changes_ends_the_recording_and_not_the_loop(tmp_path, change, why, caplog):
    model = model_of("gpt2")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with frenet.watch(model, optimizer, probes(), out=tmp_path / "out", **SETTINGS):
        loop(model, optimizer, before=change(model))
    assert len(read_trajectory(tmp_path / "out")) == 4
    (failure,) = read_run(tmp_path / "out").failures
    assert "step 5" in failure["error"]
    assert why in failure["error"]
    assert why in caplog.text


def test_a_replaced_tensor_is_followed_and_named(tmp_path, caplog):
    model = model_of("gpt2")
    optimizer = adam(model)

    def replace(step):
        if step == 4:
            norm = model.transformer.ln_f
            norm.weight = nn.Parameter(norm.weight.detach().clone())

    with frenet.watch(model, optimizer, [], out=tmp_path / "out", **SETTINGS):
        loop(model, optimizer, before=replace)
    assert "transformer.ln_f.weight is another tensor than before" in caplog.text


def test_an_exception_leaves_the_steps_so_far(tmp_path):
    model = model_of("gpt2")
    optimizer = adam(model)

    def crash(step):
        if step == 5:
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        frenet.watch(model, optimizer, probes(), out=tmp_path / "out", **SETTINGS),
    ):
        loop(model, optimizer, before=crash)
    assert len(read_trajectory(tmp_path / "out")) == 5
    rows = read_run(tmp_path / "out", partial=True).rows
    assert [row["step"] for row in rows if row["table"] == "path"] == [1, 3]
    with (
        pytest.raises(RunFolderError, match="holds 5 steps of a training"),
        frenet.watch(model, optimizer, probes(), out=tmp_path / "out", **SETTINGS),
    ):
        pass


def test_what_cannot_be_watched_is_refused(tmp_path):
    model, other = model_of("gpt2"), model_of("gpt2")
    out = tmp_path / "out"
    with (
        pytest.raises(UsageError, match="the optimiser has none of the model's parameters"),
        frenet.watch(model, adam(other), [], out=out),
    ):
        pass
    with (
        pytest.raises(UsageError, match="so frenet cannot see its steps"),
        frenet.watch(model, object(), [], out=out),
    ):
        pass
    with (
        pytest.raises(UsageError, match="k=0; pass at least 1"),
        frenet.watch(model, adam(model), [], out=out, k=0),
    ):
        pass
    assert not out.exists()


def test_a_block_without_a_step_says_so(tmp_path, caplog):
    model = model_of("gpt2")
    optimizer = adam(model)
    with (
        caplog.at_level(logging.WARNING, "frenet"),
        frenet.watch(model, optimizer, [], out=tmp_path / "out", **SETTINGS),
    ):
        loop(model, adam(model), steps=1)
    assert "the optimiser took no step in the block" in caplog.text
