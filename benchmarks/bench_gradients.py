"""Per-example LoRA gradients against one batch gradient of the same rows, and peak memory.

    python benchmarks/bench_gradients.py [--model FOLDER] [--n 16] [--repeats 15]

All are timed in one run, in turns, and a ratio is the median of the ratios of the turns. Peak
memory is the high-water mark of processes of their own. ``run`` returns rows for the table of all
benchmarks; the aims of this file are upper limits.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frenet.geometry import rng
from frenet.measure.gradients import example_gradients, gradient, gradient_matrix
from frenet.measure.per_example import vmapped_rows
from frenet.network.adapters import attach_lora
from frenet.network.load import load
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, collate, token_loss

TIME_AIM = "at most 1.25"
MEMORY_AIM = "at most 1.05"
STORIES = Path(__file__).resolve().parents[2] / "shared" / "models" / "stories260K"


@dataclass(frozen=True)
class RandomTokens:
    """Rows of random tokens: what they say costs nothing, their number and length do."""

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
    """The model with a rank-4 adapter on queries and values, neither half of it zero."""
    model = load(source).model
    task = RandomTokens(model.config.vocab_size)
    model = attach_lora(model, rank=4, targets=["q_proj", "v_proj"])
    space = ParamSpace.select(model)
    space.write(model, 0.02 * torch.randn(space.dim, generator=rng.generator(0, "bench")))
    return model, task, space


def turns(routines: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every routine, taken in turns so that all see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in routines}
    for routine in routines.values():
        routine()
    for _ in range(repeats):
        for name, routine in routines.items():
            start = time.perf_counter()
            routine()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the ratios of the turns."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def run(source: str | Path = STORIES, n: int = 16, repeats: int = 15) -> list[dict[str, Any]]:
    """Ratios of times to one batch gradient, and of peak memory to the result."""
    model, task, space = adapted(source)
    batch = next(task.batches("train", n, 0))
    rows = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(n)]
    seconds = turns(
        {
            "one batch gradient": lambda: gradient(model, task, batch, space=space),
            "per-example gradients": lambda: example_gradients(model, task, batch, space=space),
            "the same by vmap": lambda: vmapped_rows(model, task, batch, space=space),
            "the same in a loop": lambda: [gradient(model, task, r, space=space) for r in rows],
        },
        repeats,
    )
    base = seconds.pop("one batch gradient")
    where = (
        f"{Path(source).name}, {n} rows of {task.context} + {task.target} tokens, d = {space.dim:,}"
        f", {torch.get_num_threads()} threads, median of {repeats}"
    )
    found = [
        {
            "name": f"{name} against one batch gradient",
            "ratio": ratio(values, base),
            "aim": TIME_AIM if name == "per-example gradients" else "-",
            "detail": f"{1e3 * statistics.median(values):.1f} ms against "
            f"{1e3 * statistics.median(base):.1f} ms; {where}",
        }
        for name, values in seconds.items()
    ]
    return [*found, memory(source)]


def memory(source: str | Path, megabytes: int = 400) -> dict[str, Any]:
    """Peak of a matrix of so many megabytes, above the peak of a single gradient."""
    d = ParamSpace.select(load(source).model).dim
    n = max(2, megabytes * 2**20 // (4 * d))
    one, many = (peak_in_a_process(source, count) for count in (0, n))
    result = 4 * n * d
    return {
        "name": "peak memory of gradient_matrix above one gradient's, against its result",
        "ratio": (many - one) / result,
        "aim": MEMORY_AIM,
        "detail": f"{(many - one) / 2**20:.0f} MB for a result of {n} x {d:,}, "
        f"{result / 2**20:.0f} MB; one gradient peaks at {one / 2**20:.0f} MB",
    }


def peak_in_a_process(source: str | Path, count: int) -> int:
    """High-water mark in bytes of a process that takes one gradient, or a matrix of ``count``."""
    command = [sys.executable, __file__, "--model", str(source), "--peak-of", str(count)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak(source: str | Path, count: int) -> int:
    """The same in this process, after loading and a first gradient."""
    model = load(source).model
    task, space = RandomTokens(model.config.vocab_size), ParamSpace.select(model)
    batch = next(task.batches("train", 4, 0))
    gradient(model, task, batch, space=space)
    take = gradient_matrix if count else gradient
    extra = {"n": count, "batch_size": 4} if count else {"batch": batch}
    return high_water(lambda: take(model, task, space=space, **extra))


def high_water(routine: Callable[[], Any]) -> int:
    """High-water mark in bytes of this process while a routine runs."""
    own = Path("/proc/self")
    if own.exists():
        # Loading peaks higher than what stays: Linux lets a process lower its mark to the present.
        (own / "clear_refs").write_text("5")
    routine()
    if own.exists():
        line = next(x for x in (own / "status").read_text().splitlines() if x.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    for row in rows:
        print(f"{row['name']:<76} {row['ratio']:6.2f}  {row['aim']:<13} {row['detail']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=STORIES, help="model folder, or GGUF file")
    parser.add_argument("--n", type=int, default=16, help="examples")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of is not None:
        print(peak(options.model, options.peak_of))
    else:
        show(run(options.model, options.n, options.repeats))
