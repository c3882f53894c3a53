import math

import numpy as np
import pytest
from scipy import stats

from frenet.statistics.equivalence import equivalence
from frenet.statistics.intervals import Sample, mean_interval
from frenet.statistics.power import (
    MOST,
    Needed,
    smallest_effect,
    smallest_margin,
    t_power,
    tost_power,
    units_for_equivalence,
    units_needed,
)

REPEATS = 4000


def near(share, expected):
    return abs(share - expected) < 4 * math.sqrt(max(expected * (1 - expected), 1e-3) / REPEATS)


@pytest.mark.parametrize(("distance", "n"), [(0.5, 34), (0.2, 199), (0.8, 15)])
def test_units_of_a_paired_t_test_are_those_of_the_tables(distance, n):
    """Cohen's effects at 80% power and 5%, two-sided: 34, 199 and 15 pairs, as in G*Power."""
    found = Sample(1 + distance, 1.0, 10)
    assert units_needed(found, 1.0).n == n
    assert units_needed(Sample(1 - distance, 1.0, 10), 1.0) == units_needed(found, 1.0)
    assert t_power(distance, 1.0, n) >= 0.8 > t_power(distance, 1.0, n - 1)


def test_power_is_how_often_the_interval_clears_the_line():
    draws = np.random.default_rng(0).normal(0.7, 1.0, (REPEATS, 6))
    for level in (0.9, 0.95):
        share = np.mean([mean_interval(x, level=level).low > 0 for x in draws])
        assert near(share, t_power(0.7, 1.0, 6, level=level))


def test_power_is_that_of_statsmodels():
    power = pytest.importorskip("statsmodels.stats.power").TTestPower()
    for n, distance in ((3, 2.0), (5, 0.5), (200, 0.1)):
        other = power.power(distance, n, 0.025, alternative="larger")
        assert t_power(distance, 1.0, n) == pytest.approx(float(other), rel=1e-6)


def test_the_smallest_effect_is_the_one_with_80_percent_power():
    for n in (2, 3, 5, 30, 500):
        found = Sample(0.3, 2.0, n)
        assert t_power(smallest_effect(found), 2.0, n) == pytest.approx(0.8, abs=1e-6)
    # For many units it is that of a normal test, (1.96 + 0.84) s / sqrt(n).
    assert smallest_effect(Sample(0.0, 2.0, 5000)) == pytest.approx(
        2 * (1.959964 + 0.841621) / math.sqrt(5000), rel=1e-3
    )


def test_the_range_is_over_the_intervals_of_mean_and_spread():
    """t_{4, 90%} = 1.533206, and the 10% and 90% quantiles of chi^2_4 are 1.063623 and 7.779440."""
    found = Sample(1.0, 1.0, 5)
    half = 1.533206 / math.sqrt(5)
    narrow, wide = math.sqrt(4 / 7.779440), math.sqrt(4 / 1.063623)
    assert units_needed(found, 0.0) == Needed(
        units_needed(Sample(1.0, 1.0, 5), 0.0).n,
        units_needed(Sample(1.0 + half, narrow, 5), 0.0).n,
        units_needed(Sample(1.0 - half, wide, 5), 0.0).n,
    )
    assert units_needed(found, 0.5).high is None


def test_the_range_holds_the_number_that_is_needed_in_more_than_60_percent():
    truth = units_needed(Sample(1.0, 1.0, 5), 0.0).n
    hits, repeats = 0, 300
    for draw in np.random.default_rng(0).normal(1.0, 1.0, (repeats, 5)):
        found = units_needed(Sample(draw.mean(), draw.std(ddof=1), 5), 0.0)
        hits += found.low <= truth and (found.high is None or truth <= found.high)
    assert hits / repeats > 0.6


def test_numbers_beyond_the_largest_are_not_stated():
    assert units_needed(Sample(0.0, 1.0, 5), 0.0).n is None
    distance = 2.801585 / math.sqrt(MOST)
    assert units_needed(Sample(1.01 * distance, 1.0, 5), 0.0).n == pytest.approx(MOST, rel=0.03)
    assert units_needed(Sample(0.98 * distance, 1.0, 5), 0.0).n is None


def test_equal_units_need_no_more_than_two():
    assert units_needed(Sample(0.5, 0.0, 3), 0.0) == Needed(2, 2, 2)
    assert units_needed(Sample(0.0, 0.0, 3), 0.0) == Needed(None, None, None)
    inside = units_for_equivalence(Sample(0.5, 0.0, 3), lower=0.0, upper=1.0)
    assert inside == Needed(2, 2, 2)
    assert units_for_equivalence(Sample(0.0, 0.0, 3), lower=0.0, upper=1.0).n is None
    assert smallest_effect(Sample(0.5, 0.0, 3)) == smallest_margin(Sample(0.5, 0.0, 3)) == 0.0


@pytest.mark.parametrize("n", [0, 1])
def test_without_spread_nothing_is_said(n):
    found = Sample(0.5, 0.0, n)
    assert units_needed(found, 0.0) is None
    assert units_for_equivalence(found, lower=0.0, upper=1.0) is None
    assert smallest_effect(found) is None
    assert smallest_margin(found) is None


def test_two_units_have_a_spread():
    found = Sample(0.5, 0.1, 2)
    assert units_needed(found, 0.0).n == units_needed(Sample(0.5, 0.1, 9), 0.0).n
    limits = {"lower": 0.0, "upper": 1.0}
    nine = units_for_equivalence(Sample(0.5, 0.1, 9), **limits)
    assert units_for_equivalence(found, **limits).n == nine.n


def test_power_of_equivalence_is_as_published():
    """A crossover with CV 30%, ratio 0.95 and 40 subjects has a power of 0.8158 (PowerTOST).

    Its standard error is s sqrt(2 / 40) with 38 degrees of freedom; a test of 39 units has as many.
    """
    s = math.sqrt(math.log(1 + 0.3**2)) * math.sqrt(2 / 40) * math.sqrt(39)
    ratio, limit = math.log(0.95), math.log(1.25)
    assert tost_power(ratio + limit, limit - ratio, s, 39) == pytest.approx(0.8158453, abs=1e-6)


@pytest.mark.parametrize(("mean", "n"), [(0.0, 3), (0.02, 8), (0.049, 8), (-0.06, 8)])
def test_power_of_equivalence_is_how_often_it_holds(mean, n):
    draws = np.random.default_rng(0).normal(mean, 0.03, (REPEATS, n))
    share = np.mean([equivalence(x, lower=-0.05, upper=0.05).holds for x in draws])
    assert near(share, tost_power(mean + 0.05, 0.05 - mean, 0.03, n))


@pytest.mark.parametrize("df", [1, 4, 500, 9999])
def test_power_of_equivalence_far_from_one_limit_is_that_of_the_t_test(df):
    for distance in (0.5, 2.5, 4.0):
        error = distance / math.sqrt(df + 1)
        one = t_power(error, 1.0, df + 1, level=0.9)
        assert tost_power(error, 1e4 * error, 1.0, df + 1) == pytest.approx(one, abs=2e-6)


def test_units_of_equivalence_have_the_power_and_one_less_has_not():
    n = units_for_equivalence(Sample(0.01, 0.06, 6), lower=-0.05, upper=0.07).n
    assert tost_power(0.06, 0.06, 0.06, n) >= 0.8 > tost_power(0.06, 0.06, 0.06, n - 1)
    shifted = units_for_equivalence(Sample(0.03, 0.06, 6), lower=-0.05, upper=0.07).n
    assert shifted > n


def test_the_range_of_equivalence_is_over_the_intervals_of_mean_and_spread():
    found = Sample(0.01, 0.03, 6)
    half = stats.t.ppf(0.9, 5) * 0.03 / math.sqrt(6)
    narrow, wide = (0.03 * math.sqrt(5 / q) for q in stats.chi2.ppf([0.9, 0.1], 5))
    limits = {"lower": -0.05, "upper": 0.05}
    assert units_for_equivalence(found, **limits) == Needed(
        units_for_equivalence(Sample(0.01, 0.03, 6), **limits).n,
        units_for_equivalence(Sample(0.0, narrow, 6), **limits).n,
        units_for_equivalence(Sample(0.01 + half, wide, 6), **limits).n,
    )
    # Mirrored limits and mean, and a mean whose interval leaves the limits.
    mirrored = units_for_equivalence(Sample(-0.01, 0.03, 6), **limits)
    assert mirrored == units_for_equivalence(found, **limits)
    assert units_for_equivalence(Sample(0.04, 0.03, 6), **limits).high is None


def test_a_mean_outside_the_limits_is_settled_by_the_interval_outside():
    found = Sample(0.2, 0.1, 5)
    outside = units_for_equivalence(found, lower=-0.05, upper=0.05)
    assert outside == units_needed(found, 0.05)
    assert units_for_equivalence(Sample(-0.2, 0.1, 5), lower=-0.05, upper=0.05) == outside


def test_the_smallest_margin_is_the_one_with_80_percent_power():
    for n in (2, 3, 5, 30, 500):
        margin = smallest_margin(Sample(9.0, 2.0, n))
        assert tost_power(margin, margin, 2.0, n) == pytest.approx(0.8, abs=1e-6)
    # For many units Phi(m sqrt(n) / s - 1.645) = 0.9.
    assert smallest_margin(Sample(0.0, 2.0, 5000)) == pytest.approx(
        2 * (1.644854 + 1.281552) / math.sqrt(5000), rel=1e-3
    )


def test_limits_in_the_wrong_order_and_a_level_in_percent_are_refused():
    with pytest.raises(ValueError, match=r"lower=0.1 must be below upper=-0.1"):
        units_for_equivalence(Sample(0.0, 1.0, 5), lower=0.1, upper=-0.1)
    with pytest.raises(ValueError, match=r"level=95.0 must be between 0 and 1"):
        units_needed(Sample(0.0, 1.0, 5), 0.5, level=95.0)
