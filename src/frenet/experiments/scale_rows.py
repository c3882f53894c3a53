"""Rows of `direction_scale`: radius, deviation along the line, share of the gradient, lifetime."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from frenet.experiments import brackets
from frenet.experiments.brackets import bracket_of, life_cells
from frenet.experiments.experiment import Row, Rows
from frenet.experiments.network_rows import note
from frenet.experiments.networks import held_out
from frenet.experiments.scale_directions import FRESH, Direction, Spot, Steering, mean_gradient

if TYPE_CHECKING:
    import torch
    from torch import nn

    from frenet.geometry.basis import Basis
    from frenet.measure.line import Line
    from frenet.measure.trajectory import Trajectory
    from frenet.network.space import ParamSpace

# A direction whose share of the gradient is not this many times chance has no share to lose: one
# squared coordinate of a random direction exceeds it once in 500 draws. A cosine of a steering
# vector has to be twice 1 / sqrt(h).
NO_SHARE = 10
# The radius of a row and the ends of its interval, as shares of the norm of what moves.
SHARES = ("relative", "relative_low", "relative_high")


def radius_rows(spot: Spot, direction: Direction) -> Iterator[Row]:
    """Rows of the tables radius and line for a direction in weights or factors."""
    from frenet.geometry.linalg import norm
    from frenet.measure.line import loss_line
    from frenet.methods.search import distinct
    from frenet.network.tasks import repeatable

    model, space = spot.network.model, direction.space
    batch = distinct(next(repeatable(spot.task, "test", spot.config.eval_size, spot.seed)))
    share = weight_share(model, direction.delta, space=space)
    about = _About(direction.name, "weights", direction.coordinates, share)
    size = norm(space.read(model))
    with loss_line(model, spot.task, batch, direction.delta, space=space) as line:
        start, limit = looked_between(line, size, length=direction.length, eps=spot.config.eps)
        yield from _sides(spot, line, about, length=direction.length, start=start, limit=limit)


def looked_between(
    line: "Line", size: float, *, length: float | None, eps: float
) -> tuple[float, float]:
    """First and greatest distance at which a line through parameters of norm ``size`` is seen."""
    start = size / 1000
    if line.curvature:
        # A quarter of where a quadratic would leave the linear.
        start = min(start, eps * abs(line.slope / line.curvature) / 2)
    return start, max(size, 4 * (length or 0.0))


def weight_share(
    model: "nn.Module", direction: "torch.Tensor", *, space: "ParamSpace"
) -> Callable[[float], float]:
    r"""||Delta W|| / ||W|| at a distance along a line, of weights or of factors.

    Args:
        model: at the start of the line.
        direction: (d,), not zero.
        space: of its coordinates.
    """
    from frenet.methods.task_vectors import from_step
    from frenet.network.weight_space import coordinates_of, weights_norm

    start = space.read(model).cpu()
    unit = direction.cpu() / float(direction.double().norm())
    weights = weights_norm(model, from_step(model, unit, space=space).space(model))

    def share(r: float) -> float:
        if coordinates_of(space) == "weights":
            return abs(r) / weights
        return from_step(model, r * unit, space=space, start=start).norm() / weights

    return share


def steering_rows(spot: Spot, steering: Steering) -> Iterator[Row]:
    """The same for a direction in activations, by the difference of the logits."""
    from frenet.methods.effect_line import effect_line
    from frenet.methods.steering import contrast_streams

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
    """A direction, where it acts, in which coordinates, and what share of a norm it moves."""

    name: str
    where: str
    coordinates: str
    share: Callable[[float], float]


def _sides(
    spot: Spot,
    line: "Line",
    about: "_About",
    *,
    length: float | None,
    start: float,
    limit: float,
) -> Iterator[Row]:
    """Both signs of a line."""
    from frenet.geometry import rng
    from frenet.methods.scale import radius

    keys: Row = {**dict(spot.cell.keys), "direction": about.name}
    for sign in (1, -1):
        draw = rng.generator(spot.seed, "direction-scale", about.name, str(sign))
        side: Row = {**keys, "coordinates": about.coordinates, "sign": sign}
        try:
            found = radius(
                line, start=start, limit=limit, sign=sign, eps=spot.config.eps, generator=draw
            )
        except ValueError as error:
            said = f"{about.name}, sign {sign}: {error}"
            if spot.config.dtype != "float32":
                said += f"; the weights are in {spot.config.dtype}: pass --dtype float32"
            yield note(spot.cell, said)
            continue
        ends = {
            name: _finite(getattr(found, name)) for name in ("radius", "low", "high", "predicted")
        }
        yield {
            "table": "radius",
            **side,
            "where": about.where,
            **ends,
            "unbounded": found.unbounded,
            "limit": limit,
            "length": length,
            "times": found.radius / length if length else None,
            **_moved(about, sign, ends | {"limit": limit}),
            "slope": found.slope,
            "eps": spot.config.eps,
        }
        for point in found.points:
            deviation = point.deviation if math.isfinite(point.deviation) else None
            yield {
                "table": "line", **side, "r": abs(point.r), "share": abs(point.r) / found.radius,
                "change": point.change if math.isfinite(point.change) else None,
                "linear": point.linear, "deviation": deviation, "eps": spot.config.eps,
            }  # fmt: skip


def _moved(about: "_About", sign: int, ends: Mapping[str, float | None]) -> Row:
    """What distances along a line move, over the norm of the weights or of the stream."""
    shares = {name: None if r is None else about.share(sign * r) for name, r in ends.items()}
    whole = "stream" if about.coordinates == "stream" else "weights"
    named = {f"relative_{name}": share for name, share in shares.items() if name != "radius"}
    return {"relative": shares["radius"], **named, "share_of": whole}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def share_looks(
    spot: Spot, directions: Sequence[Direction], steering: Steering | None, step: int
) -> dict[str, float]:
    """What every direction holds at the present point, by name.

    Of weights, the share of held-out gradients along it, in its own coordinates: dL/dW of the
    weights that it changes, or the gradient of the factors; where it can be made anew, over that
    of the fresh one. Of activations, the cosine with the fresh one.
    """
    from frenet.measure.lifetime import gradient_shares

    found: dict[str, float] = {}
    # Minibatches of their own at every step: what is held out is never what a direction saw.
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
        found |= {
            name: share / (shares[f"fresh {name}"] or 1.0) if name in FRESH else share
            for name, share in shares.items()
            if not name.startswith("fresh ")
        }
    if steering is not None:
        found["steering"] = _fresh_cosine(spot, steering)
    return found


def _line_basis(direction: Direction) -> "Basis":
    from frenet.geometry.basis import span_basis

    return span_basis(direction.delta[None], space=direction.space, origin=direction.name)


def _fresh_cosine(spot: Spot, steering: Steering) -> float:
    from frenet.geometry.alignment import cosine
    from frenet.methods.steering import contrast_streams

    streams = contrast_streams(
        spot.network.model, steering.fresh, [steering.block], path=spot.config.path or None
    )
    return cosine(steering.vector, streams.at(0).difference())


def lifetime_rows(
    spot: Spot,
    values: Mapping[str, Mapping[int, float]],
    path: "Trajectory",
    dims: Mapping[str, int],
    reach: Mapping[str, float],
    coordinates: Mapping[str, str],
) -> Iterator[Row]:
    """Rows of the tables share and lifetime.

    Args:
        spot: where.
        values: by direction, what ``share_looks`` gave at every lag.
        path: the training.
        dims: by direction, the d of its space, or the h of its stream.
        reach: by direction, what its radius moves over its norm, where it has one.
        coordinates: by direction, in which its line is straight.
    """
    from frenet.geometry.linalg import norm
    from frenet.measure.lifetime import lifetime

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
                "displacement": norm(path.displacement(0, lag)),
            }  # fmt: skip
        yield {
            "table": "lifetime", **keys, "against": _against(name, coordinates[name]),
            "has_share": not none, **life_cells(None if none else lifetime(at, path)),
            "longest": max(at), "farthest": max(path.distances(max(at))),
            "relative": reach.get(name), "share_of": "stream" if name == "steering" else "weights",
        }  # fmt: skip


def _against(name: str, coordinates: str) -> str:
    if name == "steering":
        return "its cosine with a fresh one"
    over = "a fresh one's" if name in FRESH else "that at the start"
    return f"its share of the gradient in the {coordinates}, over {over}"


def answer_rows(spot: Spot, rows: Sequence[Row]) -> Iterator[Row]:
    """One sentence for each direction of a cell."""
    for life in (row for row in rows if row["table"] == "lifetime"):
        name = life["direction"]
        sides = [r for r in rows if r["table"] == "radius" and r["direction"] == name]
        yield {
            "table": "answer", **dict(spot.cell.keys), "direction": name,
            "sentence": f"{name}: {_far(sides)}; {_long(life)}",
        }  # fmt: skip


def _far(sides: Sequence[Row]) -> str:
    """How far, in its own length where it has one."""
    if not sides:
        return "no radius, since its slope is too small to be told from rounding (see the notes)"
    row = next((r for r in sides if r["sign"] == 1), sides[0])
    what = "loss" if row["where"] == "weights" else "logit difference"
    moved = "weights'" if row["where"] == "weights" else "stream's"
    within = f"{what} is linear within {float(str(row['eps'])):.0%}"
    # In its own length, or as a share of what it moves.
    one = float(str(row["length"])) if row["length"] else 1.0
    ends = ("radius", "low", "high") if row["length"] else SHARES
    size, low, high = (
        "?" if row[end] is None else f"{float(str(row[end])) / one:.3g}" for end in ends
    )
    unit = "its own length" if row["length"] else f"the {moved} norm"
    along = "" if row["where"] != "weights" else f", in the {row['coordinates']}"
    moves = ""
    if row["length"] and row["coordinates"] == "factors":
        moves = f", where the weights have moved by {float(str(row['relative'])):.3g} of their norm"
    if row["unbounded"]:
        return f"{within} as far as was looked, {size} of {unit}{along}{moves}"
    side = "" if row["sign"] == 1 else ", against it"
    return f"{within} up to {size} of {unit}{along}{side} [{low}, {high}]{moves}"


def _long(life: Row) -> str:
    """How long."""
    if not life["has_share"]:
        if life["direction"] == "steering":
            return "made from other prompts it is another one, so it has nothing to lose"
        return f"it holds less of the gradient than {NO_SHARE} times chance: nothing to lose"
    found = bracket_of(life)
    return f"lifetime {found.told('step')} of training" if found else "lifetime not known"


def reread(rows: Rows) -> list[Row]:
    """Rows of any version with lifetimes as brackets, and with sentences that say so."""
    keys = ("seed", "space", "task", "direction")
    found = brackets.reread(rows, looks="share", lives="lifetime", keys=keys, lag="lag")
    lives = {
        tuple(new[key] for key in keys): new
        for old, new in zip(rows, found, strict=True)
        if new["table"] == "lifetime" and new != old
    }
    for row in found:
        life = lives.get(tuple(row.get(key) for key in keys))
        if life is not None and row["table"] == "answer":
            far = str(row["sentence"]).rpartition("; ")[0]
            row["sentence"] = f"{far}; {_long(life)}"
    return found
