"""Many candidates for some parameters, evaluated in one forward pass of one model.

A module whose parameters differ between candidates sees the rows of all candidates at once and
multiplies each group of rows by its own values; all other modules run as ever, on one large batch.
Blocks before the first such module are the same for all candidates and run once.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from frenet.network.blocks import block_list
from frenet.network.context import Forward, patched
from frenet.network.space import ParamSpace
from frenet.network.tasks import base_model

Values = dict[str, Tensor]


class Shape(NamedTuple):
    """How many candidates there are, and rows of the batch for each."""

    candidates: int
    rows: int


@contextmanager
def grouped(
    model: nn.Module, space: ParamSpace, thetas: Float[Tensor, "n d"], *, rows: int
) -> Iterator[None]:
    """Inside, a forward pass of ``rows`` rows gives the outputs of n candidates, n * rows rows.

    Row i * rows + j of the logits is row j of the batch under candidate i.

    Args:
        model: the network, which has to be ``can_group(model, space)``; its parameters stay as
            they are, and nothing is left behind.
        space: the d parameters that differ.
        thetas: the values of the candidates, float32.
        rows: rows of every batch that is passed in.

    Raises:
        ValueError: a parameter belongs to a module that cannot be grouped.
    """
    count = len(thetas)
    owners = _owners(model, space)
    tensors = space.unflatten(thetas)
    with ExitStack() as stack:
        for name, (module, own) in owners.items():
            make = _forward_of(module)
            if make is None:
                raise ValueError(f"{name} is a {type(module).__name__}, which cannot be grouped")
            values = {
                key: tensors[full].to(getattr(module, key).dtype) for key, full in own.items()
            }
            stack.enter_context(patched(module, make(module, values, Shape(count, rows))))
        starts = _starts(model, [module for module, _ in owners.values()])
        stack.enter_context(copied(starts, count, rows))
        yield


def can_group(model: nn.Module, space: ParamSpace) -> bool:
    """Whether every selected parameter belongs to a module that ``grouped`` knows, untied.

    A tied parameter is read by a second module, which would go on with the old values, and so does
    an adapter of a LoRA variant such as DoRA, which reads the weights of its factors itself.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    chosen = {id(named[name]) for name in space.names}
    tied = sum(id(parameter) in chosen for parameter in named.values()) > len(chosen)
    owners = _owners(model, space)
    variants = [f"{n}." for n, m in model.named_modules() if getattr(m, "lora_variant", None)]
    read_past = any(name.startswith(variant) for name in owners for variant in variants)
    return not tied and not read_past and all(_forward_of(m) for m, _ in owners.values())


def shares_blocks(model: nn.Module, space: ParamSpace) -> bool:
    """Whether some blocks stand before the first parameter that differs, so that they run once."""
    first = _starts(model, [module for module, _ in _owners(model, space).values()])[0]
    return first in block_list(model)[1:]


def _owners(model: nn.Module, space: ParamSpace) -> dict[str, tuple[nn.Module, dict[str, str]]]:
    """Modules that own selected parameters: by name, with {own name: full name}."""
    found: dict[str, tuple[nn.Module, dict[str, str]]] = {}
    for full in space.names:
        owner, _, own = full.rpartition(".")
        found.setdefault(owner, (model.get_submodule(owner), {}))[1][own] = full
    return found


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
        if ids.dim() == 1 or len(ids) == 1:
            # Positions come as one row for all.
            return table[:, ids.reshape(-1)].repeat_interleave(shape.rows, dim=0)
        group = torch.arange(shape.candidates, device=ids.device).repeat_interleave(shape.rows)
        return table[group[:, None], ids]

    return forward


def _add(out: Tensor, bias: Tensor, count: int) -> Tensor:
    """Add one bias, or each group's own."""
    if bias.dim() == 1:
        return out + bias
    return (_split(out, count) + bias[:, None]).view(out.shape)


def _starts(model: nn.Module, owners: list[nn.Module]) -> list[nn.Module]:
    """The modules that take copies of every row: the blocks from the first with an owner on.

    Where an owner stands before the blocks, or all stand behind them, it is the whole model.
    """
    stack = list(block_list(model))
    order = {id(module): i for i, module in enumerate(base_model(model).modules())}
    inside = [[id(m) for m in block.modules()] for block in stack]
    outside = [m for m in owners if not any(id(m) in block for block in inside)]
    first = next((i for i, block in enumerate(inside) if any(id(m) in block for m in owners)), None)
    if first is None or any(order[id(m)] < order[id(stack[0])] for m in outside):
        return [base_model(model)]
    return stack[first:]


@contextmanager
def copied(starts: list[nn.Module], count: int, rows: int) -> Iterator[None]:
    """Inside, these modules get ``count`` copies of every row of what they are called with."""

    def copy(value: Any, key: str = "") -> Any:
        if isinstance(value, tuple | list):
            return type(value)(copy(part) for part in value)
        # One row serves all by broadcasting; a vector of positions has no rows. The biases of ALiBi
        # are a row for each row and head.
        whole = isinstance(value, Tensor) and value.dim() > 1
        whole = whole and (value.shape[0] == rows or key == "alibi")
        return value.repeat(count, *[1] * (value.dim() - 1)) if whole else value

    def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return copy(args), {key: copy(value, key) for key, value in kwargs.items()}

    handles = [m.register_forward_pre_hook(hook, with_kwargs=True) for m in starts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
