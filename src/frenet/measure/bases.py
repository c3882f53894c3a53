"""Bases to compare a recovery with, from the undamaged and from the damaged point."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

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


@dataclass(frozen=True, eq=False)
class Vectors:
    """The vectors behind a basis.

    Attributes:
        rows: (n, d).
        kind: gradients make a basis by their leading directions, after scaling to unit norm;
            directions and displacements by their span, in order.
        origin: of the basis, in words.
    """

    rows: Float[Tensor, "n d"]
    kind: Literal["gradients", "directions", "displacements"]
    origin: str

    def basis(self, k: int, space: ParamSpace) -> Basis:
        """The leading k directions of gradients, or the whole span of other vectors."""
        if self.kind == "gradients":
            return svd_basis(self.rows, min(k, len(self.rows)), space=space)
        return span_basis(self.rows, space=space, origin=self.origin)


def bases_at_start(
    model: nn.Module,
    task: Task,
    others: Sequence[Task],
    *,
    sampling: Sampling,
    space: ParamSpace,
    training: Training,
) -> dict[str, Basis]:
    """Bases from before the damage: those of :func:`vectors_at_start`, by name."""
    found = vectors_at_start(model, task, others, sampling=sampling, space=space, training=training)
    return {name: vectors.basis(sampling.k, space) for name, vectors in found.items()}


def vectors_at_start(
    model: nn.Module,
    task: Task,
    others: Sequence[Task],
    *,
    sampling: Sampling,
    space: ParamSpace,
    training: Training,
) -> dict[str, Vectors]:
    """Vectors from before the damage: gradients of the task and of other tasks, and task vectors.

    Args:
        model: the network at theta_0; restored bit for bit.
        task: the task that will be damaged.
        others: other tasks; without any, their bases are left out.
        sampling: dimension and gradients.
        space: the d parameters.
        training: trains each other task for its task vector.

    Returns:
        Vectors by the name of their basis. There is one task vector for each other task.
    """
    draw = rng.generator(sampling.seed, "recovery", "random")
    random = random_basis(space.dim, sampling.k, draw, space=space, origin="random")
    found = {
        "random": Vectors(random.U.T, "directions", "random"),
        "gradients at start": _gradients(model, task, sampling, space),
    }
    if others:
        share = replace(sampling, n=-(-sampling.n // len(others)))
        stacked = torch.cat([_gradients(model, other, share, space).rows for other in others])
        found["other tasks"] = Vectors(stacked, "gradients", "gradients")
        moved = []
        for other in others:
            with space.restored(model):
                moved.append(train_and_record(model, other, training, space=space).displacement())
        found["task vectors"] = Vectors(torch.stack(moved), "displacements", "task vectors")
    return found


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
    found = vectors_at_damage(model, task, sampling=sampling, space=space)
    bases = {name: vectors.basis(sampling.k, space) for name, vectors in found.items()}
    return bases | second_order_bases(
        model, task, sampling=sampling, space=space, which=second_order
    )


def vectors_at_damage(
    model: nn.Module, task: Task, *, sampling: Sampling, space: ParamSpace
) -> dict[str, Vectors]:
    """The gradients of :func:`bases_at_damage`, raw and in Adam's metric."""
    raw = _gradients(model, task, sampling, space)
    scaled = raw.rows / adam_scale(raw.rows)
    return {
        "gradients at damage": raw,
        "Adam-scaled gradients": Vectors(scaled, "gradients", "gradients"),
    }


def second_order_bases(
    model: nn.Module,
    task: Task,
    *,
    sampling: Sampling,
    space: ParamSpace,
    which: Sequence[str],
) -> dict[str, Basis]:
    """The bases of :func:`bases_at_damage` that need Hessian products."""
    if unknown := set(which) - {"Krylov", "Hessian"}:
        raise UsageError(f"no basis {unknown.pop()!r} in second_order; there are Krylov, Hessian")
    bases: dict[str, Basis] = {}
    batch = next(task.batches("train", 2 * sampling.batch_size, sampling.seed))
    product = hessian_product(model, task, batch, space=space)
    if "Krylov" in which:
        slope = gradient(model, task, batch, space=space)
        bases["Krylov"] = krylov_basis(product, slope, sampling.k, space=space, origin="Krylov")
    if "Hessian" in which:
        lanczos = rng.generator(sampling.seed, "recovery", "lanczos")
        bases["Hessian"] = top_eigenpairs(
            product, space.dim, sampling.k, generator=lanczos, space=space
        ).basis
    return bases


def _gradients(model: nn.Module, task: Task, sampling: Sampling, space: ParamSpace) -> Vectors:
    rows = gradient_matrix(
        model, task, space=space, n=sampling.n, batch_size=sampling.batch_size, seed=sampling.seed
    )
    return Vectors(rows, "gradients", "gradients")
