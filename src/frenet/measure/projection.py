"""Projections of a matrix's gradient to its leading singular vectors, as in GaLore."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def is_projected(shape: Sequence[int], rank: int) -> bool:
    """Whether a projection of this rank makes a gradient of this shape smaller."""
    return len(shape) == 2 and min(shape) > rank


def projection(gradient: Float[Tensor, "m n"], rank: int) -> Float[Tensor, "s r"]:
    """The leading singular vectors of a gradient on its shorter side, as orthonormal columns.

    Right ones if the matrix has at least as many rows as columns, otherwise left ones: s = min(m,
    n), as GaLore chooses. They are eigenvectors of the Gram matrix of that side, in float64.

    Source: GaLore, arXiv 2403.03507.

    >>> projection(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 1).abs().T
    tensor([[0., 1., 0.]])
    """
    tall = _tall(gradient).double()
    _, vectors = torch.linalg.eigh(tall.T @ tall)
    return vectors[:, -rank:].flip(1).float()


def energy_in(gradient: Float[Tensor, "m n"], basis: Float[Tensor, "s r"]) -> float:
    """Share of ||G||^2 inside a projection, in [0, 1]; a random one has r / s.

    NaN for a gradient of zero.

    >>> G = torch.diag(torch.tensor([1.0, 3.0, 2.0]))
    >>> round(energy_in(G, projection(G, 2)), 4) == round(13 / 14, 4)
    True
    """
    tall = _tall(gradient).double()
    return float((tall @ basis.double()).square().sum() / tall.square().sum())


def _tall(gradient: Float[Tensor, "m n"]) -> Float[Tensor, "l s"]:
    return gradient if gradient.shape[0] >= gradient.shape[1] else gradient.T
