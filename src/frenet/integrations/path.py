"""Running sums over the steps of a training, and the share that its first k steps capture."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from frenet.experiments.experiment import Row
from frenet.geometry.basis import Basis, prefix_basis
from frenet.geometry.linalg import norm
from frenet.network.space import ParamSpace

# Two sums in float64, the point in float32, and two vectors in passing.
SUM_BYTES = 8 + 8 + 4 + 8 + 8


class PathSums:
    """The path so far: sums in float64, so that a resumed training gives the same numbers.

    Args:
        space: the d parameters.
        k: number of first steps in the prefix.
    """

    def __init__(self, space: ParamSpace, *, k: int) -> None:
        self.space, self.k = space, k
        self.steps = 0
        self.total = torch.zeros(space.dim, dtype=torch.float64)
        self.prefix: Basis | None = None
        self._first: list[Tensor] = []
        self._after_k = self.total
        self._squares, self._squares_k = 0.0, 0.0
        self._unmoved, self._zeros, self.unseen = 0, 0, 0

    def add(self, step: Float[Tensor, " d"], *, zeros: int, unseen: int) -> bool:
        """Add the next step.

        Args:
            step: the move.
            zeros: number of coordinates with a zero gradient.
            unseen: number of coordinates without a visible gradient.

        Returns:
            False, and nothing is added, if the step is not finite.
        """
        exact = step.double()
        square = float(exact @ exact)
        if not math.isfinite(square):
            return False
        self.steps += 1
        self.total += exact
        self._squares += square
        self._unmoved += self.space.dim - int(step.count_nonzero())
        self._zeros += zeros
        self.unseen += unseen
        if self.steps <= self.k:
            self._first.append(step)
        if self.steps == self.k:
            self.prefix = prefix_basis(torch.stack(self._first), self.k, space=self.space)
            self._first.clear()
            self._after_k, self._squares_k = self.total.clone(), self._squares
        return True

    @property
    def displacement(self) -> float:
        """Distance from the start, 2-norm."""
        return norm(self.total)

    def rows(self) -> list[Row]:
        """Rows of the tables path and prefix; none at the start, no prefix rows up to step k."""
        if not self.steps:
            return []
        moves = self.steps * self.space.dim
        path: Row = {
            "table": "path",
            "step": self.steps,
            "displacement": self.displacement,
            "walk": self._squares**0.5,
            "unmoved": self._unmoved / moves,
            "zeros": self._zeros / moves if self.unseen < moves else None,
            "unseen": self.unseen / moves,
        }
        return [path, *self._prefix_rows()]

    def _prefix_rows(self) -> list[Row]:
        if self.prefix is None or self.steps <= self.k or not self._squares:
            return []
        captured = self._captured(self.total)
        # As random_walk_share, but from sums of norms, since the norms are not stored.
        walk = self._squares_k / self._squares
        row: Row = {
            "table": "prefix",
            "step": self.steps,
            "k": self.k,
            "k_share": self.k / self.steps,
            "rank": self.prefix.k,
            "captured": captured,
            "random_walk": walk,
            "lift": captured / walk if captured is not None and walk else None,
            "one": 1.0,
            "rest": self._captured(self.total - self._after_k),
            "random": self.prefix.k / self.space.dim,
        }
        return [row]

    def _captured(self, displacement: Float[Tensor, " d"]) -> float | None:
        """Share of the squared norm inside the prefix; None without movement."""
        if self.prefix is None or not displacement.any():
            return None
        return float(self.prefix.captured_fraction(displacement.float()))
