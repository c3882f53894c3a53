import math

import numpy as np
import pytest
from scipy import stats

from frenet.statistics.permutation import p_of_draws


@pytest.mark.parametrize(("observed", "p"), [(3.5, 0.2), (3.0, 0.4), (2.5, 0.4), (-1.0, 1.0)])
def test_in_closed_form(observed, p):
    assert p_of_draws(observed, [0.0, 1.0, 2.0, 3.0]) == pytest.approx(p)


def test_it_is_that_of_scipy_for_draws_of_labels():
    rng = np.random.default_rng(0)
    for shift in (0.0, 1.0):
        a, b = rng.standard_normal(20) + shift, rng.standard_normal(20)
        found = stats.permutation_test(
            (a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), n_resamples=500,
            alternative="greater", rng=np.random.default_rng(1),
        )  # fmt: skip
        p = p_of_draws(float(found.statistic), found.null_distribution)
        assert p == pytest.approx(float(found.pvalue))


def test_under_the_null_p_is_below_a_level_as_often_as_it_says():
    draws = np.random.default_rng(0).standard_normal((4000, 40))
    hits = np.mean([p_of_draws(x[0], x[1:]) <= 0.1 for x in draws])
    assert abs(hits - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 4000)


def test_a_tie_up_to_rounding_counts():
    assert p_of_draws(0.1 + 0.2, [0.3]) == 1.0
    assert p_of_draws(-0.3, [-(0.1 + 0.2)]) == 1.0
    assert p_of_draws(0.3 * (1 + 1e-12), [0.3]) == 0.5
    assert p_of_draws(0.0, [0.0]) == 1.0


@pytest.mark.parametrize(
    ("observed", "draws", "message"),
    [
        (1.0, [], "there is no draw; pass at least one"),
        (1.0, [0.0, math.nan], "draw 1 of 2 is nan; leave it out and say so"),
        (math.nan, [1.0], "observed statistic 0 of 1 is nan"),
    ],
)
def test_what_cannot_be_said_is_refused(observed, draws, message):
    with pytest.raises(ValueError, match=message):
        p_of_draws(observed, draws)
