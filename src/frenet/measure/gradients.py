"""Task gradients at a point: one, a matrix of n, and one per example."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.measure.per_example import linear_rows, vmapped_rows
from frenet.network.measuring import measuring
from frenet.network.memory import require_memory
from frenet.network.padding import Part, arranged
from frenet.network.space import ParamSpace
from frenet.network.tasks import IGNORE, Batch, Split, Task, in_parts, repeatable

# Numbers in memory for each logit of a backward pass.
BACKWARD = 4


def gradient(
    model: nn.Module, task: Task, batch: Batch, *, space: ParamSpace
) -> Float[Tensor, " d"]:
    """Gradient of the task's mean loss on one batch, in nats per token per unit of parameter.

    Args:
        model: the network; left unchanged.
        task: gives the loss.
        batch: any batch of the task. If its logits and activations would take much memory, it is
            taken in parts, which count by their target tokens.
        space: the d selected parameters.

    Returns:
        The gradient, float32, shape (d,); zero for parameters that the loss does not depend on.

    Raises:
        FloatingPointError: the loss or a gradient is not finite; names the parameter.
    """
    with measuring(model, space), torch.enable_grad():
        parameters = space.parameters(model)
        vector = torch.zeros(space.dim, device=parameters[0].device)
        parts = in_parts(model, batch, copies=BACKWARD, graph=True)
        with _added_to(vector, parameters):
            for part in parts:
                loss = task.loss(model, part)
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"the loss of task {task.name} is {loss.item()}")
                share = 1.0 if len(parts) == 1 else _targets(part) / _targets(batch)
                torch.autograd.grad(loss * share, parameters, allow_unused=True)
    space.check_finite(vector, f"the gradient of task {task.name}")
    return vector


def _targets(batch: Batch) -> int:
    """Number of target tokens."""
    return int((batch["labels"] != IGNORE).sum())


@contextmanager
def _added_to(vector: Float[Tensor, " d"], parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Add every gradient that arrives in a parameter to its place in the vector, and drop it.

    So a backward pass holds one parameter's gradient at a time beside the vector.
    """

    def taking(place: Float[Tensor, " p"]) -> Callable[[Tensor], Tensor]:
        def take(gradient: Tensor) -> Tensor:
            place.add_(gradient.detach().reshape(-1).float())
            return gradient.new_zeros(()).expand(gradient.shape)

        return take

    places = vector.split([p.numel() for p in parameters])
    without = [p for p in parameters if p._backward_hooks is None]
    handles = [p.register_hook(taking(v)) for p, v in zip(parameters, places, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in without:  # an empty dictionary would stay
            parameter._backward_hooks = None


def gradient_matrix(
    model: nn.Module,
    task: Task,
    *,
    space: ParamSpace,
    n: int,
    batch_size: int,
    split: Split = "train",
    seed: int = 0,
) -> Float[Tensor, "n d"]:
    """Gradients of n minibatches of one task at the current point, as rows.

    The rows are not normalised: ``svd_basis`` and ``captured_energy`` do that.

    Args:
        model: the network; left unchanged.
        task: gives loss and minibatches.
        space: the d selected parameters.
        n: number of minibatches.
        batch_size: examples in each; a larger size lowers the apparent rank, so report it.
        split: of the examples.
        seed: fixes the minibatches.

    Returns:
        float32, shape (n, d), on the model's device.

    Raises:
        MemoryError: the n x d result does not fit; raised before any allocation.
        ValueError: the task has fewer than n batches, or is not repeatable.
    """
    device = space.parameters(model)[0].device
    require_memory(
        4 * n * space.dim,
        f"a matrix of {n} gradients of {space.dim:,} parameters",
        device=device,
        remedy="pass a smaller n, or select fewer parameters",
    )
    rows = torch.empty(n, space.dim, device=device)
    gradients = gradient_rows(
        model, task, space=space, n=n, batch_size=batch_size, split=split, seed=seed
    )
    for row, one in zip(rows, gradients, strict=True):
        row.copy_(one)
    return rows


def gradient_rows(
    model: nn.Module,
    task: Task,
    *,
    space: ParamSpace,
    n: int,
    batch_size: int,
    split: Split = "train",
    seed: int = 0,
) -> Iterator[Float[Tensor, " d"]]:
    """The rows of ``gradient_matrix`` one by one, if all of them do not fit into memory."""
    batches = repeatable(task, split, batch_size, seed)
    for i in range(n):
        if (batch := next(batches, None)) is None:
            raise UsageError(f"task {task.name} gave only {i} of {n} batches; pass n <= {i}")
        yield gradient(model, task, batch, space=space)


def adam_scale(rows: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """The root mean square of every coordinate plus Adam's 1e-8, by which Adam divides.

    Args:
        rows: n gradients.

    >>> rows = torch.tensor([[3.0, 0.0], [-3.0, 0.0]])
    >>> rows / adam_scale(rows)
    tensor([[ 1.,  0.],
            [-1.,  0.]])
    """
    return rows.square().mean(0).sqrt() + 1e-8


def example_gradients(
    model: nn.Module, task: Task, batch: Batch, *, space: ParamSpace, chunk: int | None = None
) -> Float[Tensor, "b d"]:
    """Gradient of every example's mean loss, for about the cost of one batch gradient.

    Args:
        model: the network; left unchanged.
        task: gives the loss.
        batch: b examples.
        space: the d selected parameters.
        chunk: examples at a time; None: all at once, in the memory of one batch gradient plus
            twice the result.

    Returns:
        float32, shape (b, d), on the model's device.

    Raises:
        MemoryError: the b x d result does not fit.
        FloatingPointError: a gradient is not finite; names the parameter.

    Warns:
        RuntimeWarning: the examples are taken one at a time, which is slow.
    """
    device = space.parameters(model)[0].device
    count = len(batch["labels"])
    size = min(chunk or count, count)
    require_memory(
        4 * (count + size) * space.dim,
        f"the gradients of {count} examples in {space.dim:,} parameters",
        device=device,
        remedy="pass fewer examples, or select fewer parameters",
    )
    rows = torch.empty(count, space.dim, device=device)
    for start in range(0, count, size):
        some = {key: value[start : start + size] for key, value in batch.items()}
        parts = arranged(model, some) or [Part(torch.arange(len(some["labels"])), some)]
        for part in parts:
            rows[start + part.rows] = _examples(model, task, part.batch, space=space)
    space.check_finite(rows, f"a gradient of task {task.name}")
    return rows


def _examples(
    model: nn.Module, task: Task, batch: Batch, *, space: ParamSpace
) -> Float[Tensor, "b d"]:
    """By the fastest method that this model and this loss allow."""
    rows = linear_rows(model, task, batch, space=space)
    if rows is not None:
        return rows
    try:
        return vmapped_rows(model, task, batch, space=space)
    except (RuntimeError, ValueError, AttributeError) as error:
        warnings.warn(
            f"this model or task cannot be batched over examples ({error}); taking one gradient "
            "at a time, which is two to seven times as slow",
            RuntimeWarning,
            stacklevel=3,
        )
    count = len(batch["labels"])
    single = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(count)]
    return torch.stack([gradient(model, task, row, space=space) for row in single])
