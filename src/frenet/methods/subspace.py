"""Optimise a network inside a basis: only k coordinates move."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet.geometry.subspace import Basis
from frenet.measure.trajectory import Training
from frenet.methods.subspace_optimizer import SubspaceOptimizer
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import Task

Watcher = Callable[[int], None]


def train_in_basis(
    model: nn.Module, task: Task, basis: Basis, *, space: ParamSpace, training: Training
) -> Float[Tensor, " d"]:
    """Displacement after training theta_0 + U c in the coordinates c alone. The model stays there.

    The gradient in c is U^T g. An adaptive optimiser moves every coordinate by about its learning
    rate, so k coordinates would move the network sqrt(d / k) times less than d do. Its rate is
    multiplied by that factor, so that steps have equal norm. SGD needs no factor.

    Args:
        model: the network, at theta_0.
        task: its train split is trained on.
        basis: U, shape (d, k).
        space: the d parameters.
        training: as for full training.

    Returns:
        U c, shape (d,), float32.

    Raises:
        ValueError: the basis belongs to other parameters; names the first that differs.
        FloatingPointError: a loss or gradient is not finite; names the parameter.
    """
    optimizer = SubspaceOptimizer(
        model,
        space,
        basis,
        make=training.make,
        scale=equal_steps(training, space.dim, basis.k),
        clip=training.clip,
    )
    train_with(model, task, optimizer, training=training)
    return optimizer.displacement().float().to(space.parameters(model)[0].device)


def equal_steps(training: Training, d: int, k: int) -> float:
    """Factor on the learning rate that makes steps in k coordinates as long as in d.

    >>> equal_steps(Training("adam:1e-3"), 400, 4), equal_steps(Training("sgd:0.1"), 400, 4)
    (10.0, 1.0)
    """
    return math.sqrt(d / k) if training.optimizer.startswith("adam") else 1.0


def train_with(
    model: nn.Module,
    task: Task,
    optimizer: SubspaceOptimizer,
    *,
    training: Training,
    watch: Watcher | None = None,
) -> Float[Tensor, " T"]:
    """Train with an existing optimiser. The model stays at its last point.

    Args:
        model: the optimiser's network. Dropout is off.
        task: its train split is trained on.
        optimizer: moves the parameters.
        training: batch size, number of steps and seed of the minibatches.
        watch: called with t after step t = 1, 2, ...

    Returns:
        The loss of every minibatch before its step, in nats per token.

    Raises:
        FloatingPointError: a loss or gradient is not finite; names task or parameter.
    """
    losses: list[float] = []
    batches = task.batches("train", training.batch_size, training.seed)
    with measuring(model, optimizer.space), torch.enable_grad():
        for t, batch in zip(range(1, training.steps + 1), batches, strict=False):
            optimizer.zero_grad()
            loss = task.loss(model, batch)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"the loss of task {task.name} is {losses[-1]} before step {t} inside the "
                    "basis; lower the learning rate"
                )
            loss.backward()
            optimizer.step()
            if watch is not None:
                watch(t)
    return torch.tensor(losses)
