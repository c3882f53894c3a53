"""Bases that move with training: full steps, then steps inside their span, repeated."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from frenet._errors import UsageError
from frenet.geometry.basis import Basis, prefix_basis
from frenet.network.space import ParamSpace


@dataclass(frozen=True)
class MovingBasis:
    """Cycles of ``full`` steps in all d coordinates and ``inside`` steps in the basis they give.

    Attributes:
        full: full steps at the start of a cycle, at least 1.
        inside: steps inside the basis that follow, at least 1; None: all remaining steps, so that
            the basis is fixed from step ``full`` on.
        build: makes the basis of a cycle from its full steps, shape (full, d), and its number,
            counted from 0.
    """

    full: int
    inside: int | None
    build: Callable[[Float[Tensor, "t d"], int], Basis]

    def __post_init__(self) -> None:
        if self.full < 1 or (self.inside is not None and self.inside < 1):
            raise UsageError(
                f"a cycle of {self.full} full steps and {self.inside} inside is too short; "
                "pass at least 1 of each, or inside=None for a fixed basis"
            )


def moving_prefix(k: int, *, inside: int | None, space: ParamSpace) -> MovingBasis:
    """k full steps, ``inside`` steps in the span of these k, then k full steps from there, ...

    In every cycle k steps move all d coordinates and the others k: only full steps bring new
    directions.

    Args:
        k: full steps, and directions, of a cycle.
        inside: steps inside the span; None: the first prefix stays to the end.
        space: the d parameters.
    """
    return MovingBasis(k, inside, lambda rows, _: prefix_basis(rows, k, space=space))
