"""A base checkpoint plus a task vector as a new checkpoint, one tensor at a time."""

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

# Weights in any format. Everything else in a model's folder is copied, except an adapter's
# configuration: with it the checkpoint would look like an adapter still to be applied.
MERGED = "model.safetensors"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


class Merged(NamedTuple):
    """A checkpoint that was written.

    Attributes:
        folder: holds also the configuration and tokenizer of the base.
        rounding: ||(written - base) - tau|| / ||tau||, the error from the dtype of the weights.
        unmoved: share of the entries with tau != 0 that rounding left unchanged.
    """

    folder: Path
    rounding: float
    unmoved: float


def save_merged(base: str | Path, vector: TaskVector, folder: str | Path) -> Merged:
    """Write theta_0 + tau as safetensors, each weight in the dtype in which the base stores it.

    bf16 weights lose part of a small change: the result says how much.

    Args:
        base: a model's folder in Hugging Face format; left unchanged.
        vector: tau; scale it before. Sums of several are merged models.
        folder: created if missing; not the base.

    Raises:
        ValueError: the vector is zero, or changes a weight that the base lacks or has in another
            shape; or the folder is the base.
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
    # Small weights first: one entry that is not zero suffices.
    by_size = sorted(vector.shapes, key=lambda name: prod(vector.shapes[name]))
    if not any(bool(vector.read(name).any()) for name in by_size):
        raise UsageError(f"the vector ({vector.origin}) is zero: the result would be the base")
    lost = whole = 0.0
    moved = changed = 0

    named = {stored: name for name, stored in files.stored.items()}
    # A copy of a tied weight is the same weight, and moves with it.
    same = {name: first for name, first in tied_copies(files).items() if name not in vector.shapes}

    def read(stored: str) -> Tensor:
        nonlocal lost, whole, moved, changed
        name = same.get(named[stored], named[stored])
        weight = files.read(name)
        if name not in vector.shapes:
            return weight
        tau = vector.read(name)
        sum_ = torch.add(weight.float(), tau).to(weight.dtype)
        real = sum_.float() - weight.float()
        changed += int(tau.count_nonzero())
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
    return Merged(out, (lost / whole) ** 0.5, 1 - moved / changed)
