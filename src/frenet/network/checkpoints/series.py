"""The checkpoints of one training, in the order of their steps."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from frenet._errors import UsageError
from frenet._files import read_object
from frenet.network.checkpoints.adapter_files import configuration
from frenet.network.checkpoints.folders import ADAPTER_WEIGHTS, held, require_adapter_folder
from frenet.network.checkpoints.tensor_files import TensorFiles

STATE = "trainer_state.json"
# PEFT leaves the name of the adapter out of the names that it stores.
_FACTOR = re.compile(r"(\.lora_(?:[AB]|embedding_[AB]|magnitude_vector))(?=\.|$)")


class Checkpoint(NamedTuple):
    """The weights of one checkpoint, of a model or of an adapter.

    Attributes:
        step: optimiser steps taken.
        folder: where it is.
        files: its tensors; of an adapter by their names in PEFT's model, adapter "default".
        base: of an adapter, the base model that it names; empty for a whole model.
    """

    step: int
    folder: Path
    files: TensorFiles
    base: str


def checkpoint_series(folders: Sequence[str | Path]) -> list[Checkpoint]:
    """The checkpoints of one training by their steps; only headers are read.

    Args:
        folders: at least two, such as ``checkpoint-*`` of Trainer, in any order.

    Raises:
        ValueError: fewer than two, a step that is unknown or there twice, or checkpoints of
            different models (names the first weight that differs).
    """
    found = sorted((_checkpoint(Path(folder).expanduser()) for folder in folders), key=_step)
    if len(found) < 2:
        raise UsageError(f"{len(found)} checkpoint makes no path; pass two or more folders")
    first, *later = found
    for before, after in zip(found, later, strict=False):
        if after.step == before.step:
            raise UsageError(
                f"{before.folder} and {after.folder} are both of step {after.step}; pass one of "
                "each step"
            )
        _require_alike(first, after)
    return found


def _step(checkpoint: Checkpoint) -> int:
    return checkpoint.step


def _checkpoint(folder: Path) -> Checkpoint:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not held(folder).is_adapter:
        return Checkpoint(_step_of(folder), folder, TensorFiles(folder), "")
    require_adapter_folder(folder)
    files = TensorFiles(folder / ADAPTER_WEIGHTS)
    named = {_FACTOR.sub(r"\1.default", name): name for name in files.shapes}
    files.shapes = {name: files.shapes[stored] for name, stored in named.items()}
    files.stored = named
    base = str(configuration(folder).get("base_model_name_or_path") or "")
    return Checkpoint(_step_of(folder), folder, files, base)


def _step_of(folder: Path) -> int:
    """The step in Trainer's state, else in the name of the folder."""
    state = folder / STATE
    if state.exists():
        return int(read_object(state, global_step=int)["global_step"])
    if number := re.search(r"(\d+)$", folder.name):
        return int(number[1])
    raise UsageError(
        f"the step of {folder} is unknown: it has no {STATE}, and its name does not end in a "
        "number; name it checkpoint-STEP"
    )


def _require_alike(first: Checkpoint, other: Checkpoint) -> None:
    """Raise ValueError if two checkpoints are not of one model."""
    ours, theirs = first.files.shapes, other.files.shapes
    differ = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    which = f"{first.folder} and {other.folder} are checkpoints of different models"
    if differ:
        name = differ[0]
        there = (_shape(ours, name), _shape(theirs, name))
        raise UsageError(f"{which}: {name} {there[0]} in the first and {there[1]} in the second")
    if first.base != other.base:
        raise UsageError(f"{which}: their bases are {first.base} and {other.base}")


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return f"has shape {shapes[name]}" if name in shapes else "is missing"
