"""The mean of independent values with its interval, on the raw scale or inside a range.

Rules judge on the raw scale. The intervals inside a range are for display.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from frenet._errors import UsageError


class Estimate(NamedTuple):
    """A value with its interval, and how many values it is the mean of.

    Attributes:
        value: such as a mean.
        low: lower end of the 95% interval that is shown; None for a single value.
        high: its upper end.
        n: how many values; 0 for a number that was not measured.
        unit: what is counted, such as a seed.
        raw: the 95% interval on the raw scale, which decides; None: the one that is shown.
        narrow: the 90% interval on the raw scale, which decides an equality.
        error: the standard error, if the interval is not Student's.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 1
    unit: str = "value"
    raw: tuple[float, float] | None = None
    narrow: tuple[float, float] | None = None
    error: float | None = None

    def __str__(self) -> str:
        ends = self.low is not None and self.high is not None
        interval = f" [{self.low:.3g}, {self.high:.3g}]" if ends else ""
        counted = f", n = {self.n}" if self.n else ""
        return f"{self.value:.3g}{interval}{counted}"


class Sample(NamedTuple):
    """Mean, standard deviation (divisor n - 1; 0 if n = 1) and number of independent values."""

    mean: float
    spread: float
    n: int

    @property
    def error(self) -> float:
        """Standard error of the mean, s / sqrt(n)."""
        return self.spread / math.sqrt(self.n)

    @classmethod
    def of(cls, estimate: Estimate, *, level: float = 0.95) -> "Sample":
        """The sample behind a ``mean_interval`` of this level.

        Of an interval by other means, such as a bootstrap, it is the sample whose Student interval
        is as wide. The raw interval counts, if there is one; the other must not be for display.

        >>> Sample.of(mean_interval([1.0, 2.0, 3.0])).spread
        1.0...
        """
        value, n = estimate.value, estimate.n
        low, high = estimate.raw or (estimate.low, estimate.high)
        if low is None or high is None or n < 2:
            return cls(value, 0.0, n)
        return cls(value, (high - low) / 2 / student_factor(n, level) * math.sqrt(n), n)


def standard_error(estimate: Estimate) -> float:
    """The error of an estimate, or that of the Student interval of this width; 0 without either.

    >>> round(standard_error(mean_interval([1.0, 2.0, 3.0])), 3)
    0.577
    """
    return Sample.of(estimate).error if estimate.error is None else estimate.error


def sample(values: Iterable[float]) -> Sample:
    """Mean and spread of finite values; the spread of equal values is exactly 0.

    Raises:
        ValueError: no values, or a value that is not finite.
    """
    x = finite_values(values)
    mean, n = math.fsum(x) / len(x), len(x)
    if min(x) == max(x):
        return Sample(x[0], 0.0, n)
    return Sample(mean, math.hypot(*(value - mean for value in x)) / math.sqrt(n - 1), n)


def finite_values(values: Iterable[float], what: str = "value") -> list[float]:
    """The values as floats.

    Args:
        values: any numbers.
        what: what each of them is, for errors.

    Raises:
        ValueError: no values, or a value that is not finite.
    """
    x = [float(value) for value in values]
    if not x:
        raise UsageError(f"there is no {what}; pass at least one")
    for i, value in enumerate(x):
        if not math.isfinite(value):
            raise UsageError(f"{what} {i} of {len(x)} is {value}; leave it out and say so")
    return x


def check_level(level: float) -> None:
    """Raise ValueError for a coverage outside (0, 1)."""
    if not 0 < level < 1:
        raise UsageError(f"level={level} must be between 0 and 1, e.g. 0.95")


def student_factor(n: int, level: float) -> float:
    """Half of Student's interval of n values in standard errors: the quantile t_{n-1} of the level.

    Raises:
        ValueError: a level outside (0, 1).
    """
    from scipy import special

    check_level(level)
    return float(special.stdtrit(n - 1, (1 + level) / 2))


def mean_interval(values: Iterable[float], *, level: float = 0.95) -> Estimate:
    """Mean of independent values with its Student t interval, m -+ t_{n-1} s / sqrt(n).

    Args:
        values: n finite numbers, usually one per seed.
        level: coverage, in (0, 1).

    Returns:
        The mean, the limits and n; one value has no limits.

    Raises:
        ValueError: no values, a value that is not finite, or a level outside (0, 1).

    Source: Student (1908), The probable error of a mean.

    >>> print(mean_interval([1.0, 2.0, 3.0]))
    2 [-0.484, 4.48], n = 3
    """
    mean, _, n = found = sample(values)
    if n == 1:
        return Estimate(mean)
    half = student_factor(n, level) * found.error
    return Estimate(mean, mean - half, mean + half, n)


def bounded_interval(
    values: Iterable[float], *, least: float = 0.0, most: float = 1.0, level: float = 0.95
) -> Estimate:
    """Mean of values in a range with an interval that never leaves the range, for display.

    With x the mean as a share of the range, y = (x (n - 1) + 0.5) / n, logit(y) has the interval
    logit(y) -+ t_{n-1} s_y / (sqrt(n) y (1 - y)) (delta method). Its ends are mapped back and cut
    at the range. The mean is transformed, not the values: the mean of transformed values is
    another quantity, and its interval can miss the mean. For cosines, in [-1, 1], logit(x) is twice
    Fisher's z.

    Args:
        values: n numbers in [least, most].
        least: 0 for shares, -1 for cosines.
        most: upper end of the range.
        level: coverage, in (0, 1).

    Returns:
        The mean itself, the limits and n; one value has no limits.

    Raises:
        ValueError: as for ``mean_interval``, a value outside the range, or an empty range.

    Source: Smithson and Verkuilen (2006), A better lemon squeezer, for y.

    >>> print(bounded_interval([0.9, 0.95, 1.0]))
    0.95 [0.807, 1], n = 3
    """
    from scipy import special

    if not least < most:
        raise UsageError(f"least={least} must be below most={most}")
    x = finite_values(values)
    for i, value in enumerate(x):
        if not least <= value <= most:
            raise UsageError(
                f"value {i} of {len(x)} is {value}, outside [{least:g}, {most:g}]; pass the range "
                "of the quantity as least and most"
            )
    mean, _, n = found = sample(x)
    if n == 1 or found.spread == 0:
        return mean_interval(x, level=level)
    span, squeezed = most - least, (n - 1) / n
    y = (mean - least) / span * squeezed + 0.5 / n
    half = student_factor(n, level) * found.error / span * squeezed / (y * (1 - y))
    shares = (
        (float(special.expit(special.logit(y) + side * half)) - 0.5 / n) / squeezed
        for side in (-1, 1)
    )
    low, high = (least + span * min(max(share, 0.0), 1.0) for share in shares)
    return Estimate(mean, low, high, n)


def positive_interval(values: Iterable[float], *, level: float = 0.95) -> Estimate:
    """Mean of values that are not negative with an interval above 0, for display.

    log(m) has the interval log(m) -+ t_{n-1} s / (sqrt(n) m) (delta method). For divergences.

    Args:
        values: n numbers, none negative.
        level: coverage, in (0, 1).

    Returns:
        The mean itself, the limits and n; one value has no limits.

    Raises:
        ValueError: as for ``mean_interval``, or a negative value.

    >>> print(positive_interval([0.5, 1.0, 1.5]))
    1 [0.289, 3.46], n = 3
    """
    x = finite_values(values)
    for i, value in enumerate(x):
        if value < 0:
            raise UsageError(
                f"value {i} of {len(x)} is {value}, below 0; use mean_interval for a quantity that "
                "can be negative"
            )
    mean, _, n = found = sample(x)
    if n == 1 or found.spread == 0:
        return mean_interval(x, level=level)
    factor = math.exp(student_factor(n, level) * found.error / mean)
    return Estimate(mean, mean / factor, mean * factor, n)


def p_above(values: Iterable[float], line: float) -> float | None:
    """One-sided p-value of Student's t test that the mean is above a line; None for one value.

    It is below alpha if and only if the interval of level 1 - 2 alpha lies above the line. For
    "below", pass the negatives. Equal values give 0 above the line, 1 below it and 0.5 on it.

    >>> p_above([1.0, 2.0, 3.0], 2.0)
    0.5
    """
    from scipy import special

    mean, _, n = found = sample(values)
    if n == 1:
        return None
    distance = mean - line
    if found.spread == 0:
        return 0.5 if distance == 0 else float(distance < 0)
    return float(special.stdtr(n - 1, -distance / found.error))
