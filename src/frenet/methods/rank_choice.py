"""The rank that each weight of an adapter needs, by its effect on held-out loss and by its norm."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet._notebook import Fact, Shown
from frenet.geometry import rng
from frenet.geometry.linalg import RESOLUTION, norm
from frenet.methods.merge_choice import Interval
from frenet.methods.resampled import Resampled, difference, interval
from frenet.methods.task_vectors import TaskVector
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, example_losses

# The largest rank that is looked for; a matrix of a larger one counts as one without a low rank.
MOST = 256
# The rank of each weight, by its name.
Ranks = Mapping[str, int]


class Factored(NamedTuple):
    """A matrix of low rank, U diag(S) V.

    Attributes:
        U: orthonormal columns.
        S: singular values, the largest first.
        V: orthonormal rows.
    """

    U: Float[Tensor, "o r"]
    S: Float[Tensor, " r"]
    V: Float[Tensor, "r i"]

    def cut(self, rank: int) -> Float[Tensor, "o i"]:
        """The nearest matrix of a rank, in the Frobenius norm."""
        return (self.U[:, :rank] * self.S[:rank]) @ self.V[:rank]

    def holding(self, share: float) -> int:
        """The smallest rank that holds a share of the squared norm."""
        return rank_holding(self.S, share)


def rank_holding(S: Float[Tensor, " r"], share: float) -> int:
    """How many of the largest singular values hold a share of the sum of all squares.

    >>> rank_holding(torch.tensor([3.0, 1.0]), 0.9), rank_holding(torch.tensor([3.0, 1.0]), 0.95)
    (1, 2)
    """
    held = S.double().square().cumsum(0)
    return int((held < share * held[-1] * (1 - 1e-12)).sum()) + 1


def factored(change: Float[Tensor, "o i"], generator: torch.Generator) -> Factored | None:
    """A matrix as a product of small ones; None if its rank is above half of its smaller side.

    The range is found from a Gaussian sketch, which is exact for a matrix of low rank.

    Source: Halko, Martinsson, Tropp (2011), arXiv 0909.4061, algorithm 4.1.
    """
    most = min(min(change.shape) // 2, MOST)
    sketch = torch.randn(change.shape[1], most + 1, dtype=torch.float64, generator=generator)
    whole = change.double().cpu()
    Q, _ = torch.linalg.qr(whole @ sketch)
    U, S, V = torch.linalg.svd(Q.T @ whole, full_matrices=False)
    rank = int((RESOLUTION * S[0] < S).sum())
    if rank > most or norm(whole - Q @ (Q.T @ whole)) > 10 * RESOLUTION * norm(whole):
        return None
    return Factored((Q @ U[:, :rank]).float(), S[:rank].float(), V[:rank].float())


def factored_parts(vector: TaskVector) -> dict[str, Factored]:
    """The parts of a task vector in each weight as products of small matrices.

    Raises:
        ValueError: a part is no matrix, or one without a low rank; names the first.
    """
    parts: dict[str, Factored] = {}
    for name, shape in vector.shapes.items():
        change = vector.read(name)
        if not change.any():
            continue
        found = None
        if len(shape) == 2:
            found = factored(change, rng.generator(0, "factored", name))
        if found is None:
            raise UsageError(
                f"{vector.origin} has no low-rank form: its change of {name} is "
                f"{'a matrix of high rank' if len(shape) == 2 else 'no matrix'}; ranks are for "
                "LoRA adapters and what was saved from them"
            )
        parts[name] = found
    return parts


def random_parts(parts: Mapping[str, Factored], *, seed: int) -> dict[str, Factored]:
    """A random adapter with the ranks and norms of another: products of Gaussian factors."""
    drawn = {}
    for name, part in parts.items():
        draw = rng.generator(seed, "random adapter", name)
        B = torch.randn(len(part.U), len(part.S), generator=draw)
        A = torch.randn(len(part.S), part.V.shape[1], generator=draw)
        made = factored(B @ A, draw)
        if made is None:
            raise RuntimeError(f"a random change of {name} of rank {len(part.S)} has a higher rank")
        drawn[name] = made._replace(S=made.S * float(norm(part.S) / norm(made.S)))
    return drawn


@dataclass(eq=False)
class CutLosses:
    """The losses of a batch with every weight's part of an adapter cut to a rank.

    Each combination of ranks is evaluated once, and only weights whose rank changes are written.

    Attributes:
        model: with the weights of ``space`` at ``start``.
        parts: of the adapter; a weight whose rank is not given has rank 0.
        batch: the examples.
        passes: forward passes of the batch so far.
    """

    model: nn.Module
    space: ParamSpace
    parts: Mapping[str, Factored]
    batch: Batch
    start: Mapping[str, Tensor]
    passes: int = 0
    _now: dict[str, int] = field(default_factory=dict)
    _known: dict[tuple[int, ...], Float[Tensor, " n"]] = field(default_factory=dict)
    counts: Float[Tensor, " n"] = field(init=False)

    def __post_init__(self) -> None:
        self._now = dict.fromkeys(self.parts, 0)
        self.at({})

    @property
    def whole(self) -> dict[str, int]:
        """The ranks of the adapter as it is."""
        return {name: len(part.S) for name, part in self.parts.items()}

    def at(self, ranks: Ranks) -> Float[Tensor, " n"]:
        """The summed loss of every example in nats, float64."""
        key = tuple(ranks.get(name, 0) for name in self.parts)
        if key not in self._known:
            self._write(dict(zip(self.parts, key, strict=True)))
            with torch.no_grad(), measuring(self.model):
                losses, counts = example_losses(self.model, self.batch)
            self._known[key], self.counts = losses.double().cpu(), counts.double().cpu()
            self.passes += 1
        return self._known[key]

    def _write(self, ranks: dict[str, int]) -> None:
        parameters = self.space.parameters(self.model)
        with torch.no_grad():
            for name, parameter in zip(self.space.names, parameters, strict=True):
                if name in ranks and ranks[name] != self._now[name]:
                    change = self.parts[name].cut(ranks[name])
                    parameter.copy_(self.start[name] + change.to(parameter))
        self._now = ranks


@contextmanager
def cut_losses(
    model: nn.Module, parts: Mapping[str, Factored], batch: Batch
) -> Iterator[CutLosses]:
    """Losses with an adapter whose ranks are cut; the weights come back bit for bit.

    Args:
        model: the base, in float32.
        parts: the adapter, by the names of the weights in ``model``.
        batch: the examples.
    """
    space = ParamSpace.select(model, lambda name, _: name in parts)
    space.require_float32(model, "a change of the weights")
    with space.restored(model) as start:
        yield CutLosses(model, space, parts, batch, dict(zip(space.names, start, strict=True)))


class WeightRank(NamedTuple):
    """What one weight of an adapter needs.

    Attributes:
        name: of the weight.
        whole: its rank as it is.
        by_effect: the advised rank; 0 leaves the weight's part out.
        by_norm: the smallest rank that holds the share of the squared norm.
        by_norm_random: the same for a random product of equal rank and norm.
        effect: how much the loss rises if the weight's part is left out and all others stay, with
            its interval over the examples to choose on.
    """

    name: str
    whole: int
    by_effect: int
    by_norm: int
    by_norm_random: int
    effect: Interval


@dataclass(frozen=True, repr=False)
class RankAdvice(Shown):
    """The ranks that hold a share of an adapter's effect on held-out loss.

    Attributes:
        share: to hold.
        weights: one row for each weight; empty without advice.
        gain: what the adapter takes off the loss of the examples to choose on.
        passes: forward passes of those examples.
    """

    share: float
    weights: tuple[WeightRank, ...]
    gain: Interval
    passes: int

    @property
    def ranks(self) -> dict[str, int]:
        """The advised rank of each weight; empty without advice."""
        return {weight.name: weight.by_effect for weight in self.weights}

    @property
    def whole(self) -> dict[str, int]:
        """The rank of each weight as it is; empty without advice."""
        return {weight.name: weight.whole for weight in self.weights}

    def _summary(self) -> str:
        if not self.weights:
            return "no advice: the adapter is not shown to lower the loss"
        whole = sum(weight.whole for weight in self.weights)
        return f"{sum(self.ranks.values())} of {whole} ranks hold {self.share:.0%} of its effect"

    def _entries(self) -> Iterator[Fact]:
        for one in self.weights:
            yield one.name, one.by_effect, f"by norm {one.by_norm}, of {one.whole}"


def choose_ranks(losses: CutLosses, *, share: float = 0.9, seed: int = 0) -> RankAdvice:
    """For each weight of an adapter a small rank, so that all together hold a share of its effect.

    A weight's own effect is the rise of the loss if its part is left out and all others stay. It is
    divided among the singular directions of the part by their squared singular values. Of the
    directions of all weights, the largest by their part of an effect first, the fewest are taken
    that hold the share: the interval of what they hold of the adapter's whole effect is above it.
    If one rank for all weights does so with a smaller sum, that is advised. Bisection finds both,
    as if the loss fell with every rank, so that the sum need not be the smallest that there is.

    Args:
        losses: on examples to choose on.
        share: in (0, 1).
        seed: of the resamples and of the random adapter.

    Raises:
        ValueError: the share is out of range.
    """
    if not 0 < share < 1:
        raise UsageError(f"share={share}; pass a number between 0 and 1")
    examples = Resampled.of(losses.counts, rng.generator(seed, "ranks"))
    without, whole = (examples.mean(losses.at(ranks)) for ranks in ({}, losses.whole))
    gain = difference(without, whole)
    if gain.low <= 0:
        return RankAdvice(share, (), gain, losses.passes)
    effects = {
        name: difference(examples.mean(losses.at({**losses.whole, name: 0})), whole)
        for name in losses.parts
    }

    def holds(ranks: Ranks) -> bool:
        here = examples.mean(losses.at(ranks))
        return interval((without - here) / (without - whole)).low >= share

    # The last of each way is the adapter as it is, which holds all of its effect.
    ways = (by_directions(losses.parts, effects), equal_ranks(losses.whole))
    found = [way[bisect_left(way[:-1], True, key=holds)] for way in ways]
    ranks, random = min(found, key=_total), random_parts(losses.parts, seed=seed)
    weights = tuple(
        WeightRank(
            name, len(part.S), ranks.get(name, 0), part.holding(share),
            random[name].holding(share), effects[name],
        )
        for name, part in losses.parts.items()
    )  # fmt: skip
    return RankAdvice(share, weights, gain, losses.passes)


def by_directions(parts: Mapping[str, Factored], effects: Mapping[str, Interval]) -> list[Ranks]:
    """Ranks that take one singular direction more each time, that with the largest effect first.

    Directions of weights without an effect come last, by their squared singular values.
    """
    found = []
    for name, part in parts.items():
        squares = part.S.double().square()
        shares = max(effects[name].value, 0.0) * squares / squares.sum()
        found += [(*pair, name) for pair in zip(shares.tolist(), squares.tolist(), strict=True)]
    order = [name for *_, name in sorted(found, key=lambda each: each[:2], reverse=True)]
    return [Counter(order[: count + 1]) for count in range(len(order))]


def equal_ranks(whole: Ranks) -> list[Ranks]:
    """One rank for all weights, from 1 to the largest."""
    return [
        {name: min(rank + 1, most) for name, most in whole.items()}
        for rank in range(max(whole.values()))
    ]


def _total(ranks: Ranks) -> int:
    return sum(ranks.values())


class Held(NamedTuple):
    """What is left of an adapter's effect.

    Attributes:
        loss: in nats per target token.
        share: of what the adapter takes off the loss.
    """

    loss: Interval
    share: Interval


def held(losses: Float[Tensor, " n"], against: CutLosses, *, seed: int) -> Held:
    """How much of an adapter's effect some losses hold, on the examples of ``against``."""
    examples = Resampled.of(against.counts, rng.generator(seed, "ranks held"))
    here, without, whole = (
        examples.mean(each) for each in (losses, against.at({}), against.at(against.whole))
    )
    return Held(interval(here), interval((without - here) / (without - whole)))
