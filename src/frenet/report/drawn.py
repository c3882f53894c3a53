"""Small pictures without a script: SVG whose places are percentages, so that it fits any width."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from frenet.experiments.figures.series import SHAPES
from frenet.report.markup import tag

# Half the width of a mark in pixels.
LARGE, SMALL = 5.5, 2.75
# Outlines of the shapes of series, for half a width of 1.
OUTLINES = {
    "square": "M-.9-.9H.9V.9H-.9Z",
    "triangle-up": "M0-1.1L1.05.8H-1.05Z",
    "diamond": "M0-1.2L1.05 0L0 1.2L-1.05 0Z",
    "cross": "M-.4-1.1H.4V-.4H1.1V.4H.4V1.1H-.4V.4H-1.1V-.4H-.4Z",
    "triangle-down": "M0 1.1L1.05-.8H-1.05Z",
    "triangle-right": "M1.1 0L-.8 1.05V-1.05Z",
    "triangle-left": "M-1.1 0L.8 1.05V-1.05Z",
}


class Scale(NamedTuple):
    """Numbers to places in percent of the width, between two margins."""

    low: float
    high: float
    log: bool = False
    margin: float = 3.0

    def at(self, value: float) -> float:
        """The place of a number; those beyond an end are at that end."""
        value = min(max(value, self.low), self.high)
        low, high, value = ((math.log(v) if self.log else v) for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.margin + (100 - 2 * self.margin) * share, 2)

    def decades(self) -> list[float]:
        """The powers of ten on a logarithmic scale."""
        first, last = math.log10(self.low), math.log10(self.high)
        return [10.0**n for n in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1)]


def canvas(*parts: object, height: int, kind: str) -> Markup:
    """A picture as wide as its place; its text is said elsewhere."""
    return tag(
        "svg", *parts, width="100%", height=height, class_=f"drawn {kind}", aria_hidden="true"
    )


def mark(
    place: float,
    y: float,
    *,
    turn: int,
    half: float = LARGE,
    hollow: bool = False,
    says: str = "",
) -> Markup:
    """The mark of a series: ``turn`` is its place in the palette, ``says`` its tooltip."""
    shape = SHAPES[turn % len(SHAPES)]
    kind = f"series-{turn % len(SHAPES) + 1}{' hollow' if hollow else ''}"
    tip = tag("title", says) if says else ""
    if shape == "circle":
        return tag("circle", tip, cx=f"{place}%", cy=y, r=half, class_=kind)
    outline = tag("path", tip, d=OUTLINES[shape], transform=f"scale({half})", class_=kind)
    return tag("svg", outline, x=f"{place}%", y=y, overflow="visible", class_="held")


def bar(low: float, high: float, y: float, kind: str) -> Markup:
    """A horizontal line between two places."""
    return tag("line", x1=f"{low}%", x2=f"{high}%", y1=y, y2=y, class_=kind)


def upright(place: float, top: float, bottom: float, kind: str) -> Markup:
    """A vertical line."""
    return tag("line", x1=f"{place}%", x2=f"{place}%", y1=top, y2=bottom, class_=kind)


def words(
    place: float,
    y: float,
    text: str,
    *,
    dx: float = 0.0,
    anchor: str = "start",
    kind: str | None = None,
) -> Markup:
    """A text at a place."""
    return tag("text", text, x=f"{place}%", y=y, dx=dx, text_anchor=anchor, class_=kind)


def beside(places: Sequence[float], y: float, text: str) -> Markup:
    """A text to the right of all marks, or to their left if there is more room."""
    left, right = min(places), max(places)
    if right > 72 and left > 100 - right:
        return words(left, y, text, dx=-11.0, anchor="end")
    return words(right, y, text, dx=11.0)
