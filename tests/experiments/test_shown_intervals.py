"""Intervals in figures: those of shares, cosines and divergences stay in their range."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frenet.experiments import gradient_rank, recovery_basis, step_vs_vector, task_vector_range
from frenet.experiments.intervals import over_seeds, series_over_seeds
from frenet.experiments.steering_effect.figures import cost_chart
from frenet.runs import read_run
from frenet.statistics.intervals import bounded_interval, mean_interval, positive_interval

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
PILOT = RESULTS.parent / "pilot"
VALUES = [0.02, 0.9, 1.0]
ROWS = [{"seed": s, "a": "x", "value": v, "other": 0.5 * v} for s, v in enumerate(VALUES)]


@pytest.mark.parametrize(
    ("least", "most", "interval"),
    [
        (None, 1.0, mean_interval),
        (0.0, 1.0, bounded_interval),
        (-1.0, 1.0, lambda values: bounded_interval(values, least=-1.0)),
        (0.0, math.inf, positive_interval),
    ],
)
def test_the_range_of_a_quantity_is_that_of_its_interval(
    least: float | None, most: float, interval: Callable[[list[float]], Any]
) -> None:
    (row,) = over_seeds(ROWS, by=("a",), value="value", least=least, most=most)
    wanted = interval(VALUES)
    assert (row["value"], row["low"], row["high"]) == pytest.approx(tuple(wanted[:3]))


def test_all_series_of_a_chart_have_the_range() -> None:
    names = {"value": "one", "other": "two"}
    rows = series_over_seeds(ROWS, by=("a",), values=names, least=0.0)
    for row, values in zip(rows, (VALUES, [0.5 * v for v in VALUES]), strict=True):
        assert (row["low"], row["high"]) == pytest.approx(tuple(bounded_interval(values)[1:3]))


def ends(chart: object) -> list[float]:
    """Both ends of every interval in the data of a chart."""
    data = chart.to_dict()["datasets"].values()  # type: ignore[attr-defined]
    rows = [row for part in data for row in part]
    return [row[end] for row in rows for end in ("low", "high") if row.get(end) is not None]


# The figures of shares and cosines in the pilot's runs, three seeds each.
SHOWN = [
    (gradient_rank, ("energy", "tasks"), 0.0),
    (recovery_basis, ("bases", "prefix"), 0.0),
    (step_vs_vector, ("layers", "chosen"), -1.0),
    (task_vector_range, ("inside",), 0.0),
]


@pytest.mark.parametrize(("experiment", "names", "least"), SHOWN)
@pytest.mark.parametrize("network", ["synthetic", "gpt2"])
def test_in_the_figures_of_stored_runs(
    network: str, experiment: Any, names: tuple[str, ...], least: float
) -> None:
    declared = experiment.EXPERIMENT
    name = f"{network}-{declared.name}.run.jsonl.gz"
    rows = read_run(next(file for file in (PILOT / name, RESULTS / name) if file.exists())).rows
    figures = {figure.id: figure for figure in declared.figures}
    for name in names:
        figure = figures[name]
        found = ends(figure.chart([row for row in rows if row["table"] == figure.table]))
        assert found
        assert least <= min(found) <= max(found) <= 1


def test_divergences_are_never_negative() -> None:
    base = {"push": "own", "behaviour": "b", "way": "vector"}
    rows = [base | {"seed": s, "kl": v, "kl_random": 2 * v} for s, v in enumerate((0.0, 0.1, 2.0))]
    found = ends(cost_chart(rows))
    assert len(set(found)) == 4
    assert min(found) > 0
