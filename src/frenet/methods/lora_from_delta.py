"""A change of the weights as a LoRA adapter: exact sums of adapters, and truncated SVDs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet._files import whole_files
from frenet.methods.task_vectors import TaskVector
from frenet.network.adapters import linear_modules, quiet_peft
from frenet.network.checkpoints.adapter_delta import Products
from frenet.network.checkpoints.adapter_files import WEIGHTS, write_adapter

# The classes of linear modules; the second stores its weight as (in, out).
LINEAR = ("Linear", "Conv1D")


class AdapterFit(NamedTuple):
    """An adapter that was written.

    Attributes:
        folder: in the format of PEFT.
        ranks: of each adapted weight.
        error: ||tau - sum B A|| / ||tau||, over all weights.
    """

    folder: Path
    ranks: dict[str, int]
    error: float


def save_as_adapter(
    vector: TaskVector,
    folder: str | Path,
    *,
    base: nn.Module,
    tolerance: float = 0.01,
    max_rank: int | None = None,
) -> AdapterFit:
    """Write a task vector as a PEFT LoRA adapter, each weight by a truncated SVD.

    Each weight gets the smallest rank with a relative error of at most ``tolerance``, which then
    bounds the error of the whole vector, unless ``max_rank`` is smaller.

    Args:
        vector: changes weights of linear modules only.
        folder: created if missing.
        base: the plain base model; it may be on the meta device.
        tolerance: in (0, 1), relative error in the Frobenius norm.
        max_rank: the largest rank; ``error`` includes what it costs.

    Raises:
        ValueError: the vector changes another weight, such as a norm or an embedding, which is
            named, or changes nothing.
    """
    if not 0 < tolerance < 1:
        raise UsageError(f"tolerance={tolerance} is not in (0, 1)")
    space = vector.space(base)
    turned = _orientations(vector, base)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    lost = whole = 0.0
    for name, is_turned in turned.items():
        change = vector.read(name).double()
        size, rest, halves = _factored(
            change.T if is_turned else change, tolerance=tolerance, max_rank=max_rank
        )
        whole, lost = whole + size, lost + rest
        if halves is not None:
            factors[name] = halves
    if not factors:
        raise UsageError(f"the vector ({vector.origin}) is zero in all {len(space.names)} weights")
    written = _write(factors, Path(folder).expanduser(), turned=any(turned[n] for n in factors))
    ranks = {name: len(A) for name, (_, A) in factors.items()}
    return AdapterFit(written, ranks, (lost / whole) ** 0.5)


def save_sum(
    terms: Sequence[tuple[Callable[[str], float], Products]],
    folder: str | Path,
    *,
    base: nn.Module,
) -> AdapterFit:
    r"""Write a sum of adapters, each with a coefficient per weight, as one PEFT LoRA adapter.

    $$\sum_i c_i s_i B_i A_i = [\dots B_i \dots]\,[\dots c_i s_i A_i \dots]$$

    The factors stand side by side, so the sum is exact up to the rounding of float32, and its ranks
    are the sums of the ranks. A term whose coefficient is 0 takes no rank.

    Args:
        terms: c_i by the name of a weight, and the products of an adapter (``stored_products``).
        folder: created if missing.
        base: the plain base model; it may be on the meta device.

    Raises:
        ValueError: an adapter changes a weight of a module that is not linear, or the sum is zero.
    """
    halves: dict[str, list[tuple[Tensor, Tensor]]] = {}
    kinds = {name: type(module).__name__ for name, module in base.named_modules()}
    for coefficient, products in terms:
        for name, parts in products.items():
            if kinds.get(name.removesuffix(".weight")) not in LINEAR:
                raise UsageError(
                    f"an adapter changes {name}, which is no weight of a linear module "
                    f"({', '.join(linear_modules(base))}), so the sum does not fit into one "
                    "adapter; save a merged model (save_merged)"
                )
            for f in parts if coefficient(name) else ():
                A = coefficient(name) * f.scale * f.A.float()
                halves.setdefault(name, []).append((f.B.float().cpu(), A.cpu()))
    if not halves:
        raise UsageError("every coefficient is 0, so the sum of the adapters is zero")
    factors = {
        name: (torch.cat([B for B, _ in parts], 1), torch.cat([A for _, A in parts]))
        for name, parts in halves.items()
    }
    turned = any(kinds[name.removesuffix(".weight")] == LINEAR[1] for name in factors)
    source = str(getattr(base, "name_or_path", ""))
    written = _write(factors, Path(folder).expanduser(), turned=turned, base=source)
    return AdapterFit(written, {name: len(A) for name, (_, A) in factors.items()}, 0.0)


def _orientations(vector: TaskVector, base: nn.Module) -> dict[str, bool]:
    """The weights that change, and whether each is stored as (in, out)."""
    modules = dict(base.named_modules())
    turned, other = {}, []
    for name in vector.shapes:
        module, _, leaf = name.rpartition(".")
        kind = type(modules.get(module)).__name__
        if leaf == "weight" and kind in LINEAR:
            turned[name] = kind == LINEAR[1]
        elif vector.read(name).any():
            other.append(name)
    if other:
        raise UsageError(
            f"the vector ({vector.origin}) changes {other[0]} ({len(other)} such weights), which "
            f"is no weight of a linear module ({', '.join(linear_modules(base))}) and does not fit "
            "into an adapter; use save_task_vector"
        )
    return turned


def _factored(
    change: Float[Tensor, "o i"], *, tolerance: float, max_rank: int | None
) -> tuple[float, float, tuple[Tensor, Tensor] | None]:
    """Squared norm, squared norm of the rest, and B (o, r) and A (r, i) with balanced norms."""
    U, S, Vh = torch.linalg.svd(change, full_matrices=False)
    squares = S.square()
    whole = float(squares.sum())
    if whole == 0:
        return 0.0, 0.0, None
    # rest[r]: squared norm that is lost at rank r.
    rest = whole - torch.cat([squares.new_zeros(1), squares.cumsum(0)])
    rank = int((rest > tolerance**2 * whole).sum())
    rank = max(1, min(rank, max_rank or rank))
    root = S[:rank].sqrt()
    halves = (U[:, :rank] * root).float(), (root[:, None] * Vh[:rank]).float()
    return whole, float(squares[rank:].sum()), halves


def _write(
    factors: dict[str, tuple[Tensor, Tensor]], folder: Path, *, turned: bool, base: str = ""
) -> Path:
    """The files of a PEFT adapter whose scale is 1."""
    from peft import LoraConfig

    ranks = {name.removesuffix(".weight"): len(A) for name, (_, A) in factors.items()}
    most = max(ranks.values())
    lower = {module: rank for module, rank in ranks.items() if rank != most}
    tensors = {}
    for name, (B, A) in factors.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = A.contiguous()
        tensors[f"{module}.lora_B.weight"] = B.contiguous()
    with quiet_peft():
        config = LoraConfig(
            r=most, lora_alpha=most, lora_dropout=0.0, target_modules=list(ranks),
            rank_pattern=lower, alpha_pattern=lower, fan_in_fan_out=turned, inference_mode=True,
            task_type="CAUSAL_LM", base_model_name_or_path=base or None,
        )  # fmt: skip
        with whole_files(folder, last=WEIGHTS) as part:
            write_adapter(config, tensors, part)
    return folder
