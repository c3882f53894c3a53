"""How far a direction can be followed: the radius within which a quantity is linear along it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from frenet._errors import UsageError
from frenet._notebook import Fact, Shown
from frenet.measure.bracket import Bracket
from frenet.measure.loss_line import LossLine

# Relative error of the radius at which bisection stops.
PRECISION = 0.05
# Values in float32 are known to about this fraction of their size.
ROUNDING = 1e-6


class Point(NamedTuple):
    """One distance along a line.

    Attributes:
        r: distance, with the sign of the direction it was taken in.
        change: of the mean, q(r) - q(0).
        linear: the change that the slope predicts, r <g, u>.
    """

    r: float
    change: float
    linear: float

    @property
    def deviation(self) -> float:
        """|change - linear| / |linear|."""
        return abs(self.change - self.linear) / abs(self.linear) if self.linear else math.inf


@dataclass(frozen=True, repr=False)
class LinearRange(Shown):
    """How far a quantity is linear along a direction, on one side.

    Attributes:
        sign: 1 along the direction, -1 against it.
        radius: largest distance that is linear within ``eps``; ``limit`` if all tried are.
        low: lower end of its 95% interval over examples, at most the radius; 0 if resamples
            become nonlinear at distances too small to measure.
        high: upper end, at least the radius; infinity only if resamples stay linear up to
            ``limit``.
        unbounded: still linear at the largest distance tried.
        limit: the largest distance tried.
        predicted: 2 eps |s| / |u.Hu|, the radius of a quadratic; infinity without curvature,
            None if the curvature is unknown.
        slope: s = <g, u>, per unit of distance.
        points: the distances tried, sorted.
    """

    sign: int
    radius: float
    low: float
    high: float
    unbounded: bool
    limit: float
    predicted: float | None
    slope: float
    points: tuple[Point, ...]

    def _summary(self) -> str:
        side = "along" if self.sign == 1 else "against"
        if self.unbounded:
            return f"linear {side} the direction up to the largest distance tried, {self.limit:.4g}"
        return (
            f"linear {side} the direction up to {self.radius:.4g} [{self.low:.4g}, {self.high:.4g}]"
        )

    def _entries(self) -> Iterator[Fact]:
        yield "radius", self.radius, f"95% interval {self.low:.4g} to {self.high:.4g}"
        yield (
            "radius of a quadratic",
            self.predicted,
            "2 eps |slope / curvature|",
        )
        yield "slope", self.slope, f"tried up to {self.limit:.4g}"


def radius(
    line: LossLine,
    *,
    start: float,
    limit: float,
    sign: int = 1,
    eps: float = 0.2,
    resamples: int = 200,
    generator: torch.Generator,
) -> LinearRange:
    r"""Largest r up to which a quantity is linear along a direction.

    $$|q(\theta + r u) - q(\theta) - r s| \le \epsilon\, |r s|, \qquad s = \langle g, u \rangle$$

    From ``start``, r is halved until the condition holds, or doubled until it fails; bisection
    then finds the border to 5%. It does not look for a border at smaller distances. If the
    distances do not bound the borders of resampled examples, it tries more, half as far and twice
    as far, down to rounding and up to ``limit``.

    Args:
        line: the quantity; for a loss from ``loss_line``.
        start: first distance, above 0.
        limit: largest distance.
        sign: 1 along the direction, -1 against it.
        eps: in (0, 1).
        resamples: bootstrap samples of the examples, for the interval.
        generator: the resamples.

    Raises:
        ValueError: the slope is not larger than rounding, so that no linear range can be
            measured, or settings are out of range.
    """
    if not (0 < start <= limit < math.inf and 0 < eps < 1 and sign in (1, -1)):
        raise UsageError(
            f"start={start}, limit={limit}, eps={eps}, sign={sign}; pass 0 < start <= limit, eps "
            "in (0, 1) and a sign of 1 or -1"
        )
    seen = _Seen(line, sign, eps)
    linear = _bracket(seen, start, limit)
    low, high = _interval(seen, seen.drawn(resamples, generator), limit)
    points = tuple(seen.point(r) for r in sorted(seen.values))
    curvature = line.curvature
    predicted = None
    if curvature is not None:
        predicted = 2 * eps * abs(line.slope) / abs(curvature) if curvature else math.inf
    unbounded = linear >= limit
    if unbounded:
        low, high = min(low, limit), math.inf
    return LinearRange(
        sign, linear, min(low, linear), max(high, linear), unbounded, limit, predicted,
        line.slope, points,
    )  # fmt: skip


class _Seen:
    """The points evaluated on one side of a line."""

    def __init__(self, line: LossLine, sign: int, eps: float) -> None:
        self.line, self.sign, self.eps = line, sign, eps
        self.zero = line.at(0.0).numpy()
        self.values: dict[float, np.ndarray] = {}
        self.counts, self.slopes = line.counts.numpy(), line.slopes.numpy()
        # Closer than this, the deviation from linear drowns in rounding.
        mean = abs(float(self.zero.sum() / self.counts.sum()))
        change = abs(line.slope) * eps
        self.nearest = ROUNDING * max(mean, 1e-3) / change if change > 0 else math.inf

    def point(self, r: float) -> Point:
        """Mean change and linear prediction at a distance."""
        if r not in self.values:
            self.values[r] = self.line.at(self.sign * r).numpy()
        change = float((self.values[r] - self.zero).sum() / self.counts.sum())
        return Point(self.sign * r, change, self.sign * r * self.line.slope)

    def linear(self, r: float) -> bool:
        """Whether the condition holds; False if a value is not finite."""
        return self.point(r).deviation <= self.eps

    def drawn(self, resamples: int, generator: torch.Generator) -> np.ndarray:
        """How often each example is in each resample."""
        n = len(self.zero)
        rows = torch.randint(0, n, (resamples, n), generator=generator).numpy()
        return np.stack([np.bincount(row, minlength=n) for row in rows]).astype(float)

    def resampled(self, weights: np.ndarray) -> tuple[float, float]:
        """2.5% and 97.5% quantiles of the first crossing, over resampled examples.

        A crossing between two distances far apart counts with its lower end for the first, and
        with its upper end for the second.
        """
        radii = np.array(sorted(self.values))
        changes = np.stack([self.values[r] - self.zero for r in radii], 1)
        changes = np.where(np.isfinite(changes), changes, np.inf)
        with np.errstate(invalid="ignore"):
            slopes = self.sign * (weights @ self.slopes)[:, None] * radii
            deviations = np.abs(weights @ changes - slopes) / np.abs(slopes)
        deviations = np.nan_to_num(deviations, nan=np.inf)
        ends = np.array([_crossing(radii, row, self.eps) for row in deviations])
        low = np.quantile(ends[:, 0], 0.025, method="inverted_cdf")
        high = np.quantile(ends[:, 1], 0.975, method="inverted_cdf")
        return float(low), float(high)


def _interval(seen: _Seen, weights: np.ndarray, limit: float) -> tuple[float, float]:
    """The interval over examples; evaluates more distances until they bound it."""
    while True:
        low, high = seen.resampled(weights)
        nearest, farthest = min(seen.values), max(seen.values)
        if math.isinf(high) and farthest < limit:
            seen.point(min(2 * farthest, limit))
        elif low == 0 and nearest > seen.nearest:
            seen.point(max(nearest / 2, seen.nearest))
        else:
            return low, high


def _crossing(radii: np.ndarray, deviations: np.ndarray, eps: float) -> tuple[float, float]:
    """The distances between which the deviation first exceeds eps; equal if interpolated.

    If it never does, the last distance and infinity.
    """
    beyond = np.flatnonzero(deviations > eps)
    if not len(beyond):
        return float(radii[-1]), math.inf
    j = int(beyond[0])
    outside = float(radii[j])
    if j == 0:
        return 0.0, outside
    inside, before, after = float(radii[j - 1]), deviations[j - 1], deviations[j]
    if not math.isfinite(after):
        return inside, outside
    share = (eps - before) / (after - before)
    value = Bracket.between(inside, outside, inside * (outside / inside) ** share).value
    return (inside, outside) if value is None else (value, value)


def _bracket(seen: _Seen, start: float, limit: float) -> float:
    """The border, to PRECISION, or ``limit`` if the quantity is linear that far."""
    inside = outside = max(start, min(seen.nearest, limit))
    if seen.linear(inside):
        while inside < limit and seen.linear(outside := min(2 * inside, limit)):
            inside = outside
    else:
        while not seen.linear(inside := outside / 2):
            outside = inside
            if inside < seen.nearest:
                raise UsageError(
                    f"the slope along the direction, {seen.line.slope:.3g}, is too small to "
                    f"distinguish from rounding within {2 * outside:.3g}, where the change may be "
                    "linear"
                )
    if inside >= limit:
        return limit
    while outside / inside > 1 + PRECISION:
        middle = math.sqrt(inside * outside)
        if seen.linear(middle):
            inside = middle
        else:
            outside = middle
    # For the interval: the resamples cross at other distances.
    seen.point(inside / 1.5)
    seen.point(min(1.5 * outside, limit))
    return inside
