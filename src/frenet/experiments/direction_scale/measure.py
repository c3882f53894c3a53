"""Rows of `direction_scale`: radius, deviation along the line, share of the gradient, lifetime."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from frenet.experiments.direction_scale import HOW_FAR, TRAINED, Config, cells, resolved
from frenet.experiments.direction_scale.answers import NO_SHARE, sentences
from frenet.experiments.direction_scale.directions import (
    Direction,
    Spot,
    Steering,
    given_directions,
    mean_gradient,
    random_like,
    steering_direction,
    weight_directions,
)
from frenet.experiments.direction_scale.kinds import FRESH, KINDS
from frenet.experiments.experiment import Cell, Row, number
from frenet.experiments.setup.brackets import life_cells
from frenet.experiments.setup.damage import NotDamagedError, damaged
from frenet.experiments.setup.describe import describe, note
from frenet.experiments.setup.lines import weight_share
from frenet.experiments.setup.networks import build, held_out
from frenet.geometry import rng
from frenet.geometry.alignment import cosine
from frenet.geometry.basis import Basis
from frenet.geometry.linalg import norm
from frenet.measure.lifetime import (
    follow,
    gradient_shares,
    lifetime,
    require_recorded,
    watch_training,
)
from frenet.measure.loss_line import TWICE, LossLine, loss_line
from frenet.measure.trajectory import Trajectory, train_and_record
from frenet.measure.trajectory_files import read_steps
from frenet.methods.effect_line import effect_line
from frenet.methods.linear_range import looked_between, radius
from frenet.methods.steering import contrast_streams
from frenet.methods.task_vectors import TaskVector
from frenet.network.checkpoints.tensor_files import Read
from frenet.network.data.contrast import UnansweredError
from frenet.network.tasks import ROOM

# Rows about directions from disk, each with its random twin; the last argument takes costs.
Advise = Callable[
    [Spot, Sequence[tuple[Direction, Direction]], Callable[[str], None]], Iterator[Row]
]
# Forward passes that the two radii of a direction take, beside those for slopes and curvature.
PASSES = 24
# Bytes that the libraries take when a small model runs, beside those of their import.
LIBRARIES = 2**28


def radius_rows(spot: Spot, direction: Direction) -> Iterator[Row]:
    """Rows of the tables radius and line for a direction in weights or factors."""
    model, space = spot.network.model, direction.space
    batch = spot.examples("test")
    delta = direction.delta if isinstance(direction.delta, torch.Tensor) else None
    share = weight_share(model, delta, space=space)
    about = _About(direction.name, "weights", direction.coordinates, share)
    size = space.norm(model)
    with loss_line(model, spot.task, batch, direction.read, space=space) as line:
        start, limit = looked_between(line, size, length=direction.length, eps=spot.config.eps)
        yield from _sides(spot, line, about, length=direction.length, start=start, limit=limit)


def steering_rows(spot: Spot, steering: Steering) -> Iterator[Row]:
    """The same for a direction in activations, by the log-odds of the answers."""
    yield from (note(spot.cell, text) for text in steering.fresh.notes)
    path = spot.config.path or None
    line = effect_line(
        spot.network.model, steering.prompts, steering.vector, block=steering.block, path=path
    )
    streams = contrast_streams(
        spot.network.model, steering.fresh, [steering.block], path=spot.config.path or None
    )
    norm = float(streams.at(0).rows.norm(dim=1).square().mean().sqrt())
    length = float(steering.vector.norm())
    about = _About("steering", f"block {steering.block}", "stream", lambda r: abs(r) / norm)
    yield from _sides(spot, line, about, length=length, start=length / 16, limit=16 * norm)


class _About(NamedTuple):
    """A direction: its name, place and coordinates, and the share of a norm that it moves."""

    name: str
    where: str
    coordinates: str
    share: Callable[[float], float]


def _sides(
    spot: Spot,
    line: LossLine,
    about: _About,
    *,
    length: float | None,
    start: float,
    limit: float,
) -> Iterator[Row]:
    """Both signs of a line."""
    keys: Row = {**dict(spot.cell.keys), "direction": about.name}
    for sign in (1, -1):
        draw = rng.generator(spot.seed, "direction-scale", about.name, str(sign))
        side: Row = {**keys, "coordinates": about.coordinates, "sign": sign}
        try:
            linear_range = radius(
                line, start=start, limit=limit, sign=sign, eps=spot.config.eps, generator=draw
            )
        except ValueError as error:
            said = f"{about.name}, sign {sign}: {error}"
            if spot.config.dtype != "float32":
                said += f"; the weights are in {spot.config.dtype}: pass --dtype float32"
            yield note(spot.cell, said)
            continue
        ends = {
            name: _finite(getattr(linear_range, name))
            for name in ("radius", "low", "high", "predicted")
        }
        yield {
            "table": "radius",
            **side,
            "where": about.where,
            **ends,
            "unbounded": linear_range.unbounded,
            "limit": limit,
            "length": length,
            "times": linear_range.radius / length if length else None,
            **_moved(about, sign, ends | {"limit": limit}),
            "slope": linear_range.slope,
            "eps": spot.config.eps,
        }
        for point in linear_range.points:
            deviation = point.deviation if math.isfinite(point.deviation) else None
            yield {
                "table": "line", **side, "r": abs(point.r),
                "share": abs(point.r) / linear_range.radius,
                "change": point.change if math.isfinite(point.change) else None,
                "linear": point.linear, "deviation": deviation, "eps": spot.config.eps,
            }  # fmt: skip


def _moved(about: _About, sign: int, ends: Mapping[str, float | None]) -> Row:
    """Distances along a line, as shares of the norm of the weights or of the stream."""
    shares = {name: None if r is None else about.share(sign * r) for name, r in ends.items()}
    whole = "stream" if about.coordinates == "stream" else "weights"
    named = {f"relative_{name}": share for name, share in shares.items() if name != "radius"}
    return {"relative": shares["radius"], **named, "share_of": whole}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def share_looks(
    spot: Spot, directions: Sequence[Direction], steering: Steering | None, step: int
) -> dict[str, float]:
    """What every direction holds at the current point, by name.

    For weights: the share of held-out gradients along it, in its coordinates (dL/dW of the weights
    that it changes, or the gradient of the factors); for gradient and Adam step, relative to a
    fresh one. For activations: the cosine with a fresh vector.
    """
    held: dict[str, float] = {}
    # New minibatches at every step: no direction has seen the held-out ones.
    other, again = (spot.seed + 1_000_003 * (2 * step + i) for i in (1, 2))
    for space in dict.fromkeys(d.space for d in directions):
        bases: dict[str, Basis | Read] = {d.name: d.read for d in directions if d.space == space}
        for name in set(bases) & set(FRESH):
            fresh = mean_gradient(spot, scaled=name == "Adam step", seed=again)
            bases[f"fresh {name}"] = Direction(name, fresh, space, None).read
        shares = gradient_shares(
            spot.network.model, spot.task, bases, space=space,
            n=spot.config.n, batch_size=spot.config.batch_size, split=held_out(spot.task),
            seed=other,
        )  # fmt: skip
        held |= {
            name: share / (shares[f"fresh {name}"] or 1.0) if name in FRESH else share
            for name, share in shares.items()
            if not name.startswith("fresh ")
        }
    if steering is not None:
        held["steering"] = _fresh_cosine(spot, steering)
    return held


def _fresh_cosine(spot: Spot, steering: Steering) -> float:
    streams = contrast_streams(
        spot.network.model, steering.fresh, [steering.block], path=spot.config.path or None
    )
    return cosine(steering.vector, streams.at(0).difference())


def lifetime_rows(
    spot: Spot,
    values: Mapping[str, Mapping[int, float]],
    path: Trajectory,
    dims: Mapping[str, int],
    reach: Mapping[str, float],
    coordinates: Mapping[str, str],
) -> Iterator[Row]:
    """Rows of the tables share and lifetime.

    Args:
        spot: network and task.
        values: by direction, what ``share_looks`` gave at every lag; all have the same lags.
        path: the training run.
        dims: by direction, the d of its space, or the h of its stream.
        reach: by direction, ``relative`` at its radius, if it has one.
        coordinates: by direction, in which its line is straight.
    """
    lags = sorted({lag for at in values.values() for lag in at})
    distances = path.distances(max(lags, default=0))
    displacements = {lag: norm(path.displacement(0, lag)) for lag in lags}
    for name, at in values.items():
        keys: Row = {**dict(spot.cell.keys), "direction": name, "coordinates": coordinates[name]}
        chance = dims[name] ** (-0.5 if name == "steering" else -1)
        none = name not in FRESH and at[0] < chance * (2 if name == "steering" else NO_SHARE)
        none = none or not at[0] > 0
        for lag, value in at.items():
            yield {
                "table": "share", **keys, "lag": lag, "value": value, "start": at[0],
                "ratio": value / at[0] if at[0] > 0 and not none else None, "half": 0.5,
                "chance": None if name in FRESH else chance,
                "displacement": displacements[lag],
            }  # fmt: skip
        yield {
            "table": "lifetime", **keys, "against": _against(name, coordinates[name]),
            "has_share": not none, **life_cells(None if none else lifetime(at, distances)),
            "longest": max(lags), "farthest": max(distances),
            "relative": reach.get(name), "share_of": "stream" if name == "steering" else "weights",
        }  # fmt: skip


def _against(name: str, coordinates: str) -> str:
    if name == "steering":
        return "its cosine with a fresh one"
    over = "a fresh one's" if name in FRESH else "that at the start"
    return f"its share of the gradient in the {coordinates}, over {over}"


def run(
    config: Config,
    cell: Cell,
    say: Callable[[str], None] | None = None,
    advise: Advise | None = None,
) -> Iterator[Row]:
    """Rows of the tables radius, line, share and lifetime.

    Args:
        config: what to measure.
        cell: seed, space and task.
        say: takes what a person should know before a long step: its cost, and the answers so far.
        advise: gives further rows about the directions from disk, before everything else.
    """
    network = build(config, space=cell["space"], seed=cell.seed)
    size = config.batch_size
    config = resolved(config)
    select = size if "search winner" in config.directions else 0
    test = max(size, config.eval_size)
    yield from describe(network, cell, cells(config), config, select=select, test=test)
    task = network.tasks[cell["task"]]
    spot = Spot(config, cell, network, task, network.space.read(network.model).cpu())
    try:
        with damaged(network, task, config, protocol=config.protocol, seed=cell.seed):
            yield from Measurement(spot, say or (lambda _: None), advise).rows()
    except NotDamagedError as error:
        yield note(cell, f"{config.protocol} left out: {error}")


@dataclass
class Measurement:
    """How far, and then how long, at one spot; what needs no training comes first.

    Attributes:
        spot: where.
        say: takes costs and answers.
        advise: gives further rows about the given directions, which come first.
        given: the directions that are asked about, each with its vector.
        directions: followed so far, for their lifetimes.
        radii: rows of the table radius so far.
    """

    spot: Spot
    say: Callable[[str], None]
    advise: Advise | None = None
    given: Callable[[Spot], Iterable[tuple[Direction, TaskVector]]] = given_directions
    directions: list[Direction] = field(default_factory=list)
    radii: list[Row] = field(default_factory=list)

    def rows(self) -> Iterator[Row]:
        """All rows."""
        spot, config = self.spot, self.spot.config
        model, space = spot.network.model, spot.network.space
        # Problems with the user's files show before anything is measured.
        own: list[tuple[Direction, Direction]] = []
        for direction, vector in self.given(spot):
            yield from (note(spot.cell, f"{direction.name}: {text}") for text in vector.notes)
            own.append((direction, random_like(spot, direction)))
        given = [direction for pair in own for direction in pair]
        with space.restored(model):
            path = None
            if config.trajectory:
                path = read_steps(config.trajectory)
                require_recorded(path, space=space, lags=config.lags)
                space.write(model, path.start)
            try:
                steering = steering_direction(spot)
            except UnansweredError as error:
                if config.steering:
                    raise
                steering = None
                remedy = "write two other words into the file of --contrasts"
                yield note(spot.cell, f"the steering vector was left out: {error}; {remedy}")
            if self.advise is not None:
                yield from self.advise(spot, own, self.say)
            self.say(cost_of_lines(spot, given))
            yield from self._far(given)
            if steering is not None:
                yield from self._kept(steering_rows(spot, steering))
            yield from self._far(
                weight_directions(spot, path, [kind for kind in KINDS if kind not in TRAINED])
            )
            if path is None and config.lags != HOW_FAR:
                self._tell_before_training()
            if set(TRAINED) & set(config.directions):
                if path is None:
                    with space.restored(model):
                        path = train_and_record(model, spot.task, spot.training(), space=space)
                yield from self._far(weight_directions(spot, path, TRAINED))
            if config.lags != HOW_FAR:
                yield from self._long(steering)

    def _far(self, directions: Iterable[Direction]) -> Iterator[Row]:
        """Radii at the current point."""
        dtype = self.spot.config.dtype
        for direction in directions:
            if dtype == "float32" or direction.coordinates == "factors":
                self.directions.append(direction)
                yield from self._kept(radius_rows(self.spot, direction))
                continue
            why = f"it is a line in the weights, which are in {dtype}"
            yield note(self.spot.cell, f"{direction.name} left out: {why}; pass --dtype float32")

    def _kept(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            if row["table"] == "radius":
                self.radii.append(row)
            yield row

    def _tell_before_training(self) -> None:
        """The answers so far, and what the trainings cost."""
        config = self.spot.config
        for answer in sentences(self.radii):
            self.say(str(answer))
        runs = 2 if set(TRAINED) & set(config.directions) else 1
        spaces = len({direction.space for direction in self.directions})
        gradients = config.n * spaces * (len(config.lags) + 1)
        self.say(
            f"how long: {runs * max(config.lags)} training steps of {config.batch_size} rows, and "
            f"{gradients} gradients of as many"
        )

    def _long(self, steering: Steering | None) -> Iterator[Row]:
        """Lifetimes along a training run from the current point."""
        spot, config = self.spot, self.spot.config
        model, space = spot.network.model, spot.network.space

        def look(step: int) -> dict[str, float]:
            return share_looks(spot, self.directions, steering, step)

        dims = {direction.name: direction.space.dim for direction in self.directions}
        coordinates: dict[str, str] = {d.name: d.coordinates for d in self.directions}
        if steering is not None:
            dims["steering"], coordinates["steering"] = len(steering.vector), "stream"
        reach = {
            str(row["direction"]): number(row, "relative") for row in self.radii if row["sign"] == 1
        }
        if config.trajectory:
            path = read_steps(config.trajectory)
            values = follow(model, path, space=space, lags=config.lags, look=look)
        else:
            # Prefix and task vector have seen the minibatches of the run that made them.
            with space.restored(model):
                path, values = watch_training(
                    model, spot.task, spot.training(replicate=1),
                    space=space, lags=config.lags, look=look,
                )  # fmt: skip
        yield from lifetime_rows(spot, values, path, dims, reach, coordinates)


def cost_of_lines(spot: Spot, given: Sequence[Direction]) -> str:
    """What "how far" costs, in a sentence."""
    model, config = spot.network.model, spot.config
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    # Beside the weights: a copy of those that move, their direction or gradient, and one pass.
    moved = max((4 * direction.space.dim for direction in given), default=0)
    logits = config.eval_size * config.max_length * round(math.exp(spot.network.chance))
    peak = LIBRARIES + weights + 2 * moved + 4 * min(ROOM, TWICE * logits)
    lines = [direction.name for direction in given]
    lines += [kind for kind in KINDS if kind in config.directions and kind != "steering"]
    return (
        f"how far: {len(lines)} directions, each about {PASSES} forward passes of "
        f"{config.eval_size} examples; up to about {peak / 2**30:.2g} GiB of memory"
    )
