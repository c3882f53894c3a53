import math

import numpy as np
import pytest
from scipy import stats

from frenet.statistics.intervals import Estimate
from frenet.statistics.pooled import Pooled, pool

# Colditz et al. (1994), efficacy of the BCG vaccine: cases and others, with and without vaccine.
BCG = np.array(
    [
        [4, 119, 11, 128], [6, 300, 29, 274], [3, 228, 11, 209], [62, 13536, 248, 12619],
        [33, 5036, 47, 5761], [180, 1361, 372, 1079], [8, 2537, 10, 619],
        [505, 87886, 499, 87892], [29, 7470, 45, 7232], [17, 1699, 65, 1600],
        [186, 50448, 141, 27197], [5, 2493, 3, 2338], [27, 16886, 29, 17825],
    ]
)  # fmt: skip


def bcg():
    """Logarithms of the risk ratios, and their variances."""
    a, b, c, d = BCG.T
    return np.log(a / (a + b) * (c + d) / c), 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)


def test_the_vaccine_trials_are_as_published():
    """DerSimonian and Laird: mean -0.7141, standard error 0.1787, tau^2 0.3088."""
    y, v = bcg()
    found = pool(y, np.sqrt(v))
    assert found.spread**2 == pytest.approx(0.3088, abs=5e-5)
    assert found.estimate.value == pytest.approx(-0.7141, abs=5e-5)
    w = 1 / (v + found.spread**2)
    assert w.sum() ** -0.5 == pytest.approx(0.1787, abs=5e-5)
    q = (w * (y - found.estimate.value) ** 2).sum() / 12
    assert q > 1
    half = stats.t.ppf(0.975, 12) * math.sqrt(q / w.sum())
    assert found.estimate.high - found.estimate.value == pytest.approx(half)
    reach = stats.t.ppf(0.975, 11) * math.sqrt(found.spread**2 + q / w.sum())
    assert found.high - found.estimate.value == pytest.approx(reach)
    assert found.low + found.high == pytest.approx(2 * found.estimate.value)


def test_it_is_that_of_statsmodels():
    meta = pytest.importorskip("statsmodels.stats.meta_analysis")
    y, v = bcg()
    found = pool(y, np.sqrt(v), level=0.9)
    other = meta.combine_effects(y, v, method_re="dl", use_t=True, alpha=0.1)
    assert found.spread**2 == pytest.approx(other.tau2)
    assert found.estimate.value == pytest.approx(other.mean_effect_re)
    half = stats.t.ppf(0.95, 12) * other.sd_eff_w_re_hksj
    assert found.estimate.high - found.estimate.value == pytest.approx(half)


def test_equal_errors_give_students_interval_of_the_means():
    """With tau^2 above 0, w is the same for all: q / sum w = s^2 / k and tau^2 = s^2 - e^2."""
    y = [0.2, 0.5, 0.8, 0.9]
    found = pool(y, [0.1] * 4)
    mean, s = np.mean(y), np.std(y, ddof=1)
    half = 3.182446 * s / 2
    assert found.estimate[:4] == pytest.approx((mean, mean - half, mean + half, 4), abs=1e-6)
    assert found.spread == pytest.approx(math.sqrt(s**2 - 0.01))
    reach = 4.302653 * math.sqrt(s**2 - 0.01 + s**2 / 4)
    assert (found.low, found.high) == pytest.approx((mean - reach, mean + reach), abs=1e-6)


def test_networks_that_agree_by_chance_keep_their_own_errors():
    y, e = [0.5, 0.5001, 0.4999], [0.1, 0.2, 0.2]
    found = pool(y, e)
    assert found.spread == 0.0
    half = 4.302653 * (100 + 25 + 25) ** -0.5
    assert found.estimate.high - found.estimate.value == pytest.approx(half, rel=1e-5)
    assert found.high - found.estimate.value == pytest.approx(12.706205 / 4.302653 * half, rel=1e-5)


def test_an_exact_network_counts_most_and_order_does_not_matter():
    found = pool([0.0, 0.05, 1.0], [0.1, 0.1, 10.0])
    assert found.estimate.value == pytest.approx(0.025, abs=1e-3)
    other = pool([1.0, 0.0, 0.05], [10.0, 0.1, 0.1])
    assert other.estimate[:4] == pytest.approx(found.estimate[:4])
    assert other[1:] == pytest.approx(found[1:])


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_intervals_cover_as_often_as_they_say(tau):
    """Of the mean at least 95%; of the next network about 95% if there is spread."""
    rng, errors, repeats = np.random.default_rng(0), np.array([0.2, 0.3, 0.3, 0.6]), 2000
    mean_hits = next_hits = 0
    for _ in range(repeats):
        values = tau * rng.standard_normal(4) + errors * rng.standard_normal(4)
        found = pool(values, errors)
        mean_hits += found.estimate.low <= 0 <= found.estimate.high
        next_hits += found.low <= tau * rng.standard_normal() <= found.high
    error = 4 * math.sqrt(0.95 * 0.05 / repeats)
    assert mean_hits / repeats > 0.95 - error
    assert next_hits / repeats > 0.95 - error


def test_one_and_two_networks():
    assert pool([0.5], [0.1]) == Pooled(Estimate(0.5, None, None, 1), None, None, None)
    found = pool([0.0, 1.0], [0.1, 0.1])
    assert (found.low, found.high) == (None, None)
    half = 12.706205 * 0.5
    assert found.estimate[:4] == pytest.approx((0.5, 0.5 - half, 0.5 + half, 2), abs=1e-5)
    assert found.spread == pytest.approx(math.sqrt(0.5 - 0.01))


@pytest.mark.parametrize(
    ("values", "errors", "level", "message"),
    [
        ([], [], 0.95, "there is no value; pass at least one"),
        ([1.0], [], 0.95, "there is no standard error; pass at least one"),
        ([1.0, 2.0], [1.0], 0.95, "2 values and 1 standard errors; pass one error per value"),
        ([1.0, 2.0], [1.0, 0.0], 0.95, "standard error 1 of 2 is 0"),
        ([1.0, 2.0], [1.0, -1.0], 0.95, "standard error 1 of 2 is -1"),
        ([1.0, 2.0], [1.0, math.nan], 0.95, "standard error 1 of 2 is nan"),
        ([1.0, 2.0], [1.0, 1.0], 95.0, "level=95.0 must be between 0 and 1"),
    ],
)
def test_what_cannot_be_said_is_refused(values, errors, level, message):
    with pytest.raises(ValueError, match=message):
        pool(values, errors, level=level)
