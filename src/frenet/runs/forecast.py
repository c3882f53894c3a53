"""What a reproduction will cost, said before it runs.

Costs were measured once, in training steps of the network that is measured; here such a step is
timed again, on this machine and for this network, so that a forecast follows both.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from frenet.experiments.reproduction import STATEMENTS, SYNTHETIC, Part
from frenet.runs.store import read_run

if TYPE_CHECKING:
    from torch import nn

    from frenet.network.tasks import Task

# Memory of a process that has imported what it needs, in MiB.
BASE_MIB = 640
# Further memory, as a multiple of the weights: of adapters, and of steps in all weights.
ADAPTERS, ALL_WEIGHTS = 2.2, 4.8
SYNTHETIC_MIB = {"smoke": 900, "demo": 1100, "cpu": 2600, "gpu": 2600}
# Batch and length of the step that is timed; such batches are what language models train on here.
ROWS, REPEATS = 8, 5


class Speed(NamedTuple):
    """Seconds of one training step in one thread, and MiB of the weights."""

    step: float
    weights: float


class Forecast(NamedTuple):
    """What a part still costs: seconds of one processor, MiB of one worker."""

    seconds: float
    mib: float
    cells: int
    finished: int


def forecast(part: Part, preset: str, *, speed: Speed, folder: Path, cells: int) -> Forecast:
    """The cost of what is left of a part."""
    from frenet.experiments.costs import STEPS

    kind = SYNTHETIC if part.network == SYNTHETIC else "language model"
    steps = STEPS[preset][kind].get(part.experiment.name)
    done = _finished(folder)
    left = 1 - done / cells
    if kind == SYNTHETIC:
        mib = float(SYNTHETIC_MIB[preset])
    else:
        full = part.experiment.name in STATEMENTS
        mib = BASE_MIB + (ALL_WEIGHTS if full else ADAPTERS) * speed.weights
    return Forecast((steps or 0) * speed.step * left, mib, cells, done)


def _finished(folder: Path) -> int:
    """Cells of a run folder that are finished."""
    return len(list((folder / "cells").glob("*.jsonl")))


def network_speed(network: str, tasks: tuple[str, ...]) -> Speed:
    """Time a training step of a network, adapters for a language model; loads it."""
