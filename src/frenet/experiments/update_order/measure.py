"""Rows of `update_order`: the Lie bracket of every pair, and two steps in both orders."""

import math
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from frenet._errors import UsageError
from frenet.experiments.experiment import Cell, Row, finite
from frenet.experiments.setup.describe import describe, note
from frenet.experiments.setup.networks import Network, build, by_space
from frenet.experiments.update_order import Config, cells
from frenet.experiments.update_order.figures import NEW, OTHER, OTHERS, SAME
from frenet.geometry import rng
from frenet.geometry.alignment import cosine
from frenet.geometry.linalg import norm
from frenet.measure.damage import Mixture, fixed_loss
from frenet.measure.lie_bracket import (
    MANY,
    LieBracket,
    Minibatch,
    above_rounding,
    cost_of_pairs,
    lie_brackets,
    precision,
    rounding_floor,
)
from frenet.measure.loss_line import loss_line
from frenet.measure.schedules import InTurn, Together
from frenet.measure.trajectory import Training, train_and_record
from frenet.measure.update_order import (
    OrderDifference,
    State,
    carried_state,
    gradient_step,
    order_difference,
)
from frenet.measure.update_order_in_weights import OrderInWeights
from frenet.methods.linear_range import looked_between, radius
from frenet.network.adapters import structural_zeros
from frenet.network.checkpoints.weight_space import coordinates_of
from frenet.network.space import ParamSpace
from frenet.network.tasks import Task, repeatable

# Minibatches of the repeated training.
REPLICATE = 7919


class Window(NamedTuple):
    """How far one task's own gradient step is linear, as step sizes.

    Attributes:
        eta: the radius over the gradient's norm; None: it could not be measured.
        unbounded: whether it is only known to be larger.
    """

    eta: float | None
    unbounded: bool


class Pair(NamedTuple):
    """Two minibatches with their bracket.

    Attributes:
        kind: two learned tasks, one and a new one, or two minibatches of one.
        first: task A.
        second: task B.
        bracket: of their gradients, with its null.
        floor: norm of the bracket of either with itself, from rounding.
    """

    kind: str
    first: Minibatch
    second: Minibatch
    bracket: LieBracket
    floor: float

    @property
    def null(self) -> torch.Tensor:
        """The bracket of random steps of the gradients' norms, (d,)."""
        assert self.bracket.null is not None
        return self.bracket.null

    @property
    def keys(self) -> Row:
        """The keys that name the pair."""
        return {"kind": self.kind, "first": self.first.name, "second": self.second.name}


@dataclass(frozen=True)
class Spot:
    """A network at the point where updates are compared.

    Attributes:
        config: settings.
        cell: seed and space.
        network: at that point.
        tasks: to take pairs of.
    """

    config: Config
    cell: Cell
    network: Network
    tasks: Mapping[str, Task]

    @property
    def space(self) -> ParamSpace:
        """The parameters that move."""
        return self.network.space

    @property
    def float64(self) -> bool:
        """Whether gradients are taken in float64."""
        return self.config.precision == "float64"

    @property
    def keys(self) -> Row:
        """Keys of all rows."""
        return dict(self.cell.keys)

    def generator(self, *names: str) -> torch.Generator:
        """A stream of random numbers of this cell."""
        return rng.generator(self.cell.seed, "update-order", str(self.cell["space"]), *names)


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables window, bracket, order, optimizer and stretch."""
    network = build(config, space=cell["space"], seed=cell.seed)
    yield from describe(network, cell, cells(config), config, test=config.eval_size)
    tasks = {name: network.tasks[name] for name in network.measured}
    if config.unseen and not config.only:
        tasks |= network.unseen
    if len(tasks) < 2:
        yield note(cell, f"there is only one task, {', '.join(tasks)}, so there are no pairs")
    with _at_point(network, config, cell):
        yield from _rows(Spot(config, cell, network, tasks))


@contextmanager
def _at_point(network: Network, config: Config, cell: Cell) -> Iterator[None]:
    """The network after noise, and after a training of a fresh adapter on all its tasks."""
    model, space, weights = network.model, network.space, network.damage_space
    with ExitStack() as stack:
        if config.noise:
            draw = rng.generator(cell.seed, "update-order", "noise")
            noise = torch.randn(weights.dim, generator=draw)
            stack.enter_context(weights.displaced(model, noise, config.noise))
        if structural_zeros(model, space).zero:
            stack.enter_context(space.restored(model))
            training = Training(
                config.adapter_optimizer, config.batch_size, config.adapter_steps, seed=cell.seed
            )
            everything = Mixture(tuple(network.tasks.values()))
            train_and_record(model, everything, training, space=space)
        yield


def _rows(spot: Spot) -> Iterator[Row]:
    batches = {name: _two(spot, task) for name, task in spot.tasks.items()}
    clear: dict[str, float | None] = {}
    for name, (own, _) in batches.items():
        try:
            clear[name] = above_rounding(
                spot.network.model, own, space=spot.space, float64=spot.float64
            )
        except UsageError as error:
            yield note(spot.cell, f"{name} left out: {error}")
    if len(clear) > MANY:
        yield note(spot.cell, cost_of_pairs(len(clear)))
    pairs = _pairs(spot, {name: batches[name] for name in clear}, clear)
    windows: dict[str, Window] = {}
    gradients = {m.name: g for pair in pairs for m, g in _sides(pair)}
    for name, g in gradients.items():
        windows[name] = yield from _window_rows(spot, batches[name][0], g, clear[name])
    states = {name: _states(spot, name) for name in _optimizers(spot)}
    for pair in pairs:
        inside = None
        if coordinates_of(spot.space) == "factors":
            inside = OrderInWeights.of(spot.network.model, pair.bracket, space=spot.space)
        yield from _bracket_rows(spot, pair, windows, inside)
        yield from _order_rows(spot, pair, windows, inside)
        if pair.kind == OTHER:
            yield from _optimizer_rows(spot, pair, states)
    for pair in [pair for pair in pairs if pair.kind == OTHER][: spot.config.long_pairs]:
        for optimizer in _optimizers(spot):
            yield from _stretch_rows(spot, pair, optimizer)


def _two(spot: Spot, task: Task) -> tuple[Minibatch, Minibatch]:
    """Two minibatches of a task."""
    batches = repeatable(task, "train", spot.config.batch_size, spot.cell.seed)
    return Minibatch(task, next(batches)), Minibatch(task, next(batches))


def _sides(pair: Pair) -> Iterator[tuple[Minibatch, torch.Tensor]]:
    if pair.kind != SAME:
        yield from zip((pair.first, pair.second), pair.bracket.gradients, strict=True)


def _pairs(
    spot: Spot,
    batches: Mapping[str, tuple[Minibatch, Minibatch]],
    clear: Mapping[str, float | None],
) -> list[Pair]:
    """All pairs of tasks, and for every task two of its minibatches."""
    firsts = [first for first, _ in batches.values()]
    groups: list[tuple[str, Sequence[Minibatch]]] = [(OTHER, firsts)] if len(firsts) > 1 else []
    learned = spot.network.tasks
    groups += [(SAME, two) for two in batches.values() if not two[0].same_as(two[1])]
    model, space, float64 = spot.network.model, spot.space, spot.float64
    floors = {
        first.name: rounding_floor(model, first, space=space, float64=float64) for first in firsts
    }
    found: list[Pair] = []
    for kind, group in groups:
        draw = spot.generator("random", *(m.name for m in group))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # A note has the cost.
            brackets = lie_brackets(
                model, group, space=space, float64=float64, null=draw,
                clear=[clear[m.name] for m in group],
            )  # fmt: skip
        for (i, j), bracket in brackets.items():
            first, second = group[i], group[j]
            floor = max(floors[first.name], floors[second.name])
            known = first.name in learned and second.name in learned
            named = kind if known or kind == SAME else NEW
            found.append(Pair(named, first, second, bracket, floor))
    return found


def _window_rows(
    spot: Spot, own: Minibatch, g: torch.Tensor, clear: float | None
) -> Generator[Row, None, Window]:
    """A row of the table window; returns the window."""
    model, space, length = spot.network.model, spot.space, norm(g)
    row: Row = {
        "table": "window", **spot.keys, "coordinates": coordinates_of(space), "task": own.name,
        "norm": length, "clear": clear, "eps": spot.config.eps,
    }  # fmt: skip
    try:
        with (
            precision(model, float64=spot.float64),
            loss_line(model, own.task, own.batch, -g, space=space) as line,
        ):
            start, limit = looked_between(line, space.norm(model), length=None, eps=spot.config.eps)
            draw = spot.generator("window", own.name)
            found = radius(line, start=start, limit=limit, eps=spot.config.eps, generator=draw)
    except UsageError as error:
        yield note(spot.cell, f"the window of {own.name} is not known: {error}")
        yield row
        return Window(None, False)
    ends = {name: finite(getattr(found, name)) for name in ("low", "high", "predicted")}
    sizes = {name: None if end is None else end / length for name, end in ends.items()}
    yield row | {"window": found.radius / length, "unbounded": found.unbounded, **sizes}
    return Window(found.radius / length, found.unbounded)


def _bracket_rows(
    spot: Spot, pair: Pair, windows: Mapping[str, Window], inside: OrderInWeights | None
) -> Iterator[Row]:
    """Rows of the table bracket: kappa and onset beside their nulls, and the window."""
    bracket = pair.bracket
    window, known = _smaller(windows[name] for name in bracket.names if name in windows)
    first, second = bracket.clear
    shared: Row = {
        "table": "bracket", **spot.keys, **pair.keys, "clear_first": first,
        "clear_second": second, "cosine": cosine(*bracket.gradients), "window": window,
    }  # fmt: skip
    in_parameters = (
        bracket.kappa, norm(pair.null) / bracket.length, pair.floor / bracket.length,
        bracket.rounding / bracket.length,
    )  # fmt: skip
    yield shared | _kappas(coordinates_of(spot.space), in_parameters, window, known)
    if inside is not None:
        # Rounding is measured in the factors; its share of the bracket is about the same.
        scale = inside.kappa / bracket.kappa if bracket.kappa else 0.0
        in_weights = (
            inside.kappa, inside.kappa_of(pair.null), scale * in_parameters[2],
            scale * in_parameters[3],
        )  # fmt: skip
        yield shared | _kappas("weights", in_weights, window, known)


def _kappas(
    coordinates: str, kappas: tuple[float, float, float, float], window: float | None, known: bool
) -> Row:
    """Kappa by the gradients, by random directions, by a batch with itself, and from rounding."""
    own, null, floor, rounding = kappas
    onset, random = (0.1 / kappa if kappa else None for kappa in (own, null))
    return {
        "coordinates": coordinates, "kappa": own, "null_kappa": null, "floor": floor,
        "rounding": rounding, "onset": onset, "null_onset": random,
        "inside": _below(onset, window, known), "null_inside": _below(random, window, known),
    }  # fmt: skip


def _smaller(windows: Iterator[Window]) -> tuple[float | None, bool]:
    """The smaller of two windows, and whether it ends there."""
    found = list(windows)
    etas = [w.eta for w in found if w.eta is not None]
    if len(found) < 2 or len(etas) < len(found):
        return None, False
    least = min(etas)
    return least, not all(w.unbounded for w in found if w.eta == least)


def _below(onset: float | None, window: float | None, known: bool) -> bool | None:
    """Whether the order matters inside the window; None if it is not known."""
    if window is None:
        return None
    if onset is not None and onset < window:
        return True
    return False if known else None


def _order_rows(
    spot: Spot, pair: Pair, windows: Mapping[str, Window], inside: OrderInWeights | None
) -> Iterator[Row]:
    """Rows of the table order: two gradient steps in both orders, at shares of the onset."""
    bracket, model = pair.bracket, spot.network.model
    if not bracket.is_clear:
        text = f"the bracket is below ten times its rounding, {bracket.rounding:.3g}"
        yield note(spot.cell, f"{pair.kind} {', '.join(bracket.names)} left out: {text}")
        return
    window, _ = _smaller(windows[name] for name in bracket.names if name in windows)
    for fraction in spot.config.fractions:
        eta = fraction * bracket.onset
        try:
            difference = order_difference(
                model, pair.first, pair.second, gradient_step(eta), space=spot.space,
                float64=spot.float64,
            )  # fmt: skip
            agreed = difference.against(bracket, eta)
        except (UsageError, FloatingPointError) as error:
            yield note(
                spot.cell, f"{', '.join(bracket.names)} at {fraction:g} of the onset: {error}"
            )
            continue
        row: Row = {
            "table": "order", **spot.keys, **pair.keys, "fraction": fraction, "eta": eta,
            "of_window": None if window is None else eta / window, "rounding": agreed.rounding,
        }  # fmt: skip
        null = norm(pair.null) / bracket.length
        random = cosine(difference.vector, pair.null.to(difference.vector))
        found = (difference.relative, agreed.cosine, bracket.kappa, null, random)
        yield row | _agreement(coordinates_of(spot.space), found, eta)
        if inside is not None:
            along = [inside.cosine(difference, v) for v in (bracket.vector, pair.null)]
            found = (
                inside.relative(difference), along[0], inside.kappa, inside.kappa_of(pair.null),
                along[1],
            )  # fmt: skip
            yield row | _agreement("weights", found, eta)


def _agreement(
    coordinates: str, found: tuple[float, float, float, float, float], eta: float
) -> Row:
    """Measured against predicted; ``found``: both, kappa and its null, and the null's cosine."""
    measured, along, kappa, null, random = found
    return {
        "coordinates": coordinates, "of_onset": eta * kappa / 0.1, "difference": measured,
        "predicted": eta * kappa, "ratio": measured / (eta * kappa),
        "null_ratio": measured / (eta * null) if null else None, "cosine": along,
        "null_cosine": random,
    }  # fmt: skip


def _optimizers(spot: Spot) -> tuple[str, ...]:
    config = spot.config
    return by_space(spot.cell["space"], config.optimizers, config.lora_optimizers)


def _states(spot: Spot, optimizer: str) -> dict[str, State | None]:
    """A fresh state, and a carried one if the optimiser has a state."""
    training = Training(optimizer, spot.config.batch_size, spot.config.carried, seed=spot.cell.seed)
    everything = Mixture(tuple(spot.network.tasks.values()))
    carried = carried_state(spot.network.model, everything, training, space=spot.space)
    kept = any(isinstance(v, torch.Tensor) for s in carried.values() for v in s.values())
    return {"fresh": None} | ({"carried": carried} if kept else {})


def _optimizer_rows(
    spot: Spot, pair: Pair, states: Mapping[str, Mapping[str, State | None]]
) -> Iterator[Row]:
    """Rows of the table optimizer: one step on each task, as an optimiser takes it."""
    for optimizer, known in states.items():
        for state, carried in known.items():
            found = order_difference(
                spot.network.model, pair.first, pair.second, Training(optimizer),
                space=spot.space, carried=carried, float64=spot.float64,
            )  # fmt: skip
            yield {
                "table": "optimizer", **spot.keys, **pair.keys, "optimizer": optimizer,
                "state": state, "coordinates": coordinates_of(spot.space),
                "difference": found.relative, "frozen": found.frozen_relative,
                "curvature": _curvature(found), "onset": 0.1,
            }  # fmt: skip


def _curvature(found: OrderDifference) -> float:
    """What the change of the gradients adds: the difference without that of frozen ones."""
    return norm(found.vector - found.still) / norm(found.step)


def _stretch_rows(spot: Spot, pair: Pair, optimizer: str) -> Iterator[Row]:
    """Rows of the table stretch: equally long trainings in several orders, on new minibatches."""
    first, second = pair.first.task, pair.second.task
    steps, size, seed = spot.config.steps, spot.config.batch_size, spot.cell.seed
    tasks: dict[str, Task] = {
        "first, then second": InTurn((first, second), steps),
        "second, then first": InTurn((second, first), steps),
        "alternating": Mixture((first, second)),
        "mixed": Together(first, second),
    }
    start = _losses(spot, first, second)
    ends: dict[tuple[str, int], torch.Tensor] = {}
    rows: list[Row] = []
    for replicate in (0, 1):
        for order, task in tasks.items():
            training = Training(optimizer, size, 2 * steps, seed=seed + REPLICATE * (1 + replicate))
            with spot.space.restored(spot.network.model):
                path = train_and_record(spot.network.model, task, training, space=spot.space)
                after = _losses(spot, first, second)
            ends[order, replicate] = path.displacement()
            rows.append({
                "table": "stretch", **spot.keys, "first": first.name, "second": second.name,
                "optimizer": optimizer, "order": order, "replicate": replicate, "steps": steps,
                "loss_first": after[0], "start_first": start[0], "loss_second": after[1],
                "start_second": start[1],
                "predicted": _predicted(pair, training, steps),
            })  # fmt: skip
    base = [ends[OTHERS, replicate] for replicate in (0, 1)]
    walked = math.sqrt(norm(base[0]) * norm(base[1]))
    for row in rows:
        replicate = int(row["replicate"] == 1)
        own = ends[str(row["order"]), replicate]
        apart = None if row["order"] == OTHERS else norm(own - base[replicate]) / walked
        yield row | {"apart": apart, "spread": norm(base[0] - base[1]) / walked}


def _predicted(pair: Pair, training: Training, steps: int) -> float | None:
    """n eta kappa, for n steps of SGD on each task; None if clipping changes them, or Adam."""
    name, _, rate = training.optimizer.partition(":")
    longest = max(map(norm, pair.bracket.gradients))
    if name != "sgd" or (training.clip is not None and longest > training.clip):
        return None
    return pair.bracket.predicted(steps * float(rate))


def _losses(spot: Spot, *tasks: Task) -> list[float]:
    """Held-out losses at the current point."""
    return [
        fixed_loss(spot.network.model, task, split="test", size=spot.config.eval_size)
        for task in tasks
    ]
