"""A watched training: the same weights as without, every step on disk, rows that can be checked."""

import copy
import itertools
import logging
import math

import pytest
import torch
from transformers import TrainerCallback

from frenet.experiments.setup import brackets
from frenet.experiments.watched_training import sentences
from frenet.geometry.basis import prefix_basis
from frenet.integrations.trainer import FrenetCallback, read_trajectory
from frenet.measure.drift import basis_drift, example_snapshot, half_life
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.runs import read_run
from integrations.watching import (
    LOOKS,
    STEPS,
    model_of,
    pad,
    probes,
    rows,
    train,
    trainer_of,
    weights,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


@pytest.fixture
def watch(tmp_path):
    return {"probes": probes(), "out": tmp_path / "out", "every": 3, "k": 2, "n": 4}


def table(out, name):
    return [row for row in read_run(out).rows if row["table"] == name]


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("gpt2", {}),
        ("gpt2", {"gradient_accumulation_steps": 2}),
        ("lora", {"eval_strategy": "steps", "eval_steps": 3}),
        ("lora", {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 1}),
        ("gpt2", {"activation_checkpointing": True}),
        (
            "gpt2",
            {
                "activation_checkpointing": True,
                "activation_checkpointing_kwargs": {"use_reentrant": True},
            },
        ),
        ("lora", {"bf16": True}),
        ("gpt2", {"bf16": True}),
    ],
)
def test_training_ends_with_the_same_weights_bit_for_bit(tmp_path, watch, kind, changed):
    torch.manual_seed(0)
    plain = train(model_of(kind), tmp_path / "plain", **changed)
    draws = torch.get_rng_state()
    watched = train(model_of(kind), tmp_path / "watched", watch=watch, **changed)
    ours, theirs = weights(watched.model), weights(plain.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(torch.get_rng_state(), draws)
    kept = [
        [{key: entry.get(key) for key in ("step", "loss", "grad_norm", "eval_loss")} for entry in h]
        for h in (
            [e for e in watched.state.log_history if not any("frenet" in key for key in e)],
            plain.state.log_history,
        )
    ]
    assert kept[0] == kept[1]
    assert len(read_trajectory(watch["out"])) == STEPS


def test_steps_are_the_moves_and_gradients_what_trainer_used(tmp_path, watch):
    before = weights(model_of("gpt2"))
    settings = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.5}
    trainer = train(
        model_of("gpt2"), tmp_path / "t", watch={**watch, "gradients": True}, **settings
    )
    path = read_trajectory(watch["out"])
    start = path.space.flatten(before)
    assert torch.equal(path.start, start)
    # A float32 difference is rounded if its two ends differ by more than a factor of 2.
    end = path.space.read(trainer.model)
    torch.testing.assert_close(path.theta(STEPS), end, rtol=0, atol=1e-7)
    torch.testing.assert_close(path.steps, -1e-2 * path.gradients, rtol=0, atol=1e-7)
    norms = torch.tensor([e["grad_norm"] for e in trainer.state.log_history if "grad_norm" in e])
    assert (norms > 0.5).all()
    torch.testing.assert_close(path.gradients.norm(dim=1), torch.full((STEPS,), 0.5))


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, watch):
    found = []
    for size, parts in ((2, 1), (1, 2)):
        model = model_of("gpt2")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        out = tmp_path / f"out-{size}"
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
        settings |= {"optim": "sgd", "learning_rate": 1e-3}
        train(
            model,
            tmp_path / "t",
            watch={**watch, "probes": [], "out": out, "gradients": True},
            **settings,
        )
        found.append(read_trajectory(out).gradients)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
    assert found[0].norm() > 1


def test_losses_of_the_trajectory_are_those_of_trainers_log(tmp_path, watch):
    trainer = train(model_of("lora"), tmp_path / "t", watch=watch, logging_steps=1)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert read_trajectory(watch["out"]).losses.tolist() == pytest.approx(logged)
    trainer = train(
        model_of("lora"), tmp_path / "u", watch={**watch, "out": tmp_path / "b"}, logging_steps=3
    )
    first, second = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    losses = read_trajectory(tmp_path / "b").losses
    assert losses[:6].tolist() == pytest.approx([first] * 3 + [second] * 3)
    assert losses[6:].isnan().all()


def test_prefix_rows_are_what_the_trajectory_says(tmp_path, watch):
    train(model_of("lora"), tmp_path / "t", watch=watch)
    path = read_trajectory(watch["out"])
    found = table(watch["out"], "prefix")
    assert [row["step"] for row in found] == [3, 6, 8]
    squares = path.steps.double().square().sum(1)
    for row in found:
        basis, t = prefix_basis(path.steps, 2), row["step"]
        assert row["captured"] == pytest.approx(
            float(basis.captured_fraction(path.displacement(0, t)))
        )
        assert row["rest"] == pytest.approx(float(basis.captured_fraction(path.displacement(2, t))))
        assert row["random_walk"] == pytest.approx(float(squares[:2].sum() / squares[:t].sum()))
        assert row["lift"] == pytest.approx(row["captured"] / row["random_walk"])
        assert row["random"] == 2 / path.space.dim
        assert row["k_share"] == 2 / t
    way = table(watch["out"], "path")
    assert way[-1]["displacement"] == pytest.approx(float(path.displacement().norm()))
    assert way[-1]["walk"] == pytest.approx(float(squares.sum().sqrt()))
    assert way[-1]["unmoved"] == pytest.approx(float((path.steps == 0).double().mean()))


def test_drift_rows_are_those_of_the_start_and_the_present(tmp_path, watch):
    model = model_of("lora")
    trained = train(model, tmp_path / "t", watch=watch).model
    found = [row for row in table(watch["out"], "drift") if row["probe"] == "times"]
    assert [row["step"] for row in found] == LOOKS
    task = watch["probes"][1]
    batch = next(task.batches("train", 12, 0))
    space = ParamSpace.select(trained)
    then = example_snapshot(model_of("lora"), task, batch, space=space)
    now = example_snapshot(trained, task, batch, space=space)
    for row, there in ((found[0], then), (found[-1], now)):
        expected = basis_drift(then, there, 2, paired=True)
        for name, value in expected._asdict().items():
            assert row[name] == pytest.approx(value, rel=1e-4), name
        assert row["random"] == 2 / space.dim
        assert row["chance"] == pytest.approx(2 / space.dim / expected.fresh, rel=1e-4)
    assert found[0]["ratio"] == pytest.approx(1, abs=1e-12)
    assert abs(found[-1]["ratio"] - 1) > 0.01
    held_out = next(task.batches("select", 4, 0))
    with measuring(trained), torch.no_grad():
        expected = float(task.loss(trained, held_out))
    losses = [row for row in table(watch["out"], "loss") if row["source"] == "times"]
    assert losses[-1]["loss"] == pytest.approx(expected)
    assert {row["loss_0"] for row in losses} == {losses[0]["loss"]}
    ratios = {row["step"]: row["ratio"] for row in found}
    moved = {row["step"]: row["displacement"] for row in found}
    (life,) = (row for row in table(watch["out"], "half_life") if row["probe"] == "times")
    expected = half_life(ratios)
    assert brackets.bracket_of(life) == expected
    assert life["distance_low"] == pytest.approx(moved[expected.low])


def test_a_training_that_does_not_move_drifts_nowhere(tmp_path, watch):
    train(model_of("gpt2"), tmp_path / "t", watch=watch, learning_rate=0.0)
    assert {row["ratio"] for row in table(watch["out"], "drift")} == {1.0}
    lives = {str(brackets.bracket_of(row)) for row in table(watch["out"], "half_life")}
    assert lives == {f"more than {STEPS}"}
    assert {row["unmoved"] for row in table(watch["out"], "path")} == {1.0}
    assert table(watch["out"], "prefix") == []


def test_a_stale_basis_is_reported_once_between_two_looks(tmp_path, watch, caplog):
    with caplog.at_level(logging.WARNING, logger="frenet"):
        train(model_of("lora"), tmp_path / "t", watch=watch, learning_rate=0.2)
    rows = table(watch["out"], "half_life")
    found = sentences([*rows, *table(watch["out"], "drift")])
    answers = {answer.subject: answer.sentence for answer in found}
    lives = {row["probe"]: brackets.bracket_of(row) for row in rows}
    assert len(lives) == len(answers) == 2
    for name, life in lives.items():
        assert (life.low, life.high) in set(itertools.pairwise(LOOKS))
        said = [r.message for r in caplog.records if f"probe {name} " in r.message]
        assert len(said) == 1
        assert f"fell below 0.5 after {life.in_words('step')} (control" in said[0]
        assert said[0].removeprefix("frenet: ") in {r["note"] for r in table(watch["out"], "notes")}
        assert f"half of a fresh one after {life.in_words('step')}; " in answers[name]
        assert any(answers[name] in record.message for record in caplog.records)


@pytest.mark.parametrize("rate", [0.01, 0.03, 0.2])
def test_the_bracket_of_the_defaults_holds_what_a_look_at_every_step_finds(tmp_path, rate):
    """60 steps: the defaults look at 0, 1, 5, 10, 20, 50 and 60."""
    settings = {"max_steps": 60, "learning_rate": rate, "logging_steps": 60}
    found = []
    for name, given in (("default", {}), ("dense", {"every": 1})):
        watch = {"probes": probes(), "out": tmp_path / name, "n": 4, **given}
        train(model_of("lora"), tmp_path / "t", watch=watch, **settings)
        rows = table(watch["out"], "half_life")
        found.append([brackets.bracket_of(row) for row in rows])
    steps = {row["step"] for row in table(tmp_path / "default", "drift")}
    assert steps == {0, 1, 5, 10, 20, 50, 60}
    assert {row["step"] for row in table(tmp_path / "dense", "drift")} == set(range(61))
    for bracket, dense in zip(*found, strict=True):
        # Close measurements, so that the interpolation spans no gap.
        assert dense.high is None or dense.high - dense.low == 1
        assert bracket.low <= dense.low
        assert (bracket.high or math.inf) >= (dense.high or math.inf)
    if rate == 0.2:
        assert all(dense.found for dense in found[1])


def test_steps_of_half_precision_weights_are_what_rounding_left(tmp_path, watch):
    model = model_of("gpt2").to(torch.bfloat16)
    before = weights(model)
    train(model, tmp_path / "t", watch={**watch, "probes": []}, learning_rate=1e-4)
    path = read_trajectory(watch["out"])
    assert torch.equal(path.start, path.space.flatten(before))
    assert torch.equal(path.theta(STEPS), path.space.read(model))
    last = table(watch["out"], "path")[-1]
    assert last["unmoved"] == pytest.approx(float((path.steps == 0).double().mean()))
    assert last["unmoved"] > 0.5 > last["zeros"]
    assert any("bfloat16" in row["note"] for row in table(watch["out"], "notes"))


class Heard(TrainerCallback):
    """A reporter like TensorBoard's: before the user's callbacks in the list."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append((state.global_step, dict(logs)))


def test_scalars_reach_reporters_through_trainers_log(tmp_path, watch):
    heard = Heard()
    trainer = train(
        model_of("lora"), tmp_path / "t", watch=watch, callbacks=[heard], logging_steps=3
    )
    ours = {step: logs for step, logs in heard.logs if any("frenet" in key for key in logs)}
    assert list(ours) == LOOKS
    drift = {(r["probe"], r["step"]): r["ratio"] for r in table(watch["out"], "drift")}
    for step, logs in ours.items():
        for name in ("plus", "times"):
            assert logs[f"frenet/{name}/energy_ratio"] == drift[name, step]
            assert math.isfinite(logs[f"frenet/{name}/loss"])
        assert ("frenet/prefix_captured" in logs) == (step > 2)
        assert "loss" not in logs
    assert [step for step, logs in heard.logs if "loss" in logs] == [3, 6]
    kept = [e for e in trainer.state.log_history if "frenet/plus/energy_ratio" in e]
    assert [entry["step"] for entry in kept] == LOOKS


def test_as_a_plain_callback_it_fills_the_log_history_and_says_what_is_missing(
    tmp_path, watch, caplog
):
    heard = Heard()
    given = dict(watch)
    callback = FrenetCallback(given.pop("probes"), **given)
    trainer = trainer_of(
        model_of("lora"), rows(watch["probes"][0]), tmp_path / "t", callbacks=[heard, callback]
    )
    trainer.args.report_to = ["tensorboard"]
    with caplog.at_level(logging.WARNING, logger="frenet"):
        trainer.train()
    assert "but not tensorboard" in caplog.text
    assert "attach(trainer)" in caplog.text
    assert not any("frenet" in key for _, logs in heard.logs for key in logs)
    kept = [e["step"] for e in trainer.state.log_history if "frenet/plus/energy_ratio" in e]
    assert kept == LOOKS
    assert len(read_trajectory(watch["out"])) == STEPS


def test_the_best_checkpoint_at_the_end_is_not_taken_for_the_last_step(tmp_path, watch):
    model = train(
        model_of("lora"),
        tmp_path / "t",
        watch={**watch, "every": 5},
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        save_strategy="steps",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
    ).model
    path = read_trajectory(watch["out"])
    assert not torch.equal(path.theta(STEPS), path.space.read(model))
    last = table(watch["out"], "drift")[-1]
    assert last["step"] == STEPS
    last_model = copy.deepcopy(model)
    path.space.write(last_model, path.theta(STEPS))
    batch = next(watch["probes"][1].batches("train", 12, 0))
    start = model_of("lora")
    snapshots = [
        example_snapshot(m, watch["probes"][1], batch, space=path.space)
        for m in (start, last_model)
    ]
    expected = basis_drift(*snapshots, 2, paired=True)
    assert last["ratio"] == pytest.approx(expected.ratio, rel=1e-4)


def test_an_early_end_keeps_its_last_step(tmp_path, watch):
    class Enough(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= 4

    train(model_of("lora"), tmp_path / "t", watch=watch, callbacks=[Enough()])
    assert len(read_trajectory(watch["out"])) == 4
    assert [row["step"] for row in table(watch["out"], "path")] == [1, 3, 4]


def test_collators_that_drop_columns_do_not_matter(tmp_path, watch):
    assert "position_ids" not in pad(rows(watch["probes"][0])[:2])
    examples = [{**row, "text": "never looked at"} for row in rows(watch["probes"][0])]
    trainer = trainer_of(model_of("lora"), examples, tmp_path / "t", remove_unused_columns=True)
    given = dict(watch)
    FrenetCallback(given.pop("probes"), **given).attach(trainer)
    trainer.train()
    assert len(table(watch["out"], "drift")) == 2 * len(LOOKS)
