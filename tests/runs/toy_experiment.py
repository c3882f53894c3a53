"""A quick experiment with cells that misbehave on request; importable by worker processes."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frenet.experiments.experiment import (
    Cell,
    Claim,
    Column,
    Experiment,
    Figure,
    Finding,
    Row,
    Rows,
)
from frenet.statistics.intervals import Estimate


@dataclass(frozen=True)
class Config:
    """Cells that work, fail, sleep or die."""

    model: str = "synthetic"
    """Where the network comes from."""
    tasks: tuple[str, ...] = ("copy", "sort", "count")
    """Tasks; 'fail', 'mistake', 'kill', 'beside', 'noisy' and 'odd' misbehave."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds."""
    seconds: float = 0.0
    """Time a cell takes."""
    k: int = 3
    """Rows of a cell."""
    deep: bool = False
    """A switch."""
    limit: int | None = None
    """An optional number."""


def cells(config: Config) -> list[Cell]:
    """One cell for each seed and task."""
    return [Cell((("seed", s), ("task", t))) for s in config.seeds for t in config.tasks]


def mark(what: str) -> int:
    """Leave a mark for a test; return how many of the same there are now."""
    if "TOY_MARKS" not in os.environ:
        return 0
    folder = Path(os.environ["TOY_MARKS"])
    (folder / f"{what}~{time.monotonic_ns()}~{os.getpid()}").touch()
    return len(list(folder.glob(f"{what}~*")))


def prepare(config: Config, cell: Cell) -> None:
    """Fails for seed 13, says so for seed 14."""
    mark(f"prepare-{cell['seed']}")
    if cell["seed"] == 13:
        raise ArithmeticError("seed 13 cannot be prepared")


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows from torch sums that depend on the number of threads."""
    import torch

    from frenet.runs.files import RunFolderError

    seed, task = cell["seed"], cell["task"]
    calls = mark(f"run-{seed}-{task}")
    draw = torch.Generator().manual_seed(seed)
    for i in range(config.k):
        if task == "fail" and i == 1:
            raise FloatingPointError(f"loss is nan at step {i}, task {task}")
        if task == "mistake":
            raise RunFolderError("no such task file: words.jsonl")
        value = torch.randn(200_000, generator=draw).sum().item()
        time.sleep(config.seconds / config.k)
        loss = float("nan") if i == 2 else value
        row: Row = {"table": "losses", "seed": seed, "task": task, "step": i, "loss": loss}
        yield {**row, "null": 0.1 + i, **_misbehave(cell, calls)}


def _misbehave(cell: Cell, calls: int) -> dict[str, Any]:
    """What some cells do instead of giving rows."""
    import torch

    task = cell["task"]
    if task == "kill":
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "beside" and calls == 1:  # until the worker beside it is killed
        time.sleep(30)
    if task == "noisy":
        print("a library that prints \N{CHECK MARK}")
    if task == "odd":
        return {"loss": torch.tensor(1.0)}
    return {}


def decide(rows: Rows) -> Finding:
    """The mean of the losses of seed 0."""
    losses = [float(row["loss"] or 0.0) for row in rows if row["seed"] == 0]
    estimate = Estimate(sum(losses) / len(losses), float("-inf"), None, len(losses))
    return Finding("T1", "undecided", "loss", estimate, "null", Estimate(0.1), "it is a toy")


EXPERIMENT = Experiment(
    name="toy-sums",
    question="Do sums add up?",
    claims=(Claim("T1", "Sums add up", "77%", "never", decide, "losses"),),
    config=Config,
    cells=cells,
    run=run,
    tables={
        "losses": (
            Column("seed", "", "seed", "key"),
            Column("task", "", "task", "key"),
            Column("step", "", "step", "key"),
            Column("loss", "nats", "loss", "measure", "null"),
            Column("null", "nats", "null", "reference"),
        )
    },
    figures=(Figure("losses", "Losses", "Losses by step.", "losses", lambda rows: None),),
    presets={
        "smoke": Config(tasks=("copy",), seeds=(0,)),
        "demo": Config(),
        "cpu": Config(tasks=("copy", "sort", "count", "max")),
    },
    prepare=prepare,
)


def main() -> None:
    """Run the command line with this experiment alone, for tests in a separate process."""
    import sys

    import toy_experiment  # functions of this main module could not be found by workers

    import frenet.experiments
    from frenet.cli import main as cli

    frenet.experiments.EXPERIMENTS = {"toy-sums": toy_experiment.EXPERIMENT}
    sys.exit(cli())


if __name__ == "__main__":
    main()
