"""What a vector at a dose does to answers, beside null vectors, and what it costs elsewhere."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet.geometry.alignment import Contrasted, matched_vectors, shuffled_differences
from frenet.measure.activations import add
from frenet.methods.steering_effect import (
    Prefixes,
    Prompted,
    answer_differences,
    log_probabilities,
    prefixes,
    prompted,
    steered_differences,
)
from frenet.network.data.contrast import Contrast
from frenet.network.hooks.sites import Site
from frenet.network.measuring import measuring
from frenet.network.tasks import Batch, collate
from frenet.statistics.intervals import Estimate, mean_interval

# The kinds of null vectors, as rows and sentences name them.
NULLS = {
    "shuffled": "labels shuffled",
    "matched": "random with the stream's covariance within the classes",
    "unrelated": "another contrast",
}


@dataclass(frozen=True, eq=False)
class Asked:
    """Prompts with two answers, asked with vectors added at their last token.

    Attributes:
        model: a decoder; left unchanged.
        contrast: the prompts; statements or choices.
        prompts: the same with their answers.
        kept: keys and values of the prompts.
        path: dotted name of the list of blocks; None: frenet looks for it.
    """

    model: nn.Module
    contrast: Contrast
    prompts: list[Prompted]
    kept: Prefixes
    path: str | None = None

    @classmethod
    def of(cls, model: nn.Module, contrast: Contrast, *, path: str | None = None) -> "Asked":
        """The prompts of a contrast, read once."""
        prompts = prompted(contrast.items)
        return cls(model, contrast, prompts, prefixes(model, prompts, path=path), path)

    def odds(self, block: int, added: Float[Tensor, "m h"]) -> np.ndarray:
        """Log-odds (n, m) of the answers to n prompts with each of m vectors added, in nats."""
        found = steered_differences(
            self.model, self.prompts, {block: added.float()}, path=self.path, kept=self.kept
        )
        return found.double().numpy()

    @cached_property
    def before(self) -> np.ndarray:
        """Log-odds (n,) without a vector."""
        return answer_differences(self.model, self.prompts).double().numpy()

    def everywhere(self, block: int, added: Float[Tensor, " h"]) -> np.ndarray:
        """Log-odds (n,) with a vector added at every token, as serving programs add it."""
        with add(self.model, {Site(block, "all"): added.float()}, path=self.path):
            return answer_differences(self.model, self.prompts).double().numpy()


def shares(odds: np.ndarray) -> np.ndarray:
    """P(positive answer) of the two answers, 1 / (1 + exp(-D)), from their log-odds D.

    >>> shares(np.array([0.0, 50.0])).round(3).tolist()
    [0.5, 1.0]
    """
    return torch.from_numpy(odds).sigmoid().numpy()


def null_vectors(
    sides: Contrasted,
    others: Sequence[Float[Tensor, " h"]],
    *,
    draws: int,
    generator: torch.Generator,
) -> dict[str, Float[Tensor, "m h"]]:
    """Unit vectors that should steer no more than by chance, each in both directions, by kind.

    Shuffled and random vectors are made from the streams without the means of the two sides. With
    them, and a contrast that is the largest direction of the stream, a random vector of equal
    covariance follows the contrast, and the contrast vector would be compared with itself.

    Args:
        sides: streams of the contrast.
        others: vectors of other contrasts.
        draws: random vectors of each kind; half as many rows as the kind has.
        generator: of the draws.
    """
    within = Contrasted(
        sides.positive.double() - sides.positive.double().mean(0),
        sides.negative.double() - sides.negative.double().mean(0),
        sides.paired,
    )
    found = {
        "shuffled": shuffled_differences(within, draws, generator),
        "matched": matched_vectors(within.rows, draws, generator),
    }
    if used := [other.double() for other in others if bool(other.any())]:
        found["unrelated"] = torch.stack(used)
    units = {kind: v / v.norm(dim=1, keepdim=True) for kind, v in found.items()}
    return {kind: torch.cat([v, -v]).float() for kind, v in units.items()}


class Null(NamedTuple):
    """The null vector that steers most towards the positive answer.

    Attributes:
        kind: of ``NULLS``.
        shares: P(positive answer) of every prompt with it.
        drawn: how many null vectors there are.
    """

    kind: str
    shares: np.ndarray
    drawn: int


def largest_null(asked: Asked, block: int, nulls: Mapping[str, Tensor], length: float) -> Null:
    """The strongest of the null vectors at one length.

    As the largest of many, on the prompts that it is reported on, it is a strict reference.
    """
    found = shares(asked.odds(block, length * torch.cat(list(nulls.values()))))
    best = int(found.mean(0).argmax())
    kinds = [kind for kind, vectors in nulls.items() for _ in vectors]
    return Null(kinds[best], found[:, best], len(kinds))


class TextCosts(NamedTuple):
    """What a change of the model costs on neutral texts, in nats per token.

    Attributes:
        kl: mean over texts of the mean KL divergence from the unchanged model's predictions.
        loss: the same of the change of the loss.
    """

    kl: Estimate
    loss: Estimate


class NeutralTexts:
    """Neutral texts with what the unchanged model predicts, which is computed once.

    Args:
        model: a decoder; left unchanged.
        texts: for every text the token ids of the given part, and those to predict.
        path: dotted name of the list of blocks; None: frenet looks for it.
    """

    def __init__(
        self,
        model: nn.Module,
        texts: Sequence[tuple[list[int], list[int]]],
        *,
        path: str | None = None,
    ) -> None:
        self.model, self.path = model, path
        self._batches = [collate([text]) for text in texts]
        self._before = [self._predicted(batch, nullcontext()) for batch in self._batches]

    def costs(self, block: int, added: Float[Tensor, " h"], *, level: float = 0.95) -> TextCosts:
        """The cost of a vector that is added at every token, with its interval over texts.

        Args:
            block: 0-based; the vector is added to its output.
            added: the vector.
            level: coverage of the intervals.
        """
        kls, losses = [], []
        for batch, (before, targets) in zip(self._batches, self._before, strict=True):
            change = add(self.model, {Site(block, "all"): added.float()}, path=self.path)
            after, _ = self._predicted(batch, change)
            kls.append(float((before.exp() * (before - after)).sum() / len(targets)))
            losses.append(float((before - after).gather(1, targets[:, None]).mean()))
        return TextCosts(mean_interval(kls, level=level), mean_interval(losses, level=level))

    def _predicted(
        self, batch: Batch, change: AbstractContextManager[Any]
    ) -> tuple[Float[Tensor, "n v"], Tensor]:
        with measuring(self.model), torch.no_grad():
            return log_probabilities(self.model, batch, change)
