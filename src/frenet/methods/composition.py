"""Two displacements of the weights at once: how they interact, and how far both can be scaled."""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from frenet._errors import UsageError
from frenet._notebook import Fact, Shown
from frenet.geometry import rng
from frenet.geometry.linalg import norm
from frenet.geometry.nulls import gaussian_matrix
from frenet.geometry.resampling import resampled_counts
from frenet.measure.bracket import NARROW, Bracket
from frenet.measure.displaced import LossPlane
from frenet.methods.linear_range import ROUNDING
from frenet.methods.task_vectors import TaskVector, combine
from frenet.network.blocks import parameter_blocks
from frenet.network.checkpoints.tensor_files import Read
from frenet.network.space import ParamSpace

# Scales of a map of losses; their diagonal and their axes also give the interaction.
MAP = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
# Common scales at which an interaction is measured, from small to large.
SCALES = (1 / 32, 1 / 16, 1 / 8, *MAP[1:])
# The interaction, as a share of the two changes alone, up to which displacements compose.
EPS = 0.2
# Two directions are one and the same if 1 minus their cosine is smaller.
SAME = 1e-6
# The most directions whose pairs are measured without being asked twice.
MOST = 8


class Joint(NamedTuple):
    """Some task vectors in the parameters that any of them changes.

    Attributes:
        space: these parameters.
        displacements: by name, a function that returns the part in each of them.
    """

    space: ParamSpace
    displacements: Mapping[str, Read]


def joint(model: nn.Module, vectors: Mapping[str, TaskVector]) -> Joint:
    """Task vectors of one model, made ready to be added to each other.

    Args:
        model: their base; left unchanged.
        vectors: by name, at least one.

    Raises:
        ValueError: a vector does not fit the model, or starts from other weights.
    """
    whole = combine([(1.0, vector) for vector in vectors.values()])
    for vector in vectors.values():
        vector.space(model)
    space = whole.space(model)
    shapes = dict(zip(space.names, space.shapes, strict=True))

    def reader(vector: TaskVector) -> Read:
        def read(name: str) -> torch.Tensor:
            return vector.read(name) if name in vector.shapes else torch.zeros(shapes[name])

        return read

    return Joint(space, {name: reader(vector) for name, vector in vectors.items()})


def random_twin(read: Read, space: ParamSpace, *, seed: int, name: str) -> Read:
    """A random displacement with the norm of another in every tensor; nothing of it is kept.

    Args:
        read: the other displacement.
        space: the parameters that move.
        seed: of the run.
        name: of the displacement, so that each has its own twin.
    """
    shapes = dict(zip(space.names, space.shapes, strict=True))

    def drawn(parameter: str) -> torch.Tensor:
        z = gaussian_matrix(shapes[parameter], rng.generator(seed, "random twin", name, parameter))
        return z * (norm(read(parameter)) / norm(z))

    return drawn


def restricted(read: Read, space: ParamSpace, names: Collection[str]) -> Read:
    """The part of a displacement in some parameters; zero in all others."""
    shapes = dict(zip(space.names, space.shapes, strict=True))
    return lambda name: read(name) if name in names else torch.zeros(shapes[name])


def by_block(model: nn.Module, read: Read, space: ParamSpace) -> dict[str, Read]:
    """The parts of a displacement in one block each, by its name; blocks without a change are out.

    ``moving`` takes them as further displacements, so that the interaction of another one with
    each part says where the two meet.
    """
    blocks: dict[str, list[str]] = {}
    for name, block in parameter_blocks(model, space.names).items():
        if read(name).any():
            blocks.setdefault(block, []).append(name)
    return {block: restricted(read, space, names) for block, names in blocks.items()}


class Relation(NamedTuple):
    """Two task vectors compared.

    Attributes:
        cosine: between them, over all weights; chance is 1 / sqrt(d).
        chance: 1 / sqrt(d), the size of the cosine of random vectors.
        first: norm of the first.
        second: norm of the second.
        note: what to know about them; empty if there is nothing.
    """

    cosine: float
    chance: float
    first: float
    second: float
    note: str


def relation(first: TaskVector, second: TaskVector) -> Relation:
    """The cosine and norms of two task vectors, and whether they are one and the same direction."""
    cosine, norms = first.cosine(second), (first.norm(), second.norm())
    d = sum(math.prod(shape) for shape in (dict(first.shapes) | dict(second.shapes)).values())
    note = ""
    if abs(cosine) > 1 - SAME:
        side = "the same direction" if cosine > 0 else "opposite directions"
        note = (
            f"{first.origin} and {second.origin} are {side}, so their interaction is the curvature "
            "of the loss along it"
        )
    return Relation(cosine, d**-0.5, *norms, note)


def require_few(names: Sequence[str], passes: int, *, most: int = MOST, remedy: str) -> None:
    """Refuse more than ``most`` directions, and say what their pairs would cost.

    Args:
        names: of the directions.
        passes: forward passes of a pair, over the examples of one task.
        most: the number that is allowed.
        remedy: how to measure fewer, or all.

    Raises:
        ValueError: there are more.
    """
    n = len(names)
    if n > most:
        pairs = n * (n - 1) // 2
        raise UsageError(
            f"{n} directions make {pairs} pairs, which take about {2 * pairs * passes:,} passes "
            f"over the test rows of a task; {remedy}"
        )


class Composed(NamedTuple):
    """Two displacements at one common scale, on one task.

    Attributes:
        s: the scale.
        interaction: I(s), in nats per token; above 0 if the sum is worse than both changes suggest.
        low: lower end of its 95% interval over examples.
        high: upper end.
        first: L(theta + s a) - L(theta).
        second: L(theta + s b) - L(theta).
        both: L(theta + s (a + b)) - L(theta).
        known: whether the changes are larger than rounding.
    """

    s: float
    interaction: float
    low: float
    high: float
    first: float
    second: float
    both: float
    known: bool

    @property
    def share(self) -> float:
        """|I(s)| over the sizes of the two changes alone."""
        alone = abs(self.first) + abs(self.second)
        return abs(self.interaction) / alone if alone > 0 else math.inf


@dataclass(frozen=True, repr=False)
class Composition(Shown):
    """How far two displacements can be scaled together until they no longer add up, on one task.

    Attributes:
        radius: the largest common scale up to which they do; an open bracket if they do at all
            scales that were measured.
        low: lower end of its 95% interval over examples: a scale that was measured, or 0.
        high: upper end; infinity if it is beyond the largest scale.
        limit: the largest scale that was measured.
        eps: the allowed interaction, as a share of the two changes alone.
        points: at every scale, sorted.
    """

    radius: Bracket
    low: float
    high: float
    limit: float
    eps: float
    points: tuple[Composed, ...]

    def at(self, s: float) -> Composed:
        """What was measured at a scale."""
        return next(point for point in self.points if point.s == s)

    def _summary(self) -> str:
        return f"the changes add up within {self.eps:.0%} to a scale of {self.radius.in_words()}"

    def _entries(self) -> Iterator[Fact]:
        yield (
            "composition radius",
            str(self.radius),
            f"95% interval {self.low:.3g} to {self.high:.3g}",
        )
        for point in self.points:
            chance = f"95% interval {point.low:.3g} to {point.high:.3g}"
            yield f"interaction at {point.s:.3g}", point.interaction, chance


def composition(
    plane: LossPlane,
    *,
    scales: Sequence[float] = SCALES,
    eps: float = EPS,
    resamples: int = 200,
    generator: torch.Generator,
) -> Composition:
    r"""The interaction of two displacements along a common scale, and its radius.

    $$I(s) = L(\theta + s(a + b)) - L(\theta + s a) - L(\theta + s b) + L(\theta)$$

    The radius is the largest s with
    $|I(s')| \le \epsilon\,(|L(\theta + s'a) - L(\theta)| + |L(\theta + s'b) - L(\theta)|)$ for all
    $s' \le s$. It is searched at ``scales``, then between the two scales around the border until
    they are at most 25% apart. Scales at which rounding hides the changes do not count.

    Args:
        plane: the losses of a task over both scales.
        scales: above 0.
        eps: in (0, 1).
        resamples: bootstrap samples of the examples, for the intervals.
        generator: the resamples.

    Raises:
        ValueError: no scale has changes above rounding, or settings are out of range.
    """
    if not (scales and min(scales) > 0 and max(scales) < math.inf and 0 < eps < 1):
        raise UsageError(f"scales={scales}, eps={eps}; pass scales above 0 and eps in (0, 1)")
    weights = resampled_counts(len(plane.counts), resamples, generator)
    points = {s: _composed(plane, s, weights, eps) for s in sorted(scales)}
    while True:
        known = {s: point.share for s, point in points.items() if point.known}
        if not known:
            raise UsageError(
                "neither displacement changes the loss by more than rounding, up to a scale of "
                f"{max(scales):g}; take larger displacements, or a task that they change"
            )
        found = Bracket.first_above(known, eps)
        if found.high is None or found.low == 0 or found.high <= NARROW * found.low:
            break
        middle = math.sqrt(found.low * found.high)
        points[middle] = _composed(plane, middle, weights, eps)
        if not points[middle].known:
            break
    low, high = _interval(plane, sorted(known), weights, eps)
    ordered = tuple(points[s] for s in sorted(points))
    return Composition(found, min(low, found.low), _above(high, found), max(known), eps, ordered)


def _above(high: float, found: Bracket) -> float:
    """The upper end of an interval, at least that of the radius itself."""
    return max(high, math.inf if found.high is None else found.high)


def _changes(plane: LossPlane, s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Changes of every example's loss by s a, by s b and by both."""
    start = plane.at(0.0, 0.0)
    changes = [plane.at(*place) - start for place in ((s, 0.0), (0.0, s), (s, s))]
    first, second, both = (change.numpy() for change in changes)
    return first, second, both


def _composed(plane: LossPlane, s: float, weights: np.ndarray, eps: float) -> Composed:
    counts = plane.counts.numpy()
    first, second, both = _changes(plane, s)
    with np.errstate(invalid="ignore"):
        drawn = (weights @ (both - first - second)) / (weights @ counts)
        a, b, together = (float(each.sum() / counts.sum()) for each in (first, second, both))
        low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    # Four losses are rounded, and the interaction is to be known to a part of its line.
    noise = 4 * ROUNDING * max(abs(plane.mean(0.0, 0.0)), 1e-3)
    known = not eps * (abs(a) + abs(b)) <= noise
    return Composed(s, together - a - b, low, high, a, b, together, known)


def _interval(
    plane: LossPlane, scales: Sequence[float], weights: np.ndarray, eps: float
) -> tuple[float, float]:
    """2.5% quantile of the last scale before the border, and 97.5% of the first after it."""
    before, after = np.zeros(len(weights)), np.full(len(weights), math.inf)
    inside = np.full(len(weights), True)
    for s in scales:
        first, second, both = _changes(plane, s)
        with np.errstate(invalid="ignore"):
            alone = np.abs(weights @ first) + np.abs(weights @ second)
            holds = np.abs(weights @ (both - first - second)) <= eps * alone
        after[inside & ~holds] = s
        inside &= holds
        before[inside] = s
    low = np.quantile(before, 0.025, method="inverted_cdf")
    return float(low), float(np.quantile(after, 0.975, method="inverted_cdf"))


class MapPoint(NamedTuple):
    """The mean loss of a task where the first displacement has scale x and the second scale y."""

    x: float
    y: float
    loss: float


def loss_map(plane: LossPlane, scales: Sequence[float] = MAP) -> list[MapPoint]:
    """The loss of a task over a grid of both scales.

    Its axes and its diagonal are those of ``composition``; places that either has evaluated are
    not evaluated again. For several tasks take the planes of one ``DisplacedLosses``.
    """
    return [MapPoint(x, y, plane.mean(x, y)) for x, y in itertools.product(scales, repeat=2)]


def interaction(
    plane: LossPlane,
    s: float = 1.0,
    *,
    eps: float = EPS,
    resamples: int = 200,
    generator: torch.Generator,
) -> Composed:
    """The interaction of two displacements at one common scale, with its interval over examples."""
    return _composed(plane, s, resampled_counts(len(plane.counts), resamples, generator), eps)
