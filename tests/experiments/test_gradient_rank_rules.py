"""The rule of C1 on rows made for it, and the column of its premise in a small run."""

from typing import Any

import pytest

from experiments.small import small
from frenet.experiments import EXPERIMENTS
from frenet.experiments.gradient_rank.findings import (
    SAME_EXAMPLES,
    decide,
    energy_chart,
    task_chart,
)
from frenet.experiments.setup.networks import build
from frenet.measure import rounding
from frenet.measure.gradients import gradient

Planted = list[dict[str, Any]]


def learned(share: float = 0.01, *, task: str = "a", seeds: int = 3) -> Planted:
    """The loss of a task as a share of that of a guess, 2 nats."""
    base = {"table": "learned", "space": "full", "task": task, "chance": 2.0}
    return [base | {"seed": s, "loss": 2.0 * share + 1e-3 * s} for s in range(seeds)]


def energies(values: list[float], null: float = 0.01, **changes: Any) -> Planted:
    """Energies at k = 10 over seeds, of gradients a thousand times their rounding error."""
    base = {"table": "energy", "k": 10, "point": "none", "batch_size": 64, "task": "a"}
    context = {"label_shuffled": 0.8, "in_shuffled_basis": 0.3, "clear": 1000.0}
    return [
        base
        | context
        | {"seed": s, "energy": v, "null_gaussian": null, "null_shuffle": null}
        | changes
        for s, v in enumerate(values)
    ]


HIGH = [0.60, 0.61, 0.62]


@pytest.mark.parametrize(
    ("values", "null", "verdict"),
    [
        (HIGH, 0.01, "supported"),
        ([0.20, 0.21, 0.22], 0.01, "contradicted"),
        ([0.30, 0.50, 0.70], 0.01, "undecided"),
        (HIGH, 0.90, "contradicted"),
        # The paired margin is clear although the interval of the energy holds the null.
        ([0.50, 0.60, 0.70], 0.45, "undecided"),
        ([0.60], 0.01, "undecided"),
    ],
)
def test_the_word(values: list[float], null: float, verdict: str) -> None:
    assert decide(energies(values, null) + learned()).verdict == verdict


def test_energies_and_nulls_are_paired_by_seed() -> None:
    """They rise together from seed to seed, and the energy is 0.02 to 0.03 higher each time."""
    values, margins = [0.5, 0.7, 0.9], [0.02, 0.03, 0.02]
    rows = energies(values) + learned()
    for row, margin in zip(rows, margins, strict=False):
        row["null_shuffle"] = row["energy"] - margin
    finding = decide(rows)
    # 0.7 -+ 4.302653 * 0.2 / sqrt(3) is not above 0.4; the margin, 0.0233 -+ 0.0143, is above 0.
    assert (finding.verdict, finding.why.count("not clearly")) == ("undecided", 1)
    assert "0.4" in finding.why


def test_an_interval_that_touches_its_line_is_not_beyond_it() -> None:
    assert decide(energies([0.4, 0.4]) + learned()).verdict == "undecided"
    assert decide(energies([0.5, 0.5], null=0.5) + learned()).verdict == "undecided"
    assert decide(energies([0.5, 0.5], clear=10.0) + learned()).verdict == "not testable"


def test_an_undecided_line_says_how_many_seeds_would_settle_it() -> None:
    needs = decide(energies([0.30, 0.50, 0.70]) + learned()).decision.needs
    assert (needs.unit, needs.n) == ("seed", 3)
    assert needs.about > 3
    one = decide(energies([0.6]) + learned(seeds=1)).decision
    assert (one.verdict, one.needs.n, one.needs.about) == ("undecided", 1, None)


@pytest.mark.parametrize(
    ("share", "clear", "verdict"),
    [
        (0.49, 1000.0, "supported"),
        (0.6, 1000.0, "not testable"),
        (0.01, 10.5, "supported"),
        (0.01, 9.5, "not testable"),
        (0.01, 0.0, "not testable"),
    ],
)
def test_the_premises(share: float, clear: float, verdict: str) -> None:
    """The loss is below half of that of a guess, and gradients above 10 times their rounding."""
    assert decide(energies(HIGH, clear=clear) + learned(share)).verdict == verdict


def test_a_task_whose_gradients_are_all_rounding_is_not_hidden_by_the_others() -> None:
    """A mean of the ratios would be in the thousands."""
    rows = [row for task in "abcd" for row in energies(HIGH, task=task) + learned(task=task)]
    assert decide(rows).verdict == "supported"
    rows = [row | {"clear": 1.0} if row["task"] == "d" else row | {"clear": 1e6} for row in rows]
    assert decide(rows).verdict == "not testable"


def test_only_measured_tasks_have_to_be_known() -> None:
    rows = energies(HIGH) + learned()
    assert decide(rows + learned(3.0, task="not measured")).verdict == "supported"
    assert decide(rows + learned(3.0)).verdict == "not testable"


def test_rows_without_a_premise_say_what_the_criteria_alone_say() -> None:
    """Stored runs of earlier versions have no column for it."""
    for rows, alone in (
        (energies(HIGH), "supported"),
        (energies(HIGH, clear=None) + learned(), "supported"),
        (energies([0.2, 0.21, 0.22], clear=None) + learned(), "contradicted"),
    ):
        finding = decide(rows)
        assert finding.verdict == "not testable"
        assert f"the criteria alone say {alone}" in finding.why


def test_no_rows_decide_nothing_and_name_no_batches() -> None:
    finding = decide([])
    assert (finding.verdict, finding.estimate) == ("undecided", None)
    assert finding.quantity.endswith("in the top 10 directions")


@pytest.mark.parametrize(
    ("shuffled", "warned"),
    [([0.8, 0.8, 0.8], True), (HIGH, True), ([0.1, 0.1, 0.1], False), ([], False)],
)
def test_a_caution_if_shuffled_labels_are_not_clearly_less_low_rank(
    shuffled: list[float], warned: bool
) -> None:
    rows = energies(HIGH, label_shuffled=None)
    for row, value in zip(rows, shuffled, strict=False):
        row["label_shuffled"] = value
    cautions = decide(rows).notes
    assert len(cautions) == warned
    if warned:
        assert f"{shuffled[1]:.2f}" in cautions[0]


def test_the_control_is_in_the_line_of_the_claim() -> None:
    assert "0.80" in decide(energies(HIGH)).reference
    assert "0.80" not in decide(energies(HIGH, label_shuffled=None)).reference


def test_the_largest_batches_decide_and_the_table_lists_spaces_and_batch_sizes() -> None:
    """Smaller batches have other spectra."""
    rows = energies([0.6, 0.61, 0.62], space="full") + energies([0.5, 0.5, 0.5], space="lora")
    small_batches = [row | {"batch_size": 8, "energy": 0.1} for row in rows]
    finding = decide(rows + small_batches)
    assert finding.estimate == decide(rows).estimate
    (table,) = finding.breakdowns
    assert [(r["space"], r["batch_size"], r["energy"]) for r in table.rows] == [
        ("full", 64, pytest.approx(0.61)), ("lora", 64, 0.5),
        ("full", 8, pytest.approx(0.1)), ("lora", 8, pytest.approx(0.1)),
    ]  # fmt: skip
    beside = [value for name, value in table.rows[0].items() if "null" in name or "shuffl" in name]
    assert beside == pytest.approx([0.01, 0.01, 0.8, 0.3])


def overlaps(**changes: Any) -> Planted:
    """Bases of one task overlap by 0.6, of two by 0.1 or 0.2; chance is 0.001."""
    base = {"table": "overlap", "point": "none", "batch_size": 64, "space": "full"}
    pairs = {("a", "a"): 0.6, ("a", "b"): 0.1, ("b", "a"): 0.2, ("b", "b"): 0.6}
    return [
        base | {"seed": s, "task": a, "other": b, "overlap": value, "chance": 0.001} | changes
        for s in (0, 1)
        for (a, b), value in pairs.items()
    ]


def test_the_overlap_of_tasks_is_compared_with_halves_and_chance_in_every_space() -> None:
    """Of the largest batches, in the trained network."""
    rows = overlaps() + overlaps(space="lora", chance=0.01)
    rows += overlaps(batch_size=8, overlap=0.9) + overlaps(point="ascent", overlap=0.9)
    (table,) = decide(rows).breakdowns
    assert [row["space"] for row in table.rows] == ["full", "lora"]
    for row, chance in zip(table.rows, (0.001, 0.01), strict=True):
        assert row["two tasks"] == pytest.approx(0.15)
        assert row["two halves of one task"] == pytest.approx(0.6)
        assert row["chance"] == pytest.approx(chance)
    assert decide([row for row in rows if row["task"] == row["other"]]).breakdowns == ()


def test_an_axis_of_a_fraction_runs_from_0_to_1() -> None:
    rows = energies(HIGH, ceiling=0.9)
    for chart, axis in ((energy_chart, "y"), (task_chart, "x")):
        layers = chart(rows).to_dict()["layer"]  # type: ignore[attr-defined]
        domains = [layer["encoding"][axis]["scale"]["domain"] for layer in layers]
        assert domains == [[0, 1]] * len(layers)


def test_the_trained_network_alone_decides() -> None:
    rows = energies(HIGH) + energies([0.0] * 3, point="wrong-answers", clear=0.0) + learned()
    assert decide(rows).verdict == "supported"


@pytest.mark.parametrize("highest", ["null_gaussian", "null_shuffle"])
def test_the_highest_null_counts(highest: str) -> None:
    finding = decide(energies(HIGH, **{highest: 0.9}) + learned())
    assert finding.verdict == "contradicted"
    assert finding.reference_estimate.value == pytest.approx(0.9)


def test_a_caution_if_both_halves_are_of_the_same_examples() -> None:
    rows = [*energies(HIGH), {"table": "notes", "note": "another"}]
    before = decide(rows).notes
    more = decide([*rows, {"table": "notes", "note": f"a: {SAME_EXAMPLES}"}]).notes
    assert (more[:-1], len(more)) == (before, len(before) + 1)


def measured() -> tuple[Any, Planted]:
    """The settings and the rows of a small run."""
    only = {"only": ("copy",), "points": ("none",), "ks": (1, 2), "nulls": 1, "train_steps": 20}
    config = small("gradient-rank", **only)
    experiment = EXPERIMENTS["gradient-rank"]
    (cell,) = experiment.cells(config)
    return config, list(experiment.run(config, cell))


@pytest.mark.usefixtures("rows")
def test_the_column_is_that_of_the_first_gradient_of_every_size() -> None:
    """In the trained network; the same at every k."""
    config, rows = measured()
    network = build(config, space="full", seed=0)
    task, (size,) = network.tasks["copy"], config.batch_sizes
    batch = next(task.batches("train", size, 0))
    g = gradient(network.model, task, batch, space=network.space)
    exact = gradient(network.model.double(), task, batch, space=network.space)
    wanted = float(g.norm() / (g - exact).norm())
    assert [row["clear"] for row in rows if row["table"] == "energy"] == pytest.approx(
        [wanted] * 2, rel=1e-3
    )


@pytest.mark.usefixtures("rows")
def test_a_model_that_does_not_run_in_float64_has_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> None:
        raise RuntimeError("no kernel for Double")

    monkeypatch.setattr(rounding, "in_float64", refuse)
    _, rows = measured()
    notes = [row["note"] for row in rows if row["table"] == "notes"]
    assert sum("no kernel for Double" in note for note in notes) == 1
    assert {row["clear"] for row in rows if row["table"] == "energy"} == {None}
