"""Per-example LoRA gradients, compared with one batch gradient of the same rows; peak memory.

    python benchmarks/bench_gradients.py [--model FOLDER] [--n 16] [--repeats 15]

All are timed in one run, in turns, and a ratio is the median of the ratios of the turns. Peak
memory is the high-water mark of a separate process. The aims of this file are upper limits.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from frenet.measure.gradients import example_gradients, gradient, gradient_matrix
from frenet.measure.per_example import vmapped_rows
from frenet.network.checkpoints.load import load
from frenet.network.space import ParamSpace
from timing import (
    STORIES,
    RandomTokens,
    Row,
    adapted,
    alone,
    attempted,
    high_water,
    model_name,
    ratios,
    run_of,
    show,
    times,
    turns,
)
from units import size

TIME_AIM = "at most 1.25"
MEMORY_AIM = "at most 1.05"


def run(source: str | Path = STORIES, n: int = 16, repeats: int = 15) -> Iterator[Row]:
    """Ratios of times to one batch gradient, and of peak memory to the size of the result."""
    name = model_name(source)
    yield from attempted("per-example gradients", lambda: timed(source, n, repeats), model=name)
    yield from attempted("memory of gradient_matrix", lambda: memory(source), model=name)


def timed(source: str | Path, n: int, repeats: int) -> Iterator[Row]:
    """Gradients of every example in three ways, compared with one batch gradient."""
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
    for name, values in seconds.items():
        yield {
            "name": f"{name} against one batch gradient",
            "model": model_name(source),
            **ratios(values, base),
            "aim": TIME_AIM if name == "per-example gradients" else "",
            "detail": f"{times(values, base)}; {n} rows of {task.context} + {task.target} tokens, "
            f"d = {space.dim:,}, {run_of(repeats)}",
        }


def memory(source: str | Path, megabytes: int = 400) -> Iterator[Row]:
    """Peak of a matrix of this size, above the peak of a single gradient."""
    d = ParamSpace.select(load(source).model).dim
    n = max(2, megabytes * 2**20 // (4 * d))
    one, many = (alone(__file__, "--model", source, "--peak-of", count) for count in (0, n))
    result = 4 * n * d
    yield {
        "name": "peak memory of gradient_matrix above one gradient's, against its result",
        "model": model_name(source),
        "ratio": (many - one) / result,
        "aim": MEMORY_AIM,
        "detail": f"{size(many - one)} for a result of {n} x {d:,}, {size(result)}; "
        f"one gradient peaks at {size(one)}",
    }


def peak(source: str | Path, count: int) -> int:
    """High-water mark in bytes of this process for one gradient, or a matrix of ``count``."""
    model = load(source).model
    task, space = RandomTokens(model.config.vocab_size), ParamSpace.select(model)
    batch = next(task.batches("train", 4, 0))
    gradient(model, task, batch, space=space)
    take = gradient_matrix if count else gradient
    extra = {"n": count, "batch_size": 4} if count else {"batch": batch}
    return high_water(lambda: take(model, task, space=space, **extra))


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
