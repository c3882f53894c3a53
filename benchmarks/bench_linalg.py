"""Top-16 basis of 64 x 1,000,000 against torch.linalg.svd and sklearn's randomized_svd.

    python benchmarks/bench_linalg.py

All are timed in one run, in turns, on the same matrix: unit rows near 16 directions, as
gradients are. ``run`` returns rows for the table of all benchmarks.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from frenet.geometry import rng
from frenet.geometry.linalg import principal_angles, top_k_svd

AIM = "at least 8"
ORTHONORMAL = 1e-5
SUBSPACE = 1e-4


def gradient_like(n: int, d: int, *, rank: int = 16, noise: float = 0.7) -> Tensor:
    """Unit rows with most of their energy in ``rank`` directions of decreasing weight."""
    draw = rng.generator(0, "bench", "linalg")
    weights = torch.randn(n, rank, generator=draw) * torch.linspace(1, 0.3, rank)
    rows = weights @ torch.randn(rank, d, generator=draw)
    rows /= rows.norm(dim=1, keepdim=True)
    rows += torch.randn(n, d, generator=draw) * (noise / d**0.5)
    return rows / rows.norm(dim=1, keepdim=True)


def medians(routines: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each routine, taken in turns so that all see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in routines}
    for _ in range(repeats):
        for name, routine in routines.items():
            start = time.perf_counter()
            routine()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def run(n: int = 64, d: int = 1_000_000, k: int = 16, repeats: int = 3) -> list[dict[str, Any]]:
    """Ratios of the time of the others to ours, and our two errors."""
    G = gradient_like(n, d)
    array = G.numpy()
    top_k_svd(G[:, :10_000], k)
    seconds = medians(
        {
            "ours": lambda: top_k_svd(G, k),
            "torch.linalg.svd": lambda: torch.linalg.svd(G, full_matrices=False),
            "torch.linalg.svd of the transpose": lambda: torch.linalg.svd(G.T, full_matrices=False),
            "sklearn randomized_svd": lambda: randomized_svd(array, k, random_state=0),
        },
        repeats,
    )
    ours = seconds.pop("ours")
    where = f"{n} x {d:,}, k = {k}, {torch.get_num_threads()} threads, median of {repeats}"
    rows: list[dict[str, Any]] = [
        {
            "name": f"top_k_svd against {name}",
            "ratio": other / ours,
            # The transpose is not what one would write first; it is here to be fair.
            "aim": None if "transpose" in name else AIM,
            "detail": f"{ours:.2f} s against {other:.2f} s; {where}",
        }
        for name, other in seconds.items()
    ]
    return rows + errors(G, k)


def errors(G: Tensor, k: int) -> list[dict[str, Any]]:
    """Two errors beside their limits: orthonormality and subspace."""
    U = top_k_svd(G, k).U
    # In float64: torch's own float32 result is further away from it than ours.
    exact = torch.linalg.svd(G.T.double(), full_matrices=False).U[:, :k]
    single = torch.linalg.svd(G, full_matrices=False).Vh[:k].T
    off = float((U.T.double() @ U.double() - torch.eye(k)).abs().max())
    ours, theirs = (float(principal_angles(basis, exact)[-1]) for basis in (U, single))
    return [
        {
            "name": "top_k_svd: orthonormality |U^T U - I|",
            "ratio": off,
            "aim": f"at most {ORTHONORMAL:.0e}",
            "detail": f"{len(G)} x {G.shape[1]:,}, k = {k}",
        },
        {
            "name": "top_k_svd: largest angle to the float64 SVD, radians",
            "ratio": ours,
            "aim": f"at most {SUBSPACE:.0e}",
            "detail": f"torch.linalg.svd in float32 has {theirs:.1e}",
        },
    ]


def main() -> None:
    """Print the table."""
    for row in run():
        print(f"{row['ratio']:9.3g} {row['aim'] or '-':>14}  {row['name']}: {row['detail']}")


if __name__ == "__main__":
    main()
