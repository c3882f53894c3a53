"""How claims are decided: what one criterion says, what several say together, and premises."""

import itertools

import numpy as np
import pytest
from scipy import stats

from frenet.experiments.experiment import Finding, Needs
from frenet.experiments.intervals import mean_of
from frenet.experiments.verdicts import (
    Chance,
    Condition,
    Count,
    Criterion,
    Rule,
    every,
    most_needed,
)
from frenet.statistics import power
from frenet.statistics.intervals import Estimate, sample

ORDER = ("fails", "open", "equal", "holds")
VERDICT = {
    "fails": "contradicted",
    "open": "undecided",
    "equal": "equivalent",
    "holds": "supported",
}
STATES = {state: Condition(state, state) for state in ORDER}


def interval(low: float, high: float, inner: tuple[float, float] | None = None) -> Estimate:
    return Estimate((low + high) / 2, low, high, 3, raw=(low, high), narrow=inner or (low, high))


@pytest.mark.parametrize(
    ("low", "high", "above", "below", "within"),
    [
        (0.0, 0.9, "fails", "holds", "fails"),
        (0.0, 1.0, "open", "open", "open"),  # a line that is touched decides nothing
        (1.0, 2.0, "open", "open", "holds"),  # the ends of a range are inside
        (0.9, 1.1, "open", "open", "open"),
        (1.1, 2.1, "holds", "fails", "open"),
        (2.1, 2.2, "holds", "fails", "fails"),
    ],
)
def test_a_criterion_is_decided_by_the_whole_interval(
    low: float, high: float, above: str, below: str, within: str
) -> None:
    found = interval(low, high)
    assert Criterion("x", above=1.0).of(found).state == above
    assert Criterion("x", below=1.0).of(found).state == below
    assert Criterion("x", within=(1.0, 2.0)).of(found).state == within
    # The same for a paired difference from another quantity.
    assert Criterion("x", over="y").of(interval(low - 1, high - 1)).state == above


@pytest.mark.parametrize(
    ("outer", "inner", "within", "above", "one_sided"),
    [
        ((0.9, 2.1), (1.0, 2.0), "holds", "open", "open"),  # two one-sided tests at 5%
        ((0.9, 2.1), (1.1, 1.9), "holds", "open", "holds"),
        ((1.5, 2.5), (1.6, 2.4), "open", "holds", "holds"),
        ((0.5, 1.2), (0.6, 0.9), "open", "open", "open"),  # the 95% interval has to lie outside
        ((0.5, 0.99), (0.6, 0.9), "fails", "fails", "fails"),
    ],
)
def test_the_inner_interval_decides_equality_and_one_sided_tests(
    outer: tuple[float, float], inner: tuple[float, float], within: str, above: str, one_sided: str
) -> None:
    found = interval(*outer, inner)
    assert Criterion("x", within=(1.0, 2.0)).of(found).state == within
    assert Criterion("x", above=1.0).of(found).state == above
    assert Criterion("x", above=1.0, one_sided=True).of(found).state == one_sided


@pytest.mark.parametrize(
    ("outer", "inner", "state"),
    [
        ((0.01, 0.06), (0.02, 0.05), "equal"),  # above 0, and smaller than the margin
        ((-0.06, -0.01), (-0.05, -0.02), "equal"),
        ((0.01, 0.07), (0.02, 0.06), "holds"),
        ((-0.07, -0.01), (-0.06, -0.02), "fails"),
        ((-0.01, 0.07), (0.0, 0.06), "open"),
    ],
)
def test_a_difference_below_its_margin_is_equal_whatever_its_sign(
    outer: tuple[float, float], inner: tuple[float, float], state: str
) -> None:
    criterion = Criterion("the lead", above=0.0, margin=0.05)
    assert criterion.of(interval(*outer, inner)).state == state


@pytest.mark.parametrize("best_of", [1, 2, 4])
def test_the_best_of_several_fails_by_the_test_of_bonferroni(best_of: int) -> None:
    rng, said = np.random.default_rng(4), []
    for values in rng.normal(0.3, 0.04, size=(40, 5)):
        p = stats.ttest_1samp(values, 0.25).pvalue
        state = Criterion("x", below=0.25).of(mean_of(list(values)), best_of=best_of).state
        assert (state == "fails") == (p < 0.05 / best_of and values.mean() > 0.25)
        said.append(state)
    assert {"fails", "open"} <= set(said)


def test_the_interval_on_the_raw_scale_decides_and_not_the_one_that_is_shown() -> None:
    shares = mean_of([0.9, 0.95, 1.0], least=0.0)
    # t(2) = 4.302653, the standard error 0.05 / sqrt(3).
    assert shares.raw == pytest.approx((0.8257931, 1.0742069))
    assert shares.low < 0.82 < shares.raw[0]
    assert shares.high <= 1.0
    assert Criterion("the share", above=0.82).of(shares).state == "holds"
    assert Criterion("the share", above=0.83).of(shares).state == "open"


def test_what_has_no_interval_decides_nothing_and_is_named() -> None:
    criterion = Criterion("the ratio", above=0.5)
    nothing, one = criterion.of(None), criterion.of(Estimate(0.9, unit="seed"))
    assert (nothing.state, one.state) == ("open", "open")
    assert (nothing.counted, one.counted) == (False, False)
    assert (nothing.needs, one.needs) == (None, Needs("seed", 1))
    assert "the ratio" in nothing.why
    assert "one seed" in one.why


def test_a_criterion_needs_one_line() -> None:
    for lines in ({}, {"above": 1.0, "below": 2.0}, {"over": "y", "within": (0.0, 1.0)}):
        with pytest.raises(ValueError, match="the criterion of x has"):
            Criterion("x", **lines)


def test_a_criterion_that_contradicts_nothing_is_open_beyond_its_line() -> None:
    found = Criterion("x", above=1.0, contradicts=False).of(interval(0.1, 0.2))
    assert found.state == "open"
    assert found.needs is None  # more units would not settle it


VALUES = [0.30, 0.62, 0.41, 0.55]


@pytest.mark.parametrize(
    ("criterion", "needed", "smallest"),
    [
        (
            Criterion("x", above=0.4),
            power.units_needed(sample(VALUES), 0.4),
            power.smallest_effect(sample(VALUES)),
        ),
        (
            Criterion("x", below=0.5, one_sided=True),
            power.units_needed(sample(VALUES), 0.5, level=0.9),
            power.smallest_effect(sample(VALUES), level=0.9),
        ),
        (
            Criterion("x", within=(0.35, 0.6)),
            power.units_for_equivalence(sample(VALUES), lower=0.35, upper=0.6),
            power.smallest_margin(sample(VALUES)),
        ),
        (  # equality within 0.6 takes fewer units than a difference from 0
            Criterion("x", above=0.45, margin=0.6),
            power.units_for_equivalence(sample(VALUES), lower=-0.6, upper=0.6),
            power.smallest_effect(sample(VALUES)),
        ),
    ],
)
def test_an_open_criterion_says_what_would_settle_it(
    criterion: Criterion, needed: power.Needed, smallest: float
) -> None:
    needs = criterion.of(mean_of(VALUES, unit="prompt")).needs
    assert needs is not None
    assert (needs.unit, needs.n) == ("prompt", 4)
    assert (needs.about, needs.low, needs.high) == tuple(needed)
    assert needs.smallest == pytest.approx(smallest)


def test_p_values_and_counts_hold_at_their_limits_as_written() -> None:
    chance, count = Chance("the cosine", 0.025), Count("the number of searches", 20)
    assert [chance.of(p).state for p in (0.0249, 0.025, 1.0)] == ["holds", "open", "open"]
    assert [count.of(n).state for n in (19, 20)] == ["fails", "holds"]
    assert chance.of(None).counted is False


@pytest.mark.parametrize("states", list(itertools.product(ORDER, repeat=3)))
def test_several_conditions_are_joined_in_three_valued_logic(states: tuple[str, ...]) -> None:
    """The worst of all; an open one may still turn out to fail, and comes before equal."""
    assert every([STATES[state] for state in states]).state == min(states, key=ORDER.index)


def test_of_no_cases_nothing_is_said() -> None:
    assert every([]).state == "open"


def test_all_criteria_that_are_open_have_to_be_settled() -> None:
    few, many, never = Needs("seed", 3, 7, 4, 20), Needs("seed", 3, 40, 9, None), Needs("seed", 1)
    opened = [Condition("open", "", needs) for needs in (few, many)]
    assert most_needed(opened) is many
    assert most_needed([*opened, Condition("open", "", never)]) is never
    assert most_needed([STATES["holds"]]) is None


@pytest.mark.parametrize("premise", ORDER[:2] + ORDER[3:])
@pytest.mark.parametrize("states", list(itertools.product(ORDER, repeat=2)))
def test_premises_come_first_and_one_failure_is_enough(
    states: tuple[str, str], premise: str
) -> None:
    a, b, needed = (Criterion(name, above=0.0) for name in ("a", "b", "premise"))
    rule = Rule((a, b), premises=(needed,))
    measured = dict(zip((a, b), (STATES[state] for state in states), strict=True))
    decision = rule.decide({**measured, needed: STATES[premise]})
    worst = min(states, key=ORDER.index)
    assert decision.verdict == (VERDICT[worst] if premise == "holds" else "not testable")
    assert decision.why.split("; ")[0] == (worst if premise == "holds" else premise)


def test_one_seed_does_not_decide_that_a_claim_cannot_be_tested() -> None:
    claim, premise = Criterion("x", above=0.0), Criterion("the premise", above=0.0)
    rule, alone = Rule((claim,), premises=(premise,)), Estimate(0.5, unit="seed")
    decision = rule.decide({claim: claim.of(alone), premise: premise.of(alone)})
    assert str(decision) == "undecided (1 seed)"


def test_a_premise_that_was_not_measured_is_unknown_and_the_rest_is_said() -> None:
    claim, premise = Criterion("x", above=0.0), Criterion("the premise", above=0.0)
    rule = Rule((claim,), premises=(premise,))
    decision = rule.decide({claim: claim.of(interval(0.1, 0.2)), premise: premise.of(None)})
    assert decision.verdict == "not testable"
    assert "the premise was not measured" in decision.why
    assert "supported" in decision.why


def test_a_rule_may_be_contradicted_by_a_line_that_does_not_support_it() -> None:
    claim = Chance("the cosine", 0.025)
    small = Criterion("the excess", below=0.1)
    rule = Rule((claim,), against=(small,))
    for p, ends, verdict in (
        (0.01, (0.05, 0.2), "supported"),
        (0.5, (0.05, 0.2), "undecided"),
        (0.01, (0.02, 0.08), "contradicted"),
        (0.5, (-0.1, 0.05), "contradicted"),
    ):
        measured = {claim: claim.of(p), small: small.of(interval(*ends))}
        assert rule.decide(measured).verdict == verdict


def test_a_verdict_says_what_belongs_to_its_word() -> None:
    lead = Criterion("the lead", above=0.0, margin=0.05)
    decide = Rule((lead,)).decide
    assert str(decide({lead: lead.of(interval(-0.01, 0.02))})) == "equivalent (within 0.05)"
    opened = decide({lead: lead.of(mean_of([-0.1, 0.2, 0.15]))})
    needs = opened.needs
    assert needs is not None
    assert str(opened).startswith(f"undecided (3 of about {needs.about} seeds, ")
    assert str(decide({lead: lead.of(interval(0.1, 0.2))})) == "supported"


def test_a_rule_needs_all_its_requirements_measured_and_at_least_one() -> None:
    a, b = Criterion("a", above=0.0), Criterion("b", above=0.0)
    with pytest.raises(KeyError):
        Rule((a, b)).decide({a: STATES["holds"]})
    with pytest.raises(ValueError, match="without criteria"):
        Rule(()).decide({})


def test_the_sentence_of_a_rule_has_all_its_lines() -> None:
    rule = Rule(
        (Criterion("x", above=0.5), Criterion("y", over="z"), Criterion("w", within=(0.67, 0.87))),
        premises=(Count("the number of searches", 20),),
        against=(Criterion("v", below=0.1),),
    )
    words = str(rule)
    for part in ("x is above 0.5", "y is above z", "[0.67, 0.87]", "at least 20", "v is below 0.1"):
        assert part in words


def test_a_reason_has_the_number_and_what_the_units_at_hand_would_have_shown() -> None:
    lead = Criterion("the lead", over="the other")
    assert "(difference -0.15 [-0.2, -0.1])" in lead.of(interval(-0.2, -0.1)).why
    values = [-0.1, 0.2, 0.15]
    decision = Rule((lead,)).decide({lead: lead.of(mean_of(values))})
    found = Finding("S9", decision, "", None, "", None)
    smallest = power.smallest_effect(sample(values))
    assert f"with 3 seeds, {smallest:.2g} from the line" in found.reason
    # The raw interval, which decides: t(2) = 4.302653.
    half = 4.302653 * sample(values).error
    assert f"[{1 / 12 - half:.3g}, {1 / 12 + half:.3g}]" in found.reason
