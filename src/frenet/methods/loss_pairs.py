"""Curvature from losses: pairs of opposite displacements, as long as those of a search."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet.geometry.linalg import dot, norm
from frenet.geometry.subspace import Basis
from frenet.geometry.theory import QuadraticModel, expected_maximum
from frenet.measure.gradients import gradient as slope_at
from frenet.methods.candidates import Candidates, Kind, Noise, Where, space_of
from frenet.methods.evaluation import Evaluator, row_scores
from frenet.methods.scores import Score
from frenet.network.hooks.batched_weights import can_group
from frenet.network.tasks import Batch, Task

# Losses are measured at the best sigma of so many candidates.
PROBED = 50
# The first sigma that is tried, as a share of the one at which a linear loss would gain all of the
# loss; pairs, and the share of the examples, for a trial.
FIRST, TRIAL_PAIRS, TRIAL_SHARE = 1 / 8, 2, 1 / 4
# Most trials, and the largest factors up and down between two; the last two are as close as CLOSE.
TRIALS, UP, DOWN, CLOSE = 6, 4.0, 1 / 8, 1.5
# The rise of a pair is at least so many times the rounding of a loss.
ABOVE_ROUNDING = 10
# Where the differences of pairs are a smaller share of what the slope predicts, the distance is too
# long: the loss may have levelled off, which pairs alone cannot tell from a lack of curvature.
FOLLOWED = 0.5
# One pair in so many is measured down the gradient as well.
MOVED = 4
# Relative difference of two losses of the same rows that is rounding.
SAME = 1e-5


class Place(NamedTuple):
    """A batch, and its loss at the current parameters in nats per token."""

    batch: Batch
    loss: float


class Losses:
    """Losses of candidates: of several in one pass, if the model and the task's loss allow it.

    Args:
        model: the network; left unchanged.
        task: gives the loss.
        where: the parameters that move, or a basis.
        place: shared passes are checked on its batch.
    """

    def __init__(self, model: nn.Module, task: Task, where: Where, place: Place) -> None:
        self.model, self.task, self.where = model, task, where
        start = Evaluator(where, Noise(1.0), self._score(place), place.batch)
        self.evaluator = start.decide(model)

    def _score(self, place: Place) -> Score:
        """The name of the loss per token if it is that of the task, which shares passes."""
        if can_group(self.model, space_of(self.where)):
            per_token = row_scores(self.model, "loss", place.batch).means()
            if math.isclose(-float(per_token), place.loss, rel_tol=SAME):
                return "loss"
        return self._of_task

    def _of_task(self, model: nn.Module, batch: Batch) -> float:
        return -float(self.task.loss(model, batch))

    def at_start(self, batch: Batch) -> Place:
        """The batch with its loss at the current parameters."""
        scores = row_scores(self.model, self.evaluator.score, batch, whole=True)
        return Place(batch, -float(scores.means()))

    def pairs(self, noise: Noise, draws: Sequence[int], batch: Batch) -> Float[Tensor, "n 2"]:
        """L(theta + delta) and L(theta - delta) of antithetic draws.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        evaluator = replace(self.evaluator, noise=noise).on(batch, self.model)
        scores = evaluator(self.model, [2 * j + side for j in draws for side in (0, 1)])
        return -torch.tensor(scores, dtype=torch.float64).view(-1, 2)

    def rises(self, noise: Noise, draws: Sequence[int], place: Place) -> Float[Tensor, " n"]:
        """(L(theta + delta) + L(theta - delta)) / 2 of antithetic draws, minus the place's loss.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        return self.pairs(noise, draws, place.batch).mean(1) - place.loss

    def linear(self, noise: Noise, draws: Sequence[int], batch: Batch) -> Float[Tensor, " n"]:
        """(L(theta + delta) - L(theta - delta)) / 2 of antithetic draws, of a linear loss."""
        slope = slope_at(self.model, self.task, batch, space=space_of(self.where))
        with Candidates(self.model, self.where, noise) as candidates:
            # One at a time: each is as long as all weights that move.
            found = [dot(candidates.delta(2 * j), slope) for j in draws]
        return torch.tensor(found, dtype=torch.float64)


class Curvature(NamedTuple):
    """The loss around a point, beside its slope.

    Attributes:
        local: on the selection batch, with the gradient.
        error: standard error of the trace.
        elsewhere: the trace on other examples.
        bend: share of the curvature that carries over to them, tr(H_other H) / tr(H^2).
        followed: the longest sigma that was tried at which the loss follows its slope, if it does
            not at a longer one.
    """

    local: QuadraticModel
    error: float
    elsewhere: float
    bend: float
    followed: float = math.inf


def curvature_from_losses(
    losses: Losses,
    here: Place,
    others: Sequence[Batch],
    slope: Float[Tensor, " k"],
    *,
    pairs: int,
    seed: int,
    kind: Kind,
) -> Curvature:
    """Traces from the rises of antithetic pairs, at about the best sigma.

    For delta = sigma z the rise of a pair is sigma^2 z.Hz / 2, and terms of even order above. Its
    mean over draws is sigma^2 tr(H) / 2. Its variance is sigma^4 tr(H^2) / 2, for signs without the
    diagonal of H; its covariance with the rise on other examples has tr(H_other H) for tr(H^2). The
    standard error of the trace is sqrt(2 tr(H^2) / pairs). Higher orders are in the traces as they
    count at this sigma, so that ``quartic`` is 0.

    g.Hg is what some of the pairs lack, m sigma down the gradient, of the linear decrease: as much
    further as a winner is. So it includes how the loss continues there.

    Args:
        losses: of the candidates.
        here: the selection batch.
        others: batches of other examples. Every pair is evaluated on one of them, in turn.
        slope: the gradient on the selection batch, in the coordinates that move; not zero.
        pairs: at least 2.
        seed: of the draws.
        kind: of the noise.
    """
    gradient = norm(slope)
    noise = Noise(1.0, seed=seed, antithetic=True, kind=kind)
    sigma, followed = _distance(losses, here, gradient, noise)
    noise = replace(noise, sigma=sigma)
    own = losses.rises(noise, range(pairs), here)
    away = torch.zeros_like(own)
    for i, batch in enumerate(others[:pairs]):
        taken = range(i, pairs, len(others))
        away[taken] = losses.rises(noise, taken, losses.at_start(batch))
    bends, bends_away = 2 * own / sigma**2, 2 * away / sigma**2
    spread = bends - bends.mean()
    square = float(spread @ spread)
    local = QuadraticModel(
        dim=len(slope),
        gradient=gradient,
        trace=float(bends.mean()),
        trace_square=square / (2 * (pairs - 1)),
        along=gradient**2 * _along(losses, noise, own, slope, here),
    )
    bend = float(spread @ bends_away) / square if square > 0 else 0.0
    error = float(bends.std()) / pairs**0.5
    return Curvature(local, error, float(bends_away.mean()), bend, followed)


def _along(
    losses: Losses, noise: Noise, rises: Tensor, slope: Float[Tensor, " k"], place: Place
) -> float:
    """u.Hu along the gradient's direction u, from the first pairs and the same further down."""
    gradient, few = norm(slope), max(1, len(rises) // MOVED)
    length = expected_maximum(PROBED) * noise.sigma
    down = losses.where.expand(slope) if isinstance(losses.where, Basis) else slope
    with space_of(losses.where).displaced(losses.model, down, -length / gradient):
        moved = losses.rises(noise, range(few), place)
    lacking = float((moved - rises[:few]).mean()) + length * gradient
    return 2 * lacking / length**2


def _distance(losses: Losses, place: Place, gradient: float, noise: Noise) -> tuple[float, float]:
    """About the best sigma, and the longest at which the loss follows its slope; inf if all do.

    At the best sigma the mean rise is half of a winner's luck from the slope. A few pairs on some
    of the examples are tried at one sigma after another. Where the loss does not rise above its
    rounding, the next sigma is larger, up to the one at which a linear loss would gain all of the
    loss. Where the loss does not follow its slope, it is smaller.
    """
    luck = expected_maximum(PROBED) * gradient
    most = place.loss / luck
    count = max(1, round(TRIAL_SHARE * len(place.batch["labels"])))
    some = losses.at_start({key: value[:count] for key, value in place.batch.items()})
    linear = losses.linear(noise, range(TRIAL_PAIRS), some.batch)
    dtypes = {p.dtype for p in losses.model.parameters() if p.is_floating_point()}
    rounding = max(torch.finfo(dtype).eps for dtype in dtypes) * max(place.loss, 1.0)
    sigma, too_short, too_long = FIRST * most, 0.0, math.inf
    followed: list[float] = []
    left = False
    for _ in range(TRIALS):
        try:
            pairs = losses.pairs(replace(noise, sigma=sigma), range(TRIAL_PAIRS), some.batch)
            rise = float(pairs.mean(1).mean()) - some.loss
            follows = _follows(pairs, sigma * linear, rounding)
        except FloatingPointError:
            rise, follows = math.inf, False
        factor = UP
        if rise > rounding:
            factor = max(luck * sigma / (2 * rise), (ABOVE_ROUNDING * rounding / rise) ** 0.5)
        if follows:
            followed.append(sigma)
        else:
            factor, left = min(factor, 1 / UP), True
        if factor > 1:
            too_short = sigma
        else:
            too_long = sigma
        before, sigma = sigma, min(sigma * min(max(factor, DOWN), UP), most)
        if not too_short <= sigma < too_long:
            sigma = (too_short * too_long) ** 0.5
        if 1 / CLOSE < sigma / before < CLOSE:
            break
    limit = max(followed, default=sigma) if left else math.inf
    return min(sigma, limit), limit


def _follows(pairs: Float[Tensor, "n 2"], linear: Float[Tensor, " n"], rounding: float) -> bool:
    """Whether the differences of pairs are what the slope predicts, or cannot be told from it."""
    found = (pairs[:, 0] - pairs[:, 1]) / 2
    if float(linear.abs().max()) <= ABOVE_ROUNDING * rounding:
        return True
    return float(found @ linear) >= FOLLOWED * float(linear @ linear)
