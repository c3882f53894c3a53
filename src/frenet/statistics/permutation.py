"""How often a null gives a statistic as large as the observed one."""

import sys
from collections.abc import Iterable

from frenet.statistics.intervals import finite_values

# Labellings that give the same statistic may differ by rounding. The tolerance is that of scipy.
TIE = 100 * sys.float_info.epsilon


def p_of_draws(observed: float, draws: Iterable[float]) -> float:
    """One-sided p-value of a statistic against B draws of its null, (1 + #{draw >= it}) / (1 + B).

    The observed labelling counts as one of the draws, so the test keeps its level for every B. The
    least p is 1 / (1 + B): p < 0.025 needs 40 draws. For "below", pass the negatives.

    Args:
        observed: the statistic, larger the further it is from the null.
        draws: the same statistic under shuffled labels, or for random vectors.

    Raises:
        ValueError: no draws, or a number that is not finite.

    Source: Phipson and Smyth (2010), Permutation p-values should never be zero.

    >>> p_of_draws(2.0, [0.0, 1.0, 2.0, 3.0])
    0.6
    """
    (observed,) = finite_values([observed], "observed statistic")
    x = finite_values(draws, "draw")
    reached = sum(draw >= observed - TIE * abs(observed) for draw in x)
    return (1 + reached) / (1 + len(x))
