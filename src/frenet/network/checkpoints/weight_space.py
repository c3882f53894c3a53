"""Changes of adapters as changes of the weights themselves, to first order and whole."""

import math
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.network.adapters import other_half
from frenet.network.checkpoints.adapter_delta import (
    Factors,
    Products,
    products_shapes,
    refuse_tied,
    sum_of_products,
)
from frenet.network.checkpoints.tensor_files import Read, Shapes
from frenet.network.space import ParamSpace

Coordinates = Literal["weights", "factors"]
_MERGE = (
    "merge it into its base before and after (merge_and_unload of peft), and take the difference "
    "of the two"
)


class _Factors(NamedTuple):
    """B, A and their changes, for one module; ``scale`` is alpha / r.

    ``turned``: the weight is stored as (i, o).
    """

    B: Tensor
    A: Tensor
    b_step: Tensor
    a_step: Tensor
    scale: float
    turned: bool


def coordinates_of(space: ParamSpace) -> Coordinates:
    """Whether a vector of the space moves weights themselves, or factors of LoRA."""
    return "factors" if any(other_half(name) for name in space.names) else "weights"


def weight_change(
    model: nn.Module,
    space: ParamSpace,
    step: Float[Tensor, " d"],
    start: Float[Tensor, " d"] | None = None,
) -> tuple[Shapes, Read]:
    r"""What a step of the parameters of a space does to the weights of the network, whole.

    $$\Delta W = s\,(B_1 A_1 - B_0 A_0) = s\,(\delta B\, A_1 + B_0\, \delta A)$$

    The right side is what is computed: the difference of two products of float32 would cancel. A
    parameter of the space that is no factor of LoRA changes by its own step.

    Args:
        model: carries the adapters; left as it is.
        space: the parameters that move.
        step: a vector of the space, from theta_0 to theta_1.
        start: theta_0; None: where the model stands. A half that the space does not have stands
            still, where the model has it.

    Returns:
        Shapes of the changed weights, by their names in ``model`` (PEFT's wrapper calls an adapted
        one ``base_layer.weight``), and a function that makes the change of one, float32.

    Raises:
        ValueError: an adapter that is no sum of products B A, that changes one use of a tied
            weight, or whose weight is stored in another form.
    """
    step = step.detach().float().cpu()
    before = (space.read(model) if start is None else start).detach().float().cpu()
    plain = {name: part for name, part in space.unflatten(step).items() if not other_half(name)}
    for name in plain:
        _refuse_inside_adapter(model, name)
    products: Products = {}
    if coordinates_of(space) == "factors":
        products = _exact_products(model, space, step, before)
    shapes = products_shapes(products) | {name: tuple(part.shape) for name, part in plain.items()}

    def read(name: str) -> Tensor:
        if name not in products:
            return plain[name]
        change = sum_of_products(products, name)
        return change + plain[name] if name in plain else change

    return shapes, read


def _exact_products(
    model: nn.Module, space: ParamSpace, step: Float[Tensor, " d"], start: Float[Tensor, " d"]
) -> Products:
    """The change of every adapted weight as the sum of two products, by its name in the model."""
    own = dict(model.named_parameters(remove_duplicate=False))
    products: Products = {}
    for prefix, f in _factors(model, space, step, start, kinds=("lora_A", "lora_embedding_A")):
        name = f"{prefix}.base_layer.weight"
        parts = (
            Factors(f.b_step, f.A + f.a_step, f.scale, f.turned),
            Factors(f.B, f.a_step, f.scale, f.turned),
        )
        if name not in own or tuple(own[name].shape) != parts[0].shape:
            raise UsageError(
                f"{prefix} does not hold its weight as one matrix of shape {parts[0].shape}: load "
                "the model without quantisation, and adapt no parameters of several matrices "
                "(target_parameters of peft)"
            )
        refuse_tied(model, own[name], prefix)
        products.setdefault(name, []).extend(parts)
    return products


def _refuse_inside_adapter(model: nn.Module, name: str) -> None:
    """Raise ValueError for a parameter of an adapter that is no half of a product B A."""
    path = name.split(".")
    for i in range(len(path)):
        layer = model.get_submodule(".".join(path[:i]))
        if hasattr(layer, "base_layer") and path[i] != "base_layer":
            raise UsageError(
                f"{name} belongs to an adapter that is no sum of products B A; {_MERGE}"
            )


def weights_norm(model: nn.Module, space: ParamSpace) -> float:
    r"""||W||, the 2-norm of the weights of a space as the network multiplies with them.

    $$\lVert W \rVert^2 = \sum_l \lVert W_l + \textstyle\sum_a s_a B_a A_a \rVert^2$$

    Args:
        model: with or without adapters; those that are active and not merged are added.
        space: of weights, not of the factors of adapters.
    """
    total = 0.0
    for name, parameter in zip(space.names, space.parameters(model), strict=True):
        weight = parameter.detach().double()
        prefix, adapted, _ = name.rpartition(".base_layer.weight")
        for change in _added(model.get_submodule(prefix)) if adapted else ():
            weight = weight + change.double()
        total += float(weight.square().sum())
    return math.sqrt(total)


def _added(layer: Any) -> Iterator[Tensor]:
    """What PEFT's layer adds to its weight when it runs."""
    if layer.disable_adapters:
        return
    for adapter in layer.active_adapters:
        if adapter not in layer.merged_adapters and adapter in layer.scaling:
            yield layer.get_delta_weight(adapter).detach()


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


def _factors(
    model: nn.Module,
    space: ParamSpace,
    step: Tensor,
    start: Float[Tensor, " d"] | None = None,
    *,
    kinds: tuple[str, ...] = ("lora_A",),
) -> Iterator[tuple[str, _Factors]]:
    """The factors of every adapted module with their steps, at ``start`` or as they are."""
    device = next(model.parameters()).device if start is None else step.device
    own = dict(model.named_parameters(remove_duplicate=False))
    parts = space.unflatten(step.detach().float().to(device))
    before = own if start is None else own | space.unflatten(start)
    pairs = [sorted((name, other)) for name in parts if (other := other_half(name))]
    halves = dict.fromkeys((a, b) for a, b in pairs if any(f".{kind}." in a for kind in kinds))
    if not halves:
        raise UsageError("the parameter space holds no LoRA adapter (no name with .lora_A.)")
    for name, other in halves:
        prefix, kind, rest = re.split(r"\.(lora_A|lora_embedding_A)\.", name)
        module: Any = model.get_submodule(prefix)
        adapter = rest.split(".")[0]
        if (
            not own.keys() >= {name, other}
            or own[name].ndim != 2
            or adapter in getattr(module, "lora_magnitude_vector", {})
        ):
            raise UsageError(f"{prefix} carries no plain LoRA adapter of a linear module")
        turned = kind == "lora_embedding_A" or bool(module.fan_in_fan_out)
        scale = float(module.scaling[adapter])
        _refuse_other_product(
            module, adapter, Factors(own[other].detach(), own[name].detach(), scale, turned), prefix
        )
        A, B = (before[n].detach().float().to(device) for n in (name, other))
        a_step, b_step = parts.get(name, torch.zeros_like(A)), parts.get(other, torch.zeros_like(B))
        yield prefix, _Factors(B, A, b_step, a_step, scale, turned)


def _refuse_other_product(module: Any, adapter: str, factors: Factors, prefix: str) -> None:
    """Raise ValueError where PEFT adds something else to a weight than scale * B A."""
    added, expected = module.get_delta_weight(adapter).detach().float(), factors.product()
    # A product in the dtype of half-precision factors is rounded to about 1%.
    if added.shape != expected.shape or (added - expected).norm() > 0.05 * added.norm():
        raise UsageError(
            f"the adapter on {prefix} adds something else to its weight than scale * B A; {_MERGE}"
        )
