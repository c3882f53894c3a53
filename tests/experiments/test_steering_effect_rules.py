"""Claim C7: every word on rows made for it, planted networks, and how often each word comes."""

import numpy as np
import pytest
from scipy import stats

from experiments.parts import parts
from experiments.planted_links import planted
from experiments.test_step_vs_vector_rules import knows, only
from frenet.experiments.experiment import Cell, Row
from frenet.experiments.intervals import select
from frenet.experiments.setup.contrast_notes import PREMISES
from frenet.experiments.steering_effect import Config, findings, measure
from frenet.experiments.steering_effect.findings import HALF, STEERS, TWICE, decide, decision_of

NULLS = {"random": 0.2, "matched": 0.5, "shuffled": 0.4, "unrelated": 0.3}


def keys(**changes: object) -> Row:
    same: Row = {"seed": 0, "space": "full", "behaviour": "b", "push": "own", "block": 1}
    return same | {"unit": "prompt"} | changes


def effect(ratio: float, *, contrast: float = 1.0, nulls=NULLS, **changes: object) -> list[Row]:
    """The slopes and their ratio in one cell."""
    ceilings = {"ceiling": 0.9, "ceiling_shift": 0.8}
    ceilings |= {k: changes.pop(k) for k in tuple(changes) if k in ceilings}
    for name in tuple(ceilings):
        ceilings |= {f"{name}_low": ceilings[name] - 0.1, f"{name}_high": ceilings[name] + 0.1}
    at = keys(**changes)
    slope = {"table": "slope", **at, "prompts": 88, **nulls, **ceilings}
    return [
        slope | {"vector": "contrast", "slope": contrast},
        slope | {"vector": "gradient", "slope": ratio * contrast},
        {"table": "ratio", **at, "prompts": 88, "ratio": ratio, "ratio_low": ratio - 0.1,
         "ratio_high": ratio + 0.1},
    ]  # fmt: skip


def over_seeds(ratios: list[float], *, auc: float = 0.8, **changes: object) -> list[Row]:
    rows: list[Row] = []
    for seed, ratio in enumerate(ratios):
        contrast = 1 + 0.01 * seed
        rows += effect(ratio, contrast=contrast, unit="seed", seed=seed, **changes)
        rows.append(knows(seed, auc) | {k: v for k, v in changes.items() if k == "space"})
    return rows


def over_prompts(
    ratio: float, *, auc: float = 0.8, noise: float = 0.5, n: int = 88, nulls=NULLS,
    contrast: float = 1.0, draw: np.random.Generator | None = None, **changes: object,
) -> list[Row]:  # fmt: skip
    """Slopes of n prompts around 1 and the ratio; what prompts have in common is paired."""
    rng = draw or np.random.default_rng(0)
    shared = rng.normal(0, noise, n)
    columns = {"contrast": contrast, "gradient": ratio * contrast, **nulls}
    noisy = {name: mean + shared + rng.normal(0, noise, n) for name, mean in columns.items()}
    at = keys(**changes)
    prompts = [
        {"table": "prompt", **at, "prompt": i} | {k: float(v[i]) for k, v in noisy.items()}
        for i in range(n)
    ]
    same = {"unit": "prompt", "behaviour": at["behaviour"]}
    rows = effect(ratio, contrast=contrast, nulls=nulls, **changes)
    return [*rows, *prompts, knows(0, auc, half=0.1) | same]


ALONE = {k: v for k, v in NULLS.items() if k != "unrelated"}


@pytest.mark.parametrize(
    ("rows", "verdict", "why"),
    [
        (over_prompts(1.0), "supported", "is above 0"),
        (over_prompts(0.05), "contradicted", "minus 0.5 times"),
        (over_prompts(-0.5), "contradicted", "minus 0.5 times"),
        (over_prompts(3.5), "contradicted", "minus 2 times"),
        (over_prompts(0.5), "undecided", "minus 0.5 times"),
        (over_prompts(1.0, auc=0.58), "not testable", "the AUC"),
        (over_prompts(1.0, auc=0.2), "not testable", "answers swapped"),
        (over_prompts(1.0, ceiling=0.35), "not testable", "more --rows"),
        (over_prompts(1.0, ceiling_shift=0.1), "not testable", "shift for b is not"),
        (over_prompts(1.0, nulls=NULLS | {"matched": 1.0}), "not testable", "stream's covariance"),
        (over_prompts(1.0, nulls=NULLS | {"shuffled": 1.2}), "not testable", "shuffled labels"),
        (over_prompts(1.0, nulls=NULLS | {"unrelated": 1.2}), "not testable", "other contrasts"),
        (over_prompts(1.0, nulls=ALONE), "not testable", "pass a second one with --tasks"),
        (over_prompts(1.0, nulls=ALONE), "not testable", "alone say supported"),
        (over_seeds([0.9, 1.0, 1.1]), "supported", "is below 0"),
        (over_seeds([0.30, 0.31, 0.32]), "contradicted", "minus 0.5 times"),
        (over_seeds([3.0, 3.1, 3.2]), "contradicted", "minus 2 times"),
        (over_seeds([-0.9, -1.0, -1.1]), "contradicted", "minus 0.5 times"),
        (over_seeds([0.2, 1.0, 2.1]), "undecided", "is not clearly"),
        (over_seeds([0.5, 0.6, 0.7]), "undecided", "minus 0.5 times"),  # one end alone is outside
        (over_seeds([1.0]), "undecided", "only one seed"),
        (over_seeds([0.9, 1.0, 1.1], nulls=NULLS | {"matched": 1.5}), "not testable", "covariance"),
        (over_seeds([0.9, 1.0, 1.1], nulls=ALONE), "not testable", "alone say supported"),
        (over_seeds([0.9, 1.0, 1.1], auc=0.5), "not testable", "the AUC"),
        ([], "not testable", "nothing was measured"),
    ],
)
def test_every_word(rows: list[Row], verdict: str, why: str) -> None:
    finding = only(decide(rows))
    assert finding.verdict == verdict
    assert why in finding.why


def test_one_sided_tests_at_5_percent_decide() -> None:
    """t(2) is 2.92 at 5%: of 0.1 +- t 0.05 / sqrt(3), only the inner interval clears 0."""
    rows = over_seeds([0.55, 0.6, 0.65])
    for row in select(rows, table="slope"):  # the same slope of the contrast vector in each seed
        row["slope"] = row["slope"] if row["vector"] == "gradient" else 1.0
    for row, ratio in zip(select(rows, vector="gradient"), (0.55, 0.6, 0.65), strict=True):
        row["slope"] = ratio
    found = findings.linear(rows, select(rows, table="slope"), ("b",), 0.5)
    assert found.value == pytest.approx(0.1)
    assert found.narrow == pytest.approx((0.1 - 2.9199856 * 0.05 / 3**0.5,
                                          0.1 + 2.9199856 * 0.05 / 3**0.5))  # fmt: skip
    assert found.raw[0] < 0 < found.narrow[0]
    assert only(decide(rows)).verdict == "supported"


def test_contrasts_are_strata_of_equal_weight() -> None:
    """88 prompts of one contrast and 22 of another weigh alike."""
    rows = over_prompts(1.0, noise=0.0) + over_prompts(0.6, noise=0.0, n=22, behaviour="c")
    found = findings.linear(rows, select(rows, table="slope"), ("b", "c"), 0.5)
    assert found.value == pytest.approx((0.5 + 0.1) / 2)
    assert (found.n, found.unit) == (110, "prompt")


def test_the_interval_over_prompts_is_about_students() -> None:
    rows = over_prompts(1.0, n=200)
    found = findings.linear(rows, select(rows, table="slope"), ("b",), 0.5)
    values = [r["gradient"] - 0.5 * r["contrast"] for r in select(rows, table="prompt")]
    error = np.std(values, ddof=1) / 200**0.5
    assert found.raw == pytest.approx(np.mean(values) + 1.972 * error * np.array([-1, 1]), abs=0.02)
    assert found.narrow[0] > found.raw[0]


def test_it_is_judged_on_the_contrasts_whose_vectors_steer() -> None:
    weak = over_prompts(0.0, behaviour="weak", nulls=NULLS | {"matched": 2.0})
    finding = only(decide(over_prompts(1.0) + weak))
    assert finding.verdict == "supported"
    assert finding.estimate is not None
    assert finding.estimate.value == pytest.approx(1.0)
    assert finding.notes[0].startswith("weak does not count: the slope of the contrast vector")


def test_each_space_is_a_case() -> None:
    found = decide(over_seeds([0.9, 1.0, 1.1]) + over_seeds([0.3, 0.31, 0.32], space="lora"))
    assert [(f.name, f.verdict) for f in found] == [
        ("C7", "supported"),
        ("C7 with LoRA", "contradicted"),
    ]


def test_rows_of_an_earlier_version_lack_premises() -> None:
    """They say what the criteria alone say."""
    gone = {"unit", "prompts", "unrelated", "known_low", "known_high"}
    old = [
        {k: v for k, v in row.items() if k not in gone and not k.startswith("ceiling")}
        for row in over_seeds([0.9, 1.0, 1.1])
    ]
    finding = only(decide(old))
    assert finding.verdict == "not testable"
    assert "the criteria alone say supported" in finding.why
    for figure in findings.FIGURES if hasattr(findings, "FIGURES") else ():
        figure.chart(select(old, table=figure.table))


def test_ratios_and_slopes_are_listed_by_contrast() -> None:
    rows = over_seeds([0.9, 1.0, 1.1])
    finding = only(decide(rows))
    (own,) = parts(finding, "Ratios of slopes")
    named = [own[key] for key in ("behaviour", "space", "push", "blocks")]
    assert named == ["b", "full", "own", "1"]
    assert own["ratio"] == pytest.approx(1.0)
    assert own["high"] == pytest.approx(1 + 4.302652729911275 * 0.1 / 3**0.5)
    assert (own["alike from"], own["alike up to"]) == (0.5, 2.0)
    listed = {row["vector"]: row["slope"] for row in parts(finding, "Slopes")}
    assert listed["contrast vector"] == pytest.approx(1.01)
    assert listed["other contrasts, the largest"] == pytest.approx(0.3)
    assert finding.reference_estimate is not None
    assert finding.reference_estimate.value == pytest.approx(0.5 * np.mean([1, 1 / 1.01, 1 / 1.02]))


def run(monkeypatch: pytest.MonkeyPatch, seeds: int = 1, **how: object) -> list[Row]:
    unit = "seed" if seeds > 1 else "prompt"
    monkeypatch.setattr(measure, "steered", lambda _, cell: planted(cell.seed, unit=unit, **how))
    config = Config(
        draws=3, doses=(0.05, 0.2), resamples=200, halves=4, equal_rows=4, neutral_rows=2
    )
    rows: list[Row] = []
    for seed in range(seeds):
        cell = Cell.of(seed=seed, space="full", behaviour="planted", push="own")
        rows += measure.run(config, cell)
    return rows


@pytest.mark.parametrize(
    ("how", "verdict"),
    [
        ({}, "supported"),
        ({"seeds": 3}, "supported"),
        ({"link": 0.05}, "contradicted"),  # it learns along another direction
        ({"swapped": True}, "not testable"),
        ({"known": 0.0}, "not testable"),
    ],
)
def test_planted_networks(monkeypatch: pytest.MonkeyPatch, how: dict, verdict: str) -> None:
    assert only(decide(run(monkeypatch, **how))).verdict == verdict


def test_every_prompt_has_its_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their means are the slopes of the cell; log-odds are linear in h here, so all are equal."""
    rows = run(monkeypatch)
    prompts = select(rows, table="prompt")
    assert [row["prompt"] for row in prompts] == list(range(88))
    for vector in ("contrast", "gradient"):
        (row,) = select(rows, table="slope", vector=vector)
        each = [prompt[vector] for prompt in prompts]
        assert np.mean(each) == pytest.approx(row["slope"])
        assert np.ptp(each) < 1e-3 * abs(row["slope"])
    for null in ("random", "matched", "shuffled", "unrelated"):
        assert np.mean([prompt[null] for prompt in prompts]) == pytest.approx(row[null])
    assert row["ceiling_shift"] == pytest.approx(1.0)


# The ratio, whether the contrast vector steers, the right words, and the wrong ones.
TRUTHS = {
    "declared": ({"ratio": 1.0}, {"supported"}, {"contradicted"}),
    "no effect of the step": ({"ratio": 0.0}, {"contradicted"}, {"supported"}),
    "lower margin": ({"ratio": 0.5}, set(), {"supported"}),
    "upper margin": ({"ratio": 2.0}, set(), {"supported"}),
    "null": (
        {"ratio": 1.0, "nulls": NULLS | {"matched": 1.0}},
        {"not testable"},
        {"supported", "contradicted"},
    ),
}


def word(rows: list[Row], ratio: float, names: tuple[str, ...], *, margin: bool) -> str:
    """The verdict; at a margin, whether its own criterion holds.

    A one-sided test at 5% is wrong in 5% there, which takes many draws to be shown; the premises,
    which do not depend on the ratio, are left out.
    """
    slopes = select(rows, table="slope")
    if not margin:
        return decision_of(rows, slopes)[1].verdict
    criterion, weight = (HALF, 0.5) if ratio == 0.5 else (TWICE, 2.0)
    low, high = findings.linear(rows, slopes, names, weight).narrow
    return "supported" if criterion.lines[0] < low and high < criterion.lines[1] else "other"


@pytest.mark.parametrize("truth", TRUTHS)
def test_the_rule_can_speak_over_prompts(truth: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two contrasts of 100 prompts. Right in 80%; upper 99% bound of the wrong words below 10%."""
    monkeypatch.setattr(findings, "RESAMPLES", 200)
    planted_truth, right, wrong = TRUTHS[truth]
    draw, words = np.random.default_rng(3), []
    for _ in range(120 if right else 300):
        rows = [
            row
            for name in ("b", "c")
            for row in over_prompts(n=100, behaviour=name, draw=draw, noise=1.0, **planted_truth)
        ]
        words.append(word(rows, planted_truth["ratio"], ("b", "c"), margin=not right))
    _speaks(words, right, wrong)


@pytest.mark.parametrize("truth", TRUTHS)
def test_the_rule_can_speak_over_seeds(truth: str) -> None:
    """Five seeds, whose slopes vary by 20%."""
    planted_truth, right, wrong = TRUTHS[truth]
    draw, words = np.random.default_rng(5), []
    for _ in range(120 if right else 300):
        rows: list[Row] = []
        for seed in range(5):
            contrast, shift = draw.normal(1, 0.2), draw.normal(planted_truth["ratio"], 0.2)
            nulls = planted_truth.get("nulls", NULLS)
            given = {name: float(draw.normal(mean, 0.1)) for name, mean in nulls.items()}
            rows += effect(
                float(shift / contrast), contrast=float(contrast), nulls=given, unit="seed",
                seed=seed,
            )  # fmt: skip
            rows.append(knows(seed, float(draw.normal(0.85, 0.05))))
        words.append(word(rows, planted_truth["ratio"], ("b",), margin=not right))
    _speaks(words, right, wrong)


def _speaks(words: list[str], right: set[str], wrong: set[str]) -> None:
    if right:
        assert sum(word in right for word in words) >= 0.8 * len(words)
    mistakes = sum(word in wrong for word in words)
    bound = stats.binomtest(mistakes, len(words)).proportion_ci(0.98).high  # one-sided at 99%
    assert bound < 0.1


def test_premises_are_those_of_c6_and_three_of_the_vector() -> None:
    assert findings.RULE.premises == (*PREMISES, *STEERS.values())
