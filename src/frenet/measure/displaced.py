"""Losses and activations where several displacements of the weights are added, each at a scale."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.geometry.linalg import norm
from frenet.measure.activations import last_activations
from frenet.network.checkpoints.scaled_adapter import ScaledAdapter
from frenet.network.checkpoints.tensor_files import Read
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import IGNORE, Batch, example_losses

# How far along each displacement, by its name; one that is left out counts as 0.
Scales = Mapping[str, float]
# The same as a key: the scales that are not 0, by name.
_Place = tuple[tuple[str, float], ...]


@dataclass(eq=False)
class Mover:
    """A model whose weights are put to theta + sum_i s_i v_i.

    Attributes:
        model: the network.
        displacements: v_i by name; each returns its part in a parameter of the space.
        space: the parameters that move.
        start: theta, in the order of the space.
        writes: how often the weights were written.
    """

    model: nn.Module
    displacements: Mapping[str, Read]
    space: ParamSpace
    start: Sequence[Tensor]
    writes: int = 0
    _place: _Place = ()

    def to(self, scales: Scales) -> None:
        """Move the weights to theta + sum_i s_i v_i, with sums in their dtype.

        Raises:
            ValueError: there is no displacement of that name.
        """
        place = self.place(scales)
        if place == self._place:
            return
        parameters = self.space.parameters(self.model)
        with torch.no_grad():
            for name, parameter, here in zip(self.space.names, parameters, self.start, strict=True):
                # The displacements are added to each other first: of two, the order is no matter.
                parts = [s * self.displacements[which](name).to(here) for which, s in place]
                parameter.copy_(here + sum(parts[1:], parts[0]) if parts else here)
        self._place = place
        self.writes += 1

    def place(self, scales: Scales) -> _Place:
        """The scales that are not 0, sorted by name.

        Raises:
            ValueError: there is no displacement of that name.
        """
        if unknown := [name for name in scales if name not in self.displacements]:
            raise UsageError(
                f"there is no displacement {unknown[0]!r}; there are "
                f"{', '.join(self.displacements)}"
            )
        return tuple(sorted((name, float(s)) for name, s in scales.items() if s != 0))


@contextmanager
def moving(
    model: nn.Module, displacements: Mapping[str, Read], *, space: ParamSpace
) -> Iterator[Mover]:
    """A model that can be moved along several displacements; restored bit for bit afterwards.

    It holds one copy of the weights. A displacement is read tensor by tensor at every place, so
    that adapters stay products of small matrices.

    Args:
        model: the network.
        displacements: by name, functions that return the float32 part in each parameter of the
            space, such as ``TaskVector.read``.
        space: the parameters that move.

    Raises:
        ValueError: a displacement is zero or not finite, or the parameters are below float32, which
            rounds small steps away.
    """
    space.require_float32(model, "a displacement of the weights")
    for name, read in displacements.items():
        length = math.hypot(*(norm(read(each)) for each in space.names))
        if length == 0 or not math.isfinite(length):
            what = "zero and gives no direction" if length == 0 else "not finite"
            raise UsageError(f"the displacement {name!r} is {what}; leave it out")
    with space.restored(model) as start:
        yield Mover(model, displacements, space, start)


@dataclass(eq=False)
class DisplacedLosses:
    """The loss of every example of some tasks at theta + sum_i s_i v_i.

    Each is computed once at each place, also if several pairs of displacements ask for it.

    Attributes:
        mover: the model and its displacements.
        batches: the examples of each task, by its name.
        passes: batches that were evaluated.
    """

    mover: Mover
    batches: Mapping[str, Batch]
    passes: int = 0
    _known: dict[tuple[str, _Place], Float[Tensor, " n"]] = field(default_factory=dict)
    _counts: dict[str, Float[Tensor, " n"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for task, batch in self.batches.items():
            if not len(batch["labels"]) or not bool((batch["labels"] != IGNORE).any()):
                raise UsageError(
                    f"task {task!r} has no test rows with a target, so its loss is not known; pass "
                    "more rows"
                )

    def at(self, task: str, scales: Scales) -> Float[Tensor, " n"]:
        """The summed loss of every example in nats, float64."""
        place = self.mover.place(scales)
        if (task, place) not in self._known:
            self.mover.to(scales)
            with torch.no_grad(), measuring(self.mover.model):
                losses, counts = example_losses(self.mover.model, self.batches[task])
            self._known[task, place] = losses.double().cpu()
            self._counts[task] = counts.double().cpu()
            self.passes += 1
        return self._known[task, place]

    def counts(self, task: str) -> Float[Tensor, " n"]:
        """Target tokens of every example."""
        if task not in self._counts:
            self.at(task, {})
        return self._counts[task]

    def curve(self, task: str, name: str) -> "LossCurve":
        """The losses of a task over the scale of one displacement."""
        return LossCurve(lambda scale: self.at(task, {name: scale}), self.counts(task))

    def plane(self, task: str, first: str, second: str) -> "LossPlane":
        """The losses of a task over the scales of two displacements.

        Both may be the same: then they are added.
        """

        def at(x: float, y: float) -> Float[Tensor, " n"]:
            scales = {first: x + y} if first == second else {first: x, second: y}
            return self.at(task, scales)

        return LossPlane(at, self.counts(task))


class LossCurve(NamedTuple):
    """The losses of n examples with a change of the network at a scale; 0 is without it.

    Attributes:
        at: the summed loss of every example at a scale, (n,) in float64.
        counts: target tokens of each example, (n,).
    """

    at: Callable[[float], Float[Tensor, " n"]]
    counts: Float[Tensor, " n"]

    def __repr__(self) -> str:
        return f"<LossCurve: {len(self.counts)} examples, loss {self.mean(0.0):.4g} at 0>"

    def mean(self, scale: float) -> float:
        """The mean loss in nats per target token."""
        return float(self.at(scale).sum() / self.counts.sum())


def adapter_curve(adapter: ScaledAdapter, batch: Batch) -> LossCurve:
    """The losses of a batch with a stored adapter, over the factor of its scale."""

    @cache
    def run(scale: float) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        with adapter.at(scale) as model, torch.no_grad(), measuring(model):
            losses, counts = example_losses(model, batch)
        return losses.double().cpu(), counts.double().cpu()

    return LossCurve(lambda scale: run(scale)[0], run(0.0)[1])


class LossPlane(NamedTuple):
    """The losses of n examples at theta + x a + y b.

    Attributes:
        at: the summed loss of every example at scales x and y, (n,) in float64.
        counts: target tokens of each example, (n,).
    """

    at: Callable[[float, float], Float[Tensor, " n"]]
    counts: Float[Tensor, " n"]

    def __repr__(self) -> str:
        return f"<LossPlane: {len(self.counts)} examples, loss {self.mean(0.0, 0.0):.4g} at 0>"

    def mean(self, x: float, y: float) -> float:
        """The mean loss in nats per target token."""
        return float(self.at(x, y).sum() / self.counts.sum())


@dataclass(eq=False)
class DisplacedStreams:
    """The residual stream at the last token of some prompts at theta + sum_i s_i v_i.

    Attributes:
        mover: the model and its displacements.
        prompts: n lists of token ids.
        blocks: l block indices.
        path: dotted name of the list of blocks; None: frenet looks for it.
    """

    mover: Mover
    prompts: Sequence[Sequence[int]]
    blocks: Sequence[int]
    path: str | None = None
    _known: dict[_Place, Float[Tensor, "n l h"]] = field(default_factory=dict)

    def shift(self, scales: Scales) -> Float[Tensor, "n l h"]:
        """The change of the stream against theta, float64."""
        return self._at(scales) - self._at({})

    def _at(self, scales: Scales) -> Float[Tensor, "n l h"]:
        place = self.mover.place(scales)
        if place not in self._known:
            self.mover.to(scales)
            streams = last_activations(self.mover.model, self.prompts, self.blocks, path=self.path)
            self._known[place] = streams.double().cpu()
        return self._known[place]
