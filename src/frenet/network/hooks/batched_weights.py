"""Many candidates for some parameters, evaluated in one forward pass of one model.

A module whose parameters differ between candidates sees the rows of all candidates at once and
multiplies each group of rows by its own values; all other modules run as ever, on one large batch.
Blocks before the first such module are the same for all candidates and run once.

Which dimension of a tensor holds the rows is observed, in one pass of b rows and one of b + 1: a
dimension that only happens to be of size b stays as it is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from frenet._errors import UsageError
from frenet.geometry.linalg import root_mean_square
from frenet.network.blocks import block_list
from frenet.network.measuring import Forward, patched
from frenet.network.space import ParamSpace
from frenet.network.tasks import base_model

Values = dict[str, Tensor]
# Where a tensor stands in a call: a position or a keyword, then places in tuples and dicts.
Path = tuple[int | str, ...]
# Shapes of the tensors of every call of every module, by the module's name.
Shapes = dict[str, list[dict[Path, tuple[int, ...]]]]


class LayoutError(UsageError):
    """Candidates cannot share a forward pass of this model; says where and why."""


class Axis(NamedTuple):
    """The dimension of a tensor that holds the rows of a batch, and its entries for each row."""

    dim: int
    entries: int


class Layout(NamedTuple):
    """Where modules find the rows of a batch in the tensors that they are called with.

    Attributes:
        rows: of the batch that it was observed with.
        taken: by the name of the module and the place of the tensor; None for a tensor that is the
            same for any number of rows.
    """

    rows: int
    taken: Mapping[str, Mapping[Path, Axis | None]]

    @classmethod
    def of(cls, rows: int, first: Shapes, second: Shapes) -> "Layout":
        """The layout that the shapes of a pass of ``rows`` rows and of one of one more row show.

        Raises:
            LayoutError: a module is not called, or its tensors do not grow with the rows.
        """
        taken: dict[str, dict[Path, Axis | None]] = {}
        for name, calls in first.items():
            others = second[name]
            if not calls:
                raise LayoutError(
                    f"{name} is never called: its weights are read past it, or not at all"
                )
            if [call.keys() for call in calls] != [call.keys() for call in others]:
                raise LayoutError(f"{name} is called in another way where there are more rows")
            found = taken.setdefault(name, {})
            for call, other in zip(calls, others, strict=True):
                for path, shape in call.items():
                    axis = _axis(name, rows, shape, other[path])
                    if found.setdefault(path, axis) != axis:
                        raise LayoutError(f"{name} finds the rows elsewhere from call to call")
        return cls(rows, taken)


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
        f"{rows + 1}, in which each row has no part of its own"
    )


class Agreement(NamedTuple):
    """How far two candidates in one pass are from each alone, root mean square, and may be."""

    error: float
    rounding: float

    @classmethod
    def of(
        cls, together: Float[Tensor, "2 *s"], alone: Float[Tensor, "2 *s"], dtype: torch.dtype
    ) -> "Agreement":
        """Of the logits that a model of this dtype gives.

        Rounding is a few units in the last place, and a small part of what the candidates change:
        their choice of experts may turn on the last digit.
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
    """Inside, the shapes of the tensors that these modules are called with are noted."""
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
    """The same nest of tuples, lists and dicts with every tensor changed."""
    if isinstance(value, Tensor):
        return change(path, value)
    if isinstance(value, tuple | list):
        parts = [_mapped(part, change, (*path, i)) for i, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if type(value) is dict:
        return {key: _mapped(part, change, (*path, key)) for key, part in value.items()}
    return value


def parts_to_watch(model: nn.Module, space: ParamSpace) -> dict[str, nn.Module]:
    """The modules whose calls a ``Layout`` for ``grouped`` has to tell of, by name."""
    owners = _owners(model, space)
    return {
        **{name: module for name, (module, _) in owners.items()},
        **_starts(model, [module for module, _ in owners.values()]),
    }


@contextmanager
def grouped(
    model: nn.Module, space: ParamSpace, thetas: Float[Tensor, "n d"], *, layout: Layout
) -> Iterator[None]:
    """Inside, a forward pass of b rows gives the outputs of n candidates, n * b rows.

    Row i * b + j of the logits is row j of the batch under candidate i.

    Args:
        model: the network, which has to be ``can_group(model, space)``; its parameters stay as
            they are, and nothing is left behind.
        space: the d parameters that differ.
        thetas: the values of the candidates, float32.
        layout: of the modules of ``parts_to_watch``, for the b rows of every batch that is passed.

    Raises:
        LayoutError: a parameter belongs to a module that cannot be grouped, or a module is called
            with other rows than the layout says.
    """
    count = len(thetas)
    owners = _owners(model, space)
    tensors = space.unflatten(thetas)
    with ExitStack() as stack:
        for name, (module, own) in owners.items():
            make = _forward_of(module)
            if make is None:
                raise LayoutError(f"{name} is a {type(module).__name__}, which cannot be grouped")
            values = {
                key: tensors[full].to(getattr(module, key).dtype) for key, full in own.items()
            }
            axis = _axis_of_input(name, module, layout)
            shape = Shape(count, layout.rows, axis is not None)
            forward = make(module, values, shape)
            if axis is not None:
                forward = _expecting(name, count * layout.rows * axis.entries, forward)
            stack.enter_context(patched(module, forward))
        starts = _starts(model, [module for module, _ in owners.values()])
        stack.enter_context(copied(starts, count, layout))
        yield


def _axis_of_input(name: str, module: nn.Module, layout: Layout) -> Axis | None:
    """Where the one input of a layer holds the rows; None for positions that all rows share."""
    axes = layout.taken[name]
    axis = axes.get((0,))
    if len(axes) != 1 or (axis is None and type(module) is not nn.Embedding):
        raise LayoutError(f"{name} is called with something that is the same for all rows")
    if axis is not None and axis.dim != 0:
        raise LayoutError(f"{name} is called with the rows along dimension {axis.dim}")
    return axis


def _expecting(name: str, size: int, forward: Forward) -> Forward:
    """The same forward, once the input is seen to hold the rows of all candidates."""

    def run(x: Tensor) -> Tensor:
        if x.shape[0] != size:
            raise LayoutError(f"{name} is called with {x.shape[0]} rows in place of {size}")
        return forward(x)

    return run


def can_group(model: nn.Module, space: ParamSpace) -> bool:
    """Whether every selected parameter belongs to a module that ``grouped`` knows, untied.

    A tied parameter is read by a second module, which would go on with the old values. Whether the
    modules are used as ``grouped`` expects is seen by a trial only.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen = {id(parameters[name]) for name in space.names}
    tied = sum(id(parameter) in chosen for parameter in parameters.values()) > len(chosen)
    return not tied and all(_forward_of(m) for m, _ in _owners(model, space).values())


def shares_blocks(model: nn.Module, space: ParamSpace) -> bool:
    """Whether some blocks stand before the first parameter that differs, so that they run once."""
    starts = _starts(model, [module for module, _ in _owners(model, space).values()])
    return next(iter(starts.values())) in block_list(model)[1:]


def _owners(model: nn.Module, space: ParamSpace) -> dict[str, tuple[nn.Module, dict[str, str]]]:
    """Modules that own selected parameters: by name, with {own name: full name}."""
    found: dict[str, tuple[nn.Module, dict[str, str]]] = {}
    for full in space.names:
        owner, _, own = full.rpartition(".")
        found.setdefault(owner, (model.get_submodule(owner), {}))[1][own] = full
    return found


class Shape(NamedTuple):
    """How many candidates there are, rows of the batch for each, and whether the input has rows."""

    candidates: int
    rows: int
    by_row: bool


Maker = Callable[[Any, Values, Shape], Forward]


def _forward_of(module: nn.Module) -> Maker | None:
    """What makes the grouped forward of a module of this type."""
    kind = type(module)
    # By name: transformers takes seconds to import, and its layer is only there if it has been.
    if f"{kind.__module__}.{kind.__name__}" == "transformers.pytorch_utils.Conv1D":
        return _conv1d
    makers: Mapping[type[nn.Module], Maker] = {
        nn.Linear: _linear,
        nn.LayerNorm: _layer_norm,
        nn.Embedding: _embedding,
    }
    # Subclasses may compute something else.
    return makers.get(kind)


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
    """GPT-2's linear layer, which keeps its weight as (in, out)."""
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
            # Positions come once for all rows, as a vector or as one row.
            return table[:, ids.reshape(ids.shape[-1])].repeat_interleave(shape.rows, dim=0)
        group = torch.arange(shape.candidates, device=ids.device)
        group = group.repeat_interleave(len(ids) // shape.candidates)
        return table[group.view(-1, *[1] * (ids.dim() - 1)), ids]

    return forward


def _add(out: Tensor, bias: Tensor, count: int) -> Tensor:
    """Add one bias, or each group's own."""
    if bias.dim() == 1:
        return out + bias
    return (_split(out, count) + bias[:, None]).view(out.shape)


def _starts(model: nn.Module, owners: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """The modules that take copies of every row: the blocks from the first with an owner on.

    Where an owner stands before the blocks, or all stand behind them, it is the whole model.
    """
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
    """Inside, these modules get ``count`` copies of every row of what they are called with.

    Raises:
        LayoutError: a tensor has other rows than the layout says.
    """

    def copy_for(name: str) -> Callable[..., Any]:
        axes = layout.taken[name]

        def copy(path: Path, value: Tensor) -> Tensor:
            if path not in axes:
                raise LayoutError(f"{name} is called with something that it was not called with")
            if (axis := axes[path]) is None:
                return value
            size = axis.entries * layout.rows
            if value.shape[axis.dim] == count * size:  # from a block that got copies
                return value
            if value.shape[axis.dim] != size:
                raise LayoutError(f"{name} is called with other rows than {size}")
            return value.repeat(*[count if i == axis.dim else 1 for i in range(value.dim())])

        def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
            *args, kwargs = _mapped((*args, kwargs), copy)
            return tuple(args), kwargs

        return hook

    with ExitStack() as stack:
        for name, module in starts.items():
            hooked = module.register_forward_pre_hook(copy_for(name), with_kwargs=True)
            stack.callback(hooked.remove)
        yield
