import math

import numpy as np
import pytest
from scipy import optimize, stats

from frenet.statistics.coverage import ClusteredShare, clustered_share
from frenet.statistics.intervals import Estimate

DRAWN = ([19, 20, 12, 16, 9, 3], [20, 20, 15, 20, 15, 5])


def lost(k, n, share, r):
    """Minus the logarithm of the weighted likelihood, by scipy's distribution."""
    a, b = share * (1 - r) / r, (1 - share) * (1 - r) / r
    return -stats.betabinom.logpmf(k, n, a, b).sum() - math.log1p(-r)


def best(k, n, share):
    """The least of it over the correlation."""
    found = optimize.minimize_scalar(
        lambda r: lost(k, n, share, r), bounds=(1e-6, 0.99), method="bounded"
    )
    return found.fun


def test_the_maximum_is_that_of_the_distribution_of_scipy():
    k, n = map(np.array, DRAWN)
    found = clustered_share(*DRAWN)
    other = optimize.minimize(
        lambda x: lost(k, n, *x), (0.8, 0.1), bounds=((0.01, 0.99), (1e-4, 0.9))
    )
    assert (found.estimate.value, found.correlation) == pytest.approx(tuple(other.x), rel=0.02)
    assert best(k, n, found.estimate.value) == pytest.approx(other.fun, abs=1e-3)
    assert (found.estimate.n, found.trials) == (6, 95)


@pytest.mark.parametrize(("level", "quantile"), [(0.95, 3.841459), (0.9, 2.705543)])
def test_the_ends_lose_half_of_a_chi_square_quantile(level, quantile):
    k, n = map(np.array, DRAWN)
    value, low, high, _ = clustered_share(*DRAWN, level=level).estimate[:4]
    for end in (low, high):
        excess = best(k, n, end) - best(k, n, value)
        assert 2 * excess == pytest.approx(quantile, abs=5e-3)
    assert low < value < high


def test_without_clustering_it_is_the_likelihood_interval_of_a_binomial():
    """Shares that differ by less than chance: the maximum is at r = 0, the ends near it."""
    k, n = [90, 90, 90, 91, 89, 90, 90, 90], [100] * 8
    found = clustered_share(k, n)
    assert found.correlation == 0.0
    assert found.estimate.value == pytest.approx(0.9, abs=1e-6)

    def loss(p):
        return -stats.binom.logpmf(720, 800, p)

    low, high = (
        optimize.brentq(lambda p: loss(p) - loss(0.9) - 3.841459 / 2, *ends)
        for ends in ((0.8, 0.9), (0.9, 0.95))
    )
    assert (found.estimate.low, found.estimate.high) == pytest.approx((low, high), abs=2e-3)


def test_clusters_that_differ_widen_the_interval():
    even = clustered_share([16] * 5, [20] * 5).estimate
    uneven = clustered_share([20, 20, 20, 16, 4], [20] * 5)
    assert uneven.estimate.high - uneven.estimate.low > 1.5 * (even.high - even.low)
    assert uneven.correlation > 0.1


def test_more_successes_never_lower_the_interval():
    """Down to the last failure: all successes say at least as much as all but one."""
    ends = [clustered_share([20, 20, 20, 20, k], [20] * 5).estimate[1:3] for k in range(15, 21)]
    assert ends == sorted(ends)
    assert [high < 1 for _, high in ends] == [True] * 5 + [False]


def test_successes_and_failures_mirror_each_other():
    k, n = DRAWN
    value, low, high, _ = clustered_share(*DRAWN).estimate[:4]
    mirrored = clustered_share([b - a for a, b in zip(k, n, strict=True)], n).estimate
    assert mirrored[:3] == pytest.approx((1 - value, 1 - high, 1 - low), abs=1e-6)


def test_all_successes_all_failures_and_one_cluster():
    for count, n in ((20, [20] * 5), (15, [15] * 5)):
        value, low, high, clusters = clustered_share([count] * 5, n).estimate[:4]
        assert (value, high, clusters) == (1.0, 1.0, 5)
        assert 0.9 < low < (0.025) ** (1 / (5 * count))
        value, low, high, _ = clustered_share([0] * 5, n).estimate[:4]
        assert (value, low) == (0.0, 0.0)
        assert 0 < high < 0.1
    assert clustered_share([3], [4]) == ClusteredShare(Estimate(0.75, None, None, 1), None, 4)


@pytest.mark.parametrize("correlation", [0.0, 0.1])
def test_either_end_misses_in_at_most_five_percent(correlation):
    repeats, share, m, n = 300, 0.9, 5, 15
    rng = np.random.default_rng(0)
    concentration = 1e9 if correlation == 0 else (1 - correlation) / correlation
    p = rng.beta(share * concentration, (1 - share) * concentration, (repeats, m))
    drawn = [tuple(sorted(map(int, k))) for k in rng.binomial(n, p)]
    of = {k: clustered_share(k, [n] * m).estimate for k in set(drawn)}
    found = [of[k] for k in drawn]
    error = 4 * math.sqrt(0.05 * 0.95 / repeats)
    assert np.mean([low > share for _, low, *_ in found]) < 0.05 + error
    assert np.mean([high < share for _, _, high, *_ in found]) < 0.05 + error


@pytest.mark.parametrize(
    ("successes", "trials", "level", "message"),
    [
        ([], [], 0.95, "0 numbers of successes and 0 of trials"),
        ([1, 2], [3], 0.95, "2 numbers of successes and 1 of trials; pass one of each per cluster"),
        ([1, 0], [1, 0], 0.95, "cluster 1 has 0 successes of 0 trials; leave out clusters without"),
        ([2], [1], 0.95, "cluster 0 has 2 successes of 1 trials"),
        ([-1], [1], 0.95, "cluster 0 has -1 successes of 1 trials"),
        ([1], [1], 95.0, "level=95.0 must be between 0 and 1"),
    ],
)
def test_what_cannot_be_said_is_refused(successes, trials, level, message):
    with pytest.raises(ValueError, match=message):
        clustered_share(successes, trials, level=level)


def test_the_error_of_a_share_without_clusters_is_that_of_independent_trials():
    """Half the likelihood interval over the normal quantile, against sqrt(p (1 - p) / N)."""
    found = clustered_share([600, 602, 598, 601, 599], [1000] * 5).estimate
    assert found.error == pytest.approx((found.high - found.low) / 2 / 1.959964)
    assert found.error == pytest.approx(math.sqrt(0.6 * 0.4 / 5000), rel=0.1)
    assert clustered_share([3], [4]).estimate.error is None
