import math

import numpy as np
import pytest

from frenet.statistics.equivalence import equivalence
from frenet.statistics.intervals import Estimate, mean_interval

# Differences with mean 1 and standard error 1: t of the limits is their distance from 1.
DIFFERENCES = [1 - math.sqrt(5), 1.0, 1.0, 1.0, 1 + math.sqrt(5), 1.0]


def drawn(key):
    return 0.3 * np.random.default_rng(key).standard_normal(8) + 0.1


def test_two_one_sided_tests_in_closed_form():
    """With s / sqrt(n) = sqrt(2) / sqrt(6), the larger p belongs to the nearer limit."""
    error = math.sqrt(10 / 5 / 6)
    found = equivalence(DIFFERENCES, lower=1 - 9 * error, upper=1 + 2.015048 * error)
    assert found.estimate == mean_interval(DIFFERENCES, level=0.9)
    # 2.015048 is the 95% quantile of t with five degrees of freedom.
    assert found.p == pytest.approx(0.05, abs=1e-6)
    mirrored = equivalence(DIFFERENCES, lower=1 - 2.015048 * error, upper=1 + 9 * error)
    assert mirrored.p == pytest.approx(found.p)


def test_it_is_that_of_statsmodels():
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    for key in range(20):
        one, other = drawn(key), np.zeros(8)
        p, _, _ = weightstats.ttost_paired(one, other, -0.2, 0.4)
        assert equivalence(one - other, lower=-0.2, upper=0.4).p == pytest.approx(p)


@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_it_holds_if_and_only_if_the_interval_lies_inside(alpha):
    verdicts = set()
    for key in range(60):
        found = equivalence(drawn(key), lower=-0.2, upper=0.35, alpha=alpha)
        _, low, high, _ = mean_interval(drawn(key), level=1 - 2 * alpha)[:4]
        assert found.holds == (low > -0.2 and high < 0.35) == (found.p < alpha)
        verdicts.add(found.holds)
    assert verdicts == {True, False}


def test_at_the_limit_it_holds_wrongly_at_most_as_often_as_alpha():
    repeats = 2000
    draws = np.random.default_rng(0).normal(0.05, 0.02, (repeats, 5))
    wrong = sum(equivalence(values, lower=-0.05, upper=0.05).holds for values in draws) / repeats
    assert abs(wrong - 0.05) < 4 * math.sqrt(0.05 * 0.95 / repeats)


def test_of_equal_values_and_of_one():
    found = [equivalence([x] * 3, lower=-0.1, upper=0.1) for x in (0.0, 0.1, 0.3)]
    assert [(each.p, each.holds) for each in found] == [(0.0, True), (0.5, False), (1.0, False)]
    assert equivalence([0.0], lower=-0.1, upper=0.1) == (Estimate(0.0), None, False)


@pytest.mark.parametrize(
    ("values", "limits", "alpha", "message"),
    [
        ([0.0, 1.0], (0.1, -0.1), 0.05, r"lower=0.1 must be below upper=-0.1"),
        ([0.0, 1.0], (-0.1, 0.1), 0.5, r"alpha=0.5 must be between 0 and 0.5"),
        ([0.0, 1.0], (-0.1, 0.1), 0.0, r"alpha=0.0 must be between 0 and 0.5"),
        ([], (-0.1, 0.1), 0.05, "there is no value; pass at least one"),
        ([math.nan], (-0.1, 0.1), 0.05, "value 0 of 1 is nan"),
    ],
)
def test_it_refuses_what_it_cannot_say(values, limits, alpha, message):
    with pytest.raises(ValueError, match=message):
        equivalence(values, lower=limits[0], upper=limits[1], alpha=alpha)
