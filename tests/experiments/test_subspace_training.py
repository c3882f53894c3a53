"""Training inside bases: the sweep, and what the rows add up to."""

import dataclasses
import math
from typing import Any

import pytest

from experiments.small import small
from frenet.experiments import EXPERIMENTS
from frenet.experiments.figures.names import label
from frenet.experiments.subspace_training.arms import climb
from frenet.experiments.subspace_training.findings import ALL, CHANCE, UNSWEPT

EXPERIMENT = EXPERIMENTS["subspace-training"]


@pytest.mark.parametrize("lowest", [-3, -1, 0, 1, 4])
def test_the_sweep_ends_between_two_neighbours(lowest: int) -> None:
    scores = climb(lambda i: float((i - lowest) ** 2), tries=20)
    assert min(scores, key=scores.__getitem__) == lowest
    assert {lowest - 1, lowest + 1} <= set(scores)
    assert len(scores) == abs(lowest) + 3 - (lowest > 0)


def test_the_sweep_has_an_end_and_goes_down_where_all_diverge() -> None:
    assert sorted(climb(lambda i: -float(i), tries=4)) == [0, 1, 2, 3]
    assert sorted(climb(lambda _: math.inf, tries=4)) == [-2, -1, 0, 1]
    assert climb(lambda i: math.inf if i > -3 else float(-i), tries=9)[-3] == 3.0


@pytest.fixture(scope="session")
def own(rows: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return rows["subspace-training"]


def table(rows: list[dict[str, Any]], name: str, **wanted: object) -> list[dict[str, Any]]:
    return [
        row
        for row in rows
        if row["table"] == name and all(row[key] == value for key, value in wanted.items())
    ]


def test_all_coordinates_at_the_runs_rate_are_the_run(own) -> None:
    (run,) = table(own, "run")
    (whole,) = table(own, "trained", basis=UNSWEPT)
    assert whole["stop"] == whole["steps"] == run["stop"]
    assert whole["regained"] == pytest.approx(whole["regained_steps"], abs=1e-5)
    assert whole["rate"] == 1.0
    ends = table(own, "curve", basis=UNSWEPT, step=run["stop"])
    assert ends[-1]["loss"] == pytest.approx(run["loss_end"], abs=1e-5)


def test_steps_and_numbers_moved_add_up(own) -> None:
    for row in table(own, "trained"):
        k, steps, basis = row["k"], row["steps"], row["basis"]
        if basis in (ALL, UNSWEPT):
            full = steps
            assert k > 10_000
        elif basis.startswith("moving"):
            full = sum(t % (2 * k) < k for t in range(steps))
        else:
            full = k if basis.endswith("from step k") else 0
        d = table(own, "trained", basis=ALL)[0]["k"]
        assert row["full_steps"] == full, basis
        assert row["moved"] == full * d + (steps - full) * k
        assert row["spent"] == {"prefix": k, "gradients": 8, "Adam-scaled gradients": 8}.get(
            basis, 0
        )


def test_chance_is_random_directions_with_as_many_full_steps(own) -> None:
    found = {row["basis"]: row for row in table(own, "trained", k=3)}
    assert set(found) == set(CHANCE)
    for name, row in found.items():
        assert row["chance"] == found[CHANCE[name]]["regained"]
        assert row["full_steps"] == found[CHANCE[name]]["full_steps"]


def test_the_rate_is_chosen_by_training_loss(own) -> None:
    for trained in table(own, "trained"):
        if trained["basis"] == UNSWEPT:
            continue
        where = {"basis": trained["basis"], "k": trained["k"]}
        tried = table(own, "rate", **where)
        (chosen,) = table(own, "rate", **where, chosen=True)
        assert trained["rate"] == chosen["rate"]
        losses = {row["rate"]: row["train_loss"] for row in tried if row["train_loss"] is not None}
        assert min(losses, key=losses.__getitem__) == chosen["rate"]
        ends = [min(row["rate"] for row in tried), max(row["rate"] for row in tried)]
        assert chosen["at_end"] == (chosen["rate"] in ends)


def test_every_curve_starts_at_the_damage(own) -> None:
    starts = {row["loss"] for row in table(own, "curve", step=0)}
    assert len(starts) == 1
    assert {row["moved"] for row in table(own, "curve", step=0)} == {0}
    count = len(table(own, "curve", basis="prefix"))
    assert count == small("subspace-training").looks + 1


def drawn_bases(chart) -> set[str]:
    """The bases of the points that a chart holds."""
    held = [row for rows in chart.to_dict()["datasets"].values() for row in rows]
    return {row["basis"] for row in held if "panel" in row}


@pytest.mark.parametrize("figure", EXPERIMENT.figures, ids=lambda figure: figure.id)
def test_figures_hold_every_basis(figure, own) -> None:
    named = set(map(label, {*CHANCE, ALL, UNSWEPT}))
    assert drawn_bases(figure.chart(table(own, figure.table))) == named


def test_what_cannot_be_run_is_refused() -> None:
    config = EXPERIMENT.presets["demo"]
    with pytest.raises(ValueError, match="no basis 'prefixes'; there are prefix, gradients"):
        EXPERIMENT.cells(dataclasses.replace(config, bases=("prefixes",)))
    with pytest.raises(ValueError, match=r"k=20 is above 0\.35 of the 40 steps .* up to 14"):
        EXPERIMENT.cells(dataclasses.replace(config, ks=(20,), steps=40))
