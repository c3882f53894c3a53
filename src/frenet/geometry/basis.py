"""The ways to build a basis: from gradients, a path, a span, at random, or from curvature."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from frenet._errors import UsageError
from frenet.geometry.blocks import double, reject
from frenet.geometry.linalg import orthonormalise, top_k_svd
from frenet.geometry.subspace import Basis, Space, angles, overlap, require_finite_in

__all__ = [
    "Basis",
    "Space",
    "angles",
    "krylov_basis",
    "overlap",
    "prefix_basis",
    "random_basis",
    "span_basis",
    "svd_basis",
]


def svd_basis(
    G: Float[Tensor, "n d"],
    k: int,
    *,
    space: Space | None = None,
    origin: str = "gradients",
    unit_rows: bool = True,
) -> Basis:
    """The k leading right-singular vectors of n vectors, their best k-dimensional subspace.

    Args:
        G: n vectors, any floating dtype.
        k: number of directions.
        space: the parameters behind the coordinates.
        origin: a plural name for the vectors; used in messages.
        unit_rows: scale every row to unit norm, so that no single one decides.

    Returns:
        The basis with its singular values and the numerical rank of G.

    Raises:
        ValueError: k exceeds the rank.
        FloatingPointError: an entry is NaN or infinite; names vector and parameter.

    >>> svd_basis(torch.tensor([[0.0, 5.0], [0.0, -1.0]]), 1).U.abs().T
    tensor([[0., 1.]])
    """
    try:
        U, S, rank = top_k_svd(G, k, unit_rows=unit_rows)
    except FloatingPointError:
        require_finite_in(space, G, f"of the {origin}, vector")
        raise
    if rank == 0:
        raise UsageError(f"the {len(G)} {origin} are all zero, so there is no direction in them")
    if k > rank:
        raise UsageError(
            f"k={k} exceeds the rank {rank} of the {len(G)} {origin}; "
            f"pass k <= {rank} or more {origin}"
        )
    return Basis(U, S, space, origin, rank)


def prefix_basis(
    steps: Float[Tensor, "t d"], k: int, *, space: Space | None = None, origin: str = "prefix"
) -> Basis:
    """Gram-Schmidt of the first k steps of a path, in order: a discrete Frenet frame.

    For gradient descent on a quadratic its span is the Krylov space {g, Hg, ..., H^(k-1) g}.

    Args:
        steps: the optimiser's T steps.
        k: number of first steps, between 1 and T.
        space: the parameters behind the coordinates.
        origin: used in messages.

    Returns:
        The basis of the span of the first k steps: ``rank`` directions, fewer than k if a step
        adds less than 1e-6 of its norm to those before it. Column j belongs to an earlier step than
        column j + 1, so ``truncate`` gives the prefixes below k.

    Raises:
        ValueError: k is outside [1, T].
        FloatingPointError: an entry is NaN or infinite; names step and parameter.

    >>> prefix_basis(torch.tensor([[2.0, 0.0, 0.0], [1.0, -3.0, 0.0], [0.0, 0.0, 1.0]]), 2).U.T
    tensor([[ 1.,  0.,  0.],
            [ 0., -1.,  0.]])
    """
    if not 1 <= k <= len(steps):
        raise UsageError(f"k={k} must be between 1 and the {len(steps)} steps of the path")
    return _ordered_basis(steps[:k], space, origin, "step")


def span_basis(
    vectors: Float[Tensor, "n d"], *, space: Space | None = None, origin: str = "span"
) -> Basis:
    """Orthonormal basis of the span of n vectors, in their order.

    Args:
        vectors: n vectors, any floating dtype; they may depend on each other.
        space: the parameters behind the coordinates.
        origin: used in messages.

    Returns:
        The basis; k is the numerical rank, 0 for zero vectors.

    Raises:
        FloatingPointError: an entry is NaN or infinite; names vector and parameter.

    >>> span_basis(torch.tensor([[0.0, 2.0], [0.0, 1.0]])).U.T
    tensor([[0., 1.]])
    """
    return _ordered_basis(vectors, space, origin, "vector")


def random_basis(
    d: int,
    k: int,
    generator: torch.Generator,
    *,
    space: Space | None = None,
    origin: str = "random",
) -> Basis:
    """Uniformly random k-dimensional subspace of R^d, on the generator's device.

    Raises:
        ValueError: k is outside [1, d].

    >>> random_basis(5, 2, torch.Generator().manual_seed(0)).U.shape
    torch.Size([5, 2])
    """
    if not 1 <= k <= d:
        raise UsageError(f"k={k} must be between 1 and the dimension d={d}")
    rows = torch.randn(k, d, generator=generator, device=generator.device)
    return _ordered_basis(rows, space, origin, "vector")


def krylov_basis(
    matvec: Callable[[Tensor], Tensor],
    g: Float[Tensor, " d"],
    k: int,
    *,
    space: Space | None = None,
    origin: str = "krylov",
) -> Basis:
    """Orthonormal basis of the Krylov space {g, Hg, ..., H^(k-1) g}, by Arnoldi's method.

    Each product is orthogonalised twice, in float64, before the next: the raw stack of powers has
    numerical rank 7 at k = 10 in float32.

    Args:
        matvec: v -> H v, from (d,) to (d,); called with vectors of unit norm, k - 1 times at most.
        g: the start, not zero. The products are computed in its dtype (float32 for half).
        k: number of directions, at least 1. Needs 8 k d bytes.
        space: the parameters behind the coordinates.
        origin: used in messages.

    Returns:
        The basis. It has fewer than k directions if the space is invariant under H: if a product
        adds less than 100 units of rounding of its dtype, relative to the largest so far.

    Raises:
        ValueError: g is zero, k is below 1, or a product has another shape.
        FloatingPointError: g or a product is not finite; names the parameter.

    Source: Arnoldi (1951), The principle of minimized iterations.

    >>> H = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    >>> krylov_basis(lambda v: H @ v, torch.tensor([1.0, 1.0, 0.0]), 3).U.T
    tensor([[ 0.7071,  0.7071,  0.0000],
            [-0.7071,  0.7071,  0.0000]])
    """
    if k < 1:
        raise UsageError(f"k={k} must be at least 1")
    require_finite_in(space, g[None], f"of the start of the {origin} basis, vector")
    if not g.any():
        raise UsageError(f"the start of the {origin} basis is zero, so it spans no Krylov space")
    dtype = torch.promote_types(g.dtype, torch.float32)
    left = double(g)
    rows, added, largest = left.new_empty(min(k, len(g)), len(g)), left.norm(), 0.0
    for rank in range(1, len(rows) + 1):
        rows[rank - 1] = left / added
        if rank == len(rows):
            break
        image = matvec(rows[rank - 1].to(g.device, dtype))
        if image.shape != g.shape:
            raise UsageError(
                f"the product has shape {tuple(image.shape)}, the vector {tuple(g.shape)}"
            )
        require_finite_in(space, image[None], f"of Hessian product {rank}, vector")
        left = reject(image, rows[:rank])
        added, largest = left.norm(), max(largest, float(double(image).norm()))
        if added <= 100 * torch.finfo(dtype).eps * largest:
            break
    U = rows[:rank].to(g.device, torch.float32).T
    return Basis(U, None, space, origin, rank=rank)


def _ordered_basis(vectors: Tensor, space: Space | None, origin: str, noun: str) -> Basis:
    try:
        U = orthonormalise(vectors)
    except FloatingPointError:
        require_finite_in(space, vectors, f"of the {origin}, {noun}")
        raise
    return Basis(U, None, space, origin, rank=U.shape[1])
