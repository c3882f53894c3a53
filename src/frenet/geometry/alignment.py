"""Do two directions agree more than by chance? Cosines and their nulls.

Residual streams are anisotropic: two unrelated directions that follow the same few large
directions have a large cosine. So 1 / sqrt(h) is no null; these are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from frenet._errors import UsageError
from frenet.geometry.linalg import dot, norm


class Contrasted(NamedTuple):
    """Streams of the two sides of a contrast.

    Attributes:
        positive: (p, h), one row per prompt.
        negative: (n, h); of the same prompts in the same order if ``paired``.
        paired: rows belong together, so that a null swaps the sides of a pair.
    """

    positive: Float[Tensor, "p h"]
    negative: Float[Tensor, "n h"]
    paired: bool = False

    @property
    def rows(self) -> Float[Tensor, "m h"]:
        """All streams in float64, positive ones first."""
        return torch.cat([self.positive, self.negative]).double()

    def difference(self) -> Float[Tensor, " h"]:
        """The mean difference, sum_i p_i / p - sum_j n_j / n, in float64."""
        return self.positive.double().mean(0) - self.negative.double().mean(0)


def cosine(a: Float[Tensor, " h"], b: Float[Tensor, " h"]) -> float:
    """a.b / (||a|| ||b||) in float64, of vectors of any length; 0 if one of them is zero.

    >>> round(cosine(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])) ** 2, 12)
    0.5
    """
    norms = norm(a) * norm(b)
    return dot(a, b) / norms if norms > 0 else 0.0


def cosines(rows: Float[Tensor, "m h"], direction: Float[Tensor, " h"]) -> Float[Tensor, " m"]:
    """Cosine of every row with one direction, float64; 0 if a vector is zero."""
    a, b = rows.double(), direction.to(rows.device).double()
    norms = a.norm(dim=1) * b.norm()
    return torch.where(norms > 0, a @ b / norms.clamp_min(1e-300), 0.0)


def shuffled_cosines(
    sides: Contrasted, direction: Float[Tensor, " h"], *, shuffles: int, generator: torch.Generator
) -> Float[Tensor, " m"]:
    """Cosines with mean differences of the same streams under random labels.

    Unpaired: the labels are permuted. Paired: the sides of each pair are swapped with probability
    1/2.

    Args:
        sides: the streams.
        direction: to compare the mean differences with.
        shuffles: m, 1,000 for a p-value of 0.001 at best.
        generator: the shuffles.
    """
    return cosines(shuffled_differences(sides, shuffles, generator), direction)


def shuffled_differences(
    sides: Contrasted, shuffles: int, generator: torch.Generator
) -> Float[Tensor, "m h"]:
    """Mean differences of the same streams under random labels; see ``shuffled_cosines``."""
    weights = _shuffled_weights(sides, shuffles, generator)
    return weights.to(sides.positive.device) @ sides.rows


def _shuffled_weights(
    sides: Contrasted, shuffles: int, generator: torch.Generator
) -> Float[Tensor, "m n"]:
    """The weight of each stream in each shuffled mean difference."""
    p, n = len(sides.positive), len(sides.negative)
    sizes = torch.tensor([1 / p] * p + [-1 / n] * n, dtype=torch.float64)
    if sides.paired:
        if p != n:
            raise UsageError(f"{p} positive and {n} negative rows cannot be pairs")
        signs = torch.randint(0, 2, (shuffles, p), generator=generator).double() * 2 - 1
        return sizes * torch.cat([signs, signs], 1)
    return torch.stack([sizes[torch.randperm(p + n, generator=generator)] for _ in range(shuffles)])


def matched_cosines(
    rows: Float[Tensor, "m h"],
    direction: Float[Tensor, " h"],
    *,
    draws: int,
    generator: torch.Generator,
) -> Float[Tensor, " draws"]:
    """Cosines with random vectors that have the covariance of the streams."""
    return cosines(matched_vectors(rows, draws, generator), direction)


def matched_vectors(
    rows: Float[Tensor, "m h"], draws: int, generator: torch.Generator
) -> Float[Tensor, "draws h"]:
    """Random vectors that have the covariance of the streams.

    z = sum_i w_i (x_i - mean) with w ~ N(0, I) is N(0, m Sigma): as anisotropic as the streams, but
    independent of their labels.
    """
    centred = rows.double() - rows.double().mean(0)
    w = torch.randn(draws, len(rows), generator=generator, dtype=torch.float64)
    return w.to(rows.device) @ centred


def whitened_cosines(
    sides: Contrasted, differences: Float[Tensor, "m h"], direction: Float[Tensor, " h"]
) -> Float[Tensor, " m"]:
    """v.W^-1 s / sqrt(v.W^-1 v * s.W^-1 s), for mean differences v of the same streams.

    W = S - (1 - rho) c v v^T is the covariance within the two sides that v is the difference of. S
    is the shrunk covariance of all streams, rho its shrinkage and c = p n / (p + n)^2. Neither S
    nor rho depends on the labels, so the cosines of shuffled labels are a null of that of the true
    ones. With q = v.S^-1 v, t = v.S^-1 s, u = s.S^-1 s and k = (1 - rho) c, the cosine is
    t / sqrt(q (u (1 - k q) + k t^2)), by Sherman and Morrison.

    Args:
        sides: the streams.
        differences: of their sides under one or more labellings, one per row.
        direction: s.

    Returns:
        float64; 0 if a vector is zero.
    """
    rows, p, n = sides.rows, len(sides.positive), len(sides.negative)
    centred = rows - rows.mean(0)
    k = (1 - shrinkage(centred)) * p * n / (p + n) ** 2
    v, s = differences.to(rows), direction.to(rows)
    solved = torch.linalg.solve(shrunk_covariance(centred), torch.cat([v, s[None]]).T)
    q, t, u = (v.T * solved[:, :-1]).sum(0), v @ solved[:, -1], s @ solved[:, -1]
    norms = q * (u * (1 - k * q).clamp_min(0) + k * t.square())
    return torch.where(norms > 0, t / norms.clamp_min(1e-300).sqrt(), 0.0)


def shrunk_covariance(centred: Float[Tensor, "n h"]) -> Float[Tensor, "h h"]:
    """(1 - rho) C + rho (tr C / h) I, C the sample covariance, rho its ``shrinkage``.

    Source: Ledoit, Wolf (2004), A well-conditioned estimator for large-dimensional covariance
    matrices.
    """
    n, h = centred.shape
    C, rho = centred.T @ centred / n, shrinkage(centred)
    return (1 - rho) * C + rho * C.trace() / h * torch.eye(h, dtype=C.dtype, device=C.device)


def shrinkage(centred: Float[Tensor, "n h"]) -> float:
    """The weight rho of the identity with the least squared error of the covariance, in [0, 1].

    rho = min(1, b / d): d = ||C - mu I||_F^2, b = sum_i ||x_i x_i^T - C||_F^2 / n^2.
    """
    n, h = centred.shape
    C = centred.T @ centred / n
    mu = C.trace() / h
    square = C.square().sum()
    distance = square - h * mu**2
    # sum ||x x^T - C||^2 = sum ||x||^4 - n ||C||^2, since the x x^T average to C.
    spread = (centred.square().sum(1).square().sum() / n - square) / n
    return float((spread / distance).clamp(0, 1)) if distance > 0 else 1.0


def without(direction: Float[Tensor, " h"], removed: Float[Tensor, "k h"]) -> Float[Tensor, " h"]:
    """The part of a direction that is orthogonal to the span of some rows, float64.

    >>> without(torch.tensor([1.0, 2.0]), torch.tensor([[0.0, 3.0], [0.0, 1.0]])).round(decimals=9)
    tensor([1., 0.], dtype=torch.float64)
    """
    a = direction.double()
    _, S, Vh = torch.linalg.svd(removed.to(a.device).double(), full_matrices=False)
    spanning = Vh[S.gt(1e-10 * S.max().clamp_min(1e-300))]
    return a - spanning.T @ (spanning @ a)


class Significance(NamedTuple):
    """A cosine against a null.

    Attributes:
        p: share of the null that is at least as large in modulus, (1 + #) / (1 + m).
        z: cosine in units of the null's root mean square.
        q95: 95% quantile of the null's modulus.
    """

    p: float
    z: float
    q95: float


def significance(value: float, null: Float[Tensor, " m"]) -> Significance:
    """Two-sided significance of a cosine under a null.

    >>> found = significance(0.5, torch.tensor([0.1, -0.2, 0.6, 0.0]))
    >>> found.p
    0.4
    """
    size = null.double().abs()
    p = (1 + int((size >= abs(value)).sum())) / (1 + len(size))
    spread = float(size.square().mean().sqrt())
    z = value / spread if spread > 0 else 0.0
    return Significance(p, z, float(torch.quantile(size, 0.95)))


def adjusted(p_values: Sequence[float]) -> list[float]:
    """p-values of several layers after Benjamini and Hochberg (1995).

    Those below q are the discoveries with a false discovery rate of q.

    >>> adjusted([0.01, 0.02, 0.9])
    [0.03, 0.03, 0.9]
    """
    return [float(value) for value in stats.false_discovery_control(list(p_values))]


def labelled(rows: Float[Tensor, "m h"], labels: Bool[Tensor, " m"]) -> Contrasted:
    """Streams split by label."""
    return Contrasted(rows[labels], rows[~labels])
