"""Gaussian random search around trained weights, reported on held-out data."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet._notebook import Fact, Interval, Shown
from frenet.geometry.linalg import norm
from frenet.geometry.subspace import Basis
from frenet.measure.gradients import gradient as slope_at
from frenet.methods.candidates import Candidates, Noise, Where, space_of
from frenet.methods.evaluation import Evaluator, predictions, row_scores
from frenet.methods.plan import Plan
from frenet.methods.scores import RowScores, vote_scores
from frenet.methods.search_result_files import save_winner
from frenet.methods.selection import Selection as Selection
from frenet.methods.selection import drop_duplicates as drop_duplicates
from frenet.methods.selection import require_disjoint
from frenet.network.tasks import Batch, Task, repeatable
from frenet.statistics.intervals import Estimate

Chunk = Sequence[int]
# An engine takes chunks of candidates, and yields each with its scores, in any order.
Engine = Callable[[nn.Module, Evaluator, Sequence[Chunk]], Iterator[tuple[Chunk, Sequence[float]]]]
# Candidates in a chunk: enough to share forward passes, few enough to show progress.
CHUNK = 32
# Above this share of weights that rounding leaves unchanged, the noise is not what was requested.
MOST_UNMOVED = 0.05


class Gain(NamedTuple):
    """A score before and after, and the difference with its 95% interval over examples."""

    before: float
    after: float
    gain: Estimate


@dataclass(frozen=True, repr=False)
class SearchResult(Shown):
    """The result of a search.

    Attributes:
        noise: reproduces every candidate from its index.
        scores: (N,) on the selection batch, larger is better.
        before: score of the unperturbed weights on the selection batch.
        order: indices from best to worst; equal scores in the order of the indices.
        held_out: the winner on the test split. Only this measures the gain: the best of many
            scores is high by luck.
        vote: the top K voting on every token of the test split; None for a user's score.
        average: the mean of the top K displacements, on the test split.
        unmoved: share of the winner's weights that their dtype rounded back.
        place: the model and the parameters of the search, for ``save``.
    """

    noise: Noise
    scores: Float[Tensor, " n"]
    before: float
    order: tuple[int, ...]
    held_out: Gain
    vote: Gain | None
    average: Gain
    unmoved: float
    place: tuple[nn.Module, Where] | None = field(default=None, compare=False)

    @property
    def winner(self) -> int:
        """Index of the best candidate."""
        return self.order[0]

    @property
    def selected_gain(self) -> float:
        """Gain of the winner on the selection data, inflated by the winner's curse."""
        return float(self.scores[self.winner]) - self.before

    def save(self, folder: Path | str) -> Path:
        """Write the winner into a folder with :func:`save_winner`, and return the folder.

        The model must be at the weights of the search.

        Raises:
            ValueError: the result does not come from ``random_search``, and names no model.
        """
        if self.place is None:
            raise UsageError("this result names no model; call save_winner(model, where, ...)")
        return save_winner(*self.place, self, folder)

    def _summary(self) -> str:
        gain = self.held_out.gain
        ends = "" if gain.low is None else f" [{gain.low:.4g}, {gain.high:.4g}]"
        held = f"the best gains {gain.value:.4g}{ends} on held-out data"
        return f"{len(self.scores)} candidates at sigma {self.noise.sigma:.4g}, {held}"

    def _entries(self) -> Iterator[Fact]:
        luck = "the excess over the held-out gain is selection luck"
        yield "gain of the best, selection batch", self.selected_gain, luck
        for name, held in (
            ("gain of the best", self.held_out),
            ("gain of the top K averaged", self.average),
            ("gain of the top K voting", self.vote),
        ):
            if held is not None:
                shown = Interval(held.gain.value, held.gain.low, held.gain.high, 0.0)
                unmoved = f"0, the unperturbed weights, with a score of {held.before:.4g}"
                yield f"{name}, held-out data", shown, unmoved


def random_search(
    model: nn.Module,
    task: Task,
    where: Where,
    plan: Plan | None = None,
    *,
    noise: Noise | None = None,
    num_candidates: int | None = None,
    selection: Selection | None = None,
    engine: Engine | None = None,
) -> SearchResult:
    """Score N Gaussian displacements on one batch, and the best one on held-out data.

    delta_i = sigma z_i around the current weights; the winner is the i with the best score on the
    select split. Its gain is measured on the test split.

    Args:
        model: the network; restored bit for bit, also after an exception or Ctrl-C.
        task: has a select and a test split that share no example.
        where: the parameters that move, or a basis.
        plan: from ``plan_search``; sets noise, N and selection, as far as they are not passed.
        noise: sigma, seed and kind of the noise; needed without a plan.
        num_candidates: N, at least 1; needed without a plan.
        selection: score and examples.
        engine: evaluates the candidates elsewhere, or stores their scores; None: ``here``.

    Returns:
        The result. It depends on the seeds but not, up to rounding of the scores, on how
        candidates are grouped.

    Raises:
        ValueError: N or top below 1, an example in both splits, neither a plan nor noise and N, or
            a plan that advises no search.
        FloatingPointError: a score that is not finite; names the candidate.

    Warns:
        RuntimeWarning: the dtype of the weights rounds more than 5% of them back, or candidates
            are evaluated one by one because a shared forward pass gives wrong results.
    """
    noise, num_candidates, chosen = _settings(plan, noise, num_candidates, selection)
    if num_candidates < 1:
        raise UsageError(f"num_candidates={num_candidates}; pass at least 1")
    if chosen.top < 1:
        raise UsageError(f"top={chosen.top} leaves no winner to report; pass at least 1")
    select, test = _examples(task, chosen)
    require_disjoint(select, test)
    unmoved = _unmoved(model, where, noise)
    # Decided once, for all workers that an engine sends it to.
    evaluator = Evaluator(where, noise, chosen.score, select).decide(model)
    before = float(row_scores(model, chosen.score, select, whole=True).means())
    indices = range(num_candidates)
    chunks = [indices[i : i + CHUNK] for i in indices[::CHUNK]]
    scores = [0.0] * num_candidates
    for chunk, values in (engine or here)(model, evaluator, chunks):
        for index, value in zip(chunk, values, strict=True):
            scores[index] = value
    order = tuple(sorted(indices, key=lambda i: (-scores[i], i)))
    held_out, vote, average = _report(model, evaluator, order[: chosen.top], test, chosen)
    return SearchResult(
        noise, torch.tensor(scores), before, order, held_out, vote, average, unmoved, (model, where)
    )


def _examples(task: Task, selection: Selection) -> tuple[Batch, Batch]:
    """The batch to select on, and that of the report."""
    select = drop_duplicates(
        next(repeatable(task, "select", selection.select_size, selection.seed))
    )
    test = drop_duplicates(next(repeatable(task, "test", selection.test_size, selection.seed)))
    return select, test


def _settings(
    plan: Plan | None, noise: Noise | None, count: int | None, selection: Selection | None
) -> tuple[Noise, int, Selection]:
    """Noise, N and selection: as passed, else as planned.

    Raises:
        ValueError: the plan advises no search, or there is neither plan nor noise and N.
    """
    given = noise is not None and count is not None
    if plan is not None and plan.best is None and not given:
        raise UsageError(f"{plan.advice}; pass noise= and num_candidates= to search anyway")
    if plan is not None and plan.best is not None:
        seed = plan.survey.selection.seed
        noise = noise or Noise(plan.best.sigma, seed=seed, kind=plan.survey.kind)
        count = plan.best.candidates if count is None else count
    if noise is None or count is None:
        raise UsageError("a search needs a plan from plan_search, or noise= and num_candidates=")
    planned = plan.survey.selection if plan is not None else Selection()
    return noise, count, selection or planned


def equal_step(
    model: nn.Module, task: Task, where: Where, *, noise: Noise, index: int, selection: Selection
) -> Gain | None:
    """Held-out gain of a gradient step as long as a candidate, on the same selection batch.

    The step is -||delta|| g / ||g||, with the gradient of the loss, whatever the score is.

    Args:
        model: the network; restored bit for bit.
        task: as in the search.
        where: as in the search.
        noise: of the search.
        index: of the candidate, such as the winner.
        selection: of the search.

    Returns:
        The gain, in units of the score; None if the gradient is zero.
    """
    space = space_of(where)
    select, test = _examples(task, selection)
    slope = slope_at(model, task, select, space=space)
    with Candidates(model, where, noise) as candidates:
        length = norm(candidates.delta(index))
    if isinstance(where, Basis):
        slope = where.project(slope)
    if not norm(slope) > 0:
        return None
    before = row_scores(model, selection.score, test)
    with space.displaced(model, slope, -length / norm(slope)):
        after = row_scores(model, selection.score, test)
    return gain(before, after, seed=selection.seed)


def here(
    model: nn.Module, evaluator: Evaluator, chunks: Sequence[Chunk]
) -> Iterator[tuple[Chunk, Sequence[float]]]:
    """The engine that evaluates candidates in this process."""
    for chunk in chunks:
        yield chunk, evaluator(model, chunk)


def _unmoved(model: nn.Module, where: Where, noise: Noise) -> float:
    """Share of the weights that do not move, with a warning if it is large."""
    with Candidates(model, where, noise) as candidates:
        share = candidates.unmoved(0)
        if share > MOST_UNMOVED:
            dtype = candidates.parameters[0].dtype
            warnings.warn(
                f"at sigma={noise.sigma} {share:.0%} of the weights do not move: {dtype} rounds "
                "them back; pass a larger sigma, or load the model in float32",
                RuntimeWarning,
                stacklevel=3,
            )
    return share


def _report(
    model: nn.Module, evaluator: Evaluator, top: Sequence[int], test: Batch, chosen: Selection
) -> tuple[Gain, Gain | None, Gain]:
    """Winner, vote and average of the top K on the test batch."""
    score, named = chosen.score, isinstance(chosen.score, str)
    base = row_scores(model, score, test)
    with Candidates(model, evaluator.where, evaluator.noise) as candidates:
        mean = torch.zeros_like(candidates.delta(top[0]))
        voters = []
        for rank, index in enumerate(top):
            candidates.put(index)
            if rank == 0:
                winner = row_scores(model, score, test)
            if named:
                voters.append(predictions(model, test))
            mean += candidates.delta(index) / len(top)
        candidates.put(None)
        with space_of(evaluator.where).displaced(model, mean):
            average = row_scores(model, score, test)
        vote = None
        if named:
            alone = vote_scores([predictions(model, test)], exact=score == "exact")
            vote = gain(alone, vote_scores(voters, exact=score == "exact"), seed=chosen.seed)
    return gain(base, winner, seed=chosen.seed), vote, gain(base, average, seed=chosen.seed)


def gain(before: RowScores, after: RowScores, *, seed: int, resamples: int = 2000) -> Gain:
    """Difference of two scores of the same examples, with a paired bootstrap interval over them.

    Args:
        before: one candidate's scores, (1, b).
        after: the same of another.
        seed: of the bootstrap.
        resamples: of the examples.
    """
    first, last = float(before.means()), float(after.means())
    parts = [x.double().cpu().numpy() for x in (before.sums[0], after.sums[0], before.weights)]
    count = len(parts[0])

    def difference(a: np.ndarray, b: np.ndarray, w: np.ndarray, axis: int = -1) -> np.ndarray:
        return (b.sum(axis) - a.sum(axis)) / w.sum(axis)

    if count == 1:
        return Gain(first, last, Estimate(last - first))
    low, high = stats.bootstrap(
        parts, difference, paired=True, vectorized=True, n_resamples=resamples,
        method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Gain(first, last, Estimate(last - first, float(low), float(high), count))
