"""Which coefficient to give a change of the weights: chosen on some examples, judged on others."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from frenet._errors import UsageError
from frenet._notebook import Fact, Shown
from frenet.geometry import rng
from frenet.measure.bracket import Bracket
from frenet.measure.displaced import LossCurve
from frenet.methods.merge_choice import RESAMPLES, Draws, Interval
from frenet.methods.resampled import Resampled, difference, interval

# The coefficient that an adapter has without advice.
USUAL = 1.0
# Steps of bisection between the last coefficient that helps and the next one tried.
HALVINGS = 2


class Tried(NamedTuple):
    """A change at one coefficient, on examples that did not choose it.

    Attributes:
        scale: the coefficient.
        loss: mean in nats per target token, with its 95% interval over examples.
        gain: what it takes off the loss without the change, paired by example.
        without: that loss.
    """

    scale: float
    loss: Interval
    gain: Interval
    without: float

    @property
    def helps(self) -> bool:
        """Whether the whole interval of the gain is above 0."""
        return self.gain.low > 0


@dataclass(frozen=True, repr=False)
class Advice(Shown):
    """The coefficient to give a change of the weights.

    Attributes:
        scale: the advised coefficient; None: no advice.
        why: the reason, in a few words.
        best: the best coefficient on the examples to choose on, judged on the others.
        usual: coefficient 1, judged in the same way.
        over_usual: what the best one takes off the loss at 1, paired by example.
        without: the loss without the change, on the examples that judge.
        reach: the first coefficient above the advised one at which a gain is no longer shown; None
            without advice.
        least: the smallest coefficient of the range around the advised one in which all that were
            tried help; None without advice.
        edge: whether the best one is the smallest or the largest of those to try.
        curve: all coefficients that were tried on the examples that judge, in their order.
        selected: the loss of the examples to choose on, by coefficient; 0 is without the change.
        rows: the number of examples to choose on, and of those that judge.
    """

    scale: float | None
    why: str
    best: Tried
    usual: Tried
    over_usual: Interval
    without: Interval
    reach: Bracket | None
    least: float | None
    edge: bool
    curve: tuple[Tried, ...]
    selected: dict[float, float]
    rows: tuple[int, int]

    @property
    def advised(self) -> Tried | None:
        """The advised coefficient, as it was judged; None without advice."""
        return next((tried for tried in self.curve if tried.scale == self.scale), None)

    def _summary(self) -> str:
        if self.scale is None:
            return f"no advice: {self.why}"
        return f"{self.scale:g} x ({self.why})"

    def _entries(self) -> Iterator[Fact]:
        yield "loss without", self.without.value, _ends(self.without)
        for tried in dict.fromkeys((self.best, self.usual)):
            yield f"loss at {tried.scale:g} x", tried.loss.value, f"gain {_ends(tried.gain)}"
        yield "best over 1 x", self.over_usual.value, _ends(self.over_usual)
        if self.reach is not None:
            yield "helps up to", str(self.reach), "nothing at 0"


def _ends(interval: Interval) -> str:
    return f"95% interval {interval.low:.4g} to {interval.high:.4g}"


def best_coefficient(
    select: LossCurve,
    test: LossCurve,
    *,
    scales: Sequence[float],
    resamples: int = RESAMPLES,
    generator: torch.Generator | None = None,
) -> Advice:
    """Which coefficient to give a change of the weights, and which ones help at all.

    The coefficient with the lowest loss on ``select`` is refined by one parabola through it and its
    neighbours. All are then judged on ``test``, with percentile intervals over its examples. The
    advice is that coefficient if it is shown to be better than 1; otherwise 1; and none if neither
    is shown to be better than nothing.

    Args:
        select: losses of the examples to choose on; every coefficient is evaluated once.
        test: those of the examples that judge, at least 2.
        scales: coefficients to try, above 0, with 1 among them.
        resamples: bootstrap samples of the examples.
        generator: the resamples; None: those of seed 0.

    Raises:
        ValueError: the coefficients lack 1, or are not finite and above 0.
        FloatingPointError: the loss without the change is not finite.
    """
    require_scales(scales)
    draw = generator or rng.generator(0, "coefficient")
    judge = _Judge.of(test, Resampled.of(test.counts, draw, resamples=resamples))
    selected = _selected(select, sorted({0.0, *scales}))
    best = _chosen(select, selected)
    tried = {scale: judge(scale) for scale in sorted({*scales, best})}
    over = judge.between(USUAL, best)
    scale, why = _decided(tried[best], tried[USUAL], over, lost=selected[best] >= selected[0.0])
    reach, least = None, None
    if scale is not None:
        reach, least = _range(judge, tried, scale)
    return Advice(
        scale, why, tried[best], tried[USUAL], over, interval(judge.mean(0.0)), reach, least,
        best in (min(scales), max(scales)), tuple(tried[scale] for scale in sorted(tried)),
        selected, (len(select.counts), len(test.counts)),
    )  # fmt: skip


def judged(
    curve: LossCurve,
    scales: Iterable[float],
    *,
    resamples: int = RESAMPLES,
    generator: torch.Generator,
) -> tuple[Tried, ...]:
    """A change at some coefficients, on examples that did not choose them.

    Raises:
        FloatingPointError: the loss without the change is not finite.
    """
    judge = _Judge.of(curve, Resampled.of(curve.counts, generator, resamples=resamples))
    return tuple(map(judge, scales))


def require_scales(scales: Sequence[float]) -> None:
    """Raise ValueError unless coefficients are above 0, with 1 among them."""
    if USUAL not in scales or not all(0 < scale < math.inf for scale in scales):
        raise UsageError(
            f"scales={tuple(scales)}; pass coefficients above 0 with 1 among them; the network "
            "without the change is always measured"
        )


@dataclass(frozen=True, eq=False)
class _Judge:
    """Losses and gains at coefficients, on examples that did not choose them."""

    mean: Callable[[float], Draws]

    @classmethod
    def of(cls, curve: LossCurve, examples: Resampled) -> "_Judge":
        mean = cache(lambda scale: examples.mean(curve.at(scale)))
        if not np.isfinite(mean(0.0)[0]):
            raise FloatingPointError("the loss without the change is not finite")
        return cls(mean)

    def __call__(self, scale: float) -> Tried:
        gain, without = self.between(0.0, scale), float(self.mean(0.0)[0])
        return Tried(scale, interval(self.mean(scale)), gain, without)

    def between(self, before: float, after: float) -> Interval:
        """How much lower the mean loss is at the second coefficient."""
        return difference(self.mean(before), self.mean(after))


def _selected(select: LossCurve, scales: Sequence[float]) -> dict[float, float]:
    """The mean loss at coefficients; infinity if it is not a number."""
    means = {scale: select.mean(scale) for scale in scales}
    return {scale: mean if math.isfinite(mean) else math.inf for scale, mean in means.items()}


def _chosen(select: LossCurve, selected: dict[float, float]) -> float:
    """The best of the coefficients and of the vertex of a parabola through it and its neighbours.

    The vertex, rounded to two decimals, is added to ``selected``.
    """
    places = sorted(selected)
    best = min(places[1:], key=lambda scale: selected[scale])
    near = places[places.index(best) - 1 :][:3]
    if len(near) == 3:
        vertex = round(_vertex(near, [selected[scale] for scale in near]), 2)
        if vertex not in selected:
            selected |= _selected(select, [vertex])
            return min(best, vertex, key=lambda scale: selected[scale])
    return best


def _vertex(x: Sequence[float], y: Sequence[float]) -> float:
    """The lowest place of the parabola through three points, of which the middle is the lowest.

    >>> _vertex([0.0, 1.0, 3.0], [4.0, 1.0, 1.0])
    2.0
    """
    (a, b, c), (p, q, r) = x, y
    left, right = (q - p) / (b - a), (r - q) / (c - b)
    if not (math.isfinite(left) and math.isfinite(right)) or left == right:
        return b
    return min(max((a + b) / 2 - left * (c - a) / (2 * (right - left)), a), c)


def _decided(best: Tried, usual: Tried, over: Interval, *, lost: bool) -> tuple[float | None, str]:
    """The advised coefficient and the reason."""
    if lost:
        return None, "no coefficient that was tried lowers the loss on the examples to choose on"
    if over.low > 0 or not usual.helps:
        if best.helps and over.low > 0:
            return best.scale, "shown to be better than 1 x"
        if best.helps:
            return best.scale, "shown to be better than nothing, and 1 x is not"
        return None, "no coefficient is shown to be better than nothing on held-out examples"
    if best.scale == usual.scale:
        return USUAL, "the best of those that were tried"
    return USUAL, f"{best.scale:g} x, the best on other examples, is not shown to be better"


def _range(judge: _Judge, tried: dict[float, Tried], scale: float) -> tuple[Bracket, float]:
    """Up to which coefficient all help, and from which; more are added to ``tried``."""
    places = sorted(tried)
    i = places.index(scale)
    end = next((s for s in places[i:] if not tried[s].helps), None)
    last = max(s for s in places if end is None or s < end)
    *_, start = itertools.takewhile(lambda s: tried[s].helps, reversed(places[: i + 1]))
    for _ in range(HALVINGS):
        if end is None:
            break
        middle = round((last + end) / 2, 3)
        tried[middle] = judge(middle)
        last, end = (middle, end) if tried[middle].helps else (last, middle)
    return Bracket(last, end), start
