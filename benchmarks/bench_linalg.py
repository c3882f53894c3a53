"""Top-16 basis of 64 x 1,000,000, compared with torch.linalg.svd and sklearn's randomized_svd.

    python benchmarks/bench_linalg.py [--repeats 3]

All are timed in one run, in turns, on the same matrix: unit rows near 16 directions, like
gradients.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from frenet.geometry import rng
from frenet.geometry.linalg import principal_angles, top_k_svd
from timing import Row, attempted, ratios, run_of, show, times, turns

Routines = dict[str, Callable[[], Any]]
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


def run(n: int = 64, d: int = 1_000_000, k: int = 16, repeats: int = 3) -> Iterator[Row]:
    """Ratios of the time of the others to ours, and our two errors."""
    G = gradient_like(n, d)
    for name, others in {"torch": by_torch, "scikit-learn": by_sklearn}.items():
        rows = partial(timed, G, k, repeats, others)
        yield from attempted(f"top_k_svd against {name}", rows)
    yield from attempted("errors of top_k_svd", lambda: errors(G, k))


def by_torch(G: Tensor, k: int) -> Routines:
    """The full decomposition of torch."""
    return {
        "torch.linalg.svd": lambda: torch.linalg.svd(G, full_matrices=False),
        "torch.linalg.svd of the transpose": lambda: torch.linalg.svd(G.T, full_matrices=False),
    }


def by_sklearn(G: Tensor, k: int) -> Routines:
    """The randomised decomposition of scikit-learn."""
    from sklearn.utils.extmath import randomized_svd

    array = G.numpy()
    return {"sklearn randomized_svd": lambda: randomized_svd(array, k, random_state=0)}


def timed(
    G: Tensor, k: int, repeats: int, others: Callable[[Tensor, int], Routines]
) -> Iterator[Row]:
    """Time of the others over ours."""
    seconds = turns({"ours": lambda: top_k_svd(G, k), **others(G, k)}, repeats)
    ours = seconds.pop("ours")
    for name, other in seconds.items():
        yield {
            "name": f"top_k_svd against {name}",
            "model": None,
            **ratios(other, ours),
            # For fairness: the transpose is faster, but not the obvious call.
            "aim": "" if "transpose" in name else AIM,
            "detail": f"{times(ours, other)}; {len(G)} x {G.shape[1]:,}, k = {k}, "
            f"{run_of(repeats)}",
        }


def errors(G: Tensor, k: int) -> Iterator[Row]:
    """Two errors with their limits: orthonormality and subspace."""
    U = top_k_svd(G, k).U
    # In float64: torch's own float32 result is further away from it than ours.
    exact = torch.linalg.svd(G.T.double(), full_matrices=False).U[:, :k]
    single = torch.linalg.svd(G, full_matrices=False).Vh[:k].T
    off = float((U.T.double() @ U.double() - torch.eye(k)).abs().max())
    ours, theirs = (float(principal_angles(basis, exact)[-1]) for basis in (U, single))
    yield {
        "name": "top_k_svd: orthonormality |U^T U - I|",
        "model": None,
        "ratio": off,
        "aim": f"at most {ORTHONORMAL:.0e}",
        "detail": f"{len(G)} x {G.shape[1]:,}, k = {k}",
    }
    yield {
        "name": "top_k_svd: largest angle to the float64 SVD, radians",
        "model": None,
        "ratio": ours,
        "aim": f"at most {SUBSPACE:.0e}",
        "detail": f"torch.linalg.svd in float32 has {theirs:.1e}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    show(run(repeats=parser.parse_args().repeats))
