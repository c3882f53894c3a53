"""Adapter gradients as changes of the weights themselves."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet.network.adapters import other_half, structural_zeros
from frenet.network.space import ParamSpace


class _Factors(NamedTuple):
    """B, A and their changes, for one module; ``scale`` is alpha / r."""

    B: Tensor
    A: Tensor
    b_step: Tensor
    a_step: Tensor
    scale: float


def weight_space_gradient(
    model: nn.Module, space: ParamSpace, gradient: Float[Tensor, " d"]
) -> dict[str, Float[Tensor, "o i"]]:
    r"""The adapter gradient as a change of each adapted weight, to first order.

    $$\delta W = s\,(\delta B\, A + B\, \delta A), \qquad s = \alpha / r$$

    Args:
        model: carries one LoRA adapter.
        space: selects both halves of the adapters, or one of them (the other then stands still).
        gradient: a vector of the space: a gradient, or a step.

    Returns:
        For each adapted module its ``(out, in)`` matrix, float32, whichever way round the model
        stores the weight.

    Raises:
        ValueError: the space holds no adapter, or one of another kind than plain LoRA.
    """
    return {
        name: f.scale * (f.b_step @ f.A + f.B @ f.a_step)
        for name, f in _factors(model, space, gradient)
    }


def update_ranks(
    model: nn.Module, space: ParamSpace, gradient: Float[Tensor, " d"], *, tolerance: float = 1e-6
) -> dict[str, int]:
    """Numerical rank of each module's ``weight_space_gradient``, without forming it.

    The product ``[dB B] [A; dA]`` has the singular values of the two triangular factors' product,
    which is 2r x 2r; values under ``tolerance`` of the largest do not count.
    """
    ranks = {}
    for name, f in _factors(model, space, gradient):
        left = torch.linalg.qr(torch.cat([f.b_step, f.B], dim=1).double()).R
        right = torch.linalg.qr(torch.cat([f.A, f.a_step], dim=0).double().T).R
        S = torch.linalg.svdvals(left @ right.T)
        ranks[name] = int((tolerance * S.max() < S).sum())
    return ranks


def describe_update(model: nn.Module, space: ParamSpace, gradient: Float[Tensor, " d"]) -> str:
    """One sentence for a report: the update's ranks, and the coordinates that cannot move."""
    ranks = update_ranks(model, space, gradient)
    low, high = min(ranks.values()), max(ranks.values())
    rank = f"{low}" if low == high else f"{low} to {high}"
    return (
        f"update of rank {rank} in weight space in {len(ranks)} modules; "
        f"{structural_zeros(model, space)}"
    )


def _factors(
    model: nn.Module, space: ParamSpace, gradient: Tensor
) -> Iterator[tuple[str, _Factors]]:
    own = dict(model.named_parameters(remove_duplicate=False))
    parts = space.unflatten(gradient.detach().float().to(next(model.parameters()).device))
    pairs = {name if ".lora_A." in name else other_half(name): None for name in parts}
    names = [name for name in pairs if name is not None and ".lora_A." in name]
    if not names:
        raise ValueError("the parameter space holds no LoRA adapter (no name with .lora_A.)")
    for name in names:
        prefix, _, rest = name.rpartition(".lora_A.")
        other, adapter = f"{prefix}.lora_B.{rest}", rest.split(".")[0]
        module: Any = model.get_submodule(prefix)
        if own[name].ndim != 2 or adapter in getattr(module, "lora_magnitude_vector", {}):
            raise ValueError(f"{prefix} carries no plain LoRA adapter of a linear module")
        A, B = (own[n].detach().float() for n in (name, other))
        a_step, b_step = parts.get(name, torch.zeros_like(A)), parts.get(other, torch.zeros_like(B))
        yield prefix, _Factors(B, A, b_step, a_step, float(module.scaling[adapter]))
