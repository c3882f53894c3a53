"""Bases to compare a recovery with, from the undamaged and from the damaged point."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.geometry import rng
from frenet.geometry.basis import Basis, krylov_basis, random_basis, span_basis, svd_basis
from frenet.measure.curvature import hessian_product, top_eigenpairs
from frenet.measure.gradients import adam_scale, gradient, gradient_matrix
from frenet.measure.trajectory import Training, train_and_record
from frenet.network.space import ParamSpace
from frenet.network.tasks import Task


@dataclass(frozen=True)
class Sampling:
    """How bases are estimated: k directions from n gradients of ``batch_size`` examples.

    A basis of gradients has at most n directions.
    """

    k: int
    n: int
    batch_size: int
    seed: int


def bases_at_start(
    model: nn.Module,
    task: Task,
    others: Sequence[Task],
    *,
    sampling: Sampling,
    space: ParamSpace,
    training: Training,
) -> dict[str, Basis]:
    """Bases from before the damage: gradients of the task and of other tasks, and task vectors.

    Args:
        model: the network at theta_0; restored bit for bit.
        task: the task that will be damaged.
        others: other tasks; without any, their bases are left out.
        sampling: dimension and gradients.
        space: the d parameters.
        training: trains each other task for its task vector.

    Returns:
        Basis by name. The span of m task vectors has at most dimension m.
    """
    bases = {
        "random": random_basis(
            space.dim,
            sampling.k,
            rng.generator(sampling.seed, "recovery", "random"),
            space=space,
            origin="random",
        ),
        "gradients at start": _leading(_rows(model, task, sampling, space), sampling, space),
    }
    if others:
        share = replace(sampling, n=-(-sampling.n // len(others)))
        stacked = torch.cat([_rows(model, other, share, space) for other in others])
        bases["other tasks"] = _leading(stacked, sampling, space)
        vectors = []
        for other in others:
            with space.restored(model):
                vectors.append(train_and_record(model, other, training, space=space).displacement())
        bases["task vectors"] = span_basis(torch.stack(vectors), space=space, origin="task vectors")
    return bases


def bases_at_damage(
    model: nn.Module,
    task: Task,
    *,
    sampling: Sampling,
    space: ParamSpace,
    second_order: Sequence[str] = ("Krylov", "Hessian"),
) -> dict[str, Basis]:
    """Bases from the damaged point: gradients, gradients in Adam's metric, Krylov, Hessian.

    An Adam displacement lies in the span of g / (rms(g) + eps); raw gradients hold 3 to 4 times
    less of it. For SGD it is the other way round.

    Args:
        model: the network at theta_d; left unchanged.
        task: the damaged task.
        sampling: dimension and gradients.
        space: the d parameters.
        second_order: any of "Krylov" (the space of gradient and Hessian) and "Hessian" (its top
            eigenvectors); each takes at least k Hessian products.

    Raises:
        ValueError: ``second_order`` has another name.
    """
    if unknown := set(second_order) - {"Krylov", "Hessian"}:
        raise UsageError(f"no basis {unknown.pop()!r} in second_order; there are Krylov, Hessian")
    rows = _rows(model, task, sampling, space)
    bases = {
        "gradients at damage": _leading(rows, sampling, space),
        "Adam-scaled gradients": _leading(rows / adam_scale(rows), sampling, space),
    }
    batch = next(task.batches("train", 2 * sampling.batch_size, sampling.seed))
    product = hessian_product(model, task, batch, space=space)
    if "Krylov" in second_order:
        slope = gradient(model, task, batch, space=space)
        bases["Krylov"] = krylov_basis(product, slope, sampling.k, space=space, origin="Krylov")
    if "Hessian" in second_order:
        lanczos = rng.generator(sampling.seed, "recovery", "lanczos")
        bases["Hessian"] = top_eigenpairs(
            product, space.dim, sampling.k, generator=lanczos, space=space
        ).basis
    return bases


def _rows(
    model: nn.Module, task: Task, sampling: Sampling, space: ParamSpace
) -> Float[Tensor, "n d"]:
    return gradient_matrix(
        model, task, space=space, n=sampling.n, batch_size=sampling.batch_size, seed=sampling.seed
    )


def _leading(rows: Float[Tensor, "n d"], sampling: Sampling, space: ParamSpace) -> Basis:
    return svd_basis(rows, min(sampling.k, len(rows)), space=space)
