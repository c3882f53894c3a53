"""Rows of `frenet pair`: losses, how far both can be scaled, blocks, the order of training."""

import math
from collections.abc import Callable, Generator, Iterator, Mapping

from frenet.experiments.experiment import Cell, Row
from frenet.experiments.pair_command import BLOCKS, LOSSES, MERGE, ORDER, SCALE, Config
from frenet.experiments.pair_command.answers import check_losses
from frenet.experiments.pair_command.displacing import (
    RANDOM,
    displaced,
    keys_of,
    note,
    twins,
    yardstick,
)
from frenet.experiments.pair_command.merge import merge_rows
from frenet.experiments.pair_command.subject import SIDES, A, B, Subject, load_subject
from frenet.experiments.setup.check import check_row, check_sentence
from frenet.experiments.setup.networks import at_most
from frenet.geometry import rng
from frenet.geometry.linalg import norm
from frenet.measure.displaced import DisplacedLosses
from frenet.measure.interaction import SecondOrder, second_order
from frenet.measure.lie_bracket import LieBracket, Minibatch, lie_bracket
from frenet.measure.loss_line import loss_line
from frenet.measure.update_order import gradient_step, order_difference
from frenet.methods.composition import (
    Composed,
    by_block,
    composition,
    interaction,
    restricted,
)
from frenet.methods.linear_range import looked_between, radius
from frenet.methods.merge_choice import Interval
from frenet.network.blocks import parameter_blocks
from frenet.network.tasks import repeatable

# Blocks that are named in the answer.
NAMED = 3
# The step at which two orders are measured, as a share of the onset: the leading order still holds.
WITHIN = 0.3


def prepare(config: Config, cell: Cell) -> None:
    """Load what all parts need, also if files of the same names were loaded before."""
    load_subject.cache_clear()
    load_subject(config)


def run(config: Config, cell: Cell, say: Callable[[str], None] | None = None) -> Iterator[Row]:
    """The rows of one part.

    Args:
        config: what to measure.
        cell: the part.
        say: takes what a person should know before a long step.
    """
    yield from rows_of(load_subject(config), cell["part"], say or (lambda _: None))


def rows_of(subject: Subject, part: str, say: Callable[[str], None]) -> Iterator[Row]:
    """The rows of one part."""
    if part == LOSSES:
        yield from (note(text) for text in subject.notes)
    parts: Mapping[str, Callable[[Subject, Callable[[str], None]], Iterator[Row]]] = {
        LOSSES: loss_rows, SCALE: scale_rows, BLOCKS: block_rows, ORDER: order_rows,
        MERGE: merge_rows,
    }  # fmt: skip
    yield from parts[part](subject, say)


def loss_rows(subject: Subject, say: Callable[[str], None]) -> Iterator[Row]:
    """The tables check, losses and kept: both tasks without, with each, with both, with a null."""
    say("losses of both tasks: 10 forward passes")
    related = subject.related
    yield {
        "table": "vectors", "a": subject.labels[0], "b": subject.labels[1],
        "cosine": related.cosine, "chance": related.chance, "norm_a": related.first,
        "norm_b": related.second,
    }  # fmt: skip
    with displaced(subject, subject.test, twins(subject)) as losses:
        stick = yardstick(losses, subject)
        for task, own, other in subject.owns:
            name, keys = task.name, keys_of(subject, task.name, own, other)
            places = {
                "without": {}, "with_own": {own: 1.0}, "with_other": {other: 1.0},
                "with_both": {own: 1.0, other: 1.0},
                "with_random": {own: 1.0, f"{RANDOM} {other}": 1.0},
            }  # fmt: skip
            at = {key: {name: losses.at(name, scales)} for key, scales in places.items()}
            means = {key: stick.mean(name, each) for key, each in at.items()}
            harm = Interval.of(means["with_other"] - means["without"])
            check: Row = {
                "table": "check", **keys, **check_row(task), "rows": len(losses.counts(name)),
                "without": float(means["without"][0]), "with": float(means["with_own"][0]),
            }  # fmt: skip
            say(f"check, {name}: {check_sentence(check, check_losses(check))}")
            yield check
            yield {
                "table": "losses", **keys, **{key: float(m[0]) for key, m in means.items()},
                "harm": harm.value, "harm_low": harm.low, "harm_high": harm.high, "no_harm": 0.0,
            }  # fmt: skip
            gain = Interval.of(stick.gain(name))
            row: Row = {
                "table": "kept", **keys, "gain": gain.value, "gain_low": gain.low,
                "gain_high": gain.high, "no_gain": 0.0, "whole": 1.0,
            }  # fmt: skip
            if stick.has_gain(name):
                kept = Interval.of(stick.kept(name, at["with_both"]))
                row |= {
                    "kept": kept.value, "kept_low": kept.low, "kept_high": kept.high,
                    "kept_random": float(stick.kept(name, at["with_random"])[0]),
                    "transfer": float(stick.kept(name, at["with_other"])[0]),
                }  # fmt: skip
            yield row


def scale_rows(subject: Subject, say: Callable[[str], None]) -> Iterator[Row]:
    """The tables scale and interaction: single radii, composition radii, and a null."""
    say(
        "how far both can be scaled: 4 radii, each about 24 forward passes, and 4 composition "
        "radii, each about 35"
    )
    for task in subject.tasks:
        box: Row = {"table": "map", "kind": "box", "task": task.name}
        for side in SIDES:
            found = yield from _single(subject, task.name, side)
            box["x" if side == A else "y"] = found
        yield box
    with displaced(subject, subject.test, twins(subject)) as losses:
        for task, own, other in subject.owns:
            for kind in ("both", RANDOM):
                second = other if kind == "both" else f"{RANDOM} {other}"
                yield from _composed(subject, losses, task.name, own, second)


def _single(subject: Subject, task_name: str, side: str) -> Generator[Row, None, float | None]:
    """The row of one direction alone on one task; returns its radius in units of its length."""
    settings, space = subject.settings, subject.joint.space
    task = next(task for task in subject.tasks if task.name == task_name)
    own = next(own for t, own, _ in subject.owns if t is task)
    read = subject.joint.displacements[side]
    length = math.hypot(*(norm(read(name)) for name in space.names))
    draw = rng.generator(settings.seed, "pair", "radius", task_name, side)
    keys: Row = {
        "task": task_name, "directions": subject.label(side),
        "kind": "own" if side == own else "other",
    }  # fmt: skip
    try:
        with loss_line(subject.model, task, subject.test[task_name], read, space=space) as line:
            start, limit = looked_between(
                line, space.norm(subject.model), length=length, eps=settings.eps
            )
            found = radius(line, start=start, limit=limit, eps=settings.eps, generator=draw)
    except ValueError as error:
        yield note(f"{task_name} along {subject.label(side)}: {error}")
        return None
    times = found.radius / length
    yield {
        "table": "scale", **keys, "times": times, "times_low": times, "times_high": times,
        "low": found.low / length, "high": _finite(found.high / length),
        "unbounded": found.unbounded, "limit": limit / length, "eps": settings.eps,
    }  # fmt: skip
    return times


def _composed(
    subject: Subject, losses: DisplacedLosses, task_name: str, own: str, second: str
) -> Iterator[Row]:
    """The rows of two directions at a common scale, on one task."""
    settings, is_random = subject.settings, second.startswith(RANDOM)
    label = f"a random direction like {subject.label(second[-1])}" if is_random else (
        subject.label(second)
    )  # fmt: skip
    draw = rng.generator(settings.seed, "pair", "composition", task_name, second)
    try:
        found = composition(losses.plane(task_name, own, second), eps=settings.eps, generator=draw)
    except ValueError as error:
        yield note(f"{task_name}, {subject.label(own)} and {label}: {error}")
        return
    radius = found.radius
    yield {
        "table": "scale", "task": task_name, "directions": f"{subject.label(own)} and {label}",
        "kind": RANDOM if is_random else "both", "times": radius.value, "times_low": radius.low,
        "times_high": radius.high, "low": found.low, "high": _finite(found.high),
        "unbounded": radius.high is None, "limit": found.limit, "eps": found.eps,
    }  # fmt: skip
    if is_random:
        return
    curved = _second_order(subject, task_name, own, second)
    if isinstance(curved, str):
        yield note(f"{task_name}: no second-order prediction: {curved}")
    for point in found.points:
        total = None if isinstance(curved, str) else point.s**2 * curved.total
        yield {
            "table": "interaction", "task": task_name, "s": point.s, **_shown(point),
            "second_order": total, "none": 0.0, "eps": found.eps,
        }  # fmt: skip


def _shown(point: Composed) -> Row:
    return {
        "interaction": point.interaction, "low": point.low, "high": point.high,
        "share": _finite(point.share), "first": point.first, "second": point.second,
        "both": point.both,
    }  # fmt: skip


def _second_order(
    subject: Subject, task_name: str, own: str, other: str, *, split: str = "test"
) -> SecondOrder | str:
    """a^T H b, or why there is none."""
    task = next(task for task in subject.tasks if task.name == task_name)
    batch = (subject.test if split == "test" else subject.select)[task_name]
    reads = subject.joint.displacements
    try:
        return second_order(
            subject.model, task, batch, reads[own], reads[other], space=subject.joint.space
        )
    except (ValueError, RuntimeError, FloatingPointError, NotImplementedError) as error:
        return str(error)


def block_rows(subject: Subject, say: Callable[[str], None]) -> Iterator[Row]:
    """The tables block and left_out: where both interact, and what leaving blocks out restores."""
    space = subject.joint.space
    members: dict[str, list[str]] = {}
    for name, block in parameter_blocks(subject.model, space.names).items():
        members.setdefault(block, []).append(name)
    parts = {
        f"{side} in {block}": part
        for side, read in subject.joint.displacements.items()
        for block, part in by_block(subject.model, read, space).items()
    }
    say(f"where both interact: {len(members)} blocks, {2 * len(parts) + 8} forward passes")
    harms: dict[str, float] = dict.fromkeys(members, 0.0)
    with displaced(subject, subject.select, parts) as losses:
        stick = yardstick(losses, subject)
        for task, own, other in subject.owns:
            curved = _second_order(subject, task.name, own, other, split="select")
            scale = float(stick.gain(task.name)[0]) if stick.has_gain(task.name) else 1.0
            whole = losses.plane(task.name, own, other)
            draw = rng.generator(subject.settings.seed, "pair", "blocks", task.name)
            total = interaction(whole, generator=draw).interaction
            for block in members:
                if f"{other} in {block}" not in parts:
                    continue
                plane = losses.plane(task.name, own, f"{other} in {block}")
                draw = rng.generator(subject.settings.seed, "pair", "blocks", task.name, block)
                found = interaction(plane, generator=draw)
                harms[block] += found.interaction / scale
                yield {
                    "table": "block", **keys_of(subject, task.name, own, other), "block": block,
                    "interaction": found.interaction, "low": found.low, "high": found.high,
                    "second_order": None if isinstance(curved, str)
                    else curved.by_block.get(block, 0.0),
                    "even": total / len(members), "whole": total,
                }  # fmt: skip
    worst = sorted(members, key=lambda block: -harms[block])[:NAMED]
    worst = [block for block in worst if harms[block] > 0]
    if worst:
        yield from _left_out(subject, worst, {n for block in worst for n in members[block]})


def _left_out(subject: Subject, worst: list[str], names: set[str]) -> Iterator[Row]:
    """The table left_out: both directions, one of them without its part in some blocks."""
    joint = subject.joint
    rest = [name for name in joint.space.names if name not in names]
    kept = {
        f"{side} outside": restricted(read, joint.space, rest)
        for side, read in joint.displacements.items()
        if any(read(name).any() for name in rest)
    }
    options = {
        subject.label(side): {side: f"{side} outside", other: other}
        for side, other in ((A, B), (B, A))
    } | {"both": {side: f"{side} outside" for side in SIDES}}  # fmt: skip
    scales = {
        what: {name: 1.0 for name in which.values() if name in kept or name in SIDES}
        for what, which in options.items()
    }
    with displaced(subject, subject.select, kept) as losses:
        stick = yardstick(losses, subject)
        scores = {
            what: float(stick.score({t.name: losses.at(t.name, at) for t in subject.tasks})[0])
            for what, at in scales.items()
        }
    best = max(scores, key=lambda what: scores[what])
    with displaced(subject, subject.test, kept) as losses:
        stick = yardstick(losses, subject)
        both = {A: 1.0, B: 1.0}
        for what, at in scales.items():
            for task, own, other in subject.owns:
                name = task.name
                after = {name: losses.at(name, at)}
                before = {name: losses.at(name, both)}
                change = Interval.of(stick.mean(name, after) - stick.mean(name, before))
                row: Row = {
                    "table": "left_out", **keys_of(subject, name, own, other), "what": what,
                    "blocks": ", ".join(worst), "loss": float(stick.mean(name, after)[0]),
                    "with_both": float(stick.mean(name, before)[0]), "change": change.value,
                    "change_low": change.low, "change_high": change.high, "no_change": 0.0,
                    "chosen": what == best,
                }  # fmt: skip
                if stick.has_gain(name):
                    row["kept"] = float(stick.kept(name, after)[0])
                    row["kept_both"] = float(stick.kept(name, before)[0])
                yield row


def order_rows(subject: Subject, say: Callable[[str], None]) -> Iterator[Row]:
    """The table order: from which step size on the order of a step on each task matters."""
    size, space, seed = subject.settings.batch_size, subject.joint.space, subject.settings.seed
    say(f"the order of training: gradients and Hessian products of {size} examples of both tasks")
    first, second = (
        Minibatch(task, next(repeatable(task, "train", at_most(task, "train", size), seed)))
        for task in subject.tasks
    )
    names: Row = {"first": first.name, "second": second.name}
    try:
        bracket = lie_bracket(subject.model, first, second, space=space)
        bracket.require_clear()
    except (ValueError, RuntimeError, MemoryError, FloatingPointError) as error:
        yield {"table": "order", **names, "why": str(error)}
        return
    row = names | _onset(subject, bracket)
    if math.isfinite(bracket.onset):
        eta = WITHIN * bracket.onset
        step = gradient_step(eta)
        found = order_difference(subject.model, first, second, step, space=space)
        try:
            agreement = found.against(bracket, eta)
        except ValueError as error:
            yield note(f"the order of two steps was not measured: {error}")
        else:
            row |= {
                "eta": eta, "measured": found.relative, "predicted": bracket.predicted(eta),
                "cosine": agreement.cosine, "aligned": 1.0,
            }  # fmt: skip
    yield {"table": "order", **row}


def _onset(subject: Subject, bracket: LieBracket) -> Row:
    both = subject.vectors[0] + subject.vectors[1]
    finite = math.isfinite(bracket.onset)
    return {
        "kappa": bracket.kappa, "rounding": bracket.rounding / bracket.length,
        "onset": _finite(bracket.onset), "least_step": _finite(bracket.least_step), "whole": 1.0,
        "step": bracket.onset * bracket.length / both.norm() if finite else None,
        "length": both.norm(),
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
