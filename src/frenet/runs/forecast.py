"""The expected cost of a reproduction.

Costs were measured once, in training steps of the network (`experiments/reproduce/costs.json`);
such a step is timed again here, on this machine and network.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from frenet.experiments.experiment import SYNTHETIC, Cell, kind_of
from frenet.experiments.reproduce import Part
from frenet.experiments.reproduce.costs import Cost, stored
from frenet.runs.machine import cpu_count, usual_workers
from frenet.runs.records import cell_stem

if TYPE_CHECKING:
    from torch import nn

# The timed step, in one thread: examples in its batch, and repetitions.
SYNTHETIC_ROWS, MODEL_ROWS, REPEATS = 64, 8, 7
# The cost of a training step of the synthetic transformer (256 rows), in steps of 64 rows.
OWN_STEP = 3.5


class Speed(NamedTuple):
    """Seconds of one training step in one thread, and MiB of the float32 weights."""

    step: float
    weights_mib: float


class Forecast(NamedTuple):
    """What a part still costs.

    Attributes:
        seconds: of one processor.
        longest: the same if recoveries take all allowed steps.
        mib: MiB of each worker.
        cells: number of cells.
        finished: number of cells with rows.
        pending: number of cells to run; failed cells of a finished run are in neither number.
        crew: available processes.
        processors: number of these processes that have a processor.
        known: whether the cost of a cell is known; if not, seconds, longest and mib are 0.
    """

    seconds: float
    longest: float
    mib: float
    cells: int
    finished: int
    pending: int
    crew: int
    processors: int
    known: bool = True

    @property
    def workers(self) -> int:
        """How many of the processes will have work."""
        return min(self.crew, self.pending)

    @property
    def duration(self) -> float:
        """Seconds with all workers busy, up to the number of processors."""
        return self.seconds / self._busy

    @property
    def longest_duration(self) -> float:
        """The same if recoveries take all allowed steps."""
        return self.longest / self._busy

    @property
    def _busy(self) -> int:
        return max(1, min(self.workers, self.processors))

    @property
    def memory(self) -> float:
        """MiB of all workers."""
        return self.mib * self.workers


def forecast(
    part: Part,
    preset: str,
    speed: Speed,
    *,
    folder: Path,
    workers: int | None = None,
    local: bool = True,
    retry_failed: bool = False,
) -> Forecast:
    """The cost of what is left of a part.

    Args:
        part: experiment and network.
        preset: of the reproduction.
        speed: of the network, as :func:`network_speed` measures it.
        folder: of the part; it may hold finished cells.
        workers: processes; None: as many as the machine suggests.
        local: whether they share the processors of this machine.
        retry_failed: whether the failed cells of a finished run are run again.
    """
    cost = stored().get((kind_of(part.network), preset, part.experiment.name))
    each = cost or Cost(0.0, 0.0)
    cells = part.experiment.cells(part.config)
    pending = pending_cells(part, folder, retry_failed=retry_failed)
    longest = part.experiment.longest_recovery
    most = max(each.steps, each.longest * longest(part.config) if longest else 0.0)
    return Forecast(
        seconds=each.steps * speed.step * pending,
        longest=most * speed.step * pending,
        mib=each.mib + each.weights * speed.weights_mib,
        cells=len(cells),
        finished=_finished(cells, folder),
        pending=pending,
        crew=workers or usual_workers(part.config),
        processors=at_once(part, workers, local=local),
        known=cost is not None,
    )


def at_once(part: Part, workers: int | None, *, local: bool) -> int:
    """How many processes have a processor; on a cluster, all of them."""
    crew = workers or usual_workers(part.config)
    return min(crew, cpu_count()) if local else crew


def preparation(part: Part, speed: Speed, *, processors: int = 1) -> float:
    """Seconds to train a part's networks that are not in the cache.

    One process trains the network of a seed, and one trains ``frenet:gpt2`` for all seeds.
    """
    from frenet.network.checkpoints.builtin_gpt2 import NAME, ROWS, STEPS, made_folder
    from frenet.network.checkpoints.made_folder import RECORD

    seeds = len(part.config.seeds)
    steps = seeds / max(1, min(processors, seeds)) * part.config.preparing_steps
    if part.network == SYNTHETIC:
        steps *= OWN_STEP
    if part.network == NAME and not (made_folder() / RECORD).exists():
        steps += STEPS * ROWS // MODEL_ROWS
    return float(steps * speed.step)


def pending_cells(part: Part, folder: Path, *, retry_failed: bool = False) -> int:
    """How many cells of a part will run: none of a finished run, unless it is to be retried."""
    if (folder / "manifest.json").exists() and not retry_failed:
        return 0
    cells = part.experiment.cells(part.config)
    return len(cells) - _finished(cells, folder)


def _finished(cells: Sequence[Cell], folder: Path) -> int:
    """How many cells have their rows in the folder."""
    return sum((folder / "cells" / f"{cell_stem(cell)}.jsonl").exists() for cell in cells)


def network_speed(part: Part) -> Speed:
    """Time a training step of a part's network (of its adapters, for a language model).

    This loads the model, so one that cannot be loaded fails here, not hours later. ``frenet:gpt2``
    need not be trained.
    """
    from frenet.network.measuring import torch_threads

    with torch_threads(1):
        model, task, rows = _model_and_task(part)
        parameters = [p for p in model.parameters() if p.requires_grad]
        batch = next(task.batches("train", rows, 0))
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            task.loss(model, batch).backward()
            # A GPU may still be working when the call returns; reading a number waits for it.
            float(next(p.grad for p in parameters if p.grad is not None).sum())
            times.append(time.perf_counter() - start)
            for parameter in parameters:
                parameter.grad = None
    size = 4 * sum(p.numel() for p in model.parameters()) / 2**20
    return Speed(statistics.median(times), size)


def _model_and_task(part: Part) -> "tuple[nn.Module, Any, int]":
    if part.network == SYNTHETIC:
        from frenet.network.synthetic.model import (
            SyntheticConfig,
            SyntheticTask,
            SyntheticTransformer,
        )

        shape = SyntheticConfig(width=part.config.width)
        return SyntheticTransformer(shape, seed=0), SyntheticTask("reverse"), SYNTHETIC_ROWS
    from frenet.network.adapters import attach_lora
    from frenet.network.checkpoints.builtin_gpt2 import CONTEXT, NAME, fresh_gpt2, made_tokenizer
    from frenet.network.data.text import text_tasks

    if part.network == NAME:
        tokenizer = made_tokenizer()
        model: Any = fresh_gpt2(tokenizer).eval()
        longest = min(part.config.max_length, CONTEXT)
    else:
        loaded = part.config.load(part.network)
        tokenizer, model = loaded.tokenizer, loaded.model
        longest = loaded.longest(part.config.max_length)
    read = part.config.rows_read()
    tasks = text_tasks(part.config.tasks[0], tokenizer, max_length=longest, **read)
    targets = part.config.targets or None
    model = attach_lora(model, rank=part.config.rank, targets=targets, seed=0)
    return model, replace(next(iter(tasks.values())), whole=True), MODEL_ROWS
