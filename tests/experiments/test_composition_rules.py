"""Composition: the rule of C10, its rows on a small network, and what is refused."""

import math

import pytest
import torch

from experiments.small import small
from frenet.experiments import EXPERIMENTS
from frenet.experiments.composition.directions import contexts
from frenet.experiments.composition.findings import DEPTHS, decide
from frenet.experiments.composition.measure import depth_names, depths
from frenet.experiments.composition.tables import STEPS, VECTORS
from frenet.experiments.intervals import select
from frenet.network.tasks import collate
from measure.quadratic import ROWS


def positions(errors, *, noise=0.2, depth=DEPTHS[-1], space="full", kind=VECTORS):
    return [
        {
            "table": "position", "seed": seed, "space": space, "kind": kind, "first": "a",
            "second": "b", "depth": depth, "error": error, "random": 0.1, "noise": noise,
            "each": error,
        }
        for seed, error in enumerate(errors)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("errors", "noise", "word"),
    [
        ([0.30, 0.32, 0.34], 0.2, "supported"),
        ([0.05, 0.06, 0.07], 0.2, "contradicted"),
        ([0.10, 0.20, 0.30], 0.2, "undecided"),
        ([0.30], 0.2, "undecided"),
        ([0.30, 0.32, 0.34], 0.5, "not testable"),
    ],
)
def test_words(errors, noise, word):
    (found,) = decide(positions(errors, noise=noise))
    assert found.verdict == word
    assert found.estimate.value == pytest.approx(sum(errors) / len(errors))
    assert found.reference_estimate.value == pytest.approx(0.1)


def test_every_block_and_space_is_a_case_of_its_own():
    rows = [
        *positions([0.3, 0.32, 0.34], depth=DEPTHS[-1]),
        *positions([0.05, 0.06, 0.07], depth=DEPTHS[0]),
        *positions([0.3, 0.32, 0.34], space="lora"),
    ]
    found = {one.name: one.verdict for one in decide(rows)}
    assert found == {
        "C10 at depth 1/3": "contradicted",
        "C10 at the last block": "supported",
        "C10 at the last block with LoRA": "supported",
    }


def test_first_steps_decide_nothing():
    (found,) = decide(positions([0.3, 0.32, 0.34], kind=STEPS))
    assert found.verdict == "not testable"


def test_the_seed_is_the_unit():
    """Ten pairs of one seed are one value."""
    (found,) = decide([row for row in positions([0.3, 0.32]) for _ in range(10)])
    assert found.estimate.n == 2


@pytest.mark.parametrize(
    ("blocks", "chosen"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (12, [3, 7, 11])]
)
def test_blocks_are_at_a_third_at_two_thirds_and_the_last(blocks, chosen):
    assert depths(blocks) == chosen
    names = depth_names(chosen)
    assert list(names) == chosen
    assert names[chosen[-1]] == DEPTHS[-1]
    assert len(chosen) < 2 or names[chosen[0]] == DEPTHS[0]


def test_prompts_end_before_the_first_target():
    assert contexts(collate(ROWS)) == [context for context, _ in ROWS]
    plain = {"input_ids": torch.tensor([[7, 8, 9]]), "labels": torch.tensor([[7, 8, 9]])}
    assert contexts(plain) == [[7]]


def test_rows_agree_with_each_other(rows):
    own = rows["composition"]
    for row in select(own, table="interaction"):
        sum_of_changes = row["change_first"] + row["change_second"]
        assert row["interaction"] == pytest.approx(row["change_both"] - sum_of_changes, abs=1e-6)
        alone = abs(row["change_first"]) + abs(row["change_second"])
        assert row["share"] == pytest.approx(abs(row["interaction"]) / alone)
    for row in select(own, table="radius"):
        keys = {k: row[k] for k in ("seed", "space", "kind", "first", "second", "task")}
        looked = select(own, table="interaction", known=True, **keys)
        inside = [r["s"] for r in looked if r["s"] <= row["radius_low"]]
        assert all(r["share"] <= row["eps"] for r in looked if r["s"] in inside)
        high = math.inf if row["radius_high"] is None else row["radius_high"]
        assert 0 <= row["low"] <= row["radius_low"] < high


def test_the_whole_of_a_block_row_is_the_interaction_at_full_scale(rows):
    own = rows["composition"]
    wholes = select(own, table="block", block="all")
    assert wholes
    for row in wholes:
        keys = {k: row[k] for k in ("seed", "space", "kind", "first", "second", "task")}
        (same,) = select(own, table="interaction", s=1.0, **keys)
        for name in ("interaction", "low", "high", "random"):
            assert row[name] == same[name]
        assert row["predicted"] == same["predicted"]
        parts = [r for r in select(own, table="block", **keys) if r["block"] != "all"]
        assert sum(r["predicted"] for r in parts) == pytest.approx(row["predicted"], rel=1e-6)
        (corner,) = select(own, table="map", x=1.0, y=1.0, **keys)
        assert corner["loss"] - corner["start"] == pytest.approx(same["change_both"], abs=1e-9)


def test_a_first_step_is_as_long_as_its_vector(rows):
    own = select(rows["composition"], table="pair")
    (vectors,), (steps,) = (select(own, kind=kind) for kind in (VECTORS, STEPS))
    for name in ("norm_first", "norm_second"):
        assert steps[name] == pytest.approx(vectors[name], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"only": (), "max_directions": 2}, "8 directions make 28 pairs, which take about 8,400"),
        ({"scales": (0.5, 2.0)}, "with 1 among them"),
        ({"scales": (0.0, 1.0)}, "pass scales above 0"),
        ({"eps": 1.5}, "pass eps in"),
        ({"prompts": 1}, "at least 2 prompts"),
        ({"grid": (0.5, 2.0)}, "--grid 0.5 2: pass 0 and 1 among them"),
    ],
)
def test_refusals(changes, said):
    with pytest.raises(ValueError, match=said):
        EXPERIMENTS["composition"].cells(small("composition", **changes))


def test_one_task_makes_no_pair(monkeypatch, tmp_path):
    monkeypatch.setenv("FRENET_CACHE", str(tmp_path))
    experiment = EXPERIMENTS["composition"]
    config = small("composition", only=("copy",), train_steps=2)
    (cell,) = experiment.cells(config)
    notes = [row["note"] for row in experiment.run(config, cell) if row["table"] == "notes"]
    assert any("copy alone makes no pair; pass at least two tasks" in note for note in notes)
