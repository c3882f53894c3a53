"""Curvature of a task's loss at a point: Hessian products, trace, leading eigenpairs."""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from frenet._errors import UsageError
from frenet.geometry.basis import Basis
from frenet.network.measuring import transformable
from frenet.network.padding import arranged
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, Functional, Task, columns_to_keep

# The product with a vector (d,), or with every row of a matrix (m, d).
Matvec = Callable[[Tensor], Tensor]
# Most vectors in one pass, and most numbers for all of them together.
AT_ONCE, ROOM = 8, 2**27
ONE_BY_ONE = (
    "this model or task cannot be batched over vectors ({error}); taking one Hessian product at a "
    "time, which is two to three times as slow"
)


class Trace(NamedTuple):
    """Hutchinson estimates with their standard errors."""

    trace: float
    trace_error: float
    trace_of_square: float
    trace_of_square_error: float
    probes: int
    trace_of_cube: float | None = None


class Eigenpairs(NamedTuple):
    """Leading eigenvalues, by modulus, and their eigenvectors as a basis."""

    values: Float[Tensor, " k"]
    basis: Basis


def hessian_product(model: nn.Module, task: Task, batch: Batch, *, space: ParamSpace) -> Matvec:
    """The map v -> H v of the task's mean loss on one batch, H = d^2 L / d theta^2.

    Forward-over-reverse by ``torch.func``, with the attention kernel that has second derivatives,
    so it also works for models with fused attention. Small rows of a matrix share a pass, which
    takes a half to a third of the time.

    Args:
        model: the network; read at each product and left unchanged.
        task: gives the loss.
        batch: the fixed batch; the map is linear and deterministic.
        space: the d selected parameters.

    Returns:
        A function of a vector (d,), or of the rows of a matrix (m, d), that returns H v, float32 of
        the same shape.

    Raises:
        FloatingPointError: H v is not finite; names the parameter.

    Warns:
        RuntimeWarning: the rows of a matrix are taken one at a time.

    Source: Pearlmutter (1994), Fast exact multiplication by the Hessian.
    """
    keep = columns_to_keep(batch)
    arranged(model, batch)  # How padded rows run is measured before the first transform.

    def loss(tensors: dict[str, Tensor]) -> Tensor:
        return task.loss(Functional(model, tensors, keep=keep), batch)

    together = at_once(space.dim + _tangents(model, batch))
    batched = True

    def product(vectors: Float[Tensor, "*m d"]) -> Float[Tensor, "*m d"]:
        parameters = space.parameters(model)
        tensors = {n: p.detach() for n, p in zip(space.names, parameters, strict=True)}

        def one(vector: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
            parts = space.unflatten(vector)
            tangents = {name: part.to(tensors[name].dtype) for name, part in parts.items()}
            return space.flatten(jvp(grad(loss), (tensors,), (tangents,))[1])

        def several(rows: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
            nonlocal batched
            if batched and len(rows) > 1:
                try:
                    return vmap(one)(rows)
                except (RuntimeError, ValueError) as error:
                    warnings.warn(ONE_BY_ONE.format(error=error), RuntimeWarning, stacklevel=3)
                    batched = False
            # A row over all weights of a large model is not copied.
            return one(rows[0])[None] if len(rows) == 1 else torch.stack([one(row) for row in rows])

        rows = vectors.reshape(-1, space.dim).to(parameters[0].device, torch.float32)
        with transformable(model):
            parts = [several(group) for group in rows.split(together)]
        images = parts[0] if len(parts) == 1 else torch.cat(parts)
        for image in images:
            space.check_finite(image, "a Hessian product")
        return images.reshape(vectors.shape)

    return product


def at_once(numbers: int) -> int:
    """How many vectors may share a pass that needs this many numbers for each.

    >>> at_once(1_000), at_once(135_000_000)
    (8, 1)
    """
    return max(1, min(AT_ONCE, ROOM // numbers))


def _tangents(model: nn.Module, batch: Batch) -> int:
    """Approximate count of activations for one tangent, forwards and backwards."""
    widths = sum(p.shape[0] for p in model.parameters() if p.dim() == 2)
    return 3 * math.prod(batch["labels"].shape) * widths


def hutchinson(
    product: Matvec, dim: int, *, probes: int, generator: torch.Generator, cubes: bool = False
) -> Trace:
    """Trace of H, and of H^2, from Rademacher probes z: mean of z^T H z and of ||H z||^2.

    Args:
        product: v -> H v, of every row of a matrix (m, d).
        dim: d.
        probes: number of probes, at least 2 for a standard error.
        generator: the probes.
        cubes: also the trace of H^3, the mean of (H z)^T H (H z), for one more product each.

    Returns:
        The estimates with the standard errors of their means. One probe's error is of the order
        of the trace itself if few eigenvalues dominate.

    Source: Hutchinson (1990), A stochastic estimator of the trace of the influence matrix.

    >>> H = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    >>> hutchinson(lambda V: V @ H, 3, probes=4, generator=torch.Generator().manual_seed(0))[:3]
    (6.0, 0.0, 14.0)
    """
    if probes < 2:
        raise UsageError(f"probes={probes} gives no standard error; pass at least 2")
    first: list[float] = []
    second: list[float] = []
    third: list[float] = []
    for left in range(probes, 0, -at_once(dim)):
        count = min(left, at_once(dim))
        signs = [torch.randint(0, 2, (dim,), generator=generator) for _ in range(count)]
        z = torch.stack(signs).float() * 2 - 1
        image = product(z).cpu().double()
        first += (z.double() * image).sum(1).tolist()
        second += image.square().sum(1).tolist()
        if cubes:
            third += (image * product(image.float()).cpu().double()).sum(1).tolist()
    errors = [float(np.std(values, ddof=1) / probes**0.5) for values in (first, second)]
    cube = float(np.mean(third)) if cubes else None
    return Trace(float(np.mean(first)), errors[0], float(np.mean(second)), errors[1], probes, cube)


def top_eigenpairs(
    product: Matvec,
    dim: int,
    k: int,
    *,
    generator: torch.Generator,
    space: ParamSpace | None = None,
) -> Eigenpairs:
    """The k eigenvalues of H largest in modulus, by scipy's implicitly restarted Lanczos.

    Args:
        product: v -> H v.
        dim: d.
        k: number of pairs, below d.
        generator: the start vector.
        space: the parameters behind the coordinates.

    Returns:
        Values (k,), by decreasing modulus, and an orthonormal basis (d, k) of their eigenvectors.

    Raises:
        ValueError: k is not below d.
    """
    if not 0 < k < dim:
        raise UsageError(f"k={k} must be between 1 and {dim - 1}, one less than the dimension")

    def matvec(vector: np.ndarray) -> np.ndarray:
        return (
            product(torch.from_numpy(np.asarray(vector).reshape(-1)).float()).cpu().double().numpy()
        )

    start = torch.randn(dim, generator=generator, dtype=torch.float64).numpy()
    operator = LinearOperator((dim, dim), matvec=matvec, dtype=np.float64)
    # float32 products have a relative error near 1e-6: a smaller tolerance would never converge.
    values, vectors = eigsh(operator, k=k, which="LM", v0=start, tol=1e-5)
    order = np.argsort(-np.abs(values))
    orthonormal = np.linalg.qr(vectors[:, order])[0]
    # A basis is the transpose of contiguous rows, as in the other builders.
    rows = torch.from_numpy(orthonormal.T.copy()).float()
    basis = Basis(rows.T, S=None, space=space, origin="Hessian", rank=k)
    return Eigenpairs(torch.from_numpy(values[order].copy()), basis)
