import itertools
import math

import numpy as np
import pytest
from scipy import special, stats

from frenet.statistics.auc import auc_interval
from frenet.statistics.intervals import Estimate


def drawn(m, n, shift, key=0):
    rng = np.random.default_rng(key)
    return rng.standard_normal(m) + shift, rng.standard_normal(n)


def test_the_area_is_the_share_of_ordered_pairs():
    x, y = np.round(3 * drawn(12, 9, 0.5)[0]), np.round(3 * drawn(12, 9, 0.5)[1])
    assert set(x) & set(y)
    found = auc_interval(x, y)
    assert found.value == pytest.approx(float(stats.mannwhitneyu(x, y).statistic) / (12 * 9))
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(x, y)]
    assert found.value == pytest.approx(np.mean(pairs))
    assert found.n == 21


def test_the_interval_in_closed_form():
    """Shares of negatives below: 1/2, 1, 1; of positives above: 1, 2/3; t with one degree."""
    area, variance = 5 / 6, (1 / 12) / 3 + (1 / 18) / 2
    half = 12.706205 * math.sqrt(variance) / (area * (1 - area))
    ends = [1 / (1 + math.exp(-(math.log(5) + side * half))) for side in (-1, 1)]
    found = auc_interval([1.0, 2.0, 3.0], [0.0, 1.5])
    assert found[:4] == pytest.approx((area, *ends, 5), abs=1e-6)


def test_the_interval_is_about_that_of_a_bootstrap():
    x, y = drawn(150, 200, 0.4)
    value, low, high, _ = auc_interval(x, y)[:4]
    rng = np.random.default_rng(0)
    areas = [
        float(stats.mannwhitneyu(rng.choice(x, 150), rng.choice(y, 200)).statistic) / (150 * 200)
        for _ in range(500)
    ]
    spread = np.std(special.logit(areas))
    assert special.logit([low, high]) == pytest.approx(
        special.logit(value) + 1.96 * spread * np.array([-1, 1]), abs=0.06
    )


def test_it_covers_as_often_as_it_says():
    repeats, truth = 600, float(special.ndtr(0.5 / math.sqrt(2)))
    found = [auc_interval(*drawn(20, 30, 0.5, key=key)) for key in range(repeats)]
    hits = sum(low <= truth <= high for _, low, high, *_ in found) / repeats
    assert abs(hits - 0.95) < 4 * math.sqrt(0.95 * 0.05 / repeats)


def test_swapped_classes_mirror_it_and_monotone_scores_keep_it():
    x, y = drawn(12, 9, 0.5)
    value, low, high, n = auc_interval(x, y)[:4]
    assert auc_interval(y, x)[:4] == pytest.approx((1 - value, 1 - high, 1 - low, n))
    assert auc_interval(np.exp(x), np.exp(y))[:4] == pytest.approx((value, low, high, n))


def test_classes_that_the_score_separates_and_classes_of_one_unit():
    """With k pairs in the same order, 0.025 = area^k at the lower end."""
    assert auc_interval([3.0, 4.0, 5.0], [1.0, 2.0])[:4] == pytest.approx((1.0, 0.025**0.5, 1.0, 5))
    assert auc_interval([1.0, 2.0], [3.0, 4.0, 5.0])[:4] == pytest.approx(
        (0.0, 0.0, 1 - 0.025**0.5, 5)
    )
    assert auc_interval([3.0], [1.0, 2.0]) == Estimate(1.0, None, None, 3)


@pytest.mark.parametrize(
    ("positive", "negative", "level", "message"),
    [
        ([], [1.0], 0.95, "there is no positive score; pass at least one"),
        ([1.0], [], 0.95, "there is no negative score; pass at least one"),
        ([1.0, math.nan], [1.0], 0.95, "positive score 1 of 2 is nan"),
        ([1.0, 2.0], [1.0, 2.0], 95.0, "level=95.0 must be between 0 and 1"),
    ],
)
def test_what_cannot_be_said_is_refused(positive, negative, level, message):
    with pytest.raises(ValueError, match=message):
        auc_interval(positive, negative, level=level)
