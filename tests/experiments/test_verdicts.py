"""Three-valued logic of claims: what one criterion says, what several say together."""

import itertools
import math

import pytest

from frenet.experiments.verdicts import (
    Cases,
    Condition,
    Criterion,
    NoOutlier,
    Rule,
    alike,
    every,
    exact,
    some,
    upper_end,
)
from frenet.statistics.intervals import Estimate

ORDER = ("fails", "open", "holds")
STATES = {state: Condition(state, state) for state in ORDER}


def interval(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high, 3)


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
    assert Criterion("x", above=(1.0,)).of(found).state == above
    assert Criterion("x", below=(1.0,)).of(found).state == below
    assert Criterion("x", within=(1.0, 2.0)).of(found).state == within
    # A measured reference without width counts as a line.
    assert Criterion("x", above=("the null",)).of(found, than=exact(1.0)).state == above


@pytest.mark.parametrize(
    ("null", "state"),
    [((0.0, 0.4), "holds"), ((0.0, 0.5), "open"), ((0.7, 0.8), "open"), ((0.8, 0.9), "fails")],
)
def test_two_measured_quantities_are_compared_by_both_intervals(
    null: tuple[float, float], state: str
) -> None:
    above = Criterion("the energy", above=("the null",))
    assert above.of(interval(0.5, 0.7), than=interval(*null)).state == state
    turned = Criterion("the null", below=("the energy",))
    assert turned.of(interval(*null), than=interval(0.5, 0.7)).state == state


def test_what_has_no_interval_decides_nothing_and_is_named() -> None:
    criterion = Criterion("the ratio", above=(0.5, "the control"))
    one, sure = Estimate(0.9), interval(0.8, 0.9)
    assert criterion.of(None, than=sure).why == "the ratio was not measured"
    assert "one seed counts for the ratio" in criterion.of(one, than=sure).why
    assert "one seed counts for the control" in criterion.of(sure, than=Estimate(0.1)).why
    assert criterion.of(sure, than=None).why == "the control was not measured"
    states = {criterion.of(v, than=t).state for v in (None, one) for t in (None, sure)}
    assert states == {"open"}
    assert upper_end(one) is one
    assert upper_end(sure) == Estimate(0.9, 0.9, 0.9, 0)


def test_a_criterion_says_which_of_its_lines_it_misses() -> None:
    criterion = Criterion("x", above=(0.5, "the null"), below=(2.0,))
    null = interval(0.6, 0.7)
    missed = {
        (0.1, 0.2): "x is not above 0.5",
        (0.3, 0.9): "x is not clearly above 0.5",
        (0.51, 0.55): "x is not above the null",
        (0.65, 0.9): "x is not clearly above the null",
        (3.0, 4.0): "x is not below 2",
        (0.8, 0.9): "x is above 0.5 and the null and below 2",
    }
    assert {ends: criterion.of(interval(*ends), than=null).why for ends in missed} == missed
    assert criterion.of(interval(3.0, 4.0), than=null, case="in a").why == "x in a is not below 2"


def test_a_criterion_needs_a_line_and_names_the_only_one_of_a_range() -> None:
    with pytest.raises(ValueError, match="the criterion of x has no line"):
        Criterion("x")
    assert str(Criterion("x", within=(-math.inf, 0.9))) == "x is at most 0.9"


def test_a_criterion_that_contradicts_nothing_is_open_beyond_its_line() -> None:
    found = Criterion("x", above=(1.0,), contradicts=False).of(interval(0.1, 0.2))
    assert found == Condition("open", "x is not above 1")


@pytest.mark.parametrize("states", list(itertools.product(ORDER, repeat=3)))
def test_several_conditions_are_joined_in_three_valued_logic(states: tuple[str, ...]) -> None:
    """Kleene's: the least for all of them, the most for some, with fails < open < holds."""
    given = [STATES[state] for state in states]
    assert every(given).state == min(states, key=ORDER.index)
    assert some(given).state == max(states, key=ORDER.index)
    assert alike(given).state == (states[0] if len(set(states)) == 1 else "open")


def test_of_no_cases_nothing_is_said() -> None:
    assert {join([]).state for join in (every, some, alike)} == {"open"}


@pytest.mark.parametrize("premise", ORDER)
@pytest.mark.parametrize("states", list(itertools.product(ORDER, repeat=2)))
def test_premises_come_first_and_one_failure_is_enough(
    states: tuple[str, str], premise: str
) -> None:
    a, b, needed = (Criterion(name, above=(0.0,)) for name in ("a", "b", "premise"))
    rule = Rule((a, b), premises=(needed,))
    measured = dict(zip((a, b), (STATES[state] for state in states), strict=True))
    verdict, why = rule.decide({**measured, needed: STATES[premise]})
    worst = min(states, key=ORDER.index)
    expected = {"fails": "contradicted", "open": "undecided", "holds": "supported"}[worst]
    assert verdict == (expected if premise == "holds" else "undecided")
    assert why.split("; ")[0] == (worst if premise == "holds" else premise)


def test_a_rule_needs_all_that_it_asks_to_be_measured() -> None:
    a, b = Criterion("a", above=(0.0,)), Criterion("b", above=(0.0,))
    with pytest.raises(KeyError):
        Rule((a, b)).decide({a: STATES["holds"]})


def test_no_outlier_is_open_for_a_case_that_is_wholly_beyond() -> None:
    rows = [
        {"seed": seed, "task": task, "x": x}
        for seed in (0, 1)
        for task, x in (("low", 0.25), ("end", 0.5), ("in", 1.0), ("high", 9.0))
    ]
    rows.append({"seed": 0, "task": "one seed", "x": 99.0})
    # Whether the criterion contradicts the claim is no matter here.
    inside = Criterion("x", within=(0.5, 3.0), contradicts=False)
    asked = NoOutlier(inside, "task", ("task",))
    beyond = {"low", "high"}
    for task in ("low", "end", "in", "high", "one seed"):
        found = asked.of([row for row in rows if row["task"] == task], "x")
        assert (found.state, f"for {task} alone" in found.why) == (
            ("open", True) if task in beyond else ("holds", False)
        )
    assert asked.of(rows, "x").state == "open"


def test_the_sentence_of_a_rule_is_made_of_what_it_asks() -> None:
    lines = Criterion("the share", within=(0.9, math.inf))
    gains = Criterion("the gain", above=(0.75,), below=(1.25, "the control"))
    rule = Rule(
        (lines, Cases("in each space", (gains,)), NoOutlier(gains, "task", ("task",))),
        premises=(Criterion("the ceiling", above=(0.3,)),),
    )
    assert str(rule) == (
        "the share is at least 0.9; in each space, the gain is above 0.75 and below 1.25 and the "
        "control; no single task lies wholly outside that on its own, with the whole interval over "
        "seeds. Undecided unless the ceiling is above 0.3"
    )
