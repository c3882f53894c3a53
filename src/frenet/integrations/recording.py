"""The steps of a training on disk, in chunks that are complete or absent.

``measure/trajectory_files`` defines and reads the files.
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
        zeros: number of coordinates with a zero gradient at each step.
        unseen: number of coordinates without a visible gradient.
    """

    steps: Float[Tensor, "m d"]
    zeros: Int[Tensor, " m"]
    unseen: Int[Tensor, " m"]


class Recording:
    """Steps written to ``folder`` in chunks; at most one chunk waits in memory.

    Args:
        folder: created if missing.
        space: the d parameters.
        gradients: every step comes with its gradient.
    """

    def __init__(self, folder: Path, space: ParamSpace, *, gradients: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.space, self.gradients = folder, space, gradients
        complete = {chunk.path for chunk in chunks(folder)}
        for path in set(folder.glob("steps-*.safetensors")) - complete:
            path.unlink()
        self.written = last_recorded(folder)
        self._waiting: dict[str, list[Tensor]] = {"steps": [], "zeros": [], "unseen": []}
        if gradients:
            self._waiting["gradients"] = []

    def __len__(self) -> int:
        return self.written + len(self._waiting["steps"])

    def begin(self, theta: Float[Tensor, " d"]) -> None:
        """Delete earlier steps, and start at theta_0."""
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
        """Add the next step; a full chunk is written."""
        self._waiting["steps"].append(step)
        self._waiting["zeros"].append(torch.tensor(zeros))
        self._waiting["unseen"].append(torch.tensor(unseen))
        if gradient is not None:
            self._waiting["gradients"].append(gradient)
        if len(self._waiting["steps"]) >= steps_per_chunk(self.space.dim, self.gradients):
            self.flush()

    def flush(self) -> None:
        """Write the steps in memory."""
        if not self._waiting["steps"]:
            return
        tensors = {name: torch.stack(rows) for name, rows in self._waiting.items()}
        self._write(tensors, first=self.written + 1)
        self.written += len(tensors["steps"])
        for rows in self._waiting.values():
            rows.clear()

    def cut(self, steps: int) -> None:
        """Keep only the first ``steps`` steps."""
        for rows in self._waiting.values():
            rows.clear()
        # From the end, so that an interruption leaves no gap.
        for chunk in reversed(chunks(self.folder)):
            if chunk.last <= steps:
                continue
            if chunk.first <= steps:
                count = steps - chunk.first + 1
                tensors = {
                    name: rows[:count].clone() for name, rows in read_tensors(chunk.path).items()
                }
                self._write(tensors, first=chunk.first)
            chunk.path.unlink()
        self.written = min(self.written, steps)

    def stream(self, steps: int) -> Iterator[Moves]:
        """The first ``steps`` steps, one chunk in memory at a time."""
        for chunk in in_order(self.folder):
            tensors, left = read_tensors(chunk.path), max(0, steps - chunk.first + 1)
            # Recordings of earlier versions counted a missing gradient as zero.
            unseen = tensors.get("unseen", torch.zeros_like(tensors["zeros"]))
            yield Moves(tensors["steps"][:left], tensors["zeros"][:left], unseen[:left])

    def _write(self, tensors: dict[str, Tensor], *, first: int) -> None:
        last = first + len(tensors["steps"]) - 1
        name = f"steps-{first:08d}-{last:08d}.safetensors"
        save_tensors(tensors, self.folder / name, named=True)


def steps_per_chunk(dim: int, gradients: bool) -> int:
    """Steps in a chunk."""
    return max(1, CHUNK_BYTES // bytes_per_step(dim, gradients))


def last_recorded(folder: Path) -> int:
    """The last step on disk."""
    return max((chunk.last for chunk in chunks(folder)), default=0)


def read_trajectory(out: Path | str) -> Trajectory:
    """The recorded path of a watched training, finished or not.

    Args:
        out: the ``out`` of the ``FrenetCallback``.

    Returns:
        The trajectory. Its ``losses`` are Trainer's logged means over the steps since the log
        before, repeated for each of these steps, and NaN without a log. With ``logging_steps=1``
        they are the losses of single steps.

    Raises:
        ValueError: there is no recording, or steps are missing.
        MemoryError: it does not fit into memory; raised before any allocation.
    """
    path = read_steps(out)
    return replace(path, losses=_losses(Path(out), len(path)))


def _losses(out: Path, total: int) -> Float[Tensor, " T"]:
    """Trainer's logged means, repeated for all steps since the log before."""
    losses, before = torch.full((total,), math.nan), 0
    for row in read_run(out, partial=True).rows:
        if row["table"] == "loss" and row["source"] == TRAINING and row["loss"] is not None:
            step = int(row["step"] or 0)
            losses[before:step] = float(row["loss"])
            before = step
    return losses
