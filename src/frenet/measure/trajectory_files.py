"""The steps of a watched training on disk.

start.safetensors               theta_0, with names and shapes of the parameters
steps-00000001-00000035...      steps 1 to 35, with gradients if they are recorded
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
    """Bytes per step on disk."""
    return 4 * dim * (2 if gradients else 1)


def chunks(folder: Path) -> list[Chunk]:
    """The files with steps, in order.

    If two begin with the same step, the shorter one counts: a cut was interrupted before the longer
    one was removed.
    """
    by_first: dict[int, Chunk] = {}
    for path in sorted(folder.glob("steps-*.safetensors"), reverse=True):
        first, last = map(int, path.stem.removeprefix("steps-").split("-"))
        by_first[first] = Chunk(first, last, path)
    return sorted(by_first.values())


def in_order(folder: Path) -> list[Chunk]:
    """The files with steps, after a check that each continues the last one.

    Raises:
        ValueError: steps are missing or duplicated.
    """
    files, expected = chunks(folder), 1
    for chunk in files:
        if chunk.first != expected:
            raise UsageError(
                f"{chunk.path} begins with step {chunk.first}, not {expected}; resume the "
                "training from a checkpoint, which repairs the recording"
            )
        expected = chunk.last + 1
    return files


def read_steps(out: Path | str) -> Trajectory:
    """The recorded steps of a watched training, finished or not; ``losses`` are NaN.

    Args:
        out: the ``out`` of the ``FrenetCallback``.

    Raises:
        ValueError: there is no recording, or steps are missing.
        MemoryError: it does not fit; raised before any allocation.
    """
    folder = Path(out).expanduser() / FOLDER
    if not (folder / START).exists():
        raise UsageError(f"{out} holds no recorded training: {FOLDER}/{START} is missing")
    tensors, about = _read(folder / START)
    require_object(about, folder / START, shapes=str, names=str)
    shapes = tuple(tuple(shape) for shape in parse_json(about["shapes"], folder / START))
    space = ParamSpace(tuple(parse_json(about["names"], folder / START)), shapes)
    theta = tensors["theta"]
    files = in_order(folder)
    total = files[-1].last if files else 0
    has_gradients = bool(files) and "gradients" in read_tensors(files[0].path)
    require_memory(
        total * bytes_per_step(space.dim, has_gradients),
        f"a trajectory of {total} steps of {space.dim:,} parameters",
        device=torch.device("cpu"),
        remedy=f"read fewer of the files in {folder}",
    )
    steps = torch.empty(total, space.dim)
    gradients = torch.empty_like(steps) if has_gradients else None
    for chunk in files:
        tensors, rows = read_tensors(chunk.path), slice(chunk.first - 1, chunk.last)
        steps[rows] = tensors["steps"]
        if gradients is not None:
            gradients[rows] = tensors["gradients"]
    return Trajectory(theta, steps, torch.full((total,), math.nan), gradients, space)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, memory-mapped."""
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file."""
    try:
        return load_tensors(path)
    except DamagedFileError as error:
        raise UsageError(
            f"{path} cannot be read: it {error.why}; resume the training, or record it again"
        ) from error
