"""Task vectors: the difference between two checkpoints, or an adapter's weights, as a direction."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet._notebook import Fact, Shown
from frenet.geometry.linalg import dot
from frenet.measure.trajectory import Trajectory
from frenet.network.checkpoints.adapter_delta import (
    UNTIE,
    base_weights,
    live_products,
    products_shapes,
    stored_products,
    sum_of_products,
)
from frenet.network.checkpoints.adapter_files import adapter_folder
from frenet.network.checkpoints.adapter_load import base_notes
from frenet.network.checkpoints.pairs import tied_copies, tied_weights
from frenet.network.checkpoints.tensor_files import Read, Shapes, TensorFiles, digest, write_tensors
from frenet.network.checkpoints.weight_space import weight_change
from frenet.network.space import ParamSpace

FORMAT = "frenet-task-vector-1"


@dataclass(frozen=True, repr=False)
class TaskVector(Shown):
    """tau = theta_ft - theta_0: a change of named weights, computed tensor by tensor when read.

    Vectors can be added, subtracted and scaled; a weight that a vector does not have counts as
    unchanged. The vector stores no tensors: a difference of two files reads them again.

    Attributes:
        shapes: of the weights that change, by name in the base model.
        read: returns the change of one weight, float32.
        origin: how it was made.
        base: digest of the weights that it starts from; empty if unknown.
        notes: sentences for the report.

    >>> v = TaskVector({"w": (2,)}, lambda name: torch.tensor([3.0, 4.0]), "by hand")
    >>> v.norm(), (2 * v - v).read("w")
    (5.0, tensor([3., 4.]))
    """

    shapes: Mapping[str, tuple[int, ...]]
    read: Read
    origin: str
    base: str = ""
    notes: tuple[str, ...] = ()

    def _summary(self) -> str:
        return f"{self.origin}, weights changed: {len(self.shapes)}"

    def _entries(self) -> Iterator[Fact]:
        d = sum(map(math.prod, self.shapes.values()))
        yield "coordinates", d, f"cosines of random vectors are about {max(d, 1) ** -0.5:.3g}"
        yield from (("note", note, "") for note in self.notes)

    def __add__(self, other: "TaskVector") -> "TaskVector":
        return combine([(1.0, self), (1.0, other)])

    def __sub__(self, other: "TaskVector") -> "TaskVector":
        return combine([(1.0, self), (-1.0, other)])

    def __neg__(self) -> "TaskVector":
        return combine([(-1.0, self)])

    def __mul__(self, factor: int | float) -> "TaskVector":
        return combine([(float(factor), self)])

    __rmul__ = __mul__

    def norm(self) -> float:
        """||tau||, the 2-norm over all weights."""
        return math.sqrt(self.dot(self))

    def dot(self, other: "TaskVector") -> float:
        """tau . tau', one tensor at a time, in float64."""
        require_alike([self, other])
        same = other is self
        total = 0.0
        for name in self.shapes:
            if name in other.shapes:
                tensor = self.read(name)
                total += dot(tensor, tensor if same else other.read(name))
        return total

    def cosine(self, other: "TaskVector") -> float:
        """tau . tau' / (||tau|| ||tau'||); 0 if one of them is zero."""
        norms = self.norm() * other.norm()
        return self.dot(other) / norms if norms > 0 else 0.0

    @staticmethod
    def from_adapter(
        adapter: str | Path | nn.Module,
        *,
        base: nn.Module | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> "TaskVector":
        """What a LoRA adapter adds to its base: ``frenet.from_adapter``."""
        return from_adapter(adapter, base=base, weights=weights)

    def save(self, path: str | Path) -> Path:
        """Write the vector as float32 safetensors: ``frenet.save_task_vector``."""
        return save_task_vector(self, path)

    def space(self, model: nn.Module) -> ParamSpace:
        """The parameters of ``model`` that the vector changes, tied ones once.

        Raises:
            ValueError: the model lacks one of them, has it in another shape, or is not the base of
                the vector.
        """
        named = dict(model.named_parameters())
        buffers = dict(model.named_buffers())
        for name, shape in self.shapes.items():
            p = named.get(name)
            if p is None and name in buffers and not self.read(name).any():
                continue
            if p is None or tuple(p.shape) != shape:
                there = f"shape {tuple(p.shape)}" if p is not None else "no such parameter"
                if p is None and name in dict(model.named_parameters(remove_duplicate=False)):
                    there = f"one weight for this and others tied to it; {UNTIE}"
                raise UsageError(
                    f"the vector ({self.origin}) does not fit this model: it changes {name} of "
                    f"shape {shape}, the model has {there}"
                )
        moving = {name for name in self.shapes if name in named}
        if self.base and self.base != digest(self.shapes, lambda name: (named | buffers)[name]):
            raise UsageError(
                f"the vector ({self.origin}) starts from other weights than this model; load "
                "the base of the vector"
            )
        return ParamSpace.select(model, lambda name, _: name in moving)

    def flat(self, space: ParamSpace) -> Float[Tensor, " d"]:
        """The vector in the coordinates of ``space``, float32; zero for weights without a change.

        Raises:
            ValueError: the vector changes a weight outside the space.
        """
        if outside := [name for name in self.shapes if name not in space.names]:
            left = [name for name in outside if self.read(name).any()]
            if left:
                raise UsageError(
                    f"the vector ({self.origin}) changes {left[0]} ({len(left)} such weights), "
                    "which is not among the selected parameters"
                )
        result = torch.zeros(space.dim)
        for name, part in space.unflatten(result).items():
            if name in self.shapes:
                part.copy_(self.read(name))
        return result

    @contextmanager
    def applied(self, model: nn.Module, scale: int | float = 1.0) -> Iterator[None]:
        """The model at theta + scale * tau inside the context; restored bit for bit after it."""
        space = self.space(model)
        with space.displaced(model, float(scale) * self.flat(space)):
            yield


def combine(terms: Sequence[tuple[float, TaskVector]]) -> TaskVector:
    """sum_i a_i tau_i, weight by weight: for adapters the sum of products, without cross terms.

    Raises:
        ValueError: there is no term, or the vectors belong to different models or bases.
    """
    if not terms:
        raise UsageError("no task vector to combine; pass at least one")
    require_alike([vector for _, vector in terms])
    shapes: Shapes = {}
    for _, vector in terms:
        shapes |= dict(vector.shapes)

    def read(name: str) -> Tensor:
        (a, first), *rest = [(a, v) for a, v in terms if name in v.shapes]
        total = first.read(name).float()
        if a != 1:
            total = a * total
        for i, (b, vector) in enumerate(rest):
            part = vector.read(name)
            # A vector may hold the tensor that it returned: the first sum makes a new one.
            total = total.add_(part, alpha=b) if i or a != 1 else total.add(part, alpha=b)
        return total

    origin = " + ".join(f"{a:g} * ({v.origin})" for a, v in terms)
    bases = {vector.base for _, vector in terms}
    whole = all(vector.shapes.keys() == shapes.keys() for _, vector in terms)
    notes = tuple(dict.fromkeys(note for _, vector in terms for note in vector.notes))
    return TaskVector(shapes, read, origin, bases.pop() if len(bases) == 1 and whole else "", notes)


def require_alike(vectors: Sequence[TaskVector]) -> None:
    """Raise ValueError if vectors disagree on the shape of a weight, or on the base."""
    first = vectors[0]
    for other in vectors[1:]:
        for name, shape in other.shapes.items():
            if first.shapes.get(name, shape) != shape:
                raise UsageError(
                    f"the vectors belong to different models: {name} has shape "
                    f"{first.shapes[name]} in {first.origin} and {shape} in {other.origin}"
                )
        # A digest covers the changed weights, so it can be compared only if these are the same.
        same = first.shapes.keys() == other.shapes.keys()
        if same and first.base and other.base and first.base != other.base:
            raise UsageError(
                f"the vectors start from different weights ({first.origin}; {other.origin}); make "
                "both from one base in one dtype: rounded weights are other weights"
            )


def from_checkpoints(base: str | Path, tuned: str | Path) -> TaskVector:
    """theta_ft - theta_0 of two checkpoints on disk, float32, with one tensor in memory at a time.

    Args:
        base: folder, or file, of safetensors.
        tuned: the same weights after training; see ``TensorFiles.named_like`` for their names.

    Raises:
        ValueError: the checkpoints hold different weights; names the first that differs.
        FileNotFoundError: there is no such file or folder.
    """
    second = TensorFiles(tuned).named_like(TensorFiles(base).shapes)
    first = TensorFiles(base).named_like(second.shapes)
    first, second = (_without(files, tied_copies(files)) for files in (first, second))
    first, second = _with_tied(first, second), _with_tied(second, first)
    require_same_weights(first, second)

    def read(name: str) -> Tensor:
        return second.read(name).float() - first.read(name).float()

    shapes = {name: first.shapes[name] for name in first.shapes if name in second.shapes}
    return TaskVector(shapes, read, f"{second.path} - {first.path}", digest(shapes, first.read))


def _with_tied(files: TensorFiles, other: TensorFiles) -> TensorFiles:
    """The files with a tied weight under every name that the other files use for it."""
    ties = tied_weights(files)
    extended = copy.copy(files)
    extended.shapes, extended.stored = dict(files.shapes), dict(files.stored)
    for name, one in ties.items():
        if name in other.shapes and name not in files.shapes and one in files.shapes:
            extended.shapes[name], extended.stored[name] = files.shapes[one], files.stored[one]
    return extended


def _without(files: TensorFiles, names: Iterable[str]) -> TensorFiles:
    """The same files without some tensors."""
    reduced = copy.copy(files)
    reduced.shapes = {name: shape for name, shape in files.shapes.items() if name not in names}
    return reduced


def require_same_weights(first: TensorFiles, second: TensorFiles) -> None:
    """Raise ValueError if the weights of two checkpoints differ, naming the first that does."""
    for one, other in ((first, second), (second, first)):
        if missing := [name for name in one.shapes if name not in other.shapes]:
            raise UsageError(
                f"the checkpoints have different architectures: {missing[0]} is in {one.path} "
                f"and not in {other.path} ({len(missing)} such tensors)"
            )
    for name, shape in first.shapes.items():
        if shape != second.shapes[name]:
            raise UsageError(
                f"the checkpoints have different sizes: {name} has shape {shape} in "
                f"{first.path} and {second.shapes[name]} in {second.path}"
            )


def from_adapter(
    adapter: str | Path | nn.Module,
    *,
    base: nn.Module | None = None,
    weights: Mapping[str, float] | None = None,
) -> TaskVector:
    r"""What a LoRA adapter adds to the weights of its base.

    $$\tau = \sum_a w_a s_a B_a A_a, \qquad s = \alpha / r \text{ or } \alpha / \sqrt r$$

    Args:
        adapter: folder or hub id of a stored adapter, or a model in PEFT's wrapper, with its
            adapter merged, disabled or active; left unchanged.
        base: the plain base model of a stored adapter; it may be on the meta device, if a copy
            with random weights fits into memory.
        weights: for a wrapper, coefficients by adapter name; None: 1 for each active one.

    Raises:
        ValueError: names or shapes do not fit, the adapter is no sum of products, such as DoRA, or
            it changes nothing.
    """
    notes: list[str] = []
    if isinstance(adapter, nn.Module):
        products, origin = live_products(adapter, weights), "adapter"
    else:
        if base is None:
            raise UsageError("a stored adapter needs base=, the model that it belongs to")
        products, origin = stored_products(adapter, base), str(adapter)
        if source := getattr(base, "name_or_path", ""):
            notes = base_notes(adapter_folder(adapter), source, base_weights(base), products)
    if all(not (f.B.any() and f.A.any()) for parts in products.values() for f in parts):
        raise UsageError(
            f"the adapter ({origin}) is all zero: it is untrained and has no direction"
        )
    shapes = products_shapes(products)
    return TaskVector(
        shapes, lambda name: sum_of_products(products, name), origin, notes=tuple(notes)
    )


def from_step(
    model: nn.Module,
    step: Float[Tensor, " d"],
    *,
    space: ParamSpace,
    start: Float[Tensor, " d"] | None = None,
    origin: str = "step",
) -> TaskVector:
    r"""The change of the network's weights under a step of some parameters.

    $$\tau = s\,(B_1 A_1 - B_0 A_0)$$

    With LoRA it is the change of the product, which is not linear in the factors: half of the step
    does not give half of tau. For other parameters it is the step itself.

    Args:
        model: carries the parameters; left unchanged.
        step: from theta_0 to theta_1, in the coordinates of ``space``.
        space: the parameters that moved.
        start: theta_0; None: the current parameters.
        origin: how the step was made.

    Returns:
        The vector, with weights named as in ``model``. Added to a model with the adapter at
        theta_0, it gives the network at theta_1.

    Raises:
        ValueError: the adapter is no sum of products B A.
    """
    shapes, read = weight_change(model, space, step, start)
    return TaskVector(shapes, read, origin)


def from_training(
    model: nn.Module, path: Trajectory, *, start: int = 0, stop: int | None = None
) -> TaskVector:
    """The change of the weights in a recorded training, or in some of its steps.

    Args:
        model: that was trained, at any point; left unchanged.
        path: of its parameters, or of its adapter's factors (see ``from_step``).
        start: the number of steps before the vector begins.
        stop: the number of steps after which it ends; None: all.

    Raises:
        ValueError: the adapter is no sum of products B A.
    """
    ends = f"steps {start} to {len(path) if stop is None else stop} of a training"
    step = path.displacement(start, stop)
    return from_step(model, step, space=path.space, start=path.theta(start), origin=ends)


def save_task_vector(vector: TaskVector, path: str | Path) -> Path:
    """Write the vector as float32 safetensors, with one tensor in memory at a time."""
    about = {"format": FORMAT, "origin": vector.origin, "base": vector.base}
    return write_tensors(path, vector.shapes, vector.read, about)


def load_task_vector(path: str | Path) -> TaskVector:
    """Read a vector from ``save_task_vector``; tensors are read when needed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no task vector.
    """
    files = TensorFiles(path)
    about = files.about
    if about.get("format") != FORMAT:
        raise UsageError(
            f"{path} is not a task vector of frenet; for a checkpoint pass its base too"
        )
    if not {"origin", "base"} <= about.keys():
        raise UsageError(f"{path} does not name its origin; save the task vector again")
    return TaskVector(files.shapes, files.read, about["origin"], about["base"])
