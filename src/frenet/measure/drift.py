"""How long a basis stays useful during training."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.geometry import energy, linalg
from frenet.measure.bracket import Bracket
from frenet.measure.gradients import example_gradients, gradient_matrix
from frenet.measure.trajectory import Training, Trajectory, train_and_record
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import IGNORE, Batch, Task
from frenet.statistics.intervals import Estimate, mean_interval

Vectors = tuple[Float[Tensor, "a d"], Float[Tensor, "b d"], Float[Tensor, "c d"]]


class UndefinedDriftError(UsageError):
    """Two bases cannot be compared, because one has no energy; the message says which."""


class Drift(NamedTuple):
    """A basis of step s, compared with step t.

    Attributes:
        ratio: energy of held-out gradients at t in the basis of s, over that in a fresh basis of t.
        control: the same with t = s and new minibatches: 1 up to sampling.
        fresh: held-out energy at t in the fresh basis, the denominator.
        overlap: ||U_s^T U_t||^2 / k over the root of the two ceilings; may exceed 1.
        ceiling_s: overlap of two bases of s from different minibatches.
        ceiling_t: the same at t.
    """

    ratio: float
    control: float
    fresh: float
    overlap: float
    ceiling_s: float
    ceiling_t: float


class Losses(NamedTuple):
    """The loss of every example of one fixed batch at one point.

    Attributes:
        rows: mean loss of every example, in nats per target token.
        tokens: target tokens of every example.
    """

    rows: Float[Tensor, " b"]
    tokens: Int[Tensor, " b"]

    @property
    def mean(self) -> float:
        """Over all target tokens, in nats per token."""
        return float((self.rows * self.tokens).sum() / self.tokens.sum())

    def change_from(self, before: "Losses") -> Estimate:
        """The mean minus an earlier one, with its 95% interval over examples, paired by example.

        As a ratio of two sums over n examples with w_i tokens each, R = sum w_i d_i / sum w_i, it
        has Student's interval of the values R + w_i (d_i - R) / mean(w).

        Source: Cochran (1977), Sampling techniques, 2.11, for the variance of a ratio.

        >>> tokens = torch.tensor([1, 1, 1])
        >>> before, after = (Losses(torch.tensor(x), tokens) for x in ([4.0, 4, 4], [3.0, 2, 1]))
        >>> print(after.change_from(before))
        -2 [-4.48, 0.484], n = 3
        """
        change = self.mean - before.mean
        weights = self.tokens / self.tokens.double().mean()
        return mean_interval((change + weights * (self.rows - before.rows - change)).tolist())


def select_losses(model: nn.Module, task: Task, *, size: int) -> Losses:
    """The loss of every example in the batch of ``fixed_loss``, the first one with seed 0."""
    batch = next(task.batches("select", size, 0))
    tokens = (batch["labels"] != IGNORE).sum(1)
    rows = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(len(tokens))]
    with measuring(model), torch.no_grad():
        losses = torch.stack([task.loss(model, row) for row in rows])
    return Losses(losses.double().cpu(), tokens)


def train_and_compare(
    model: nn.Module,
    task: Task,
    training: Training,
    *,
    space: ParamSpace,
    lags: Sequence[int],
    n: int,
    k: int,
) -> tuple[Trajectory, dict[int, Drift], dict[int, Losses]]:
    """Train, and after every lag compare the start's top-k gradient basis with a fresh one.

    Args:
        model: the network; ends at the last step.
        task: trained on; also gives the gradients.
        training: ``steps`` is at least the last lag.
        space: the d parameters.
        lags: steps after which to compare.
        n: gradients in each of the three sets of a snapshot; two snapshots are in memory.
        k: basis dimension, at most n.

    Returns:
        The trajectory, the drift by lag, and the losses by lag (with lag 0).
    """
    start = snapshot(model, task, training, space=space, n=n, step=0)
    drifts: dict[int, Drift] = {}
    losses = {0: select_losses(model, task, size=training.batch_size)}

    def look(step: int) -> bool:
        if step in lags:
            now = snapshot(model, task, training, space=space, n=n, step=step)
            drifts[step] = basis_drift(start, now, k)
            losses[step] = select_losses(model, task, size=training.batch_size)
        return False

    return train_and_record(model, task, training, space=space, watch=look), drifts, losses


def snapshot(
    model: nn.Module, task: Task, training: Training, *, space: ParamSpace, n: int, step: int
) -> Vectors:
    """Three sets of n unit gradients at the current point; other minibatches at every step."""
    rows = gradient_matrix(
        model,
        task,
        space=space,
        n=3 * n,
        batch_size=training.batch_size,
        seed=training.seed + 1_000_003 * (step + 1),
    )
    return _thirds(rows)


def example_snapshot(model: nn.Module, task: Task, batch: Batch, *, space: ParamSpace) -> Vectors:
    """Unit gradients of single examples from one pass, in three sets of equal size.

    Args:
        model: the network; left unchanged.
        task: gives the loss.
        batch: 3n examples.
        space: the d selected parameters.
    """
    return _thirds(example_gradients(model, task, batch, space=space))


def _thirds(rows: Float[Tensor, "n d"]) -> Vectors:
    """The rows at unit norm (in place), in three sets."""
    rows /= linalg.norms(rows)[:, None].clamp(min=1e-30).to(rows)
    fit, again, held_out = rows.split(len(rows) // 3)
    return fit, again, held_out


def basis_drift(then: Vectors, now: Vectors, k: int, *, paired: bool = False) -> Drift:
    """Drift of the top-k basis from one set of unit vectors to another, from one Gram matrix.

    Args:
        then: three sets of unit vectors from step s: to fit a basis, to fit another, held out.
        now: three sets from step t.
        k: basis dimension, at most the size of a fitting set.
        paired: both have the same examples. The ratio is then exactly 1 without a change, and the
            overlap is taken between sets of different examples, like its ceilings, since gradients
            of the same examples overlap more.

    Raises:
        UndefinedDriftError: all vectors of a set are zero, or the held-out ones have no energy in
            the basis of their step.
    """
    sets = [*then, *now]
    K = linalg.gram_of(sets)
    for which, part in zip(("then", "now"), (then, now), strict=True):
        if not all(bool(rows.any()) for rows in part):
            raise UndefinedDriftError(
                f"all vectors of one set of those {which} are zero, so they span no basis: nothing "
                "is left to learn, or the selected parameters have no gradient"
            )
    parts = torch.arange(len(K)).split([len(part) for part in sets])
    old, old_again, old_test, new, new_again, test = parts

    def energy_of(held_out: Tensor, basis: Tensor) -> float:
        return float(energy.captured_energy(K, basis, held_out, [k])[0])

    fresh, old_energy = energy_of(test, new), energy_of(old_test, old)
    ceilings = energy.overlap(K, old, old_again, k), energy.overlap(K, new, new_again, k)
    if not min(fresh, old_energy, *ceilings) > 0:
        raise UndefinedDriftError(
            "held-out vectors have no energy in a basis of the same step, so two steps cannot be "
            "compared; use more vectors, or parameters that all examples share"
        )
    return Drift(
        ratio=energy_of(test, old) / fresh,
        control=energy_of(old_test, old_again) / old_energy,
        fresh=fresh,
        overlap=energy.overlap(K, old, new_again if paired else new, k)
        / (ceilings[0] * ceilings[1]) ** 0.5,
        ceiling_s=ceilings[0],
        ceiling_t=ceilings[1],
    )


def update_drift(steps: Float[Tensor, "T d"], *, window: int, k: int) -> dict[int, Drift]:
    """Drift of the basis of the first window of updates, compared with later windows.

    Every third step of a window is held out, the other two thirds fit two bases. Overlapping
    windows would have a half-life of half a window in any training. A half-life shorter than the
    first window is known only by that bound.

    Args:
        steps: optimiser steps, shape (T, d).
        window: length of a window in steps, at least 3k.
        k: basis dimension.

    Returns:
        Drift by lag in steps; empty with only one window.
    """
    if k < 1 or window < 3 * k:
        raise UsageError(f"window={window} is too short for k={k}; a third of it must hold k steps")
    unit = steps / linalg.norms(steps)[:, None].clamp(min=1e-30).to(steps)
    windows = [block for block in unit.split(window) if len(block) == window]
    thirds = [(block[0::3], block[1::3], block[2::3]) for block in windows]
    return {i * window: basis_drift(thirds[0], thirds[i], k) for i in range(1, len(thirds))}


def half_life(
    ratios: Mapping[int, float] | Mapping[float, float],
    level: float = 0.5,
    *,
    moved: Mapping[int, float] | Mapping[float, float] | None = None,
) -> Bracket:
    """The two lags between which a ratio first fell to ``level``.

    A fall and rise between two lags is missed.

    Args:
        ratios: lag -> ratio, at least one; any unit of lag. At lag 0 the ratio is 1 by definition.
            Ratios that are not finite are left out.
        level: in (0, 1).
        moved: lag -> distance from the start, for all lags of ``ratios`` and perhaps others. The
            bracket then holds distances: the least and the greatest between the last lag above
            ``level`` and the first that is not.

    Returns:
        The bracket, in the unit of the lags or distances. Without a crossing it has the last lag,
        or the greatest distance.

    Raises:
        ValueError: there is no finite ratio, or that at lag 0 is not above ``level``.

    >>> print(half_life({0: 1.0, 10: 0.75, 20: 0.25}))
    between 10 and 20
    >>> print(half_life({0: 1.0, 10: 0.75, 20: 0.25}, moved={0: 0.0, 10: 3.0, 15: 3.5, 20: 2.0}))
    between 2 and 3.5
    >>> print(half_life({0: 1.0, 60: 0.02}), half_life({0: 1.0, 10: 0.75}), sep=", ")
    at most 60, more than 10
    """
    points = sorted((float(lag), float(r)) for lag, r in ratios.items() if math.isfinite(r))
    if not points:
        raise UsageError("there is no finite ratio; measure at least one lag")
    if points[0][0] == 0 and points[0][1] <= level:
        raise UsageError(
            f"the ratio at lag 0 is {points[0][1]:.4g}, which is not above level={level}; pass "
            "ratios to the value at the start"
        )
    places = None if moved is None else {float(lag): float(at) for lag, at in moved.items()}
    before, high = 0.0, 1.0
    for after, low in points:
        if low > level:
            before, high = after, low
            continue
        share = (high - level) / (high - low)
        if places is None:
            return Bracket.between(before, after, before + (after - before) * share)
        start, end = places.get(before, 0.0), places[after]
        passed = [at for lag, at in places.items() if before <= lag <= after] + [start]
        return Bracket.between(min(passed), max(passed), start + (end - start) * share)
    return Bracket(before if places is None else max(places.values()), None)
