"""A change of the weights as a LoRA adapter: truncated SVDs, with their error."""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet._files import whole_files
from frenet.methods.task_vectors import TaskVector
from frenet.network.adapters import linear_modules, quiet_peft
from frenet.network.checkpoints.adapter_files import WEIGHTS, write_adapter


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


def _orientations(vector: TaskVector, base: nn.Module) -> dict[str, bool]:
    """The weights that change, and whether each is stored as (in, out)."""
    modules = dict(base.named_modules())
    turned, other = {}, []
    for name in vector.shapes:
        module, _, leaf = name.rpartition(".")
        kind = type(modules.get(module)).__name__
        if leaf == "weight" and kind in ("Linear", "Conv1D"):
            turned[name] = kind == "Conv1D"
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


def _write(factors: dict[str, tuple[Tensor, Tensor]], folder: Path, *, turned: bool) -> Path:
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
            task_type="CAUSAL_LM",
        )  # fmt: skip
        with whole_files(folder, last=WEIGHTS) as part:
            write_adapter(config, tensors, part)
    return folder
