"""The Lie bracket of a pair of tasks, compared with one gradient of the same batch.

    python benchmarks/bench_update_order.py [--model FOLDER] [--rows 16] [--repeats 7]

All are timed in one run, in turns, and a ratio is the median of the ratios of the turns. A bracket
is two gradients and two Hessian products, each at a new point, with the graph that it needs. The
measured difference of two orders is four gradients, and takes its steps in float64. Both tasks have
batches of one shape, so that a gradient of either takes as long.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from frenet.geometry import rng
from frenet.measure.gradients import gradient
from frenet.measure.lie_bracket import Minibatch, lie_bracket
from frenet.measure.update_order import gradient_step, order_difference
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticTask, SyntheticTransformer
from timing import (
    STORIES,
    Row,
    adapted,
    attempted,
    model_name,
    ratios,
    run_of,
    show,
    times,
    turns,
)

AIM = "at most 8"
BRACKET = "Lie bracket of a pair"


def against_gradient(
    name: str,
    model: nn.Module,
    space: ParamSpace,
    pair: tuple[Minibatch, Minibatch],
    repeats: int,
) -> Iterator[Row]:
    """Rows of one model."""
    first, second = pair

    def bracket(null: torch.Generator | None = None) -> object:
        return lie_bracket(model, first, second, space=space, check=False, null=null)

    seconds = turns(
        {
            "one": lambda: gradient(model, first.task, first.batch, space=space),
            BRACKET: bracket,
            f"{BRACKET}, with its null": lambda: bracket(rng.generator(0, "bench")),
            "measured difference of two orders": lambda: order_difference(
                model, first, second, gradient_step(1e-3), space=space
            ),
        },
        repeats,
    )
    one = seconds.pop("one")
    rows, width = first.batch["labels"].shape
    for what, values in seconds.items():
        yield {
            "name": f"{what} against one gradient",
            "model": name,
            **ratios(values, one),
            "aim": AIM if what == BRACKET else "",
            "detail": f"{times(values, one)}; d = {space.dim:,}, {rows} rows of {width} tokens, "
            f"{run_of(repeats)}",
        }


def synthetic(rows: int, repeats: int) -> Iterator[Row]:
    """All weights of the synthetic transformer, before training, which does not change the cost."""
    model = SyntheticTransformer().eval()
    tasks = SyntheticTask("reverse"), SyntheticTask("copy")
    first, second = (Minibatch(task, next(task.batches("train", rows, 0))) for task in tasks)
    space = ParamSpace.select(model)
    yield from against_gradient("synthetic", model, space, (first, second), repeats)


def adapter(source: str | Path, rows: int, repeats: int) -> Iterator[Row]:
    """An adapter on a language model."""
    model, task, space = adapted(source)
    tasks = task, replace(task, name="other tokens")
    first, second = (
        Minibatch(one, next(one.batches("train", rows, seed))) for seed, one in enumerate(tasks)
    )
    yield from against_gradient(model_name(source), model, space, (first, second), repeats)


def run(source: str | Path = STORIES, repeats: int = 7, *, rows: int = 16) -> Iterator[Row]:
    """On the synthetic transformer, and on an adapter."""
    if source == STORIES:
        yield from attempted(BRACKET, lambda: synthetic(rows, repeats), model="synthetic")
    yield from attempted(BRACKET, lambda: adapter(source, rows, repeats), model=model_name(source))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=STORIES, help="model folder, or GGUF file")
    parser.add_argument("--rows", type=int, default=16, help="examples of each task")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    show(run(options.model, options.repeats, rows=options.rows))
