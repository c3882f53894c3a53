"""A planned search, compared with the best sigma of a dense sweep at the same budget.

    python benchmarks/bench_plan.py [--searches 12]

Several networks have a damaged task. Every search selects on its own batch, is planned for it, and
runs at the planned sigma and at every sigma of a grid. The figure is the mean held-out gain of the
planned searches over that of the best single sigma of the grid. The best of several noisy means is
biased upwards, so the figure is slightly too low. Plans are those of the command line; another
row measures their cost.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from frenet.experiments.best_of_n import Config
from frenet.experiments.setup.damage import damaged
from frenet.experiments.setup.networks import build
from frenet.methods.candidates import Candidates, Noise
from frenet.methods.evaluation import Evaluator
from frenet.methods.local_model import Effort, survey
from frenet.methods.plan import plan
from frenet.methods.search import Selection, drop_duplicates
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, Task, repeatable
from timing import STORIES, Row, adapted, model_name, ratios, run_of, show, times, turns

BUDGET, TEST, TASK = 64, 1024, "reverse"
# Examples of a selection batch whose plan is timed.
ROWS = 64
# Multiples of the mean planned sigma.
GRID = tuple(2.0 ** (i / 3) for i in range(-7, 6))


class Setup(NamedTuple):
    """The inputs of one search."""

    model: nn.Module
    task: Task
    space: ParamSpace
    select: Batch
    test: Batch


def gain(setup: Setup, sigma: float, seed: int) -> float:
    """Held-out gain of the winner of one search."""
    model, task, space, select, test = setup
    noise = Noise(sigma, seed=seed)
    scores = Evaluator(space, noise, "loss", select)(model, range(BUDGET))
    with measuring(model), torch.no_grad():
        before = float(task.loss(model, test))
        with Candidates(model, space, noise) as candidates:
            candidates.put(max(range(BUDGET), key=lambda i: scores[i]))
            return before - float(task.loss(model, test))


def case(seed: int, searches: int, *, size: int = 64) -> tuple[float, float]:
    """Mean gain of planned searches, and of the best sigma of the grid, around one network."""
    config = Config(only=(TASK,), depth=0.3)
    network = build(config, space="full", seed=seed)
    task, model, space = network.tasks[TASK], network.model, network.space
    with damaged(network, task, config, protocol="relative-noise", seed=seed):
        test = next(task.batches("test", TEST, seed))
        drawn = []
        for search in range(searches):
            selection = Selection(select_size=size, seed=1000 * seed + search)
            local_model = survey(
                model, task, space, selection=selection, seed=search, effort=Effort.within(BUDGET)
            )
            best = plan(local_model, budget=BUDGET).best
            select = drop_duplicates(next(repeatable(task, "select", size, selection.seed)))
            drawn.append((Setup(model, task, space, select, test), best.sigma if best else 0.0))
        unit = statistics.mean(sigma for _, sigma in drawn if sigma)
        planned = [
            gain(setup, sigma, i) if sigma else 0.0 for i, (setup, sigma) in enumerate(drawn)
        ]
        swept = [
            statistics.mean(gain(setup, factor * unit, i) for i, (setup, _) in enumerate(drawn))
            for factor in GRID
        ]
    return statistics.mean(planned), max(swept)


def cost(source: str | Path, repeats: int) -> Row:
    """Time of a plan over that of the candidates that it plans."""
    model, task, space = adapted(source)
    selection = Selection(select_size=ROWS)
    select = next(task.batches("select", ROWS, 0))

    def planned() -> None:
        effort = Effort.within(BUDGET)
        plan(survey(model, task, space, selection=selection, effort=effort), budget=BUDGET)

    def searched() -> None:
        Evaluator(space, Noise(0.01), "loss", select)(model, range(BUDGET))

    seconds = turns({"plan": planned, "search": searched}, repeats)
    return {
        "name": "a plan against the search that it plans",
        "model": model_name(source),
        **ratios(seconds["plan"], seconds["search"]),
        "aim": "at most 1",
        "detail": f"{times(seconds['plan'], seconds['search'])}; d = {space.dim:,}, {BUDGET} "
        f"candidates on {ROWS} x {task.context + task.target} tokens, {run_of(repeats)}",
    }


def run(searches: int = 6, networks: int = 3, repeats: int = 5) -> Iterator[Row]:
    """The cost of a plan, and one row per network."""
    yield cost(STORIES, repeats)
    for seed in range(networks):
        planned, best = case(seed, searches)
        yield {
            "name": "held-out gain of planned searches against the best sigma of a sweep",
            "model": f"synthetic {seed}",
            "ratio": planned / best,
            "aim": "at least 0.9",
            "detail": f"{planned:.3f} against {best:.3f} nats per token; task {TASK} damaged, "
            f"{BUDGET} candidates, {searches} searches, {len(GRID)} sigmas",
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=12)
    show(run(parser.parse_args().searches))
