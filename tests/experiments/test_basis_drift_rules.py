"""The rule of C3 on rows made for it, and the column of its premise in a small run."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from experiments.small import small
from frenet.experiments import EXPERIMENTS
from frenet.experiments.basis_drift import findings
from frenet.experiments.basis_drift.findings import drift_chart
from frenet.experiments.basis_drift.measure import _loss_cells
from frenet.experiments.experiment import MADE, MODEL, Finding
from frenet.experiments.setup import brackets
from frenet.measure.drift import Losses

Planted = list[dict[str, Any]]
FAST = [0.30, 0.31, 0.32]


def decide(rows: Planted) -> Finding:
    """C3 apart from its case in the weights."""
    return findings.decide(rows)[0]


def drifts(ratios: list[float], **changes: Any) -> Planted:
    """Ratios at lag 100 over seeds; a random basis has 0.001 of the energy of a fresh one."""
    base = {"table": "drift", "kind": "gradients", "lag": 100, "mode": "recovery", "space": "full"}
    context = {"optimizer": "adam:1e-3", "control": 1.0, "chance": 0.001, "moved": 20.0}
    return [
        base | context | {"seed": s, "ratio": r, "control": 1.0 + 1e-3 * s} | changes
        for s, r in enumerate(ratios)
    ]


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        (FAST, "supported"),
        ([0.90, 0.91, 0.92], "contradicted"),
        ([0.50, 0.70, 0.90], "undecided"),
        ([0.30, 0.31], "supported"),
        ([0.30], "undecided"),
        ([], "undecided"),
    ],
)
def test_the_word(ratios: list[float], verdict: str) -> None:
    assert decide(drifts(ratios)).verdict == verdict


def test_an_undecided_ratio_says_how_many_seeds_would_settle_it() -> None:
    needs = decide(drifts([0.50, 0.60, 0.75])).decision.needs
    assert (needs.unit, needs.n) == ("seed", 3)
    assert needs.about > 3
    one = decide(drifts([0.3])).decision.needs
    assert (one.n, one.about) == (1, None)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"chance": 0.19}, "supported"),
        ({"chance": 0.21}, "not testable"),
        ({"moved": 1.1}, "supported"),
        ({"moved": 0.9}, "not testable"),
        ({"moved": 0.0}, "not testable"),
        ({"control": 0.96}, "supported"),
        ({"control": 0.94}, "not testable"),
    ],
)
def test_the_premises(changes: dict[str, float], verdict: str) -> None:
    """Fresh bases hold 5 times chance, the loss moved beyond its noise, the control is whole."""
    assert decide(drifts(FAST, **changes)).verdict == verdict


@pytest.mark.parametrize("other", [{"chance": 0.5}, {"moved": 0.01}])
def test_a_path_without_a_premise_is_not_hidden_by_the_others(other: dict[str, float]) -> None:
    """The mean of the energies over chance is 5,001, and that of the changes over noise 2.5."""
    rows = drifts(FAST, chance=1e-4, moved=5.0) + drifts(FAST, optimizer="sgd:1", **other)
    assert decide(rows).verdict == "not testable"


def test_rows_without_the_column_say_what_the_criteria_alone_say() -> None:
    """Stored runs of earlier versions have no column for the change of the loss."""
    for ratios, alone in ((FAST, "supported"), ([0.9, 0.91, 0.92], "contradicted")):
        finding = decide(drifts(ratios, moved=None))
        assert finding.verdict == "not testable"
        assert f"the criteria alone say {alone}" in finding.why


def test_an_interval_that_touches_its_line_is_not_beyond_it() -> None:
    assert decide(drifts([0.7, 0.7])).verdict == "undecided"
    for premise in ({"control": 0.95}, {"chance": 0.2}, {"moved": 1.0}):
        assert decide(drifts([0.3, 0.3], **premise)).verdict == "not testable"


def test_only_gradients_at_lag_100_decide() -> None:
    rows = drifts(FAST) + drifts([0.9] * 3, lag=10) + drifts([0.9] * 3, kind="updates")
    assert decide(rows).verdict == "supported"


def test_a_network_that_was_made_on_its_tasks_is_not_fine_tuned_on_them() -> None:
    experiment = EXPERIMENTS["basis-drift"]
    for preset in ("smoke", "demo", "cpu", "gpu"):
        made, pretrained = (experiment.settings(preset, kind) for kind in (MADE, MODEL))
        # The preset cpu leaves fine-tuning out, so that a large model takes hours, not days.
        both = ("recovery",) if preset == "cpu" else ("recovery", "finetune")
        assert (made.modes, pretrained.modes) == (("recovery",), both)
        assert replace(made, modes=pretrained.modes) == pretrained


def half_life(space: str, low: float, high: float | None) -> dict[str, Any]:
    keys = {"table": "half_life", "kind": "gradients", "mode": "recovery", "space": space}
    ends = {"steps": None, "steps_low": low, "steps_high": high, "longest": 200}
    return {**keys, "optimizer": "adam:1e-3", **ends}


LIFE = ("half-life above", "half-life at most", "runs halved", "runs", "longest lag")


@pytest.mark.parametrize(
    ("ends", "bracket"),
    [
        ([(50.0, 100.0), (100.0, None), (100.0, None)], (50.0, 100.0, 1, 3, 200)),
        ([(50.0, 100.0), (5.0, 10.0), (20.0, 50.0)], (5.0, 100.0, 3, 3, 200)),
        ([(0.0, 1.0), (0.0, 1.0), (0.0, 1.0)], (0.0, 1.0, 3, 3, 200)),
        ([(100.0, None), (200.0, None), (200.0, None)], (100.0, None, 0, 3, 200)),
    ],
)
def test_half_lives_of_several_runs_are_one_bracket_around_all(
    ends: list[tuple[float, float | None]], bracket: tuple[float | None, ...]
) -> None:
    lives = [half_life("full", low, high) for low, high in ends]
    (table,) = decide(drifts([0.5, 0.6, 0.7]) + lives).breakdowns
    (row,) = table.rows
    assert tuple(row[name] for name in LIFE) == bracket
    assert row["ratio"] == pytest.approx(0.6)


def test_stored_half_lives_between_two_looks_are_read_as_brackets() -> None:
    """Also of updates, which are not measured within the first window."""
    keys = {"seed": 0, "space": "full", "mode": "m", "task": "t", "optimizer": "o", "k": 2}
    rows: Planted = []
    looks = {"gradients": {1: 0.9, 10: 0.4, 100: 0.1}, "updates": {30: 0.2, 60: 0.1}}
    for kind, ratios in looks.items():
        own = {**keys, "kind": kind}
        for lag, ratio in ratios.items():
            rows.append({"table": "drift", **own, "lag": lag, "ratio": ratio, "displacement": 0.1})
        rows.append({"table": "half_life", **own, "steps": 8.2, "distance": 0.09, "longest": 100.0})
    before = [dict(row) for row in rows]
    reread = EXPERIMENTS["basis-drift"].reread
    found = [row for row in reread(rows) if row["table"] == "half_life"]
    assert rows == before
    assert [str(brackets.bracket_of(row)) for row in found] == ["between 1 and 10", "at most 30"]
    assert [row["steps"] for row in found] == [None, None]
    assert [row["distance_high"] for row in found] == [0.1, 0.1]
    # Rows that have brackets already are left unchanged.
    assert reread(found) == found


def test_spaces_with_the_same_optimiser_are_told_apart() -> None:
    rows = drifts([0.2, 0.2, 0.2], control=1.0)
    rows += drifts([0.4, 0.4, 0.4], space="lora", control=0.96875, chance=0.125, moved=3.0)
    rows.append(half_life("lora", 100.0, None))
    (table,) = decide(rows).breakdowns
    names = ("space", "ratio", "seeds", "frozen control", "random basis")
    assert [tuple(row[name] for name in names) for row in table.rows] == [
        ("full", pytest.approx(0.2), 3, 1.0, pytest.approx(0.001)),
        ("lora", pytest.approx(0.4), 3, 0.96875, 0.125),
    ]
    assert [row["change of the loss over its noise"] for row in table.rows] == [20.0, 3.0]
    assert [tuple(row[name] for name in LIFE) for row in table.rows] == [
        (None, None, 0, 0, None), (100.0, None, 0, 1, 200)
    ]  # fmt: skip


def test_a_caution_on_damage_that_did_nothing_has_the_first_reason() -> None:
    rows = [{"table": "notes", "seed": 0, "note": "weights measured in torch.float32"}]
    assert decide([*drifts([0.2, 0.2]), *rows]).notes == ()
    reasons = ("the loss went from 1.85 to 1.56", "the loss went from 1.85 to 1.60")
    rows += [{"table": "notes", "note": f"labels left out: {reason}"} for reason in reasons]
    (caution,) = decide([*drifts([0.2, 0.2]), *rows]).notes
    assert all(words in caution for words in ("labels", "2 times", reasons[0]))


def rows_of(chart: Any) -> Planted:
    """The rows of the data set that most layers share."""
    return max(chart.to_dict()["datasets"].values(), key=len)


def test_the_drift_chart_has_a_panel_for_every_space_and_the_level_of_the_rule() -> None:
    rows = [row for space in ("full", "lora") for row in drifts([0.5, 0.5], space=space)]
    data = rows_of(drift_chart(rows))
    assert {row["panel"] for row in data} == {"recovery, all weights", "recovery, LoRA"}
    level = {row["optimizer"]: row["value"] for row in data}["C3: below 0.7"]
    assert level == findings.CEILING


def path(ratios: list[float], **changes: Any) -> Planted:
    """Ratios of one seed at lags 1, 2, 4 and so on, at a distance of 0.1 per step."""
    return [
        row | {"lag": 2**i, "displacement": 0.1 * 2**i} | changes
        for i, ratio in enumerate(ratios)
        for row in drifts([ratio])
    ]


def test_a_ring_is_where_a_line_falls_below_a_half() -> None:
    """From 1 at step 1 to 0.25 at step 2 a half is two thirds of the way, on a logarithmic axis."""
    rings = [row for row in rows_of(drift_chart(path([1.0, 0.25, 0.6, 0.1]))) if row.get("says")]
    assert [(row["value"], row["says"]) for row in rings] == [(0.5, "between 1 and 2 steps")]
    assert rings[0]["lag"] == pytest.approx(2 ** (2 / 3), rel=1e-5)
    assert not any(row.get("says") for row in rows_of(drift_chart(path([1.0, 0.9, 0.5]))))


def test_the_title_has_the_factors_in_steps_and_in_distance() -> None:
    """Ten times the rate: half is gone in a quarter of the steps, at the same distance."""
    slow = path([1.0, 1.0, 0.75, 0.25], optimizer="adam:1e-4")
    fast = path([0.75, 0.25], optimizer="adam:1e-3")
    for row in fast:
        row["displacement"] *= 4
    found = findings.distance_finding(slow + fast)
    factors = re.search(r"factor of ([\d.]+) in steps and of ([\d.]+) in distance", found)
    assert factors is not None
    assert [float(factor) for factor in factors.groups()] == [4.0, 1.0]
    assert findings.distance_finding(slow) == ""
    assert findings._by_rate(slow + fast) == ["adam:1e-4", "adam:1e-3"]


def losses(*rows: float) -> Losses:
    return Losses(torch.tensor(rows, dtype=torch.float64), torch.ones(len(rows), dtype=torch.int64))


def test_the_change_of_the_loss_is_counted_in_half_widths_of_its_interval() -> None:
    """Differences 1, 2, 3: mean 2, half width 4.302653 / sqrt(3)."""
    path = {0: losses(4.0, 4.0, 4.0), 5: losses(3.0, 2.0, 1.0)}
    cells = _loss_cells(path, 5)
    assert (cells["loss"], cells["loss_0"]) == (2.0, 4.0)
    assert cells["moved"] == pytest.approx(2 / (4.302652729911275 / 3**0.5))
    assert _loss_cells({0: path[5], 5: path[0]}, 5)["moved"] == pytest.approx(cells["moved"])
    assert _loss_cells(path, 7) == {"loss": None, "loss_0": 4.0, "moved": None}


def test_nothing_moved_without_a_change_and_one_example_has_no_interval() -> None:
    still = losses(4.0, 3.0)
    assert _loss_cells({0: still, 5: still}, 5)["moved"] == 0.0
    assert _loss_cells({0: losses(4.0), 5: losses(3.0)}, 5)["moved"] is None


@pytest.mark.usefixtures("rows")
def test_the_column_of_a_small_run() -> None:
    """Steps of length 0 move nothing, and training moves the loss beyond its noise."""
    experiment = EXPERIMENTS["basis-drift"]
    found = {}
    for optimizer in ("sgd:0", "adam:1e-3"):
        changes = {"modes": ("finetune",), "lags": (8,), "n": 6, "k": 2, "train_steps": 20}
        config = replace(small("basis-drift", **changes), optimizers=(optimizer,), window=6)
        (cell,) = experiment.cells(config)
        rows = list(experiment.run(config, cell))
        found[optimizer] = next(r for r in rows if r["table"] == "drift" and r["lag"] == 8)
    assert found["sgd:0"]["moved"] == 0.0
    assert found["sgd:0"]["loss"] == found["sgd:0"]["loss_0"]
    moving = found["adam:1e-3"]
    assert moving["loss"] < moving["loss_0"]
    assert moving["moved"] > 1


def test_lora_is_judged_in_the_weights_as_a_case_of_its_own() -> None:
    """And the difference is paired by seed: 0.2, 0.2, 0.23, standard error 0.01."""
    rows = drifts([0.5, 0.6, 0.7], space="lora", coordinates="factors")
    assert [finding.case for finding in findings.decide(rows)] == [""]
    rows += drifts([0.3, 0.4, 0.47], space="lora", coordinates="weights")
    factors, weights = findings.decide(rows)
    assert (factors.case, weights.case) == ("", "in the weights")
    assert (factors.estimate.value, weights.estimate.value) == pytest.approx((0.6, 0.39))
    assert "in the weights" in weights.why
    (row,) = factors.breakdowns[-1].rows
    half = 4.302652729911275 * 0.01
    assert (row["difference"], row["seeds"]) == (pytest.approx(0.21), 3)
    assert (row["low"], row["high"]) == pytest.approx((0.21 - half, 0.21 + half))
    alone = drifts([0.5, 0.6, 0.7], space="lora", coordinates="factors")
    assert drift_chart(rows).to_dict() == drift_chart(alone).to_dict()
