"""The rules of S1 and S2, and their tables, on rows made for them."""

from typing import Any

import pytest

from experiments.parts import parts
from frenet.experiments.experiment import Finding
from frenet.experiments.subspace_training.findings import ALL, at_k, fixed_prefix, refreshed_prefix

D = 28_096


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
        ([0.51, 0.62, 0.71], "equivalent"),  # clearly above 0, and below the margin
        ([0.49, 0.60, 0.71], "equivalent"),
        ([0.90, 0.60, 0.50], "undecided"),
        ([0.90], "undecided"),
        ([], "not testable"),
    ],
)
def test_s1_compares_seed_by_seed(prefix: list[float], verdict: str) -> None:
    """Differences of 0.1 are decided though the shares themselves spread by more."""
    rows = shares("prefix", prefix) + shares("gradients", GRADIENTS) + shares("random", [0.0] * 3)
    finding = fixed_prefix(rows)
    assert finding.verdict == verdict
    assert finding.reference == "share regained inside gradients"
    assert finding.decision.margin == (0.05 if verdict == "equivalent" else None)


@pytest.mark.parametrize(
    ("leads", "verdict"),
    [
        ((0.1, 0.101), "supported"),
        ((-0.1, -0.101), "contradicted"),
        ((0.02, 0.021), "equivalent"),
        ((0.1, 0.2), "undecided"),
    ],
)
def test_s1_of_two_seeds(leads: tuple[float, float], verdict: str) -> None:
    """t(1) = 12.7: two seeds decide only if they agree closely."""
    rows = shares("prefix", [0.9 + lead for lead in leads]) + shares("gradients", [0.9, 0.9])
    assert fixed_prefix(rows).verdict == verdict


def test_s1_at_its_lines_and_at_its_own_dimension() -> None:
    """A difference just below the margin is equal; more than 10 directions do not count."""
    rows = shares("prefix", [0.751] * 3) + shares("gradients", [0.7] * 3)
    finding = fixed_prefix(rows)
    assert (finding.verdict, "k = 10" in finding.quantity) == ("supported", True)
    even = shares("prefix", [0.749] * 3) + shares("gradients", [0.7] * 3)
    assert fixed_prefix(even).verdict == "equivalent"
    larger = shares("prefix", [0.9] * 3, k=11) + shares("gradients", [0.1] * 3, k=11)
    assert fixed_prefix(rows + larger) == finding
    smaller = shares("prefix", [0.1] * 3, k=9) + shares("gradients", [0.9] * 3, k=9)
    assert fixed_prefix(rows + smaller) == finding


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
        (0.8, 0.5, "equivalent"),
        (0.5, 0.8, "equivalent"),
        (0.8, 0.95, "contradicted"),
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


def test_s2_with_two_seeds_one_and_none() -> None:
    def decided(seeds: int) -> str:
        rows = shares("moving prefix", [0.8, 0.81][:seeds])
        rows += shares("prefix from step k", [0.5, 0.5][:seeds])
        rows += shares("moving random", [0.4, 0.41][:seeds])
        return str(refreshed_prefix(rows).decision)

    assert [decided(n) for n in (2, 1, 0)] == ["supported", "undecided (1 seed)", "not testable"]


def test_s2_is_undecided_if_one_of_its_leads_is() -> None:
    rows = shares("moving prefix", [0.8, 0.8, 0.8]) + shares("prefix from step k", [0.5] * 3)
    random = shares("moving random", [0.5, 0.7, 0.9])
    finding = refreshed_prefix(rows + random)
    assert finding.verdict == "undecided"
    assert "random directions" in finding.why
    # Without random directions that lead was not measured.
    assert refreshed_prefix(rows).verdict == "undecided"
    assert "was not measured" in refreshed_prefix(rows).why


def both(first: list[float], second: list[float]) -> tuple[Finding, Finding]:
    """S1 and S2 for these shares regained with the prefix and without it."""
    rows = shares("prefix", first) + shares("gradients", second)
    rows += shares("moving prefix", first) + shares("prefix from step k", second)
    rows += shares("moving random", second)
    return fixed_prefix(rows), refreshed_prefix(rows)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([0.01, 0.01, 0.02], [0.0, 0.01, 0.01], "not testable"),
        ([-0.4, -0.3, -0.5], [-0.8, -0.9, -0.7], "not testable"),
        ([0.0, 0.0, 0.01], [0.5, 0.5, 0.51], "contradicted"),
        ([0.5, 0.5, 0.51], [0.0, 0.0, 0.01], "supported"),
        ([0.06, 0.06, 0.06], [0.06, 0.06, 0.06], "equivalent"),
    ],
)
def test_bases_that_regain_nothing_cannot_be_compared(
    first: list[float], second: list[float], verdict: str
) -> None:
    """Shares that are both below the margin would be equal without saying anything."""
    for finding in both(first, second):
        assert finding.verdict == verdict
        assert ("the higher of the two shares" in finding.why) is (verdict == "not testable")


def test_a_seed_whose_recoveries_failed_does_not_count() -> None:
    lost = [{"table": "run", "seed": 3, "status": "not recovered"}]
    rows = everything()
    for decide in (fixed_prefix, refreshed_prefix):
        assert decide(rows + lost).decision == decide(rows).decision
        assert decide(lost).verdict == "not testable"
        assert "is 0, not 1 or more" in decide(lost).why


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
