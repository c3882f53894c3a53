"""How the series of a chart look: colours that all readers can distinguish, dashes, symbols."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import altair as alt

PALETTE = (
    *("#0072b2", "#d55e00", "#009e73", "#b0559a"),
    *("#7c7c1e", "#c98a00", "#882255", "#3fa0d8"),
)
# One hue from light to dark, for what has an order such as learning rates.
SHADES = ("#86b8dc", "#3f8fc8", "#00629e", "#003a63")
GREY = "#6b7280"
INK = "#1d2329"
HEAT = "#5aa5dc"
SOLID = (1, 0)
DASHES = ((7, 4), (2, 3), (9, 3, 2, 3), (4, 2))
SHAPES = (
    *("circle", "square", "triangle-up", "diamond", "cross", "triangle-down"),
    *("triangle-right", "triangle-left"),
)
# How the legend draws a band.
BLOCK = "M-1,-0.6L1,-0.6L1,0.6L-1,0.6Z"
# The place in the palette of what is in several figures, by label; other series take the free ones.
PLACES: Mapping[str, int] = {
    "gradient": 0,
    "gradients": 0,
    "gradients at start": 0,
    "gradient step": 0,
    "gradient vector": 0,
    "shift by a gradient step": 0,
    "Adam step": 1,
    "Adam-scaled gradients": 1,
    "first steps": 2,
    "task vector": 3,
    "task vectors": 3,
    "back to before the damage": 4,
    "steering vector": 5,
    "contrast vector": 5,
    "winner of a search": 6,
    "random": 7,
}


class Series(NamedTuple):
    """How the series of one chart look.

    ``names`` are all that the legend lists. Among them, ``nulls`` are series of the rows and
    ``drawn`` are levels of a `Rule`; both are grey, with different dashes. ``symbols`` is how the
    legend draws them; ``legend``: whether there is one. ``areas`` are those that are drawn as a
    band. ``ordered`` are measured series in one hue from light to dark.
    """

    field: str
    title: str | None
    names: list[str]
    nulls: list[str]
    drawn: list[str]
    symbols: Mapping[str, Any]
    legend: bool = True
    areas: Sequence[str] = ()
    ordered: Sequence[str] = ()

    def measured(self) -> list[str]:
        """The series that are neither null nor level."""
        return [name for name in self.names if name not in (*self.nulls, *self.drawn)]

    def style(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Colour and dash of one series."""
        grey = [*self.nulls, *self.drawn]
        if name in grey:
            return GREY, DASHES[grey.index(name) % len(DASHES)]
        if name in self.ordered:
            step = self.ordered.index(name) * (len(SHADES) - 1) / max(1, len(self.ordered) - 1)
            return SHADES[round(step) if len(self.ordered) > 1 else -1], SOLID
        turn, index = divmod(self.place(name), len(PALETTE))
        return PALETTE[index], SOLID if turn == 0 else DASHES[(turn - 1) % len(DASHES)]

    def place(self, name: str) -> int:
        """The place of a measured series in the palette."""
        return self._places()[name]

    def _places(self) -> dict[str, int]:
        """Every measured series with its place in the palette; from the length on, a new turn."""
        measured = self.measured()
        taken: dict[str, int] = {}
        for name in measured:
            if PLACES.get(name, -1) not in (-1, *taken.values()):
                taken[name] = PLACES[name]
        free = (place for place in itertools.count() if place not in taken.values())
        return {name: taken[name] if name in taken else next(free) for name in measured}

    def colour(self) -> "alt.Color":
        """The colour channel."""
        import altair as alt

        return self._channel(alt.Color, [self.style(name)[0] for name in self.names])

    def dash(self) -> "alt.StrokeDash":
        """The dash channel of lines."""
        import altair as alt

        return self._channel(alt.StrokeDash, [list(self.style(name)[1]) for name in self.names])

    def shape(self, *, upright: bool = False) -> "alt.Shape":
        """The shape channel of points; nulls are ticks, levels short pieces of their line."""
        import altair as alt

        measured, shapes = self.measured(), []
        for name in self.names:
            if name in measured:
                shapes.append(SHAPES[self.place(name) % len(SHAPES)])
            elif name in self.areas:
                shapes.append(BLOCK)
            else:
                solid = name in self.nulls and self.nulls.index(name) == 0
                shapes.append(_stroke(SOLID if solid else self.style(name)[1], upright=upright))
        return self._channel(alt.Shape, shapes)

    def _channel(self, kind: Any, values: list[Any]) -> Any:
        import altair as alt

        scale = alt.Scale(domain=self.names, range=values)
        legend = None
        if self.legend and len(self.names) > 1:
            # The same in every layer: Vega-Lite merges legends only if they agree.
            legend = alt.Legend(title=self.title, symbolOpacity=1, **self.symbols)
        return kind(field=self.field, type="nominal", title=self.title, scale=scale, legend=legend)


def _stroke(dash: tuple[int, ...], *, upright: bool) -> str:
    """A short piece of a dashed line as a filled path from -1 to 1."""
    pieces, start, index = [], -1.0, 0
    while start < 1:
        # Half the size of the dashes on the chart, so that a few fit into the symbol.
        end = min(1.0, start + dash[index % len(dash)] / 12 if dash != SOLID else 1.0)
        if index % 2 == 0:
            corners = [(start, -0.15), (end, -0.15), (end, 0.15), (start, 0.15)]
            corners = [(y, x) for x, y in corners] if upright else corners
            pieces.append("M" + "L".join(f"{x:.2f},{y:.2f}" for x, y in corners) + "Z")
        start, index = end, index + 1
    return "".join(pieces)
