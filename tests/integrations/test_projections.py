"""Projections of each matrix's gradient: energies of dense SVDs, and the advice that follows."""

import logging

import pytest
import torch

import frenet
from frenet._errors import UsageError
from frenet.experiments.watched_training.advice import (
    basis_gap,
    projection_gap,
    renewal,
    sentences,
)
from frenet.integrations.trainer import FrenetCallback
from frenet.measure.bracket import Bracket
from frenet.measure.gradients import gradient
from frenet.measure.renewal import Gap, renewal_gap
from frenet.network.space import ParamSpace
from frenet.runs import read_run
from integrations.test_own_loop import adam, loop
from integrations.watching import LOOKS, model_of, probes, train, weights

RANK, N = 3, 4


def test_rows_are_those_of_dense_decompositions(tmp_path, caplog):
    """The start's singular vectors of a minibatch, on the gradients of two others at the end."""
    model = model_of("gpt2")
    start = model_of("gpt2")
    optimizer = adam(model)
    with (
        caplog.at_level(logging.INFO, "frenet"),
        frenet.watch(
            model, optimizer, probes()[:1], out=tmp_path / "out", every=3, k=2, n=N,
            projection_rank=RANK,
        ) as seen,
    ):  # fmt: skip
        loop(model, optimizer)
    assert "takes 3 gradients of 4 examples and the singular vectors of" in caplog.text
    rows = [row for row in read_run(tmp_path / "out").rows if row["table"] == "projection"]
    task, space = probes()[0], ParamSpace.select(model)
    batch = next(task.batches("train", 3 * N, 0))

    def gradients(network, part):
        piece = {key: value[part * N : (part + 1) * N] for key, value in batch.items()}
        return space.unflatten(gradient(network.eval(), task, piece, space=space))

    then, again, held_then = (gradients(start, part) for part in range(3))
    fit, *held = (gradients(model, part) for part in range(3))
    last = [row for row in rows if row["step"] == LOOKS[-1]]
    names = [n for n, s in zip(space.names, space.shapes, strict=True) if len(s) == 2]
    assert [row["matrix"] for row in last] == [n for n in names if min(fit[n].shape) > RANK]
    for row in last:
        name = row["matrix"]

        def inside(basis_of, gradients, name=name):
            u, _, vh = torch.linalg.svd(basis_of[name].double(), full_matrices=False)
            G = gradients[name].double()
            if G.shape[0] >= G.shape[1]:
                return float((G @ vh[:RANK].T).square().sum() / G.square().sum())
            return float((u[:, :RANK].T @ G).square().sum() / G.square().sum())

        def held_in(basis_of, inside=inside):
            return sum(inside(basis_of, gradients) for gradients in held) / 2

        chance = RANK / min(fit[name].shape)
        assert row["chance"] == chance
        assert row["energy"] == pytest.approx(held_in(then), rel=1e-3)
        assert row["fresh"] == pytest.approx(held_in(fit), rel=1e-3)
        kept = (row["energy"] - chance) / (row["fresh"] - chance)
        assert row["ratio"] == pytest.approx(kept)
        control = (inside(again, held_then) - chance) / (inside(then, held_then) - chance)
        assert row["control"] == pytest.approx(control, rel=1e-2)
    assert all(row["ratio"] == pytest.approx(1.0) for row in rows if row["step"] == 0)
    assert any("projections of rank 3" in text for text in seen.advice)


def test_trainer_logs_the_median_and_weights_stay_the_same(tmp_path):
    plain, watched = model_of("lora"), model_of("lora")
    train(plain, tmp_path / "plain")
    watch = {
        "probes": probes(), "out": tmp_path / "out", "every": 3, "k": 2, "n": N,
        "projection_rank": 1,
    }  # fmt: skip
    trainer = train(watched, tmp_path / "watched", watch=watch)
    expected = weights(plain)
    assert all(torch.equal(value, expected[name]) for name, value in weights(watched).items())
    logged = [e for e in trainer.state.log_history if "frenet/plus/projection_ratio" in e]
    assert [entry["step"] for entry in logged] == LOOKS
    run = read_run(tmp_path / "out")
    # A fresh adapter has no gradient of A at the start, so that only B is projected.
    matrices = {row["matrix"] for row in run.rows if row["table"] == "projection"}
    assert matrices
    assert all("lora_B" in name for name in matrices)
    gaps = [row for row in run.rows if row["table"] == "update_gap"]
    assert {row["matrix"] for row in gaps} == matrices


def test_it_is_off_by_default_and_refuses_ranks_that_project_nothing(tmp_path):
    with pytest.raises(UsageError, match="projection_rank=0; pass at least 1"):
        FrenetCallback(probes(), out=tmp_path, projection_rank=0)
    with pytest.raises(UsageError, match="needs a probe"):
        FrenetCallback([], out=tmp_path, projection_rank=2)
    with pytest.raises(UsageError, match="projection_rank=1000 is not below both sides"):
        train(
            model_of("gpt2"),
            tmp_path / "t",
            watch={"probes": probes(), "out": tmp_path / "o", "k": 2, "n": N, "every": 3,
                   "projection_rank": 1000},
        )  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "control", "advice"),
    [
        (Bracket(5.0, 10.0), 0.9, "make it anew every 5 to 10 steps"),
        (Bracket(20.0, 24.0, 22.0), None, "make it anew every 22 steps (20 to 24)"),
        (Bracket(0.0, 1.0), 0.9, "make it anew at every step"),
        (Bracket(0.0, 5.0), 0.9, "make it anew at least every 5 steps"),
        (Bracket(60.0, None), 0.9, "no need to renew it: over all 60 steps"),
        (Bracket(5.0, 10.0), 0.4, "no advice: other examples of the start differ as much"),
    ],
)
def test_advice_comes_with_an_interval_and_what_is_held_or_a_reason(steps, control, advice):
    said = renewal(Gap(steps, 0.625, 60), control=control)
    assert said.startswith(advice)
    assert ("over all 60 steps the initial one holds 0.62" in said) is (control != 0.4)


def test_matrices_are_summed_up_by_a_bracket_of_their_median():
    ends = [(1, 5), (5, 10), (5, 10), (50, None)]
    about = {"probe": "p", "rank": 4}
    rows = [
        {"table": "update_gap", **about, "matrix": str(i), "steps": None, "steps_low": low,
         "steps_high": high, "longest": 50, "held": i / 4}
        for i, (low, high) in enumerate(ends)
    ]  # fmt: skip
    rows.append({"table": "projections", **about, "control": 0.9})
    (answer,) = sentences(rows)
    assert answer.subject == "p"
    assert "make them anew every 5 to 10 steps" in answer.sentence
    assert "over all 50 steps the initial ones hold 0.38" in answer.sentence
    assert "the shortest between 1 and 5 steps, the longest more than 50 steps" in answer.sentence


def test_a_gap_is_that_of_energies_above_chance():
    """Looks with little above chance count little; without any at the start there is no gap."""
    rows = [
        {"step": step, "energy": energy, "fresh": fresh, "chance": 0.25}
        for step, energy, fresh in ((0, 0.75, 0.75), (1, 0.625, 0.75), (2, 0.125, 0.125))
    ]
    assert projection_gap(rows) == renewal_gap(
        {0: 0.5, 1: 0.375, 2: -0.125}, {0: 0.5, 1: 0.5, 2: 0.0}, level=0.75
    )
    assert projection_gap([rows[2] | {"step": 0}]) is None


def test_a_basis_is_kept_by_its_own_energies():
    """Of fresh ones that hold less and less, the later looks count less."""
    rows = [
        {"step": step, "ratio": ratio, "fresh": fresh}
        for step, ratio, fresh in ((0, 1.0, 0.5), (1, 0.5, 0.5), (2, 0.25, 0.25))
    ]
    found = basis_gap(rows)
    assert found.steps == Bracket(1.0, 2.0)
    assert found.held == 0.65
