"""Mean losses of some examples with their resamples, so that differences are paired by example."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from frenet.geometry.resampling import resampled_counts
from frenet.methods.merge_choice import RESAMPLES, Draws, Interval


@dataclass(frozen=True, eq=False)
class Resampled:
    """Some examples and their bootstrap resamples.

    Attributes:
        weights: how often each example is in each resample, (b, n); the first row is ones.
        tokens: target tokens of each resample, (b,).
    """

    weights: Float[np.ndarray, "b n"]
    tokens: Draws

    @classmethod
    def of(
        cls, counts: Float[Tensor, " n"], generator: torch.Generator, *, resamples: int = RESAMPLES
    ) -> "Resampled":
        """Resamples of examples with these numbers of target tokens."""
        n = len(counts)
        weights = np.vstack([np.ones(n), resampled_counts(n, resamples, generator)])
        return cls(weights, weights @ counts.double().numpy())

    def mean(self, losses: Float[Tensor, " n"]) -> Draws:
        """Mean losses in nats per target token; a loss that is no number is infinite."""
        finite = np.nan_to_num(losses.double().numpy(), nan=np.inf, posinf=np.inf)
        with np.errstate(invalid="ignore"):
            # 0 of an infinite loss is none of it.
            total = np.where(self.weights > 0, self.weights * finite, 0.0).sum(1)
        means: Draws = total / self.tokens
        return means


def interval(draws: Draws) -> Interval:
    """The first number, with percentiles of the others; infinite ones stay infinite."""
    low, high = np.quantile(draws[1:], [0.025, 0.975], method="inverted_cdf")
    return Interval(float(draws[0]), float(low), float(high))


def difference(before: Draws, after: Draws) -> Interval:
    """How much lower the second mean is, paired by example; two infinite ones do not differ."""
    with np.errstate(invalid="ignore"):
        return interval(np.nan_to_num(before - after, nan=0.0, posinf=np.inf, neginf=-np.inf))
