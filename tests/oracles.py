"""Dense, slow, obviously right: what the fast routines are compared with.

Everything is float64 and forms every matrix in full. Bases are (d, k) with orthonormal columns.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from frenet.measure.activations import last_activations
from frenet.network.space import ParamSpace


def svd(G: Tensor) -> tuple[Tensor, Tensor]:
    """All right-singular vectors (d, min(n, d)) and singular values of the rows."""
    _, S, Vh = torch.linalg.svd(G.double(), full_matrices=False)
    return Vh.T, S


def top_basis(G: Tensor, k: int) -> Tensor:
    """The k leading right-singular vectors of the rows."""
    return svd(G)[0][:, :k]


def projector(U: Tensor) -> Tensor:
    """The d x d orthogonal projection on the span of the columns, which may depend."""
    return U.double() @ torch.linalg.pinv(U.double())


def gram_schmidt(X: Tensor) -> Tensor:
    """In-order Gram-Schmidt of independent rows: QR with a positive diagonal."""
    Q, R = torch.linalg.qr(X.double().T)
    return Q * R.diagonal().sign()


def captured_fraction(U: Tensor, x: Tensor) -> float:
    """||P x||^2 / ||x||^2 with the projection matrix of span(U)."""
    inside = projector(U) @ x.double()
    return float(inside @ inside / (x.double() @ x.double()))


def captured_energy(G: Tensor, fit: Tensor, test: Tensor, k: int) -> float:
    """Mean captured fraction of the test rows in the top-k basis of the fit rows."""
    U = top_basis(G[fit], k)
    return sum(captured_fraction(U, G[i]) for i in test.tolist()) / len(test)


def overlap(U: Tensor, V: Tensor) -> float:
    """Trace of the product of the two projections over the smaller dimension."""
    return float(torch.trace(projector(U) @ projector(V))) / min(U.shape[1], V.shape[1])


def principal_angles(U: Tensor, V: Tensor) -> Tensor:
    """Ascending principal angles: each pair of vectors found and measured by itself.

    The principal vectors come from the singular vectors of Q_U^T Q_V; the angle of a pair is
    2 atan2(|a - b|, |a + b|), which is accurate at every size.
    """
    QU, QV = (torch.linalg.qr(X.double())[0] for X in (U, V))
    left, _, right = torch.linalg.svd(QU.T @ QV, full_matrices=False)
    pairs = zip((QU @ left).T, (QV @ right.T).T, strict=True)
    return torch.stack([2 * torch.atan2((a - b).norm(), (a + b).norm()) for a, b in pairs])


def krylov(H: Tensor, g: Tensor, k: int) -> Tensor:
    """Orthonormal basis of {g, Hg, ..., H^(k-1) g} for symmetric H, in H's eigenbasis.

    There H^j g has the coordinates lambda_i^j c_i, and the span is that of the first k Chebyshev
    polynomials of lambda times c: the same space from far better conditioned vectors than powers.
    """
    values, vectors = torch.linalg.eigh(H.double())
    c = vectors.T @ g.double()
    low, high = values.min(), values.max()
    nodes = (2 * values - low - high) / (high - low)
    columns = [torch.ones_like(nodes), nodes]
    while len(columns) < k:
        columns.append(2 * nodes * columns[-1] - columns[-2])
    stack = torch.stack(columns[:k], dim=1) * c[:, None]
    return vectors @ torch.linalg.qr(stack)[0]


def gradient_descent_steps(
    gradient: Callable[[Tensor], Tensor], start: Tensor, *, rate: float, steps: int
) -> Tensor:
    """Steps (T, d) of plain gradient descent."""
    theta, taken = start.double().clone(), []
    for _ in range(steps):
        taken.append(-rate * gradient(theta))
        theta = theta + taken[-1]
    return torch.stack(taken)


def rows_with_spectrum(S: Tensor, n: int, d: int, generator: torch.Generator) -> Tensor:
    """An n x d matrix with these singular values and random singular vectors, float64."""
    left = torch.linalg.qr(torch.randn(n, len(S), generator=generator).double())[0]
    right = torch.linalg.qr(torch.randn(d, len(S), generator=generator).double())[0]
    return left * S.double() @ right.T


def random_rotation(k: int, generator: torch.Generator) -> Tensor:
    """A random k x k orthogonal matrix, float64."""
    return torch.linalg.qr(torch.randn(k, k, generator=generator).double())[0]


def finite_shift(
    model: nn.Module, rows: Sequence[Sequence[int]], delta: Tensor, *, space: ParamSpace,
    blocks: Sequence[int],
) -> Tensor:  # fmt: skip
    """The shift (n, l, h) of last activations by a whole step of the weights."""
    before = last_activations(model, rows, blocks)
    with space.displaced(model, delta):
        return last_activations(model, rows, blocks) - before
