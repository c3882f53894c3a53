"""Training inside bases: the sweep, what the rows add up to, and the rules of S1 and S2."""

import dataclasses
import math
from typing import Any

import pytest

from experiments.parts import parts
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
    """A difference of 0 decides nothing; more than 10 directions do not count."""
    rows = shares("prefix", GRADIENTS) + shares("gradients", GRADIENTS)
    finding = fixed_prefix(rows)
    assert (finding.verdict, "k = 10" in finding.quantity) == ("undecided", True)
    larger = shares("prefix", [0.9] * 3, k=11) + shares("gradients", [0.1] * 3, k=11)
    assert fixed_prefix(rows + larger) == finding
    smaller = shares("prefix", [0.9] * 3, k=9) + shares("gradients", [0.1] * 3, k=9)
    assert fixed_prefix(rows + smaller).verdict == "undecided"


def everything() -> list[dict[str, Any]]:
    """Shares in every basis, with the chance level of some."""
    rows = shares("prefix", [0.7, 0.8, 0.9], stop=20, chance=0.1)
    rows += shares("gradients", [0.5] * 3, spent=30)
    rows += shares("Adam-scaled gradients", [0.25] * 3) + shares("random", [0.1] * 3)
    rows += shares("prefix from step k", [0.5] * 3) + shares("moving prefix", [0.75] * 3)
    rows += shares("random from step k", [0.25] * 3) + shares("moving random", [0.5] * 3)
    rows[0]["stop"] = None
    return rows + shares(ALL, [1.0] * 3, k=D, spent=0)


def test_s1_lists_what_every_basis_regains() -> None:
    rows = everything() + shares("prefix", [0.3], optimizer="sgd:1")
    told = parts(fixed_prefix(rows), "Regained from the damaged point")
    bases = ["prefix", "gradients", "Adam-scaled gradients", "random", ALL]
    assert [row["basis"] for row in told[:5]] == bases
    assert [row["share of the lost loss"] for row in told[:5]] == pytest.approx(
        [0.8, 0.5, 0.25, 0.1, 1.0]
    )
    first = told[0]
    assert (first["space"], first["optimizer"], first["seeds"]) == ("full", "adam:1", 3)
    # Standard error 0.1 / sqrt(3), t(2) = 4.302653.
    assert first["high"] == pytest.approx(0.8 + 4.302652729911275 * 0.1 / 3**0.5)
    assert first["random directions, as many full steps"] == pytest.approx(0.1)
    assert (first["recovered"], first["cases"]) == (2, 3)
    assert first["share of the steps until recovered"] == pytest.approx(20 / 50)
    assert [row["steps or gradients spent on the basis"] for row in told[:5]] == [10, 30, 10, 10, 0]
    assert [row["recovered"] for row in told[1:]] == [0] * 5
    assert (told[5]["optimizer"], told[5]["share of the lost loss"]) == ("sgd:1", 0.3)


def test_s2_lists_what_the_bases_after_k_steps_regain() -> None:
    told = parts(refreshed_prefix(everything()), "Regained with full steps on the way")
    listed = [(row["basis"], row["share of the lost loss"]) for row in told]
    assert listed == [
        ("prefix from step k", 0.5), ("moving prefix", 0.75), ("random from step k", 0.25),
        ("moving random", 0.5), (ALL, 1.0),
    ]  # fmt: skip
    assert all(row["its full steps alone"] == pytest.approx(0.1) for row in told)


def test_leads_are_paired_by_case_beside_the_share_of_the_other() -> None:
    rows = everything()
    first, *rest = parts(fixed_prefix(rows), "Leads")
    assert (first["basis"], first["over"], first["cases"]) == ("prefix", "gradients", 3)
    assert (first["lead"], first["regained share of the other"]) == (pytest.approx(0.3), 0.5)
    assert first["low"] == pytest.approx(0.3 - 4.302652729911275 * 0.1 / 3**0.5)
    assert [row["lead"] for row in rest] == pytest.approx([0.55, 0.7, -0.2])
    leads = {
        (row["basis"], row["over"]): row["lead"] for row in parts(refreshed_prefix(rows), "Leads")
    }
    assert leads == {
        ("prefix from step k", "random from step k"): 0.25, ("prefix from step k", ALL): -0.5,
        ("moving prefix", "prefix from step k"): 0.25, ("moving prefix", "moving random"): 0.25,
        ("moving prefix", "gradients"): 0.25, ("moving prefix", "Adam-scaled gradients"): 0.5,
        ("moving prefix", ALL): -0.25,
    }  # fmt: skip


def test_s1_warns_of_cases_without_a_result_and_of_sweeps_that_were_too_short() -> None:
    rows = everything()
    assert fixed_prefix(rows).notes == ()
    runs = [{"table": "run", "status": "recovered"}] * 2
    runs += [{"table": "run", "status": status} for status in ("not recovered", "not damaged")]
    base = {"table": "rate", "basis": "prefix", "chosen": True}
    rates = [base | {"at_end": end} for end in (True, False, False)]
    rates += [base | {"basis": "random", "at_end": False}]
    rates += [base | {"chosen": False, "at_end": True}]
    finding = fixed_prefix(rows + runs + rates)
    lost, at_end = finding.notes
    assert lost.startswith("2 of 4 cases")
    assert "not damaged, not recovered" in lost
    assert "1 of 4 sweeps" in at_end
    told = [tuple(row.values()) for row in parts(finding, "Sweeps")]
    assert told == [("prefix", 1, 3), ("random", 0, 1)]
    assert fixed_prefix(rows + runs[:2] + rates[1:]).notes == ()


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
    # If no dimension has all seeds, a seed counts only with the cases that it shares.
    few = shares("prefix", [0.5, 0.6], k=2) + shares(ALL, [1.0, 0.8, 0.1], k=D)
    assert [row["seed"] for row in at_k(few) if row["basis"] == ALL] == [0, 1]


def test_dimensions_that_were_left_out_are_counted() -> None:
    rows = shares("prefix", [0.1]) + shares("gradients", [0.1]) + shares("random", [0.1])
    for left_out in ("", "20", "5, 10, 20"):
        rows.append({"table": "run", "status": "recovered", "left_out": left_out})
    told = parts(
        fixed_prefix(rows), "Dimensions left out because the run was shorter than k / 0.35"
    )
    assert [tuple(row.values()) for row in told] == [(5, 1, 3), (10, 1, 3), (20, 2, 3)]
    assert parts(fixed_prefix(rows[:4]), "Dimensions left out") == []
