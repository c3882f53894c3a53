"""Recorded training, compared with the same plain training loop in float32, per step.

    python benchmarks/bench_trajectory.py [--model FOLDER] [--steps 10] [--repeats 15]

Both train the same LoRA adapter on the same batches with Adam and clipping, in turns; the ratio is
the median of the ratios of the turns; the aim is an upper limit.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from frenet.measure.trajectory import Training, train_and_record
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch
from timing import (
    STORIES,
    RandomTokens,
    Row,
    adapted,
    model_name,
    ratios,
    run_of,
    show,
    times,
    turns,
)

AIM = "at most 1.05"
RATE = 1e-4


@dataclass(frozen=True)
class Prepared(RandomTokens):
    """The same batches each time, made before the timing."""

    ready: Sequence[Batch] = ()

    def batches(self, split: str, batch_size: int, seed: int) -> Iterator[Batch]:
        return itertools.cycle(self.ready)


def plain(model: nn.Module, task: Prepared, space: ParamSpace, *, steps: int) -> list[float]:
    """A training loop without a recording."""
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
) -> Iterator[Row]:
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
    recording, plainly = ([t / steps for t in seconds[key]] for key in ("recorded", "plain"))
    yield {
        "name": "recorded training against the same plain training",
        "model": model_name(source),
        **ratios(recording, plainly),
        "aim": AIM,
        "detail": f"{times(recording, plainly)} a step; batch {batch_size} of {task.context} + "
        f"{task.target} tokens, d = {space.dim:,}, {run_of(repeats)} runs of {steps} steps",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=STORIES, help="model folder, or GGUF file")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    show(run(options.model, options.steps, options.repeats))
