"""Chance levels: gradients without their structure."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from frenet._errors import UsageError
from frenet.geometry.linalg import norm

# Rank of the factors of random matrices.
RANDOM_RANK = 8


def gaussian_like(
    G: Float[Tensor, "n d"], sizes: Sequence[int], generator: torch.Generator
) -> Float[Tensor, "n d"]:
    """Isotropic Gaussian rows, with the same norm in every tensor of every row.

    In each tensor t of each row: z ||g_t|| / ||z||, z ~ N(0, I). Of the gradients only the norms by
    parameter are left.

    Args:
        G: n gradients.
        sizes: coordinates of each parameter tensor, in order; they sum to d.
        generator: the draws.

    Returns:
        float32, on the device of G. Zero blocks stay zero.

    Raises:
        ValueError: the sizes do not sum to d.

    >>> G = torch.tensor([[3.0, 4.0, 0.0, 2.0]])
    >>> null = gaussian_like(G, (2, 1, 1), torch.Generator().manual_seed(0))
    >>> [round(float(part.norm()), 6) for part in null.split((2, 1, 1), dim=1)]
    [5.0, 0.0, 2.0]
    """

    def draw(part: Tensor) -> Tensor:
        z = torch.randn(part.shape, generator=generator, device=generator.device).to(part.device)
        return z * (norm(part) / (norm(z) or 1.0))

    return _by_tensor(G, sizes, draw)


def shuffled_like(
    G: Float[Tensor, "n d"], sizes: Sequence[int], generator: torch.Generator
) -> Float[Tensor, "n d"]:
    """The coordinates of every row permuted inside each tensor, independently for each row.

    It preserves the distribution of the entries, heavy tails included, but not their order.

    Args:
        G: n gradients.
        sizes: coordinates of each parameter tensor, in order; they sum to d.
        generator: the draws.

    Returns:
        float32, on the device of G.

    Raises:
        ValueError: the sizes do not sum to d.

    >>> G = torch.tensor([[1.0, 2.0, 3.0, 9.0]])
    >>> shuffled_like(G, (3, 1), torch.Generator().manual_seed(0)).sort().values
    tensor([[1., 2., 3., 9.]])
    """

    def draw(part: Tensor) -> Tensor:
        order = torch.randperm(len(part), generator=generator, device=generator.device)
        return part[order.to(part.device)]

    return _by_tensor(G, sizes, draw)


def sign_flipped_like(G: Float[Tensor, "n d"], generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Every coordinate of every row with a random sign.

    It preserves the size of each coordinate, but not the correlations.

    Args:
        G: n gradients.
        generator: the draws.

    Returns:
        float32, on the device of G.

    >>> sign_flipped_like(torch.tensor([[1.0, -2.0]]), torch.Generator().manual_seed(0)).abs()
    tensor([[1., 2.]])
    """
    device = generator.device
    signs = torch.randint(0, 2, G.shape, generator=generator, dtype=torch.float32, device=device)
    return signs.mul_(2).sub_(1).to(G.device).mul_(G.detach())


def gaussian_matrix(shape: Sequence[int], generator: torch.Generator) -> Float[Tensor, "..."]:
    """Entries of mean 0 and variance 1, quickly drawn for a large matrix: a product of two factors.

    The entries of a product of Gaussian factors of rank ``RANDOM_RANK`` are uncorrelated and of one
    variance. So slope and curvature along it have the variance and the mean of those along
    Gaussian noise. Small matrices and other shapes are Gaussian.

    Args:
        shape: of the result.
        generator: the draws.
    """
    if len(shape) != 2 or min(shape) <= RANDOM_RANK:
        return torch.randn(tuple(shape), generator=generator)
    B, A = (torch.randn(size, RANDOM_RANK, generator=generator) for size in shape)
    return B @ A.T / RANDOM_RANK**0.5


def random_walk_share(norms: Float[Tensor, " t"], k: int) -> float:
    """Share of a random walk's squared displacement in its first k steps.

    sum_{i <= k} r_i^2 / sum_i r_i^2: a prefix basis captures this much if the steps are independent
    in a space of high dimension. Capture over this share is the lift.

    Args:
        norms: norm r_i of every step, T of them.
        k: number of first steps, between 0 and T.

    Returns:
        In [0, 1].

    Raises:
        ValueError: k is outside [0, T], or all steps are zero.

    >>> random_walk_share(torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0]), 1)
    0.5
    """
    if not 0 <= k <= len(norms):
        raise UsageError(f"k={k} must be between 0 and the {len(norms)} steps of the path")
    energies = norms.double().square()
    if not energies.sum() > 0:
        raise UsageError(f"all {len(norms)} steps are zero, so nothing moved")
    return float(energies[:k].sum() / energies.sum())


def random_capture(d: int, k: int) -> float:
    """Mean share of a vector's energy in a random k-dimensional subspace of R^d, k / d.

    Raises:
        ValueError: k is outside [0, d].

    >>> random_capture(200, 10)
    0.05
    """
    if not 0 <= k <= d:
        raise UsageError(f"k={k} must be between 0 and the dimension d={d}")
    return k / d


def _by_tensor(G: Tensor, sizes: Sequence[int], draw: Callable[[Tensor], Tensor]) -> Tensor:
    if sum(sizes) != G.shape[1]:
        raise UsageError(f"the tensors hold {sum(sizes)} coordinates, the rows {G.shape[1]}")
    out = torch.empty(G.shape, device=G.device)
    for row, target in zip(G.detach(), out, strict=True):
        for part, place in zip(row.split(list(sizes)), target.split(list(sizes)), strict=True):
            place.copy_(draw(part))
    return out
