"""Shared by all benchmarks: routines in turns, peaks of memory, rows of the table.

A row is a dict: ``name``, ``model`` (None without a model), ``ratio``, its quartiles ``low`` and
``high`` if it was repeated, ``aim``, ``detail``. A failed measurement has ``why`` instead of the
figures.
"""

import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frenet.geometry import rng
from frenet.network.adapters import attach_lora
from frenet.network.checkpoints.load import load
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, collate, token_loss
from units import duration

Row = dict[str, Any]
FOLDERS = re.compile(r"(?<![\w.])(?:/[\w.+-]+)+/")
STORIES = Path(__file__).resolve().parents[2] / "shared" / "models" / "stories260K"


@dataclass(frozen=True)
class RandomTokens:
    """Rows of random tokens: only their number and length affect the cost."""

    vocabulary: int
    context: int = 16
    target: int = 16
    name: str = "random tokens"

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return token_loss(model, batch)

    def batches(self, split: str, batch_size: int, seed: int) -> Iterator[Batch]:
        draw = rng.generator(seed, "bench", split)
        while True:
            shape = (batch_size, self.context + self.target)
            ids = torch.randint(self.vocabulary, shape, generator=draw).tolist()
            yield collate([(row[: self.context], row[self.context :]) for row in ids])

    def score(self, model: nn.Module, split: str) -> dict[str, float]:
        return {}

    def shuffled(self, seed: int) -> "RandomTokens":
        return self


def adapted(source: str | Path) -> tuple[nn.Module, RandomTokens, ParamSpace]:
    """The model with a rank-4 adapter on queries and values, and a task of random tokens."""
    return with_adapter(load(source).model)


def with_adapter(model: nn.Module) -> tuple[nn.Module, RandomTokens, ParamSpace]:
    """A rank-4 adapter on the model's queries and values; neither half is zero."""
    task = RandomTokens(model.config.vocab_size)
    model = attach_lora(model, rank=4, targets=["q_proj", "v_proj"])
    space = ParamSpace.select(model)
    space.write(model, 0.02 * torch.randn(space.dim, generator=rng.generator(0, "bench")))
    return model, task, space


def model_name(source: str | Path) -> str:
    """A model's name in the table: its folder, or its file without the ending.

    >>> model_name("models/SmolLM2-135M-Instruct.Q4_1.gguf")
    'SmolLM2-135M-Instruct.Q4_1'
    """
    return Path(source).name.removesuffix(".gguf")


def turns(routines: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every routine, in turns, so that all run under the same load."""
    seconds: dict[str, list[float]] = {name: [] for name in routines}
    for routine in routines.values():
        routine()
    for _ in range(repeats):
        for name, routine in routines.items():
            settle()
            start = time.perf_counter()
            routine()
            settle()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def settle() -> None:
    """Wait for the GPU, if there is one: it may still work after a routine has returned."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratios of the turns.

    >>> ratios([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    {'ratio': 2.0, 'low': 1.5, 'high': 2.5}
    """
    values = [a / b for a, b in zip(numerator, denominator, strict=True)]
    if len(values) == 1:
        return {"ratio": values[0]}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"ratio": middle, "low": low, "high": high}


def times(*seconds: Sequence[float]) -> str:
    """Median times, ours first.

    >>> times([0.5], [0.002])
    '0.5 s against 2 ms'
    """
    return " against ".join(duration(statistics.median(part)) for part in seconds)


def run_of(repeats: int) -> str:
    """Threads and repetitions, for a detail."""
    return f"{torch.get_num_threads()} threads, median of {repeats}"


def attempted(
    name: str, rows: Callable[[], Iterable[Row]], *, model: str | None = None
) -> Iterator[Row]:
    """The rows of a part of a benchmark, or one with the reason if it fails."""
    try:
        yield from rows()
    except Exception as error:
        yield {"name": name, "model": model, "why": reason(error)}


def reason(error: BaseException) -> str:
    """First line of an error, without the folders of this machine."""
    text = next(iter(str(error).strip().splitlines()), "no message")
    return f"{type(error).__name__}: {FOLDERS.sub('', text)}"


def high_water(routine: Callable[[], Any]) -> int:
    """High-water mark in bytes of this process while a routine runs; on a GPU, of its tensors."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        routine()
        return torch.cuda.max_memory_allocated()
    status_files = Path("/proc/self")
    if status_files.exists():
        # Loading peaks higher than the rest: Linux lets a process reset its mark.
        (status_files / "clear_refs").write_text("5")
    routine()
    if status_files.exists():
        return from_status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def from_status(field: str) -> int:
    """Bytes in a field of this process's status file on Linux, such as VmRSS."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    line = next(x for x in lines if x.startswith(field))
    return 1024 * int(line.split()[1])


def alone(script: str, *arguments: object) -> Any:
    """The output of a script in a separate process, read as JSON."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(f"a separate process ended early: {last}")
    return json.loads(done.stdout)


def show(rows: Iterable[Row]) -> None:
    """Print the rows as they come."""
    for row in rows:
        if "why" in row:
            figure = f"not measured: {row['why']}"
        else:
            figure = f"{row['ratio']:6.3g}" if "ratio" in row else f"{len(row['points'])} points"
        name = f"{row['name']} ({row['model']})" if row.get("model") else row["name"]
        print(f"{name:<76} {figure}  {row.get('aim', ''):<13} {row.get('detail', '')}", flush=True)
