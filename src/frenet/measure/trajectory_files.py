"""The steps of a watched training on disk.

start.safetensors               theta_0, with names and shapes of the parameters
steps-00000001-00000035...      steps 1 to 35; with them the gradients, where they were asked for
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from frenet._errors import UsageError
from frenet._files import DamagedFileError, parse_json, require_object
from frenet.measure.trajectory import Trajectory
from frenet.network.checkpoints.tensor_files import load_tensors
from frenet.network.memory import require_memory
from frenet.network.space import ParamSpace

FOLDER = "trajectory"
START = "start.safetensors"


class Chunk(NamedTuple):
    """A file of steps ``first`` to ``last``, counted from 1."""

    first: int
    last: int
    path: Path


def bytes_per_step(dim: int, gradients: bool) -> int:
    """Bytes that one step takes on disk."""
    return 4 * dim * (2 if gradients else 1)


def chunks(folder: Path) -> list[Chunk]:
    """The files of steps, in order.

    Of two that begin with the same step the shorter one: cutting it off was interrupted before the
    longer one was removed.
    """
    found: dict[int, Chunk] = {}
    for path in sorted(folder.glob("steps-*.safetensors"), reverse=True):
        first, last = map(int, path.stem.removeprefix("steps-").split("-"))
        found[first] = Chunk(first, last, path)
    return sorted(found.values())


def in_order(folder: Path) -> list[Chunk]:
    """The files of steps, after checking that each goes on where the last one ends.

    Raises:
        ValueError: steps are missing, or there twice.
    """
    found, expected = chunks(folder), 1
    for chunk in found:
        if chunk.first != expected:
            raise UsageError(
                f"{chunk.path} begins with step {chunk.first} where {expected} is next; resume the "
                "training from a checkpoint, which puts the recording in order"
            )
        expected = chunk.last + 1
    return found


def read_steps(out: Path | str) -> Trajectory:
    """The recorded steps of a watched training, finished or not; ``losses`` are NaN.

    Args:
        out: the folder that ``FrenetCallback`` was given.

    Raises:
        ValueError: no recording, or one with steps missing.
        MemoryError: it does not fit; nothing is allocated before.
    """
    folder = Path(out).expanduser() / FOLDER
    if not (folder / START).exists():
        raise UsageError(f"{out} holds no recorded training: there is no {FOLDER}/{START}")
    tensors, about = _read(folder / START)
    require_object(about, folder / START, shapes=str, names=str)
    shapes = tuple(tuple(shape) for shape in parse_json(about["shapes"], folder / START))
    space = ParamSpace(tuple(parse_json(about["names"], folder / START)), shapes)
    theta = tensors["theta"]
    found = in_order(folder)
    total = found[-1].last if found else 0
    kept = bool(found) and "gradients" in read_tensors(found[0].path)
    require_memory(
        total * bytes_per_step(space.dim, kept),
        f"a trajectory of {total} steps of {space.dim:,} parameters",
        device=torch.device("cpu"),
        remedy=f"read fewer of the files in {folder}",
    )
    steps = torch.empty(total, space.dim)
    gradients = torch.empty_like(steps) if kept else None
    for chunk in found:
        tensors, rows = read_tensors(chunk.path), slice(chunk.first - 1, chunk.last)
        steps[rows] = tensors["steps"]
        if gradients is not None:
            gradients[rows] = tensors["gradients"]
    return Trajectory(theta, steps, torch.full((total,), math.nan), gradients, space)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped from the disk."""
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file."""
    try:
        return load_tensors(path)
    except DamagedFileError as error:
        raise UsageError(
            f"{path} cannot be read: it {error.why}; resume the training, or record it again"
        ) from error
