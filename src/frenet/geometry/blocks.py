"""Passes over a few long vectors, one block of columns at a time, in float64.

The vectors are the rows of an ``(n, d)`` matrix, n small and d large. Summing in float64 block by
block never makes a float64 copy of the matrix.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from frenet._errors import UsageError


def gram(G: Float[Tensor, "n d"], H: Float[Tensor, "m d"] | None = None) -> Float[Tensor, "n m"]:
    """Inner products of the rows, G H^T, summed in float64.

    Args:
        G: n vectors, any floating dtype.
        H: m vectors on the same device; None takes G itself.

    Returns:
        float64, shape (n, m), on the CPU; exactly symmetric when H is None.

    Raises:
        FloatingPointError: an entry is NaN or infinite; names row and coordinate.

    >>> gram(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor([[25.,  8.],
            [ 8.,  4.]], dtype=torch.float64)
    """
    if H is None:
        return gram_of([G])
    if G.shape[1] != H.shape[1]:
        raise UsageError(f"vectors of {G.shape[1]} and of {H.shape[1]} coordinates do not meet")
    K = torch.zeros(len(G), len(H), dtype=torch.float64, device=work_device(G))
    for _, (left, right) in blocks(G, H):
        K.addmm_(left, right.T)
    return _finite(K.cpu(), (G, H))


def gram_of(matrices: Sequence[Float[Tensor, "_ d"]]) -> Float[Tensor, "n n"]:
    """``gram`` of the rows of several matrices, without a copy of them all.

    >>> gram_of([torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])])
    tensor([[25.,  8.],
            [ 8.,  4.]], dtype=torch.float64)
    """
    sizes, (first, *_) = [len(matrix) for matrix in matrices], matrices
    n, d, device = sum(sizes), first.shape[1], work_device(first)
    K = torch.zeros(n, n, dtype=torch.float64, device=device)
    buffer = torch.empty(n, _width(n, d), dtype=torch.float64, device=device)
    for start in range(0, d, buffer.shape[1]):
        part = buffer[:, : d - start]
        for piece, matrix in zip(part.split(sizes), matrices, strict=True):
            piece.copy_(matrix.detach()[:, start : start + part.shape[1]].to(device))
        K.addmm_(part, part.T)
    K = _finite(K.cpu(), matrices)
    return (K + K.T) / 2


def _finite(K: Float[Tensor, "n m"], matrices: Sequence[Tensor]) -> Float[Tensor, "n m"]:
    """K, or an error that names the first entry of the vectors that is not finite."""
    if torch.isfinite(K).all():
        return K
    for matrix in matrices:
        require_finite(matrix)
    raise FloatingPointError("the squared norms overflow float64; scale the vectors down")


def inverse_norms(K: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """1 / norm of every row behind a Gram matrix; 0 if the row is zero."""
    norms = K.diagonal().sqrt()
    return torch.where(norms > 0, 1 / norms, 0.0)


def deviation(Q: Float[Tensor, "k d"]) -> float:
    """How far the rows are from orthonormal, the largest entry of |Q Q^T - I|; NaN for bad rows.

    Summed in float64: the steps of Adam are nearly equal in size in every coordinate, and float32
    sums of such squares are wrong by more than the tolerance of 1e-5.
    """
    K = torch.zeros(len(Q), len(Q), dtype=torch.float64, device=work_device(Q))
    for _, (part,) in blocks(Q):
        K.addmm_(part, part.T)
    return float((K.cpu() - torch.eye(len(Q))).abs().max()) if len(Q) else 0.0


def blocks(*matrices: Float[Tensor, "_ d"]) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yields column ranges, and these columns of every matrix in float64, until all d are done.

    The next step overwrites the float64 blocks.

    >>> [(s.start, s.stop, part[0, 0].item()) for s, (part,) in blocks(torch.eye(2, 5))]
    [(0, 5, 1.0)]
    """
    rows, d = sum(len(matrix) for matrix in matrices), matrices[0].shape[1]
    width = _width(rows, d)
    buffers = [
        torch.empty(len(matrix), width, dtype=torch.float64, device=work_device(matrix))
        for matrix in matrices
    ]
    for start in range(0, d, width):
        columns = slice(start, min(start + width, d))
        parts = [buffer[:, : columns.stop - start] for buffer in buffers]
        for part, matrix in zip(parts, matrices, strict=True):
            part.copy_(matrix.detach()[:, columns].to(part.device))
        yield columns, parts


def _width(rows: int, d: int) -> int:
    """Columns in a block with this many rows."""
    return max(1, min(d, block_size() // max(1, rows)))


def block_size() -> int:
    """Numbers in a block: 2^18, which the cache holds, for one thread; 2^22 (32 MB) for more.

    Measured with the Gram matrix of 64 x 1,000,000 on busy cores: one thread 0.31 s at 2^18 and
    0.39 s at 2^22; two threads, which synchronise 16 times less often in the large blocks, 7 s at
    2^18, 2.2 s at 2^19 and 1.0 s at 2^22.
    """
    return 2**18 if torch.get_num_threads() == 1 else 2**22


def double(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The values in float64, outside the autograd graph, on ``work_device``."""
    return x.detach().to(work_device(x)).double()


def work_device(x: Tensor) -> torch.device:
    """The device for float64 work on x: that of x, or the CPU for MPS, which has no float64."""
    return torch.device("cpu") if x.device.type == "mps" else x.device


def combine(
    W: Float[Tensor, "k n"], G: Float[Tensor, "n d"], *, out: Float[Tensor, "k d"] | None = None
) -> Float[Tensor, "k d"]:
    """W G in float32, the products and sums in float64.

    Args:
        W: coefficients, float64.
        G: n vectors, any floating dtype.
        out: for the result; may be G itself if k = n.
    """
    Q = G.new_empty(len(W), G.shape[1], dtype=torch.float32) if out is None else out
    W = W.to(work_device(G))
    for columns, (part,) in blocks(G):
        Q[:, columns] = W @ part
    return Q


def reject(x: Float[Tensor, " d"], Q: Float[Tensor, "r d"]) -> Float[Tensor, " d"]:
    """The part of x outside the span of the orthonormal rows of Q, in float64.

    Two projections, since one leaves an error of the order of the rounding of Q.

    >>> reject(torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 0.0]]))
    tensor([0., 4.], dtype=torch.float64)
    """
    left = double(x).clone()
    for _ in range(2):
        held = gram(left[None], Q)[0].to(left.device)
        for columns, (part,) in blocks(Q):
            left[columns] -= held @ part
    return left


def first_non_finite(G: Float[Tensor, "n d"]) -> tuple[int, int] | None:
    """Row and coordinate of the first NaN or infinity, row by row; None if all are finite.

    >>> first_non_finite(torch.tensor([[0.0, 1.0], [2.0, float("nan")]]))
    (1, 1)
    """
    for i, row in enumerate(G):
        bad = ~torch.isfinite(row)
        if bad.any():
            return i, int(bad.nonzero()[0])
    return None


def require_finite(G: Float[Tensor, "n d"]) -> None:
    """Raise FloatingPointError naming the first row and coordinate with a NaN or an infinity."""
    if (entry := first_non_finite(G)) is not None:
        row, coordinate = entry
        raise FloatingPointError(
            f"row {row} is {float(G[row, coordinate])} at coordinate {coordinate}; "
            "measure in float32, or lower the step size"
        )
