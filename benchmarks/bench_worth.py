"""The advised end of a search, compared with the best end and sigma of a dense sweep.

    python benchmarks/bench_worth.py [--searches 4]

Several networks and tasks are damaged. Every search selects on its own batch and is planned for it
with a worth: W nats per token for 100 candidates. What counts is the held-out gain minus W N / 100,
in the mean over all sets of N of the candidates. The figure is its mean for the advised N and
sigma, over that of the best single pair of the sweep: every N up to the budget, at every sigma of a
grid, on the same searches. A second figure compares the advised N alone, with the best N at the
same sigmas. The best of several noisy means is biased upwards, so both are slightly too low. Around
networks without damage a search is not worth it; the row says how often the advice is that.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import comb
from torch import nn

from frenet.experiments.best_of_n import Config
from frenet.experiments.setup.damage import damaged
from frenet.experiments.setup.networks import build
from frenet.methods.candidates import Noise
from frenet.methods.evaluation import Evaluator
from frenet.methods.local_model import Effort, LocalModel, survey
from frenet.methods.plan import BLOCK, plan
from frenet.methods.selection import Selection, drop_duplicates
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, Task, repeatable
from timing import Row, show

BUDGET, TEST, SIZE = 128, 256, 32
# Nats per token for 100 candidates.
WORTHS = (0.05, 0.3)
# Multiples of the mean planned sigma.
GRID = (0.5, 1.0, 2.0)
# Name, task, and settings of the network.
CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("synthetic, reverse", "reverse", {}),
    ("synthetic, sort", "sort", {}),
    ("small synthetic, copy", "copy", {"width": 32, "train_steps": 300}),
)


class Setup(NamedTuple):
    """The inputs of one search."""

    model: nn.Module
    task: Task
    space: ParamSpace
    select: Batch
    test: Batch
    seed: int


def gains(setup: Setup, sigma: float, count: int) -> list[float]:
    """Expected held-out gain of the best of N candidates, for N = 1 .. count.

    The mean over all sets of N of the same ``count`` candidates: the r-th best of them wins
    C(count - r, N - 1) of the C(count, N) sets.
    """
    model, task, space, select, test, seed = setup
    noise = Noise(sigma, seed=seed)
    scores, held_out = (
        np.array(Evaluator(space, noise, "loss", batch).decide(model)(model, range(count)))
        for batch in (select, test)
    )
    with measuring(model), torch.no_grad():
        found = held_out[np.argsort(-scores)] + float(task.loss(model, test))
    behind = count - 1 - np.arange(count)
    return [float(found @ comb(behind, n - 1) / comb(count, n)) for n in range(1, count + 1)]


def net(found: Sequence[float], n: int, worth: float) -> float:
    """The gain of n candidates minus their price; 0 without a search."""
    return found[n - 1] - worth * n / BLOCK if n else 0.0


def case(
    name: str,
    task_name: str,
    shape: dict[str, Any],
    searches: int,
    *,
    budget: int,
    harmed: bool = True,
) -> Iterator[Row]:
    """One row for each worth, around one network."""
    config = Config(only=(task_name,), depth=0.3, **shape)
    network = build(config, space="full", seed=0)
    task, model, space = network.tasks[task_name], network.model, network.space
    harm = damaged(network, task, config, protocol="relative-noise", seed=0)
    with harm if harmed else nullcontext():
        test = next(task.batches("test", TEST, 0))
        drawn: list[tuple[Setup, LocalModel]] = []
        for search in range(searches):
            selection = Selection(select_size=SIZE, seed=search)
            select = drop_duplicates(next(repeatable(task, "select", SIZE, selection.seed)))
            local_model = survey(
                model, task, space, selection=selection, seed=search, effort=Effort.within(budget)
            )
            drawn.append((Setup(model, task, space, select, test, search), local_model))
        yield from _rows(drawn, budget, name, harmed=harmed)


def _rows(
    drawn: Sequence[tuple[Setup, LocalModel]], budget: int, name: str, *, harmed: bool
) -> Iterator[Row]:
    plans = {w: [plan(m, budget=budget, worth=w) for _, m in drawn] for w in WORTHS}
    whole = [found.best.sigma for _, m in drawn if (found := plan(m, budget=budget)).best]
    unit = statistics.mean(whole) if whole else 1e-3
    swept = [[gains(setup, factor * unit, budget) for setup, _ in drawn] for factor in GRID]
    for worth, advised in plans.items():
        curves = [
            gains(setup, made.best.sigma if made.best else unit, budget)
            for (setup, _), made in zip(drawn, advised, strict=True)
        ]
        counts = [made.best.candidates if made.best else 0 for made in advised]
        own = statistics.mean(net(f, n, worth) for f, n in zip(curves, counts, strict=True))
        row = {"model": name, "aim": "at least 0.9"}
        said = (
            f"nats per token net of {worth:g} for {BLOCK} candidates; advised N "
            f"{', '.join(map(str, sorted(counts)))} of {budget}; {len(drawn)} searches"
        )
        if not harmed:
            none = counts.count(0) / len(counts)
            yield row | {
                "name": "searches that the advice calls not worth it",
                "ratio": none,
                "detail": f"{own:.4f} {said}",
            }
            continue
        for best, against in (
            (_best(swept, worth), f"the best N and sigma of a sweep of {len(GRID)} sigmas"),
            (_best([curves], worth), "the best N at the same sigmas"),
        ):
            share = {"ratio": own / best} if best > 0 else {"why": "no search of the sweep pays"}
            yield (
                row
                | share
                | {
                    "name": f"net gain at the advised end of a search against {against}",
                    "detail": f"{own:.4f} against {best:.4f} {said}",
                }
            )


def _best(swept: Sequence[Sequence[Sequence[float]]], worth: float) -> float:
    """The largest net gain, averaged over searches, of any sigma and N; 0 is that of no search."""
    return max(
        statistics.mean(net(found, n, worth) for found in searches)
        for searches in swept
        for n in range(len(searches[0]) + 1)
    )


def run(searches: int = 4, networks: int = 3, budget: int = BUDGET) -> Iterator[Row]:
    """Four rows for each network and task, and those of a network without damage."""
    for name, task, shape in CASES[:networks]:
        yield from case(name, task, shape, searches, budget=budget)
    name, task, shape = CASES[0]
    yield from case(f"{name}, not damaged", task, shape, searches, budget=budget, harmed=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=4)
    show(run(parser.parse_args().searches))
