"""Gaussian random search around trained weights, reported on held-out data."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet._notebook import Fact, Shown
from frenet.methods.candidates import Candidates, Noise, Where, space_of
from frenet.methods.evaluation import Evaluator, predictions, row_scores
from frenet.methods.scores import RowScores, Score, vote_scores
from frenet.network.tasks import Batch, Task, repeatable
from frenet.statistics.intervals import Estimate

Chunk = Sequence[int]
# An engine takes chunks of candidates, and yields each with its scores, in any order.
Engine = Callable[[nn.Module, Evaluator, Sequence[Chunk]], Iterator[tuple[Chunk, Sequence[float]]]]
# Candidates in a chunk: enough to share forward passes, few enough to show progress.
CHUNK = 32
# Above this share of weights that rounding leaves unchanged, the noise is not what was requested.
MOST_UNMOVED = 0.05


@dataclass(frozen=True)
class Selection:
    """How candidates are selected, and on which data the winner is reported.

    Attributes:
        score: "loss" (its negative), "accuracy" of tokens, "exact" (greedily generated answers),
            or a function of model and batch that returns a float, larger is better.
        select_size: examples of the select split: one batch, the same for all candidates.
        test_size: examples of the test split, for the result.
        top: K; the best K candidates also vote, and are averaged.
        seed: chooses the examples and the bootstrap.
    """

    score: Score = "loss"
    select_size: int = 64
    test_size: int = 256
    top: int = 1
    seed: int = 0


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
    """

    noise: Noise
    scores: Float[Tensor, " n"]
    before: float
    order: tuple[int, ...]
    held_out: Gain
    vote: Gain | None
    average: Gain
    unmoved: float

    @property
    def winner(self) -> int:
        """Index of the best candidate."""
        return self.order[0]

    @property
    def selected_gain(self) -> float:
        """Gain of the winner on the selection data, inflated by the winner's curse."""
        return float(self.scores[self.winner]) - self.before

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
                low, high = held.gain.low, held.gain.high
                ends = "no interval" if low is None else f"95% interval {low:.4g} to {high:.4g}"
                unmoved = f"score {held.before:.4g} unperturbed"
                yield f"{name}, held-out data", held.gain.value, f"{ends}; {unmoved}"


def random_search(
    model: nn.Module,
    task: Task,
    where: Where,
    *,
    noise: Noise,
    num_candidates: int,
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
        noise: sigma, seed and kind of the noise.
        num_candidates: N, at least 1.
        selection: score and examples.
        engine: evaluates the candidates elsewhere, or stores their scores; None: ``here``.

    Returns:
        The result. It depends on the seeds but not, up to rounding of the scores, on how
        candidates are grouped.

    Raises:
        ValueError: N or top below 1, or an example in both splits.
        FloatingPointError: a score that is not finite; names the candidate.

    Warns:
        RuntimeWarning: the dtype of the weights rounds more than 5% of them back, or candidates
            are evaluated one by one because a shared forward pass gives wrong results.
    """
    if num_candidates < 1:
        raise UsageError(f"num_candidates={num_candidates}; pass at least 1")
    chosen = selection or Selection()
    if chosen.top < 1:
        raise UsageError(f"top={chosen.top} leaves no winner to report; pass at least 1")
    select = drop_duplicates(next(repeatable(task, "select", chosen.select_size, chosen.seed)))
    test = drop_duplicates(next(repeatable(task, "test", chosen.test_size, chosen.seed)))
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
        noise, torch.tensor(scores), before, order, held_out, vote, average, unmoved
    )


def require_disjoint(select: Batch, test: Batch) -> None:
    """Raise ValueError if an example is in both batches."""
    keys, others = _keys(select), set(_keys(test))
    if shared := [i for i, key in enumerate(keys) if key in others]:
        raise UsageError(
            f"{len(shared)} of the {len(keys)} examples that candidates are selected on are also "
            f"in the test split, first row {shared[0]}; the task's splits must be disjoint"
        )


def drop_duplicates(batch: Batch) -> Batch:
    """The batch without duplicate rows: they would make every interval too narrow."""
    if "input_ids" not in batch:  # not text: rows cannot be compared
        return batch
    keys = _keys(batch)
    first = [i for i, key in enumerate(keys) if keys.index(key) == i]
    return {key: value[first] for key, value in batch.items()}


def _keys(batch: Batch) -> list[tuple[int, ...]]:
    """For every row its tokens without the padding, and its targets."""
    keys = []
    for i, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        real = batch["attention_mask"][i].bool() if "attention_mask" in batch else slice(None)
        keys.append((*ids[real].tolist(), *labels[real].tolist()))
    return keys


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
