"""How many units would settle a claim, and what the units at hand could have shown.

All numbers hold for normally distributed units of the mean and spread that were found. A claim
counts as settled if its test decides in 80% of repetitions. At the number of units for which the
expected interval just clears the line, it would decide in only half of them.
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

from frenet._errors import UsageError
from frenet.statistics.intervals import Sample, student_factor

POWER = 0.8
# Level of the intervals of mean and spread that give a range of numbers of units. At 95%, the
# interval of the mean of an undecided claim always contains the line, and no range has an end.
RANGE_LEVEL = 0.8
MOST = 10_000


class Needed(NamedTuple):
    """Numbers of units; None stands for more than ``MOST``, or for none that would do.

    Attributes:
        n: at the mean and spread that were found.
        low: at the most favourable ends of the 80% intervals of mean and spread.
        high: at the least favourable ends.
    """

    n: int | None
    low: int | None
    high: int | None


def units_needed(found: Sample, line: float, *, level: float = 0.95) -> Needed | None:
    """Units for which Student's interval lies on one side of a line with a power of 80%.

    The smallest n with P(T > t_{n-1}) at least 0.8, T noncentral t of n - 1 degrees of freedom and
    noncentrality |m - line| sqrt(n) / s. The range is over the box of the 80% intervals of m
    (Student) and s (chi), which holds both in at least 60% of repetitions.

    Args:
        found: mean and spread of the units so far.
        line: what the mean is compared with.
        level: coverage of the interval that decides, in (0, 1).

    Returns:
        None for fewer than two units, which have no spread.

    Raises:
        ValueError: a level outside (0, 1).

    Source: Cohen (1988), Statistical power analysis; Miller (2024), arXiv 2411.00640.

    >>> units_needed(Sample(0.5, 1.0, 10), 0.0)
    Needed(n=34, low=8, high=4321)
    """
    if found.n < 2:
        return None

    def smallest(distance: float, spread: float) -> int | None:
        return _smallest(lambda n: t_power(distance, spread, n, level=level))

    distance, half = abs(found.mean - line), student_factor(found.n, RANGE_LEVEL) * found.error
    narrow, wide = _spreads(found)
    return Needed(
        smallest(distance, found.spread),
        smallest(distance + half, narrow),
        smallest(distance - half, wide),
    )


def smallest_effect(found: Sample, *, level: float = 0.95) -> float | None:
    """Distance of the mean from a line that this number of units shows with a power of 80%.

    Args:
        found: number and spread of the units.
        level: coverage of the interval that decides, in (0, 1).

    Returns:
        None for fewer than two units, which have no spread.

    >>> round(smallest_effect(Sample(0.5, 1.0, 34)), 3)
    0.495
    """
    from scipy import special

    if found.n < 2:
        return None
    factor = student_factor(found.n, level)
    return float(special.nctdtrinc(found.n - 1, 1 - POWER, factor)) * found.error


def units_for_equivalence(
    found: Sample, *, lower: float, upper: float, alpha: float = 0.05
) -> Needed | None:
    """Units that would settle a claim of equality with a power of 80%.

    For a mean between the limits, those with which ``equivalence`` holds. For a mean outside, those
    with which the interval of level 1 - alpha lies wholly outside.

    Args:
        found: mean and spread of the units so far.
        lower: lower limit of what counts as equal.
        upper: upper limit.
        alpha: level of each one-sided test, in (0, 0.5).

    Returns:
        As ``units_needed``; the farthest mean of its interval has no number if it is no longer
        between the limits.

    Raises:
        ValueError: limits in the wrong order.

    >>> units_for_equivalence(Sample(0.0, 0.05, 5), lower=-0.05, upper=0.05)
    Needed(n=11, low=7, high=237)
    """
    if not lower < upper:
        raise UsageError(f"lower={lower} must be below upper={upper}")
    if found.n < 2:
        return None
    if not lower < found.mean < upper:
        nearest = lower if found.mean <= lower else upper
        return units_needed(found, nearest, level=1 - alpha)

    def smallest(mean: float, spread: float) -> int | None:
        if not lower < mean < upper:
            return None
        return _smallest(lambda n: tost_power(mean - lower, upper - mean, spread, n, alpha=alpha))

    half = student_factor(found.n, RANGE_LEVEL) * found.error
    (narrow, wide), centre = _spreads(found), (lower + upper) / 2
    best = min(max(centre, found.mean - half), found.mean + half)
    worst = found.mean + half if found.mean >= centre else found.mean - half
    return Needed(smallest(found.mean, found.spread), smallest(best, narrow), smallest(worst, wide))


def smallest_margin(found: Sample, *, alpha: float = 0.05) -> float | None:
    """Margin m for which this number of units shows |mean| < m with a power of 80%, the mean at 0.

    Args:
        found: number and spread of the units.
        alpha: level of each one-sided test, in (0, 0.5).

    Returns:
        None for fewer than two units, which have no spread.

    >>> round(smallest_margin(Sample(0.0, 0.05, 11)), 3)
    0.047
    """
    from scipy import optimize

    if found.n < 2:
        return None
    most = 4 * student_factor(found.n, 1 - 2 * alpha) + 4
    scale = found.n**0.5  # the standard error is 1
    ratio = optimize.brentq(
        lambda m: tost_power(m, m, scale, found.n, alpha=alpha) - POWER, 0.0, most
    )
    return float(ratio) * found.error


def t_power(distance: float, spread: float, n: int, *, level: float = 0.95) -> float:
    """Probability that Student's interval of n units lies on the mean's side of a line.

    Args:
        distance: of the mean from the line.
        spread: standard deviation of the units.
        n: at least 2.
        level: coverage of the interval, in (0, 1).

    >>> round(t_power(0.5, 1.0, 34), 4)
    0.8078
    """
    from scipy import special

    factor = student_factor(n, level)
    if spread == 0:
        return float(distance > 0)
    return 1 - float(special.nctdtr(n - 1, distance * n**0.5 / spread, factor))


def tost_power(below: float, above: float, spread: float, n: int, *, alpha: float = 0.05) -> float:
    """Probability that ``equivalence`` holds for n units.

    With u = (upper - m) sqrt(n) / s, l = (m - lower) sqrt(n) / s and t = t_{n-1, 1-alpha}, it is
    the mean of Phi(u - t x) + Phi(l - t x) - 1 over x = chi_{n-1} / sqrt(n - 1), as far as this is
    positive.

    Args:
        below: distance of the mean from the lower limit.
        above: distance of the upper limit from the mean.
        spread: standard deviation of the units.
        n: at least 2.
        alpha: level of each one-sided test, in (0, 0.5).

    Source: Owen (1965), A special case of a bivariate non-central t-distribution.

    >>> round(tost_power(0.05, 0.05, 0.05, 11), 3)
    0.849
    """
    factor = student_factor(n, 1 - 2 * alpha)
    if spread == 0:
        return float(below > 0 and above > 0)
    return _tost_power(below * n**0.5 / spread, above * n**0.5 / spread, n - 1, factor)


def _tost_power(below: float, above: float, df: int, factor: float) -> float:
    """``tost_power`` with distances in standard errors, by Gauss-Legendre quadrature over x."""
    import numpy as np
    from scipy import special

    ends = np.sqrt(special.chdtri(df, [1 - 1e-12, 1e-12]) / df)
    least, most = ends[0], min(ends[1], (below + above) / (2 * factor))
    if most <= least:
        return 0.0
    nodes, weights = np.polynomial.legendre.leggauss(100)
    x = least + (most - least) * (nodes + 1) / 2
    log_density = (
        np.log(2) + df / 2 * np.log(df / 2) - special.gammaln(df / 2)
        + (df - 1) * np.log(x) - df * x**2 / 2
    )  # fmt: skip
    inside = special.ndtr(above - factor * x) - special.ndtr(factor * x - below)
    return float((most - least) / 2 * np.sum(weights * np.exp(log_density) * inside))


def _smallest(power: Callable[[int], float]) -> int | None:
    """The smallest number of units, at least 2, with enough power; None if above ``MOST``."""
    numbers = range(2, MOST + 1)
    index = bisect_left(numbers, True, key=lambda n: power(n) >= POWER)
    return numbers[index] if index < len(numbers) else None


def _spreads(found: Sample) -> tuple[float, float]:
    """Ends of the chi interval of the standard deviation."""
    from scipy import special

    df = found.n - 1
    low, high = (special.chdtri(df, (1 + side * RANGE_LEVEL) / 2) for side in (-1, 1))
    return found.spread * float(df / low) ** 0.5, found.spread * float(df / high) ** 0.5
