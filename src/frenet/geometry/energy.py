"""How much of some vectors lies in the leading directions of others, from Gram matrices alone.

With K = G G^T in hand (one pass over the n x d matrix) a basis is never formed: a hundred splits
cost a hundred small eigenproblems.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from frenet._errors import UsageError
from frenet.geometry.blocks import inverse_norms
from frenet.geometry.linalg import RESOLUTION, spectrum

Split = tuple[Int[Tensor, " f"], Int[Tensor, " t"]]


def unit_rows(K: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Gram matrix of the rows scaled to unit norm, K_ij / sqrt(K_ii K_jj).

    Args:
        K: Gram matrix of n vectors, float64.

    Returns:
        The matrix of cosines; rows that are zero stay zero.

    >>> unit_rows(torch.tensor([[4.0, 3.0], [3.0, 9.0]], dtype=torch.float64))
    tensor([[1.0000, 0.5000],
            [0.5000, 1.0000]], dtype=torch.float64)
    """
    scale = inverse_norms(K)
    return K * scale[:, None] * scale


def centred(
    K: Float[Tensor, "n n"], fit: Int[Tensor, " f"], test: Int[Tensor, " t"] | None = None
) -> Float[Tensor, "n n"]:
    """Gram matrix after the mean of the fit rows is taken from all rows.

    K'_ij = <g_i - m, g_j - m>, m the mean of the rows in ``fit``. The rows outside take no part in
    the mean, so they stay held out.

    Args:
        K: Gram matrix of n vectors, float64.
        fit: indices of the rows that are averaged, at least one.
        test: rows to hold out; if given, they must not be in ``fit``.

    Returns:
        (n, n). Rows that equal the mean to 1e-6 become exactly zero instead of rounding noise.

    Raises:
        ValueError: ``fit`` is empty, or shares a row with ``test``.

    >>> K = torch.tensor([[1.0, 3.0], [3.0, 9.0]], dtype=torch.float64)  # of the numbers 1 and 3
    >>> centred(K, torch.tensor([0, 1]))
    tensor([[ 1., -1.],
            [-1.,  1.]], dtype=torch.float64)
    """
    if len(fit) == 0:
        raise UsageError("the mean of no rows is not defined; pass at least one index in fit")
    if test is not None and (shared := torch.isin(test, fit)).any():
        raise UsageError(f"row {int(test[shared][0])} is in fit and in test, so it is not held out")
    with_mean = K[:, fit].mean(1)
    mean_energy = with_mean[fit].mean()
    moved = K - with_mean[:, None] - with_mean + mean_energy
    noise = moved.diagonal() <= RESOLUTION**2 * (K.diagonal() + mean_energy)
    return moved.masked_fill(noise[:, None] | noise, 0.0)


def captured_energy(
    K: Float[Tensor, "n n"], fit: Int[Tensor, " f"], test: Int[Tensor, " t"], ks: Sequence[int]
) -> Float[Tensor, " m"]:
    """Share of the energy of the test rows in the top-k basis of the fit rows.

    mean over test rows g of ||U_k^T g||^2 / ||g||^2, U_k the leading k right-singular vectors of
    the fit rows. With ``fit`` equal to ``test`` it is the in-sample energy, the ceiling.

    Args:
        K: Gram matrix of all rows, float64; see ``unit_rows`` and ``centred``.
        fit: indices of the rows that make the basis.
        test: indices of the rows that are projected; zero rows are left out of the mean.
        ks: dimensions; a k above the rank of the fit rows counts as the rank.

    Returns:
        One share in [0, 1] for every k, float64. Isotropic noise has k / d held out, and far more
        in sample: 0.08 in the top 10 of 128.

    Raises:
        ValueError: every test row is zero, or a k is negative.

    >>> G = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 4.0]], dtype=torch.float64)
    >>> captured_energy(G @ G.T, torch.tensor([0, 1]), torch.tensor([2]), (1, 2))
    tensor([0.3600, 1.0000], dtype=torch.float64)
    """
    if min(ks, default=0) < 0:
        raise UsageError(f"k={min(ks)} must not be negative")
    energies = K.diagonal()[test]
    live = test[energies > 0]
    if len(live) == 0:
        raise UsageError(f"all {len(test)} test rows are zero, so they have no energy to capture")
    S, V = spectrum(K[fit][:, fit])
    coordinates = K[live][:, fit] @ (V / S)
    shares = coordinates.square() / K.diagonal()[live][:, None]
    summed = torch.cat([shares.new_zeros(1), shares.mean(0).cumsum(0)])
    return summed[[min(k, len(S)) for k in ks]]


def spanned_energy(
    K: Float[Tensor, "n n"],
    fit: Int[Tensor, " f"],
    test: Int[Tensor, " t"],
    ks: Sequence[int],
    *,
    cut: float = 1e-10,
) -> Float[Tensor, " m"]:
    """Share of the energy of the test rows in the span of the first k fit rows.

    mean over test rows x of g^T G^+ g / ||x||^2, G the Gram matrix of the first k fit rows and g
    their inner products with x.

    Args:
        K: Gram matrix of all rows, float64.
        fit: indices of the rows that span, in order.
        test: indices of the rows that are projected, none of them zero.
        ks: dimensions, each between 1 and the number of fit rows.
        cut: eigenvalues of G below this share of the largest count as zero.

    Returns:
        One share in [0, 1] for every k, float64.

    >>> G = torch.tensor([[2.0, 0.0], [1.0, 1.0], [3.0, 4.0]], dtype=torch.float64)
    >>> spanned_energy(G @ G.T, torch.tensor([0, 1]), torch.tensor([2]), (1, 2))
    tensor([0.3600, 1.0000], dtype=torch.float64)
    """
    shares = []
    for k in ks:
        rows = fit[:k]
        values, V = torch.linalg.eigh(K[rows][:, rows])
        live = values > cut * values[-1]
        energies = (K[test][:, rows] @ V[:, live]).square() / values[live]
        shares.append((energies.sum(1) / K.diagonal()[test]).mean())
    return torch.stack(shares)


def overlap(
    K: Float[Tensor, "n n"], first: Int[Tensor, " f"], second: Int[Tensor, " s"], k: int
) -> float:
    """Shared fraction of the top-k subspaces of two sets of rows, ||U_1^T U_2||_F^2 / k.

    Args:
        K: Gram matrix of all rows, float64.
        first: indices of the rows behind U_1.
        second: indices of the rows behind U_2.
        k: dimension, at least 1; above a rank it counts as the rank.

    Returns:
        In [0, 1], divided by the smaller dimension; k / d for random subspaces.

    Raises:
        ValueError: k is below 1, or all rows of a set are zero.

    >>> G = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 4.0]], dtype=torch.float64)
    >>> round(overlap(G @ G.T, torch.tensor([0, 1]), torch.tensor([2]), 1), 6)
    0.36
    """
    if k < 1:
        raise UsageError(f"k={k} must be at least 1")
    weights = []
    for rows in (first, second):
        S, V = spectrum(K[rows][:, rows])
        if len(S) == 0:
            raise UsageError(f"all {len(rows)} rows of a set are zero, so they span no subspace")
        weights.append(V[:, :k] / S[:k])
    left, right = weights
    cosines = left.T @ K[first][:, second] @ right
    return float(cosines.square().sum()) / min(cosines.shape)


def half_splits(n: int, repeats: int, generator: torch.Generator) -> list[Split]:
    """Random halves of n rows, ``repeats`` times, independently.

    Args:
        n: number of rows, at least 2.
        repeats: number of splits.
        generator: the draws.

    Returns:
        Pairs of disjoint index vectors that cover 0..n-1, of n // 2 and n - n // 2 rows.

    Raises:
        ValueError: fewer than 2 rows.

    >>> [(fit, test)] = half_splits(5, 1, torch.Generator().manual_seed(0))
    >>> len(fit), sorted([*fit.tolist(), *test.tolist()])
    (2, [0, 1, 2, 3, 4])
    """
    if n < 2:
        raise UsageError(f"n={n} rows cannot be split in halves; at least 2 are needed")
    orders = [torch.randperm(n, generator=generator) for _ in range(repeats)]
    return [(order[: n // 2], order[n // 2 :]) for order in orders]
