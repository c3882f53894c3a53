"""A claim's number on a scale: measured, compared with, and the region that supports the claim."""

import math

from markupsafe import Markup

from frenet.experiments.experiment import Across, Claim, Finding
from frenet.experiments.figures.wording import two
from frenet.report.drawn import Scale, bar, canvas, mark, upright, words
from frenet.report.markup import tag

HEIGHT, MIDDLE = 19, 9.5
# From the ends of a scale to their numbers, and from the middle to the foot of these, in pixels.
ASIDE, FOOT = 3.0, 3.5
# The scales that are tried first, so that most claims share one.
USUAL = ((0.0, 1.0), (-1.0, 1.0), (0.0, 2.0), (-2.0, 2.0))
# How far a number may lie outside a usual scale.
ROOM = 0.05


def glyph(claim: Claim, finding: Finding) -> Markup:
    """The picture of one finding; empty if nothing was measured."""
    value = finding.estimate
    if value is None or not math.isfinite(value.value):
        return Markup("")
    across = claim.across or Across("", reference=finding.reference)
    other = finding.reference_estimate
    compared = other.value if across.reference and other is not None else None
    ends = [end for end in (value.low, value.high) if end is not None]
    scale = _scale([value.value, *ends, *([] if compared is None else [compared])])
    parts = [_axis(scale)]
    if across.supports is not None:
        parts.insert(0, _shade(scale, across.supports))
    if compared is not None:
        parts.append(upright(scale.at(compared), 1.0, 2 * MIDDLE - 1, "compared"))
    if ends:
        parts.append(bar(scale.at(min(ends)), scale.at(max(ends)), MIDDLE, "span series-1"))
    parts.append(mark(scale.at(value.value), MIDDLE, turn=0, half=4.5))
    parts.append(words(0.0, MIDDLE + FOOT, two(scale.low), dx=-ASIDE, anchor="end"))
    parts.append(words(100.0, MIDDLE + FOOT, two(scale.high), dx=ASIDE))
    return canvas(*parts, height=HEIGHT, kind="scale")


def _scale(values: list[float]) -> Scale:
    """The first usual scale that holds all values; otherwise one that just does."""
    known = [value for value in values if math.isfinite(value)]
    for low, high in USUAL:
        if low - ROOM <= min(known) and max(known) <= high + ROOM:
            return Scale(low, high)
    return Scale(min(0.0, _beyond(min(known))), max(0.0, _beyond(max(known))))


def _beyond(value: float) -> float:
    """The next number of one digit that is farther from 0."""
    if value == 0:
        return 0.0
    unit = 10.0 ** math.floor(math.log10(abs(value)))
    return math.copysign(unit * math.ceil(abs(value) / unit), value)


def _shade(scale: Scale, region: tuple[float, float]) -> Markup:
    low, high = scale.at(region[0]), scale.at(region[1])
    width = f"{round(high - low, 2)}%"
    return tag("rect", x=f"{low}%", y=1, width=width, height=2 * MIDDLE - 2, class_="supports")


def _axis(scale: Scale) -> Markup:
    return bar(scale.at(scale.low), scale.at(scale.high), MIDDLE, "base")
