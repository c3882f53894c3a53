"""The forward pass of a LoRA layer that has other factors for each candidate.

PEFT multiplies by one factor, by the other, by the scale, and adds the result to the output of the
base layer. Here the last three are one product, added to that output where it lies.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet.network.measuring import Forward

CONV1D = "transformers.pytorch_utils.Conv1D"


class Factors(NamedTuple):
    """One adapter of a layer: its two linear layers with their names, and the product's scale."""

    halves: tuple[str, str]
    modules: tuple[nn.Linear, nn.Linear]
    scale: float


class Product(NamedTuple):
    """The factors of every candidate, or of all of them (n = 1), and the scale."""

    first: Float[Tensor, "n h_in r"]
    second: Float[Tensor, "n r h_out"]
    scale: float


def plain_adapters(name: str, layer: Any) -> list[Factors]:
    """The active adapters of a layer of PEFT whose forward pass adds their products and no more.

    A variant such as DoRA computes something else, and so may a factor with a bias or a hook: such
    a layer has none here, and neither has any other module.
    """
    if type_name(layer) != "peft.tuners.lora.layer.Linear" or "forward" in vars(layer):
        return []
    if layer.disable_adapters or layer.merged or getattr(layer, "lora_variant", None):
        return []
    base: Any = layer.base_layer
    # Nobody else holds the output of these.
    if type(base) is not nn.Linear and type_name(base) != CONV1D:
        return []
    found = []
    for key in layer.active_adapters:
        if key in layer.lora_A:
            halves = (layer.lora_A[key], layer.lora_B[key])
            if not all(_is_product(half, base.weight.dtype) for half in halves):
                return []
            names = (f"{name}.lora_A.{key}", f"{name}.lora_B.{key}")
            found.append(Factors(names, halves, layer.scaling[key]))
    return found


def type_name(module: nn.Module) -> str:
    """Module and name of a type, to compare: PEFT and transformers take seconds to import."""
    return f"{type(module).__module__}.{type(module).__name__}"


def _is_product(half: Any, base: torch.dtype) -> bool:
    """Whether a call multiplies and does nothing else, in a dtype that holds the base's output."""
    if type(half) is not nn.Linear or "bias" in dict(half.named_parameters()):
        return False
    bare = not ("forward" in vars(half) or half._forward_hooks or half._forward_pre_hooks)
    return bare and torch.promote_types(half.weight.dtype, base) == half.weight.dtype


def adapted_forward(base: nn.Module, products: Sequence[Product], count: int) -> Forward:
    """The forward pass of a LoRA layer for ``count`` equal groups of rows."""

    def forward(x: Tensor) -> Tensor:
        rows = x.reshape(count, -1, x.shape[-1])
        out = base(x)
        parts = out.view(count, -1, out.shape[-1])
        for first, second, scale in products:
            low = torch.bmm(rows.to(first.dtype), first)
            parts = parts.to(low.dtype).baddbmm_(low, second, alpha=scale)
        return parts.to(out.dtype).view(out.shape)

    return forward
