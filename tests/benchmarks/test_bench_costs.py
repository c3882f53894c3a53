"""Costs that are read off a reproduction."""

from costs import measured
from frenet.experiments.reproduce.costs import Cost
from frenet.runs.forecast import Speed


def test_a_cost_is_the_mean_time_in_steps_and_the_largest_memory_without_the_weights():
    cells = [{"seconds": 30.0, "peak_mib": 700}, {"seconds": 50.0, "peak_mib": 900}]
    before = Cost(1, 1, weights=2.5, longest=263)
    assert measured(cells, Speed(0.5, 100.0), before) == Cost(80, 650, 2.5, 263)
