"""Rows of `frenet pair` about merges: chosen on some examples, judged on others."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from frenet.experiments.experiment import Row
from frenet.experiments.pair_command.answers import AVERAGE, LOSS, SHARE, WHOLE
from frenet.experiments.pair_command.displacing import displaced, yardstick
from frenet.experiments.pair_command.subject import SIDES, A, B, Subject
from frenet.measure.displaced import DisplacedLosses, Scales
from frenet.methods.merge_choice import (
    LOOKS,
    Interval,
    Losses,
    Yardstick,
    blended,
    coefficients_by_block,
    half_of,
    halved,
)
from frenet.methods.peft_merges import EXACT, PeftMerge, peft_merges
from frenet.network.blocks import parameter_blocks
from frenet.network.checkpoints.tensor_files import Read

ONE_EACH, PER_BLOCK = "one each", "one per block"
# The two that every other merge is compared with, and their coefficient of both directions.
USUAL = {WHOLE: 1.0, AVERAGE: 0.5}
# Equal weights of both adapters in merges by PEFT, which are linear in them.
WEIGHTS = (0.5, 1.0, 1.5, 2.0)
# Coefficients by block: of A and of B.
Coefficients = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Candidate:
    """One way to merge.

    Attributes:
        name: of the way.
        scales: the place of the merged weights, in units of the displacements.
        about: its coefficients and settings, as cells of a row.
    """

    name: str
    scales: Scales
    about: Row = field(default_factory=dict)


def merge_rows(subject: Subject, say: Callable[[str], None]) -> Iterator[Row]:
    """The tables map, coefficient and merge."""
    n = len(subject.settings.scales)
    looks = f", and {LOOKS} gradients for single blocks" if _searches(subject) else ""
    say(f"merges: {n * n} pairs of coefficients, each a forward pass of both tasks{looks}")
    with displaced(subject, subject.select) as losses:
        stick = yardstick(losses, subject)
        found = dict(_on_grid(subject, losses))
    yield from _map_rows(subject, stick, found)
    x, y = max(found, key=lambda place: float(stick.score(found[place])[0]))
    candidates = [Candidate(name, {A: w, B: w}, {"a": w, "b": w}) for name, w in USUAL.items()]
    candidates.append(Candidate(ONE_EACH, {A: x, B: y}, {"a": x, "b": y}))
    more: dict[str, Read] = {}
    if _searches(subject):
        chosen = _per_block(subject, stick, (x, y))
        for block, (a, b) in chosen.items():
            yield {"table": "coefficient", "block": block, "a": a, "b": b, "usual": 1.0}
        more[PER_BLOCK] = block_blend(subject, chosen)
        candidates.append(Candidate(PER_BLOCK, {PER_BLOCK: 1.0}))
    merges = by_peft(subject, say)
    more |= {merge.name: _reader(subject, merge) for merge in merges if merge.vector is not None}
    with displaced(subject, subject.select, more) as losses:
        candidates += _best_by_peft(subject, losses, stick, merges)
        second = stick.half(1)
        scores = {
            c.name: float(second.score(halved(_losses(subject, losses, c.scales), 1))[0])
            for c in candidates
        }
    with displaced(subject, subject.test, more) as losses:
        yield from _judged(subject, losses, candidates, scores)
    for merge in merges:
        if merge.left_out or merge.kind == EXACT:
            why = merge.left_out or "it is the plain sum"
            yield {"table": "merge", **_about(merge, None), "left_out": why}


def _searches(subject: Subject) -> bool:
    """Whether coefficients of single blocks are searched."""
    return subject.settings.by_block and len(set(_blocks(subject).values())) > 1


def _blocks(subject: Subject) -> dict[str, str]:
    return parameter_blocks(subject.model, subject.joint.space.names)


def _losses(subject: Subject, losses: DisplacedLosses, scales: Scales) -> Losses:
    """Both tasks at one place; the weights are written once."""
    return {task.name: losses.at(task.name, scales) for task in subject.tasks}


def _on_grid(
    subject: Subject, losses: DisplacedLosses
) -> Iterator[tuple[tuple[float, float], Losses]]:
    """The losses of both tasks at every pair of coefficients."""
    for x, y in itertools.product(subject.settings.scales, repeat=2):
        yield (x, y), _losses(subject, losses, {A: x, B: y})


def _map_rows(
    subject: Subject, stick: Yardstick, found: Mapping[tuple[float, float], Losses]
) -> Iterator[Row]:
    """The table map: the loss of each task over both coefficients, and the share of its gain."""
    for task, _, _ in subject.owns:
        has_gain = stick.has_gain(task.name)
        without = float(stick.mean(task.name, stick.none)[0])
        for (x, y), losses in found.items():
            yield {
                "table": "map", "kind": "loss", "task": task.name, "x": x, "y": y,
                "loss": float(stick.mean(task.name, losses)[0]), "without": without,
                "kept": float(stick.kept(task.name, losses)[0]) if has_gain else None,
                "whole": 1.0,
            }  # fmt: skip


def _per_block(subject: Subject, stick: Yardstick, start: tuple[float, float]) -> Coefficients:
    """Coefficients by block, searched on the first half of the examples to choose on.

    So the second half, which has not been seen by the many coefficients, can say whether they are
    better than one for all blocks.
    """
    first = {
        name: {key: value[half_of(len(value), 0)] for key, value in batch.items()}
        for name, batch in subject.select.items()
    }
    return coefficients_by_block(
        subject.model, {task.name: task for task in subject.tasks}, first,
        [subject.joint.displacements[side] for side in SIDES],
        space=subject.joint.space, blocks=_blocks(subject), yardstick=stick.half(0), start=start,
    )  # fmt: skip


def block_blend(subject: Subject, chosen: Coefficients) -> Read:
    """The merged change with these coefficients."""
    blocks = _blocks(subject)
    reads = [subject.joint.displacements[side] for side in SIDES]

    def coefficient(i: int) -> Callable[[str], float]:
        return lambda name: chosen[blocks[name]][i]

    return blended(reads, [coefficient(i) for i in range(len(SIDES))])


def by_peft(subject: Subject, say: Callable[[str], None]) -> list[PeftMerge]:
    """The merges by PEFT, if both directions are its adapters."""
    settings = subject.settings
    if not (subject.folders and settings.densities):
        return []
    say("merges by peft: cat, svd, TIES and DARE")
    return peft_merges(
        subject.model, subject.folders, subject.vectors, densities=settings.densities,
        seed=settings.seed,
    )  # fmt: skip


def _reader(subject: Subject, merge: PeftMerge) -> Read:
    """The change by a merge, in every parameter that both directions change."""
    shapes = dict(zip(subject.joint.space.names, subject.joint.space.shapes, strict=True))
    vector = merge.vector
    assert vector is not None
    return lambda name: vector.read(name) if name in vector.shapes else torch.zeros(shapes[name])


def _best_by_peft(
    subject: Subject, losses: DisplacedLosses, stick: Yardstick, merges: Sequence[PeftMerge]
) -> list[Candidate]:
    """Of every kind the best density and weight on the examples to choose on."""
    best: dict[str, tuple[float, Candidate]] = {}
    for merge in merges:
        # Of ``cat`` there is only to see that it is the exact sum, which is a candidate already.
        for weight in WEIGHTS if merge.vector is not None and merge.kind != EXACT else ():
            scales = {merge.name: weight}
            score = float(stick.score(_losses(subject, losses, scales))[0])
            if merge.kind not in best or score > best[merge.kind][0]:
                about = _about(merge, weight)
                best[merge.kind] = score, Candidate(str(about["merge"]), scales, about)
    return [candidate for _, candidate in best.values()]


def _about(merge: PeftMerge, weight: float | None) -> Row:
    """What a row says about a merge by PEFT."""
    return {
        "merge": f"{merge.name}, peft", "kind": merge.kind, "a": weight, "b": weight,
        "density": merge.density, "rank": merge.rank, "error": merge.error, "exact": 0.0,
    }  # fmt: skip


def _judged(
    subject: Subject,
    losses: DisplacedLosses,
    candidates: Sequence[Candidate],
    scores: Mapping[str, float],
) -> Iterator[Row]:
    """The table merge: every candidate on the held-out examples, beside the two usual ones."""
    stick = yardstick(losses, subject)
    at = {c.name: _losses(subject, losses, c.scales) for c in candidates}
    draws = {name: stick.score(each) for name, each in at.items()}
    chosen = max(scores, key=lambda name: scores[name])
    for candidate in candidates:
        name = candidate.name
        score = Interval.of(draws[name])
        over = {
            f"over_{short}{end}": value
            for short, usual in (("whole", WHOLE), ("average", AVERAGE))
            for end, value in zip(
                ("", "_low", "_high"), Interval.of(draws[name] - draws[usual]), strict=True
            )
        }
        row: Row = {
            "table": "merge", "merge": name, "kind": name, **candidate.about,
            "selected": scores[name], "score": score.value, "low": score.low, "high": score.high,
            "at_whole": float(draws[WHOLE][0]), "at_average": float(draws[AVERAGE][0]), **over,
            "unit": SHARE if stick.shares else LOSS, "none": 0.0, "chosen": name == chosen,
        }  # fmt: skip
        for side, (task, _, _) in zip(SIDES, subject.owns, strict=True):
            row[f"loss_{side.lower()}"] = float(stick.mean(task.name, at[name])[0])
            row[f"without_{side.lower()}"] = float(stick.mean(task.name, stick.none)[0])
            if stick.has_gain(task.name):
                row[f"kept_{side.lower()}"] = float(stick.kept(task.name, at[name])[0])
        yield row
