import itertools
import math
import random
import subprocess
import sys

import numpy as np
import pytest
from scipy import special, stats

from frenet.statistics.intervals import (
    Estimate,
    Sample,
    bounded_interval,
    mean_interval,
    p_above,
    positive_interval,
    sample,
)


def normal(*shape, key=0):
    return np.random.default_rng(key).standard_normal(shape)


def test_numbers_need_no_library_until_they_are_computed():
    names = (
        "auc",
        "contrasts",
        "coverage",
        "equivalence",
        "intervals",
        "permutation",
        "pooled",
        "power",
    )
    code = f"import sys, {', '.join(f'frenet.statistics.{name}' for name in names)}\n"
    code += "assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("n", "level", "quantile"), [(2, 0.95, 12.706205), (5, 0.95, 2.776445), (31, 0.99, 2.749996)]
)
def test_interval_is_students(n, level, quantile):
    values = [float(i % 3) for i in range(n)]
    found = mean_interval(values, level=level)
    mean, half = np.mean(values), quantile * np.std(values, ddof=1) / math.sqrt(n)
    assert found[:4] == pytest.approx((mean, mean - half, mean + half, n), abs=1e-5)


def test_interval_covers_as_often_as_it_says():
    repeats, level, mean = 3000, 0.9, 2.0
    found = [mean_interval(values, level=level) for values in 3 * normal(repeats, 4) + mean]
    hits = sum(low <= mean <= high for _, low, high, *_ in found)
    assert abs(hits / repeats - level) < 4 * math.sqrt(level * (1 - level) / repeats)


@pytest.mark.parametrize("of", [mean_interval, bounded_interval, positive_interval])
def test_interval_of_equal_values_and_of_one(of):
    # The sum of three tenths is not three times a tenth.
    assert of([0.1, 0.1, 0.1]) == Estimate(0.1, 0.1, 0.1, 3)
    assert of([1.0, 1.0]) == Estimate(1.0, 1.0, 1.0, 2)
    assert of([0.0, 0.0]) == Estimate(0.0, 0.0, 0.0, 2)
    assert of([0.5]) == Estimate(0.5, None, None, 1)


def test_interval_does_not_depend_on_order_and_follows_shift_and_scale():
    values = np.array([0.1, 0.7, 0.3, 0.9])
    value, low, high, _ = mean_interval(values)[:4]
    assert mean_interval(values[::-1])[:3] == pytest.approx((value, low, high))
    moved = (10 * value - 1, 10 * low - 1, 10 * high - 1)
    assert mean_interval(10 * values - 1)[:3] == pytest.approx(moved)


@pytest.mark.parametrize("of", [mean_interval, bounded_interval, positive_interval])
@pytest.mark.parametrize(
    ("values", "level", "message"),
    [
        ([], 0.95, "there is no value; pass at least one"),
        ([1.0, math.nan], 0.95, "value 1 of 2 is nan; leave it out and say so"),
        ([1.0, math.inf], 0.95, "value 1 of 2 is inf"),
        ([1.0, 0.0], 95.0, r"level=95.0 must be between 0 and 1"),
        ([1.0, 0.0], 1.0, r"level=1.0 must be between 0 and 1"),
    ],
)
def test_interval_refuses_what_it_cannot_say(of, values, level, message):
    with pytest.raises(ValueError, match=message):
        of(values, level=level)


def test_a_sample_is_found_again_from_its_interval():
    values = [0.1, 0.7, 0.3, 0.9]
    for level in (0.9, 0.95):
        back = Sample.of(mean_interval(values, level=level), level=level)
        assert back == pytest.approx(sample(values))
    assert sample(values) == pytest.approx((0.5, np.std(values, ddof=1), 4))
    assert sample(values).error == pytest.approx(stats.sem(values))
    assert Sample.of(mean_interval([0.5])) == Sample(0.5, 0.0, 1)
    assert Sample.of(Estimate(0.95, n=0)) == Sample(0.95, 0.0, 0)
    assert Sample.of(Estimate(0.95, 0.95, 0.95, n=0)) == Sample(0.95, 0.0, 0)


def test_a_bounded_interval_in_closed_form():
    """y = (0.9 * 3 + 0.5) / 4 = 0.8, and its logit log 4; t of three degrees of freedom."""
    values = [0.85, 0.9, 0.9, 0.95]
    t, error = 3.182446, math.sqrt(0.005 / 3 / 4) * 0.75
    half = t * error / (0.8 * 0.2)
    ends = [4 * math.exp(side * half) / (1 + 4 * math.exp(side * half)) for side in (-1, 1)]
    low, high = ((4 * end - 0.5) / 3 for end in ends)
    assert 0.8 < low < 0.85 < 0.95 < high < 1
    assert bounded_interval(values)[:4] == pytest.approx((0.9, low, high, 4), abs=1e-6)


def test_a_bounded_interval_never_leaves_its_range_and_contains_the_mean():
    draw = random.Random(0)
    for n in (2, 3, 5, 50):
        for _ in range(50):
            shares = [draw.choice([0.0, 1.0, draw.random(), draw.random() ** 9]) for _ in range(n)]
            for least, most in ((0.0, 1.0), (-1.0, 1.0), (2.0, 5.0)):
                values = [least + (most - least) * share for share in shares]
                value, low, high, _ = bounded_interval(values, least=least, most=most)[:4]
                assert value == pytest.approx(np.mean(values))
                if len(set(values)) > 1:
                    assert least <= low < value < high <= most


def test_a_bounded_interval_is_that_of_the_mean_for_many_values_away_from_the_ends():
    values = 0.5 + 0.01 * normal(1000)
    assert bounded_interval(values)[:4] == pytest.approx(mean_interval(values)[:4], rel=1e-5)


def test_a_bounded_interval_mirrors_and_stretches_with_its_range():
    shares = [0.7, 0.95, 1.0, 0.9]
    value, low, high, _ = bounded_interval(shares)[:4]
    mirrored = bounded_interval([1 - share for share in shares])
    assert mirrored[:3] == pytest.approx((1 - value, 1 - high, 1 - low))
    cosines = bounded_interval([2 * share - 1 for share in shares], least=-1.0)
    assert cosines[:3] == pytest.approx((2 * value - 1, 2 * low - 1, 2 * high - 1))


def test_a_bounded_interval_of_cosines_is_fishers_for_many_values():
    values = np.tanh(1 + 0.05 * normal(400))
    value, low, high, _ = bounded_interval(values, least=-1.0)[:4]
    half = stats.t.ppf(0.975, 399) * stats.sem(values) / (1 - value**2)
    ends = [math.tanh(math.atanh(value) + side * half) for side in (-1, 1)]
    assert [low, high] == pytest.approx(ends, rel=1e-3)


@pytest.mark.parametrize("mean", [0.5, 0.9])
def test_a_bounded_interval_covers_about_as_often_as_it_says(mean):
    repeats, level, n = 2000, 0.95, 8
    draws = np.random.default_rng(0).beta(20 * mean, 20 * (1 - mean), (repeats, n))
    found = [bounded_interval(values, level=level) for values in draws]
    hits = sum(low <= mean <= high for _, low, high, *_ in found)
    # Shares of a skewed distribution: a little below, and more than a few percent would be a fault.
    assert 0.93 < hits / repeats < 0.97


def test_a_positive_interval_is_symmetric_in_the_logarithm():
    values = [0.5, 1.0, 1.5]
    value, low, high, _ = positive_interval(values)[:4]
    factor = math.exp(4.302653 * 0.5 / math.sqrt(3))
    assert (value, low, high) == pytest.approx((1.0, 1 / factor, factor), rel=1e-6)
    tenfold = positive_interval([10 * value for value in values])
    assert tenfold[:3] == pytest.approx((10 * value, 10 * low, 10 * high))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounded_interval([0.5, 1.5]), r"value 1 of 2 is 1.5, outside \[0, 1\]"),
        (lambda: bounded_interval([-0.5, 0.5]), r"value 0 of 2 is -0.5, outside \[0, 1\]"),
        (lambda: bounded_interval([0.5], least=1.0), r"least=1.0 must be below most=1.0"),
        (lambda: positive_interval([0.5, -0.5]), "value 1 of 2 is -0.5, below 0"),
    ],
)
def test_values_outside_their_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_p_above_is_that_of_scipy_and_agrees_with_the_interval():
    for key, line in itertools.product(range(30), (-0.5, 0.0, 0.5)):
        values = normal(5, key=key)
        p = p_above(values, line)
        test = stats.ttest_1samp(values, line, alternative="greater")
        assert p == pytest.approx(float(test.pvalue))
        assert (p < 0.05) == (mean_interval(values, level=0.9).low > line)
        assert p_above(-values, -line) == pytest.approx(1 - p)


def test_p_above_of_equal_values_and_of_one():
    assert [p_above([0.1, 0.1, 0.1], line) for line in (0.0, 0.1, 0.2)] == [0.0, 0.5, 1.0]
    assert p_above([0.1], 0.0) is None
    assert special.stdtr(2, 0.0) == p_above([1.0, 2.0, 3.0], 2.0)
