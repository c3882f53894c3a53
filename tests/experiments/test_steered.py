"""Steering: a planted link shows, random labels do not, and rules decide as they are written."""

import dataclasses

import numpy as np
import pytest

from experiments.parts import parts
from experiments.planted_links import planted
from frenet.experiments import EXPERIMENTS
from frenet.experiments.experiment import MODEL, Cell
from frenet.experiments.setup.contrast_notes import cautions
from frenet.experiments.setup.contrasts import (
    Steered,
    SteeringConfig,
    behaviours,
    cells,
    describe,
    steered,
    two_words,
)
from frenet.experiments.setup.knowledge import UNKNOWN, agreement, known_state, known_text
from frenet.experiments.steering_effect import findings as effect_findings
from frenet.experiments.steering_effect import measure as effect_measure
from frenet.experiments.steering_effect.measure import equal_size
from frenet.experiments.step_vs_vector import findings as step_findings
from frenet.experiments.step_vs_vector import measure as step_measure
from frenet.network.data.contrast import Contrast, Item
from network.models import tiny_llama, tiny_tokenizer

ALL = pytest.mark.parametrize("findings", [step_findings, effect_findings])


OWN = Cell.of(seed=0, space="full", behaviour="planted", push="own")


def asked(subject: Steered) -> list[dict[str, object]]:
    """The rows on what a network knows."""
    return describe(SteeringConfig(), subject, OWN).rows


def test_what_a_model_knows_comes_with_its_interval_over_prompts() -> None:
    (known,) = asked(planted(0))
    assert known["separation"] > 0.75
    assert 0.5 < known["known_low"] < known["separation"] < known["known_high"] <= 1.0
    assert (known["prompts"], known["unit"], known["chance"]) == (88, "prompt", 0.5)
    unknown, note = asked(planted(0, known=0.0))
    assert unknown["known_low"] < 0.5 < unknown["known_high"]
    assert "does not know the labels" in note["note"]
    swapped, note = asked(planted(0, swapped=True))
    assert swapped["known_high"] < 0.25
    assert "answers swapped" in note["note"]
    few, *notes = asked(planted(0, rows=12))
    assert few["prompts"] == 12
    assert any("too narrow" in note["note"] for note in notes)


def test_what_a_model_does_not_know_can_be_left_out() -> None:
    flipped = Cell.of(seed=0, space="full", behaviour="planted", push="flipped")
    for known, known_only, measured in ((1.0, True, True), (0.0, False, True), (0.0, True, False)):
        subject, config = planted(0, known=known), SteeringConfig(known_only=known_only)
        assert describe(config, subject, OWN).measured == measured
        assert describe(config, subject, flipped) == ([], measured)


@ALL
def test_a_contrast_that_was_left_out_as_unknown_decides_with_its_number(findings) -> None:
    row = {
        "table": "behaviour", "seed": 0, "space": "full", "behaviour": "planted", "unit": "prompt",
        "prompts": 88, "accuracy": 0.5, "separation": 0.48, "known_low": 0.36, "known_high": 0.6,
    }  # fmt: skip
    (finding,) = findings.decide([row])
    assert finding.decision.verdict == "not testable"
    assert "0.48 [0.36, 0.6]" in finding.decision.why


def test_choices_are_known_by_their_accuracy() -> None:
    """14 of 20 right: Clopper and Pearson's interval is 0.457 to 0.881."""
    letters = [Item("t", [5, i], ([5, i, 0], [5, i, 1]), None, i) for i in range(2, 22)]
    contrast = Contrast("letters", "choices", ("A", "B"), tuple(letters))
    differences = np.array([1.0] * 14 + [-1.0] * 6)
    row = agreement(contrast, differences)
    assert (row["accuracy"], row.get("separation")) == (0.7, None)
    assert (row["known_low"], row["known_high"]) == pytest.approx((0.4572, 0.8811), abs=1e-4)
    assert known_state(row) == UNKNOWN
    assert known_text(row) == "accuracy 0.70 [0.46, 0.88], chance 0.5"


def test_one_third_of_the_prompts_chooses_and_no_prompt_is_in_two_parts() -> None:
    subject = planted(0)
    sizes = {name: len(part.items) for name, part in subject.parts.items()}
    assert sizes == {"choose": 132, "push": 88, "moved": 88, "report": 88}
    assert subject.tested == 264
    seen = [item.line for part in subject.parts.values() for item in part.items]
    assert len(set(seen)) == len(seen)
    for part in subject.parts.values():
        assert len(part.of_class(True)) == len(part.of_class(False))
    few = planted(0, rows=20).parts
    assert {name: len(part.items) for name, part in few.items()} == {
        "choose": 30, "push": 20, "moved": 20, "report": 20
    }  # fmt: skip


def test_a_network_that_is_the_same_for_all_seeds_is_measured_once(tmp_path) -> None:
    tiny_llama(width=8).save_pretrained(tmp_path)
    tiny_tokenizer(" y", " n").save_pretrained(tmp_path)
    config = SteeringConfig(
        model=str(tmp_path), tasks=("frenet:comparisons",), words=("y", "n"), seeds=(3, 4, 5)
    )
    (cell, _) = cells(config)
    assert cell.seed == 3
    assert any("seeds 4, 5: not measured" in note for note in steered(config, cell).notes)
    synthetic = SteeringConfig(seeds=(3, 4, 5))
    assert {cell.seed for cell in cells(synthetic)} == {3, 4, 5}


def test_the_other_contrasts_of_a_source_come_along() -> None:
    config = SteeringConfig(width=16, train_steps=1, rows=8, only=("count",), seeds=(0,))
    assert [c.name for c in steered(config, cells(config)[0]).others] == ["parity", "maximum"]


@ALL
def test_contrasts_that_were_not_measured_come_first_among_cautions(findings) -> None:
    table = "layer" if findings is step_findings else "slope"
    base = {"seed": 0, "space": "full"}
    rows = [
        {"table": table, **base, "behaviour": "b"},
        {"table": "notes", **base, "behaviour": "gone", "note": "12 prompts"},
        {"table": "notes", **base, "behaviour": "gone", "note": "no words"},
        {"table": "notes", **base, "behaviour": "b", "note": "another"},
        {"table": "behaviour", **base, "behaviour": "b", "unit": "prompt", "prompts": 12},
    ]
    first, second = cautions(rows, table)
    assert first == "gone was left out: no words."
    assert second == "There are fewer than 20 reported prompts: b (12)."


def test_an_effect_that_is_never_reached_is_counted_and_has_no_dose() -> None:
    base = {"table": "equal", "way": "weight step", "kl_random": 0.25}
    kl = {None: None, 0.125: 0.5}
    for sizes, reached in (([0.125, None, 0.125], 2), ([None] * 3, 0), ([0.125] * 3, 3)):
        rows = [base | {"seed": s, "size": x, "kl": kl[x]} for s, x in enumerate(sizes)]
        (finding,) = effect_findings.decide(rows)
        (row,) = parts(finding, "At equal effect")
        dose, cost = (0.125, 0.5) if reached else (None, None)
        assert (row.get("dose"), row["KL"], row["KL of a random vector"]) == (dose, cost, 0.25)
        assert (row["cases that reach the effect"], row["cases"]) == (reached, 3)


@pytest.mark.parametrize("target", [0.6, -0.6, 1.7])
def test_sizes_of_equal_effect(target: float) -> None:
    """3 a - a^2 to 2%, from either side; what is out of reach is None."""
    sign = 1 if target > 0 else -1

    def value(size: float) -> float:
        return 5 + sign * (3 * size - size**2)

    found = equal_size(value, target, 0.1, before=5.0)
    assert found is not None
    assert value(found) - 5 == pytest.approx(target, rel=0.03)
    assert equal_size(value, 3.0 * sign, 0.1, before=5.0) is None


def test_a_size_that_takes_many_tries_is_found() -> None:
    """a^(1/10) = 0.3 far below the guess: the cell is not lost for it."""
    assert equal_size(lambda a: a**0.1, 0.3, 1.0) == pytest.approx(0.3**10, rel=0.03)


def test_settings_that_are_none() -> None:
    with pytest.raises(ValueError, match="no push 'up'; there are own and flipped"):
        cells(SteeringConfig(pushes=("up",)))
    with pytest.raises(ValueError, match="no contrast 'x'; there are parity, maximum, count"):
        cells(SteeringConfig(only=("x",)))
    with pytest.raises(ValueError, match="words=yes; pass two different ones"):
        two_words(("yes",))
    assert two_words(()) is None
    assert len(cells(dataclasses.replace(SteeringConfig(), seeds=(0,)))) == 6


def test_only_contrasts_that_are_not_named_are_left_out() -> None:
    named = SteeringConfig(only=("count", "parity"), max_tasks=1)
    assert behaviours(named) == ("count", "parity")
    assert behaviours(dataclasses.replace(named, only=())) == ("parity",)


def test_pairs_have_no_answer(tmp_path):
    """Refused before anything is loaded; the message says which command takes pairs."""
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"positive": "I agree.", "negative": "I disagree."}\n' * 4)
    config = SteeringConfig(model="m", tasks=(str(file),))
    with pytest.raises(ValueError, match=r"pairs of texts, .*'frenet steer extract' takes pairs"):
        cells(config)


@pytest.mark.parametrize(
    ("experiment", "findings"), [(step_measure, step_findings), (effect_measure, effect_findings)]
)
def test_answers_that_include_each_other_are_left_out_with_the_remedy(
    tmp_path, experiment, findings
) -> None:
    """One note in place of rows; other words are measured."""
    tiny_llama(width=8).save_pretrained(tmp_path)
    tiny_tokenizer(" y", " n").save_pretrained(tmp_path)
    config = experiment.Config(
        model=str(tmp_path), tasks=("frenet:comparisons",), seeds=(0,), words=("yes", "yes it is")
    )
    rows = [row for cell in cells(config) for row in experiment.run(config, cell)]
    (row,) = rows
    assert row["note"].startswith("to this tokenizer one answer to ")
    assert row["note"].endswith("; pass two other words as --words to frenet run")
    (finding,) = findings.decide(rows)
    reason = f"comparisons was left out: {row['note']}"
    assert (finding.verdict, finding.why, finding.notes) == ("not testable", reason, ())
    known = dataclasses.replace(config, words=("y", "n"))
    steered(known, cells(known)[0])


@pytest.mark.parametrize("experiment", ["step-vs-vector", "steering-effect"])
def test_answers_of_several_tokens_are_measured(experiment, shared) -> None:
    """stories260K: a space, which is read with the prompt, and two tokens for either answer."""
    declared = EXPERIMENTS[experiment]
    config = dataclasses.replace(
        declared.settings("smoke", MODEL), model=str(shared / "models" / "stories260K"),
        tasks=("frenet:comparisons",), blocks=(1, 4),
    )  # fmt: skip
    (cell,) = cells(config)
    rows = list(declared.run(config, cell))
    main = {"step-vs-vector": "layer", "steering-effect": "slope"}[experiment]
    assert {row["table"] for row in rows} >= {"behaviour", main, "notes"}
    assert any("every answer is 2 tokens; " in str(row.get("note")) for row in rows)
    values = [v for row in rows for v in row.values() if isinstance(v, float)]
    assert np.isfinite(values).all()
