"""The expected cost of a reproduction.

Costs were measured once, in training steps of the network (`experiments/reproduce/costs.json`);
such a step is timed again here, on this machine, this network and these texts. So a forecast grows
with the length of the texts as the step does, and with the number of passes that an experiment
takes with them (`Experiment.passes`).
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from frenet.experiments.experiment import SYNTHETIC, Cell, Texts, kind_of
from frenet.experiments.reproduce import Part
from frenet.experiments.reproduce.costs import Cost, stored
from frenet.experiments.setup.contrasts import SteeringConfig, behaviours, contrasts_of
from frenet.experiments.setup.networks import NetworkConfig, task_names
from frenet.experiments.setup.reading import tasks_of
from frenet.runs.machine import cpu_count, usual_workers
from frenet.runs.records import cell_stem

if TYPE_CHECKING:
    from torch import Tensor, nn

    from frenet.network.checkpoints.load import Loaded

# The timed step, in one thread: examples in its batch, repetitions, and the seconds after which it
# is not repeated.
SYNTHETIC_ROWS, MODEL_ROWS, REPEATS, ENOUGH = 64, 8, 7, 5.0
# The cost of a training step of the synthetic transformer (256 rows), in steps of 64 rows.
OWN_STEP = 3.5

# Tokens of texts, those that are given and those that are predicted.
Rows = list[tuple[list[int], list[int]]]


class Speed(NamedTuple):
    """What a network takes in one thread.

    Attributes:
        step: seconds of a training step, without those that depend on the length of its texts.
        weights_mib: MiB of the float32 weights.
        per_token: seconds that a step takes longer for every token of the length of its texts.
        kept_mib: MiB that a step keeps for its backward pass, per token of its longest text.
        texts: of a language model, by the name of the experiment and of the task or contrast.
    """

    step: float
    weights_mib: float
    per_token: float = 0.0
    kept_mib: float = 0.0
    texts: Mapping[str, Mapping[str, Texts]] = {}

    def at(self, tokens: float) -> float:
        """Seconds of a training step on texts of this length."""
        return self.step + self.per_token * tokens


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
    works = [work_of(part, cell, speed, each) for cell in pending]
    longest = part.experiment.longest_recovery
    recovery = each.longest * longest(part.config) if longest else 0.0
    return Forecast(
        seconds=sum(each.steps * work.share * work.step for work in works),
        longest=sum(max(each.steps * work.share, recovery) * work.step for work in works),
        mib=_mib(part, speed, cost) if cost else 0.0,
        cells=len(cells),
        finished=len(cells) - len(_unfinished(cells, folder)),
        pending=len(pending),
        crew=workers or usual_workers(part.config),
        processors=at_once(part, workers, local=local),
        known=cost is not None,
    )


class Work(NamedTuple):
    """How much a cell does.

    Attributes:
        share: its passes, relative to those of the cell in which the cost was measured.
        step: seconds of a training step on its texts.
    """

    share: float
    step: float


def work_of(part: Part, cell: Cell, speed: Speed, cost: Cost) -> Work:
    """What a cell does with its texts; the synthetic transformer has none.

    Without a rule of the experiment, each task of a cell counts once.
    """
    texts = texts_of(part, cell, speed)
    if not texts:
        return Work(1.0, speed.at(cost.tokens))
    rule = part.experiment.passes
    passes = [rule(part.config, each) if rule else 1.0 for each in texts]
    total = sum(passes)
    seconds = sum(n * speed.at(each.tokens) for n, each in zip(passes, texts, strict=True))
    return Work(total / cost.passes, seconds / total)


def texts_of(part: Part, cell: Cell, speed: Speed) -> list[Texts]:
    """Those of the cell's task or contrast; of all, if the cell has them together."""
    texts, keys = speed.texts.get(part.experiment.name, {}), dict(cell.keys)
    name = keys.get("task", keys.get("behaviour"))
    return [texts[str(name)]] if texts and name is not None else list(texts.values())


def _mib(part: Part, speed: Speed, cost: Cost) -> float:
    """MiB of a worker; minibatches of texts that are longer than those of the cost take more.

    Steering experiments limit the tokens of a pass, so that longer texts take no more memory.
    """
    mib = cost.mib + cost.weights * speed.weights_mib
    texts = speed.texts.get(part.experiment.name, {}).values()
    if not texts or not isinstance(part.config, NetworkConfig):
        return mib
    rows = max(part.config.learn_batch, *part.config.minibatches.values())
    further = max(each.longest for each in texts) - cost.tokens
    return mib + speed.kept_mib * max(0.0, further) * rows / MODEL_ROWS


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

    texts = speed.texts.get(part.experiment.name, {}).values()
    step = speed.at(statistics.fmean([each.tokens for each in texts] or [0.0]))
    seeds = len(part.config.seeds)
    steps = seeds / max(1, min(processors, seeds)) * part.config.preparing_steps
    if part.network == SYNTHETIC:
        steps *= OWN_STEP
    if part.network == NAME and not (made_folder() / RECORD).exists():
        steps += STEPS * ROWS // MODEL_ROWS
    return float(steps * step)


def pending_cells(part: Part, folder: Path, *, retry_failed: bool = False) -> list[Cell]:
    """The cells of a part that will run: none of a finished run, unless it is to be retried."""
    if (folder / "manifest.json").exists() and not retry_failed:
        return []
    return _unfinished(part.experiment.cells(part.config), folder)


def _unfinished(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """The cells without rows in the folder."""
    return [c for c in cells if not (folder / "cells" / f"{cell_stem(c)}.jsonl").exists()]


def network_speed(parts: Sequence[Part]) -> Speed:
    """Time a training step of the network of these parts (of its adapters, for a language model).

    This loads the model and reads the texts, so what cannot be read fails here, not hours later.
    ``frenet:gpt2`` need not be trained. A step on the shortest texts and one on the longest give
    the time for every length.
    """
    from frenet.network.measuring import torch_threads
    from frenet.network.tasks import collate, token_loss

    with torch_threads(1):
        if parts[0].network == SYNTHETIC:
            return _synthetic_speed(parts[0])
        loaded = _load(parts[0])
        rows = {part.experiment.name: _rows(part, loaded) for part in parts}
        every = sorted((each for named in rows.values() for each in named.values()), key=_width)
        model = _adapted(parts[0], loaded)
        points = []
        for chosen in map(_spread, (every[0], every[-1])):
            loss = partial(token_loss, model, collate(chosen))
            points.append((float(_longest(chosen)), _seconds(model, loss)))
        kept = _kept_mib(model, loss) / _longest(chosen)
    fixed, per_token = line(*points)
    texts = {
        part.experiment.name: {
            name: _texts(each, padded=isinstance(part.config, NetworkConfig))
            for name, each in rows[part.experiment.name].items()
        }
        for part in parts
    }
    return Speed(fixed, _size(model), per_token, kept, texts)


def line(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Seconds without tokens, and per token, of two steps given by length and seconds.

    Neither is negative. With equal lengths the time is proportional to the length.

    >>> line((10.0, 2.0), (30.0, 3.0)), line((10.0, 1.0), (20.0, 3.0))
    ((1.5, 0.05), (0.0, 0.15))
    """
    (tokens, short), (more, long) = first, second
    if tokens == more or long * tokens > short * more:
        return 0.0, long / more
    per_token = max(0.0, (long - short) / (more - tokens))
    return short - per_token * tokens, per_token


def _synthetic_speed(part: Part) -> Speed:
    from frenet.network.synthetic.model import SyntheticConfig, SyntheticTask, SyntheticTransformer

    model = SyntheticTransformer(SyntheticConfig(width=part.config.width), seed=0)
    task = SyntheticTask("reverse")
    batch = next(task.batches("train", SYNTHETIC_ROWS, 0))
    return Speed(_seconds(model, lambda: task.loss(model, batch)), _size(model))


def _load(part: Part) -> "Loaded":
    """The model and its tokenizer; ``frenet:gpt2`` as it is before its training."""
    import torch

    from frenet.network.checkpoints.builtin_gpt2 import NAME, fresh_gpt2, made_tokenizer
    from frenet.network.checkpoints.load import Loaded

    if part.network != NAME:
        loaded: Loaded = part.config.load(part.network)
        return loaded
    tokenizer = made_tokenizer()
    model = fresh_gpt2(tokenizer).eval()
    return Loaded(model, tokenizer, NAME, "folder", torch.float32, "", ())


def _adapted(part: Part, loaded: "Loaded") -> "nn.Module":
    """The model with the adapters of the part, which it changes."""
    from frenet.network.adapters import attach_lora

    config = part.config
    return attach_lora(loaded.model, rank=config.rank, targets=config.targets or None, seed=0)


def _rows(part: Part, loaded: "Loaded") -> dict[str, Rows]:
    """The tokens of the tasks or contrasts that the part measures, by name."""
    config = part.config
    if isinstance(config, SteeringConfig):
        found = contrasts_of(config, loaded)
        items = {name: found[name].items for name in behaviours(config)}
        return {
            name: [(item.context, item.sides[0][len(item.context) :]) for item in each]
            for name, each in items.items()
        }
    tasks = tasks_of(config, loaded)
    return {
        name: [
            (example.encoded.context, example.encoded.target)
            for split in tasks[name].examples.values()
            for example in split
        ]
        for name in task_names(config)
    }


def _length(row: tuple[list[int], list[int]]) -> int:
    return sum(map(len, row))


def _longest(rows: Rows) -> int:
    return max(map(_length, rows))


def _width(rows: Rows) -> float:
    """Mean length of a row in a minibatch, which is as wide as its longest row."""
    starts = range(0, len(rows), MODEL_ROWS)
    return statistics.fmean(_longest(rows[start : start + MODEL_ROWS]) for start in starts)


def _texts(rows: Rows, *, padded: bool) -> Texts:
    """What a forecast needs of some texts; only minibatches of a training are padded."""
    tokens = _width(rows) if padded else statistics.fmean(map(_length, rows))
    return Texts(len(rows), tokens, _longest(rows))


def _spread(rows: Rows) -> Rows:
    """As many rows as the timed step has, of lengths that are spread like those of all."""
    ordered = sorted(rows, key=_length)
    places = [(2 * i + 1) * len(rows) // (2 * MODEL_ROWS) for i in range(MODEL_ROWS)]
    return [ordered[place] for place in places]


def _seconds(model: "nn.Module", loss: "Callable[[], Tensor]") -> float:
    """The median time of a training step in seconds."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    times: list[float] = []
    while not times or (len(times) < REPEATS and sum(times) < ENOUGH):
        start = time.perf_counter()
        loss().backward()
        # A GPU may still be working when the call returns; reading a number waits for it.
        float(next(p.grad for p in parameters if p.grad is not None).sum())
        times.append(time.perf_counter() - start)
        for parameter in parameters:
            parameter.grad = None
    return statistics.median(times)


def _kept_mib(model: "nn.Module", loss: "Callable[[], Tensor]") -> float:
    """MiB that a training step keeps for its backward pass, without the weights."""
    import torch

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: "Tensor") -> "Tensor":
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # While the loss exists, so does what it needs: no two tensors have the same place.
        held = loss()
    del held
    return sum(kept.values()) / 2**20


def _size(model: "nn.Module") -> float:
    """MiB of the weights in float32."""
    return 4 * sum(p.numel() for p in model.parameters()) / 2**20
