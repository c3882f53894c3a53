"""How far a direction can be followed: the radius within which a quantity is linear along it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from frenet._errors import UsageError
from frenet._notebook import Fact, Interval, Shown, number
from frenet.geometry import rng
from frenet.geometry.resampling import resampled_counts
from frenet.measure.bracket import NARROW
from frenet.measure.loss_line import LossLine

# Largest relative error of the radius, and the factor between two distances around a border: a
# little less, so that rounding does not ask for a third.
PRECISION = 0.05
STEP = 1 + 0.98 * PRECISION
# Least factor of a step outwards after one that has not reached the border.
FARTHER = 1.5
# Where an end of the interval is expected, a distance farther out by this factor should bound it.
MARGIN = 1.1
# Distances that are evaluated to narrow each end once it is bounded.
LOOKS = 1
# Values in float32 are known to about this fraction of their size.
ROUNDING = 1e-6
# Least distance between the first look and the farthest, as a factor.
NEAREST = 16


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
        length: norm of the direction that the line was made from; None if there is none.
        size: norm of the parameters that move; None if the line is not one of parameters.
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
    length: float | None = None
    size: float | None = None

    @property
    def times(self) -> float | None:
        """The radius in lengths of the direction; None if that has none."""
        return self.radius / self.length if self.length else None

    @property
    def relative(self) -> float | None:
        """The radius as a share of the norm of the parameters that move; None if none do."""
        return self.radius / self.size if self.size else None

    def _summary(self) -> str:
        side = "along" if self.sign == 1 else "against"
        share = self.relative
        of = "" if share is None else f", {share:.3g} of the norm of the parameters that move"
        if self.unbounded:
            end = f"the largest distance tried, {self.limit:.4g}"
        else:
            end = f"{self.radius:.4g} [{self.low:.4g}, {self.high:.4g}]"
        return f"linear {side} the direction up to {end}{of}"

    def _entries(self) -> Iterator[Fact]:
        shown = Interval(self.radius, self.low, self.high, self.predicted)
        yield "radius", shown, f"{number(self.predicted)} of a quadratic, 2 eps |slope / curvature|"
        if self.times is not None:
            yield "radius in own lengths", self.times, f"its length is {self.length:.4g}"
        if self.relative is not None:
            norm = f"the norm of the parameters that move is {self.size:.4g}"
            yield "radius over that norm", self.relative, norm
        yield "slope", self.slope, f"tried up to {self.limit:.4g}"


def radius(
    line: LossLine,
    *,
    start: float | None = None,
    limit: float | None = None,
    sign: int = 1,
    eps: float = 0.2,
    resamples: int = 200,
    generator: torch.Generator | None = None,
) -> LinearRange:
    r"""Largest r up to which a quantity is linear along a direction.

    $$|q(\theta + r u) - q(\theta) - r s| \le \epsilon\, |r s|, \qquad s = \langle g, u \rangle$$

    From ``start``, r is decreased, to a half or less, until the condition holds, or increased, to
    about the double or less, until it fails; the border between the two is then found to 5%. It
    does not look for a border at smaller distances. Further distances narrow the interval over
    examples; if they do not bound it, it tries more, down to rounding and up to ``limit``.

    Args:
        line: the quantity; for a loss from ``loss_line``.
        start: first distance, above 0; None: half of the radius of a quadratic.
        limit: largest distance; None: four times the direction's length, and at least the norm of
            the parameters that move.
        sign: 1 along the direction, -1 against it.
        eps: in (0, 1).
        resamples: bootstrap samples of the examples, for the interval.
        generator: the resamples; None: those of seed 0.

    Raises:
        ValueError: the slope is not larger than rounding, so that no linear range can be
            measured, settings are out of range, or the line is no line of weights and needs
            ``start`` and ``limit``.
    """
    start, limit = _distances(line, start, limit, eps)
    generator = generator or rng.generator(0, "radius")
    if not (0 < start <= limit < math.inf and 0 < eps < 1 and sign in (1, -1)):
        raise UsageError(
            f"start={start}, limit={limit}, eps={eps}, sign={sign}; pass 0 < start <= limit, eps "
            "in (0, 1) and a sign of 1 or -1"
        )
    seen = _Seen(line, sign, eps)
    linear = _bracket(seen, start, limit)
    low, high = _interval(seen, resampled_counts(len(seen.zero), resamples, generator), limit)
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
        line.slope, points, line.length, line.size,
    )  # fmt: skip


def looked_between(
    line: LossLine, size: float, *, length: float | None, eps: float
) -> tuple[float, float]:
    """First and greatest distance to measure on a line through parameters of norm ``size``."""
    start, limit = size / 1000, max(size, 4 * (length or 0.0))
    if line.curvature and line.slope:
        # Half of the radius of a quadratic; if it is not linear there, nearer ones are tried. Not
        # much nearer to the limit, so that a border on the way is not passed over.
        start = min(eps * abs(line.slope / line.curvature), limit / NEAREST)
    return start, limit


def _distances(
    line: LossLine, start: float | None, limit: float | None, eps: float
) -> tuple[float, float]:
    """The first and the largest distance, with defaults for a line of weights."""
    if start is not None and limit is not None:
        return start, limit
    if line.size is None:
        raise UsageError("this line is not one of weights; pass start and limit, two distances")
    usual, farthest = looked_between(line, line.size, length=line.length, eps=eps)
    limit = farthest if limit is None else limit
    return min(usual, limit) if start is None else start, limit


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

    def farther(self, r: float, least: float) -> float:
        """Just beyond the border that a quadratic would have, and at most about twice as far."""
        expected = _proportional(r, self.point(r).deviation, self.eps)
        return r * min(max(expected / r * STEP**0.5, least), 2 * STEP)

    def nearer(self, r: float) -> float:
        """Just before the border that a quadratic would have, between a quarter and a half of r."""
        expected = _proportional(r, self.point(r).deviation, self.eps)
        return r * min(max(expected / r / STEP**0.5, 0.25), 0.5)

    def resampled(self, weights: np.ndarray) -> "tuple[_End, _End]":
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
        crossings = np.array([_crossing(radii, row, self.eps) for row in deviations])
        low = np.quantile(crossings[:, [0, 1]], 0.025, axis=0, method="inverted_cdf")
        high = np.quantile(crossings[:, [2, 1]], 0.975, axis=0, method="inverted_cdf")
        return _End(*low.tolist()), _End(*high.tolist())


class _End(NamedTuple):
    """An end of the interval: a bound from measured distances, and where it is expected."""

    bound: float
    expected: float


def _interval(seen: _Seen, weights: np.ndarray, limit: float) -> tuple[float, float]:
    """The interval over examples; evaluates more distances until they bound it, and narrow it."""
    steps, looks = [0, 0], [0, 0]
    while True:
        low, high = seen.resampled(weights)
        nearest, farthest = min(seen.values), max(seen.values)
        if math.isinf(high.bound) and farthest < limit:
            # In steps that grow, but not so far as to pass over a border and back.
            ahead = min(max(MARGIN * high.expected / farthest, 2.0 ** steps[1]), 4.0)
            looked = min(ahead * farthest, limit)
            steps[1] += 1
        elif low.bound == 0 and nearest > seen.nearest:
            looked = max(min(low.expected / MARGIN, nearest / 2.0 ** steps[0]), seen.nearest)
            steps[0] += 1
        elif looks[1] < LOOKS and NARROW * high.expected < high.bound < math.inf:
            looked = MARGIN * high.expected
            looks[1] += 1
        elif looks[0] < LOOKS and 0 < low.bound < min(low.expected / NARROW, farthest):
            looked = low.expected / MARGIN
            looks[0] += 1
        else:
            return low.bound, high.bound
        seen.point(looked)


def _crossing(radii: np.ndarray, deviations: np.ndarray, eps: float) -> tuple[float, float, float]:
    """Where the deviation first exceeds eps: the distance before, the expected one, and that after.

    All are the same if the two distances are close. Without one before, it is 0; without one
    after, infinity: the deviation is then expected to grow like the distance.
    """
    beyond = np.flatnonzero(deviations > eps)
    if not len(beyond):
        last = float(radii[-1])
        return last, _proportional(last, float(deviations[-1]), eps), math.inf
    j = int(beyond[0])
    outside, after = float(radii[j]), float(deviations[j])
    if j == 0:
        return 0.0, _proportional(outside, after, eps), outside
    inside = float(radii[j - 1])
    share = _share(float(deviations[j - 1]), after, eps)
    expected = inside * (outside / inside) ** share
    if outside <= NARROW * inside and math.isfinite(after):
        return expected, expected, expected
    return inside, expected, outside


def _proportional(r: float, deviation: float, eps: float) -> float:
    """The border if the deviation grows like the distance, as for a quadratic."""
    return r * eps / deviation if deviation > 0 else math.inf


def _share(before: float, after: float, eps: float) -> float:
    """The border's place between two log distances, by a power law; 0.5 without a law."""
    if before == 0 or not math.isfinite(after):
        return 0.5
    return math.log(eps / before) / math.log(after / before)


def _bracket(seen: _Seen, start: float, limit: float) -> float:
    """The border, to PRECISION, or ``limit`` if the quantity is linear that far."""
    inside = outside = max(start, min(seen.nearest, limit))
    if seen.linear(inside):
        least = STEP
        while inside < limit and seen.linear(outside := min(seen.farther(inside, least), limit)):
            inside, least = outside, FARTHER
    else:
        while not seen.linear(inside := seen.nearer(outside)):
            outside = inside
            if inside < seen.nearest:
                raise UsageError(
                    f"the slope along the direction, {seen.line.slope:.3g}, is too small to "
                    f"distinguish from rounding within {2 * outside:.3g}, where the change may be "
                    "linear"
                )
    return limit if inside >= limit else _border(seen, inside, outside)


def _border(seen: _Seen, inside: float, outside: float) -> float:
    """The border between a distance that is linear and one that is not, to PRECISION.

    Looks half a step before the place that a power law gives, then a step further, so that the
    right place takes two looks. Where two looks have not halved the interval, it bisects.
    """
    step, widths = math.log(STEP), [math.inf, math.inf]
    while outside / inside > 1 + PRECISION:
        width = math.log(outside / inside)
        ahead = width / 2
        if width <= widths[-2] / 2:
            share = _share(seen.point(inside).deviation, seen.point(outside).deviation, seen.eps)
            ahead = min(max(share * width - step / 2, step), width - step)
        widths.append(width)
        middle = inside * math.exp(ahead)
        if seen.linear(middle):
            inside = middle
        else:
            outside = middle
    return inside
