"""The order of updates on the probes of a training, at its looks."""

import logging

import pytest
import torch

from frenet._errors import UsageError
from frenet.geometry import rng
from frenet.integrations import watching as module
from frenet.integrations.order import UNMEASURED
from frenet.integrations.trainer import FrenetCallback
from frenet.measure.lie_bracket import Minibatch, lie_bracket
from frenet.network.space import ParamSpace
from frenet.runs import read_run
from integrations.watching import LOOKS, STEPS, model_of, probes, train, weights


@pytest.fixture
def watch(tmp_path):
    """Settings of a callback that looks at the order of two probes."""
    return {
        "probes": probes(), "out": tmp_path / "watched", "every": 3, "k": 2, "n": 3, "order": True,
    }  # fmt: skip


def orders(out):
    return [row for row in read_run(out).rows if row["table"] == "order"]


def test_rows_are_those_of_the_brackets_at_the_looks(tmp_path, watch):
    model = model_of("gpt2")
    before = weights(model)
    trainer = train(model, tmp_path / "t", watch=watch)
    rows = orders(watch["out"])
    assert [row["step"] for row in rows] == LOOKS
    assert {row["pair"] for row in rows} == {"plus and times"}
    first, second = (
        Minibatch(task, {key: part[:3] for key, part in next(task.batches("train", 9, 0)).items()})
        for task in watch["probes"]
    )
    for step, values in ((0, before), (STEPS, weights(model))):
        again = model_of("gpt2").eval()
        with torch.no_grad():
            for name, parameter in again.named_parameters():
                parameter.copy_(values[name])
        found = lie_bracket(
            again, first, second, space=ParamSpace.select(again), check=False,
            null=rng.generator(0, "watched training", "order"),
        )  # fmt: skip
        (row,) = [row for row in rows if row["step"] == step]
        assert row["kappa"] == pytest.approx(found.kappa, rel=1e-4)
        assert row["null_kappa"] == pytest.approx(found.null_kappa, rel=1e-4)
        assert row["onset"] == pytest.approx(0.1 / found.kappa, rel=1e-4)
        assert row["rounding"] < 0.1 * row["kappa"]
    logged = [
        entry for entry in trainer.state.log_history if "frenet/plus and times/order_kappa" in entry
    ]
    assert [entry["step"] for entry in logged] == LOOKS
    assert logged[0]["frenet/plus and times/order_onset"] == rows[0]["onset"]


@pytest.mark.parametrize("kind", ["gpt2", "lora"])
def test_the_trained_weights_are_the_same_bit_for_bit(tmp_path, watch, kind):
    plain, watched = model_of(kind), model_of(kind)
    train(plain, tmp_path / "plain")
    train(watched, tmp_path / "watched", watch=watch)
    expected = weights(plain)
    assert all(torch.equal(value, expected[name]) for name, value in weights(watched).items())


def test_a_fresh_adapter_has_no_order_yet_and_one_note_says_so(tmp_path, watch):
    train(model_of("lora"), tmp_path / "t", watch=watch)
    notes = [row for row in read_run(watch["out"]).rows if row["table"] == "notes"]
    told = [row for row in notes if str(row["note"]).startswith(UNMEASURED)]
    assert [row["step"] for row in told] == [0]
    assert "structurally zero" in told[0]["note"]
    assert [row["step"] for row in orders(watch["out"])] == LOOKS[1:]


def test_it_is_off_by_default(tmp_path, watch):
    del watch["order"]
    train(model_of("gpt2"), tmp_path / "t", watch=watch)
    assert orders(watch["out"]) == []


def test_the_cost_is_said_first_and_louder_of_many_probes(tmp_path, watch, caplog, monkeypatch):
    with caplog.at_level(logging.INFO, "frenet"):
        train(model_of("gpt2"), tmp_path / "t", watch=watch)
    said = [r for r in caplog.records if "2 gradients and 4 Hessian products" in r.message]
    assert [r.levelname for r in said] == ["INFO"]
    caplog.clear()
    monkeypatch.setattr(module, "MANY", 1)
    watch["out"] = tmp_path / "again"
    train(model_of("gpt2"), tmp_path / "u", watch=watch)
    assert [r.levelname for r in caplog.records if "Hessian products" in r.message] == ["WARNING"]


def test_one_probe_has_no_order(tmp_path):
    with pytest.raises(UsageError, match="1 probe has no order"):
        FrenetCallback(probes()[:1], out=tmp_path, order=True)
