"""Recorded training against the same plain training loop in float32, per step.

    python benchmarks/bench_trajectory.py [--model FOLDER] [--steps 10] [--repeats 15]

Both train the same LoRA adapter on the same batches with Adam and clipping, in turns; the ratio is
the median of the ratios of the turns. ``run`` returns rows for the table of all benchmarks; the
aim is an upper limit.
"""

import argparse
import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench_gradients import STORIES, RandomTokens, adapted, ratio, show, turns
from frenet.measure.trajectory import Training, train_and_record
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch

AIM = "at most 1.05"
RATE = 1e-4


@dataclass(frozen=True)
class Prepared(RandomTokens):
    """The same batches each time, made beforehand."""

    ready: Sequence[Batch] = ()

    def batches(self, split: str, batch_size: int, seed: int) -> Iterator[Batch]:
        return itertools.cycle(self.ready)


def plain(model: nn.Module, task: Prepared, space: ParamSpace, *, steps: int) -> list[float]:
    """What one would write without recording."""
    parameters = space.parameters(model)
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    losses = []
    for _, batch in zip(range(steps), task.ready, strict=False):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    optimizer.zero_grad()
    return losses


def run(
    source: str | Path = STORIES, steps: int = 10, repeats: int = 15, batch_size: int = 8
) -> list[dict[str, Any]]:
    """Ratio of the time of recorded training to that of plain training."""
    model, tokens, space = adapted(source)
    ready = list(itertools.islice(tokens.batches("train", batch_size, 0), steps))
    task = Prepared(tokens.vocabulary, ready=ready)
    training = Training(f"adam:{RATE}", batch_size=batch_size, steps=steps)

    def recorded() -> None:
        with space.restored(model):
            train_and_record(model, task, training, space=space)

    def unrecorded() -> None:
        with space.restored(model):
            plain(model, task, space, steps=steps)

    seconds = turns({"plain": unrecorded, "recorded": recorded}, repeats)
    each = {name: 1e3 * statistics.median(values) / steps for name, values in seconds.items()}
    return [
        {
            "name": "recorded training against the same plain training",
            "ratio": ratio(seconds["recorded"], seconds["plain"]),
            "aim": AIM,
            "detail": f"{each['recorded']:.2f} ms a step against {each['plain']:.2f} ms; "
            f"{Path(source).name}, batch {batch_size} of {task.context} + {task.target} tokens, "
            f"d = {space.dim:,}, {torch.get_num_threads()} threads, median of {repeats} runs of "
            f"{steps} steps",
        }
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=STORIES, help="model folder, or GGUF file")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    show(run(options.model, options.steps, options.repeats))
