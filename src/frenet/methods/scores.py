"""What a search selects by: larger is better."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from frenet._errors import UsageError
from frenet.network.tasks import IGNORE, Batch

UserScore = Callable[[nn.Module, Batch], float]
Score = str | UserScore


class RowScores(NamedTuple):
    """Scores of n candidates on b rows, as sums and weights: a mean is sum / weight.

    Attributes:
        sums: shape (n, b).
        weights: shape (b,): target tokens for scores per token, ones for scores per row.
    """

    sums: Float[Tensor, "n b"]
    weights: Float[Tensor, " b"]

    def means(self) -> Float[Tensor, " n"]:
        """One score for each candidate."""
        return self.sums.sum(1) / self.weights.sum()


Rows = Callable[[Float[Tensor, "n b s v"], Int[Tensor, "b s"]], RowScores]


def negative_loss(logits: Float[Tensor, "n b s v"], labels: Int[Tensor, "b s"]) -> RowScores:
    """Minus the loss in nats per target token."""
    count = len(logits)
    flat = labels.repeat(count, 1).reshape(-1)
    losses = F.cross_entropy(
        logits.flatten(0, 2), flat, reduction="none", ignore_index=IGNORE
    ).view(count, *labels.shape)
    return RowScores(-losses.sum(-1), (labels != IGNORE).sum(-1).to(losses.dtype))


def token_accuracy(logits: Float[Tensor, "n b s v"], labels: Int[Tensor, "b s"]) -> RowScores:
    """Share of the target tokens that are the most likely ones."""
    right = (logits.argmax(-1) == labels) & (labels != IGNORE)
    return RowScores(right.sum(-1).float(), (labels != IGNORE).sum(-1).float())


def exact_match(logits: Float[Tensor, "n b s v"], labels: Int[Tensor, "b s"]) -> RowScores:
    """Share of the rows whose greedily generated answer is the target.

    Greedy generation gives the target exactly when every target token is the most likely one after
    the true ones before it, so nothing needs to be generated.
    """
    wrong = (logits.argmax(-1) != labels) & (labels != IGNORE)
    return RowScores((~wrong.any(-1)).float(), torch.ones(len(labels), device=labels.device))


SCORES: Mapping[str, Rows] = {
    "loss": negative_loss,
    "accuracy": token_accuracy,
    "exact": exact_match,
}


def checked(score: Score) -> None:
    """Raise ValueError if there is no score of that name."""
    if isinstance(score, str) and score not in SCORES:
        raise UsageError(
            f"no score {score!r}; there are {', '.join(SCORES)}, or pass a function of model and "
            "batch"
        )


def user_score(score: UserScore, model: nn.Module, batch: Batch) -> float:
    """The value of a user's score, checked.

    Raises:
        TypeError: it is not a number.
        FloatingPointError: it is NaN or infinite.
    """
    value: Any = score(model, batch)
    name = getattr(score, "__name__", "the score")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"{name} returned a {type(value).__name__}; return a float, such as .item() of a tensor"
        )
    if value != value or value in (float("inf"), float("-inf")):
        raise FloatingPointError(f"{name} returned {value}; candidates cannot be ranked by it")
    return float(value)


def vote_scores(
    voters: Sequence[tuple[Int[Tensor, "b s"], Int[Tensor, "b s"]]], *, exact: bool
) -> RowScores:
    """Score of a majority vote on every target token; a tie goes to the earlier voter.

    Args:
        voters: (most likely tokens, labels) of each, best voter first.
        exact: score whole rows instead of tokens.
    """
    choices, labels = torch.stack([tokens for tokens, _ in voters]), voters[0][1]
    votes = (choices[:, None] == choices[None]).sum(1)
    # argmax may return any of several maxima; the fraction makes the earliest one the largest.
    rank = torch.linspace(0.5, 0, len(choices), device=votes.device).view(-1, 1, 1)
    chosen = choices.gather(0, (votes + rank).argmax(0, keepdim=True))[0]
    targets = labels != IGNORE
    right = (chosen == labels) | ~targets
    if exact:
        return RowScores(right.all(-1).float()[None], torch.ones(len(labels)))
    return RowScores((right & targets).sum(-1).float()[None], targets.sum(-1).float())
