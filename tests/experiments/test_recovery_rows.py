"""Rows of recovery-basis: recoveries that do not arrive, and LoRA in the weights."""

from dataclasses import replace
from typing import Any

import pytest

from experiments.conftest import Rows
from experiments.small import small
from frenet.experiments import EXPERIMENTS
from frenet.experiments.intervals import select
from frenet.experiments.setup.case import Case
from frenet.experiments.setup.recovery import HOPELESS
from frenet.measure.recovery import Recovery

REPLICATE = {"prefix of replicate", "PCA of replicate"}
FACTORS_ONLY = {"Krylov", "Hessian"}


def test_lora_is_measured_in_the_weights_at_the_same_dimensions(rows: Rows) -> None:
    captures = select(rows["recovery-basis"], table="capture")
    assert {row["coordinates"] for row in select(captures, space="full")} == {"weights"}
    lora = select(captures, space="lora")
    keys = {
        where: {(row["basis"], row["k"], row["replicate"]) for row in part}
        for where in ("factors", "weights")
        if (part := select(lora, coordinates=where))
    }
    assert {k for k in keys["factors"] if k[0] not in FACTORS_ONLY} == keys["weights"]
    given = [row for row in select(lora, coordinates="weights") if "captured" in row]
    assert given
    for row in given:
        (twin,) = select(
            lora,
            coordinates="factors",
            **{key: row[key] for key in ("basis", "k", "replicate", "optimizer", "protocol")},
        )
        assert 0 <= row["captured"] <= 1 + 1e-9
        assert (row["chance"] < twin["chance"], row["stop"]) == (True, twin["stop"])
        if row["basis"] == "prefix":
            assert 0 < row["walk_share"] < 1
            assert row["lift"] == pytest.approx(row["captured"] / row["walk_share"])
            assert row["captured"] != twin["captured"]


@pytest.mark.usefixtures("rows")  # for its cache of networks
def test_a_recovery_is_measured_although_its_replicate_did_not_arrive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits, recover = [], Case.recover

    def second_is_lost(case: Case, *, seed: int, most: int, every: int = 1) -> Recovery:
        limits.append(most)
        found = recover(case, seed=seed, most=most, every=every)
        return found if seed < 2000 else replace(found, stop=None)

    monkeypatch.setattr(Case, "recover", second_is_lost)
    changes: dict[str, Any] = {"spaces": ("lora",), "second_order": (), "optimised": ()}
    experiment = EXPERIMENTS["recovery-basis"]
    config = small("recovery-basis", **changes)
    (cell,) = experiment.cells(config)
    rows = list(experiment.run(config, cell))
    assert limits == [HOPELESS * config.steps] * 2
    recoveries = select(rows, table="recovery")
    assert [row["status"] for row in recoveries] == ["recovered", "not recovered"]
    assert [row["longest"] for row in recoveries] == limits
    captures = select(rows, table="capture")
    assert {row["replicate"] for row in captures} == {0}
    assert {row["coordinates"] for row in captures} == {"factors", "weights"}
    assert not {row["basis"] for row in captures} & REPLICATE
    assert all(row.get("ceiling") is None for row in captures)
    assert [row["captured"] for row in captures if row["basis"] == "prefix" and "captured" in row]
    lost = recoveries[1]
    (note,) = [row for row in select(rows, table="notes") if row["note"] == lost["why"]]
    assert all(
        words in str(note["note"])
        for words in ("copy", "wrong-answers", f"{lost['threshold']:.3g}")
    )
