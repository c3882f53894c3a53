"""What a reproduction will cost, said before it runs.

Costs were measured once, in training steps of the network (`experiments/costs.py`); such a step is
timed again here, so that a forecast follows the machine and the network.
"""

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from frenet.experiments.costs import COSTS, MODEL
from frenet.experiments.reproduction import SYNTHETIC, Part

if TYPE_CHECKING:
    from torch import nn

# The step that is timed, in one thread: examples of a batch, and how often.
SYNTHETIC_ROWS, MODEL_ROWS, REPEATS = 64, 8, 7
# Steps of 64 rows to which a step of the synthetic transformer's own training, of 256, comes.
OWN_STEP = 3.5


class Speed(NamedTuple):
    """Seconds of one training step in one thread, and MiB of the float32 weights."""

    step: float
    weights_mib: float


class Forecast(NamedTuple):
    """What a part still costs: seconds of one processor, MiB of each worker, and its cells."""

    seconds: float
    mib: float
    cells: int
    finished: int


def forecast(part: Part, preset: str, speed: Speed, *, folder: Path) -> Forecast:
    """The cost of what is left of a part.

    Args:
        part: experiment and network.
        preset: of the reproduction, whose costs are known.
        speed: of the network, as :func:`network_speed` finds it.
        folder: where the part runs, which may hold finished cells.
    """
    kind = SYNTHETIC if part.network == SYNTHETIC else MODEL
    cost = COSTS[kind][preset][part.experiment.name]
    cells, finished = _cells(part, folder)
    seconds = cost.steps * speed.step * (cells - finished)
    return Forecast(seconds, cost.mib + cost.weights * speed.weights_mib, cells, finished)


def preparation(part: Part, speed: Speed) -> float:
    """Seconds of one processor that a part's networks take where they are not in the cache."""
    from frenet.network.made_model import NAME, ROWS, STEPS, made_folder

    config = part.config
    if part.network == SYNTHETIC:
        return float(len(config.seeds) * OWN_STEP * config.train_steps * speed.step)
    steps = len(config.seeds) * getattr(config, "learn_steps", 0)
    if part.network == NAME and not made_folder().exists():
        steps += STEPS * ROWS // MODEL_ROWS
    return float(steps * speed.step)


def is_finished(part: Part, folder: Path) -> bool:
    """Whether all cells of a part are there."""
    cells, finished = _cells(part, folder)
    return finished >= cells


def _cells(part: Part, folder: Path) -> tuple[int, int]:
    """How many cells a part has, and how many of them are finished."""
    finished = len(list((folder / "cells").glob("*.jsonl")))
    return len(part.experiment.cells(part.config)), finished


def network_speed(part: Part) -> Speed:
    """Time a training step of a part's network, of its adapters where it is a language model.

    The model is loaded: one that cannot be is told before hours of work. ``frenet:gpt2`` need not
    be trained for it.
    """
    from frenet.network.context import torch_threads

    with torch_threads(1):
        model, task, rows = _model_and_task(part)
        parameters = [p for p in model.parameters() if p.requires_grad]
        batch = next(task.batches("train", rows, 0))
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            task.loss(model, batch).backward()
            times.append(time.perf_counter() - start)
            for parameter in parameters:
                parameter.grad = None
    size = 4 * sum(p.numel() for p in model.parameters()) / 2**20
    return Speed(statistics.median(times), size)


def _model_and_task(part: Part) -> "tuple[nn.Module, Any, int]":
    if part.network == SYNTHETIC:
        from frenet.network.synthetic import SyntheticConfig, SyntheticTask, SyntheticTransformer

        shape = SyntheticConfig(width=part.config.width)
        return SyntheticTransformer(shape, seed=0), SyntheticTask("reverse"), SYNTHETIC_ROWS
    from frenet.network.adapters import attach_lora
    from frenet.network.load import load
    from frenet.network.made_model import NAME, fresh_gpt2, made_tokenizer
    from frenet.network.text import text_tasks

    if part.network == NAME:
        tokenizer = made_tokenizer()
        model: Any = fresh_gpt2(tokenizer).eval()
    else:
        loaded = load(part.network)
        tokenizer, model = loaded.tokenizer, loaded.model
    found = text_tasks(part.config.tasks[0], tokenizer, max_length=64)
    model = attach_lora(model, rank=part.config.rank, seed=0)
    return model, next(iter(found.values())), MODEL_ROWS
