"""Per-example gradients: from one backward pass, batched over examples, or one at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.utils.hooks import RemovableHandle

from frenet.geometry.linalg import norm, norms
from frenet.network.measuring import measuring, transformable
from frenet.network.padding import Part, is_padded, unmasked
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, Functional, Task, columns_to_keep


class Call(NamedTuple):
    """One call of a linear layer: its input, and the gradient of the loss in its output."""

    x: Float[Tensor, "b t i"]
    slope: Float[Tensor, "b t o"]


class Replay(Functional):
    """Returns logits that were computed before, for a loss that calls the model row by row."""

    def __init__(self, model: nn.Module, logits: Tensor, *, keep: int) -> None:
        super().__init__(model, {}, keep=keep, ready=True)
        self.__dict__["logits"] = logits

    def forward(self, **arguments: Any) -> Any:
        """The logits, whatever the arguments."""
        return SimpleNamespace(logits=self.__dict__["logits"])


def linear_rows(
    model: nn.Module, task: Task, batch: Batch, *, space: ParamSpace
) -> Float[Tensor, "b d"] | None:
    """Gradients of every example, if all parameters belong to linear layers, as in LoRA.

    A linear layer y = W x has the gradient sum_t (dL/dy_t) x_t^T, a sum over the positions of one
    example: a single backward pass over the whole batch holds all of them.

    Returns:
        float32, shape (b, d). None if there is another kind of layer, if the loss needs more than
        the logits of one forward pass, if examples depend on each other, or if the sum over the
        examples is not autograd's gradient of the batch (a weight is also used in another way).

    Source: Goodfellow (2015), Efficient per-example gradient computations, arXiv 1510.01799.
    """
    parameters = space.parameters(model)
    owners = _owners(model, parameters)
    if owners is None:
        return None
    calls: dict[nn.Module, list[Call]] = {}
    layers = {module for module, _ in owners}
    with (
        measuring(model, space),
        torch.enable_grad(),
        _watched(model, layers, calls) as outputs,
    ):
        task.loss(model, batch)
        logits = getattr(outputs[0], "logits", None) if len(outputs) == 1 else None
        slopes = None if logits is None else _slopes(model, task, batch, logits)
        if logits is None or slopes is None:
            return None
        square = batch["labels"].shape[0] == batch["labels"].shape[1]
        weighted = _weighted(logits, parameters, slopes) if square else None
        calls.clear()
        totals = torch.autograd.grad(logits, parameters, slopes, allow_unused=True)
    parts = []
    for (module, name), parameter in zip(owners, parameters, strict=True):
        part = _rows_of(calls.get(module, []), name, batch)
        if part is None:
            part = parameter.new_zeros(len(slopes), parameter.numel())
        parts.append(part.flatten(1))
    rows = torch.cat(parts, dim=1).float()
    errors = [norm(rows.sum(0) - _filled(parameters, totals))]
    if weighted is not None:
        # In a layer with positions first, these would be rows of positions, with the same sum.
        errors.append(norm(_weights(rows) @ rows - weighted) / len(rows))
    rounding = 64 * torch.finfo(parameters[0].dtype).eps
    return rows if max(errors) <= rounding * float(norms(rows).sum()) else None


def vmapped_rows(
    model: nn.Module, task: Task, batch: Batch, *, space: ParamSpace
) -> Float[Tensor, "b d"]:
    """Gradients of every example by ``vmap``, for any layer with batching rules.

    Raises:
        RuntimeError, ValueError, AttributeError: a part of the model or the loss has no batching
            rule, or the loss uses more than the model's output.
    """
    tensors = dict(zip(space.names, (p.detach() for p in space.parameters(model)), strict=True))
    gradients = torch.empty(
        len(batch["labels"]), space.dim, device=next(iter(tensors.values())).device
    )
    for part in _for_vmap(model, batch):
        keep = columns_to_keep(part.batch)
        single, shared = _single(part.batch)

        def loss(
            tensors: dict[str, Tensor], row: Batch, keep: int = keep, shared: Batch = shared
        ) -> Tensor:
            return task.loss(Functional(model, tensors, keep=keep, ready=True), row | shared)

        with transformable(model):
            parts = vmap(grad(loss), in_dims=(None, 0))(tensors, single)
        rows = [parts[name].flatten(1).float() for name in space.names]
        gradients[part.rows] = torch.cat(rows, dim=1)
    return gradients


def _for_vmap(model: nn.Module, batch: Batch) -> list[Part]:
    """The batch in parts that need no look at a mask, which ``vmap`` does not allow."""
    if is_padded(batch):
        return unmasked(model, batch)
    return [Part(torch.arange(len(batch["labels"])), batch)]


def _weights(rows: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    """A different weight for every example."""
    return torch.arange(1, len(rows) + 1, dtype=rows.dtype, device=rows.device)


def _weighted(
    logits: Float[Tensor, "b t v"], parameters: list[nn.Parameter], slopes: Float[Tensor, "b t v"]
) -> Float[Tensor, " d"]:
    """The gradient of the weighted sum of the examples' losses; retains the graph."""
    slopes = slopes * _weights(slopes)[:, None, None]
    parts = torch.autograd.grad(logits, parameters, slopes, allow_unused=True, retain_graph=True)
    return _filled(parameters, parts)


def _filled(parameters: list[nn.Parameter], parts: Sequence[Tensor | None]) -> Float[Tensor, " d"]:
    """One vector, with zeros for parameters without a gradient."""
    pairs = zip(parameters, parts, strict=True)
    return torch.cat(
        [(torch.zeros_like(p) if part is None else part).flatten() for p, part in pairs]
    ).float()


def _owners(model: nn.Module, parameters: list[nn.Parameter]) -> list[tuple[nn.Module, str]] | None:
    """The linear layer, and "weight" or "bias", of every parameter; None if one has none."""
    owners_of: dict[int, list[tuple[nn.Module, str]]] = {
        id(parameter): [] for parameter in parameters
    }
    for module in model.modules():
        # Not named_parameters, which takes a millisecond for a small model.
        for name, parameter in module._parameters.items():
            if id(parameter) in owners_of:
                owners_of[id(parameter)].append((module, name))
    owners = list(owners_of.values())
    if any(len(uses) != 1 or type(uses[0][0]) is not nn.Linear for uses in owners):
        return None
    return [uses[0] for uses in owners]


@contextmanager
def _watched(
    model: nn.Module, layers: set[nn.Module], calls: dict[nn.Module, list[Call]]
) -> Iterator[list[Any]]:
    """The model's outputs in the list, and the layers' calls in the dict after a backward pass."""
    outputs: list[Any] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].detach()
        output.register_hook(
            lambda slope: calls.setdefault(module, []).append(Call(x, slope.detach()))
        )

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(output)

    handles: list[RemovableHandle] = []
    try:
        handles += [layer.register_forward_hook(note) for layer in layers]
        handles.append(model.register_forward_hook(keep))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _slopes(model: nn.Module, task: Task, batch: Batch, logits: Tensor) -> Tensor | None:
    """d(loss of example i) / d(logits of example i); None if the loss needs more than logits."""
    keep = columns_to_keep(batch)

    def loss(row_logits: Tensor, row: Batch) -> Tensor:
        return task.loss(Replay(model, row_logits, keep=keep), row | shared)

    try:
        single, shared = _single(batch)
        return vmap(grad(loss))(logits.detach()[:, None], single)[:, 0]
    except (RuntimeError, ValueError, AttributeError):
        return None


def _single(batch: Batch) -> tuple[Batch, Batch]:
    """Every example as a batch of one, along a new leading axis; and the shared arguments.

    Masks and positions that are the same for all examples stay outside a ``vmap``, since models
    read their values.
    """
    shared: Batch = {
        key: batch[key][:1]
        for key in ("attention_mask", "position_ids")
        if key in batch and bool((batch[key] == batch[key][:1]).all())
    }
    return {k: v[:, None] for k, v in batch.items() if k not in shared}, shared


def _rows_of(calls: list[Call], name: str, batch: Batch) -> Tensor | None:
    """Gradient of one weight or bias for every example, summed over the layer's calls."""
    if not calls or any(call.x.shape[:2] != batch["labels"].shape for call in calls):
        return None
    if name == "bias":
        parts = [call.slope.sum(1) for call in calls]
    else:
        parts = [_outer(call) for call in calls]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def _outer(call: Call) -> Tensor:
    """sum_t slope_t x_t^T for every example; the narrow side first is up to 4 times faster."""
    if call.slope.shape[2] > call.x.shape[2]:
        return (call.x.transpose(1, 2) @ call.slope).transpose(1, 2)
    return call.slope.transpose(1, 2) @ call.x
