"""Steering: a planted link shows, random labels do not, and rules decide as they are written."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from experiments.parts import parts
from frenet.experiments import EXPERIMENTS
from frenet.experiments.experiment import MODEL, Cell
from frenet.experiments.setup.contrast_notes import cautions, known_labels
from frenet.experiments.setup.contrasts import (
    ONE_MODEL,
    PARTS,
    Steered,
    SteeringConfig,
    behaviours,
    cells,
    describe,
    steered,
    two_words,
)
from frenet.experiments.steering_effect import findings as effect_findings
from frenet.experiments.steering_effect import measure as effect_measure
from frenet.experiments.steering_effect.measure import equal_size
from frenet.experiments.step_vs_vector import Config
from frenet.experiments.step_vs_vector import findings as step_findings
from frenet.experiments.step_vs_vector import measure as step_measure
from frenet.experiments.step_vs_vector.measure import _layers, _shifts
from frenet.geometry.rng import generator
from frenet.methods.steering_effect import answer_directions, prompted
from frenet.network.data.contrast import Contrast, Item
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import Output
from network.models import tiny_llama, tiny_tokenizer

YES, NO, WIDTH, TOKENS = 0, 1, 24, 400


class Planted(nn.Module):
    """h = e(token) + b; the answers are read along u, and b is all that learns.

    A step towards yes moves b, and so h, along u, whatever the prompt. With ``linked`` the
    embeddings of the second half of the tokens are moved along u too; without, they are as
    anisotropic as residual streams are.
    """

    def __init__(self, seed: int, *, linked: bool) -> None:
        super().__init__()
        draw = generator(seed, "planted")
        scales = torch.ones(WIDTH) if linked else torch.linspace(3, 0.2, WIDTH)
        u = torch.randn(WIDTH, generator=draw) * scales
        rows = torch.randn(TOKENS, WIDTH, generator=draw) * scales
        if linked:
            rows[TOKENS // 2 :] += 0.4 * u
        self.embed = nn.Embedding.from_pretrained(rows)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH)])
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        with torch.no_grad():
            self.layers[0].weight.copy_(torch.eye(WIDTH))
            self.layers[0].bias.zero_()
            self.head.weight.zero_()
            self.head.weight[YES], self.head.weight[NO] = 0.1 * u, -0.1 * u

    def forward(self, input_ids, logits_to_keep: int = 0):
        return Output(self.head(self.layers[0](self.embed(input_ids)))[:, -logits_to_keep:])


def subject(seed: int, *, linked: bool, rows: int = 96) -> Steered:
    """Prompts of two tokens; the label is the half of the last one, or random."""
    draw = generator(seed, "prompts")
    order = torch.randperm(TOKENS - 2, generator=draw).tolist()
    items = []
    for i, token in enumerate(t + 2 for t in order):
        label = token >= TOKENS // 2 if linked else i % 2 == 0
        sides = [5, token, YES], [5, token, NO]
        items.append(Item("t", [5, token], sides, label, i))
    contrast = Contrast("planted", "statements", ("yes", "no"), tuple(items))
    parts = dict(zip(PARTS, contrast.divided(4, seed=seed, rows=rows), strict=True))
    model = Planted(seed, linked=linked)
    space = ParamSpace.select(model, "bias")
    return Steered(model.eval(), space, (0,), parts, None, ())


def layer_row(seed: int, *, linked: bool):
    cell = Cell.of(seed=seed, space="full", behaviour="planted", push="own")
    found = subject(seed, linked=linked)
    config = Config(shuffles=99, halves=2)
    shifts = _shifts(found, flipped=False)
    answers = answer_directions(found.model, prompted(found.parts["choose"].items))
    (row,) = _layers(config, cell, found, "report", shifts, answers)
    return {**row, "chosen": True}


def test_a_weight_that_controls_the_label_supports_c6() -> None:
    rows = [layer_row(seed, linked=True) for seed in range(3)]
    assert all(row["p"] == pytest.approx(0.01) for row in rows)
    assert all(row["cosine"] > 0.8 for row in rows)
    assert all(row["other"] < -0.8 for row in rows)
    # What writes the answers is all there is.
    assert all(abs(row["without_answer"]) < 0.5 for row in rows)
    assert step_findings.decide(rows).verdict == "supported"


def test_random_labels_are_unremarkable() -> None:
    """60 tasks with meaningless labels: p below 0.05 no more often than by chance, and p uniform.

    The chance of more than 8 of 60 is 0.2%.
    """
    found = np.array([layer_row(seed, linked=False)["p"] for seed in range(60)])
    assert (found <= 0.05).sum() <= 8
    assert 0.35 < found.mean() < 0.65


def test_a_model_that_does_not_know_the_labels_is_told() -> None:
    cell = Cell.of(seed=0, space="full", behaviour="planted", push="own")
    known, *rest = describe(subject(0, linked=True), cell)
    assert known["separation"] > 0.75
    assert known["p_known"] < 0.001
    assert not rest
    unknown, note = describe(subject(0, linked=False), cell)
    assert unknown["p_known"] > 0.05
    assert "cannot tell the two sides apart" in note["note"]


def test_labels_that_a_model_does_not_know_are_counted_by_contrast() -> None:
    """A p-value at the limit itself is known."""
    rows = [
        {
            "table": "behaviour", "seed": seed, "space": "full", "behaviour": name,
            "accuracy": 1 - p, "separation": 0.75, "chance": 0.5, "p_known": p, "p_limit": 0.05,
        }
        for name, seed, p in (("a", 0, 0.5), ("a", 1, 0.01), ("a", 2, 0.05), ("b", 0, 0.01))
    ]  # fmt: skip
    (table,) = known_labels(rows)
    first, second = table.rows
    assert (first["behaviour"], first["seeds"], first["seeds with p above the limit"]) == (
        "a",
        3,
        1,
    )
    assert first["accuracy"] == pytest.approx(1 - 0.56 / 3)
    assert first["mean p-value of no difference"] == pytest.approx(0.56 / 3)
    assert (first["both by chance"], first["pairs in the right order"]) == (0.5, 0.75)
    assert (second["behaviour"], second["seeds with p above the limit"]) == ("b", 0)
    (caution,) = cautions(rows, "layer")
    assert "1 of 4 runs" in caution
    assert "(a)" in caution
    assert list(cautions(rows[1:], "layer")) == []


@pytest.mark.parametrize("findings", [step_findings, effect_findings])
def test_seeds_that_share_a_model_are_a_caution(findings) -> None:
    rows = [{"table": "notes", "seed": s, "behaviour": "b", "note": ONE_MODEL} for s in range(3)]
    (caution,) = findings.decide(rows).notes
    assert "not independent" in caution
    assert findings.decide([{**row, "note": "another"} for row in rows]).notes == ()


@pytest.mark.parametrize("findings", [step_findings, effect_findings])
def test_of_three_cautions_the_two_that_matter_most_stay(findings) -> None:
    """What was left out, and that labels mean nothing, rather than that seeds share a model."""
    rows = [*(c6([0.5], [0.1]) if findings is step_findings else c7([1.0], 10.0, 1.0))]
    rows += [{"table": "notes", "behaviour": "b", "note": ONE_MODEL}]
    rows += [{"table": "notes", "behaviour": "gone", "note": "no words"}]
    known = {"table": "behaviour", "seed": 0, "space": "full", "behaviour": "b"}
    rows += [known | {"p_known": 0.5, "p_limit": 0.05}]
    first, second = findings.decide(rows).notes
    assert first.startswith("gone was left out: no words")
    assert "1 of 1 runs" in second


def c6(cosines: list[float], nulls: list[float], behaviour: str = "b") -> list[dict[str, object]]:
    base = {
        "table": "layer", "space": "full", "behaviour": behaviour, "push": "own", "part": "report",
        "block": 1, "chosen": True, "other": -0.2, "without_answer": 0.1, "whitened": 0.1,
        "p": 0.01, "p_adjusted": 0.02, "p_limit": 0.05,
    }  # fmt: skip
    rows = [
        {**base, "seed": s, "cosine": c, "null": n}
        for s, (c, n) in enumerate(zip(cosines, nulls, strict=True))
    ]
    for other in ({"part": "choose"}, {"push": "flipped"}, {"chosen": False}):
        rows += [{**row, **other, "cosine": -1.0} for row in rows[: len(cosines)]]
    return rows


@pytest.mark.parametrize(
    ("cosines", "nulls", "verdict"),
    [
        ([0.60, 0.62, 0.61], [0.3, 0.31, 0.32], "supported"),
        ([0.20, 0.22, 0.21], [0.5, 0.51, 0.52], "contradicted"),
        ([0.60, 0.20, 0.61], [0.3, 0.31, 0.32], "undecided"),
        ([0.60], [0.1], "undecided"),
    ],
)
def test_c6(cosines: list[float], nulls: list[float], verdict: str) -> None:
    assert step_findings.decide(c6(cosines, nulls)).verdict == verdict


def test_the_axis_of_a_cosine_runs_from_minus_1_to_1() -> None:
    rows = [row | {"ceiling": 0.9, "shuffled": 0.2, "matched": 0.3} for row in c6([0.6], [0.3])]
    chart = step_findings.layer_chart(rows)
    layers = chart.to_dict()["spec"]["layer"]  # type: ignore[attr-defined]
    domains = [layer["encoding"]["y"]["scale"]["domain"] for layer in layers]
    assert domains == [[-1, 1]] * len(layers)


def cosines_of(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return parts(step_findings.decide(rows), "Cosines at the chosen block")


def test_cosines_are_listed_by_contrast_and_push() -> None:
    rows = c6([0.6, 0.5, 0.7], [0.3, 0.2, 0.4])
    rows[0]["block"] = 3
    rows[0]["p"] = 0.04
    own, flipped = cosines_of(rows)
    named = [own[key] for key in ("behaviour", "space", "push", "blocks")]
    assert named == ["b", "full", "own", "1, 3"]
    assert own["cosine"] == pytest.approx(0.6)
    # Standard error 0.1 / sqrt(3), t(2) = 4.302653.
    assert own["low"] == pytest.approx(0.6 - 4.302652729911275 * 0.1 / 3**0.5)
    assert own["higher null, 95%"] == pytest.approx(0.3)
    assert own["other answer's step"] == pytest.approx(-0.2)
    assert own["without the answers' directions"] == own["whitened"] == pytest.approx(0.1)
    assert (own["mean p"], own["limit of p"]) == pytest.approx((0.02, 0.05))
    assert (flipped["push"], flipped["blocks"], flipped["cosine"]) == ("flipped", "1", -1.0)


@pytest.mark.parametrize(
    ("cosines", "p", "below", "negative"),
    [
        ([-0.6, -0.62, 0.61], 0.02, 3, 2),
        ([0.0, 0.5, -0.5], 0.02, 3, 1),  # a cosine of zero is not negative
        ([0.0, 0.5, 0.5], 0.02, 3, 0),
        ([-0.6, -0.62, 0.61], 0.05, 0, 0),
    ],
)
def test_small_p_values_are_counted_and_those_of_negative_cosines(
    cosines: list[float], p: float, below: int, negative: int
) -> None:
    rows = [row | {"p_adjusted": p} for row in c6(cosines, [0.3] * 3)]
    own = cosines_of(rows)[0]
    assert own["seeds with p below the limit, adjusted over blocks"] == below
    assert own["of these, negative"] == negative


def test_c6_is_open_where_contrasts_cancel() -> None:
    good, bad = [0.80, 0.82, 0.81], [0.20, 0.22, 0.21]
    nulls = [0.3, 0.31, 0.32]
    finding = step_findings.decide(c6(good, nulls) + c6(bad, nulls, behaviour="other"))
    assert finding.verdict == "undecided"
    assert "for other, full alone" in finding.why


def c7(
    ratios: list[float], contrast: float, random: float, behaviour: str = "b"
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for s, ratio in enumerate(ratios):
        key = {"seed": s, "space": "full", "behaviour": behaviour, "push": "own", "block": 1}
        contrast_s = contrast * (1 + 0.01 * s)
        controls = {"random": random * (1 + 0.01 * s), "matched": 1.0, "shuffled": 1.0}
        for name, slope in (("contrast", contrast_s), ("gradient", ratio * contrast_s)):
            rows.append({"table": "slope", **key, "vector": name, "slope": slope, **controls})
        rows.append({"table": "ratio", **key, "ratio": ratio})
        rows.append({"table": "ratio", **key, "push": "flipped", "ratio": 9.0})
    return rows


@pytest.mark.parametrize(
    ("ratios", "contrast", "random", "verdict"),
    [
        ([0.9, 1.0, 1.1], 10.0, 1.0, "supported"),
        ([0.30, 0.31, 0.32], 10.0, 1.0, "contradicted"),
        ([3.0, 3.1, 3.2], 10.0, 1.0, "contradicted"),
        ([0.04, 0.05, 0.06], 10.0, 1.0, "contradicted"),
        ([0.9, 1.0, 1.1], 1.0, 10.0, "undecided"),
        ([0.30, 0.31, 0.32], 1.0, 10.0, "undecided"),
        ([-0.9, -1.0, -1.1], 1.0, 1.0, "undecided"),
        ([-0.9, -1.0, -1.1], 10.0, 1.0, "contradicted"),
        ([0.2, 1.0, 2.1], 10.0, 1.0, "undecided"),
        ([0.5, 0.6, 0.7], 10.0, 1.0, "undecided"),  # one end alone lies outside
        ([1.8, 1.9, 2.0], 10.0, 1.0, "undecided"),
        ([1.0], 10.0, 1.0, "undecided"),
    ],
)
def test_c7(ratios: list[float], contrast: float, random: float, verdict: str) -> None:
    assert effect_findings.decide(c7(ratios, contrast, random)).verdict == verdict


def test_c7_is_open_where_contrasts_cancel() -> None:
    small, large = [0.2, 0.21, 0.22], [1.8, 1.81, 1.82]
    rows = c7(small, 10.0, 1.0) + c7(large, 10.0, 1.0, behaviour="other")
    finding = effect_findings.decide(rows)
    assert finding.verdict == "undecided"
    assert "for b, full alone" in finding.why


def test_c7_asks_every_contrast_whether_its_vectors_steer_more_than_random_ones() -> None:
    """A mean of slopes would be that of the steepest contrast."""
    even = [1.0, 1.01, 0.99]
    small = c7(even, 1.0, 5.0, behaviour="small")
    finding = effect_findings.decide(c7(even, 1000.0, 1.0) + small)
    steers = "the slope of the contrast vector for {} is {}above that of the largest of the random"
    assert finding.verdict == "undecided"
    assert finding.why.startswith(steers.format("small", "not "))
    wide = [
        row | {"random": [0.1, 1.0, 5.0][row["seed"]]} if row["table"] == "slope" else row
        for row in c7(even, 2.1, 1.0)
    ]
    assert effect_findings.decide(wide).why.startswith(steers.format("b", "not clearly "))
    turned = c7([-0.1, -0.11, -0.12], 10.0, 1.0, behaviour="turned")
    finding = effect_findings.decide(c7([1.9, 1.91, 1.92], 10.0, 1.0) + turned)
    assert finding.estimate is not None
    assert finding.estimate.value == pytest.approx(0.9)
    assert finding.verdict == "undecided"
    assert "step for turned is not above 0" in finding.why
    assert effect_findings.decide(turned).verdict == "contradicted"


def test_c7_stands_beside_random_vectors_of_equal_covariance() -> None:
    rows = c7([0.9, 1.0, 1.1], 10.0, 0.5)
    finding = effect_findings.decide(rows)
    assert finding.reference_estimate is not None
    assert finding.reference_estimate.value == pytest.approx((1 / 10 + 1 / 10.1 + 1 / 10.2) / 3)
    assert finding.notes == ()
    strong = [row | {"matched": 20.0} if row["table"] == "slope" else row for row in rows]
    finding = effect_findings.decide(strong)
    assert finding.verdict == "supported"
    (caution,) = finding.notes
    assert "1 of 1 contrasts" in caution
    listed = {row["vector"]: row for row in parts(finding, "Slopes")}
    assert [row["slope"] for row in listed.values()] == pytest.approx(
        [10.1, (9 + 10.1 + 1.1 * 10.2) / 3, 0.505, 20.0, 1.0]
    )
    beside = [row["largest of the random vectors"] for row in listed.values()]
    assert beside == pytest.approx([0.505] * 5)
    matched = listed["random of equal covariance, the largest"]
    assert (matched["low"], matched["slope"], matched["high"]) == (20.0, 20.0, 20.0)


def test_ratios_of_slopes_are_listed_by_contrast_and_push() -> None:
    own, flipped = parts(effect_findings.decide(c7([0.9, 1.0, 1.1], 10.0, 0.5)), "Ratios of slopes")
    named = [own[key] for key in ("behaviour", "space", "push", "blocks")]
    assert named == ["b", "full", "own", "1"]
    assert own["ratio"] == pytest.approx(1.0)
    assert own["high"] == pytest.approx(1 + 4.302652729911275 * 0.1 / 3**0.5)
    assert (own["alike from"], own["alike up to"]) == (0.5, 2.0)
    assert own["contrast vector"] == pytest.approx(10.1)
    assert own["shift by a gradient step"] == pytest.approx((9 + 10.1 + 1.1 * 10.2) / 3)
    assert (flipped["push"], flipped["ratio"], flipped["contrast vector"]) == ("flipped", 9.0, None)


def steady(rows: list[dict[str, object]], **slopes: float) -> list[dict[str, object]]:
    """The rows with the same slopes in every seed, so that each interval is a point."""
    controls = {"random": slopes.pop("random")}
    return [
        row | controls | {"slope": slopes[str(row["vector"])]} if row["table"] == "slope" else row
        for row in rows
    ]


@pytest.mark.parametrize(
    ("contrast", "gradient", "verdict", "why"),
    [
        (1.0, 3.0, "undecided", "contrast vector for b is not clearly above that of"),
        (0.9, 3.0, "undecided", "contrast vector for b is not above that of"),
        (9.0, 0.0, "contradicted", "step for b is not above that of"),
        (9.0, -0.1, "contradicted", "step for b is not above 0"),
        (9.0, 1.0, "undecided", "step for b is not clearly above that of"),
        (9.0, 1.1, "supported", "within [0.5, 2]"),
    ],
)
def test_c7_at_equality(contrast: float, gradient: float, verdict: str, why: str) -> None:
    """A slope equal to that of the random vectors is neither above nor below it."""
    rows = steady(c7([1.0, 1.0, 1.0], 1.0, 1.0), contrast=contrast, gradient=gradient, random=1.0)
    finding = effect_findings.decide(rows)
    assert (finding.verdict, why in finding.why) == (verdict, True)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(0.49, "contradicted"), (0.5, "supported"), (2.0, "supported"), (2.01, "contradicted")],
)
def test_c7_holds_at_the_ends_of_its_range(ratio: float, verdict: str) -> None:
    assert effect_findings.decide(c7([ratio] * 3, 10.0, 1.0)).verdict == verdict


def test_contrasts_with_random_vectors_that_steer_as_much_are_counted() -> None:
    rows = steady(c7([1.0] * 3, 1.0, 1.0), contrast=9.0, gradient=2.0, random=1.0)
    other = [row | {"behaviour": "other"} for row in rows]
    for matched, count in ((1.9, 0), (2.0, 1), (2.1, 1)):
        given = [row | {"matched": matched} if row["table"] == "slope" else row for row in rows]
        cautions = effect_findings.decide(given + other).notes
        assert len(cautions) == count
        assert all("1 of 2 contrasts" in caution for caution in cautions)


def test_a_contrast_without_a_slope_is_compared_with_nothing() -> None:
    """Nor is one with a slope of 0: random vectors steer more, and not as much."""
    rows = steady(c7([1.0] * 3, 1.0, 1.0), contrast=9.0, gradient=0.0, random=1.0)
    no_shift = [row for row in rows if row.get("vector") != "gradient"]
    for given in (rows, no_shift):
        assert effect_findings.decide(given).notes == ()
    still = [row | {"slope": 0.0} if row["table"] == "slope" else row for row in rows]
    assert effect_findings.decide(still).reference_estimate is None


def test_c7_names_the_space_where_there_are_two() -> None:
    rows = c7([1.0, 1.01, 0.99], 1.0, 5.0)
    lora = [row | {"space": "lora"} for row in rows]
    assert "vector for b is not above" in effect_findings.decide(rows).why
    assert "vector for b (full) is not above" in effect_findings.decide(rows + lora).why


def test_an_effect_that_is_never_reached_is_counted_and_has_no_dose() -> None:
    base = {"table": "equal", "way": "weight step", "kl_random": 0.25}
    kl = {None: None, 0.125: 0.5}
    for sizes, reached in (([0.125, None, 0.125], 2), ([None] * 3, 0), ([0.125] * 3, 3)):
        rows = [base | {"seed": s, "size": x, "kl": kl[x]} for s, x in enumerate(sizes)]
        (row,) = parts(effect_findings.decide(rows), "At equal effect")
        dose, cost = (0.125, 0.5) if reached else (None, None)
        assert (row.get("dose"), row["KL"], row["KL of a random vector"]) == (dose, cost, 0.25)
        assert (row["cases that reach the effect"], row["cases"]) == (reached, 3)


def test_what_is_measured_is_not_left_out_for_a_note_on_it() -> None:
    for findings, rows in ((step_findings, c6([0.5], [0.1])), (effect_findings, c7([1.0], 9, 1))):
        noted = [*rows, {"table": "notes", "behaviour": "b", "note": "the model knows it"}]
        assert findings.decide(noted).notes == findings.decide(rows).notes == ()


def test_c6_shows_intervals_of_cosines_down_to_minus_1() -> None:
    finding = step_findings.decide(c6([-0.9, 0.9, 0.9], [0.3, 0.31, 0.32]))
    assert finding.estimate is not None
    assert finding.estimate.low == -1.0


def test_c6_at_equality() -> None:
    finding = step_findings.decide(c6([0.3] * 3, [0.3] * 3))
    assert finding.verdict == "undecided"
    # Two contrasts that cancel to a margin of exactly 0 are distinguished.
    rows = c6([0.75] * 3, [0.5] * 3) + c6([0.25] * 3, [0.5] * 3, behaviour="other")
    assert "for other, full alone" in step_findings.decide(rows).why


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
    ("experiment", "findings", "measured"),
    [
        (step_measure, step_findings, c6([0.5] * 3, [0.1] * 3)),
        (effect_measure, effect_findings, c7([1.0] * 3, 10.0, 1.0)),
    ],
)
def test_answers_that_include_each_other_are_left_out_with_the_remedy(
    tmp_path, experiment, findings, measured
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
    finding = findings.decide(rows)
    reason = f"comparisons was left out: {row['note']}"
    assert (finding.verdict, finding.why, finding.notes) == ("undecided", reason, ())
    other = [*measured, row]
    assert f"{reason}." in findings.decide(other).notes
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
