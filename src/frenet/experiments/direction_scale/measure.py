"""Rows of `direction_scale`: radius, deviation along the line, share of the gradient, lifetime."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from frenet.experiments.direction_scale import Config, cells
from frenet.experiments.direction_scale.answers import NO_SHARE
from frenet.experiments.direction_scale.directions import (
    Direction,
    Spot,
    Steering,
    mean_gradient,
    source_names,
    steering_direction,
    weight_directions,
)
from frenet.experiments.direction_scale.figures import FRESH
from frenet.experiments.experiment import Cell, Row, number
from frenet.experiments.setup.brackets import life_cells
from frenet.experiments.setup.damage import NotDamagedError, damaged
from frenet.experiments.setup.describe import describe, note
from frenet.experiments.setup.lines import looked_between, weight_share
from frenet.experiments.setup.networks import build, held_out
from frenet.geometry import rng
from frenet.geometry.alignment import cosine
from frenet.geometry.basis import Basis, span_basis
from frenet.geometry.linalg import norm
from frenet.measure.lifetime import (
    follow,
    gradient_shares,
    lifetime,
    require_recorded,
    watch_training,
)
from frenet.measure.loss_line import LossLine, loss_line
from frenet.measure.trajectory import Trajectory, train_and_record
from frenet.measure.trajectory_files import read_steps
from frenet.methods.effect_line import effect_line
from frenet.methods.linear_range import radius
from frenet.methods.search import drop_duplicates
from frenet.methods.steering import contrast_streams
from frenet.methods.vector_files import vectors_from_disk
from frenet.network.data.contrast import UnansweredError
from frenet.network.tasks import repeatable


def radius_rows(spot: Spot, direction: Direction) -> Iterator[Row]:
    """Rows of the tables radius and line for a direction in weights or factors."""
    model, space = spot.network.model, direction.space
    batch = drop_duplicates(next(repeatable(spot.task, "test", spot.config.eval_size, spot.seed)))
    share = weight_share(model, direction.delta, space=space)
    about = _About(direction.name, "weights", direction.coordinates, share)
    size = norm(space.read(model))
    with loss_line(model, spot.task, batch, direction.delta, space=space) as line:
        start, limit = looked_between(line, size, length=direction.length, eps=spot.config.eps)
        yield from _sides(spot, line, about, length=direction.length, start=start, limit=limit)


def steering_rows(spot: Spot, steering: Steering) -> Iterator[Row]:
    """The same for a direction in activations, by the difference of the logits."""
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
        bases = {d.name: _line_basis(d) for d in directions if d.space == space}
        for name in set(bases) & set(FRESH):
            fresh = mean_gradient(spot, scaled=name == "Adam step", seed=again)
            bases[f"fresh {name}"] = _line_basis(Direction(name, fresh, space, None))
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


def _line_basis(direction: Direction) -> Basis:
    return span_basis(direction.delta[None], space=direction.space, origin=direction.name)


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


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables radius, line, share and lifetime."""
    network = build(config, space=cell["space"], seed=cell.seed)
    size = config.batch_size
    select = size if "search winner" in config.directions else 0
    test = max(size, config.eval_size)
    yield from describe(network, cell, cells(config), config, select=select, test=test)
    task = network.tasks[cell["task"]]
    spot = Spot(config, cell, network, task, network.space.read(network.model).cpu())
    try:
        with damaged(network, task, config, protocol=config.protocol, seed=cell.seed):
            yield from _measured(spot)
    except NotDamagedError as error:
        yield note(cell, f"{config.protocol} left out: {error}")


def _measured(spot: Spot) -> Iterator[Row]:
    model, space, config = spot.network.model, spot.network.space, spot.config
    # Problems with the user's files show before anything is trained.
    given = []
    names = source_names(config.vectors)
    for name, vector in zip(names, vectors_from_disk(model, config.vectors), strict=True):
        yield from (note(spot.cell, f"{name}: {text}") for text in vector.notes)
        own_space = vector.space(model)
        given.append(Direction(name, vector.flat(own_space), own_space, vector.norm()))
    with space.restored(model):
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
            remedy = "write such words into the file of --contrasts"
            yield note(spot.cell, f"the steering vector was left out: {error}; {remedy}")
        if not config.trajectory:
            with space.restored(model):
                path = train_and_record(model, spot.task, spot.training(), space=space)
        directions = []
        for direction in (*weight_directions(spot, path), *given):
            if config.dtype == "float32" or direction.coordinates == "factors":
                directions.append(direction)
                continue
            why = f"it is a line in the weights, which are in {config.dtype}"
            yield note(spot.cell, f"{direction.name} left out: {why}; pass --dtype float32")
        yield from _rows(spot, path, directions, steering)


def _rows(
    spot: Spot, path: Trajectory, directions: list[Direction], steering: Steering | None
) -> Iterator[Row]:
    """Radii at the current point, and lifetimes along a training run from there."""
    model, space, config = spot.network.model, spot.network.space, spot.config

    def look(step: int) -> dict[str, float]:
        return share_looks(spot, directions, steering, step)

    rows = [row for direction in directions for row in radius_rows(spot, direction)]
    dims = {direction.name: direction.space.dim for direction in directions}
    coordinates: dict[str, str] = {
        direction.name: direction.coordinates for direction in directions
    }
    if steering is not None:
        rows += steering_rows(spot, steering)
        dims["steering"], coordinates["steering"] = len(steering.vector), "stream"
    reach = {
        str(row["direction"]): number(row, "relative")
        for row in rows
        if row["table"] == "radius" and row["sign"] == 1
    }
    yield from rows
    if config.trajectory:
        values = follow(model, path, space=space, lags=config.lags, look=look)
    else:
        # Prefix and task vector have seen the minibatches of the run that made them.
        with space.restored(model):
            path, values = watch_training(
                model, spot.task, spot.training(replicate=1),
                space=space, lags=config.lags, look=look,
            )  # fmt: skip
    yield from lifetime_rows(spot, values, path, dims, reach, coordinates)
