"""A base checkpoint plus a task vector as a checkpoint of its own, one tensor at a time."""

import shutil
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from frenet._errors import UsageError
from frenet._files import whole_files
from frenet.geometry.linalg import dot
from frenet.methods.task_vectors import TaskVector
from frenet.network.checkpoints.folders import ADAPTER_CONFIG
from frenet.network.checkpoints.pairs import tied_copies
from frenet.network.checkpoints.tensor_files import TensorFiles, write_tensors

# Weights in any form; everything else in a model's folder goes along, but for an adapter's
# configuration, which would be taken for one that is still to be applied.
MERGED = "model.safetensors"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


class Merged(NamedTuple):
    """A checkpoint that was written.

    Attributes:
        folder: where it lies, with configuration and tokenizer of the base.
        rounding: ||(written - base) - tau|| / ||tau||, what the dtype of the weights costs.
        unmoved: share of the entries with tau != 0 that the dtype did not let move.
    """

    folder: Path
    rounding: float
    unmoved: float


def save_merged(base: str | Path, vector: TaskVector, folder: str | Path) -> Merged:
    """Write theta_0 + tau as safetensors, each weight in the dtype in which the base stores it.

    A small change of bf16 weights is lost in part: the result says how much.

    Args:
        base: a model's folder in Hugging Face format; it is only read.
        vector: tau; scale it before. Sums of several are merged models.
        folder: made where it is not there; has to be another one than the base.

    Raises:
        ValueError: the vector changes a weight that the base does not have or has in another
            shape, or is zero; or the folder is the base's own.
    """
    files, out = TensorFiles(base).named_like(vector.shapes), Path(folder).expanduser()
    if files.path.is_file():
        raise UsageError(f"{base} is a file; pass the folder of the model")
    if out.resolve() == files.path.resolve():
        raise UsageError(f"{folder} is the base itself; pass another folder")
    for name, shape in vector.shapes.items():
        if files.shapes.get(name) != shape:
            raise UsageError(
                f"the vector ({vector.origin}) does not fit {base}: it changes {name} of shape "
                f"{shape}, the base has {files.shapes.get(name, 'no such tensor')}"
            )
    # Small weights first: the question is answered by the first entry.
    by_size = sorted(vector.shapes, key=lambda name: prod(vector.shapes[name]))
    if not any(bool(vector.read(name).any()) for name in by_size):
        raise UsageError(f"the vector ({vector.origin}) is zero: the base is the result")
    lost = whole = 0.0
    moved = asked = 0

    named = {stored: name for name, stored in files.stored.items()}
    # A copy of a tied weight is the same weight, and moves with it.
    same = {name: first for name, first in tied_copies(files).items() if name not in vector.shapes}

    def read(stored: str) -> Tensor:
        nonlocal lost, whole, moved, asked
        name = same.get(named[stored], named[stored])
        own = files.read(name)
        if name not in vector.shapes:
            return own
        tau = vector.read(name)
        sum_ = torch.add(own.float(), tau).to(own.dtype)
        real = sum_.float() - own.float()
        asked += int(tau.count_nonzero())
        moved += int(real.count_nonzero())
        whole += dot(tau, tau)
        real.sub_(tau)
        lost += dot(real, real)
        return sum_

    shapes = {stored: files.shapes[name] for stored, name in named.items()}
    dtypes = {stored: files.read(name).dtype for stored, name in named.items()}
    with whole_files(out, last=MERGED) as part:
        for path in files.path.iterdir():
            if path.is_file() and not path.name.endswith((*_WEIGHTS, ADAPTER_CONFIG)):
                shutil.copy2(path, part / path.name)
        write_tensors(part / MERGED, shapes, read, {"format": "pt"}, dtypes=dtypes)
    return Merged(out, (lost / whole) ** 0.5, 1 - moved / asked)
