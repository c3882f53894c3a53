"""Brackets of a crossing that was measured at a few places only."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from frenet._errors import UsageError

# Two measurements at most this factor apart give an interpolated number.
NARROW = 1.25


class Bracket(NamedTuple):
    """The two measurements between which a quantity crossed a level: low < crossing <= high.

    It may have crossed and come back before ``low``, between two measurements.

    Attributes:
        low: last measurement before the crossing, in any unit, at least 0; 0 is the start. Without
            a crossing, the last measurement.
        high: first measurement after the crossing; None without a crossing.
        value: interpolated between the two if high / low <= NARROW, otherwise None.
    """

    low: float
    high: float | None
    value: float | None = None

    @classmethod
    def between(cls, low: float, high: float, value: float) -> "Bracket":
        """The bracket of two measurements, with the interpolated value if they are close enough.

        Args:
            low: at least 0.
            high: at least ``low``.
            value: between the two.

        >>> Bracket.between(20.0, 24.0, 22.5)
        Bracket(low=20.0, high=24.0, value=22.5)
        >>> Bracket.between(1.0, 2.0, 1.4)
        Bracket(low=1.0, high=2.0, value=None)
        """
        return cls(low, high, value if low > 0 and high <= NARROW * low else None)

    @classmethod
    def first_above(cls, values: Mapping[float, float], level: float) -> "Bracket":
        """Where a quantity that starts at 0 first exceeds a level, from values at some places.

        Between two places close enough it is interpolated by a power law.

        Args:
            values: by place, at least one; places are above 0. NaN counts as above the level.
            level: above 0.

        >>> Bracket.first_above({0.5: 0.08, 1.0: 0.15, 1.25: 0.3}, 0.2).in_words()
        'about 1.1 (between 1 and 1.25)'
        >>> str(Bracket.first_above({0.5: 0.3, 1.0: 0.1}, 0.2))
        'at most 0.5'
        """
        places = sorted(values)
        beyond = [place for place in places if not values[place] <= level]
        if not beyond:
            return cls(places[-1], None)
        high = beyond[0]
        low = max((place for place in places if place < high), default=0.0)
        if low == 0 or values[low] <= 0 or not math.isfinite(values[high]):
            return cls(low, high)
        share = math.log(level / values[low]) / math.log(values[high] / values[low])
        return cls.between(low, high, low * (high / low) ** share)

    @property
    def found(self) -> bool:
        """Whether a crossing was measured."""
        return self.high is not None

    def __str__(self) -> str:
        """In words, without a unit.

        >>> print(Bracket(1.0, 2.0), Bracket(0.0, 60.0), Bracket(100.0, None), sep=", ")
        between 1 and 2, at most 60, more than 100
        """
        return self.in_words()

    def in_words(self, unit: str = "") -> str:
        """In words, with a unit in the singular.

        >>> print(Bracket(0.0, 1.0).in_words("step"), Bracket(1.0, 2.0).in_words("step"), sep=", ")
        at most 1 step, between 1 and 2 steps
        >>> print(Bracket(20.0, 24.0, 22.53).in_words("step"))
        about 22.5 steps (between 20 and 24)
        """
        last = self.low if self.high is None else self.high
        unit = unit and f" {unit}{'' if last == 1 else 's'}"
        if self.high is None:
            return f"more than {_figure(self.low)}{unit}"
        if self.low <= 0:
            return f"at most {_figure(self.high)}{unit}"
        ends = f"between {_figure(self.low)} and {_figure(self.high)}"
        return (
            f"{ends}{unit}" if self.value is None else f"about {_figure(self.value)}{unit} ({ends})"
        )


def hull(brackets: Sequence[Bracket]) -> Bracket:
    """The narrowest bracket around several brackets with a crossing.

    >>> hull([Bracket(3.0, 10.0), Bracket(1.0, 3.0)])
    Bracket(low=1.0, high=10.0, value=None)
    """
    if len(brackets) == 1:
        return brackets[0]
    ends = [bracket.high for bracket in brackets if bracket.high is not None]
    if not brackets or len(ends) < len(brackets):
        raise UsageError("a hull needs at least one bracket, and a crossing in each")
    return Bracket(min(bracket.low for bracket in brackets), max(ends))


def _figure(value: float) -> str:
    """Integers in full, other numbers to three digits."""
    return f"{value:.0f}" if value == round(value) else f"{value:.3g}"
