"""Every rule says the right word of a planted truth, and seldom a wrong one.

The words are those of the real rules, for rows of five seeds with the spread of the pilot
(``planted.py``); docs/power.md has the shares of all words.
"""

from collections import Counter
from typing import get_args

import numpy as np
import pytest
from scipy import stats

from experiments import planted
from experiments.planted import (
    DECIDED,
    NOT_TESTABLE,
    PLANNED,
    RULES,
    WITHOUT,
    Planted,
    Truth,
    draws,
    upper,
    word,
    words,
)
from frenet.experiments import EXPERIMENTS
from frenet.experiments.experiment import Verdict
from test_site import DOCS, module

# Checks of types would take most of the time.
pytestmark = pytest.mark.usefixtures("unchecked")
POWER = 0.8
# If the first draws are not enough to show it, the second number is drawn anew.
FAST, SLOW = (100, 600), (2_000, 10_000)
CASES = [
    pytest.param(rule, truth, id=f"{rule.claim}: {truth.name}")
    for rule in RULES
    for truth in rule.every_truth
]


SMOLLM2 = "SmolLM2-135M-Instruct-Q4_1"


def faults(rule: Planted, truth: Truth, *, draws: int, most: float) -> list[str]:
    """Wrong words that may come more often than ``most``, and a right one that comes too seldom.

    The power at the declared effect counts as too low if its upper 99% bound is below 80%.
    """
    said = words(rule, truth, count=draws)
    found = [
        f"{word} in {said[word]} of {draws}"
        for word in DECIDED
        if word not in truth.right and upper(said[word], draws) >= most
    ]
    if truth.name == rule.effect:
        enough = words(rule, truth, count=draws, n=rule.enough)
        if upper(enough["supported"], draws) < POWER:
            found.append(f"supported in {enough['supported']} of {draws}")
        if rule.enough > PLANNED and upper(said["supported"], draws) >= POWER:
            found.append(f"supported in {said['supported']} of {draws} with {PLANNED} seeds")
    if truth.right == NOT_TESTABLE and said["not testable"] < POWER * draws:
        found.append(f"not testable in {said['not testable']} of {draws}")
    return found


@pytest.mark.parametrize(("rule", "truth"), CASES)
def test_a_rule_says_the_right_word_and_seldom_a_wrong_one(rule: Planted, truth: Truth) -> None:
    first, second = FAST
    if faults(rule, truth, draws=first, most=0.1):
        assert faults(rule, truth, draws=second, most=0.1) == []


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "truth"), CASES)
def test_the_same_in_many_draws(rule: Planted, truth: Truth) -> None:
    first, second = SLOW
    if faults(rule, truth, draws=first, most=0.06):
        assert faults(rule, truth, draws=second, most=0.06) == []


def test_the_page_has_the_shares_of_these_rules() -> None:
    """Every share is one that the draws of the tests may have come from."""
    _, _, table = (DOCS / "power.md").read_text(encoding="utf-8").partition("## All truths")
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if " | 0." in line]
    told = {(line[0], line[1]): [float(share) for share in line[3:]] for line in lines}
    assert list(told) == [(rule.claim, truth.name) for rule in RULES for truth in rule.every_truth]
    few = FAST[0]
    for rule in RULES:
        for truth in rule.every_truth:
            said = words(rule, truth, count=few)
            for name, share in zip(get_args(Verdict), told[rule.claim, truth.name], strict=True):
                likely = min(max(share, 1e-3), 1 - 1e-3)
                p = stats.binomtest(said[name], few, likely).pvalue
                assert p > 1e-6, f"{rule.claim}, {truth.name}: run make power"


def test_every_rule_is_tried_except_those_without_rows_yet() -> None:
    claims = {claim.id for experiment in EXPERIMENTS.values() for claim in experiment.claims}
    assert {rule.claim for rule in RULES} == claims - WITHOUT


def test_words_do_not_depend_on_the_tables_that_are_left_out() -> None:
    for rule in RULES:
        for truth in rule.every_truth[:2]:
            plain = [rule.decide(rows) for rows in draws(rule, truth, count=5)]
            said = Counter(word(found) for found in plain)
            assert words(rule, truth, count=5) == said


def test_the_typical_spread_is_that_of_the_network_in_the_middle() -> None:
    """The median of the variance of three values is ln 2 of the true one."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.3, (2_001, 3)).tolist()
    found = {str(i): each for i, each in enumerate(values)}
    assert planted.spread(found, None) == pytest.approx(0.3, rel=0.05)
    assert planted.spread(found, "7") == pytest.approx(np.std(values[7], ddof=1))


def test_draws_have_their_mean_and_spread() -> None:
    rule = next(rule for rule in RULES if rule.claim == "C3")
    rows = [row for drawn in draws(rule, rule.every_truth[0], count=400) for row in drawn]
    ratios = [row["ratio"] for row in rows]
    deviation = planted.spread(planted.stored()["ratio"], None)
    assert np.mean(ratios) == pytest.approx(planted.RATIO, abs=4 * deviation / len(ratios) ** 0.5)
    assert np.std(ratios) == pytest.approx(deviation, rel=0.1)


def test_an_upper_bound_is_that_of_clopper_and_pearson() -> None:
    """0 of n: 1 - 0.01^(1 / n)."""
    assert planted.upper(0, 100) == pytest.approx(1 - 0.01 ** (1 / 100))


def test_a_page_has_powers_words_and_what_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = next(rule for rule in RULES if rule.claim == "C4b")
    monkeypatch.setattr(planted, "RULES", (rule,))
    page = module("power").page(draws=40, tried=40)
    assert page.startswith("# What the rules can say")
    powers, truths = page.split("## All truths")
    (line,) = [line for line in powers.splitlines() if line.startswith("| C4b | capture 0.77 | ")]
    typical = words(rule, rule.every_truth[0], count=40)["supported"] / 40
    assert line.split(" | ")[2] == f"{typical:.3f}"
    deviation = planted.spread(planted.stored()["prefix"], SMOLLM2)
    (short,) = [line for line in powers.splitlines() if line.startswith(f"- C4b on {SMOLLM2}")]
    assert f"Standard deviations over seeds: walk 0.0272, prefix {deviation:.3g}." in short
    shares = [line.strip("| ").split(" | ")[3:] for line in truths.splitlines() if "| C4b" in line]
    assert len(shares) == len(rule.every_truth)
    assert [sum(map(float, row)) for row in shares] == pytest.approx([1.0] * len(shares))
