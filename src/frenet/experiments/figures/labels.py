"""Names at marks and at the ends of lines, in place of a legend, so that none covers another.

A chart has the same height at every width, so that names one below the other keep their distance.
"""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

# The size of a letter, of a line of text and of a mark in pixels, for which names are placed.
LETTER, LINE, MARK = 7.2, 14.0, 7.0
# Letters in a line of a name at the end of a line.
WRAP = 18
# Where a name may stand: its anchor, and how far from the mark.
PLACES = {
    "right": ("left", 11, 0),
    "left": ("right", -11, 0),
    "above": ("center", 0, -15),
    "below": ("center", 0, 16),
    "right above": ("left", 8, -13),
    "right below": ("left", 8, 14),
    "left above": ("right", -8, -13),
    "left below": ("right", -8, 14),
    "far above": ("center", 0, -29),
    "far below": ("center", 0, 31),
    "far right": ("left", 8, 29),
    "far left": ("right", -8, 29),
    "high right": ("left", 8, -28),
    "high left": ("right", -8, -28),
}


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        """The area that two rectangles share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)


def sides(
    names: Sequence[str],
    spots: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    frame: tuple[float, float],
) -> list[str]:
    """For each name the place in `PLACES` where it covers least.

    Args:
        names: in the order in which they choose.
        spots: the middle of the mark of each name, in pixels from the upper left corner.
        taken: what names should not cover besides each other and these marks.
        frame: width and height of the panel.
    """
    marks = [*(around(spot) for spot in spots), *taken]
    boxes = [
        {side: _box(name, spot, side) for side in PLACES}
        for name, spot in zip(names, spots, strict=True)
    ]
    chosen: list[str] = []
    # The second time every name knows where all others stand.
    for _ in range(2):
        for index, mine in enumerate(boxes):
            others = [boxes[i][side] for i, side in enumerate(chosen) if i != index]
            covered = [*marks, *others]
            best = min(mine, key=lambda side: _cost(mine[side], covered, frame))
            chosen[index : index + 1] = [best]
    return chosen


def around(spot: tuple[float, float], half: float = MARK) -> Box:
    """The square of a mark."""
    return Box(spot[0] - half, spot[1] - half, spot[0] + half, spot[1] + half)


def _box(name: str, spot: tuple[float, float], side: str) -> Box:
    anchor, dx, dy = PLACES[side]
    width, x, y = LETTER * len(name), spot[0] + dx, spot[1] + dy
    left = {"left": x, "right": x - width, "center": x - width / 2}[anchor]
    return Box(left, y - LINE / 2, left + width, y + LINE / 2)


def _cost(box: Box, taken: Sequence[Box], frame: tuple[float, float]) -> float:
    """The area that a name would cover, or that would lie outside the panel."""
    whole = (box.right - box.left) * (box.bottom - box.top)
    inside = box.overlap(Box(0.0, 0.0, *frame))
    return sum(box.overlap(other) for other in taken) + 2 * (whole - inside)


def name_at(base: Any, field: str, side: str, colour: Any) -> Any:
    """The names of the marks of a chart that are at one side of them."""
    import altair as alt

    anchor, dx, dy = PLACES[side]
    mine = base.transform_filter(f"datum.side == {side!r}")
    text = mine.mark_text(
        align=anchor, baseline="middle", dx=dx, dy=dy, fontWeight=600, fontSize=12
    )
    return text.encode(text=alt.Text(field=field, type="nominal"), color=colour)


def wrapped(name: str) -> str:
    """A name in lines of few letters."""
    return "\n".join(textwrap.wrap(name, WRAP)) or name


def room(names: Sequence[str]) -> int:
    """The width in pixels that a symbol and the longest line of these names take."""
    lines = [line for name in names for line in wrapped(name).split("\n")]
    return round(LETTER * max(map(len, lines), default=0)) + 24


def apart(wanted: Sequence[float], heights: Sequence[float], most: float) -> list[float]:
    """Places as near as possible to those that are wanted, at which texts do not overlap.

    Texts that would overlap become one block around the mean of the places that they want; blocks
    that then overlap are joined in turn.

    Args:
        wanted: the middle of each text, in pixels from above.
        heights: the height of each text.
        most: the height of the panel; what does not fit begins at its upper edge.

    >>> apart([50.0, 52.0, 90.0], [14.0, 14.0, 14.0], 200.0)
    [44.0, 58.0, 90.0]
    """
    blocks: list[list[int]] = []
    tops: list[float] = []
    for index in sorted(range(len(wanted)), key=lambda i: wanted[i]):
        blocks.append([index])
        tops.append(_top([index], wanted, heights, most))
        while len(blocks) > 1 and tops[-2] + sum(heights[i] for i in blocks[-2]) > tops[-1]:
            blocks[-2:] = [blocks[-2] + blocks[-1]]
            tops[-2:] = [_top(blocks[-1], wanted, heights, most)]
    places = [0.0] * len(wanted)
    for block, top in zip(blocks, tops, strict=True):
        for index in block:
            places[index] = top + heights[index] / 2
            top += heights[index]
    return places


def _top(
    block: Sequence[int], wanted: Sequence[float], heights: Sequence[float], most: float
) -> float:
    """The upper edge of a block whose texts are on average where they want to be."""
    above, total = 0.0, 0.0
    for index in block:
        total += wanted[index] - above - heights[index] / 2
        above += heights[index]
    return max(0.0, min(total / len(block), most - above))
