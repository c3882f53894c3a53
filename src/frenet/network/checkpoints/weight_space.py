"""Changes of adapters as changes of the weights, exact and to first order."""

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
    """Whether a vector of the space moves weights, or factors of LoRA."""
    return "factors" if any(other_half(name) for name in space.names) else "weights"


def weight_change(
    model: nn.Module,
    space: ParamSpace,
    step: Float[Tensor, " d"],
    start: Float[Tensor, " d"] | None = None,
) -> tuple[Shapes, Read]:
    r"""The exact change of the network's weights by a step of the parameters of a space.

    $$\Delta W = s\,(B_1 A_1 - B_0 A_0) = s\,(\delta B\, A_1 + B_0\, \delta A)$$

    The right side is computed, because the difference of two float32 products would cancel. A
    parameter of the space that is no factor of LoRA changes by its own step.

    Args:
        model: the model with the adapters; it does not change.
        space: the parameters that move.
        step: a vector of the space, from theta_0 to theta_1.
        start: theta_0; None: the current parameters of the model. A factor outside the space keeps
            its value in the model.

    Returns:
        Shapes of the changed weights, by their names in ``model`` (PEFT's wrapper calls an adapted
        weight ``base_layer.weight``), and a function that returns the float32 change of a weight.

    Raises:
        ValueError: an adapter is no sum of products B A, changes one use of a tied weight, or has
            its weight in another form.
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
    parameters = dict(model.named_parameters(remove_duplicate=False))
    products: Products = {}
    for prefix, f in _factors(model, space, step, start, kinds=("lora_A", "lora_embedding_A")):
        name = f"{prefix}.base_layer.weight"
        parts = (
            Factors(f.b_step, f.A + f.a_step, f.scale, f.turned),
            Factors(f.B, f.a_step, f.scale, f.turned),
        )
        if name not in parameters or tuple(parameters[name].shape) != parts[0].shape:
            raise UsageError(
                f"{prefix} does not store its weight as one matrix of shape {parts[0].shape}: load "
                "the model without quantisation, and adapt no parameters of several matrices "
                "(target_parameters of peft)"
            )
        refuse_tied(model, parameters[name], prefix)
        products.setdefault(name, []).extend(parts)
    return products


def _refuse_inside_adapter(model: nn.Module, name: str) -> None:
    """Raise ValueError for a parameter of an adapter that is no factor of a product B A."""
    path = name.split(".")
    for i in range(len(path)):
        layer = model.get_submodule(".".join(path[:i]))
        if hasattr(layer, "base_layer") and path[i] != "base_layer":
            raise UsageError(
                f"{name} belongs to an adapter that is no sum of products B A; {_MERGE}"
            )


def weights_norm(model: nn.Module, space: ParamSpace) -> float:
    r"""||W||, the 2-norm of the weights of a space as the network uses them.

    $$\lVert W \rVert^2 = \sum_l \lVert W_l + \textstyle\sum_a s_a B_a A_a \rVert^2$$

    Args:
        model: a model; active adapters that are not merged are added to its weights.
        space: a space of weights, not of factors of adapters.
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
        model: a model with one LoRA adapter.
        space: a space with both factors of the adapters, or with one of them (the other is fixed).
        gradient: a vector of the space: a gradient, or a step.

    Returns:
        For each adapted module its ``(out, in)`` matrix, float32, also if the model stores the
        weight transposed.

    Raises:
        ValueError: the space has no adapter, or one that is no plain LoRA.
    """
    return {
        name: f.scale * (f.b_step @ f.A + f.B @ f.a_step)
        for name, f in _factors(model, space, gradient)
    }


def update_ranks(
    model: nn.Module, space: ParamSpace, gradient: Float[Tensor, " d"], *, tolerance: float = 1e-6
) -> dict[str, int]:
    """Numerical rank of each module's ``weight_space_gradient``, without forming it.

    The product ``[dB B] [A; dA]`` has the same singular values as the product of the two 2r x 2r
    triangular factors; values below ``tolerance`` times the largest do not count.
    """
    ranks = {}
    for name, f in _factors(model, space, gradient):
        left = torch.linalg.qr(torch.cat([f.b_step, f.B], dim=1).double()).R
        right = torch.linalg.qr(torch.cat([f.A, f.a_step], dim=0).double().T).R
        S = torch.linalg.svdvals(left @ right.T)
        ranks[name] = int((tolerance * S.max() < S).sum())
    return ranks


class AdaptedModule(NamedTuple):
    """A module with one LoRA adapter.

    Attributes:
        prefix: name of the module.
        A: name of the parameter A, (r, i).
        B: name of the parameter B, (o, r).
        scale: alpha / r.
        turned: the weight is stored as (i, o).
    """

    prefix: str
    A: str
    B: str
    scale: float
    turned: bool


def adapted_modules(
    model: nn.Module, space: ParamSpace, *, kinds: tuple[str, ...] = ("lora_A",)
) -> Iterator[AdaptedModule]:
    """The modules with a factor in a space, in the order of the space.

    Args:
        model: a model with LoRA adapters.
        space: holds both factors of an adapter, or one of them.
        kinds: names of the first factor; ``lora_embedding_A`` is that of embeddings.

    Raises:
        ValueError: the space has no adapter, or one that is no plain LoRA.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    pairs = [sorted((name, other)) for name in space.names if (other := other_half(name))]
    halves = dict.fromkeys((a, b) for a, b in pairs if any(f".{kind}." in a for kind in kinds))
    if not halves:
        raise UsageError("the parameter space has no LoRA adapter (no name with .lora_A.)")
    for name, other in halves:
        prefix, kind, rest = re.split(r"\.(lora_A|lora_embedding_A)\.", name)
        module: Any = model.get_submodule(prefix)
        adapter = rest.split(".")[0]
        if (
            not parameters.keys() >= {name, other}
            or parameters[name].ndim != 2
            or adapter in getattr(module, "lora_magnitude_vector", {})
        ):
            raise UsageError(f"{prefix} has no plain LoRA adapter of a linear module")
        turned = kind == "lora_embedding_A" or bool(module.fan_in_fan_out)
        scale = float(module.scaling[adapter])
        b_now, a_now = (parameters[n].detach() for n in (other, name))
        _refuse_other_product(module, adapter, Factors(b_now, a_now, scale, turned), prefix)
        yield AdaptedModule(prefix, name, other, scale, turned)


def _factors(
    model: nn.Module,
    space: ParamSpace,
    step: Tensor,
    start: Float[Tensor, " d"] | None = None,
    *,
    kinds: tuple[str, ...] = ("lora_A",),
) -> Iterator[tuple[str, _Factors]]:
    """The factors of every adapted module with their steps, at ``start`` or now."""
    device = next(model.parameters()).device if start is None else step.device
    parameters = dict(model.named_parameters(remove_duplicate=False))
    parts = space.unflatten(step.detach().float().to(device))
    before = parameters if start is None else parameters | space.unflatten(start)
    for m in adapted_modules(model, space, kinds=kinds):
        A, B = (before[name].detach().float().to(device) for name in (m.A, m.B))
        a_step = parts.get(m.A, torch.zeros_like(A))
        b_step = parts.get(m.B, torch.zeros_like(B))
        yield m.prefix, _Factors(B, A, b_step, a_step, m.scale, m.turned)


def _refuse_other_product(module: Any, adapter: str, factors: Factors, prefix: str) -> None:
    """Raise ValueError if PEFT adds something else to a weight than scale * B A."""
    added, expected = module.get_delta_weight(adapter).detach().float(), factors.product()
    # A product in the dtype of half-precision factors is rounded to about 1%.
    if added.shape != expected.shape or (added - expected).norm() > 0.05 * added.norm():
        raise UsageError(
            f"the adapter on {prefix} adds something else to its weight than scale * B A; {_MERGE}"
        )
