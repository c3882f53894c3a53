"""Merges of two LoRA adapters by PEFT, each compared with an exact change before it is used."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frenet.geometry import rng
from frenet.methods.task_vectors import TaskVector
from frenet.methods.vector_files import plain_base
from frenet.network.adapters import quiet_peft
from frenet.network.checkpoints.adapter_delta import (
    adapter_products,
    products_shapes,
    sum_of_products,
)

# Forms that combine the products B A. PEFT's others combine A and B apart, which brings cross
# terms, so that not even both adapters together are their sum.
EXACT = "cat"
SUMS, ELECTIONS = (EXACT, "svd", "dare_linear_svd"), ("ties_svd", "dare_ties_svd")
KINDS = (*SUMS, *ELECTIONS)
PRUNED = tuple(kind for kind in KINDS if kind not in (EXACT, "svd"))
# Largest relative distance from the exact change; an SVD in float32 stays far below it.
TOLERANCE = 1e-3
FIRST, SECOND, MERGED = "first", "second", "merged"


@dataclass(frozen=True)
class PeftMerge:
    """One merge by ``add_weighted_adapter`` of PEFT, with weights 1 and 1.

    Every kind is linear in its weights, so that weights w and w give w times the vector.

    Attributes:
        kind: ``combination_type``.
        density: share of the entries that are kept; None for kinds without one.
        rank: of the merged adapter.
        vector: its change of the weights; None if it is left out.
        error: at density 1, relative distance from the exact change; None if PEFT raised an error.
        left_out: why it is not used; empty if it is.
    """

    kind: str
    density: float | None
    rank: int
    vector: TaskVector | None
    error: float | None
    left_out: str = ""

    @property
    def name(self) -> str:
        """Kind and density."""
        return self.kind if self.density is None else f"{self.kind} {self.density:g}"


def peft_merges(
    model: nn.Module,
    folders: Sequence[Path],
    vectors: Sequence[TaskVector],
    *,
    densities: Sequence[float],
    seed: int,
) -> list[PeftMerge]:
    """The merges of two adapters by PEFT's ``cat``, ``svd``, TIES and DARE.

    At density 1 nothing is pruned. Then ``cat``, ``svd`` and ``dare_linear_svd`` have to give the
    exact sum of both adapters, and those that elect signs, of the first adapter with itself, that
    adapter. A kind that does not is left out: versions of PEFT have counted an adapter's scale
    twice, or the root of the rank with rsLoRA.

    Args:
        model: the base; it does not change.
        folders: of the two adapters.
        vectors: their exact changes of the weights.
        densities: for the kinds that prune.
        seed: of the entries that DARE prunes.
    """
    first, second = (_on_cpu(vector) for vector in vectors)
    both = first + second
    merges = []
    with _wrapped(model, folders) as wrapped:
        ranks = [max(wrapped.peft_config[name].r, *_patterns(wrapped, name)) for name in
                 (FIRST, SECOND)]  # fmt: skip
        whole = min(sum(ranks), *(min(shape) for shape in both.shapes.values()))
        for kind in KINDS:
            pair = (FIRST, SECOND) if kind in SUMS else (FIRST, FIRST)
            expected, what = (both, "the sum") if kind in SUMS else (first, "the adapter itself")
            found, why = _merged(wrapped, kind, pair, rank=whole, density=1.0, seed=seed)
            error = None if found is None else (found - expected).norm() / expected.norm()
            if found is not None and error is not None and not error <= TOLERANCE:
                why = _difference(found, expected, what)
            rank = {EXACT: sum(ranks), "svd": max(ranks)}.get(kind, whole)
            for density in densities if kind in PRUNED else (None,):
                vector = None
                if not why:
                    vector, why = _merged(
                        wrapped, kind, (FIRST, SECOND), rank=rank, density=density, seed=seed
                    )
                merges.append(PeftMerge(kind, density, rank, vector, error, why))
    return merges


@contextmanager
def _wrapped(model: nn.Module, folders: Sequence[Path]) -> Iterator[Any]:
    """PEFT's wrapper with both adapters, around a base that shares the model's weights."""
    from peft import PeftModel

    device = str(next(model.parameters()).device)
    with torch.random.fork_rng(devices=[]), quiet_peft(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = PeftModel.from_pretrained(
            plain_base(model), folders[0], adapter_name=FIRST, torch_device=device
        )
        wrapped.load_adapter(str(folders[1]), adapter_name=SECOND, torch_device=device)
        yield wrapped


def _on_cpu(vector: TaskVector) -> TaskVector:
    """The same with every tensor on the CPU."""
    return replace(vector, read=lambda name: vector.read(name).cpu())


def _patterns(wrapped: Any, name: str) -> list[int]:
    """Ranks of single modules."""
    return [0, *(wrapped.peft_config[name].rank_pattern or {}).values()]


def _merged(
    wrapped: Any,
    kind: str,
    names: Sequence[str],
    *,
    rank: int,
    density: float | None,
    seed: int,
) -> tuple[TaskVector | None, str]:
    """The change by one merge with weights 1 and 1; or None, and why PEFT does not make it."""
    more = {} if kind == EXACT else {"svd_rank": rank, "svd_full_matrices": False}
    torch.manual_seed(rng.torch_seed(seed))
    try:
        wrapped.add_weighted_adapter(
            list(names), [1.0, 1.0], MERGED, combination_type=kind, density=density, **more
        )
        origin = f"{kind} by peft"
        products = {
            weight: [f._replace(B=f.B.cpu(), A=f.A.cpu()) for _, f in parts]
            for weight, parts in adapter_products(wrapped, [MERGED], origin).items()
        }
    except (ValueError, RuntimeError, LookupError, AttributeError) as error:
        return None, f"peft does not make it: {' '.join(str(error).split())[:200]}"
    finally:
        if MERGED in wrapped.peft_config:
            wrapped.delete_adapter(MERGED)
    return TaskVector(
        products_shapes(products), lambda weight: sum_of_products(products, weight), origin
    ), ""


def _difference(found: TaskVector, expected: TaskVector, what: str) -> str:
    """How a merge at density 1 differs from the exact change, in words."""
    factor = found.dot(expected) / expected.dot(expected)
    rest = (found - factor * expected).norm() / expected.norm()
    if rest <= TOLERANCE:
        return f"at density 1 it is {factor:.3g} times {what}, so its scale is wrong"
    apart = (found - expected).norm() / expected.norm()
    return f"at density 1 it differs from {what} by {apart:.2g} of its norm"
