"""Blocks and doses tried on the prompts and neutral texts to choose on."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from frenet.experiments.experiment import Row
from frenet.experiments.steer_command.subject import Subject
from frenet.geometry import rng
from frenet.methods.steering_dose import (
    Asked,
    NeutralTexts,
    TextCosts,
    largest_null,
    null_vectors,
    shares,
)
from frenet.statistics.intervals import Estimate, mean_interval

# Blocks that are tried first, and those whose best doses are compared with null vectors.
COARSE, FINALISTS = 8, 3
# Doses between the largest one within the cost and the next.
BETWEEN = 3
# A cost counts as within its limit if the upper end of its one-sided 95% interval is.
LEVEL = 0.9


class Candidate(NamedTuple):
    """The dose with the largest effect at one block, within the cost.

    Attributes:
        block: 0-based.
        dose: in units of the stream's norm.
        share: mean P(positive answer) on the prompts to choose on.
        at_edge: whether larger doses may do more, and none was tried.
    """

    block: int
    dose: float
    share: float
    at_edge: bool


class Trials:
    """What was tried.

    Attributes:
        subject: what it is tried on.
        asked: the prompts to choose on.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.asked = Asked.of(subject.model, subject.select, path=subject.path)
        self._texts = NeutralTexts(subject.model, subject.neutral, path=subject.path)
        # Index of the first dose that cost too much at the last block; blocks are much alike.
        self._border = len(subject.settings.doses) // 2
        self._costs: dict[tuple[int, float], TextCosts] = {}
        self._shares: dict[tuple[int, float], float] = {}

    def cost(self, block: int, dose: float) -> TextCosts:
        """The cost of a dose on the neutral texts to choose on."""
        key = block, dose
        if key not in self._costs:
            added = self.subject.added(block, dose)
            self._costs[key] = self._texts.costs(block, added, level=LEVEL)
        return self._costs[key]

    def is_too_dear(self, block: int, dose: float) -> bool:
        """Whether the cost may be above its limit."""
        return _upper(self.cost(block, dose)) > self.subject.settings.max_cost

    def share(self, block: int, doses: Sequence[float]) -> list[float]:
        """Mean P(positive answer) at each dose."""
        if new := [dose for dose in doses if (block, dose) not in self._shares]:
            added = torch.stack([self.subject.added(block, dose) for dose in new])
            means = shares(self.asked.odds(block, added)).mean(0)
            self._shares |= {(block, dose): float(m) for dose, m in zip(new, means, strict=True)}
        return [self._shares[block, dose] for dose in doses]

    def best(self, block: int, doses: Sequence[float]) -> Candidate | None:
        """The best dose at a block; None: even the smallest costs too much."""
        count = self._within(block, doses)
        if not count:
            return None
        found = self.share(block, doses[:count])
        best = max(range(count), key=found.__getitem__)
        largest = max(self.subject.settings.doses)
        return Candidate(block, doses[best], found[best], doses[best] == largest)

    def _within(self, block: int, doses: Sequence[float]) -> int:
        """How many of the doses stay within the limit of the cost; a larger dose costs more."""
        count = min(self._border, len(doses))
        while count < len(doses) and not self.is_too_dear(block, doses[count]):
            count += 1
        while count and self.is_too_dear(block, doses[count - 1]):
            count -= 1
        self._border = count
        return count

    def refined(self, candidate: Candidate) -> Candidate:
        """The same with doses up to the limit, where the limit of the cost stopped it."""
        doses = sorted(self.subject.settings.doses)
        index = doses.index(candidate.dose)
        if index == len(doses) - 1 or not self.is_too_dear(candidate.block, doses[index + 1]):
            return candidate
        return self.best(candidate.block, between(doses[index], doses[index + 1])) or candidate

    def smaller(self, candidate: Candidate) -> list[Candidate]:
        """The same at smaller doses."""
        doses = halved(self.subject.settings.doses, candidate.dose)
        found = self.share(candidate.block, doses)
        pairs = zip(doses, found, strict=True)
        return [Candidate(candidate.block, dose, share, at_edge=False) for dose, share in pairs]

    def lead(self, candidate: Candidate) -> Estimate:
        """P(positive answer) beyond that with the largest null vector of equal length."""
        block, dose = candidate.block, candidate.dose
        length = dose * self.subject.vector.norms[block]
        null = largest_null(self.asked, block, nulls_at(self.subject, block), length)
        after = shares(self.asked.odds(block, self.subject.added(block, dose)[None]))[:, 0]
        return mean_interval((after - null.shares).tolist())

    def rows(self) -> Iterator[Row]:
        """The table tried."""
        before = float(shares(self.asked.before).mean())
        for block, dose in sorted(self._shares):
            cost = self._costs.get((block, dose))
            yield {
                "table": "tried", "contrast": self.subject.name, "block": block, "dose": dose,
                "share": self._shares[block, dose], "before": before,
                "cost": cost.kl.value if cost else None,
                "cost_high": _upper(cost) if cost else None,
                "max_cost": self.subject.settings.max_cost,
            }  # fmt: skip


def _upper(cost: TextCosts) -> float:
    return cost.kl.value if cost.kl.high is None else cost.kl.high


def between(low: float, high: float) -> list[float]:
    """A dose, and three between it and the next, evenly spaced in their logarithm.

    >>> between(0.1, 0.2)
    [0.1, 0.119, 0.141, 0.168]
    """
    ratio = (high / low) ** (1 / (BETWEEN + 1))
    return [low, *(float(f"{low * ratio**i:.3g}") for i in range(1, BETWEEN + 1))]


def halved(doses: Sequence[float], dose: float) -> list[float]:
    """Doses below one, each at most half of the one before.

    >>> halved((0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4), 0.3)
    [0.14, 0.07]
    """
    found: list[float] = []
    while below := [each for each in doses if each <= min([dose, *found]) / 2]:
        found.append(max(below))
    return found


def spread(blocks: Sequence[int], most: int = COARSE) -> tuple[list[int], int]:
    """At most this many of the blocks, evenly spaced up to the last one, and their spacing.

    >>> spread(range(30))
    ([1, 5, 9, 13, 17, 21, 25, 29], 4)
    """
    step = -(-len(blocks) // most)
    return list(blocks[::-1][::step])[::-1], step


def nulls_at(subject: Subject, block: int) -> dict[str, Tensor]:
    """The null vectors at a block, the same at every dose and on all prompts.

    All blocks have the same shuffles, so that a vector which is noise exceeds its null vectors at
    several blocks or at none, and looking at several gives it few more chances.
    """
    draw = rng.generator(subject.settings.seed, "steer recommend", subject.name)
    others = [vector.at(block) for vector in subject.others.values()]
    return null_vectors(
        subject.streams.at(block), others, draws=subject.settings.draws, generator=draw
    )


def chosen(trials: Trials) -> Candidate | None:
    """The dose with the largest effect of those that exceed every null vector.

    The best doses of some blocks come first. Where the answer is certain there with a null vector,
    too, smaller doses may still tell the vectors apart. If none does, the one that comes nearest;
    None: every dose costs too much.
    """
    best = sorted(_best_by_block(trials).values(), key=lambda each: -each.share)[:FINALISTS]
    finalists = [*map(trials.refined, best)]
    smaller = [each for finalist in finalists for each in trials.smaller(finalist)]
    leads: list[tuple[float, Candidate]] = []
    for candidate in (*finalists, *sorted(smaller, key=lambda each: -each.share)):
        lead = trials.lead(candidate)
        if lead.low is not None and lead.low > 0:
            return candidate
        leads.append((lead.value, candidate))
    return max(leads, default=(0.0, None))[1]


def _best_by_block(trials: Trials) -> dict[int, Candidate]:
    """The best dose at some blocks, evenly spaced, and then around the best one."""
    subject, doses = trials.subject, sorted(trials.subject.settings.doses)
    blocks, step = (list(subject.blocks), 1)
    if not subject.settings.blocks:
        blocks, step = spread(subject.blocks)
    found = {block: best for block in blocks if (best := trials.best(block, doses))}
    while step > 1 and found:
        step //= 2
        top = max(found.values(), key=lambda each: each.share).block
        near = [b for b in (top - step, top + step) if b in subject.blocks and b not in found]
        found |= {block: best for block in near if (best := trials.best(block, doses))}
    return found
