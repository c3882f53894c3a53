"""What a watched training refuses, and what it says when it diverges."""

import logging
import shutil
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from frenet.experiments.watched_training import WatchConfig
from frenet.integrations import checks
from frenet.integrations.trained import trained_space
from frenet.integrations.trainer import FrenetCallback, read_trajectory
from frenet.network.memory import require_disk
from frenet.network.space import ParamSpace
from frenet.network.tasks import IGNORE
from frenet.report import write_report
from frenet.runs import read_run
from integrations.watching import STEPS, model_of, probes, rows, train, trainer_of
from measure.quadratic import RowsTask


@pytest.fixture
def watch(tmp_path):
    return {"probes": probes(), "out": tmp_path / "out", "every": 3, "k": 2, "n": 4}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"every": 0}, "every=0; pass at least 1"),
        ({"k": 0}, "k=0; pass at least 1"),
        ({"n": 1}, "n=1; pass at least 2"),
        ({"n": 12}, "probe 'plus': batch_size=36 for the 35 train rows .* or pass a smaller n"),
        ({"probes": [RowsTask()]}, "probe 'rows' has 3 train examples, n needs 12"),
    ],
)
def test_settings_out_of_range(watch, changed, message):
    given = {**watch, **changed}
    with pytest.raises(ValueError, match=message):
        FrenetCallback(given.pop("probes"), **given)


def test_probes_without_any_gradient_are_a_note_and_do_not_end_the_training(tmp_path, watch):
    """Only A trains, and B is zero, so that the loss does not depend on A."""
    model = model_of("lora")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_A" in name)
    trainer = train(model, tmp_path / "t", watch=watch)
    assert trainer.state.global_step == STEPS
    notes = [row["note"] for row in read_run(watch["out"]).rows if row["table"] == "notes"]
    for probe in ("plus", "times"):
        assert any(f"basis of probe {probe} was not measured: all vectors" in n for n in notes)


def test_two_probes_of_one_name(watch):
    given = dict(watch)
    task = given.pop("probes")[0]
    with pytest.raises(ValueError, match="two probes are named 'plus'"):
        FrenetCallback([task, task], **given)


def test_a_probe_without_a_target_token(watch):
    class NoTarget(RowsTask):
        def batches(self, split, batch_size, seed):
            for batch in super().batches(split, batch_size, seed):
                labels = batch["labels"].clone()
                labels[1] = IGNORE
                yield {**batch, "labels": labels}

    given = {**watch, "n": 2}
    given.pop("probes")
    task = NoTarget(rows=RowsTask().rows * 2)
    with pytest.raises(ValueError, match=r"probe 'rows' has a train example without a target"):
        FrenetCallback([task], **given)


def test_the_same_callback_twice(tmp_path, watch):
    given = dict(watch)
    callback = FrenetCallback(given.pop("probes"), **given)
    examples = rows(watch["probes"][0])
    trainer = trainer_of(model_of("lora"), examples, tmp_path / "t", callbacks=[callback])
    with pytest.raises(ValueError, match="already has a FrenetCallback"):
        callback.attach(trainer)
    trainer.callback_handler.callbacks.append(callback)
    with pytest.raises(ValueError, match="has two FrenetCallbacks, or the same one twice"):
        trainer.train()


def test_two_callbacks_for_one_training(tmp_path, watch):
    both = [FrenetCallback([], out=tmp_path / name, k=2) for name in ("a", "b")]
    examples = rows(watch["probes"][0])
    trainer = trainer_of(model_of("lora"), examples, tmp_path / "t", callbacks=both)
    with pytest.raises(ValueError, match="has two FrenetCallbacks"):
        trainer.train()


def test_a_prefix_as_long_as_the_training(tmp_path, watch):
    with pytest.raises(
        ValueError,
        match=r"k=8 first steps leave no later ones in a training of 8 steps; pass k <= 7",
    ):
        train(model_of("lora"), tmp_path / "t", watch={**watch, "k": 8})
    assert not watch["out"].exists()


def test_a_prefix_that_is_long_for_the_training_is_said(tmp_path, watch):
    train(model_of("lora"), tmp_path / "t", watch={**watch, "probes": []})
    notes = [row["note"] for row in read_run(watch["out"]).rows if row["table"] == "notes"]
    assert any("8 planned steps are less than 5 k = 10" in note for note in notes)


def test_no_trained_parameter_frozen_ones_and_quantised_ones():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        trained_space(model, None)
    with pytest.raises(ValueError, match=r"2 of the parameters .* not trained \(the first is w"):
        trained_space(model, "weight|bias")
    model.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"weight has dtype torch\.int8, .* without quantisation"):
        trained_space(model, "weight")


def test_parameters_on_several_devices(monkeypatch):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match=r"1\.weight is on the meta device and has no values"):
        trained_space(model, None)
    both = [model.get_parameter(name) for name in ("0.weight", "1.weight")]
    assert trained_space(model, "^0").names == ("0.weight", "0.bias")
    monkeypatch.setattr(ParamSpace, "parameters", lambda *_: both)
    with pytest.raises(ValueError, match="trained parameters are on cpu, meta"):
        trained_space(model, "^0")


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_sharded_gradients(kind):
    state = SimpleNamespace(distributed_type=SimpleNamespace(value=kind))
    optimizer = SimpleNamespace(accelerator_state=state)
    with pytest.raises(ValueError, match=rf"shards parameters or gradients .* \({kind}\)"):
        checks.refuse_sharded(nn.Linear(2, 2), optimizer)


def test_parameters_in_shards():
    model = nn.Linear(2, 2)
    checks.refuse_sharded(model, None)
    model.bias.ds_id = 1
    with pytest.raises(ValueError, match=r"\(tensors in shards \(bias\)\)"):
        checks.refuse_sharded(model, None)


def test_parameters_that_fsdp_has_sharded():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Linear(2, 2)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"\(tensors in shards \(weight\)\)"):
            checks.refuse_sharded(model, None)
    finally:
        dist.destroy_process_group()


def test_scaled_gradients():
    args = SimpleNamespace(fp16=True, max_grad_norm=0.0)
    config = WatchConfig("m", (), every=1, k=2, n=2, gradients=True, where="")
    with pytest.raises(ValueError, match="multiplied by the loss scale"):
        checks.check_training(args, 10, config)
    checks.check_training(SimpleNamespace(fp16=True, max_grad_norm=1.0), 10, config)


def test_the_size_is_said_before_training_and_refused_where_it_does_not_fit(
    tmp_path, watch, caplog, monkeypatch
):
    with caplog.at_level(logging.INFO, logger="frenet"):
        trainer = train(model_of("gpt2"), tmp_path / "t", watch={**watch, "probes": []})
    said = [
        r.message for r in caplog.records if "recording 8 steps of 11,408 parameters" in r.message
    ]
    assert len(said) == 1
    assert "0.04 MiB a step" in said[0]
    assert str(watch["out"]) in said[0]
    assert len(trainer.state.log_history) > 0
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=8 * 4 * 11_408 - 1))
    with pytest.raises(MemoryError, match=r"recording 8 steps .* of disk and 0\.00 GiB .* fewer"):
        train(
            model_of("gpt2"), tmp_path / "t", watch={**watch, "probes": [], "out": tmp_path / "b"}
        )
    monkeypatch.undo()
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=90 << 20))
    with pytest.raises(MemoryError, match=r"recording 8 steps .* are free on cpu; select fewer"):
        train(model_of("gpt2"), tmp_path / "t", watch={**watch, "out": tmp_path / "c"})
    assert not (tmp_path / "c").exists()


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    require_disk(1, "a byte", folder=tmp_path / "a" / "b", remedy="none")
    with pytest.raises(MemoryError, match=r"all of it needs .* GiB of disk and .* use less"):
        require_disk(1 << 60, "all of it", folder=tmp_path / "a" / "b", remedy="use less")


def test_a_diverging_training_keeps_the_steps_before(tmp_path, watch, caplog):
    settings = {"optim": "sgd", "learning_rate": 1e38, "lr_scheduler_type": "constant"}
    settings |= {"max_grad_norm": 0.0}
    # A measurement would meet a gradient that is not finite before a step is.
    watch["probes"] = []
    with caplog.at_level(logging.ERROR, logger="frenet"):
        trainer = train(model_of("gpt2"), tmp_path / "t", watch=watch, **settings)
    assert trainer.state.global_step == 8
    run = read_run(watch["out"])
    (failure,) = run.failures
    assert failure["type"] == "FloatingPointError"
    path = read_trajectory(watch["out"])
    assert f"the {len(path)} earlier steps are in" in failure["error"]
    assert f"step {len(path) + 1} of this training is not finite in parameter" in failure["error"]
    assert "recording stopped" in caplog.text
    assert path.steps.isfinite().all()
    page = write_report([run], tmp_path / "report.html", static=False).read_text("utf-8")
    assert "is not finite in parameter" in page


def test_a_probe_whose_loss_is_not_finite_ends_the_recording(tmp_path, watch, caplog):
    class Breaks(RowsTask):
        calls = 0

        def loss(self, model, batch):
            Breaks.calls += 1
            found = super().loss(model, batch)
            return found * float("nan") if Breaks.calls > 6 else found

    task = Breaks(rows=RowsTask().rows * 4)
    with caplog.at_level(logging.ERROR, logger="frenet"):
        train(model_of("gpt2"), tmp_path / "t", watch={**watch, "probes": [task], "every": 1})
    (failure,) = read_run(watch["out"]).failures
    assert "of task rows" in failure["error"]
    assert "after step" in failure["error"]
    assert 0 < len(read_trajectory(watch["out"])) < 8


def test_a_folder_without_a_recording(tmp_path):
    with pytest.raises(ValueError, match="holds no recorded training"):
        read_trajectory(tmp_path)
