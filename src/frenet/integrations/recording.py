"""The steps of a training on disk, in chunks that are there whole or not at all.

``measure/trajectory_files`` says what the files are, and reads them.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from frenet.experiments.watched_training import TRAINING
from frenet.measure.trajectory import Trajectory
from frenet.measure.trajectory_files import (
    START,
    bytes_per_step,
    chunks,
    in_order,
    read_steps,
    read_tensors,
)
from frenet.network.checkpoints.tensor_files import save_tensors
from frenet.network.space import ParamSpace
from frenet.runs import read_run

CHUNK_BYTES = 32 << 20


class Moves(NamedTuple):
    """Consecutive steps.

    Attributes:
        steps: the moves.
        zeros: in how many coordinates the gradient of each was zero.
        unseen: in how many there was no gradient to see.
    """

    steps: Float[Tensor, "m d"]
    zeros: Int[Tensor, " m"]
    unseen: Int[Tensor, " m"]


class Recording:
    """Steps written to ``folder`` as they come; at most one chunk of them waits in memory.

    Args:
        folder: made where it is missing.
        space: the d parameters.
        gradients: every step comes with its gradient.
    """

    def __init__(self, folder: Path, space: ParamSpace, *, gradients: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.space, self.gradients = folder, space, gradients
        known = {chunk.path for chunk in chunks(folder)}
        for path in set(folder.glob("steps-*.safetensors")) - known:
            path.unlink()
        self.written = last_recorded(folder)
        self._waiting: dict[str, list[Tensor]] = {"steps": [], "zeros": [], "unseen": []}
        if gradients:
            self._waiting["gradients"] = []

    def __len__(self) -> int:
        return self.written + len(self._waiting["steps"])

    def begin(self, theta: Float[Tensor, " d"]) -> None:
        """Forget what is there, and start at theta_0."""
        self.cut(0)
        about = {"names": json.dumps(self.space.names), "shapes": json.dumps(self.space.shapes)}
        save_tensors({"theta": theta}, self.folder / START, about, named=True)

    def start(self) -> Float[Tensor, " d"]:
        """theta_0."""
        return read_tensors(self.folder / START)["theta"]

    def add(
        self,
        step: Float[Tensor, " d"],
        *,
        zeros: int,
        unseen: int = 0,
        gradient: Float[Tensor, " d"] | None,
    ) -> None:
        """Take the next step; a full chunk is written."""
        self._waiting["steps"].append(step)
        self._waiting["zeros"].append(torch.tensor(zeros))
        self._waiting["unseen"].append(torch.tensor(unseen))
        if gradient is not None:
            self._waiting["gradients"].append(gradient)
        if len(self._waiting["steps"]) >= steps_per_chunk(self.space.dim, self.gradients):
            self.flush()

    def flush(self) -> None:
        """Write the steps that wait."""
        if not self._waiting["steps"]:
            return
        tensors = {name: torch.stack(rows) for name, rows in self._waiting.items()}
        self._write(tensors, first=self.written + 1)
        self.written += len(tensors["steps"])
        for rows in self._waiting.values():
            rows.clear()

    def cut(self, steps: int) -> None:
        """Keep the first ``steps`` steps only."""
        for rows in self._waiting.values():
            rows.clear()
        # From the end, so that there is no gap where this is interrupted.
        for chunk in reversed(chunks(self.folder)):
            if chunk.last <= steps:
                continue
            if chunk.first <= steps:
                kept = steps - chunk.first + 1
                tensors = {
                    name: rows[:kept].clone() for name, rows in read_tensors(chunk.path).items()
                }
                self._write(tensors, first=chunk.first)
            chunk.path.unlink()
        self.written = min(self.written, steps)

    def stream(self, steps: int) -> Iterator[Moves]:
        """The first ``steps`` steps, one chunk in memory at a time."""
        for chunk in in_order(self.folder):
            tensors, left = read_tensors(chunk.path), max(0, steps - chunk.first + 1)
            # Recordings of earlier versions counted a gradient that was not there as zero.
            unseen = tensors.get("unseen", torch.zeros_like(tensors["zeros"]))
            yield Moves(tensors["steps"][:left], tensors["zeros"][:left], unseen[:left])

    def _write(self, tensors: dict[str, Tensor], *, first: int) -> None:
        last = first + len(tensors["steps"]) - 1
        name = f"steps-{first:08d}-{last:08d}.safetensors"
        save_tensors(tensors, self.folder / name, named=True)


def steps_per_chunk(dim: int, gradients: bool) -> int:
    """Steps that are written at a time."""
    return max(1, CHUNK_BYTES // bytes_per_step(dim, gradients))


def last_recorded(folder: Path) -> int:
    """The last step that is on disk."""
    return max((chunk.last for chunk in chunks(folder)), default=0)


def read_trajectory(out: Path | str) -> Trajectory:
    """The recorded path of a watched training, finished or not.

    Args:
        out: the folder that ``FrenetCallback`` was given.

    Returns:
        The trajectory. ``losses`` are those that Trainer logged: a mean over the steps since its
        last log, given for each of these steps, NaN where it logged none; with ``logging_steps=1``
        they are the losses of the single steps.

    Raises:
        ValueError: no recording, or one with steps missing.
        MemoryError: it does not fit; nothing is allocated before.
    """
    path = read_steps(out)
    return replace(path, losses=_losses(Path(out), len(path)))


def _losses(out: Path, total: int) -> Float[Tensor, " T"]:
    """Trainer's logged means, on all steps since the log before."""
    losses, before = torch.full((total,), math.nan), 0
    for row in read_run(out, partial=True).rows:
        if row["table"] == "loss" and row["source"] == TRAINING and row["loss"] is not None:
            step = int(row["step"] or 0)
            losses[before:step] = float(row["loss"])
            before = step
    return losses
