"""The interval of a number from its bootstrap draws."""

from collections.abc import Iterable

from frenet.statistics.intervals import finite_values, student_factor


def centred_ends(
    value: float, draws: Iterable[float], *, level: float = 0.95
) -> tuple[float, float]:
    """The quantiles of bootstrap draws, moved so that their mean is the value itself.

    A cosine of two means is lower, the noisier they are, and each resample adds as much noise as
    there is already. So the draws of a bootstrap lie too low as a whole, by about the bias of the
    value; their spread is right. The ends are v + q - mean(draws), q the quantile.

    Args:
        value: the number that was measured.
        draws: the same number for resampled units.
        level: coverage, in (0, 1).

    Raises:
        ValueError: no draws, a number that is not finite, or a level outside (0, 1).

    >>> centred_ends(1.0, [0.0, 0.5, 1.0], level=0.5)
    (0.75, 1.25)
    """
    import numpy as np

    student_factor(2, level)
    x = np.array(finite_values(draws))
    low, high = np.quantile(x, [(1 - level) / 2, (1 + level) / 2]) - x.mean() + value
    return float(low), float(high)
