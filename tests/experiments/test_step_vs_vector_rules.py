"""Claim C6: every word on rows made for it, planted networks, and how often each word comes."""

import numpy as np
import pytest
from scipy import stats

from experiments.parts import parts
from experiments.planted_links import planted
from frenet.experiments.experiment import Cell, Decision, Finding, Row
from frenet.experiments.setup.contrast_notes import (
    KNOWN,
    SHIFT,
    VECTOR,
    contrasts_that_count,
    over_units,
    widened,
)
from frenet.experiments.step_vs_vector import Config, findings, measure
from frenet.experiments.step_vs_vector.findings import (
    CHANCE,
    FEW_BLOCKS,
    combined,
    decide,
    decision_of,
    layer_chart,
)
from frenet.experiments.verdicts import Condition
from frenet.statistics.intervals import Estimate


def layer(seed: int, cosine: float, *, error: float = 0.1, **changes: object) -> Row:
    """The chosen block of one contrast, with intervals of 1.96 standard errors."""
    row: Row = {
        "table": "layer", "seed": seed, "space": "full", "behaviour": "b", "push": "own",
        "part": "report", "block": 1, "chosen": True, "unit": "seed", "prompts": 264,
        "cosine": cosine, "null": 0.3, "null_mean": 0.0, "other": -0.2, "ceiling": 0.9,
        "ceiling_shift": 0.8, "reach": 0.9, "p_shuffled": 0.001, "p_matched": 0.001,
        "p_limit": 0.025, "without_answer": 0.1, "whitened": 0.1, "whitened_null": 0.2,
    }  # fmt: skip
    row |= changes
    row["lead"] = cosine - row["null_mean"]
    row["lead_other"] = cosine - row["other"]
    for name in ("cosine", "lead", "lead_other", "ceiling", "ceiling_shift"):
        half = 1.96 * (error if "ceiling" not in name else 0.03)
        row[f"{name}_low"], row[f"{name}_high"] = row[name] - half, row[name] + half
    return row


def knows(seed: int, auc: float = 0.8, *, half: float = 0.1, **changes: object) -> Row:
    return {
        "table": "behaviour", "seed": seed, "space": "full", "behaviour": "b", "unit": "seed",
        "kind": "statements", "prompts": 88, "accuracy": auc, "separation": auc, "chance": 0.5,
        "known_low": auc - half, "known_high": auc + half,
    }  # fmt: skip


def over_seeds(cosines: list[float], aucs: tuple[float, ...] = (0.8, 0.82, 0.78), **changes):
    rows = [layer(seed, cosine, **changes) for seed, cosine in enumerate(cosines)]
    return rows + [
        knows(seed, auc) | {k: v for k, v in changes.items() if k in ("behaviour", "space")}
        for seed, auc in enumerate(aucs[: len(cosines)])
    ]


def over_prompts(cosine: float, *, auc: float = 0.8, half: float = 0.1, behaviour="b", **changes):
    same = {"behaviour": behaviour, "unit": "prompt"}
    return [layer(0, cosine, **same, **changes), knows(0, auc, half=half) | same]


def only(found: tuple[Finding, ...]) -> Finding:
    (finding,) = found
    return finding


NO = {"p_shuffled": 0.4, "p_matched": 0.4}


@pytest.mark.parametrize(
    ("rows", "verdict", "why"),
    [
        (over_seeds([0.6, 0.62, 0.61]), "supported", "p < 0.025"),
        (over_seeds([0.6, 0.62, 0.61], p_matched=0.2), "undecided", "covariance has p ="),
        (over_seeds([0.6, 0.62, 0.61], p_shuffled=0.2), "undecided", "labels has p ="),
        (over_seeds([0.6, 0.62, 0.61], other=0.9), "undecided", "is not above the cosine of"),
        (over_seeds([0.02, 0.03, 0.01], **NO), "contradicted", "is below 0.1"),
        (over_seeds([0.02, 0.03, 0.01]), "contradicted", "is below 0.1"),
        (over_seeds([0.2, 0.0, 0.1], **NO), "undecided", "p ="),
        (over_seeds([0.6]), "undecided", "only one seed"),
        (over_seeds([0.6, 0.6, 0.6], aucs=(0.55, 0.4, 0.5)), "not testable", "clearly above 0.5"),
        (over_seeds([0.6, 0.6, 0.6], ceiling=0.2), "not testable", "vector for b is not above 0.3"),
        (over_seeds([0.6, 0.6, 0.6], ceiling_shift=0.2), "not testable", "shift for b is not"),
        (over_seeds([0.6, 0.6, 0.6], aucs=(0.2, 0.25, 0.22)), "not testable", "answers swapped"),
        (over_prompts(0.6), "supported", "p < 0.025"),
        (over_prompts(0.6, p_matched=0.03), "undecided", "p = 0.03"),
        (over_prompts(-0.15, **NO), "contradicted", "is below 0.1"),
        (over_prompts(0.0, error=0.04, **NO), "contradicted", "is below 0.1"),
        (over_prompts(0.0, **NO), "undecided", "p = 0.4"),
        (over_prompts(0.6, auc=0.58), "not testable", "(0.58 [0.48, 0.68])"),
        (over_prompts(0.6, auc=0.3), "not testable", "answers swapped"),
        (over_prompts(0.6, ceiling=0.35), "not testable", "more --rows"),
        ([], "not testable", "nothing was measured"),
    ],
)
def test_every_word(rows: list[Row], verdict: str, why: str) -> None:
    finding = only(decide(rows))
    assert finding.verdict == verdict
    assert why in finding.why


def test_a_mean_is_compared_with_what_chance_reaches_for_a_mean() -> None:
    """Of normal nulls, the mean of independent draws stays below it in 97.5% of cases."""
    spreads, level = (0.1, 0.2, 0.4), float(stats.norm.ppf(0.975))
    rows = [
        layer(seed, 0.5, null=level * spread, p_shuffled=0.5, p_matched=0.4)
        for seed, spread in enumerate(spreads)
    ]
    found = only(decide([*rows, *(knows(seed) for seed in range(3))]))
    assert found.reference_estimate is not None
    of_mean = stats.norm(scale=sum(spread**2 for spread in spreads) ** 0.5 / 3)
    assert of_mean.cdf(found.reference_estimate.value) == pytest.approx(0.975)
    p = found.also["p"]
    assert p is not None
    assert p.value == pytest.approx(0.5)


def test_what_is_undecided_says_how_many_prompts_there_are() -> None:
    decision = only(decide(over_prompts(0.3, p_shuffled=0.1))).decision
    assert decision.needs is not None
    assert (decision.needs.unit, decision.needs.n) == ("prompt", 264)


def test_rows_of_an_earlier_version_lack_premises() -> None:
    """They say what the criteria alone say; charts show what there is."""
    old = [
        {k: row[k] for k in ("table", "seed", "space", "behaviour", "push", "part", "block",
                             "chosen", "cosine", "null", "other")}
        | {"p": 0.01, "ceiling": 0.9, "shuffled": 0.2, "matched": 0.3}
        for row in over_seeds([0.6, 0.62, 0.61]) if row["table"] == "layer"
    ]  # fmt: skip
    known = [
        {k: v for k, v in row.items() if not k.startswith("known") and k != "unit"}
        for row in over_seeds([0.6, 0.62, 0.61])
        if row["table"] == "behaviour"
    ]
    for rows, premise in ((old + known, "step's shift for b"), (old, "own answers for b")):
        finding = only(decide(rows))
        assert finding.verdict == "not testable"
        assert f"{premise} was not measured" in finding.why
        assert "the criteria alone say undecided" in finding.why
    layers = layer_chart(old).to_dict()["spec"]["layer"]
    assert [each["encoding"]["x"]["scale"]["domain"] for each in layers] == [[-1, 1]] * len(layers)


def test_few_blocks_have_a_row_each_and_many_an_axis() -> None:
    """Chance is one region, as far below 0 as above, up to the higher null."""
    one = [row for row in over_seeds([0.6, 0.62, 0.61]) if row["table"] == "layer"]
    for count, rows_of in ((FEW_BLOCKS - 1, "y"), (FEW_BLOCKS, "")):
        rows = [row | {"block": block, "null": 0.3} for block in range(count) for row in one]
        spec = layer_chart(rows).to_dict()
        nominal = [layer["encoding"]["y"].get("type") == "nominal"
                   for layer in spec["spec"]["layer"]]  # fmt: skip
        assert all(nominal) == bool(rows_of)
        data = max(spec["datasets"].values(), key=len)
        region = [row for row in data if row["series"] == CHANCE and "low" in row]
        assert {(row["low"], row["high"]) for row in region if row["low"]} == {(-0.3, 0.3)}
        assert len({row["block"] for row in region}) == count


def test_it_is_judged_on_the_contrasts_that_the_model_knows() -> None:
    """A contrast that it does not know would contradict the claim, but says nothing about it."""
    unknown = over_prompts(-0.3, auc=0.5, behaviour="unknown", **NO)
    finding = only(decide(over_prompts(0.6) + unknown))
    assert finding.verdict == "supported"
    assert finding.estimate is not None
    assert finding.estimate.value == pytest.approx(0.6)
    assert "(b)" in finding.quantity
    assert finding.notes[0].startswith("unknown does not count: the AUC")
    both = over_prompts(0.6, auc=0.5) + unknown
    finding = only(decide(both))
    assert finding.verdict == "not testable"
    assert "for b is" in finding.why
    assert "for unknown is" in finding.why


def test_several_contrasts_have_equal_weight_and_their_errors_add_in_squares() -> None:
    rows = over_prompts(0.6, error=0.1) + over_prompts(0.2, error=0.2, behaviour="c")
    at = [row for row in rows if row["table"] == "layer"]
    found = over_units(at, "cosine", least=-1.0)
    assert found is not None
    half = 1.96 * (0.1**2 + 0.2**2) ** 0.5 / 2
    assert found[:4] == pytest.approx((0.4, 0.4 - half, 0.4 + half, 528))
    assert found.raw == pytest.approx((0.4 - half, 0.4 + half))
    assert (found.unit, found.narrow) == ("prompt", None)
    high = [{**row, "cosine_high": 1.7} for row in at]
    shown = over_units(high, "cosine", least=-1.0)
    assert shown is not None
    assert (shown.high, shown.raw[1] > 1.0) == (1.0, True)


def test_p_values_are_combined_as_by_stouffer() -> None:
    rows = [{"p": p} for p in (0.04, 0.2, 0.01)]
    z = np.mean(stats.norm.isf([0.04, 0.2, 0.01])) * 3**0.5
    assert combined(rows, "p") == pytest.approx(stats.norm.sf(z))
    assert combined([{"p": 0.5}, {"p": 0.5}], "p") == pytest.approx(0.5)
    assert combined([{"p": 0.3}], "p") == pytest.approx(0.3)
    # One p-value of 1 does not outweigh all others.
    assert combined([{"p": 1e-6}] * 3 + [{"p": 1.0}], "p") < 0.01
    assert combined([*rows, {"p": None}], "p") is None
    assert combined([], "p") is None


def test_premises_are_of_all_contrasts_if_none_counts() -> None:
    holds, fails = Condition("holds", "good"), Condition("fails", "bad")
    unknown = Condition("open", "unknown", counted=False)
    found = contrasts_that_count(
        {"a": {KNOWN: holds, SHIFT: fails}, "b": {KNOWN: holds, SHIFT: holds}}
    )
    assert (found.names, found.left) == (("b",), ("a does not count: bad.",))
    found = contrasts_that_count(
        {"a": {KNOWN: fails, SHIFT: holds}, "b": {KNOWN: holds, SHIFT: unknown}}
    )
    assert (found.names, found.left) == (("a", "b"), ())
    assert found.premises[KNOWN] == Condition("fails", "bad; unknown")
    assert not found.premises[SHIFT].counted
    assert contrasts_that_count({}).premises == {}


def test_many_contrasts_that_a_model_does_not_know_are_not_known_by_chance() -> None:
    """Of k contrasts, the ends of each are those of level 1 - 0.05 / k."""
    one = Estimate(0.6, 0.51, 0.69, 88, "prompt", (0.51, 0.69))
    assert widened(one, 1) == one
    found = widened(one, 10, least=0.0)
    factor = stats.t.isf(0.0025, 87) / stats.t.isf(0.025, 87)
    assert found.raw == pytest.approx((0.6 - 0.09 * factor, 0.6 + 0.09 * factor))
    assert (found.low, found.high) == found.raw
    assert widened(one._replace(raw=(0.5, 0.95)), 10, least=0.0).high == 1.0
    assert widened(None, 10) is None
    rows = over_prompts(0.6, auc=0.62, half=0.1)
    assert only(decide(rows)).verdict == "supported"
    many = [row for name in "bcdefg" for row in over_prompts(0.6, auc=0.62, behaviour=name)]
    assert only(decide(many)).verdict == "not testable"


def test_each_space_is_a_case() -> None:
    rows = over_seeds([0.6, 0.62, 0.61]) + over_seeds([0.02, 0.03, 0.01], space="lora", **NO)
    found = decide(rows)
    assert [(f.name, f.verdict) for f in found] == [
        ("C6", "supported"),
        ("C6 with LoRA", "contradicted"),
    ]
    assert [f.name for f in decide(over_seeds([0.6, 0.62, 0.61]))] == ["C6"]


def test_cosines_are_listed_by_contrast_and_push() -> None:
    rows = over_seeds([0.6, 0.5, 0.7])
    rows[0]["block"], rows[0]["p_shuffled"] = 3, 0.04
    rows += [{**rows[1], "push": "flipped", "cosine": -1.0}]
    own, flipped = parts(only(decide(rows)), "Cosines at the chosen block")
    named = [own[key] for key in ("behaviour", "space", "push", "blocks")]
    assert named == ["b", "full", "own", "1, 3"]
    assert own["cosine"] == pytest.approx(0.6)
    # Standard error 0.1 / sqrt(3), t(2) = 4.302653; shown within [-1, 1].
    assert own["low"] + 0.1 > 0.6 - 4.302652729911275 * 0.1 / 3**0.5
    assert own["at most, by both ceilings"] == pytest.approx(0.9)
    assert own["mean p, shuffled labels"] == pytest.approx((0.04 + 0.002) / 3)
    assert (flipped["push"], flipped["blocks"], flipped["cosine"]) == ("flipped", "1", -1.0)


def run(monkeypatch: pytest.MonkeyPatch, seeds: int = 1, **how: object) -> list[Row]:
    """The rows of planted networks; prompts are the unit of one, seeds of several."""
    unit = "seed" if seeds > 1 else "prompt"
    monkeypatch.setattr(measure, "steered", lambda _, cell: planted(cell.seed, unit=unit, **how))
    rows: list[Row] = []
    for seed in range(seeds):
        cell = Cell.of(seed=seed, space="full", behaviour="planted", push="own")
        rows += measure.run(Config(shuffles=400, resamples=200, halves=4), cell)
    return rows


@pytest.mark.parametrize(
    ("how", "verdict"),
    [
        ({}, "supported"),
        ({"seeds": 3}, "supported"),
        ({"link": 0.02, "known": 6.0}, "contradicted"),  # it learns along another direction
        ({"seeds": 3, "link": 0.02, "known": 6.0}, "contradicted"),
        ({"swapped": True}, "not testable"),
        ({"known": 0.0, "link": 1.0}, "not testable"),
    ],
)
def test_planted_networks(monkeypatch: pytest.MonkeyPatch, how: dict, verdict: str) -> None:
    assert only(decide(run(monkeypatch, **how))).verdict == verdict


def test_what_is_measured_on_a_planted_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps go along one vector, so that their halves agree exactly."""
    rows = run(monkeypatch)
    (row,) = findings.reported(rows)
    assert row["ceiling_shift"] == pytest.approx(1.0)
    assert row["ceiling_shift_low"] == pytest.approx(1.0)
    assert 0.3 < row["ceiling_low"] < row["ceiling"] < row["ceiling_high"]
    assert row["reach"] == pytest.approx((2 * row["ceiling"] / (1 + row["ceiling"])) ** 0.5)
    assert row["other"] == pytest.approx(-row["cosine"])
    assert row["lead_other"] == pytest.approx(2 * row["cosine"])
    assert row["lead_other_high"] - row["lead_other_low"] == pytest.approx(
        2 * (row["cosine_high"] - row["cosine_low"])
    )
    assert row["lead"] == row["cosine"] - row["null_mean"]
    assert abs(row["null_mean"]) < 0.1
    assert row["p_shuffled"] == row["p_matched"] == pytest.approx(1 / 401)
    assert row["prompts"] == 264
    chosen = [r for r in rows if r["table"] == "layer" and r["part"] == "choose"]
    assert {"ceiling", "chosen"} < set(chosen[0])
    assert "cosine" not in chosen[0]


def test_random_labels_are_rarely_remarkable(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 networks that do not know the labels: p is uniform, and the premise fails nearly always.

    The chance of more than 3 of 20 below 0.025, or with an AUC above 0.5, is 0.1%.
    """
    low, p = [], []
    for seed in range(20):
        subject = planted(seed, known=0.0, link=0.7)
        monkeypatch.setattr(measure, "steered", lambda _, cell, subject=subject: subject)
        cell = Cell.of(seed=seed, space="full", behaviour="planted", push="own")
        rows = list(measure.run(Config(shuffles=99, resamples=2, halves=1, groups=2), cell))
        (row,) = findings.reported(rows)
        p.append(row["p_shuffled"])
        low.append(next(r["known_low"] for r in rows if r["table"] == "behaviour") > 0.5)
    assert sum(low) <= 3
    assert sum(value <= 0.025 for value in p) <= 3
    assert 0.25 < np.mean(p) < 0.75


def simulated(draw: np.random.Generator, *, cosine: float, auc: float, seeds: int) -> Decision:
    """One run: the null of the cosine has a standard deviation of 0.15, as in the pilot.

    The AUC of 88 prompts has a standard error of about sqrt(a (1 - a) / 44).
    """
    rows = []
    for seed in range(seeds):
        seen, other = draw.normal([cosine, -0.3], 0.15)
        p = float(stats.norm.sf(seen / 0.15))
        error = (auc * (1 - auc) / 44) ** 0.5
        known = float(np.clip(draw.normal(auc, error), 0.0, 1.0))
        unit = "seed" if seeds > 1 else "prompt"
        rows += [
            layer(seed, float(seen), error=0.15, other=float(other), p_shuffled=p, p_matched=p,
                  unit=unit),
            knows(seed, known, half=1.96 * error) | {"unit": unit},
        ]  # fmt: skip
    return decision_of(rows, findings.reported(rows))[1]


TRUTHS = {
    "declared": ({"cosine": 0.58, "auc": 0.85}, {"supported"}, {"contradicted", "equivalent"}),
    "opposite": ({"cosine": -0.4, "auc": 0.85}, {"contradicted"}, {"supported", "equivalent"}),
    "null": ({"cosine": 0.0, "auc": 0.85}, set(), {"supported", "equivalent"}),
    "margin": ({"cosine": 0.1, "auc": 0.85}, set(), {"contradicted", "equivalent"}),
    "unknown": ({"cosine": 0.58, "auc": 0.5}, {"not testable"}, {"supported", "contradicted"}),
}


@pytest.mark.parametrize("seeds", [1, 5])
@pytest.mark.parametrize("truth", TRUTHS)
def test_the_rule_can_speak(truth: str, seeds: int) -> None:
    """The right word in 80% of draws, and an upper 99% bound of the wrong ones below 10%."""
    planted_truth, right, wrong = TRUTHS[truth]
    draw, count = np.random.default_rng(7), 150
    words = [simulated(draw, seeds=seeds, **planted_truth).verdict for _ in range(count)]
    if right:
        assert sum(word in right for word in words) >= 0.8 * count
    mistakes = sum(word in wrong for word in words)
    bound = stats.binomtest(mistakes, count).proportion_ci(0.98).high  # one-sided at 99%
    assert bound < 0.1


def test_premises_are_three() -> None:
    assert findings.RULE.premises == (KNOWN, VECTOR, SHIFT)
