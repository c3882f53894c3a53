"""Lengths, angles, bases and spectra of a few long vectors, summed in float64.

Vectors are rows of an ``(n, d)`` matrix with n small and d large; a basis is its transpose,
``(d, k)`` with orthonormal columns.
"""

import math
import warnings
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from frenet._errors import UsageError
from frenet.geometry.blocks import (
    block_size,
    blocks,
    combine,
    deviation,
    double,
    gram,
    gram_of,
    inverse_norms,
    reject,
    work_device,
)

__all__ = [
    "SVD",
    "dot",
    "gram",
    "gram_of",
    "norm",
    "norms",
    "orthonormalise",
    "participation_ratio",
    "principal_angles",
    "root_mean_square",
    "spectrum",
    "stable_rank",
    "subspace_overlap",
    "top_k_svd",
]

# Singular values below 1e-6 of the largest, and residuals below 1e-6 of their vector, are the
# rounding of float32 data (6e-8 an entry) and not directions.
RESOLUTION = 1e-6
ORTHONORMAL = 1e-5


class SVD(NamedTuple):
    """Leading right-singular vectors of the rows, their singular values, the numerical rank."""

    U: Float[Tensor, "d k"]
    S: Float[Tensor, " k"]
    rank: int


def dot(x: Float[Tensor, "..."], y: Float[Tensor, "..."]) -> float:
    """Inner product of all entries, sum_i x_i y_i, summed in float64.

    A float32 sum of 1e8 products is wrong by percents: torch uses a few running totals, which lose
    the last digits of small terms. Here blocks are converted one at a time, on the device of x,
    without a float64 copy of a vector.

    Args:
        x: any shape, dtype and device; not differentiated.
        y: as many entries.

    Raises:
        ValueError: the vectors differ in length.

    >>> dot(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]))
    11.0
    """
    if x.numel() != y.numel():
        raise UsageError(f"vectors of {x.numel()} and of {y.numel()} coordinates do not meet")
    first, second = x.detach().reshape(-1), y.detach().reshape(-1)
    # A quarter of a block of many rows was fastest: 0.23 s for 1e8 entries, 0.11 s in float32.
    width = max(1, min(len(first), block_size() // 4))
    device = work_device(first)
    if len(first) <= width:
        a = first.to(device, torch.float64)
        return float(a.dot(a if x is y else second.to(device, torch.float64)))
    buffers = [torch.empty(width, dtype=torch.float64, device=device) for _ in range(2)]
    total = torch.zeros((), dtype=torch.float64, device=device)

    def exact(part: Tensor, buffer: Tensor) -> Tensor:
        """The entries in float64, without a copy if they already are."""
        there = part.dtype == buffer.dtype and part.device == buffer.device
        return part if there else buffer[: len(part)].copy_(part)

    for start in range(0, len(first), width):
        span = slice(start, start + width)
        a = exact(first[span], buffers[0])
        b = a if x is y else exact(second[span], buffers[1])
        total += a.dot(b)
    return float(total)


def norm(x: Float[Tensor, "..."]) -> float:
    """||x||, the 2-norm of all entries, summed in float64 as ``dot`` is.

    >>> norm(torch.tensor([3.0, 4.0]))
    5.0
    """
    return math.sqrt(dot(x, x))


def norms(G: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """``norm`` of every row, float64, on the CPU.

    >>> norms(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor([5., 2.], dtype=torch.float64)
    """
    return torch.tensor([norm(row) for row in G], dtype=torch.float64)


def root_mean_square(x: Float[Tensor, "..."]) -> float:
    """||x|| / sqrt(d), summed in float64 as ``dot`` is; 0 without entries.

    >>> root_mean_square(torch.tensor([1.0, 7.0]))
    5.0
    """
    return norm(x) / math.sqrt(max(1, x.numel()))


def spectrum(K: Float[Tensor, "n n"]) -> tuple[Float[Tensor, " r"], Float[Tensor, "n r"]]:
    """Singular values of the rows behind a Gram matrix, and their left-singular vectors.

    K = V diag(S^2) V^T. Eigenvalues below 1e-12 of the largest are dropped: that is the square of
    the resolution of float32 data, so r is the numerical rank.

    Args:
        K: symmetric positive semi-definite, float64.

    Returns:
        S (r,), descending, and V (n, r); r = 0 for a zero matrix.

    >>> spectrum(torch.tensor([[9.0, 0.0], [0.0, 0.0]], dtype=torch.float64))[0]
    tensor([3.], dtype=torch.float64)
    """
    values, vectors = torch.linalg.eigh(K)
    values, vectors = values.flip(0), vectors.flip(1)
    positive = (values > 0) & (values > RESOLUTION**2 * values[:1])
    return values[positive].sqrt(), vectors[:, positive]


def top_k_svd(G: Float[Tensor, "n d"], k: int, *, unit_rows: bool = False) -> SVD:
    """Leading right-singular vectors of G = V diag(S) U^T, by the n x n Gram matrix.

    U = G^T V / S, orthonormalised again if U^T U shows that this is needed: a wrong U can still
    reproduce G.

    Args:
        G: n vectors, any floating dtype.
        k: number of directions, at least 1.
        unit_rows: scale every non-zero row to unit norm first (without a copy).

    Returns:
        U (d, k') float32 with |U^T U - I| <= 1e-5 and S (k',) float64, descending, where
        k' = min(k, rank); the rank counts singular values above 1e-6 of the largest.
        A zero matrix has rank 0 and U of shape (d, 0).

    Raises:
        ValueError: k is below 1.
        FloatingPointError: an entry is NaN or infinite; names row and coordinate.

    >>> U, S, rank = top_k_svd(torch.tensor([[0.0, 3.0], [4.0, 0.0], [0.0, 0.0]]), 1)
    >>> U.abs().T, S, rank
    (tensor([[1., 0.]]), tensor([4.], dtype=torch.float64), 2)
    """
    if k < 1:
        raise UsageError(f"k={k} must be at least 1")
    K = gram(G)
    scale = inverse_norms(K) if unit_rows else torch.ones(len(G), dtype=torch.float64)
    S, V = spectrum(K * scale[:, None] * scale)
    rank, total = len(S), S.norm()
    S, V = S[:k], V[:, :k]
    W = (scale[:, None] * V / S).T
    # A float32 product, twice as fast, is wrong by about 6e-8 ||G||_F / S_k: here, by 1e-6.
    single = G.dtype == torch.float32 and bool((0.06 * total < S).all() and (W.abs() < 1e30).all())
    rows = _orthonormal(W, G, single=single)
    if rows is None:
        U, S, rank = top_k_svd(_on_cpu(G), k, unit_rows=unit_rows)
        rows = U.T.to(G.device)
    return SVD(rows.T, S, rank)


def orthonormalise(X: Float[Tensor, "n d"]) -> Float[Tensor, "d r"]:
    """Gram-Schmidt of the rows, in order, re-orthogonalised.

    A row that adds less than 1e-6 of its norm to those before it is dropped. Rows taken one by one
    decide which; the others go through rounds of Cholesky, at the cost of one product each.

    Args:
        X: n vectors, any floating dtype.

    Returns:
        float32 (d, r), |Q^T Q - I| <= 1e-5; r is the numerical rank, 0 for zero rows.

    Raises:
        FloatingPointError: an entry is NaN or infinite; names row and coordinate.

    Source: Yamamoto et al. (2015), Roundoff error analysis of the CholeskyQR2 algorithm.

    >>> orthonormalise(torch.tensor([[2.0, 0.0], [4.0, 0.0], [1.0, 5.0]])).T
    tensor([[1., 0.],
            [0., 1.]])
    """
    K = gram(X)
    scale = inverse_norms(K)
    K = K * scale[:, None] * scale
    chosen = scale.nonzero()[:, 0]
    if not _independent(K, chosen):
        Q, chosen = _gram_schmidt(X)
        if not _independent(K, chosen):
            return Q.T
    W = torch.zeros(len(chosen), len(X), dtype=torch.float64)
    W[:, chosen] = _inverse_cholesky(K[chosen][:, chosen]) * scale[chosen]
    rows = _orthonormal(W, X)
    return orthonormalise(_on_cpu(X)).to(X.device) if rows is None else rows.T


def principal_angles(U: Float[Tensor, "d k"], V: Float[Tensor, "d m"]) -> Float[Tensor, " j"]:
    """Angles between two subspaces, theta_i = atan2(sine_i, cosine_i).

    Cosines are the singular values of U^T V, sines those of V - U U^T V. A cosine cannot tell small
    angles apart, and rounding takes it out of [-1, 1]; the sine is accurate there.

    Args:
        U: k independent columns; they need not be orthonormal, their span counts.
        V: m independent columns.

    Returns:
        float64 radians in [0, pi/2], ascending, shape (min(k, m),); 0 for a space and itself.

    Raises:
        ValueError: dependent columns, or vectors of different length.

    Source: Bjorck, Golub (1973), Numerical methods for computing angles between linear subspaces.

    >>> U, V = torch.eye(3)[:, :2], torch.tensor([[1.0], [0.0], [1.0]])
    >>> principal_angles(U, V) * 4 / torch.pi
    tensor([1.], dtype=torch.float64)
    """
    if U.shape[1] < V.shape[1]:
        U, V = V, U
    A, B = (_inverse_cholesky(gram(X.T)) for X in (U, V))
    M = A @ gram(U.T, V.T) @ B.T
    residual = torch.zeros(len(B), len(B), dtype=torch.float64, device=work_device(U))
    W, B = (A.T @ M).T.to(residual.device), B.to(residual.device)
    for _, (left, right) in blocks(U.T, V.T):
        part = B @ right - W @ left
        residual.addmm_(part, part.T)
    sines = torch.linalg.eigvalsh(residual.cpu()).clamp(min=0).sqrt()
    return torch.atan2(sines, torch.linalg.svdvals(M))


def subspace_overlap(U: Float[Tensor, "d k"], V: Float[Tensor, "d m"]) -> float:
    """Shared fraction of two subspaces, ||U^T V||_F^2 / min(k, m), the mean squared cosine.

    Args:
        U: k orthonormal columns.
        V: m orthonormal columns.

    Returns:
        In [0, 1]; max(k, m) / d is the mean for random subspaces of R^d.

    Raises:
        ValueError: one of them has no columns, or the vectors differ in length.

    >>> subspace_overlap(torch.eye(4)[:, :2], torch.eye(4)[:, 1:3])
    0.5
    """
    smaller = min(U.shape[1], V.shape[1])
    if smaller == 0:
        raise UsageError("the overlap with an empty subspace (rank 0) is not defined")
    return float(gram(U.T, V.T).square().sum()) / smaller


def participation_ratio(S: Float[Tensor, " r"]) -> float:
    """Number of directions that carry the energy, (sum S^2)^2 / sum S^4.

    Args:
        S: singular values, in any order.

    Returns:
        From 1 (one direction) to r (all alike); 0 for a zero matrix.

    >>> participation_ratio(torch.tensor([2.0, 2.0, 2.0, 0.0]))
    3.0
    """
    energies = _energies(S)
    return float(energies.sum() ** 2 / energies.square().sum()) if len(energies) else 0.0


def stable_rank(S: Float[Tensor, " r"]) -> float:
    """Energy in units of the largest direction's, sum S^2 / max S^2.

    Args:
        S: singular values, in any order.

    Returns:
        From 1 to r; 0 for a zero matrix.

    >>> stable_rank(torch.tensor([2.0, 1.0, 1.0]))
    1.5
    """
    energies = _energies(S)
    return float(energies.sum()) if len(energies) else 0.0


def _energies(S: Tensor) -> Tensor:
    """S^2 in units of the largest, without overflow; empty without singular values."""
    S = S.double()
    return (S / S.max()).square() if len(S) and S.max() > 0 else S[:0]


def _orthonormal(W: Tensor, G: Tensor, *, single: bool = False) -> Tensor | None:
    """Orthonormal rows with the span of W G; None if the products of the device are wrong."""
    Q = W.float().to(G.device) @ G.detach() if single else combine(W, G)
    error = deviation(Q)
    for _ in range(2):
        if ORTHONORMAL / 10 < error < 0.5 / len(W):
            combine(_inverse_cholesky(gram(Q)), Q, out=Q)
            error = deviation(Q)
    return Q if error <= ORTHONORMAL else None


def _on_cpu(G: Tensor) -> Tensor:
    """G on the CPU, with a warning; an error if it is already there."""
    problem = f"no basis orthonormal to {ORTHONORMAL:.0e} on device {G.device}"
    if G.device.type == "cpu":
        raise ArithmeticError(f"{problem}; its float64 matrix products are wrong")
    warnings.warn(f"{problem}; computing it on the CPU", RuntimeWarning, stacklevel=3)
    return G.cpu()


def _inverse_cholesky(K: Tensor) -> Tensor:
    """L^-1 with K = L L^T, so that L^-1 orthonormalises the vectors behind K in order."""
    L, failed = torch.linalg.cholesky_ex(K)
    if failed:
        raise UsageError(
            f"vector {int(failed) - 1} depends on those before it; orthonormalise first"
        )
    inverse: Tensor = torch.linalg.solve_triangular(L, torch.eye(len(K)).double(), upper=False)
    return inverse


def _independent(K: Tensor, rows: Tensor) -> bool:
    """Whether each of these unit rows adds more than the resolution to the others."""
    return len(rows) == 0 or bool(torch.linalg.eigvalsh(K[rows][:, rows])[0] > RESOLUTION**2)


def _gram_schmidt(X: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal rows (r, d), one row of X after the other, and the rows they come from."""
    Q = X.new_empty(min(X.shape), X.shape[1], dtype=torch.float32)
    rows: list[int] = []
    for i, row in enumerate(X):
        x = double(row)
        size = x.norm()
        if size == 0 or len(rows) == len(Q):
            continue
        left = reject(x / size, Q[: len(rows)])
        if left.norm() > RESOLUTION:
            Q[len(rows)] = left / left.norm()
            rows.append(i)
    return Q[: len(rows)], torch.tensor(rows, dtype=torch.int64)
