"""One line over several networks: random effects."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from frenet._errors import UsageError
from frenet.statistics.intervals import Estimate, finite_values, student_factor


class Pooled(NamedTuple):
    """A mean over networks.

    Attributes:
        estimate: the mean with the interval of Hartung and Knapp; one network has no interval.
        spread: tau, the standard deviation between networks; None for one network.
        low: lower end of the prediction interval for the next network; None for one or two.
        high: its upper end.
    """

    estimate: Estimate
    spread: float | None
    low: float | None
    high: float | None


def pool(values: Iterable[float], errors: Iterable[float], *, level: float = 0.95) -> Pooled:
    """Random effects over k networks: mean, spread between them, and where the next one may lie.

    tau^2 is that of DerSimonian and Laird, w = 1 / (e^2 + tau^2), m = sum w y / sum w. The interval
    is m -+ t_{k-1} sqrt(q / sum w) with q = max(1, sum w (y - m)^2 / (k - 1)) (Hartung and Knapp):
    without the 1, networks that agree by chance would have an interval far below their own errors.
    The prediction interval is m -+ t_{k-2} sqrt(tau^2 + q / sum w), one degree of freedom less
    because tau is estimated as well.

    Args:
        values: the mean of each network.
        errors: their standard errors, above 0, in the same order.
        level: coverage, in (0, 1).

    Raises:
        ValueError: no networks, other numbers of values and errors, a number that is not finite, an
            error that is not positive, or a level outside (0, 1).

    Source: DerSimonian and Laird (1986), Meta-analysis in clinical trials; Hartung and Knapp
    (2001), A refined method for the meta-analysis of controlled clinical trials; Knapp and Hartung
    (2003), for the 1; Higgins, Thompson and Spiegelhalter (2009), for the prediction interval.

    >>> found = pool([0.2, 0.5, 0.8], [0.1, 0.1, 0.1])
    >>> print(found.estimate, round(found.spread, 3))
    0.5 [-0.245, 1.25], n = 3 0.283
    """
    y, e = finite_values(values), finite_values(errors, "standard error")
    if len(y) != len(e):
        raise UsageError(f"{len(y)} values and {len(e)} standard errors; pass one error per value")
    for i, error in enumerate(e):
        if error <= 0:
            raise UsageError(
                f"standard error {i} of {len(e)} is {error:g}, so its network would have all the "
                "weight; leave the network out and say so"
            )
    k = len(y)
    if k == 1:
        return Pooled(Estimate(y[0]), None, None, None)
    between = _between(y, e)
    weights = [1 / (error**2 + between) for error in e]
    mean, heterogeneity = _weighted(y, weights)
    error = math.sqrt(max(1.0, heterogeneity / (k - 1)) / sum(weights))
    half = student_factor(k, level) * error
    estimate = Estimate(mean, mean - half, mean + half, k)
    if k == 2:
        return Pooled(estimate, math.sqrt(between), None, None)
    reach = student_factor(k - 1, level) * math.sqrt(between + error**2)
    return Pooled(estimate, math.sqrt(between), mean - reach, mean + reach)


def _between(y: list[float], e: list[float]) -> float:
    """tau^2 by the method of moments, at least 0."""
    weights = [error**-2 for error in e]
    _, heterogeneity = _weighted(y, weights)
    total = sum(weights)
    scale = total - sum(w**2 for w in weights) / total
    return max(0.0, (heterogeneity - (len(y) - 1)) / scale)


def _weighted(y: list[float], weights: list[float]) -> tuple[float, float]:
    """Weighted mean, and the weighted sum of squares around it."""
    mean = sum(w * v for w, v in zip(weights, y, strict=True)) / sum(weights)
    return mean, sum(w * (v - mean) ** 2 for w, v in zip(weights, y, strict=True))
