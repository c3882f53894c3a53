"""How well a score separates two classes."""

from collections.abc import Iterable

from frenet.statistics.intervals import Estimate, finite_values, student_factor


def auc_interval(
    positive: Iterable[float], negative: Iterable[float], *, level: float = 0.95
) -> Estimate:
    """Probability that a positive has a higher score than a negative; a tie counts half.

    The variance is DeLong's, s_v^2 / n_+ + s_w^2 / n_-: v_i is the share of negatives below
    positive i, w_j the share of positives above negative j. The interval is symmetric in the logit,
    so it stays in [0, 1], with t of min(n_+, n_-) - 1 degrees of freedom. If the scores separate
    the classes, the variance is 0, and the interval is the exact one of min(n_+, n_-) independent
    pairs that are all in the same order.

    Args:
        positive: scores of the n_+ units of one class, such as prompts.
        negative: scores of the n_- units of the other class.
        level: coverage, in (0, 1).

    Returns:
        The area under the ROC curve, its limits and the number of units. There are no limits if
        one class has a single unit.

    Raises:
        ValueError: a class without units, a score that is not finite, or a level outside (0, 1).

    Source: DeLong, DeLong and Clarke-Pearson (1988), Comparing the areas under two or more
    correlated receiver operating characteristic curves.

    >>> print(auc_interval([1.0, 2.0, 3.0, 4.0], [0.0, 1.5, 2.5]))
    0.75 [0.0211, 0.998], n = 7
    """
    import numpy as np
    from scipy import special

    x = np.array(finite_values(positive, "positive score"))
    y = np.array(finite_values(negative, "negative score"))
    above = (np.sign(x[:, None] - y) + 1) / 2
    area, pairs, n = float(above.mean()), min(len(x), len(y)), len(x) + len(y)
    if pairs == 1:
        return Estimate(area, n=n)
    factor = student_factor(pairs, level)
    least = ((1 - level) / 2) ** (1 / pairs)
    if area == 1:
        return Estimate(area, least, 1.0, n)
    if area == 0:
        return Estimate(area, 0.0, 1 - least, n)
    variance = above.mean(1).var(ddof=1) / len(x) + above.mean(0).var(ddof=1) / len(y)
    half = factor * variance**0.5 / (area * (1 - area))
    low, high = special.expit(special.logit(area) + half * np.array([-1, 1]))
    return Estimate(area, float(low), float(high), n)
