"""Training with a record of its path through parameter space."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet._notebook import Fact, Shown
from frenet.geometry.basis import Basis, prefix_basis
from frenet.geometry.linalg import norm
from frenet.network.checkpoints.series import checkpoint_series
from frenet.network.measuring import measuring
from frenet.network.memory import require_memory
from frenet.network.space import ParamSpace
from frenet.network.tasks import Task, repeatable

Watcher = Callable[[int], bool]
# Numbers in a float64 copy of steps in a sum.
ROOM = 2**22

_OPTIMIZERS: dict[str, Callable[[list[Tensor], float], torch.optim.Optimizer]] = {
    "adam": lambda p, lr: torch.optim.Adam(p, lr=lr),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr),
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr),
}


@dataclass(frozen=True)
class Training:
    """How to train; ``optimizer`` is ``name:rate``, such as ``adam:3e-5`` or ``sgd:0.01``."""

    optimizer: str
    batch_size: int = 64
    steps: int = 400
    clip: float | None = 1.0
    seed: int = 0

    def make(self, parameters: list[Tensor], *, scale: float = 1.0) -> torch.optim.Optimizer:
        """The torch optimiser for these tensors, its learning rate multiplied by ``scale``."""
        name, _, text = self.optimizer.partition(":")
        try:
            rate = float(text)
        except ValueError:
            rate = math.nan
        if name not in _OPTIMIZERS or not 0 <= rate < math.inf:
            raise UsageError(
                f"optimizer {self.optimizer!r} is not NAME:RATE with NAME one of "
                f"{', '.join(_OPTIMIZERS)} and a finite RATE, such as adam:3e-5"
            )
        return _OPTIMIZERS[name](parameters, rate * scale)


@dataclass(frozen=True, repr=False)
class Trajectory(Shown):
    """A path theta_0 .. theta_T: its start and the optimiser's own steps.

    Attributes:
        start: theta_0, shape (d,), float32. All vectors are on the CPU.
        steps: the optimiser's theta_{t+1} - theta_t, shape (T, d), float32. Differences of float32
            parameters would lose 1% of a small step, and of bf16 parameters all of it.
        losses: training loss in nats per token before each step, shape (T,).
        gradients: the clipped gradients, shape (T, d), or None if they were not recorded.
        space: the parameters.
        numbers: optimiser steps taken at theta_0 .. theta_T, for a path of checkpoints, of which
            each step is the sum of many. Empty: 0 .. T.
    """

    start: Float[Tensor, " d"]
    steps: Float[Tensor, "T d"]
    losses: Float[Tensor, " T"]
    gradients: Float[Tensor, "T d"] | None
    space: ParamSpace
    numbers: tuple[int, ...] = ()

    @classmethod
    def from_checkpoints(
        cls, folders: Sequence[str | Path], *, space: ParamSpace | None = None
    ) -> "Trajectory":
        """The path through the checkpoints of a finished training, of a model or of an adapter.

        Its steps are as coarse as the checkpoints: all that is measured along it is known only
        between two of them. Differences of bfloat16 weights have the rounding of both.

        Args:
            folders: at least two, such as ``checkpoint-*`` of Trainer, in any order.
            space: the parameters to read, such as those of the model that the path is used with.
                None: every weight in the files.

        Returns:
            The path, from the first checkpoint; ``losses`` are NaN.

        Raises:
            ValueError: checkpoints of different models, or without a step; or the space has a
                parameter that they do not have.
            MemoryError: it does not fit; raised before any allocation.
        """
        found = checkpoint_series(folders)
        shapes = found[0].files.shapes
        chosen = space or ParamSpace(tuple(shapes), tuple(shapes.values()))
        for name, shape in zip(chosen.names, chosen.shapes, strict=True):
            if shapes.get(name) != shape:
                raise UsageError(
                    f"the space has {name} of shape {shape}, which {found[0].folder} does not have"
                )
        require_memory(
            (4 * len(found) + 4) * chosen.dim,
            f"a path of {len(found)} checkpoints of {chosen.dim:,} parameters",
            device=torch.device("cpu"),
            remedy="pass fewer checkpoints, or a smaller space",
        )
        points = (
            torch.cat([point.files.read(name).float().flatten() for name in chosen.names])
            for point in found
        )
        start = last = next(points)
        steps = torch.empty(len(found) - 1, chosen.dim)
        for row, point in zip(steps, points, strict=True):
            torch.sub(point, last, out=row)
            last = point
        losses = torch.full((len(steps),), math.nan)
        return cls(start, steps, losses, None, chosen, tuple(point.step for point in found))

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def lags(self) -> tuple[int, ...]:
        """Optimiser steps from the start to theta_0 .. theta_T."""
        if not self.numbers:
            return tuple(range(len(self) + 1))
        return tuple(number - self.numbers[0] for number in self.numbers)

    def moved(self) -> dict[int, float]:
        """||theta - theta_0|| by the optimiser steps from the start, at every point."""
        return dict(zip(self.lags, self.distances(len(self)), strict=True))

    def _summary(self) -> str:
        if not self.numbers:
            return f"{len(self)} steps, d = {self.space.dim}"
        return (
            f"{len(self) + 1} checkpoints of steps {self.numbers[0]} to {self.numbers[-1]}, "
            f"d = {self.space.dim}; nothing is known between two"
        )

    def _entries(self) -> Iterator[Fact]:
        if self.numbers:
            widest = max(b - a for a, b in itertools.pairwise(self.numbers))
            yield "checkpoints", len(self) + 1, f"at most {widest} steps apart"
        if len(self):
            walk = norm(self.steps)
            beside = f"{walk:.4g} by a random walk of these step lengths"
            yield "distance", norm(self.displacement()), beside
        if len(self) and not self.numbers:
            first = f"{float(self.losses[0]):.4g} before the first"
            yield (
                "training loss before the last step (nats per token)",
                float(self.losses[-1]),
                first,
            )

    def displacement(self, start: int = 0, stop: int | None = None) -> Float[Tensor, " d"]:
        """theta_stop - theta_start, summed in float64."""
        return _summed(self.steps[start:stop]).float()

    def distances(self, stop: int) -> list[float]:
        """||theta_t - theta_0|| for t = 0 .. stop, summed in float64."""
        total = torch.zeros(self.space.dim, dtype=torch.float64)
        return [0.0, *(float(total.add_(step).norm()) for step in self.steps[:stop])]

    def theta(self, step: int) -> Float[Tensor, " d"]:
        """theta_step."""
        return (self.start.double() + _summed(self.steps[:step])).float()

    def prefix(self, k: int) -> Basis:
        """The discrete Frenet frame: the first k steps, orthonormalised in order."""
        return prefix_basis(self.steps, k, space=self.space)

    def truncated(self, steps: int) -> "Trajectory":
        """The first ``steps`` steps."""
        gradients = None if self.gradients is None else self.gradients[:steps]
        return Trajectory(
            self.start, self.steps[:steps], self.losses[:steps], gradients, self.space,
            self.numbers[: steps + 1],
        )  # fmt: skip


def _summed(steps: Float[Tensor, "t d"]) -> Float[Tensor, " d"]:
    """The sum of the steps in float64, some columns at a time, without a float64 copy of all.

    Groups of a multiple of 64 columns are summed in the same order as the whole.
    """
    width = max(64, ROOM // max(1, len(steps)) // 64 * 64)
    parts = [part.sum(0, dtype=torch.float64) for part in steps.split(width, dim=1)]
    return torch.cat(parts)


def train_and_record(
    model: nn.Module,
    task: Task,
    training: Training,
    *,
    space: ParamSpace,
    watch: Watcher | None = None,
    keep_gradients: bool = False,
) -> Trajectory:
    """Train ``model`` in ``space`` and record every step. The model stays at the last point.

    The optimiser works on a float64 copy of the parameters, and the model gets its rounded values
    before each gradient. So a recorded step is the optimiser's, to float32 precision, for every
    optimiser, with weight decay, and also for bf16 models.

    Args:
        model: the network. Dropout is off.
        task: its train split is trained on.
        training: optimiser, batch size, number of steps, clipping, seed of the minibatches.
        space: the d parameters that move.
        watch: called with t after step t = 1, 2, ..., with the model at theta_t; True stops.
        keep_gradients: record the clipped gradients too.

    Returns:
        The trajectory.

    Raises:
        FloatingPointError: a loss or gradient is not finite; names step and task (and parameter).
        MemoryError: steps x d does not fit; raised before any allocation.
        ValueError: the task is not repeatable.
    """
    rows = training.steps * (2 if keep_gradients else 1)
    require_memory(
        # Rows in float32; point, gradient, step and two moments in float64.
        (4 * rows + 8 * 6) * space.dim,
        f"a trajectory of {training.steps} steps of {space.dim:,} parameters",
        device=torch.device("cpu"),
        remedy="pass fewer steps, or select fewer parameters (LoRA)",
    )
    start = space.read(model).cpu()
    descent = Descent(model, space, training)
    steps = torch.empty(training.steps, space.dim)
    gradients = torch.empty_like(steps) if keep_gradients else None
    losses: list[float] = []
    batches = repeatable(task, "train", training.batch_size, training.seed)
    with measuring(model, space), torch.enable_grad():
        for t, batch in zip(range(1, training.steps + 1), batches, strict=False):
            loss = task.loss(model, batch)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"the loss of task {task.name} is {losses[-1]} before step {t} "
                    f"({training.optimizer}); lower the learning rate"
                )
            gradient = descent.gradient(loss, f"the gradient of task {task.name} at step {t}")
            steps[t - 1] = descent.advance(gradient)
            if gradients is not None:
                gradients[t - 1] = gradient
            if watch is not None and watch(t):
                break
    taken = len(losses)
    recorded = None if gradients is None else gradients[:taken]
    return Trajectory(start, steps[:taken], torch.tensor(losses), recorded, space)


class Descent:
    """The optimiser on one flat float64 copy of the parameters: few operations per step."""

    def __init__(self, model: nn.Module, space: ParamSpace, training: Training) -> None:
        self.space, self.clip = space, training.clip
        self.parameters = space.parameters(model)
        self.point = torch.cat([p.detach().reshape(-1).double() for p in self.parameters])
        # Views of the point, which the optimiser changes in place.
        self.parts = space.unflatten(self.point).values()
        self.optimizer = training.make([self.point])
        self.unused: list[slice] = []

    def gradient(self, loss: Float[Tensor, ""], what: str) -> Float[Tensor, " d"]:
        """The gradient in float64, its norm at most ``clip``."""
        parts = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        ends = list(itertools.accumulate(self.space.sizes))
        spans = [slice(end - n, end) for end, n in zip(ends, self.space.sizes, strict=True)]
        self.unused = [span for span, part in zip(spans, parts, strict=True) if part is None]
        filled = [
            torch.zeros_like(p) if part is None else part
            for p, part in zip(self.parameters, parts, strict=True)
        ]
        flat = torch.cat([part.reshape(-1) for part in filled]).double()
        norm = flat.norm()
        if not torch.isfinite(norm):
            self.space.check_finite(flat, what)
        return flat if self.clip is None else flat * (self.clip / norm).clamp(max=1.0)

    def advance(self, gradient: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """Take one step, set the model to the rounded point, return the step."""
        before = self.point.clone()
        self.point.grad = gradient
        self.optimizer.step()
        for span in self.unused:
            # torch does not move parameters without a gradient; weight decay would.
            self.point[span] = before[span]
        with torch.no_grad():
            for parameter, part in zip(self.parameters, self.parts, strict=True):
                parameter.copy_(part)
        return self.point - before
