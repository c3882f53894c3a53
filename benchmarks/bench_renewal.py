"""How often the advice says to renew projections of gradients, against a look at every step.

    python benchmarks/bench_renewal.py [--steps 60]

Small trainings are watched at every step. The advice is made from the looks that a training has by
default (1, 5, 10, 20 and 50 steps). The first figure is the share of matrices whose half-life at
the dense looks lies in the bracket of the default ones. The second is what projections hold on
average until they are made anew after the advised number of steps, over a fresh one, both above
chance. A training with a tiny rate does not make a projection stale, and the right advice is none.
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
from frenet.experiments.setup.brackets import life_of
from frenet.experiments.setup.networks import build
from frenet.experiments.watched_training import looks
from frenet.experiments.watched_training.advice import median_life, renewal
from frenet.integrations.own_loop import watch
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


def training(name: str, rows: Sequence[Stored], steps: int) -> Iterator[Row]:
    """The advice from the default looks, and what the dense ones say of it."""
    by_matrix: dict[str, list[Stored]] = {}
    for row in rows:
        if row["table"] == "projection":
            by_matrix.setdefault(str(row["matrix"]), []).append(row)
    default = {*looks(EVERY, steps)}
    dense = {name: life_of(found, lag="step") for name, found in by_matrix.items()}
    coarse = {
        name: life_of([row for row in found if row["step"] in default], lag="step")
        for name, found in by_matrix.items()
    }
    pairs = [(one.steps, two.steps) for m in by_matrix if (one := coarse[m]) and (two := dense[m])]
    inside = [
        (exact.high is None and given.high is None)
        or (exact.high is not None and given.low < exact.high <= (given.high or 0))
        for given, exact in pairs
    ]
    life = median_life([given for given, _ in pairs])
    exactly = median_life([exact for _, exact in pairs])
    advice = renewal(life, "them", control=None)
    yield {
        "name": "matrices whose half-life at every step lies in the bracket of the default looks",
        "model": f"synthetic, {name}",
        "ratio": statistics.mean(inside),
        "aim": "at least 0.9",
        "detail": f"{sum(inside)} of {len(inside)} projections of rank {RANK}; {advice}; median at "
        f"every step: {exactly.in_words('step')}",
    }
    medians = {
        int(row["step"] or 0): float(row["ratio"] or 0)
        for row in rows
        if row["table"] == "projections"
    }
    for end in (life.low, life.high):
        if end and life.high is not None:
            held = statistics.mean(medians[step] for step in range(int(end)))
            yield {
                "name": "energy above chance that projections hold until they are made anew",
                "model": f"synthetic, {name}",
                "ratio": held,
                "aim": "at least 0.5",
                "detail": f"made anew every {end:.0f} steps; 1 is a fresh one at every step",
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
