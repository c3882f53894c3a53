"""Vectors that are means over prompts: their reliability, and how they vary with the prompts.

A mean vector is a function of the weights of its units. Two random halves of the units give a
split-half cosine, and random weights give a bootstrap.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from frenet._errors import UsageError
from frenet.geometry.alignment import Contrasted

# Draws at once: their weights of pairs of units take little memory.
TOGETHER = 100


@dataclass(frozen=True)
class MeanDifference:
    """The difference of the means of two sides; the units are prompts, or pairs of them."""

    sides: Contrasted

    @property
    def sizes(self) -> tuple[int, ...]:
        """The prompts of each side, or the pairs."""
        counts = len(self.sides.positive), len(self.sides.negative)
        return counts[:1] if self.sides.paired else counts

    def part(self, units: Sequence[Int[Tensor, " _"]]) -> "MeanDifference":
        """The difference of some prompts."""
        return MeanDifference(
            Contrasted(
                self.sides.positive[units[0]], self.sides.negative[units[-1]], self.sides.paired
            )
        )

    def weighted(self, weights: Sequence[Float[Tensor, "b _"]]) -> Float[Tensor, "b h"]:
        """sum_i w_i p_i / sum_i w_i - sum_j u_j n_j / sum_j u_j."""
        first, second = _shares(weights[0]), _shares(weights[-1])
        return first @ self.sides.positive.double() - second @ self.sides.negative.double()


@dataclass(frozen=True)
class MeanShift:
    """The mean shift of prompts by the gradient of groups of other prompts.

    Attributes:
        shifts: (g, m, h), of each of m prompts by the step of each of g groups.
        counts: (g,), the prompts of each group.
    """

    shifts: Float[Tensor, "g m h"]
    counts: Float[Tensor, " g"]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Groups and shifted prompts."""
        return self.shifts.shape[0], self.shifts.shape[1]

    def part(self, units: Sequence[Int[Tensor, " _"]]) -> "MeanShift":
        """The shift of some prompts by some groups."""
        groups, prompts = units
        return MeanShift(self.shifts[groups][:, prompts], self.counts[groups])

    def weighted(self, weights: Sequence[Float[Tensor, "b _"]]) -> Float[Tensor, "b h"]:
        """sum_ij w_i c_i u_j s_ij / (sum_i w_i c_i sum_j u_j), c_i the prompts of a group."""
        groups, prompts = _shares(weights[0] * self.counts), _shares(weights[1])
        both = (groups[:, :, None] * prompts[:, None, :]).flatten(1)
        return both @ self.shifts.flatten(0, 1).double()


# A vector that is a weighted mean over units of one or two kinds.
MeanVector = MeanDifference | MeanShift


def _shares(weights: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    return weights.double() / weights.double().sum(1, keepdim=True)


def mean_of(vector: MeanVector) -> Float[Tensor, " h"]:
    """The vector of equal weights, in float64."""
    return vector.weighted([torch.ones(1, n) for n in vector.sizes])[0]


def resamples(
    vector: MeanVector, draws: int, generator: torch.Generator
) -> list[Float[Tensor, "b _"]]:
    """Random weights of the units: a Bayesian bootstrap.

    Each weight is exponential with mean 1. Unlike counts of drawn units, no weight is 0, so that a
    half of the units always has a mean.

    Source: Rubin (1981), The Bayesian bootstrap.
    """
    return [
        torch.empty(draws, n, dtype=torch.float64).exponential_(generator=generator)
        for n in vector.sizes
    ]


def resampled_counts(
    n: int, resamples: int, generator: torch.Generator
) -> Float[np.ndarray, "b n"]:
    """How often each of n units is in each resample of n draws with replacement: a bootstrap."""
    rows = torch.randint(0, n, (resamples, n), generator=generator).numpy()
    return np.stack([np.bincount(row, minlength=n) for row in rows]).astype(float)


class Splits(NamedTuple):
    """Random divisions of the units into two halves.

    Attributes:
        halves: for each division and half, the units of each kind.
    """

    halves: list[tuple[list[Int[Tensor, " _"]], list[Int[Tensor, " _"]]]]

    @classmethod
    def of(cls, vector: MeanVector, repeats: int, generator: torch.Generator) -> "Splits":
        """Divisions of the units of a vector; no unit is in both halves.

        Raises:
            ValueError: fewer than two units of a kind.
        """
        if min(vector.sizes) < 2:
            counts = " and ".join(map(str, vector.sizes))
            raise UsageError(f"{counts} units have no halves; pass at least 2 of each kind")
        halves = []
        for _ in range(repeats):
            orders = [torch.randperm(n, generator=generator).chunk(2) for n in vector.sizes]
            halves.append(([order[0] for order in orders], [order[1] for order in orders]))
        return cls(halves)

    def cosines(
        self, vector: MeanVector, weights: Sequence[Float[Tensor, "b _"]] | None = None
    ) -> Float[Tensor, " b"]:
        """Mean cosine of the vectors of the two halves, for each set of weights."""
        given = [torch.ones(1, n) for n in vector.sizes] if weights is None else weights
        total = torch.zeros(len(given[0]), dtype=torch.float64)
        for both in self.halves:
            first, second = (
                _in_parts(
                    vector.part(half).weighted,
                    [w[:, units] for w, units in zip(given, half, strict=True)],
                )
                for half in both
            )
            total += row_cosines(first, second)
        return total / len(self.halves)


def split_half_cosine(vector: MeanVector, *, repeats: int, generator: torch.Generator) -> float:
    """Mean cosine of the vectors of two random halves of the units: the vector's reliability.

    r between halves is a lower bound of the ceiling of a cosine, see ``corrected``.

    Raises:
        ValueError: fewer than two units of a kind.
    """
    return float(Splits.of(vector, repeats, generator).cosines(vector))


def weighted(vector: MeanVector, weights: Sequence[Float[Tensor, "b _"]]) -> Float[Tensor, "b h"]:
    """The vector for many sets of weights."""
    return _in_parts(vector.weighted, weights)


def _in_parts(function: Callable[[Sequence[Tensor]], Tensor], weights: Sequence[Tensor]) -> Tensor:
    def parts() -> Iterator[Tensor]:
        for start in range(0, len(weights[0]), TOGETHER):
            yield function([w[start : start + TOGETHER] for w in weights])

    return torch.cat(list(parts()))


def row_cosines(a: Float[Tensor, "b h"], b: Float[Tensor, "b h"]) -> Float[Tensor, " b"]:
    """Cosine of every row with the row of another matrix; 0 if one of them is zero."""
    norms = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norms > 0, (a * b).sum(1) / norms.clamp_min(1e-300), 0.0)


def corrected(r: float) -> float:
    """The reliability of the whole vector, from the cosine r of two halves: R = 2 r / (1 + r).

    R is about the cosine with another vector of equal quality. Two vectors with reliabilities R and
    Q have a cosine of at most about sqrt(R Q), however alike they are.

    Source: Spearman (1910), Brown (1910): the reliability of a test of twice the length.

    >>> corrected(0.5)
    0.6666666666666666
    """
    return 2 * r / (1 + r)
