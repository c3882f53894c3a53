"""Training by transformers' Trainer with FrenetCallback, compared with training without it.

    python benchmarks/bench_trainer.py [--model FOLDER] [--steps 200] [--repeats 5] [--length 64]

Both train the same LoRA adapter on the same rows, in turns; the first ratio is the median of the
ratios of the turns. A short training has more measurements per step than a long one, since the
callback measures at the start, soon after it, and at the end. So the second ratio is for 1,000
steps, computed from the time of the callback's events and its number of measurements by default.
The aims are upper limits.
"""

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, default_data_collator

from frenet.experiments.watched_training import looks
from frenet.geometry import rng
from frenet.integrations.trainer import FrenetCallback
from timing import (
    STORIES,
    RandomTokens,
    Row,
    adapted,
    model_name,
    ratios,
    run_of,
    show,
    turns,
)
from units import duration

AIM = "at most 1.03"
BATCH_SIZE, LONG = 8, 1000
# The callback's default.
EVERY = 1000


class Timed(FrenetCallback):
    """A callback that sums the seconds of measurements, and of its other work in a step."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.looks: dict[int, float] = {}
        self.recording = 0.0
        for name in ("on_pre_optimizer_step", "on_optimizer_step", "on_step_end"):
            setattr(self, name, functools.partial(self._timed, getattr(self, name)))

    def _timed(self, event: Callable[..., None], *arguments: Any, **others: Any) -> None:
        start, looks = time.perf_counter(), sum(self.looks.values())
        event(*arguments, **others)
        looked = sum(self.looks.values()) - looks
        self.recording += time.perf_counter() - start - looked

    def _look(self, state: Any, control: Any) -> None:
        start = time.perf_counter()
        super()._look(state, control)
        if state.global_step not in self.looks:
            self.looks[state.global_step] = time.perf_counter() - start


def trainer(model: nn.Module, rows: list[dict[str, list[int]]], *, steps: int) -> Trainer:
    """A plain training of an adapter."""
    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        max_steps=steps,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=1e-4,
        logging_steps=50,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    return Trainer(
        model=model, args=arguments, train_dataset=rows, data_collator=default_data_collator
    )


def run(
    source: str | Path = STORIES, steps: int = 200, repeats: int = 5, length: int = 64
) -> Iterator[Row]:
    """Ratio of the time of a watched training to that of a plain one."""
    model, probe, space = adapted(source)
    draw = rng.generator(0, "bench", "training")
    ids = torch.randint(probe.vocabulary, (64, length), generator=draw).tolist()
    rows = [{"input_ids": row, "labels": row} for row in ids]
    watchers: list[Timed] = []

    def plain() -> None:
        with space.restored(model):
            trainer(model, rows, steps=steps).train()

    def watched() -> None:
        with space.restored(model), tempfile.TemporaryDirectory() as out:
            watchers.append(Timed([probe], out=Path(out) / "out", every=EVERY))
            training = trainer(model, rows, steps=steps)
            watchers[-1].attach(training)
            training.train()

    seconds = turns({"plain": plain, "watched": watched}, repeats)
    yield from summary(seconds, watchers, source=source, steps=steps, probe=probe, length=length)


def summary(
    seconds: dict[str, list[float]],
    watchers: list[Timed],
    *,
    source: str | Path,
    steps: int,
    probe: RandomTokens,
    length: int,
) -> Iterator[Row]:
    """Both ratios as rows of the table."""
    step = statistics.median(seconds["plain"]) / steps
    # The first measurement also checks the gradients.
    first = statistics.median(watcher.looks[0] for watcher in watchers)
    later = [found for watcher in watchers for t, found in watcher.looks.items() if t]
    look = statistics.median(later)
    each = statistics.median(watcher.recording for watcher in watchers) / steps
    count = len(looks(EVERY, LONG))
    where = (
        f"batch {BATCH_SIZE} of {length} tokens, one probe of {probe.context} + {probe.target} "
        f"tokens, {run_of(len(seconds['plain']))}"
    )
    yield {
        "name": f"{steps} steps of Trainer with FrenetCallback against without",
        "model": model_name(source),
        **ratios(seconds["watched"], seconds["plain"]),
        "aim": "",
        "detail": f"{len(watchers[-1].looks)} looks; {duration(step)} a step; {where}",
    }
    yield {
        "name": f"the same in {LONG:,} steps, {count} looks",
        "model": model_name(source),
        "ratio": 1 + (each + (first + look * (count - 1)) / LONG) / step,
        "aim": AIM,
        "detail": f"{duration(each)} a step, {duration(first)} the first look and {duration(look)} "
        f"each other, as long as {look / step:.1f} steps; {where}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=STORIES, help="model folder, or GGUF file")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--length", type=int, default=64)
    options = parser.parse_args()
    show(run(options.model, options.steps, options.repeats, options.length))
