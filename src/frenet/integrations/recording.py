"""The steps of a training on disk, in chunks that are there whole or not at all.

start.safetensors               theta_0, with names and shapes of the parameters
steps-00000001-00000035...      steps 1 to 35; with them the gradients, where they were asked for
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from frenet.experiments.watched import TRAINING
from frenet.measure.trajectory import Trajectory
from frenet.network.memory import require_memory
from frenet.network.space import ParamSpace
from frenet.runs import RunFolderError, read_run
from frenet.runs.files import write_whole

FOLDER = "trajectory"
START = "start.safetensors"
CHUNK_BYTES = 32 << 20


class Moves(NamedTuple):
    """Consecutive steps, and in how many coordinates each had a gradient of zero."""

    steps: Float[Tensor, "m d"]
    zeros: Int[Tensor, " m"]


class Chunk(NamedTuple):
    """A file of steps ``first`` to ``last``, counted from 1."""

    first: int
    last: int
    path: Path


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
        self.written = last_recorded(folder)
        self._waiting: dict[str, list[Tensor]] = {"steps": [], "zeros": []}
        if gradients:
            self._waiting["gradients"] = []

    def __len__(self) -> int:
        return self.written + len(self._waiting["steps"])

    def begin(self, theta: Float[Tensor, " d"]) -> None:
        """Forget what is there, and start at theta_0."""
        self.cut(0)
        about = {"names": json.dumps(self.space.names), "shapes": json.dumps(self.space.shapes)}
        write_whole(self.folder / START, save({"theta": theta}, about))

    def start(self) -> Float[Tensor, " d"]:
        """theta_0."""
        return _read(self.folder / START)["theta"]

    def add(
        self, step: Float[Tensor, " d"], *, zeros: int, gradient: Float[Tensor, " d"] | None
    ) -> None:
        """Take the next step; a full chunk is written."""
        self._waiting["steps"].append(step)
        self._waiting["zeros"].append(torch.tensor(zeros))
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
        for chunk in chunks(self.folder):
            if chunk.last <= steps:
                continue
            if chunk.first <= steps:
                kept = steps - chunk.first + 1
                tensors = {name: rows[:kept].clone() for name, rows in _read(chunk.path).items()}
                self._write(tensors, first=chunk.first)
            chunk.path.unlink()
        self.written = min(self.written, steps)

    def stream(self, steps: int) -> Iterator[Moves]:
        """The first ``steps`` steps, one chunk in memory at a time."""
        for chunk in in_order(self.folder):
            tensors, left = _read(chunk.path), max(0, steps - chunk.first + 1)
            yield Moves(tensors["steps"][:left], tensors["zeros"][:left])

    def _write(self, tensors: dict[str, Tensor], *, first: int) -> None:
        last = first + len(tensors["steps"]) - 1
        write_whole(self.folder / f"steps-{first:08d}-{last:08d}.safetensors", save(tensors))


def bytes_per_step(dim: int, gradients: bool) -> int:
    """Bytes that one step takes on disk."""
    return 4 * dim * (2 if gradients else 1)


def steps_per_chunk(dim: int, gradients: bool) -> int:
    """Steps that are written at a time."""
    return max(1, CHUNK_BYTES // bytes_per_step(dim, gradients))


def last_recorded(folder: Path) -> int:
    """The last step that is on disk."""
    return max((chunk.last for chunk in chunks(folder)), default=0)


def chunks(folder: Path) -> list[Chunk]:
    """The files of steps, in order."""
    found = []
    for path in sorted(folder.glob("steps-*.safetensors")):
        first, last = path.stem.removeprefix("steps-").split("-")
        found.append(Chunk(int(first), int(last), path))
    return found


def in_order(folder: Path) -> list[Chunk]:
    """The files of steps, after checking that each goes on where the last one ends.

    Raises:
        RunFolderError: steps are missing, or there twice.
    """
    found, expected = chunks(folder), 1
    for chunk in found:
        if chunk.first != expected:
            raise RunFolderError(
                f"{chunk.path} begins with step {chunk.first} where {expected} is next; resume the "
                "training from a checkpoint, which puts the recording in order"
            )
        expected = chunk.last + 1
    return found


def read_trajectory(out: Path | str) -> Trajectory:
    """The recorded path of a watched training, finished or not.

    Args:
        out: the folder that ``FrenetCallback`` was given.

    Returns:
        The trajectory. ``losses`` are those that Trainer logged: a mean over the steps since its
        last log, given for each of these steps, NaN where it logged none; with ``logging_steps=1``
        they are the losses of the single steps.

    Raises:
        RunFolderError: no recording, or one with steps missing.
        MemoryError: it does not fit; nothing is allocated before.
    """
    folder = Path(out) / FOLDER
    if not (folder / START).exists():
        raise RunFolderError(f"{out} holds no recorded training: there is no {FOLDER}/{START}")
    with safe_open(folder / START, framework="pt") as file:
        about = file.metadata()
        theta = file.get_tensor("theta")
    shapes = tuple(tuple(shape) for shape in json.loads(about["shapes"]))
    space = ParamSpace(tuple(json.loads(about["names"])), shapes)
    found = in_order(folder)
    total = found[-1].last if found else 0
    kept = bool(found) and "gradients" in _read(found[0].path)
    require_memory(
        total * bytes_per_step(space.dim, kept),
        f"a trajectory of {total} steps of {space.dim:,} parameters",
        device=torch.device("cpu"),
        remedy=f"read fewer of the files in {folder}",
    )
    steps = torch.empty(total, space.dim)
    gradients = torch.empty_like(steps) if kept else None
    for chunk in found:
        tensors, rows = _read(chunk.path), slice(chunk.first - 1, chunk.last)
        steps[rows] = tensors["steps"]
        if gradients is not None:
            gradients[rows] = tensors["gradients"]
    return Trajectory(theta, steps, _losses(Path(out), total), gradients, space)


def _losses(out: Path, total: int) -> Float[Tensor, " T"]:
    """Trainer's logged means, on all steps since the log before."""
    losses, before = torch.full((total,), math.nan), 0
    for row in read_run(out, partial=True).rows:
        if row["table"] == "loss" and row["source"] == TRAINING and row["loss"] is not None:
            step = int(row["step"] or 0)
            losses[before:step] = float(row["loss"])
            before = step
    return losses


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped from the disk."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}; use another out") from error
