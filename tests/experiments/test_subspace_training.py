"""Training inside bases: the sweep, what the rows add up to, and the rules of S1 and S2."""

import dataclasses
import math
from typing import Any

import pytest

from experiments.small import small
from frenet.experiments import EXPERIMENTS
from frenet.experiments.subspace_training.arms import climb
from frenet.experiments.subspace_training.findings import (
    ALL,
    CHANCE,
    UNSWEPT,
    at_k,
    fixed_prefix,
    refreshed_prefix,
)

EXPERIMENT = EXPERIMENTS["subspace-training"]
D = 28_096


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
    assert drawn_bases(figure.chart(table(own, figure.table))) == {*CHANCE, ALL, UNSWEPT}


def test_what_cannot_be_run_is_refused() -> None:
    config = EXPERIMENT.presets["demo"]
    with pytest.raises(ValueError, match="no basis 'prefixes'; there are prefix, gradients"):
        EXPERIMENT.cells(dataclasses.replace(config, bases=("prefixes",)))
    with pytest.raises(ValueError, match=r"k=20 is above 0\.35 of the 40 steps .* up to 14"):
        EXPERIMENT.cells(dataclasses.replace(config, ks=(20,), steps=40))


def shares(basis: str, values: list[float], **changes: object) -> list[dict[str, Any]]:
    base = {
        "table": "trained",
        "space": "full",
        "task": "a",
        "protocol": "p",
        "optimizer": "adam:1",
    }
    more = {"basis": basis, "k": 10, "steps": 50, "stop": None, "spent": 10, "regained_steps": 0.1}
    return [base | more | {"seed": s, "regained": v} | changes for s, v in enumerate(values)]


GRADIENTS = [0.50, 0.60, 0.70]


@pytest.mark.parametrize(
    ("prefix", "verdict"),
    [
        ([0.60, 0.70, 0.81], "supported"),
        ([0.40, 0.50, 0.61], "contradicted"),
        ([0.90, 0.60, 0.50], "undecided"),
        ([0.90], "undecided"),
    ],
)
def test_s1_compares_seed_by_seed(prefix: list[float], verdict: str) -> None:
    """Differences of 0.1 are decided though the shares themselves spread by more."""
    rows = shares("prefix", prefix) + shares("gradients", GRADIENTS) + shares("random", [0.0] * 3)
    finding = fixed_prefix(rows)
    assert finding.verdict == verdict
    assert finding.reference == "share regained inside gradients"


def test_s1_at_equality_and_at_its_own_dimension() -> None:
    """A difference of 0 decides nothing; more than 10 directions are not looked at."""
    rows = shares("prefix", GRADIENTS) + shares("gradients", GRADIENTS)
    finding = fixed_prefix(rows)
    assert (finding.verdict, "k = 10" in finding.quantity) == ("undecided", True)
    larger = shares("prefix", [0.9] * 3, k=11) + shares("gradients", [0.1] * 3, k=11)
    assert fixed_prefix(rows + larger) == finding
    smaller = shares("prefix", [0.9] * 3, k=9) + shares("gradients", [0.1] * 3, k=9)
    assert fixed_prefix(rows + smaller).verdict == "undecided"


def test_the_notes_of_s1_and_s2_hold_every_basis_and_every_case() -> None:
    rows = shares("prefix", [0.8] * 3, stop=20) + shares("gradients", [0.5] * 3, spent=30)
    rows += shares("Adam-scaled gradients", [0.25] * 3) + shares("random", [0.1] * 3)
    rows += shares("prefix from step k", [0.5] * 3) + shares("moving prefix", [0.75] * 3)
    rows += shares("random from step k", [0.25] * 3) + shares("moving random", [0.5] * 3)
    rows += [
        {"table": "run", "seed": s, "status": status, "left_out": left_out}
        for s, (status, left_out) in enumerate(
            (("recovered", "10"), ("recovered", "10,5"), ("not recovered", ""))
        )
    ]
    rows += [{"table": "rate", "chosen": True, "at_end": end} for end in (True, False, False)]
    rows += [{"table": "rate", "chosen": False, "at_end": True}]
    fixed, moving = (finding.notes for finding in (fixed_prefix(rows), refreshed_prefix(rows)))
    assert fixed == (
        "Regained from the damaged point, full, adam:1: prefix 0.80, gradients 0.50, "
        "Adam-scaled gradients 0.25, random 0.10.",
        "To find its basis the prefix takes 10 full steps that are thrown away here, a gradient "
        "basis 30 gradients.",
        "At equal steps, prefix minus: gradients +0.300 [+0.300, +0.300]; Adam-scaled gradients "
        "+0.550 [+0.550, +0.550]; random +0.700 [+0.700, +0.700].",
        "Recovered within the steps of the run: prefix 3 of 3 after 0.40 of its steps; gradients "
        "0 of 3; Adam-scaled gradients 0 of 3; random 0 of 3; prefix from step k 0 of 3; moving "
        "prefix 0 of 3; random from step k 0 of 3; moving random 0 of 3.",
        "Rates are chosen by the loss on the training minibatches; the best was the last one tried "
        "in 1 of 3 sweeps.",
        "1 of 3 cases have no result: not recovered.",
        "Left out where the run was shorter than k / 0.35: k = 5 in 1 of 3, k = 10 in 2 of 3.",
    )
    assert moving == (
        "Regained with full steps on the way, full, adam:1: prefix from step k 0.50, moving prefix "
        "0.75, random from step k 0.25, moving random 0.50.",
        "Of that, their full steps alone regain, full, adam:1: prefix from step k 0.10, moving "
        "prefix 0.10.",
        "At equal steps, prefix from step k minus: random from step k +0.250 [+0.250, +0.250].",
        "At equal steps, moving prefix minus: gradients +0.250 [+0.250, +0.250]; Adam-scaled "
        "gradients +0.500 [+0.500, +0.500].",
    )


@pytest.mark.parametrize("alone", ["prefix", "gradients"])
def test_what_two_bases_take_is_compared_where_there_are_two(alone: str) -> None:
    notes = fixed_prefix(shares(alone, [0.5] * 3)).notes
    assert not any("To find its basis" in note for note in notes)


def test_s1_takes_the_best_of_the_other_bases() -> None:
    rows = shares("prefix", [0.60, 0.70, 0.81]) + shares("gradients", GRADIENTS)
    rows += shares("Adam-scaled gradients", [0.80, 0.90, 0.99])
    finding = fixed_prefix(rows)
    assert finding.verdict == "contradicted"
    assert "Adam-scaled" in finding.reference


@pytest.mark.parametrize(
    ("stays", "random", "verdict"),
    [
        (0.5, 0.5, "supported"),
        (0.95, 0.5, "contradicted"),
        (0.5, 0.95, "contradicted"),
    ],
)
def test_s2_needs_both_a_gain_and_more_than_chance(
    stays: float, random: float, verdict: str
) -> None:
    jitter = [-0.01, 0.0, 0.01]
    rows = shares("moving prefix", [0.8, 0.81, 0.79])
    rows += shares("prefix from step k", [stays + j for j in jitter])
    rows += shares("moving random", [random + j for j in jitter])
    assert refreshed_prefix(rows).verdict == verdict


def test_s2_without_its_chance_level_is_open() -> None:
    rows = shares("moving prefix", [0.8, 0.81, 0.79]) + shares("prefix from step k", [0.1] * 3)
    assert refreshed_prefix(rows).verdict == "undecided"


def test_the_dimension_is_ten_or_the_largest_below() -> None:
    rows = [row for k in (2, 5, 20) for row in shares("prefix", [0.1], k=k)]
    rows += shares(ALL, [1.0], k=D)
    assert {row["k"] for row in at_k(rows)} == {5, D}


def test_a_dimension_that_fewer_seeds_have_is_passed_over() -> None:
    """Three pairs at k = 2, of which one alone could be compared at k = 5."""
    rows = [
        row
        for basis, shift in (("prefix", 0.1), ("gradients", 0.0))
        for k, values in ((2, [0.5, 0.6, 0.7]), (5, [0.9]))
        for row in shares(basis, [value + shift for value in values], k=k)
    ]
    finding = fixed_prefix(rows)
    assert finding.quantity.endswith("k = 2")
    assert finding.estimate is not None
    assert (finding.estimate.n, finding.estimate.value) == (3, pytest.approx(0.1))
    # Where no dimension has all seeds, the others of a seed do not stay without their like.
    few = shares("prefix", [0.5, 0.6], k=2) + shares(ALL, [1.0, 0.8, 0.1], k=D)
    assert [row["seed"] for row in at_k(few) if row["basis"] == ALL] == [0, 1]


def test_dimensions_that_were_left_out_are_counted() -> None:
    rows = shares("prefix", [0.1]) + shares("gradients", [0.1]) + shares("random", [0.1])
    for left_out in ("", "20", "5, 10, 20"):
        rows.append({"table": "run", "status": "recovered", "left_out": left_out})
    assert fixed_prefix(rows).notes[-1] == (
        "Left out where the run was shorter than k / 0.35: "
        "k = 5 in 1 of 3, k = 10 in 1 of 3, k = 20 in 2 of 3."
    )
