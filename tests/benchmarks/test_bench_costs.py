"""Costs that are read off a reproduction."""

import pytest

from costs import measured
from frenet.experiments.experiment import SYNTHETIC, Texts
from frenet.experiments.reproduce import Reproduction, parts
from frenet.experiments.reproduce.costs import Cost
from frenet.runs.forecast import Speed, work_of


def timed(part, seconds):
    """Timings of the first cells of a part."""
    cells = part.experiment.cells(part.config)
    return [
        {"cell": dict(cell.keys), "seconds": s, "peak_mib": 700 + i}
        for i, (cell, s) in enumerate(zip(cells, seconds, strict=False))
    ]


def test_a_cost_is_the_mean_time_in_steps_and_the_largest_memory_without_the_weights():
    (part,) = parts(Reproduction(networks=(SYNTHETIC,), experiments=("gradient-rank",)), "demo")
    before = Cost(1, 1, weights=2.5, longest=263)
    found = measured(part, timed(part, [30.0, 50.0]), Speed(0.5, 100.0), before)
    assert found == Cost(80, 701 - 250, 2.5, 263, passes=1.0, tokens=0.0)


def test_a_cost_of_texts_of_several_lengths_forecasts_the_time_that_they_took():
    names = ("plural", "past")
    wanted = Reproduction(networks=("a/model",), experiments=("recovery-basis",), only=names)
    (part,) = parts(wanted, "cpu")
    texts = {name: Texts(600, tokens, 60) for name, tokens in zip(names, (10.0, 40.0), strict=True)}
    speed = Speed(0.0, 100.0, 0.01, texts={"recovery-basis": texts})
    cells = part.experiment.cells(part.config)
    seconds = [100.0 if cell["task"] == "plural" else 400.0 for cell in cells]
    found = measured(part, timed(part, seconds), speed, Cost(1, 1, weights=2.5))
    assert (found.steps, found.passes, found.tokens) == (1000, 1.0, pytest.approx(25.0))
    works = [work_of(part, cell, speed, found) for cell in cells]
    assert [found.steps * w.share * w.step for w in works] == pytest.approx(seconds)
