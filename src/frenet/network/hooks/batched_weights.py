"""Many candidates for some parameters, evaluated in one forward pass of one model.

A module with different parameters for each candidate gets the rows of all candidates at once and
multiplies each group of rows by the candidate's values; a LoRA layer does so for both of its
factors. All other modules run unchanged, on one large batch. Blocks before the first module with
different parameters are the same for all candidates and run once.

A pass of b rows and one of b + 1 show which dimension of a tensor is the batch dimension: another
dimension may have size b by chance.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from frenet._errors import UsageError
from frenet.geometry.linalg import root_mean_square
from frenet.network.blocks import block_list
from frenet.network.hooks.batched_adapters import (
    CONV1D,
    Factors,
    Product,
    adapted_forward,
    plain_adapters,
    type_name,
)
from frenet.network.measuring import Forward, patched
from frenet.network.space import ParamSpace
from frenet.network.tasks import base_model

Values = dict[str, Tensor]
# The place of a tensor in a call: a position or a keyword, then places in tuples and dicts.
Path = tuple[int | str, ...]
# Shapes of the tensors of every call of every module, by the module's name.
Shapes = dict[str, list[dict[Path, tuple[int, ...]]]]


class LayoutError(UsageError):
    """Candidates cannot share a forward pass of this model; names the module and the reason."""


class Axis(NamedTuple):
    """The batch dimension of a tensor, and its entries for each row."""

    dim: int
    entries: int


class Layout(NamedTuple):
    """The batch dimensions of the tensors that modules are called with.

    Attributes:
        rows: number of rows of the observed batch.
        taken: the batch dimension by module name and place of the tensor; None for a tensor that is
            the same for any number of rows.
        starts: names of the modules that get copies of every row.
    """

    rows: int
    taken: Mapping[str, Mapping[Path, Axis | None]]
    starts: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: int, first: Shapes, second: Shapes, starts: Iterable[str] = ()) -> "Layout":
        """The layout, from the shapes of a pass of ``rows`` rows and of a pass of one row more.

        Raises:
            LayoutError: a module is not called, or its tensors do not grow with the rows.
        """
        taken: dict[str, dict[Path, Axis | None]] = {}
        for name, calls in first.items():
            others = second[name]
            if not calls:
                raise LayoutError(
                    f"{name} is never called: its weights are read directly, or not at all"
                )
            if [call.keys() for call in calls] != [call.keys() for call in others]:
                raise LayoutError(f"{name} is called in another way if there are more rows")
            axes = taken.setdefault(name, {})
            for call, other in zip(calls, others, strict=True):
                for path, shape in call.items():
                    axis = _axis(name, rows, shape, other[path])
                    if axes.setdefault(path, axis) != axis:
                        raise LayoutError(f"the batch dimension of {name} differs between calls")
        return cls(rows, taken, tuple(starts))


def _axis(name: str, rows: int, shape: tuple[int, ...], more: tuple[int, ...]) -> Axis | None:
    """The one dimension that grows with the rows."""
    if shape == more:
        return None
    grown = [i for i, sizes in enumerate(zip(shape, more, strict=False)) if sizes[0] != sizes[1]]
    if len(shape) == len(more) and len(grown) == 1:
        dim = grown[0]
        entries, left = divmod(shape[dim], rows)
        if not left and more[dim] == entries * (rows + 1):
            return Axis(dim, entries)
    raise LayoutError(
        f"{name} is called with a tensor of shape {shape} for {rows} rows and of {more} for "
        f"{rows + 1}, which has no batch dimension"
    )


class Agreement(NamedTuple):
    """Root mean square error of two candidates in one pass, against each alone, and its limit."""

    error: float
    rounding: float

    @classmethod
    def of(
        cls, together: Float[Tensor, "2 *s"], alone: Float[Tensor, "2 *s"], dtype: torch.dtype
    ) -> "Agreement":
        """The agreement of logits of a model of this dtype.

        The limit is a few units in the last place, plus a small share of the change between the
        candidates: their choice of experts may depend on the last digit.
        """
        eps = torch.finfo(dtype).eps
        change = root_mean_square(alone[0] - alone[1])
        rounding = 4 * eps * root_mean_square(alone) + eps**0.5 / 4 * change
        return cls(root_mean_square(together - alone), rounding)

    def __bool__(self) -> bool:
        """Whether the difference is rounding."""
        return self.error <= self.rounding


@contextmanager
def watched(modules: Mapping[str, nn.Module]) -> Iterator[Shapes]:
    """Record the shapes of the tensors that these modules are called with."""
    seen: Shapes = {name: [] for name in modules}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            call: dict[Path, tuple[int, ...]] = {}

            def note(path: Path, value: Tensor) -> Tensor:
                call[path] = tuple(value.shape)
                return value

            _mapped((*args, kwargs), note)
            seen[name].append(call)

        return hook

    with ExitStack() as stack:
        for name, module in modules.items():
            handle = module.register_forward_pre_hook(watch(name), with_kwargs=True)
            stack.callback(handle.remove)
        yield seen


def _mapped(value: Any, change: Callable[[Path, Tensor], Tensor], path: Path = ()) -> Any:
    """Nested tuples, lists and dicts with every tensor changed."""
    if isinstance(value, Tensor):
        return change(path, value)
    if isinstance(value, tuple | list):
        parts = [_mapped(part, change, (*path, i)) for i, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if type(value) is dict:
        return {key: _mapped(part, change, (*path, key)) for key, part in value.items()}
    return value


def parts_to_watch(model: nn.Module, space: ParamSpace) -> dict[str, nn.Module]:
    """The modules that a ``Layout`` for ``grouped`` has to describe, by name."""
    owners = {name: module for name, (module, _) in _owners(model, space).items()}
    return {**owners, **starts(model, space)}


class Parts(NamedTuple):
    """The modules that get another forward for a group, by name, as ``parts_of`` finds them.

    Attributes:
        owners: modules with selected parameters, and {short name: full name} of these.
        layers: LoRA layers with the active adapters of which an owner is a factor.
    """

    owners: "dict[str, tuple[nn.Module, dict[str, str]]]"
    layers: dict[str, tuple[Any, list[Factors]]]

    @property
    def fused(self) -> set[str]:
        """The names of the factors that run as a part of their layer."""
        found = (factors for _, factors in self.layers.values())
        return {half for factors in found for each in factors for half in each.halves}


def parts_of(model: nn.Module, space: ParamSpace) -> Parts:
    """What ``grouped`` replaces; the same for all groups, and many look-ups of names."""
    owners = _owners(model, space)
    return Parts(owners, _lora_layers(model, owners))


@contextmanager
def grouped(
    model: nn.Module,
    space: ParamSpace,
    thetas: Float[Tensor, "n d"],
    *,
    layout: Layout,
    parts: Parts | None = None,
) -> Iterator[None]:
    """Let a forward pass of b rows give the outputs of n candidates, n * b rows.

    Row i * b + j of the logits is row j of the batch for candidate i.

    Args:
        model: the network, for which ``can_group(model, space)`` holds; it does not change.
        space: the d parameters that differ.
        thetas: the values of the candidates, float32.
        layout: the layout of the modules of ``parts_to_watch``, for batches of b rows.
        parts: the result of ``parts_of``, for callers with many groups.

    Raises:
        LayoutError: a parameter belongs to a module that cannot be grouped, or a module is called
            with another number of rows than the layout says.
    """
    count, tensors = len(thetas), space.unflatten(thetas)
    owners, layers = parts = parts or parts_of(model, space)
    with ExitStack() as stack:
        alone = {name: owner for name, owner in owners.items() if name not in parts.fused}
        for name, (module, parameters) in alone.items():
            values = {
                key: tensors[full].to(getattr(module, key).dtype)
                for key, full in parameters.items()
            }
            forward = _own_forward(name, module, values, count, layout)
            stack.enter_context(patched(module, forward))
        for name, (layer, factors) in layers.items():
            products = [_product(each, tensors, count) for each in factors]
            forward = adapted_forward(layer.base_layer, products, count)
            moved = next(half for each in factors for half in each.halves if half in owners)
            axis = _axis_of_input(moved, owners[moved][0], layout)
            stack.enter_context(patched(layer, _expecting(name, count, layout, axis, forward)))
        starting = {name: model.get_submodule(name) for name in layout.starts}
        stack.enter_context(copied(starting, count, layout))
        yield


def _lora_layers(
    model: nn.Module, owners: Mapping[str, Any]
) -> dict[str, tuple[Any, list[Factors]]]:
    """The LoRA layers of which an owner is a factor, by name, with their active adapters."""
    # The name of a factor is that of its layer, of the half, and of the adapter.
    names = dict.fromkeys(name.rsplit(".", 2)[0] for name in owners)
    layers = {name: model.get_submodule(name) for name in names}
    found = {name: (layer, plain_adapters(name, layer)) for name, layer in layers.items()}
    return {
        name: (layer, factors)
        for name, (layer, factors) in found.items()
        if any(half in owners for each in factors for half in each.halves)
    }


def _product(factors: Factors, tensors: Mapping[str, Tensor], count: int) -> Product:
    """The factors of all candidates, transposed in memory: small products are faster so."""
    weights = []
    for half, module in zip(factors.halves, factors.modules, strict=True):
        own = module.weight
        values = tensors.get(f"{half}.weight")
        if values is None:
            values = own.expand(count, -1, -1)
        weights.append(values.to(own.dtype).transpose(1, 2).contiguous())
    first, second = weights
    return Product(first, second, factors.scale)


def _own_forward(
    name: str, module: nn.Module, values: Values, count: int, layout: Layout
) -> Forward:
    """The grouped forward of a module by itself."""
    make = _forward_of(module)
    if make is None:
        raise LayoutError(f"{name} is a {type(module).__name__}, which cannot be grouped")
    axis = _axis_of_input(name, module, layout)
    forward = make(module, values, Shape(count, layout.rows, axis is not None))
    return _expecting(name, count, layout, axis, forward)


def _axis_of_input(name: str, module: nn.Module, layout: Layout) -> Axis | None:
    """The batch dimension of a layer's only input; None for positions that all rows share."""
    axes = layout.taken[name]
    axis = axes.get((0,))
    if len(axes) != 1 or (axis is None and type(module) is not nn.Embedding):
        raise LayoutError(f"{name} is called with an input that is the same for all rows")
    if axis is not None and axis.dim != 0:
        raise LayoutError(f"{name} is called with the rows along dimension {axis.dim}")
    return axis


def _expecting(
    name: str, count: int, layout: Layout, axis: Axis | None, forward: Forward
) -> Forward:
    """The same forward, with a check that the input has the rows of all candidates."""
    if axis is None:
        return forward
    size = count * layout.rows * axis.entries

    def run(x: Tensor) -> Tensor:
        if x.shape[0] != size:
            raise LayoutError(f"{name} is called with {x.shape[0]} rows instead of {size}")
        return forward(x)

    return run


def can_group(model: nn.Module, space: ParamSpace) -> bool:
    """Whether every selected parameter is untied and belongs to a module that ``grouped`` supports.

    A second module reads a tied parameter, and would still use the old values. Only a trial shows
    whether the model uses its modules as ``grouped`` expects.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen = {id(parameters[name]) for name in space.names}
    tied = sum(id(parameter) in chosen for parameter in parameters.values()) > len(chosen)
    return not tied and all(_forward_of(m) for m, _ in _owners(model, space).values())


def shares_blocks(model: nn.Module, space: ParamSpace) -> bool:
    """Whether some blocks come before the first parameter that differs, so that they run once."""
    return next(iter(starts(model, space).values())) in block_list(model)[1:]


def only_lora(model: nn.Module, space: ParamSpace) -> bool:
    """Whether all selected parameters are factors of LoRA layers that PEFT computes plainly."""
    parts = parts_of(model, space)
    return parts.owners.keys() <= parts.fused


def _owners(model: nn.Module, space: ParamSpace) -> dict[str, tuple[nn.Module, dict[str, str]]]:
    """Modules that own selected parameters: by name, with {short name: full name}."""
    owners: dict[str, tuple[nn.Module, dict[str, str]]] = {}
    for full in space.names:
        owner, _, short = full.rpartition(".")
        owners.setdefault(owner, (model.get_submodule(owner), {}))[1][short] = full
    return owners


class Shape(NamedTuple):
    """Number of candidates, rows of the batch for each, and whether the input has rows."""

    candidates: int
    rows: int
    by_row: bool


Maker = Callable[[Any, Values, Shape], Forward]


def _forward_of(module: nn.Module) -> Maker | None:
    """The function that makes the grouped forward of a module of this type."""
    if type_name(module) == CONV1D:
        return _conv1d
    makers: Mapping[type[nn.Module], Maker] = {
        nn.Linear: _linear,
        nn.LayerNorm: _layer_norm,
        nn.Embedding: _embedding,
    }
    # Subclasses may compute something else.
    return makers.get(type(module))


def _split(x: Tensor, count: int) -> Tensor:
    """(count * b, ..., h) as (count, everything else, h)."""
    return x.reshape(count, -1, x.shape[-1])


def _linear(module: nn.Linear, values: Values, shape: Shape) -> Forward:
    weight, bias = values.get("weight"), values.get("bias", module.bias)

    def forward(x: Tensor) -> Tensor:
        if weight is None:
            out = F.linear(x, module.weight)
        else:
            parts = torch.bmm(_split(x, shape.candidates), weight.transpose(1, 2))
            out = parts.view(*x.shape[:-1], weight.shape[1])
        return out if bias is None else _add(out, bias, shape.candidates)

    return forward


def _conv1d(module: Any, values: Values, shape: Shape) -> Forward:
    """GPT-2's linear layer, which stores its weight as (in, out)."""
    weight, bias = values.get("weight"), values.get("bias", module.bias)

    def forward(x: Tensor) -> Tensor:
        if weight is None:
            out = x @ module.weight
        else:
            out = torch.bmm(_split(x, shape.candidates), weight).view(
                *x.shape[:-1], weight.shape[2]
            )
        return _add(out, bias, shape.candidates)

    return forward


def _layer_norm(module: nn.LayerNorm, values: Values, shape: Shape) -> Forward:
    weight, bias = values.get("weight", module.weight), values.get("bias", module.bias)

    def forward(x: Tensor) -> Tensor:
        out = F.layer_norm(x, module.normalized_shape, eps=module.eps)
        if weight is not None:
            scale = weight if weight.dim() == 1 else weight[:, None]
            out = (_split(out, shape.candidates) * scale).view(x.shape)
        return out if bias is None else _add(out, bias, shape.candidates)

    return forward


def _embedding(module: nn.Embedding, values: Values, shape: Shape) -> Forward:
    table = values["weight"]

    def forward(ids: Tensor) -> Tensor:
        if not shape.by_row:
            # Positions are shared by all rows, as a vector or as one row.
            return table[:, ids.reshape(ids.shape[-1])].repeat_interleave(shape.rows, dim=0)
        group = torch.arange(shape.candidates, device=ids.device)
        group = group.repeat_interleave(len(ids) // shape.candidates)
        return table[group.view(-1, *[1] * (ids.dim() - 1)), ids]

    return forward


def _add(out: Tensor, bias: Tensor, count: int) -> Tensor:
    """Add one bias, or one bias per group."""
    if bias.dim() == 1:
        return out + bias
    return (_split(out, count) + bias[:, None]).view(out.shape)


def starts(model: nn.Module, space: ParamSpace) -> dict[str, nn.Module]:
    """The modules that get copies of every row: the blocks from the first one with an owner.

    If an owner comes before the blocks, or all come after them, it is the whole model.
    """
    owners = [module for module, _ in _owners(model, space).values()]
    stack = list(block_list(model))
    order = {id(module): i for i, module in enumerate(base_model(model).modules())}
    inside = [{id(m) for m in block.modules()} for block in stack]
    outside = [m for m in owners if not any(id(m) in block for block in inside)]
    first = next((i for i, block in enumerate(inside) if any(id(m) in block for m in owners)), None)
    if first is None or any(order[id(m)] < order[id(stack[0])] for m in outside):
        return named(model, [base_model(model)])
    return named(model, stack[first:])


def named(model: nn.Module, modules: Iterable[nn.Module]) -> dict[str, nn.Module]:
    """These modules of the model, in their order, by name."""
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(module)]: module for module in modules}


@contextmanager
def copied(starts: Mapping[str, nn.Module], count: int, layout: Layout) -> Iterator[None]:
    """Give these modules ``count`` copies of every row of their inputs.

    Raises:
        LayoutError: a tensor has another number of rows than the layout says.
    """
    # All blocks get the same mask and positions. The originals stay alive, so that no other tensor
    # gets their id.
    copies: dict[tuple[int, Axis], tuple[Tensor, Tensor]] = {}

    def copy_for(name: str) -> Callable[..., Any]:
        axes = layout.taken[name]

        def copy(path: Path, value: Tensor) -> Tensor:
            if path not in axes:
                raise LayoutError(f"{name} is called with an input that the layout does not have")
            if (axis := axes[path]) is None:
                return value
            size = axis.entries * layout.rows
            if value.shape[axis.dim] == count * size:  # one candidate, or from a block with copies
                return value
            if value.shape[axis.dim] != size:
                raise LayoutError(f"{name} is called with {value.shape[axis.dim]} rows, not {size}")
            if (id(value), axis) not in copies:
                times = [count if i == axis.dim else 1 for i in range(value.dim())]
                copies[id(value), axis] = value, value.repeat(*times)
            return copies[id(value), axis][1]

        def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
            *args, kwargs = _mapped((*args, kwargs), copy)
            return tuple(args), kwargs

        return hook

    with ExitStack() as stack:
        for name, module in starts.items():
            hooked = module.register_forward_pre_hook(copy_for(name), with_kwargs=True)
            stack.callback(hooked.remove)
        yield
