"""Choosing the coefficients of a merge of two task vectors, and judging it on held-out examples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor, nn

from frenet.geometry import rng
from frenet.geometry.linalg import dot
from frenet.geometry.resampling import resampled_counts
from frenet.measure.gradients import gradient
from frenet.network.checkpoints.tensor_files import Read
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, Task, example_losses

# A vector that takes less than this share off its own task's loss has no gain to keep.
LEAST_GAIN = 0.1
# Limits of the coefficients of single blocks, and how often their search may take gradients.
LIMITS, LOOKS = (0.0, 2.0), 12
RESAMPLES = 1_000
# Summed loss of every example, or its target tokens, by task; tasks have their own numbers of them.
Losses = Mapping[str, Float[Tensor, " _"]]
# The number on all examples, and then on resampled ones.
Draws = Float[np.ndarray, " r"]
Coefficient = Callable[[str], float]


class Interval(NamedTuple):
    """A number with its 95% interval over examples."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, draws: Draws) -> "Interval":
        """The first of the numbers, and the percentiles of the others."""
        low, high = np.quantile(draws[1:], [0.025, 0.975])
        return cls(float(draws[0]), float(low), float(high))


@dataclass(frozen=True, eq=False)
class Yardstick:
    r"""How good a merge m of two task vectors is, on some examples of both tasks.

    The share of its gain that a task keeps, with its own vector tau, is

    $$\frac{L(\theta) - L(\theta + m)}{L(\theta) - L(\theta + \tau)}$$

    The score is the mean of both shares. If a vector takes less than a tenth off the loss of its
    own task, there is no gain to share, and the score is minus the mean of both losses.

    Attributes:
        counts: target tokens.
        none: losses without a change.
        alone: losses with the task's own vector alone.
        weights: how often each example is in each resample, (r, n) by task; the first row is ones.
    """

    counts: Losses
    none: Losses
    alone: Losses
    weights: Mapping[str, Float[np.ndarray, "r _"]]

    @classmethod
    def of(
        cls, counts: Losses, none: Losses, alone: Losses, *, seed: int, resamples: int = RESAMPLES
    ) -> "Yardstick":
        """With the resamples of a seed; both tasks are resampled apart."""
        weights = {}
        for task, values in counts.items():
            n = len(values)
            draw = rng.generator(seed, "merge", task)
            weights[task] = np.vstack([np.ones(n), resampled_counts(n, resamples, draw)])
        return cls(counts, none, alone, weights)

    def mean(self, task: str, losses: Losses) -> Draws:
        """Mean losses in nats per target token."""
        weights = self.weights[task]
        total: Draws = weights @ losses[task].double().numpy()
        return total / (weights @ self.counts[task].double().numpy())

    def gain(self, task: str) -> Draws:
        """What the task's own vector takes off its mean loss."""
        return self.mean(task, self.none) - self.mean(task, self.alone)

    def kept(self, task: str, losses: Losses) -> Draws:
        """The share of the task's gain that is left."""
        return (self.mean(task, self.none) - self.mean(task, losses)) / self.gain(task)

    def has_gain(self, task: str) -> bool:
        """Whether the task's own vector takes at least a tenth off its loss."""
        return bool(self.gain(task)[0] >= LEAST_GAIN * self.mean(task, self.none)[0])

    @property
    def shares(self) -> bool:
        """Whether the score is a share of the gains, and not minus a loss."""
        return all(map(self.has_gain, self.counts))

    def score(self, losses: Losses) -> Draws:
        """Larger is better."""
        if self.shares:
            return np.mean([self.kept(task, losses) for task in self.counts], axis=0)
        return -np.mean([self.mean(task, losses) for task in self.counts], axis=0)

    def slopes(self) -> dict[str, float]:
        """The derivative of the score in the mean loss of each task."""
        n, shares = len(self.counts), self.shares
        return {t: -1 / (n * (float(self.gain(t)[0]) if shares else 1.0)) for t in self.counts}

    def half(self, which: int) -> "Yardstick":
        """The same on the first (0) or second (1) half of each task's examples, not resampled."""
        weights = {task: w[:1, half_of(w.shape[1], which)] for task, w in self.weights.items()}
        counts, none, alone = (halved(each, which) for each in (self.counts, self.none, self.alone))
        return Yardstick(counts, none, alone, weights)


def half_of(n: int, which: int) -> slice:
    """The places of the first (0) or the second (1) half of n examples; a single one is in both."""
    middle = n // 2
    return (slice(0, max(1, middle)), slice(middle, n))[which]


def halved(losses: Losses, which: int) -> Losses:
    """The losses of the first (0) or the second (1) half of each task's examples."""
    return {task: values[half_of(len(values), which)] for task, values in losses.items()}


def blended(reads: Sequence[Read], coefficients: Sequence[Coefficient]) -> Read:
    """sum_i c_i tau_i, with a coefficient for each parameter."""

    def read(name: str) -> Tensor:
        return sum(
            (c(name) * r(name) for r, c in zip(reads, coefficients, strict=True) if c(name)),
            start=torch.zeros_like(reads[0](name)),
        )

    return read


def _column(
    chosen: np.ndarray, i: int, place: Mapping[str, int], blocks: Mapping[str, str]
) -> Coefficient:
    """The coefficient of the i-th vector in the block of a parameter."""
    return lambda name: float(chosen[place[blocks[name]], i])


def coefficients_by_block(
    model: nn.Module,
    tasks: Mapping[str, Task],
    batches: Mapping[str, Batch],
    reads: Sequence[Read],
    *,
    space: ParamSpace,
    blocks: Mapping[str, str],
    yardstick: Yardstick,
    start: Sequence[float],
) -> dict[str, tuple[float, ...]]:
    """A coefficient for each vector in each block, by the gradients of the score.

    L-BFGS-B within ``LIMITS``, from one pair of coefficients for all blocks; it takes ``LOOKS``
    gradients of both tasks.

    Args:
        model: the network; restored bit for bit.
        tasks: by name.
        batches: the examples to choose on.
        reads: of the vectors.
        space: the parameters that the vectors change.
        blocks: the block of each parameter.
        yardstick: on these examples.
        start: one coefficient for each vector.

    Returns:
        The coefficients by block; the best that were tried.
    """
    labels = list(dict.fromkeys(blocks[name] for name in space.names))
    place = {label: i for i, label in enumerate(labels)}
    slopes = yardstick.slopes()
    tried: list[tuple[float, np.ndarray]] = []

    def worse(flat: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the score, and its gradient in the coefficients."""
        chosen = flat.reshape(len(labels), len(reads))
        slope = np.zeros_like(chosen)
        change = blended(reads, [_column(chosen, i, place, blocks) for i in range(len(reads))])
        with space.restored(model):
            with torch.no_grad():
                for name, parameter in zip(space.names, space.parameters(model), strict=True):
                    parameter.add_(change(name).to(parameter.device))
            for task_name, task in tasks.items():
                g = space.unflatten(gradient(model, task, batches[task_name], space=space))
                for name, part in g.items():
                    for i, read in enumerate(reads):
                        along = dot(part.cpu(), read(name).cpu())
                        slope[place[blocks[name]], i] -= slopes[task_name] * along
            with torch.no_grad(), measuring(model):
                losses = {t: example_losses(model, b)[0].double().cpu() for t, b in batches.items()}
        value = -float(yardstick.score(losses)[0])
        tried.append((value, chosen.copy()))
        return value, slope.ravel()

    first = np.tile(np.asarray(start, dtype=float), len(labels))
    minimize(
        worse, first, jac=True, method="L-BFGS-B", bounds=[LIMITS] * len(first),
        options={"maxfun": LOOKS},
    )  # fmt: skip
    best = min(tried, key=lambda pair: pair[0])[1]
    return {label: tuple(map(float, best[i])) for label, i in place.items()}
