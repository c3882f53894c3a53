"""Rows of `composition`: pairs of displacements in losses, block by block, and in activations."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from frenet._errors import UsageError
from frenet.experiments.composition import Config, cells
from frenet.experiments.composition.directions import Pair, Spot, contexts, spot_of, twin
from frenet.experiments.composition.findings import DEPTHS, FULL_SCALE, LINE
from frenet.experiments.composition.tables import ALL, VECTORS
from frenet.experiments.experiment import Cell, Row, finite
from frenet.experiments.setup.damage import NotDamagedError, damaged
from frenet.experiments.setup.describe import describe, note
from frenet.experiments.setup.networks import build
from frenet.geometry import rng
from frenet.measure.additivity import Additivity, Shift, additivity
from frenet.measure.bracket import Bracket
from frenet.measure.displaced import DisplacedLosses, DisplacedStreams, Mover, moving
from frenet.measure.interaction import second_order
from frenet.measure.loss_line import loss_line
from frenet.methods.composition import Composition, composition, interaction, loss_map, relation
from frenet.methods.linear_range import looked_between, radius
from frenet.network.blocks import residual_blocks
from frenet.network.checkpoints.weight_space import weights_norm

# Least scale at which activations are measured.
LEAST = 1 / 8


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of all tables."""
    network = build(config, space=cell["space"], seed=cell.seed)
    yield from describe(network, cell, cells(config), config, test=config.eval_size)
    if len(network.measured) < 2:
        yield note(cell, f"{network.measured[0]} alone makes no pair; pass at least two tasks")
        return
    first = network.tasks[network.measured[0]]
    try:
        with damaged(network, first, config, protocol=config.protocol, seed=cell.seed):
            spot = spot_of(config, cell, network)
            with moving(network.model, spot.displacements, space=spot.space) as mover:
                yield from _rows(Measured(spot, mover))
    except NotDamagedError as error:
        yield note(cell, f"{config.protocol} left out: {error}")


@dataclass(eq=False)
class Measured:
    """What the pairs of a spot share: losses and activations that were measured once.

    Attributes:
        spot: network and displacements.
        mover: moves the network.
        losses: of every task.
        streams: of the prompts of all tasks.
        owners: the task of each prompt.
        singles: by displacement and task, its slope and the scale up to which it is linear.
    """

    spot: Spot
    mover: Mover
    losses: DisplacedLosses = field(init=False)
    streams: DisplacedStreams = field(init=False)
    owners: list[str] = field(init=False)
    singles: dict[tuple[str, str], tuple[float, float | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spot, path = self.spot, self.spot.config.path or None
        self.losses = DisplacedLosses(self.mover, spot.batches)
        prompts = [
            (task, ids)
            for task, batch in spot.batches.items()
            for ids in contexts(batch)[: spot.config.prompts]
        ]
        self.owners = [task for task, _ in prompts]
        self.streams = DisplacedStreams(
            self.mover,
            [ids for _, ids in prompts],
            depths(len(residual_blocks(spot.network.model, path)[1])),
            path,
        )

    def prompts(self, pair: Pair) -> list[int]:
        """Which of all prompts are of the two tasks of a pair."""
        return [i for i, task in enumerate(self.owners) if task in (pair.first, pair.second)]

    def single(self, name: str, task: str) -> tuple[float, float | None]:
        """The slope of a task's loss along a displacement, and the scale up to which it is linear.

        The slope is that of the scale; the second is None if rounding hides it.
        """
        if (name, task) not in self.singles:
            self.mover.to({})
            self.singles[name, task] = self._single(name, task)
        return self.singles[name, task]

    def _single(self, name: str, task: str) -> tuple[float, float | None]:
        spot, model = self.spot, self.spot.network.model
        length, most = spot.vectors[name].norm(), max(spot.config.scales)
        read, batch = spot.displacements[name], spot.batches[task]
        with loss_line(model, spot.network.tasks[task], batch, read, space=spot.space) as line:
            eps = spot.config.eps
            start, _ = looked_between(line, spot.space.norm(model), length=length, eps=eps)
            draw = rng.generator(spot.cell.seed, "composition single", name, task)
            limit = most * length
            try:
                found = radius(line, start=min(start, limit), limit=limit, eps=eps, generator=draw)
            except UsageError:
                return line.slope * length, None
            return line.slope * length, found.radius / length


def depths(blocks: int) -> list[int]:
    """The blocks at one third, at two thirds and at the end of a network, each once.

    >>> depths(2), depths(5), depths(30)
    ([0, 1], [1, 3, 4], [9, 19, 29])
    """
    return sorted({-(-blocks * thirds // 3) - 1 for thirds in (1, 2, 3)})


def depth_names(blocks: list[int]) -> dict[int, str]:
    """The names of the places that ``depths`` gives; of two places in one block the deeper."""
    names = list(DEPTHS)
    return dict(zip(blocks, [*names[: len(blocks) - 1], names[-1]], strict=True))


def _rows(measured: Measured) -> Iterator[Row]:
    for pair in measured.spot.pairs():
        yield _pair_row(measured, pair)
        for task in (pair.first, pair.second):
            try:
                yield from _loss_rows(measured, pair, task)
            except UsageError as error:
                yield note(measured.spot.cell, f"{pair.a} and {pair.second} on {task}: {error}")
        try:
            yield from _stream_rows(measured, pair)
        except UsageError as error:
            yield note(measured.spot.cell, f"{pair.a} and {pair.second} in activations: {error}")


def _pair_row(measured: Measured, pair: Pair) -> Row:
    spot = measured.spot
    first, second = spot.vectors[pair.a], spot.vectors[pair.b]
    found = relation(first, second)
    measured.mover.to({})
    whole = weights_norm(spot.network.model, spot.space)
    return {
        "table": "pair", **spot.keys(pair), "cosine": found.cosine, "chance": found.chance,
        "norm_first": found.first, "norm_second": found.second,
        "relative": (first + second).norm() / whole,
    }  # fmt: skip


def _loss_rows(measured: Measured, pair: Pair, task: str) -> Iterator[Row]:
    """Rows about the loss of one task."""
    spot = measured.spot
    measured.mover.to({})
    read, model = spot.displacements, spot.network.model
    curvature = second_order(
        model, spot.network.tasks[task], spot.batches[task], read[pair.a], read[pair.b],
        space=spot.space,
    )  # fmt: skip
    real, random = (_composition(measured, pair, task, b) for b in (pair.b, twin(pair.b)))
    keys = {**spot.keys(pair), "task": task}
    start = measured.losses.plane(task, pair.a, pair.b).mean(0.0, 0.0)
    for s in spot.config.scales:
        point, other = real.at(s), random.at(s)
        yield {
            "table": "interaction", **keys, "s": s, "interaction": finite(point.interaction),
            "low": finite(point.low), "high": finite(point.high),
            "random": finite(other.interaction), "predicted": s**2 * curvature.total,
            "change_first": finite(point.first), "change_second": finite(point.second),
            "change_both": finite(point.both), "start": start, "share": finite(point.share),
            "share_random": finite(other.share), "eps": spot.config.eps, "known": point.known,
        }  # fmt: skip
    yield {"table": "radius", **keys, **_radius(measured, pair, task, (real, random), curvature[0])}
    if pair.kind == VECTORS:
        yield from _block_rows(measured, pair, task, curvature.by_block, curvature.total)
        plane = measured.losses.plane(task, pair.a, pair.b)
        for x, y, loss in loss_map(plane, spot.config.grid):
            yield {
                "table": "map", **keys, "x": x, "y": y, "loss": finite(loss), "start": start,
            }  # fmt: skip


def _composition(measured: Measured, pair: Pair, task: str, b: str) -> Composition:
    spot = measured.spot
    draw = rng.generator(spot.cell.seed, "composition", pair.a, pair.b, task)
    return composition(
        measured.losses.plane(task, pair.a, b),
        scales=spot.config.scales,
        eps=spot.config.eps,
        generator=draw,
    )


def _radius(
    measured: Measured,
    pair: Pair,
    task: str,
    found: tuple[Composition, Composition],
    curvature: float,
) -> Row:
    """How far both can be scaled, beside what each allows and what slopes and curvature say."""
    (real, random), eps = found, measured.spot.config.eps
    singles = [measured.single(name, task) for name in (pair.a, pair.b)]
    slopes = sum(abs(slope) for slope, _ in singles)
    predicted = eps * slopes / abs(curvature) if curvature else math.inf
    return {
        **_bracket("radius", real.radius), "low": real.low, "high": finite(real.high),
        "limit": real.limit, "random_low": random.radius.low, "random_high": random.radius.high,
        "single_first": singles[0][1], "single_second": singles[1][1],
        "predicted": predicted if predicted <= real.limit else None, "eps": eps,
    }  # fmt: skip


def _bracket(name: str, found: Bracket) -> Row:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _block_rows(
    measured: Measured, pair: Pair, task: str, by_block: Mapping[str, float], total: float
) -> Iterator[Row]:
    """Rows of the table block: b in one block at a time, and b as a whole."""
    spot, losses = measured.spot, measured.losses
    random, parts = spot.parts[twin(pair.b)], spot.parts[pair.b]
    whole = {ALL: (pair.b, twin(pair.b), total)}
    places = {block: (parts[block], random[block], by_block[block]) for block in parts}
    for block, (b, like, predicted) in (whole | places).items():
        draw = rng.generator(spot.cell.seed, "composition", pair.a, pair.b, task)
        found = interaction(losses.plane(task, pair.a, b), FULL_SCALE, generator=draw)
        null = interaction(losses.plane(task, pair.a, like), FULL_SCALE, generator=draw)
        yield {
            "table": "block", **spot.keys(pair), "task": task, "block": block,
            "interaction": finite(found.interaction), "low": finite(found.low),
            "high": finite(found.high), "random": finite(null.interaction), "predicted": predicted,
        }  # fmt: skip


def _stream_rows(measured: Measured, pair: Pair) -> Iterator[Row]:
    """Rows of the tables curve and position."""
    spot, streams = measured.spot, measured.streams
    names = depth_names(list(streams.blocks))
    for i, block in enumerate(streams.blocks):
        keys: Row = {**spot.keys(pair), "block": block, "depth": names[block]}
        found = {s: _additivity(measured, pair, pair.b, i, s) for s in _looked(spot)}
        random = {s: _additivity(measured, pair, twin(pair.b), i, s) for s in _looked(spot)}
        for s, at in found.items():
            yield {"table": "curve", **keys, "s": s, "error": at.error, "random": random[s].error}
        rows = measured.prompts(pair)
        shifts = [Shift.of(streams.shift({name: FULL_SCALE})[rows, i]) for name in (pair.a, pair.b)]
        at = found[FULL_SCALE]
        reached = Bracket.first_above({s: each.error for s, each in found.items()}, LINE)
        yield {
            "table": "position", **keys, "error": at.error, "low": at.low, "high": at.high,
            "each": at.each, "random": random[FULL_SCALE].error, **_bracket("reached", reached),
            "shift_first": finite(shifts[0].ratio), "shift_second": finite(shifts[1].ratio),
            "noise": max(shift.noise_share for shift in shifts), "one": 1.0, "half": 0.5,
            "prompts": len(rows),
        }  # fmt: skip


def _looked(spot: Spot) -> list[float]:
    """The scales at which activations are measured."""
    return [s for s in spot.config.scales if s >= LEAST or s == FULL_SCALE]


def _additivity(measured: Measured, pair: Pair, b: str, place: int, s: float) -> Additivity:
    """The additivity error at one block and scale."""
    rows, spot = measured.prompts(pair), measured.spot
    first, second, both = (
        measured.streams.shift(scales)[rows, place]
        for scales in ({pair.a: s}, {b: s}, {pair.a: s, b: s})
    )
    draw = rng.generator(spot.cell.seed, "composition prompts", pair.a, pair.b)
    return additivity(first, second, both, generator=draw)
