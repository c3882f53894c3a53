import math

import numpy as np
import pytest
from scipy import stats

from frenet.statistics.contrasts import linear_contrast, stratified_interval
from frenet.statistics.intervals import Estimate, mean_interval


def drawn(n, key=0):
    return np.random.default_rng(key).standard_normal(n)


def test_a_contrast_is_the_weighted_sum_of_each_unit():
    b = drawn(30).reshape(3, 10)
    w = (1.0, -0.5, 2.0)
    assert linear_contrast(list(b), w) == pytest.approx(np.array(w) @ b)


def test_both_contrasts_of_a_ratio_of_slopes_say_that_it_lies_between_its_limits():
    """b1 = b2 + noise: the ratio is 1, so it lies between 1/2 and 2; at b1 = 3 b2 it does not."""
    b2 = 1 + 0.1 * drawn(5, key=1)
    for factor, states in ((1.0, (True, True)), (3.0, (True, False)), (0.2, (False, True))):
        b1 = factor * b2 + 0.1 * drawn(5, key=2)
        above = mean_interval(linear_contrast((b1, b2), (1.0, -0.5)), level=0.9)
        below = mean_interval(linear_contrast((b1, b2), (1.0, -2.0)), level=0.9)
        assert (above.low > 0, below.high < 0) == states


def test_pairing_takes_out_what_two_slopes_share():
    shared, b = 10 * drawn(6, key=3), 0.01 * drawn(6, key=4)
    _, low, high, _ = mean_interval(linear_contrast((shared + b, shared), (1.0, -1.0)))[:4]
    _, own_low, own_high, _ = mean_interval(b)[:4]
    assert (low, high) == pytest.approx((own_low, own_high))


def test_the_bootstrap_of_one_stratum_is_that_of_scipy():
    values = np.exp(drawn(60))
    found = stratified_interval([values], level=0.9, resamples=2000, seed=5)
    low, high = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=2000, method="BCa",
        rng=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    # The draws agree if the batches do; otherwise within the error of the bootstrap.
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.03)
    assert found.n == 60


def test_the_bootstrap_of_normal_values_is_students_interval_of_strata():
    """The variance is (s_1^2 / n_1 + s_2^2 / n_2) / 4, whatever the difference of the means."""
    a, b = 1 + drawn(200, key=1), 5 + 2 * drawn(400, key=2)
    error = math.sqrt(a.var() / 200 + b.var() / 400) / 2
    value, low, high, n = stratified_interval([a, b], seed=1)[:4]
    assert (value, n) == (pytest.approx((a.mean() + b.mean()) / 2), 600)
    assert (high - low) / 2 == pytest.approx(1.959964 * error, rel=0.05)
    # If prompts were drawn from all contrasts together, their difference would count as spread.
    assert high - low < 0.8 * 2 * 1.959964 * np.concatenate([a, b]).std() / math.sqrt(600)


def test_the_bootstrap_covers_skewed_values_on_both_sides():
    repeats, n, truth = 300, 200, 1.0
    draws = np.random.default_rng(7).exponential(truth, (repeats, n))
    found = [stratified_interval([x[:100], x[100:]], level=0.9, resamples=400) for x in draws]
    above = sum(low > truth for _, low, *_ in found) / repeats
    below = sum(high < truth for _, _, high, *_ in found) / repeats
    assert abs(above - 0.05) < 4 * math.sqrt(0.05 * 0.95 / repeats)
    assert abs(below - 0.05) < 4 * math.sqrt(0.05 * 0.95 / repeats)


def test_the_bootstrap_follows_its_seed():
    values = [drawn(50)]
    once, again, other = (stratified_interval(values, seed=seed) for seed in (1, 1, 2))
    assert once == again != other


def test_equal_values_and_one_unit():
    assert stratified_interval([[0.1] * 3, [0.3] * 2]) == Estimate(
        pytest.approx(0.2), pytest.approx(0.2), pytest.approx(0.2), 5
    )
    assert stratified_interval([[0.1]]) == Estimate(0.1, None, None, 1)
    # A stratum without spread counts with its mean.
    value, low, high, _ = stratified_interval([[1.0] * 9, drawn(50)])[:4]
    assert low < value < high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_contrast(([1.0], [1.0]), (1.0,)), "2 slopes and 1 weights"),
        (lambda: linear_contrast(([1.0, 2.0], [1.0]), (1.0, 1.0)), "the slopes have 2, 1 units"),
        (lambda: linear_contrast(([math.nan],), (1.0,)), "value 0 of 1 is nan"),
        (lambda: linear_contrast(([], []), (1.0, 1.0)), "there is no value; pass at least one"),
        (lambda: stratified_interval([]), "there are no strata"),
        (lambda: stratified_interval([[1.0, 2.0], []]), "there is no value; pass at least one"),
        (lambda: stratified_interval([[1.0, 2.0], [1.0]]), "stratum 1 has one unit"),
        (lambda: stratified_interval([[1.0, math.inf]]), "value 1 of 2 is inf"),
        (lambda: stratified_interval([[1.0, 2.0]], level=95.0), "level=95.0 must be"),
    ],
)
def test_what_cannot_be_said_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
