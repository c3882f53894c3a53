"""Orthonormal directions in parameter space, with their parameters."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from math import isnan
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from frenet._errors import UsageError
from frenet._notebook import Fact, Shown
from frenet.geometry.blocks import deviation, first_non_finite, gram
from frenet.geometry.linalg import ORTHONORMAL, norms, principal_angles, subspace_overlap


@runtime_checkable
class Space(Protocol):
    """Names for the coordinates of R^d; implemented by ``ParamSpace``."""

    @property
    def names(self) -> tuple[str, ...]:
        """One name for each parameter, in order."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each parameter."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of coordinates of each parameter."""

    @property
    def dim(self) -> int:
        """d, the number of coordinates."""

    def locate(self, index: int) -> str:
        """The name of the parameter that holds one coordinate."""

    def check_finite(self, vector: Tensor, what: str) -> None:
        """Raise FloatingPointError naming the parameter with a NaN or an infinity."""


@dataclass(frozen=True, eq=False, repr=False)
class Basis(Shown):
    """k orthonormal directions in R^d. Methods move vectors to the device of the basis.

    Args:
        U: (d, k) float32 with |U^T U - I| <= 1e-5; k = 0 is the zero subspace.
        S: (k,) singular values behind the columns, None if there are none.
        space: the parameters behind the coordinates; None for plain R^d.
        origin: of the directions, in words.
        rank: numerical rank of the vectors behind the basis, at least k. 0: k.

    Raises:
        ValueError: wrong shape or dtype, or columns that are not orthonormal.
        FloatingPointError: an entry is NaN or infinite; names the parameter.

    >>> basis = Basis(torch.eye(3)[:, :2])
    >>> basis.project(torch.tensor([1.0, 2.0, 2.0])), basis.captured_fraction(torch.ones(3))
    (tensor([1., 2., 0.]), tensor(0.6667, dtype=torch.float64))
    """

    U: Float[Tensor, "d k"]
    S: Float[Tensor, " k"] | None = None
    space: Space | None = None
    origin: str = "given"
    rank: int = 0

    def __post_init__(self) -> None:
        if self.U.ndim != 2 or self.U.dtype != torch.float32:
            raise UsageError(
                f"U must be a float32 matrix (d, k), got {self.U.dtype} {tuple(self.U.shape)}"
            )
        if not self.rank:
            object.__setattr__(self, "rank", self.k)
        if self.S is not None and self.S.shape != (self.k,):
            raise UsageError(f"{tuple(self.S.shape)} singular values for {self.k} directions")
        if not self.k <= self.rank:
            raise UsageError(f"{self.k} directions cannot come from vectors of rank {self.rank}")
        if self.space is not None and self.space.dim != self.d:
            raise UsageError(f"U has {self.d} rows, its space {self.space.dim} coordinates")
        error = deviation(self.U.T)
        if isnan(error):
            require_finite_in(self.space, self.U.T, f"of the {self.origin} basis, direction")
        if not error <= ORTHONORMAL:
            raise UsageError(
                f"the {self.origin} basis is orthonormal to {error:.1e}, the limit is "
                f"{ORTHONORMAL:.0e}; span_basis(U.T) makes one of the span of the columns"
            )

    @property
    def d(self) -> int:
        """Number of coordinates of the space."""
        return self.U.shape[0]

    @property
    def k(self) -> int:
        """Number of directions."""
        return self.U.shape[1]

    def _summary(self) -> str:
        return f"{self.k} orthonormal directions, d = {self.d}, {self.origin}"

    def _entries(self) -> Iterator[Fact]:
        yield "directions", self.k, f"rank {self.rank} of the vectors behind them"
        yield "coordinates", self.d, f"a random vector has k / d = {self.k / self.d:.3g} inside"

    def coordinates(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n k"]:
        """Coordinates U^T x in the basis, summed in float64, float32; leading axes stay.

        Raises:
            FloatingPointError: a coordinate of x is not finite.
        """
        self._require_length(x, self.d, "coordinates, the basis has d = ")
        rows = x.to(self.U.device).reshape(-1, self.d)
        return gram(rows, self.U.T).to(self.U).reshape(*x.shape[:-1], self.k)

    def expand(self, c: Float[Tensor, "*n k"]) -> Float[Tensor, "*n d"]:
        """The vector U c with these coordinates, float32; differentiable in c."""
        self._require_length(c, self.k, "entries, the number of directions is ")
        return c.to(self.U) @ self.U.T

    def project(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The part of x inside the subspace, U U^T x."""
        return self.expand(self.coordinates(x))

    def captured_fraction(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        """Share of the squared norm inside the subspace, ||U^T x||^2 / ||x||^2, in [0, 1].

        Summed in float64, result float64 on the CPU. A random subspace has k / d.

        Raises:
            ValueError: a vector is zero, so that its share is not defined.
        """
        self._require_length(x, self.d, "coordinates, the basis has d = ")
        rows = x.to(self.U.device).reshape(-1, self.d)
        energies = norms(rows).square()
        if (energies == 0).any():
            index = int((energies == 0).nonzero()[0])
            raise UsageError(f"vector {index} of {len(rows)} is zero, so no share of it is defined")
        return (gram(rows, self.U.T).square().sum(1) / energies).reshape(x.shape[:-1])

    def truncate(self, k: int) -> "Basis":
        """The first k directions (a view)."""
        if not 0 <= k <= self.k:
            raise UsageError(f"k={k} exceeds the {self.k} directions of the {self.origin} basis")
        return replace(self, U=self.U[:, :k], S=None if self.S is None else self.S[:k])

    def to(self, device: torch.device | str) -> "Basis":
        """The same basis on another device; the singular values stay on the CPU."""
        moved = copy.copy(self)
        # Without the checks: a copy is as orthonormal as the original.
        object.__setattr__(moved, "U", self.U.to(device))
        return moved

    def _require_length(self, x: Tensor, length: int, words: str) -> None:
        if x.shape[-1] != length:
            raise UsageError(f"the vector has {x.shape[-1]} {words}{length}")


def overlap(a: Basis, b: Basis) -> float:
    """Shared fraction of two subspaces, ||U_a^T U_b||_F^2 / min(k_a, k_b), in [0, 1].

    Random subspaces have max(k_a, k_b) / d.

    Raises:
        ValueError: the bases have different spaces; names the first parameter that differs.

    >>> x, y = (Basis(torch.eye(3)[:, i:i+1]) for i in (0, 1))
    >>> overlap(x, x), overlap(x, y)
    (1.0, 0.0)
    """
    _require_comparable(a, b)
    return subspace_overlap(a.U, b.U.to(a.U.device))


def angles(a: Basis, b: Basis) -> Float[Tensor, " j"]:
    """Principal angles of two bases, float64 radians in [0, pi/2], ascending.

    Raises:
        ValueError: the bases have different spaces; names the first parameter that differs.

    >>> x, y = (Basis(torch.eye(3)[:, i:i+1]) for i in (0, 1))
    >>> angles(x, y) / torch.pi
    tensor([0.5000], dtype=torch.float64)
    """
    _require_comparable(a, b)
    return principal_angles(a.U, b.U.to(a.U.device))


def require_finite_in(space: Space | None, rows: Float[Tensor, "n d"], what: str) -> None:
    """Raise FloatingPointError naming row and parameter of the first NaN or infinity."""
    if (entry := first_non_finite(rows)) is None:
        return
    row, coordinate = entry
    where = f"coordinate {coordinate}"
    if space is not None:
        where = f"parameter {space.locate(coordinate)} ({where})"
    raise FloatingPointError(
        f"{what} {row} is {float(rows[row, coordinate])} in {where}; "
        "measure in float32, or lower the step size"
    )


def _require_comparable(a: Basis, b: Basis) -> None:
    if a.space is not None and b.space is not None:
        require_same_space(a.space, b.space)
    if a.d != b.d:
        raise UsageError(f"the {a.origin} basis has d = {a.d}, the {b.origin} basis d = {b.d}")


def require_same_space(a: Space, b: Space) -> None:
    """Raise ValueError naming the first parameter in which two spaces differ."""
    entries = [list(zip(space.names, space.shapes, strict=True)) for space in (a, b)]
    for i, (left, right) in enumerate(zip_longest(*entries, fillvalue=("nothing", ()))):
        if left != right:
            raise UsageError(
                f"the parameter spaces differ first at entry {i}: {left[0]} {left[1]} against "
                f"{right[0]} {right[1]}; select both with the same expression on the same model"
            )
