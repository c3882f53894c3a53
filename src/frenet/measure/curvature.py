"""Curvature of a task's loss at a point: Hessian products, trace, leading eigenpairs."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import grad, jvp, vmap

from frenet._errors import UsageError
from frenet.geometry.basis import Basis
from frenet.network.measuring import transformable
from frenet.network.memory import free_bytes
from frenet.network.padding import arranged
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, Functional, Task, columns_to_keep

# The product with a vector (d,), or with every row of a matrix (m, d).
Matvec = Callable[[Tensor], Tensor]
# Most vectors in one pass, and most numbers for all of them together.
AT_ONCE, ROOM = 8, 2**27
# What the graph of a gradient adds to the activations of the loss, in their unit: 1.1 to 1.7 on
# three transformers, and what one product needs while it runs.
GROWTH = 3
ONE_BY_ONE = (
    "this model or task cannot be batched over vectors ({error}); taking one Hessian product at a "
    "time, which is slower"
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

    The graph of the gradient is made once for each point and differentiated once for each product,
    with the attention kernel that has second derivatives, so it also works for models with fused
    attention. It holds about three times the activations of one pass, until weights, buffers,
    hooks or batch have changed, or the map is no longer referenced. If it does not fit into half of
    the free memory, or a layer of the model has no second derivative in reverse mode, every product
    is taken forward over reverse, in two to four times the time, without a graph. Both agree to the
    rounding of float32. Small rows of a matrix share a pass, which takes less time.

    Args:
        model: the network; read at each product and left unchanged. After a change of anything else
            than weights, buffers and hooks, such as the adapter in use, make a new map.
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
    return _Products(model, batch, space, loss, together)


@dataclass(eq=False)
class _Products:
    """v -> H v by the graph of the gradient, or forward over reverse."""

    model: nn.Module
    batch: Batch
    space: ParamSpace
    loss: Callable[[dict[str, Tensor]], Tensor]
    together: int
    batched: bool = True
    # Whether a graph may be kept, that graph, and what it was made from.
    keeps: bool = True
    graph: "_Graph | None" = None
    origin: tuple[Any, ...] = ()

    def __call__(self, vectors: Float[Tensor, "*m d"]) -> Float[Tensor, "*m d"]:
        """H v of a vector (d,), or of every row of a matrix (m, d)."""
        device = self.space.parameters(self.model)[0].device
        rows = vectors.reshape(-1, self.space.dim).to(device, torch.float32)
        images = self._by_graph(rows) if self.keeps else None
        if images is None:
            self.keeps, self.graph = False, None
            with transformable(self.model):
                images = self._in_groups(self._forward_over_reverse, rows)
        for image in images:
            self.space.check_finite(image, "a Hessian product")
        return images.reshape(vectors.shape)

    def _by_graph(self, rows: Float[Tensor, "m d"]) -> Float[Tensor, "m d"] | None:
        """The products; None without the memory or the derivatives that a graph needs."""
        try:
            origin = _origin(self.model, self.batch)
            if self.graph is None or origin != self.origin:
                self.graph = None
                self.graph, self.origin = _graph(self.model, self.space, self.loss), origin
            return None if self.graph is None else self._in_groups(self.graph.images, rows)
        except RuntimeError:
            # The other way raises again what is not a matter of second derivatives or memory.
            return None

    def _in_groups(
        self, images: Callable[[Tensor], Tensor], rows: Float[Tensor, "m d"]
    ) -> Float[Tensor, "m d"]:
        """The images of as many rows at once as the model and the memory allow."""
        if self.batched and len(rows) > 1 < self.together:
            try:
                return torch.cat([images(group) for group in rows.split(self.together)])
            except (RuntimeError, ValueError) as error:
                warnings.warn(ONE_BY_ONE.format(error=error), RuntimeWarning, stacklevel=4)
                self.batched = False
        # A row over all weights of a large model is not copied.
        return images(rows) if len(rows) == 1 else torch.cat([images(r) for r in rows.split(1)])

    def _forward_over_reverse(self, rows: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        parameters = self.space.parameters(self.model)
        tensors = {n: p.detach() for n, p in zip(self.space.names, parameters, strict=True)}

        def one(vector: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
            parts = self.space.unflatten(vector)
            tangents = {name: part.to(tensors[name].dtype) for name, part in parts.items()}
            return self.space.flatten(jvp(grad(self.loss), (tensors,), (tangents,))[1])

        return vmap(one)(rows) if len(rows) > 1 else one(rows[0])[None]


class _Graph(NamedTuple):
    """The graph of the gradient at one point.

    Attributes:
        space: the d parameters.
        leaves: their values, in which the graph is differentiated.
        slopes: where the gradient in each parameter leaves the graph, without its values; None if
            it is constant.
    """

    space: ParamSpace
    leaves: list[Tensor]
    slopes: list[GradientEdge | None]

    def images(self, rows: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        """H v of every row, d <gradient, v> / d theta; several rows go through one pass."""
        images, batched = torch.zeros_like(rows), len(rows) > 1
        parts = list(self.space.unflatten(rows if batched else rows[0]).values())
        bent = {i: slope for i, slope in enumerate(self.slopes) if slope is not None}
        if not bent:
            return images
        found = torch.autograd.grad(
            list(bent.values()),
            self.leaves,
            [parts[i].to(self.leaves[i].dtype) for i in bent],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=batched,
        )
        for image, part in zip(self.space.unflatten(images).values(), found, strict=True):
            if part is not None:
                image.copy_(part)
        return images


def _origin(model: nn.Module, batch: Batch) -> tuple[Any, ...]:
    """What a graph depends on: the hooks, and memory, version and sum of all tensors."""
    hooks: list[int] = []
    tensors = list(batch.values())
    for module in model.modules():
        hooks += [*module._forward_hooks, *module._forward_pre_hooks]
        tensors += [
            t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None
        ]
    with torch.no_grad():
        # A change through ``.data`` keeps the version.
        return (*hooks, *((t.data_ptr(), t._version, t.sum().item()) for t in tensors))


def _graph(
    model: nn.Module, space: ParamSpace, loss: Callable[[dict[str, Tensor]], Tensor]
) -> _Graph | None:
    """The graph of the gradient; None if it does not fit, or its derivatives are not known."""
    leaves = [parameter.detach().requires_grad_() for parameter in space.parameters(model)]
    with transformable(model), torch.enable_grad():
        value = loss(dict(zip(space.names, leaves, strict=True)))
        held = _activations(value, model)
        if held is None or GROWTH * held + 4 * space.dim > free_bytes(leaves[0].device) / 2:
            return None
        slopes = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
    edges = [None if s is None or not s.requires_grad else get_gradient_edge(s) for s in slopes]
    return _Graph(space, leaves, edges)


def _activations(value: Tensor, model: nn.Module) -> int | None:
    """Bytes that the graph of a value holds beside the weights; None with foreign functions.

    The backward pass of a function that is not torch's own may be a compiled kernel: its derivative
    is then missing in the graph of the gradient, without an error.
    """
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}
    fields: dict[type, list[str]] = {}
    seen, ahead = set(), [value.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        kind = type(node)
        if kind.__module__ != "builtins" or kind.__name__ == "CppFunction":
            return None
        if kind not in fields:
            fields[kind] = [name for name in dir(node) if name.startswith("_saved_")]
        for name in fields[kind]:
            saved = getattr(node, name)
            for tensor in saved if isinstance(saved, tuple | list) else (saved,):
                if isinstance(tensor, Tensor):
                    storage = tensor.untyped_storage()
                    sizes[storage.data_ptr()] = storage.nbytes()
        ahead += [function for function, _ in node.next_functions]
    return sum(size for place, size in sizes.items() if place not in weights)


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
