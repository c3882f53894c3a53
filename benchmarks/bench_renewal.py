"""How often the advice says to renew projections of gradients, against a look at every step.

    python benchmarks/bench_renewal.py [--steps 60]

Small trainings are watched at every step. The advice is made from the looks that a training has by
default (1, 5, 10, 20 and 50 steps). The first figure is the share of matrices whose gap at the
dense looks lies in the bracket of the default ones. The others are what projections hold of the
energy above chance in fresh ones, by the dense looks, if they are made anew as advised: at the
earlier end of the bracket, which should hold what the advice aims at, and at the later one. If the
advice is not to renew, that is over the whole training. A training with a tiny rate does not make
a projection stale, and that advice is right.
"""

import argparse
import logging
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frenet.experiments.best_of_n import Config
from frenet.experiments.experiment import Row as Stored
from frenet.experiments.setup.networks import build
from frenet.experiments.watched_training import looks
from frenet.experiments.watched_training.advice import (
    HELD,
    median_gap,
    projection_gap,
    renewal,
)
from frenet.integrations.own_loop import watch
from frenet.measure.bracket import Bracket
from frenet.network.synthetic.model import SyntheticTask
from frenet.network.tasks import Task
from frenet.runs import read_run
from timing import Row, show

RANK, N, EVERY = 4, 8, 1000
# Name, task, optimiser and rate.
TRAININGS: tuple[tuple[str, str, Callable[..., torch.optim.Optimizer], float], ...] = (
    ("AdamW 1e-3, task descending", "descending", torch.optim.AdamW, 1e-3),
    ("AdamW 1e-4, task descending", "descending", torch.optim.AdamW, 1e-4),
    ("SGD 0.1, task predecessor", "predecessor", torch.optim.SGD, 0.1),
    ("AdamW 1e-8, task descending", "descending", torch.optim.AdamW, 1e-8),
)


def rows_of(model: nn.Module, task: Task, optimizer: Any, steps: int) -> list[Stored]:
    """The rows of a training that is watched at every step."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        with watch(
            model, optimizer, [task], out=out, every=1, k=2, n=N, projection_rank=RANK, steps=steps
        ):
            model.train()
            for _, batch in zip(range(steps), task.batches("train", 32, 0), strict=False):
                optimizer.zero_grad()
                task.loss(model, batch).backward()
                optimizer.step()
        return read_run(out).rows


def holds(given: Bracket, exact: Bracket) -> bool:
    """Whether one bracket has the end of another with looks at every step."""
    if given.high is None or exact.high is None:
        return given.high == exact.high
    return given.low < exact.high <= given.high


def training(name: str, rows: Sequence[Stored], steps: int) -> Iterator[Row]:
    """The advice from the default looks, and what the dense ones say of it."""
    by_matrix: dict[str, list[Stored]] = {}
    for row in rows:
        if row["table"] == "projection":
            by_matrix.setdefault(str(row["matrix"]), []).append(row)
    default = {*looks(EVERY, steps)}
    dense = [gap for found in by_matrix.values() if (gap := projection_gap(found))]
    coarse = [
        gap
        for found in by_matrix.values()
        if (gap := projection_gap([row for row in found if row["step"] in default]))
    ]
    inside = [holds(given.steps, exact.steps) for given, exact in zip(coarse, dense, strict=True)]
    advised = median_gap(coarse)
    about = {"model": f"synthetic, {name}"}
    yield about | {
        "name": "matrices whose gap at every step lies in the bracket of the default looks",
        "ratio": statistics.mean(inside),
        "aim": "at least 0.9",
        "detail": f"{sum(inside)} of {len(inside)} projections of rank {RANK}; "
        f"{renewal(advised, several=True, control=None)}; median at every step: "
        f"{median_gap(dense).steps.in_words('step')}",
    }
    low, high, _ = advised.steps
    aim = f"at least {HELD:g}"
    ends = [(low, aim), (high, "")] if high is not None else [(steps + 1, aim)]
    for end, aimed in ends:
        if end:
            held = statistics.median(
                gap.held
                for found in by_matrix.values()
                if (gap := projection_gap([row for row in found if int(row["step"] or 0) < end]))
            )
            yield about | {
                "name": "energy above chance that projections hold until they are made anew",
                "ratio": held,
                "aim": aimed,
                "detail": f"gap in steps: {end:.0f}"
                if end <= steps
                else f"kept for all {steps} steps",
            }


def run(steps: int = 60, trainings: int = len(TRAININGS)) -> Iterator[Row]:
    """Two or three rows for each training."""
    logging.getLogger("frenet").setLevel(logging.ERROR)
    for name, rule, optimiser, rate in TRAININGS[:trainings]:
        model = build(Config(only=("reverse",)), space="full", seed=0).model
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        rows = rows_of(model, SyntheticTask(rule), optimiser(model.parameters(), lr=rate), steps)
        yield from training(name, rows, steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    show(run(parser.parse_args().steps))
