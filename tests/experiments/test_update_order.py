"""Rows of `update-order`, and its rules C8 and C9 on rows with known verdicts."""

import json
from dataclasses import replace

import pytest
import torch
from scipy import stats

from experiments.parts import parts
from experiments.small import small
from frenet._errors import UsageError
from frenet.experiments import EXPERIMENTS
from frenet.experiments.setup.networks import build
from frenet.experiments.update_order import measure
from frenet.experiments.update_order.figures import OTHER, SAME
from frenet.experiments.update_order.findings import counted, fragile, predicted
from frenet.network.space import ParamSpace
from network.models import tiny_llama, tiny_tokenizer

EXPERIMENT = EXPERIMENTS["update-order"]


def table(rows, name, **keys):
    return [
        row
        for row in rows
        if row["table"] == name and all(row.get(key) == value for key, value in keys.items())
    ]


def test_pairs_of_tasks_and_of_minibatches_agree_with_the_bracket(rows):
    """In both spaces, near the point: ratio and cosine 1, far from what random steps say."""
    mine = rows["update-order"]
    for space, places in (("full", {"weights"}), ("lora", {"factors", "weights"})):
        near = table(mine, "order", space=space, fraction=0.01)
        assert {row["coordinates"] for row in near} == places
        assert {row["kind"] for row in near} == {OTHER, SAME}
        for row in near:
            assert row["ratio"] == pytest.approx(1.0, abs=0.05)
            assert row["cosine"] > 0.99
            assert row["rounding"] < 1e-3
            assert row["null_ratio"] > 1.5
            assert abs(row["null_cosine"]) < row["cosine"]
            assert row["difference"] == pytest.approx(row["ratio"] * row["predicted"])
    assert {(row["first"], row["second"]) for row in table(mine, "bracket", kind=OTHER)} == {
        ("copy", "sort")
    }


def test_onset_window_and_nulls_are_consistent(rows):
    mine = rows["update-order"]
    windows = {(row["space"], row["task"]): row["window"] for row in table(mine, "window")}
    for row in table(mine, "bracket"):
        assert row["onset"] == pytest.approx(0.1 / row["kappa"])
        assert row["floor"] < row["rounding"] < row["kappa"] / 10
        assert row["null_kappa"] < row["kappa"]
        assert row["inside"] == (row["onset"] < row["window"])
        assert row["window"] == min(
            windows[row["space"], name] for name in (row["first"], row["second"])
        )


def test_gradient_steps_have_no_memory_and_adam_has(rows):
    steps = table(rows["update-order"], "optimizer")
    for row in steps:
        sgd = str(row["optimizer"]).startswith("sgd")
        assert (row["frozen"] < 1e-9) == sgd
        assert row["state"] in (("fresh",) if sgd else ("fresh", "carried"))
    assert {row["state"] for row in steps} == {"fresh", "carried"}


def test_trainings_have_equal_length_and_the_spread_of_one_order(rows):
    stretches = table(rows["update-order"], "stretch", space="full")
    assert len(stretches) == 2 * 2 * 4  # optimisers, replicates, orders
    for row in stretches:
        assert (row["apart"] is None) == (row["order"] == "first, then second")
        assert row["spread"] > 0
        assert row["apart"] is None or row["apart"] > 0


def test_the_network_is_as_before_and_was_displaced_by_the_noise(monkeypatch, rows):
    """0.02 in every weight while it is measured, and nothing of it afterwards."""
    config = small("update-order", noise=0.02, spaces=("full",))
    (cell,) = EXPERIMENT.cells(config)
    network = build(config, space="full", seed=0)
    monkeypatch.setattr(measure, "build", lambda *_, **__: network)
    space, seen = ParamSpace.select(network.model), []
    before = space.read(network.model)
    monkeypatch.setattr(measure, "_rows", lambda s: [seen.append(space.read(s.network.model))])
    list(measure.run(config, cell))
    moved = seen[0] - before
    assert float(moved.std()) == pytest.approx(0.02, rel=0.05)
    assert torch.equal(space.read(network.model), before)


def test_a_fresh_adapter_is_trained_on_all_tasks_first(monkeypatch, rows):
    config = small("update-order", spaces=("lora",))
    (cell,) = EXPERIMENT.cells(config)
    seen = []

    def watch(spot):
        seen.append(spot.space.read(spot.network.model))
        return []

    monkeypatch.setattr(measure, "_rows", watch)
    list(measure.run(config, cell))
    network = build(config, space="lora", seed=0)
    parts = network.space.unflatten(seen[0])
    assert all(part.any() for part in parts.values())


def test_a_task_below_its_rounding_is_left_out_with_a_note(rows, monkeypatch):
    """And one task alone has no pairs but those of its own minibatches."""
    from frenet.measure import lie_bracket

    real = lie_bracket.norm_over_rounding
    monkeypatch.setattr(
        lie_bracket, "norm_over_rounding",
        lambda model, task, batch, *, space: 1e-9
        if task.name == "sort"
        else real(model, task, batch, space=space),
    )  # fmt: skip
    config = small("update-order", spaces=("full",))
    (cell,) = EXPERIMENT.cells(config)
    mine = list(EXPERIMENT.run(config, cell))
    (note,) = [row for row in table(mine, "notes") if str(row["note"]).startswith("sort left out")]
    assert "times its rounding error" in note["note"]
    assert {row["kind"] for row in table(mine, "bracket")} == {SAME}
    assert predicted(mine)[0].verdict == fragile(mine)[0].verdict == "not testable"


def test_on_a_language_model_pairs_of_text_tasks_are_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("FRENET_CACHE", str(tmp_path))
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [
        {"task": task, "input": f"{i}", "output": f"{i + step}"}
        for i in range(40)
        for task, step in (("next", 1), ("after", 2))
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = replace(
        EXPERIMENT.presets["lm"], seeds=(0,), learn_steps=20, fractions=(0.1,), carried=2, steps=2,
        model=str(tmp_path / "model"), tasks=(str(file),),
    )  # fmt: skip
    (cell,) = EXPERIMENT.cells(config)
    mine = list(EXPERIMENT.run(config, cell))
    found = table(mine, "order", kind=OTHER)
    assert {row["coordinates"] for row in found} == {"factors", "weights"}
    assert all(row["ratio"] == pytest.approx(1.0, abs=0.1) for row in found)
    (fewer,) = [row["note"] for row in table(mine, "notes") if "fewer" in str(row["note"])]
    assert "next has 6 test rows, not 32" in fewer


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(UsageError, match="--precision float16; pass float64 or float32"):
        EXPERIMENT.cells(replace(EXPERIMENT.presets["smoke"], precision="float16"))
    with pytest.raises(UsageError, match=r"--fractions got 0\.0 0\.1; pass one or more"):
        EXPERIMENT.cells(replace(EXPERIMENT.presets["smoke"], fractions=(0.0, 0.1)))


def orders(*, seeds=5, pairs=20, ratio=1.01, cosine=0.999, far=0, **more):
    """Rows of gradient steps: ``far`` of the pairs in each seed at twice the prediction."""
    at = {"table": "order", "space": "full", "coordinates": "weights", "kind": OTHER}
    return [
        {
            **at, "seed": s, "first": "a", "second": str(i), "fraction": 0.1, "of_onset": 0.1,
            "ratio": 2.0 if i < far else ratio + 1e-3 * s, "cosine": cosine - 1e-4 * s,
            "null_ratio": 40.0, "null_cosine": 0.0, "rounding": 1e-6, **more,
        }
        for s in range(seeds)
        for i in range(pairs)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [
        ({}, "supported"),
        ({"ratio": 1.1}, "contradicted"),
        ({"ratio": 0.9}, "contradicted"),
        ({"cosine": 0.97}, "contradicted"),
        ({"far": 1}, "supported"),
        ({"far": 4}, "contradicted"),
        ({"seeds": 1}, "undecided"),
        ({"of_onset": 0.5}, "not testable"),
        ({"of_onset": 0.005}, "not testable"),
        ({"kind": SAME}, "not testable"),
    ],
)
def test_c8(settings, verdict):
    assert predicted(orders(**settings))[0].verdict == verdict


def test_c8_counts_step_sizes_at_the_ends_of_the_range():
    assert len(counted(orders(of_onset=0.01 * (1 - 1e-9)))) == 100
    assert len(counted(orders(of_onset=0.3 * (1 + 1e-9)))) == 100
    assert counted(orders(of_onset=0.0099)) == []


def test_c8_shows_apart_what_lies_inside_the_window_of_single_steps():
    """Near the prediction inside, far from it beyond."""
    inside = orders(of_window=1.0)
    beyond = [row | {"second": f"x{i}"} for i, row in enumerate(orders(of_window=1.1, ratio=3.0))]
    found = parts(predicted([*inside, *beyond])[0], "Share of pairs near the prediction")
    shares = {row["step"]: (row["within 0.1 of the prediction"], row["pairs"]) for row in found}
    assert shares == {"inside the window": (1.0, 100), "beyond it": (0.0, 100)}


def test_c8_shows_medians_that_one_pair_far_beyond_its_window_does_not_move():
    far = [row | {"ratio": 900.0} if row["second"] == "0" else row for row in orders()]
    (row,) = parts(predicted(far)[0], "Median over pairs")
    assert row["measured / predicted"] == pytest.approx(1.012)
    assert (row["by random steps"], row["seeds"]) == (40.0, 5)


def test_c8_of_lora_is_judged_in_the_weights_apart():
    factors = orders(space="lora", coordinates="factors")
    weights = orders(space="lora", coordinates="weights", ratio=1.2)
    one, other = predicted([*factors, *weights])
    assert (one.verdict, one.case) == ("supported", "")
    assert (other.verdict, other.case) == ("contradicted", "in the weights")
    (difference,) = parts(one, "LoRA: measured over predicted")
    assert difference["difference"] == pytest.approx(-0.19)


def test_c8_warns_of_an_optimiser_that_remembers():
    step = {
        "table": "optimizer", "space": "full", "coordinates": "weights", "seed": 0, "kind": OTHER,
        "first": "a", "second": "b", "optimizer": "adam:1e-4", "state": "carried",
        "difference": 0.5, "frozen": 0.49, "curvature": 0.02, "onset": 0.1,
    }  # fmt: skip
    (note,) = predicted([*orders(), step])[0].notes
    assert "Of adam:1e-4 (carried) two orders differ mostly" in note
    assert predicted([*orders(), step | {"frozen": 0.01}])[0].notes == ()


def brackets(*, inside=12, pairs=20, seeds=5, **more):
    at = {"table": "bracket", "space": "full", "coordinates": "weights", "kind": OTHER}
    return [
        {
            **at, "seed": s, "first": "a", "second": str(i), "inside": i < inside + s % 2,
            "null_inside": False, "onset": 0.1, "null_onset": 9.0, "window": 0.2, "kappa": 1.0,
            "floor": 1e-8, "clear_first": 1e5, "clear_second": 1e5, **more,
        }
        for s in range(seeds)
        for i in range(pairs)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [
        ({}, "supported"),
        ({"inside": 2}, "contradicted"),
        ({"inside": 6}, "undecided"),
        ({"seeds": 1}, "undecided"),
        ({"clear_first": 9.9}, "not testable"),
        ({"clear_second": 9.9}, "not testable"),
        ({"clear_first": None}, "supported"),
        ({"kind": SAME}, "not testable"),
    ],
)
def test_c9(settings, verdict):
    assert fragile(brackets(**settings))[0].verdict == verdict


def test_c9_shows_every_pair_beside_its_window():
    pairs = parts(fragile(brackets())[0], "Step size from which on")
    assert pairs[0]["pair"] == "a, 0"
    assert [pair["inside the window"] for pair in pairs] == [1.0] * 12 + [0.4] + [0.0] * 7
    assert pairs[0]["onset"] == pairs[0]["window of single steps"] / 2


def test_c9_shows_an_interval_of_shares_and_is_judged_by_the_raw_one():
    """One pair of 20 in one of five seeds: Student's interval begins below 0."""
    rows = [row | {"inside": (row["seed"], row["second"]) == (4, "0")} for row in brackets()]
    value = fragile(rows)[0].estimate
    half = stats.t.ppf(0.975, 4) * 0.01
    assert value.value == pytest.approx(0.01)
    assert value.raw == pytest.approx((0.01 - half, 0.01 + half))
    assert 0 <= value.low < value.value < value.high < 1


def test_c9_leaves_out_pairs_whose_window_is_not_known():
    unknown = [row | {"inside": None, "second": f"x{i}"} for i, row in enumerate(brackets())]
    found = fragile([*brackets(), *unknown])[0]
    assert found.estimate.value == pytest.approx(fragile(brackets())[0].estimate.value)
    assert found.reference_estimate.value == 0.0
