"""A watched training that is broken off goes on from its checkpoint, to the same rows and steps."""

import contextlib
import re

import pytest
import torch
from transformers import TrainerCallback

from frenet.integrations.trainer import FrenetCallback, read_trajectory
from frenet.measure.trajectory_files import chunks
from frenet.report import write_report
from frenet.runs import RunFolderError, read_run
from integrations.watching import LOOKS, STEPS, Crash, model_of, probes, rows, train, trainer_of

CHECKPOINTS = {
    "save_strategy": "steps",
    "save_steps": 4,
    "save_total_limit": 1,
    "logging_steps": 1,
}


@pytest.fixture
def watch(tmp_path):
    return {"probes": probes(), "out": tmp_path / "out", "every": 3, "k": 2, "n": 4}


def broken_off(tmp_path, watch, step=7, **changed):
    """A training that crashes after ``step``, with a checkpoint at step 4."""
    with pytest.raises(KeyboardInterrupt):
        train(
            model_of("lora"),
            tmp_path / "broken",
            watch=watch,
            callbacks=[Crash(step)],
            **CHECKPOINTS,
            **changed,
        )


@pytest.mark.parametrize("gradients", [False, True])
def test_a_resumed_training_has_the_rows_of_an_uninterrupted_one(tmp_path, watch, gradients):
    whole = {**watch, "out": tmp_path / "whole", "gradients": gradients}
    plain = train(model_of("lora"), tmp_path / "plain", watch=whole, **CHECKPOINTS)
    watch["gradients"] = gradients
    broken_off(tmp_path, watch)
    # The look at step 6, of a path that is about to be taken again, is there and has to go.
    assert (watch["out"] / "cells" / "step=6.jsonl").exists()
    resumed = train(model_of("lora"), tmp_path / "broken", watch=watch, resume=True, **CHECKPOINTS)
    ours, theirs = (dict(t.model.named_parameters()) for t in (resumed, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    files = [folder / "rows.jsonl" for folder in (watch["out"], whole["out"])]
    assert files[0].read_bytes() == files[1].read_bytes()
    found, expected = read_trajectory(watch["out"]), read_trajectory(whole["out"])
    assert torch.equal(found.start, expected.start)
    assert torch.equal(found.steps, expected.steps)
    assert torch.equal(found.losses, expected.losses)
    assert (found.gradients is None) == (not gradients)
    if gradients:
        assert torch.equal(found.gradients, expected.gradients)


@pytest.mark.parametrize("ended", [False, True])
def test_a_training_that_is_over_keeps_its_last_look(tmp_path, watch, ended):
    """Killed after its last checkpoint, or finished and started again: no epoch is left to run."""

    class Killed(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == STEPS and not ended:
                raise KeyboardInterrupt

    # Four steps per epoch, so that the eighth, between two regular measurements, ends one.
    settings = {**CHECKPOINTS, "per_device_train_batch_size": 9}
    whole = {**watch, "out": tmp_path / "whole"}
    train(model_of("lora"), tmp_path / "plain", watch=whole, **settings)
    with contextlib.nullcontext() if ended else pytest.raises(KeyboardInterrupt):
        train(model_of("lora"), tmp_path / "t", watch=watch, callbacks=[Killed()], **settings)
    train(model_of("lora"), tmp_path / "t", watch=watch, resume=True, **settings)
    run = read_run(watch["out"])
    assert [row["step"] for row in run.rows if row["table"] == "drift"][::2] == LOOKS
    assert run.manifest["cells"] == {"total": 6, "finished": 6, "failed": 0}
    files = [folder / "rows.jsonl" for folder in (watch["out"], whole["out"])]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_crash_leaves_a_report_of_what_there_is(tmp_path, watch):
    broken_off(tmp_path, watch)
    with pytest.raises(RunFolderError, match="is not finished"):
        read_run(watch["out"])
    run = read_run(watch["out"], partial=True)
    assert {row["step"] for row in run.rows if row["table"] == "drift"} == {0, 1, 3, 6}
    page = write_report([run], tmp_path / "report.html", static=False).read_text("utf-8")
    assert "This run is not finished" in page
    assert "FrenetCallback(probes, out=" in re.sub("<[^>]*>", "", page)
    # What waited in memory since the last checkpoint or look is lost, what was on disk is whole.
    assert len(read_trajectory(watch["out"])) == 6


def test_a_longer_plan_goes_on_in_the_same_folder(tmp_path, watch):
    longer = {**CHECKPOINTS, "lr_scheduler_type": "constant"}
    train(model_of("lora"), tmp_path / "t", watch=watch, **longer)
    train(model_of("lora"), tmp_path / "t", watch=watch, resume=True, max_steps=12, **longer)
    assert len(read_trajectory(watch["out"])) == 12
    steps = [row["step"] for row in read_run(watch["out"]).rows if row["table"] == "path"]
    assert steps == [1, 3, 6, 9, 12]


def test_the_same_trainer_goes_on_after_ctrl_c(tmp_path, watch):
    given = dict(watch)
    crash = Crash(6)
    trainer = trainer_of(
        model_of("lora"), rows(watch["probes"][0]), tmp_path / "t", callbacks=[crash], **CHECKPOINTS
    )
    FrenetCallback(given.pop("probes"), **given).attach(trainer)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    crash.step = -1
    trainer.train(resume_from_checkpoint=True)
    assert len(read_trajectory(watch["out"])) == STEPS


def test_another_trainer_in_the_same_process_goes_on_after_ctrl_c(tmp_path, watch):
    given = dict(watch)
    kept = FrenetCallback(given.pop("probes"), **given)
    trainer = trainer_of(
        model_of("lora"), rows(watch["probes"][0]), tmp_path / "t", callbacks=[Crash(6)],
        **CHECKPOINTS,
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        kept.attach(trainer) and trainer.train()
    train(model_of("lora"), tmp_path / "t", watch=watch, resume=True, **CHECKPOINTS)
    assert len(read_trajectory(watch["out"])) == STEPS


def test_a_batch_size_that_is_tried_again_starts_over(tmp_path, watch):
    class TooLarge(TrainerCallback):
        def on_optimizer_step(self, args, state, control, train_dataloader=None, **kwargs):
            if state.train_batch_size == 4 and state.global_step == 3:
                raise RuntimeError("CUDA out of memory.")

    train(
        model_of("lora"),
        tmp_path / "t",
        watch=watch,
        callbacks=[TooLarge()],
        auto_find_batch_size=True,
    )
    assert len(read_trajectory(watch["out"])) == STEPS


def test_a_training_that_follows_a_diverged_one_is_not_finished_by_it(tmp_path, watch):
    train(model_of("lora"), tmp_path / "t", watch=watch, learning_rate=float("inf"))
    assert read_run(watch["out"]).manifest["cells"]["failed"] == 1
    with pytest.raises(KeyboardInterrupt):
        train(model_of("lora"), tmp_path / "u", watch=watch, callbacks=[Crash(4)])
    with pytest.raises(RunFolderError, match="is not finished"):
        read_run(watch["out"])
    run = read_run(watch["out"], partial=True)
    assert (run.failures, run.manifest["cells"]["finished"]) == ([], 3)


def test_a_second_training_does_not_mix_with_the_first(tmp_path, watch):
    train(model_of("lora"), tmp_path / "t", watch=watch)
    before = (watch["out"] / "rows.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match="holds 8 steps of a training, but this one starts"):
        train(model_of("lora"), tmp_path / "u", watch=watch)
    with pytest.raises(RunFolderError, match="holds a run with k=2, and this one has k=3"):
        train(model_of("lora"), tmp_path / "u", watch={**watch, "k": 3})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("text")
    with pytest.raises(RunFolderError, match="holds other things"):
        train(model_of("lora"), tmp_path / "u", watch={**watch, "out": tmp_path / "notes"})
    assert (watch["out"] / "rows.jsonl").read_bytes() == before
    assert read_run(watch["out"]).manifest["complete"]


def test_a_checkpoint_of_another_training_is_refused(tmp_path, watch):
    train(model_of("lora"), tmp_path / "t", watch=watch, **CHECKPOINTS)
    train(model_of("lora"), tmp_path / "u", learning_rate=0.1, **CHECKPOINTS)
    before = (watch["out"] / "rows.jsonl").read_bytes()
    settings = {**CHECKPOINTS, "max_steps": 12}
    with pytest.raises(RunFolderError, match=r"are .* from those recorded"):
        train(model_of("lora"), tmp_path / "u", watch=watch, resume=True, **settings)
    assert (watch["out"] / "rows.jsonl").read_bytes() == before
    missing = {**watch, "out": tmp_path / "new"}
    with pytest.raises(RunFolderError, match=r"resumes at step 8, but .* holds the first 0 steps"):
        train(model_of("lora"), tmp_path / "u", watch=missing, resume=True, **settings)
    assert read_run(watch["out"]).manifest["complete"]


def test_every_checkpoint_finds_its_steps_on_disk(tmp_path, watch):
    seen = []

    class Saved(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append((state.global_step, chunks(watch["out"] / "trajectory")[-1].last))

    settings = {"save_strategy": "steps", "save_steps": 2}
    train(model_of("lora"), tmp_path / "t", watch=watch, callbacks=[Saved()], **settings)
    assert seen == [(2, 2), (4, 4), (6, 6), (8, 8)]
