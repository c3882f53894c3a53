import math

import numpy as np
import pytest

from frenet.statistics.bootstrap import centred_ends


def test_the_ends_are_quantiles_around_the_value():
    draws = np.random.default_rng(0).exponential(size=4000)
    low, high = centred_ends(0.3, draws)
    ends = np.quantile(draws, [0.025, 0.975])
    assert (low, high) == pytest.approx(tuple(0.3 + ends - draws.mean()))
    inner = centred_ends(0.3, draws, level=0.9)
    assert low < inner[0] < 0.3 < inner[1] < high


def test_draws_that_lie_lower_as_a_whole_move_nothing():
    draws = np.random.default_rng(0).normal(size=500)
    assert centred_ends(1.0, draws) == pytest.approx(centred_ends(1.0, draws - 0.4))


@pytest.mark.parametrize(
    ("draws", "level"), [([], 0.95), ([1.0, math.nan], 0.95), ([1.0, 2.0], 1.0)]
)
def test_what_has_no_ends_is_refused(draws, level):
    with pytest.raises(ValueError, match=r"there is no value|is nan|level=1.0"):
        centred_ends(0.5, draws, level=level)
