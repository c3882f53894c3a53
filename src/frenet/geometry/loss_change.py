"""The distribution of the change of a loss under one random displacement, and its lowest of n."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from frenet._errors import UsageError

Array = NDArray[np.float64]
# Below this skew the gamma distribution is normal to rounding, and its shape parameter overflows.
NORMAL = 1e-5


@dataclass(frozen=True)
class LossChange:
    """Distribution of the change of the loss under one random displacement.

    A shifted gamma distribution (Pearson's type III) with these three moments; normal if the skew
    is 0. It is exact for a linear loss, and for g = 0 with H = h I.

    Attributes:
        mean: expected change, nats per token.
        std: its standard deviation.
        skew: third cumulant over std^3; positive if the loss curves upwards.

    >>> LossChange(0.0, 1.0, 0.0).quantile(np.array([0.5, 0.975])).round(6)
    array([0.      , 1.959964])
    """

    mean: float
    std: float
    skew: float = 0.0

    def quantile(self, p: Array) -> Array:
        """The change below which a share p of the displacements lies."""
        return self._quantile(p, 1 - p)

    def cdf(self, change: Array) -> Array:
        """Share of the displacements whose change is at most ``change``.

        Without spread it is a step at the mean.
        """
        if self.std == 0:
            return np.where(np.asarray(change) >= self.mean, 1.0, 0.0)
        x = (change - self.mean) / self.std
        if abs(self.skew) < NORMAL:
            return special.ndtr(x)
        shape = 4 / self.skew**2
        gamma = np.maximum(shape + np.sign(self.skew) * x * shape**0.5, 0.0)
        return (special.gammainc if self.skew > 0 else special.gammaincc)(shape, gamma)

    def _quantile(self, p: Array, complement: Array) -> Array:
        """From p and 1 - p; the smaller one is accurate."""
        low = p < complement
        if abs(self.skew) < NORMAL:
            x = np.where(low, special.ndtri(p), -special.ndtri(complement))
            return self.mean + self.std * x
        shape = 4 / self.skew**2
        lower, upper = special.gammaincinv, special.gammainccinv
        if self.skew < 0:
            lower, upper = upper, lower
        gamma = np.where(low, lower(shape, p), upper(shape, complement))
        return self.mean + self.std * np.sign(self.skew) * (gamma - shape) / shape**0.5

    def best_of(self, n: int | float) -> float:
        """Expected lowest of n independent changes, by quadrature.

        With w = -n log(1 - p) exponentially distributed, E = integral of e^-w Q(1 - e^(-w/n)) dw,
        Q the quantile function; in log w the trapezoidal rule converges exponentially.

        >>> round(LossChange(0.0, 1.0).best_of(3), 6) == round(-3 / (2 * np.pi**0.5), 6)
        True
        """
        return self._mean_of_lowest(n, lambda change: change)

    def improvement(self, best: float, n: int | float) -> float:
        """Expected amount by which the lowest of n further changes falls below ``best``.

        Zero if none of them does. ``best`` is the lowest change so far; quadrature as in
        ``best_of``.

        >>> round(LossChange(0.0, 1.0).improvement(0.0, 1), 3) == round((2 * np.pi) ** -0.5, 3)
        True
        """
        return self._mean_of_lowest(n, lambda change: np.maximum(best - change, 0.0))

    def _mean_of_lowest(self, n: int | float, of: Callable[[Array], Array]) -> float:
        """Expected value of a function of the lowest of n changes."""
        if not n >= 1:
            raise UsageError(f"n={n} candidates; pass 1 or more")
        y = np.arange(-40.0, 4.5, 0.05)
        w = np.exp(y)
        values = self._quantile(-np.expm1(-w / n), np.exp(-w / n))
        return float(np.sum(np.exp(y - w) * of(values)) * 0.05)

    def best_band(self, n: int | float, level: float = 0.95) -> tuple[float, float]:
        """Interval that holds the lowest of n changes with probability ``level``.

        >>> low, high = LossChange(0.0, 1.0).best_band(1)
        >>> round(low, 4), round(high, 4)
        (-1.96, 1.96)
        """
        tails = np.array([(1 - level) / 2, (1 + level) / 2])
        above = np.log1p(-tails) / n
        low, high = self._quantile(-np.expm1(above), np.exp(above))
        return float(low), float(high)


def expected_maximum(n: int | float) -> float:
    """m_n, the expected largest of n standard normal numbers; about sqrt(2 ln n).

    >>> round(expected_maximum(2), 6) == round(1 / np.pi**0.5, 6)
    True
    """
    return -LossChange(0.0, 1.0).best_of(n)
