"""Whether a mean is shown to be as good as equal to a number."""

from collections.abc import Iterable
from typing import NamedTuple

from frenet._errors import UsageError
from frenet.statistics.intervals import Estimate, finite_values, mean_interval, p_above


class Equivalence(NamedTuple):
    """Two one-sided tests of a mean against two limits.

    Attributes:
        estimate: the mean with its interval of level 1 - 2 alpha.
        p: the larger of the two p-values; None for one value.
        holds: whether both tests reject, which is whether the interval lies inside the limits.
    """

    estimate: Estimate
    p: float | None
    holds: bool


def equivalence(
    values: Iterable[float], *, lower: float, upper: float, alpha: float = 0.05
) -> Equivalence:
    """Two one-sided t tests that a mean lies above the lower and below the upper limit.

    Args:
        values: n finite numbers, usually the paired difference of every unit.
        lower: lower limit of what counts as equal, such as -m.
        upper: upper limit; the two need not be symmetric.
        alpha: level of each test, in (0, 0.5); 0.05 goes with the 90% interval.

    Raises:
        ValueError: as for ``mean_interval``, limits in the wrong order, or alpha outside (0, 0.5).

    Source: Schuirmann (1987), A comparison of the two one-sided tests procedure and the power
    approach for assessing the equivalence of average bioavailability.

    >>> equivalence([0.01, 0.02, 0.0], lower=-0.05, upper=0.05).holds
    True
    """
    if not lower < upper:
        raise UsageError(f"lower={lower} must be below upper={upper}")
    if not 0 < alpha < 0.5:
        raise UsageError(f"alpha={alpha} must be between 0 and 0.5, e.g. 0.05")
    x = finite_values(values)
    above, below = p_above(x, lower), p_above([-value for value in x], -upper)
    p = None if above is None or below is None else max(above, below)
    found = mean_interval(x, level=1 - 2 * alpha)
    return Equivalence(found, p, p is not None and p < alpha)
