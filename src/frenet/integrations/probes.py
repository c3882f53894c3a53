"""Probe tasks in a training: their losses, and their gradient bases compared with the start's."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from frenet._errors import UsageError
from frenet.experiments.experiment import Row
from frenet.measure.checked import Check, check_slope
from frenet.measure.drift import Vectors, basis_drift, example_snapshot
from frenet.network.checkpoints.tensor_files import load_tensors, save_tensors
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import IGNORE, Batch, Split, Task

SETS = ("fit", "again", "held_out")


class Probe(NamedTuple):
    """A task with fixed examples for gradients and for the loss."""

    task: Task
    batch: Batch
    held_out: Batch

    @property
    def digest(self) -> str:
        """sha256 of all examples."""
        state = hashlib.sha256()
        for batch in (self.batch, self.held_out):
            for key in sorted(batch):
                state.update(f"{key}{tuple(batch[key].shape)}".encode())
                state.update(batch[key].numpy().tobytes())
        return state.hexdigest()[:16]


def make_probes(tasks: Sequence[Task], *, n: int) -> tuple[Probe, ...]:
    """Draw each task's examples: 3n of the train split for gradients, n of select for the loss.

    They are the same in every measurement, so that only the weights differ.

    Raises:
        ValueError: two tasks have one name, or there are too few examples, or an example has no
            target token.
    """
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two probes are named {twice!r}; give each task once")
    return tuple(
        Probe(task, _examples(task, "train", 3 * n), _examples(task, "select", n)) for task in tasks
    )


def _examples(task: Task, split: Split, count: int) -> Batch:
    """``count`` examples of one split, each with a target."""
    try:
        batch = next(task.batches(split, count, 0))
    except ValueError as error:
        raise UsageError(f"probe {task.name!r}: {error}; or pass a smaller n") from error
    available = len(batch["labels"])
    if available != count:
        raise UsageError(
            f"probe {task.name!r} has {available} {split} examples, n needs {count}; pass a "
            "smaller n"
        )
    # The first token of a row is not predicted.
    empty = (batch["labels"][:, 1:] == IGNORE).all(1).nonzero()
    if len(empty):
        raise UsageError(
            f"probe {task.name!r} has a {split} example without a target token (row "
            f"{int(empty[0])} of the {count} drawn): every label is {IGNORE}; leave it out"
        )
    return batch


def checked(model: nn.Module, probe: Probe, *, space: ParamSpace) -> Check:
    """Whether the gradients of a probe are those of its loss; the model is left unchanged.

    Raises:
        ValueError: they are not; the message names the model.
    """
    with undisturbed(model):
        return check_slope(model, probe.task, probe.held_out, space=space)


def look(
    model: nn.Module,
    probe: Probe,
    *,
    space: ParamSpace,
    k: int,
    start: Path,
) -> tuple[Row, float]:
    """The drift of one probe's basis, and its loss; the model is left unchanged.

    Args:
        model: at the current step.
        probe: the task to measure on.
        space: the d parameters.
        k: basis dimension, at most the number of examples in a set.
        start: file of the start's gradients; the first call writes it, and gets the ratio 1.

    Raises:
        FloatingPointError: a loss or gradient is not finite.
    """
    with undisturbed(model):
        now = example_snapshot(model, probe.task, probe.batch, space=space)
        with measuring(model), torch.no_grad():
            loss = float(probe.task.loss(model, probe.held_out))
    if not start.exists():
        tensors = {name: part.cpu() for name, part in zip(SETS, now, strict=True)}
        save_tensors(tensors, start, named=True)
    drift = basis_drift(_stored(start, now[0].device), now, k, paired=True)
    random = k / space.dim
    row: Row = {"table": "drift", "probe": probe.task.name, "k": k, **drift._asdict()}
    return row | {"random": random, "chance": random / drift.fresh}, loss


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Measure without autocast, and without a trace in the global random generators."""
    with _no_global_draws(model), _full_precision(model):
        yield


@contextmanager
def _full_precision(model: nn.Module) -> Iterator[None]:
    """The model's forward pass without the autocast that accelerate puts around it."""
    plain = model.__dict__.get("_original_forward")
    wrapped = model.__dict__.get("forward")
    if plain is None or wrapped is None:
        yield
        return
    try:
        model.__dict__["forward"] = plain
        yield
    finally:
        model.__dict__["forward"] = wrapped


def _stored(file: Path, device: torch.device) -> Vectors:
    stored, _ = load_tensors(file)
    fit, again, held_out = (stored[name].to(device) for name in SETS)
    return fit, again, held_out


@contextmanager
def _no_global_draws(model: nn.Module) -> Iterator[None]:
    """Restores the global random generators, which a task may use."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
