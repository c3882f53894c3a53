"""Optimise a network inside a basis: only k coordinates move."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet.geometry.subspace import Basis, require_same_space
from frenet.measure.gradients import gradient
from frenet.measure.trajectory import Training
from frenet.network.space import ParamSpace
from frenet.network.tasks import Task


def train_in_basis(
    model: nn.Module, task: Task, basis: Basis, *, space: ParamSpace, training: Training
) -> Float[Tensor, " d"]:
    """Displacement after training theta_0 + U c in the coordinates c alone. The model ends there.

    The gradient in c is U^T g. An adaptive optimiser moves every coordinate by about its learning
    rate, so k coordinates would move the network sqrt(d / k) times less than d do: its rate is
    multiplied by that, which gives steps of equal norm. SGD needs no such factor.

    Args:
        model: the network, at theta_0.
        task: its train split is trained on.
        basis: U, shape (d, k).
        space: the d parameters.
        training: as for full training.

    Returns:
        U c, shape (d,), float32.

    Raises:
        ValueError: the basis is of other parameters; names the first that differs.
        FloatingPointError: a loss or gradient is not finite; names the parameter.
    """
    if basis.space is not None:
        require_same_space(space, basis.space)
    start = space.read(model)
    coordinates = torch.zeros(basis.k, dtype=torch.float64)
    adaptive = training.optimizer.startswith("adam")
    scale = (space.dim / basis.k) ** 0.5 if adaptive else 1.0
    optimizer = training.make([coordinates], scale=scale)
    batches = task.batches("train", training.batch_size, training.seed)
    displacement = torch.zeros_like(start)
    for _, batch in zip(range(training.steps), batches, strict=False):
        inside = basis.coordinates(gradient(model, task, batch, space=space)).double().cpu()
        if training.clip is not None:
            inside = inside * (training.clip / inside.norm().clamp(min=1e-30)).clamp(max=1.0)
        coordinates.grad = inside
        optimizer.step()
        displacement = basis.expand(coordinates.to(start))
        space.write(model, start + displacement)
    return displacement
