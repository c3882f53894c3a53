"""Predicts the gain of Gaussian random search in a quadratic neighbourhood.

With delta = sigma z, z ~ N(0, I_d), and L quadratic around theta with gradient g and Hessian H,

    L(theta + delta) - L(theta) = sigma g.z + sigma^2 z.Hz / 2,

with the first three cumulants

    mean      sigma^2 tr(H) / 2  (+ sigma^4 q)
    variance  sigma^2 ||g||^2 + sigma^4 tr(H^2) / 2
    third     3 sigma^4 g.Hg + sigma^6 tr(H^3).

q is the mean of the fourth-order terms, sum_ij L_iijj / 8, if it has been measured; those of
third order vanish in the mean. The dimension enters only through the traces. docs/theory.md has
the theorem and its proof. The change of the loss is negative for an improvement; a gain is minus
the change.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from scipy import optimize

from frenet.geometry.loss_change import LossChange, expected_maximum

__all__ = [
    "Best",
    "LossChange",
    "QuadraticModel",
    "best_sigma",
    "candidates_for",
    "expected_maximum",
    "shrinkage",
    "transfer",
]

# Largest ratio of the second-order to the first-order spread in the linear range.
LINEAR = 0.2


@dataclass(frozen=True)
class QuadraticModel:
    """A loss around a point, or its restriction to a subspace: the scalars that decide a search.

    In the span of U read g as U^T g, H as U^T H U and d as k.

    Attributes:
        dim: d, the number of coordinates that are perturbed.
        gradient: ||g||.
        trace: tr(H), of either sign.
        trace_square: tr(H^2), at least 0.
        along: g.Hg, of either sign.
        trace_cube: tr(H^3), of either sign; 0 if unknown.
        quartic: q = sum_ij d^4 L / di^2 dj^2 / 8, of either sign; 0 if unknown.
        diagonal_square: sum_i H_ii^2, at most tr(H^2); 0 if unknown.
        along_diagonal: sum_i g_i^2 H_ii, of either sign; 0 if unknown.
    """

    dim: int
    gradient: float
    trace: float
    trace_square: float = 0.0
    along: float = 0.0
    trace_cube: float = 0.0
    quartic: float = 0.0
    diagonal_square: float = 0.0
    along_diagonal: float = 0.0

    def under_signs(self) -> "QuadraticModel":
        """The same loss for candidates of signs, z_i^2 = 1: the Hessian's diagonal has no spread.

        variance  sigma^2 ||g||^2 + sigma^4 (tr(H^2) - sum_i H_ii^2) / 2
        third     3 sigma^4 (g.Hg - sum_i g_i^2 H_ii), without the unknown trace of (H - diag H)^3

        >>> diagonal = QuadraticModel(2, 1.0, 4.0, 10.0, diagonal_square=10.0)
        >>> diagonal.under_signs().change(0.5)
        LossChange(mean=0.5, std=0.5, skew=0.0)
        """
        return replace(
            self,
            trace_square=max(0.0, self.trace_square - self.diagonal_square),
            along=self.along - self.along_diagonal,
            trace_cube=0.0,
            diagonal_square=0.0,
            along_diagonal=0.0,
        )

    def change(self, sigma: float) -> LossChange:
        """Distribution of the change at standard deviation sigma per coordinate.

        >>> QuadraticModel(dim=4, gradient=2.0, trace=8.0, trace_square=16.0).change(0.5)
        LossChange(mean=1.0, std=1.224744871391589, skew=0.0)
        """
        variance = sigma**2 * self.gradient**2 + sigma**4 * self.trace_square / 2
        third = 3 * sigma**4 * self.along + sigma**6 * self.trace_cube
        skew = third / variance**1.5 if variance > 0 else 0.0
        return LossChange(self.mean(sigma), variance**0.5, skew)

    def mean(self, sigma: float) -> float:
        """Expected change, sigma^2 tr(H) / 2 + sigma^4 q.

        >>> QuadraticModel(dim=1, gradient=0.0, trace=2.0, quartic=3.0).mean(2.0)
        52.0
        """
        return sigma**2 * self.trace / 2 + sigma**4 * self.quartic

    def gain(
        self, sigma: float, n: int | float, *, noise: float = 0.0, transfer: float = 1.0
    ) -> float:
        """Expected gain of the best of n candidates, on data with this ``transfer``.

        The mean change counts in full; the luck of the draw counts with the factor
        ``transfer * s / sqrt(s^2 + noise^2)``, s the standard deviation of the change.

        Args:
            sigma: standard deviation per coordinate.
            n: candidates.
            noise: standard deviation of the error of a candidate's score.
            transfer: see ``transfer``; 1 for the selection data.

        >>> linear = QuadraticModel(dim=9, gradient=2.0, trace=0.0)
        >>> round(linear.gain(0.1, 2), 6) == round(0.2 / math.pi**0.5, 6)
        True
        """
        change = self.change(sigma)
        luck = change.mean - change.best_of(n)
        return transfer * luck * shrinkage(change.std, noise) - change.mean

    def held_out_gain(
        self,
        sigma: float,
        n: int | float,
        *,
        noise: float = 0.0,
        transfer: float = 1.0,
        bend: float = 0.0,
        mean: float | None = None,
    ) -> float:
        """Expected gain of the best of n candidates on other data.

        Slope, curvature and error together choose the winner. The slope's share of its luck is
        sigma^2 ||g||^2 / (s^2 + noise^2), and ``transfer`` of that carries over to other data; the
        curvature's share is sigma^4 tr(H^2) / 2 / (s^2 + noise^2), and ``bend`` of that carries
        over. The cost is the mean change on the other data, ``mean``; None: as on these.

        >>> linear = QuadraticModel(dim=9, gradient=2.0, trace=0.0)
        >>> linear.held_out_gain(0.1, 2) == linear.gain(0.1, 2)
        True
        """
        change = self.change(sigma)
        luck = change.mean - change.best_of(n)
        price = change.mean if mean is None else mean
        return self.carried(sigma, noise=noise, transfer=transfer, bend=bend) * luck - price

    def carried(
        self, sigma: float, *, noise: float = 0.0, transfer: float = 1.0, bend: float = 0.0
    ) -> float:
        """Share of the winner's luck that carries over to other data, see ``held_out_gain``.

        >>> QuadraticModel(dim=9, gradient=2.0, trace=0.0).carried(0.1, transfer=0.5)
        0.5
        """
        std = self.change(sigma).std
        seen = transfer * (sigma * self.gradient) ** 2 + bend * sigma**4 * self.trace_square / 2
        whole = std * math.hypot(std, noise)
        return seen / whole if whole > 0 else 0.0

    def curved(self, sigma: float) -> float:
        """Spread by curvature over spread by slope, sigma sqrt(tr(H^2) / 2) / ||g||.

        >>> QuadraticModel(dim=4, gradient=2.0, trace=8.0, trace_square=8.0).curved(0.5)
        0.5
        """
        spread = sigma * (self.trace_square / 2) ** 0.5
        return spread / self.gradient if self.gradient > 0 else math.inf

    def linear_range(self) -> float:
        """Largest sigma at which ``curved`` is at most 0.2; infinite for a linear loss."""
        slope = self.curved(1.0)
        return LINEAR / slope if slope > 0 else math.inf

    def signal_density(self) -> float:
        """||g||^2 / d, the squared gradient per perturbed coordinate."""
        return self.gradient**2 / self.dim

    def density_over_curvature(self) -> float | None:
        """||g||^2 / tr(H), which ranks subspaces at their best sigma; None for tr(H) <= 0."""
        return self.gradient**2 / self.trace if self.trace > 0 else None


class Best(NamedTuple):
    """The best sigma for n candidates, and the gain it should bring."""

    sigma: float
    gain: int | float


def best_sigma(
    local: QuadraticModel,
    n: int | float,
    *,
    to_gain: int | float = math.inf,
    noise: float = 0.0,
    transfer: float = 1.0,
) -> Best | None:
    """sigma* and gain* for n candidates; None if curvature sets no limit, tr(H) <= 0.

    The maximum of the first-order luck minus the mean; for q = 0 sigma* = m_n ||g|| / tr(H) and
    gain* = m_n^2 ||g||^2 / (2 tr(H)). A negative q counts as 0: it means that the loss flattens,
    but not how it continues. The luck of the curvature grows as sigma^2, like the mean, and would
    have no maximum; it is left out here and included in ``QuadraticModel.gain``.

    Args:
        local: the loss around the point.
        n: candidates, above 1.
        to_gain: the largest possible gain.
        noise: of the score, see ``QuadraticModel.gain``.
        transfer: see ``QuadraticModel.gain``.

    >>> found = best_sigma(QuadraticModel(dim=1000, gradient=2.0, trace=100.0), 8)
    >>> m = expected_maximum(8)
    >>> round(found.sigma / (m * 2 / 100), 4), round(found.gain / (m * m * 4 / 200), 4)
    (1.0, 1.0)
    """
    scale = transfer * expected_maximum(n) * local.gradient
    if not (local.trace > 0 and scale > 0):
        return None
    bounded = replace(local, quartic=max(0.0, local.quartic))

    def loss(sigma: float) -> float:
        luck = sigma * scale * shrinkage(sigma * local.gradient, noise)
        return bounded.mean(sigma) - luck

    # A noisy score and fourth-order terms only make sigma* smaller, down to 0.
    most = 2 * scale / local.trace
    # An absolute error of 1e-5 would be larger than the sigma of large traces.
    precision = {"xatol": min(1e-5, 5e-3 * most)}
    optimum = optimize.minimize_scalar(loss, bounds=(0, most), method="bounded", options=precision)
    return Best(float(optimum.x), float(min(-optimum.fun, to_gain)))


def shrinkage(std: float, noise: float) -> float:
    """Share of the luck that is left after selection by a noisy score, s / sqrt(s^2 + noise^2).

    >>> round(shrinkage(3.0, 4.0), 6)
    0.6
    """
    return std / math.hypot(std, noise) if std > 0 else 0.0


def transfer(inner: float, selected: float) -> float:
    """Share of a first-order gain on the selection data that carries over to other data.

    <g_test, g_select> / ||g_select||^2: the regression of one change on the other.

    Args:
        inner: <g_test, g_select>.
        selected: ||g_select||.

    Returns:
        The share; 0 for a zero gradient.

    >>> transfer(2.0, 2.0)
    0.5
    """
    return inner / selected**2 if selected > 0 else 0.0


def candidates_for(
    local: QuadraticModel, sigma: float, gain: int | float, *, most: float = 1e12
) -> float | None:
    """Number of candidates at this sigma with the expected gain ``gain``; None above ``most``.

    >>> linear = QuadraticModel(dim=1, gradient=1.0, trace=0.0)
    >>> round(candidates_for(linear, 1.0, expected_maximum(64)), 3)
    64.0
    """
    if local.gain(sigma, 1) >= gain:
        return 1.0
    if local.gain(sigma, most) < gain:
        return None
    log_n = optimize.brentq(
        lambda log_n: local.gain(sigma, math.exp(log_n)) - gain, 0.0, math.log(most), xtol=1e-9
    )
    return math.exp(log_n)
