"""Scores of candidates: several in one forward pass where model and score allow it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frenet.methods.candidates import Candidates, Noise, Where
from frenet.methods.scores import SCORES, RowScores, Score, checked, user_score
from frenet.network.context import measuring
from frenet.network.grouped import can_group, grouped, shares_blocks
from frenet.network.memory import free_bytes
from frenet.network.padding import arranged
from frenet.network.tasks import Batch, columns_to_keep, target_logits

# Tokens of all candidates in one forward pass: with more a pass is no faster for each token, and
# what it works on no longer fits the cache.
TOKENS = 4096
# Fewer candidates than this that share no blocks are faster one by one: each fills the processors.
FEWEST = 4


@dataclass(frozen=True)
class Evaluator:
    """All that the score of a candidate depends on besides the model; a worker can be sent it.

    Attributes:
        where: the parameters, or the basis, in which candidates move.
        noise: how they are drawn.
        score: a name in ``SCORES``, or a function of model and batch.
        batch: the fixed batch that all candidates are scored on.
    """

    where: Where
    noise: Noise
    score: Score
    batch: Batch

    def __post_init__(self) -> None:
        checked(self.score)

    def __call__(self, model: nn.Module, indices: Sequence[int]) -> list[float]:
        """Scores of these candidates, larger is better. The model comes back bit for bit.

        Raises:
            FloatingPointError: a score is not finite; names the candidate.
            TypeError: a user's score is not a number.
        """
        found: list[float] = []
        with Candidates(model, self.where, self.noise) as candidates:
            for scores in self._scores(candidates, list(indices)):
                found += scores.means().tolist()
        for index, score in zip(indices, found, strict=True):
            if not math.isfinite(score):
                raise FloatingPointError(
                    f"the score of candidate {index} is {score} at sigma={self.noise.sigma}; "
                    "pass a smaller sigma"
                )
        return found

    def _scores(self, candidates: Candidates, indices: list[int]) -> Iterator[RowScores]:
        size = 1
        together = isinstance(self.score, str) and can_group(candidates.model, candidates.space)
        # Candidates share a pass of all rows of the batch, as they are.
        if together and arranged(candidates.model, self.batch) is None:
            size = group_size(candidates, self.batch)
        if size > 1 and isinstance(self.score, str):
            for start in range(0, len(indices), size):
                yield group_scores(
                    candidates, indices[start : start + size], self.score, self.batch
                )
            return
        for index in indices:
            candidates.put(index)
            yield row_scores(candidates.model, self.score, self.batch, whole=True)


def row_scores(model: nn.Module, score: Score, batch: Batch, *, whole: bool = False) -> RowScores:
    """Scores of the rows of a batch at the present point.

    Args:
        model: the network; left as it is.
        score: a name in ``SCORES``, or a function of model and batch.
        batch: b rows.
        whole: call a user's function once for the batch instead of once for every row.
    """
    with measuring(model), torch.no_grad():
        if isinstance(score, str):
            logits, labels = target_logits(model, batch)
            return SCORES[score](logits[None], labels)
        count = len(batch["labels"])
        rows = (
            [batch]
            if whole
            else [{k: v[i : i + 1] for k, v in batch.items()} for i in range(count)]
        )
        values = torch.tensor([[user_score(score, model, row) for row in rows]])
        return RowScores(values, torch.ones(len(rows)))


def group_scores(candidates: Candidates, indices: list[int], score: str, batch: Batch) -> RowScores:
    """Scores of several candidates on every row of a batch, in one forward pass."""
    model, rows = candidates.model, len(batch["labels"])
    thetas = candidates.thetas(indices)
    with (
        measuring(model),
        torch.no_grad(),
        grouped(model, candidates.space, thetas, rows=rows),
    ):
        logits, labels = target_logits(model, batch)
        return SCORES[score](logits.view(len(indices), rows, *logits.shape[1:]), labels)


def group_size(candidates: Candidates, batch: Batch) -> int:
    """How many candidates share a forward pass: as many as help, in half of the free memory.

    1 stands for the ordinary forward pass.
    """
    rows, columns = batch["labels"].shape
    model = candidates.model
    head = max((p.shape[0] for p in model.parameters() if p.dim() == 2), default=1)
    width = max((p.shape[-1] for p in model.parameters() if p.dim() == 2), default=1)
    logits = 3 * rows * columns_to_keep(batch) * head
    activations = 8 * rows * columns * width
    needed = 4 * (2 * candidates.space.dim + logits + activations)
    fits = free_bytes(candidates.saved[0].device) // (2 * needed)
    size = min(TOKENS // (rows * columns), fits)
    fewest = 2 if shares_blocks(model, candidates.space) else FEWEST
    return size if size >= fewest else 1


def predictions(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The most likely tokens in the target columns, and the labels, each (b, s)."""
    with measuring(model), torch.no_grad():
        logits, labels = target_logits(model, batch)
    return logits.argmax(-1), labels
