"""Whether the shift of activations by a sum is the sum of the shifts."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from frenet._errors import UsageError
from frenet.statistics.bootstrap import centred_ends


class Shift(NamedTuple):
    """The mean shift of the stream over some prompts, and what it would be by chance.

    Attributes:
        norm: ||mean_i s_i||.
        noise: the standard error of the mean, sqrt(sum_i ||s_i - mean||^2 / (n (n - 1))): the root
            mean square of half the difference of the means of two random halves.
    """

    norm: float
    noise: float

    @classmethod
    def of(cls, shifts: Float[Tensor, "n h"]) -> "Shift":
        """The shift of n prompts, at least two.

        >>> Shift.of(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
        Shift(norm=2.0, noise=1.0)
        """
        n, mean = len(shifts), shifts.double().mean(0)
        if n < 2:
            raise UsageError(f"{n} prompts have no noise; pass at least 2")
        spread = (shifts.double() - mean).square().sum() / (n * (n - 1))
        return cls(float(mean.norm()), float(spread.sqrt()))

    @property
    def ratio(self) -> float:
        """Norm over noise: about 1 for shifts without a common direction."""
        return self.norm / self.noise if self.noise > 0 else math.inf

    @property
    def noise_share(self) -> float:
        """Noise over noise and norm, in [0, 1]: about 1/2 for shifts without a common direction.

        Without any shift it is 1.
        """
        whole = self.noise + self.norm
        return self.noise / whole if whole > 0 else 1.0


class Additivity(NamedTuple):
    """How far the shift by a + b is from the sum of the shifts by a and by b.

    Attributes:
        error: ||shift(a + b) - shift(a) - shift(b)|| / ||shift(a) + shift(b)||, at least 0, of mean
            shifts over the prompts.
        low: lower end of its 95% interval over prompts.
        high: upper end.
        each: the same of every prompt's own shifts, root mean square over root mean square.
    """

    error: float
    low: float
    high: float
    each: float


def additivity(
    first: Float[Tensor, "n h"],
    second: Float[Tensor, "n h"],
    both: Float[Tensor, "n h"],
    *,
    resamples: int = 200,
    generator: torch.Generator,
) -> Additivity:
    r"""The additivity error of the shifts of n prompts.

    $$\frac{\lVert \Delta(a + b) - \Delta(a) - \Delta(b) \rVert}
           {\lVert \Delta(a) + \Delta(b) \rVert}$$

    Args:
        first: shifts by a.
        second: shifts by b.
        both: shifts by a + b.
        resamples: random weights of the prompts, for the interval.
        generator: these weights.

    Raises:
        ValueError: the shifts of a and b cancel, so that the error has no unit.

    >>> a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    >>> additivity(a, b, a + b + 1, generator=torch.Generator().manual_seed(0)).error
    0.3535533905932738
    """
    n = len(first)
    away, along = (both - first - second).double(), (first + second).double()
    if not bool(along.mean(0).any()):
        raise UsageError(
            "the shifts by the two displacements cancel, or are zero, so that an additivity error "
            "has no unit; take other displacements or another block"
        )
    error = float(away.mean(0).norm() / along.mean(0).norm())
    weights = torch.empty(resamples, n, dtype=torch.float64).exponential_(generator=generator)
    drawn = (weights @ away).norm(dim=1) / (weights @ along).norm(dim=1)
    low, high = centred_ends(error, drawn.tolist())
    return Additivity(error, max(low, 0.0), high, float(away.norm() / along.norm()))
