"""Losses of both tasks at theta plus displacements, and what merges are judged by."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from frenet.experiments.experiment import Row
from frenet.experiments.pair_command.subject import Subject
from frenet.measure.displaced import DisplacedLosses, moving
from frenet.methods.composition import random_twin
from frenet.methods.merge_choice import Yardstick
from frenet.network.checkpoints.tensor_files import Read
from frenet.network.tasks import Batch

RANDOM = "random"


def note(text: str) -> Row:
    """A row of the table notes."""
    return {"table": "notes", "note": text}


@contextmanager
def displaced(
    subject: Subject, batches: Mapping[str, Batch], more: Mapping[str, Read] | None = None
) -> Iterator[DisplacedLosses]:
    """Losses at theta plus both directions, and further displacements, at any scales."""
    known = {**subject.joint.displacements, **(more or {})}
    with moving(subject.model, known, space=subject.joint.space) as mover:
        yield DisplacedLosses(mover, batches)


def twins(subject: Subject) -> dict[str, Read]:
    """A random displacement for each direction, of equal norm in every tensor."""
    joint, seed = subject.joint, subject.settings.seed
    return {
        f"{RANDOM} {side}": random_twin(read, joint.space, seed=seed, name=side)
        for side, read in joint.displacements.items()
    }


def yardstick(losses: DisplacedLosses, subject: Subject) -> Yardstick:
    """What merges are judged by, on the examples of ``losses``."""
    counts, none, alone = {}, {}, {}
    for task, own, _ in subject.owns:
        none[task.name] = losses.at(task.name, {})
        alone[task.name] = losses.at(task.name, {own: 1.0})
        counts[task.name] = losses.counts(task.name)
    return Yardstick.of(counts, none, alone, seed=subject.settings.seed)


def keys_of(subject: Subject, task: str, own: str, other: str) -> Row:
    """The keys of a row about one task."""
    return {"task": task, "own": subject.label(own), "other": subject.label(other)}
