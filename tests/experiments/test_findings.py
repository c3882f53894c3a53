"""The rules that decide the claims, on rows made for them."""


import pytest

from experiments.parts import parts
from frenet.experiments import basis_drift
from frenet.experiments.basis_drift.findings import decide as drift
from frenet.experiments.basis_drift.findings import drift_chart
from frenet.experiments.best_of_n.findings import (
    best_gains,
    most_candidates,
    ranked,
    relative_gains,
)
from frenet.experiments.best_of_n.findings import decide as searched
from frenet.experiments.direction_scale import figures as scale
from frenet.experiments.gradient_rank.findings import SAME_EXAMPLES, energy_chart, task_chart
from frenet.experiments.gradient_rank.findings import decide as rank
from frenet.experiments.intervals import breakdown, estimate, fraction, high, low, over_seeds
from frenet.experiments.setup import brackets


def test_the_seed_is_the_unit_of_the_interval() -> None:
    rows = [{"seed": s, "x": float(s + j)} for s in (0, 1, 2) for j in (-1, 0, 1)]
    found = estimate(rows, "x")
    # Means of the seeds are 0, 1, 2: standard error 1 / sqrt(3), t(2) = 4.302653.
    assert found.n == 3
    assert found.value == pytest.approx(1.0)
    assert found.high == pytest.approx(1 + 4.302652729911275 / 3**0.5)


def test_one_seed_has_no_interval_and_decides_nothing() -> None:
    found = estimate([{"seed": 0, "x": 0.9}], "x")
    assert (found.low, found.high) == (None, None)
    assert low(found) == -float("inf")
    assert high(found) == float("inf")
    assert estimate([], "x") is None


def test_more_rows_of_one_seed_do_not_weigh_more() -> None:
    rows = [{"seed": 0, "k": 1, "x": 0.0}] * 9 + [{"seed": 1, "k": 1, "x": 1.0}]
    assert over_seeds(rows, by=("k",), value="x")[0]["value"] == pytest.approx(0.5)


def test_the_interval_of_a_fraction_is_cut_to_what_is_possible() -> None:
    """And no further; one seed has none to cut."""
    wide = [{"seed": s, "x": x} for s, x in enumerate((0.0, 1.0))]
    assert fraction(wide, "x")[:3] == (0.5, 0.0, 1.0)
    assert fraction(wide, "x", least=-1.0)[:3] == (0.5, -1.0, 1.0)
    narrow = [{"seed": s, "x": x} for s, x in enumerate((0.5, 0.51, 0.52))]
    assert fraction(narrow, "x") == estimate(narrow, "x")
    assert fraction(wide[1:], "x") == estimate(wide[1:], "x")
    assert fraction([], "x") is None


PARTS = [
    {"seed": seed, "part": part, "x": x, "y": y, "none": None}
    for part, seed, x, y in (
        ("a", 0, 0.0, 5.0),
        ("a", 0, 2.0, None),
        ("a", 1, 3.0, 7.0),
        ("b", 0, 4.0, None),
        ("c", 0, None, 1.0),
    )
]


def test_a_breakdown_has_the_means_of_seeds_in_each_part() -> None:
    """Of a, x is 1 and 3 in its seeds: mean 2, standard error 1, t(1) = 12.7062. c has no x."""
    values = {"x": "X", "y": "Y", "none": "no value", "absent": "no column"}
    (table,) = breakdown("parts", PARTS, by=("part", "none", "absent"), values=values)
    first, second = table.rows
    assert list(first) == list(second) == ["part", "X", "low", "high", "seeds", "Y"]
    assert (first["part"], first["X"], first["seeds"], first["Y"]) == ("a", 2.0, 2, 6.0)
    assert first["high"] == pytest.approx(2 + 12.706204736174698)
    assert first["low"] == pytest.approx(2 - 12.706204736174698)
    assert tuple(second.values()) == ("b", 4.0, None, None, 1, None)


def test_a_breakdown_cuts_intervals_to_what_is_possible_where_it_is_told() -> None:
    rows = [{"seed": s, "x": x} for s, x in enumerate((0.0, 1.0))]
    for least, ends in ((0.0, (0.0, 1.0)), (-1.0, (-1.0, 1.0)), (None, (-5.853, 6.853))):
        (table,) = breakdown("all", rows, by=(), values={"x": "x"}, least=least)
        assert (table.rows[0]["low"], table.rows[0]["high"]) == pytest.approx(ends, abs=1e-3)


def test_a_breakdown_counts_the_rows_with_a_value() -> None:
    """Also in a part without the measure, and without any measure."""
    counts = {"x": "of x", "y": "of y"}
    (table,) = breakdown("parts", PARTS, by=("part",), values={"x": "X"}, counts=counts)
    assert [(r["part"], r["of x"], r["of y"]) for r in table.rows] == [
        ("a", 3, 2), ("b", 1, 0), ("c", 0, 1)
    ]  # fmt: skip
    assert table.rows[2]["X"] is None
    (table,) = breakdown("parts", PARTS, by=("part",), counts={"y": "of y"})
    assert [tuple(row.values()) for row in table.rows] == [("a", 2), ("b", 0), ("c", 1)]


def test_a_breakdown_of_nothing_is_no_table() -> None:
    assert breakdown("none", [], by=("part",), values={"x": "X"}) == ()
    assert breakdown("none", PARTS, by=("part",), values={"none": "no value"}) == ()


def energy(values: list[float], null: float = 0.01, **changes: object) -> list[dict[str, object]]:
    base = {"table": "energy", "k": 10, "point": "none", "batch_size": 64, "task": "a"}
    context = {"label_shuffled": 0.8, "in_shuffled_basis": 0.3}
    return [
        base
        | context
        | {"seed": s, "energy": v, "null_gaussian": null, "null_shuffle": null}
        | changes
        for s, v in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("values", "null", "verdict"),
    [
        ([0.60, 0.61, 0.62], 0.01, "supported"),
        ([0.20, 0.21, 0.22], 0.01, "contradicted"),
        ([0.30, 0.50, 0.70], 0.01, "undecided"),
        ([0.60, 0.61, 0.62], 0.90, "contradicted"),
        ([0.60], 0.01, "undecided"),
    ],
)
def test_c1(values: list[float], null: float, verdict: str) -> None:
    finding = rank(energy(values, null))
    assert finding.verdict == verdict


@pytest.mark.parametrize(
    ("shuffled", "warned"),
    [([0.8, 0.8, 0.8], True), ([0.60, 0.61, 0.62], True), ([0.1, 0.1, 0.1], False), ([], False)],
)
def test_c1_warns_where_shuffled_labels_are_not_clearly_less_low_rank(
    shuffled: list[float], warned: bool
) -> None:
    rows = energy([0.60, 0.61, 0.62], label_shuffled=None)
    for row, value in zip(rows, shuffled, strict=False):
        row["label_shuffled"] = value
    cautions = rank(rows).notes
    assert len(cautions) == warned
    if warned:
        assert f"{shuffled[1]:.2f}" in cautions[0]


def test_c1_is_decided_by_the_largest_batches_and_lists_spaces_and_batch_sizes() -> None:
    """Smaller batches have other spectra."""
    rows = energy([0.6, 0.61, 0.62], space="full") + energy([0.5, 0.5, 0.5], space="lora")
    small = [row | {"batch_size": 8, "energy": 0.1} for row in rows]
    finding = rank(rows + small)
    assert finding.estimate == rank(rows).estimate
    (table,) = finding.breakdowns
    assert [(r["space"], r["batch_size"], r["energy"]) for r in table.rows] == [
        ("full", 64, pytest.approx(0.61)), ("lora", 64, 0.5),
        ("full", 8, pytest.approx(0.1)), ("lora", 8, pytest.approx(0.1)),
    ]  # fmt: skip
    first = table.rows[0]
    # Means 0.6, 0.61, 0.62: standard error 0.01 / sqrt(3), t(2) = 4.302653.
    assert first["high"] == pytest.approx(0.61 + 4.302652729911275 * 0.01 / 3**0.5)
    beside = [value for name, value in first.items() if "null" in name or "shuffled" in name]
    assert beside == pytest.approx([0.01, 0.01, 0.8, 0.3])


def overlaps(**changes: object) -> list[dict[str, object]]:
    """Bases of one task overlap by 0.6, of two by 0.1 or 0.2; chance is 0.001."""
    base = {"table": "overlap", "point": "none", "batch_size": 64, "space": "full"}
    pairs = {("a", "a"): 0.6, ("a", "b"): 0.1, ("b", "a"): 0.2, ("b", "b"): 0.6}
    return [
        base | {"seed": s, "task": a, "other": b, "overlap": value, "chance": 0.001} | changes
        for s in (0, 1)
        for (a, b), value in pairs.items()
    ]


def test_c1_compares_the_overlap_of_tasks_with_halves_and_chance_in_every_space() -> None:
    """Of the largest batches, in the trained network."""
    rows = overlaps() + overlaps(space="lora", chance=0.01)
    rows += overlaps(batch_size=8, overlap=0.9) + overlaps(point="ascent", overlap=0.9)
    (table,) = rank(rows).breakdowns
    assert [row["space"] for row in table.rows] == ["full", "lora"]
    for row, chance in zip(table.rows, (0.001, 0.01), strict=True):
        assert row["two tasks"] == pytest.approx(0.15)
        assert row["two halves of one task"] == pytest.approx(0.6)
        assert row["chance"] == pytest.approx(chance)
    assert rank([row for row in rows if row["task"] == row["other"]]).breakdowns == ()


def test_an_axis_of_a_fraction_runs_from_0_to_1() -> None:
    rows = energy([0.6, 0.61, 0.62], ceiling=0.9)
    for chart, axis in ((energy_chart, "y"), (task_chart, "x")):
        layers = chart(rows).to_dict()["layer"]  # type: ignore[attr-defined]
        domains = [layer["encoding"][axis]["scale"]["domain"] for layer in layers]
        assert domains == [[0, 1]] * len(layers)


def test_c1_looks_at_the_trained_network_only() -> None:
    rows = energy([0.6, 0.61, 0.62]) + energy([0.0, 0.0, 0.0], point="wrong-answers")
    assert rank(rows).verdict == "supported"


@pytest.mark.parametrize("highest", ["null_gaussian", "null_shuffle"])
def test_c1_is_held_against_the_highest_null(highest: str) -> None:
    finding = rank(energy([0.60, 0.61, 0.62], **{highest: 0.9}))
    assert finding.verdict == "contradicted"
    assert finding.reference_estimate.value == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("values", "null", "line"),
    [([0.3, 0.7], 0.01, "above 0.4"), ([0.5, 0.51], 0.49, "above the upper end of every")],
)
def test_c1_says_which_line_its_interval_crosses(
    values: list[float], null: float, line: str
) -> None:
    finding = rank(energy(values, null))
    assert (finding.verdict, line in finding.why) == ("undecided", True)


def test_c1_names_no_batches_where_it_has_none() -> None:
    assert rank([]).quantity.endswith("in the top 10 directions")


def test_c1_warns_where_some_halves_are_of_the_same_examples() -> None:
    rows = [*energy([0.6, 0.61, 0.62]), {"table": "notes", "note": "another"}]
    before = rank(rows).notes
    more = rank([*rows, {"table": "notes", "note": f"a: {SAME_EXAMPLES}"}]).notes
    assert (more[:-1], len(more)) == (before, len(before) + 1)


def drifts(ratios: list[float], control: float, space: str = "full") -> list[dict[str, object]]:
    base = {"table": "drift", "kind": "gradients", "lag": 100, "mode": "recovery", "space": space}
    return [
        base | {"optimizer": "adam:1e-3", "seed": s, "ratio": r, "control": control}
        for s, r in enumerate(ratios)
    ]


@pytest.mark.parametrize(
    ("ratios", "control", "verdict"),
    [
        ([0.30, 0.31, 0.32], 1.0, "supported"),
        ([0.90, 0.91, 0.92], 1.0, "contradicted"),
        ([0.50, 0.70, 0.90], 1.0, "undecided"),
        ([0.30, 0.31, 0.32], 0.9, "undecided"),
    ],
)
def test_c3(ratios: list[float], control: float, verdict: str) -> None:
    assert drift(drifts(ratios, control)).verdict == verdict


def half_life(space: str, low: float, high: float | None) -> dict[str, object]:
    keys = {"table": "half_life", "kind": "gradients", "mode": "recovery", "space": space}
    ends = {"steps": None, "steps_low": low, "steps_high": high, "longest": 200}
    return {**keys, "optimizer": "adam:1e-3", **ends}


LIFE = ("half-life above", "half-life at most", "runs halved", "runs", "longest lag")


def test_c3_tells_spaces_with_the_same_optimiser_apart() -> None:
    rows = drifts([0.2, 0.2, 0.2], 1.0)
    rows += [row | {"chance": 0.125} for row in drifts([0.4, 0.4, 0.4], 0.96875, space="lora")]
    rows.append(half_life("lora", 100.0, None))
    (table,) = drift(rows).breakdowns
    numbers = ("space", "ratio", "seeds", "frozen control", "random basis")
    assert [tuple(row[name] for name in numbers) for row in table.rows] == [
        ("full", pytest.approx(0.2), 3, 1.0, None), ("lora", pytest.approx(0.4), 3, 0.96875, 0.125)
    ]  # fmt: skip
    assert [tuple(row[name] for name in LIFE) for row in table.rows] == [
        (None, None, 0, 0, None), (100.0, None, 0, 1, 200)
    ]  # fmt: skip


def test_c3_warns_of_damage_that_did_nothing_with_the_first_reason() -> None:
    rows = [{"table": "notes", "seed": 0, "note": "weights measured in torch.float32"}]
    assert drift([*drifts([0.2, 0.2], 1.0), *rows]).notes == ()
    reasons = ("the loss went from 1.85 to 1.56", "the loss went from 1.85 to 1.60")
    rows += [{"table": "notes", "note": f"labels left out: {reason}"} for reason in reasons]
    (caution,) = drift([*drifts([0.2, 0.2], 1.0), *rows]).notes
    assert all(words in caution for words in ("labels", "2 times", reasons[0]))


def test_a_prediction_that_a_search_lacks_is_left_empty() -> None:
    """A sigma beyond the trusted range has gains but no prediction."""
    rows = best("all", RIGHT, 1.0) + best("random:10", RIGHT, 1.0)
    bare = [row | {"predicted": None} if row["factor"] == 1.0 else row for row in rows]
    near, far = parts(searched(bare), BANDS)
    assert (near["predicted gain"], far["predicted gain"]) == (1.0, None)
    assert far["gain of the best of 8"] == pytest.approx(1.01)


@pytest.mark.parametrize(
    ("ends", "bracket"),
    [
        ([(50.0, 100.0), (100.0, None), (100.0, None)], (50.0, 100.0, 1, 3, 200)),
        ([(50.0, 100.0), (5.0, 10.0), (20.0, 50.0)], (5.0, 100.0, 3, 3, 200)),
        ([(0.0, 1.0), (0.0, 1.0), (0.0, 1.0)], (0.0, 1.0, 3, 3, 200)),
        ([(100.0, None), (200.0, None), (200.0, None)], (100.0, None, 0, 3, 200)),
    ],
)
def test_half_lives_of_several_runs_are_one_bracket_around_all(
    ends: list[tuple[float, float | None]], bracket: tuple[float | None, ...]
) -> None:
    lives = [half_life("full", low, high) for low, high in ends]
    (table,) = drift(drifts([0.5, 0.6, 0.7], 1.0) + lives).breakdowns
    (row,) = table.rows
    assert tuple(row[name] for name in LIFE) == bracket
    assert row["ratio"] == pytest.approx(0.6)


def test_stored_half_lives_between_two_looks_are_read_as_brackets() -> None:
    """Also of updates, which are not measured within the first window."""
    keys = {"seed": 0, "space": "full", "mode": "m", "task": "t", "optimizer": "o", "k": 2}
    rows: list[dict[str, object]] = []
    looks = {"gradients": {1: 0.9, 10: 0.4, 100: 0.1}, "updates": {30: 0.2, 60: 0.1}}
    for kind, ratios in looks.items():
        own = {**keys, "kind": kind}
        for lag, ratio in ratios.items():
            rows.append({"table": "drift", **own, "lag": lag, "ratio": ratio, "displacement": 0.1})
        rows.append({"table": "half_life", **own, "steps": 8.2, "distance": 0.09, "longest": 100.0})
    before = [dict(row) for row in rows]
    found = [row for row in basis_drift.EXPERIMENT.reread(rows) if row["table"] == "half_life"]
    assert rows == before
    assert [str(brackets.bracket_of(row)) for row in found] == ["between 1 and 10", "at most 30"]
    assert [row["steps"] for row in found] == [None, None]
    assert [row["distance_high"] for row in found] == [0.1, 0.1]
    # Rows that have brackets already are left unchanged.
    assert basis_drift.EXPERIMENT.reread(found) == found


def best(
    place: str, inside: list[float], gain: float, **changes: object
) -> list[dict[str, object]]:
    """Best-of-N rows of one place, over seeds, at sigma* / 2 and sigma*."""
    base = {"table": "best", "space": "full", "size": 64, "task": "a", "protocol": "p"}
    at = {"unit": "sigma*", "place": place, "dim": 9, "search": 0, "predicted": gain}
    ranks = {"density": 1.0, "density_over_curvature": 1.0, "second_order": 0.3}
    return [
        base
        | at
        | ranks
        | {
            "seed": s,
            "candidates": n,
            "factor": f,
            "inside": i,
            "gain": gain * (1 + 0.01 * s) * f * n / 8,
        }
        | changes
        for s, i in enumerate(inside)
        for f in (0.5, 1.0)
        for n in (1, 8)
    ]


RIGHT = [0.94, 0.95, 0.96]


@pytest.mark.parametrize(
    ("inside", "ratio", "verdict"),
    [
        (RIGHT, 1.0, "supported"),
        ([0.60, 0.61, 0.62], 1.0, "contradicted"),
        ([0.80, 0.90, 0.99], 1.0, "undecided"),
        (RIGHT, 0.5, "contradicted"),
        ([0.95], 1.0, "undecided"),
    ],
)
def test_c5(inside: list[float], ratio: float, verdict: str) -> None:
    rows = best("all", inside, 1.0) + best("random:10", inside, ratio)
    finding = searched(rows)
    assert finding.verdict == verdict
    (row,) = parts(finding, "Gain at the best sigma")
    assert (row["random directions"], row["share"]) == (10, pytest.approx(ratio))
    assert row["cases compared"] == row["cases"] == row["seeds"] == len(inside)
    assert (row["even from"], row["even up to"]) == (0.75, 1.25)
    assert finding.notes == ()


def test_c5_is_open_where_cases_cancel() -> None:
    cases = [("a", 0.5), ("b", 1.5)]
    rows = [
        row
        for task, ratio in cases
        for place, gain in (("all", 1.0), ("random:10", ratio))
        for row in best(place, RIGHT, gain, task=task)
    ]
    finding = searched(rows)
    assert finding.verdict == "undecided"
    assert "for random:10, a, p, full, 64 alone" in finding.why


def test_c5_without_random_directions_is_open() -> None:
    assert searched(best("all", RIGHT, 1.0)).verdict == "undecided"


def test_c5_says_what_is_open_of_the_gain() -> None:
    """One seed gives no interval; with several, the reason is that the interval straddles."""
    whole = best("all", RIGHT, 1.0)
    single = [row for row in best("random:10", RIGHT, 0.5) if row["seed"] == 0]
    assert "only one seed" in (why := searched(whole + single).why)
    assert "in 10 random directions" in why
    rows = [row for row in best("random:10", RIGHT, 0.74) if row["seed"] != 0]
    wide = [row | {"gain": row["gain"] * (1 if row["seed"] == 1 else 1.1)} for row in rows]
    assert "in 10 random directions is not clearly within" in searched(whole + wide).why
    assert "in any random directions was not measured" in searched(whole).why


def test_c5_counts_places_without_a_best_sigma_as_far_as_they_are_to_be_trusted() -> None:
    """Beyond that, at twice the trusted sigma, nothing is predicted."""
    rows = best("all", RIGHT, 1.0) + best("random:10", RIGHT, 1.0)
    bare = best("random:100", [0.0, 0.0, 0.0], 9.0, unit="trusted")
    beyond = [row | {"factor": 2.0} for row in bare if row["factor"] == 1.0]
    assert searched(rows + beyond).estimate == searched(rows).estimate
    assert searched(rows + bare).estimate != searched(rows).estimate


@pytest.mark.parametrize("unit", ["sigma*", "trusted"])
def test_a_gain_that_still_grows_at_the_largest_sigma_is_not_compared(unit: str) -> None:
    rows = best("all", RIGHT, 1.0) + best("random:10", RIGHT, 1.0)
    grows = best("random:100", RIGHT, 9.0, unit=unit)
    beyond = [row | {"factor": 3.0, "gain": 99.0} for row in grows if row["factor"] == 1.0]
    falls = [row | {"factor": 4.0, "gain": 0.0} for row in beyond]
    # Nothing is known of 100 directions then, and the claim is about them, too.
    assert searched(rows + grows + beyond).verdict == "undecided"
    assert searched(rows + grows + beyond + falls).verdict == "contradicted"


def test_a_search_that_gains_nothing_in_the_whole_space_has_no_share_of_it() -> None:
    rows = best("all", RIGHT, 0.0) + best("random:10", RIGHT, 1.0)
    assert relative_gains(rows, "random:") == []
    gains = best("all", RIGHT, 2.0) + best("random:10", RIGHT, 1.0)
    shares = [row["ratio"] for row in relative_gains(gains, "random:")]
    assert shares == pytest.approx([0.5] * 3)


def test_searches_without_a_best_sigma_do_not_enter_the_gain_of_those_with_one() -> None:
    rows = best("all", RIGHT, 1.0) + best("random:10", RIGHT, 1.0)
    bare = best("random:10", RIGHT, 9.0, unit="trusted", search=1)
    assert best_gains(rows + bare) == best_gains(rows)


def test_winners_are_listed_by_the_unit_of_their_sigma() -> None:
    """Predicted up to half of sigma*, and up to all of the largest trusted sigma."""
    base = {"table": "winner", "held_out_predicted": 0.0, "step": 0.0}
    rows = [
        base | {"seed": s, "unit": unit, "factor": factor, "selected": gain, "held_out": -gain}
        for s in (0, 1)
        for unit, factor, gain in (
            ("sigma*", 0.5, 0.1), ("sigma*", 1.0, 9.0), ("trusted", 1.0, 0.2), ("trusted", 2.0, 9.0)
        )
    ]  # fmt: skip
    told = {
        (row["in units of"], row["sigma"]): row for row in parts(searched(rows), "Gain of the win")
    }
    trusted = "the largest trusted sigma"
    gains = {at: row["on the selection batch"] for at, row in told.items()}
    assert gains == {
        ("sigma*", 0.5): pytest.approx(0.1), ("sigma*", 1.0): 9.0,
        (trusted, 1.0): pytest.approx(0.2), (trusted, 2.0): 9.0,
    }  # fmt: skip
    assert all(row["held out"] == -row["on the selection batch"] for row in told.values())
    assert all(row["predicted held out"] == 0 for row in told.values())
    reached = {at for at, row in told.items() if row["in the predicted range"]}
    assert reached == {("sigma*", 0.5), (trusted, 1.0)}


def test_the_gain_of_a_place_is_that_of_its_best_sigma_and_most_candidates() -> None:
    gains = best_gains(best("all", RIGHT, 1.0))
    assert [row["value"] for row in gains] == pytest.approx([1.0, 1.01, 1.02])


def test_places_are_ranked_within_their_network() -> None:
    rows = best("all", RIGHT, 2.0) + best("name:embed", RIGHT, 1.0, density=4.0)
    for row in ranked(rows):
        alone = row["place"] == "name:embed"
        assert row["value"] == pytest.approx(0.5 if alone else 1.0)
        assert row["density"] == (1.0 if alone else 0.25)
        assert row["density_over_curvature"] == 1.0


def test_rules_at_equality() -> None:
    """An interval that touches its limit is not beyond it."""
    assert rank(energy([1.0, 1.0], null=1.0)).verdict == "undecided"
    assert rank(energy([0.5, 0.5], null=0.5)).verdict == "undecided"
    assert drift(drifts([0.7, 0.7], 1.0)).verdict == "undecided"
    assert drift(drifts([0.3, 0.3], 0.95)).verdict == "undecided"
    for static, prefix in ((0.25, 0.6), (0.125, 0.125)):
        rows = captures("other tasks", [static] * 2) + captures("prefix", [prefix] * 2)
        assert fixed_plane(rows).verdict == "undecided"
    assert prefix_span(captures("prefix", [0.8, 0.8], lift=1.0)).verdict == "undecided"
    covered = best("all", [0.9, 0.9], 1.0) + best("random:10", [0.9, 0.9], 1.0)
    assert searched(covered).verdict == "supported"
    assert prefix_span(captures("prefix", [0.77, 0.77], lift=1.5)).verdict == "supported"
    for gain, verdict in ((3.0, "supported"), (5.0, "supported"), (2.9, "contradicted")):
        rows = best("all", RIGHT, 1.0) + best("random:10", RIGHT, 1.0)
        even = [row | {"gain": 4.0 if row["place"] == "all" else gain} for row in rows]
        assert searched(even).verdict == verdict


RANKS = "Spearman's rank correlation"


@pytest.mark.parametrize("order", [1, -1])
def test_c5_says_how_well_either_prediction_ranks_the_places(order: int) -> None:
    """The rank correlation, by density and by density over curvature, compared with chance."""
    places = ["all", "name:a", "name:b", "name:c", "name:d"]
    rows = [
        row
        for i, place in enumerate(places)
        for row in best(
            place, RIGHT, 1.0 + i, density=1.0 + order * 0.1 * i, density_over_curvature=2.0 + i
        )
    ]
    by_density, by_curvature = parts(searched(rows), RANKS)
    names = ("ranked by", "correlation", "low", "high")
    at = pytest.approx(order)
    assert [by_density[name] for name in names] == ["signal density", at, at, at]
    assert [by_curvature[name] for name in names[1:]] == pytest.approx([1.0] * 3)
    counted = ("by chance", "mean places per case", "cases")
    assert [by_density[name] for name in counted] == [0, 5, 3]
    fewer = [row for row in rows if row["place"] != "name:d" or row["seed"] != 0]
    mean = parts(searched(fewer), RANKS)[0]["mean places per case"]
    assert mean == pytest.approx((4 + 5 + 5) / 3)


@pytest.mark.parametrize(
    ("unit", "largest", "compared"),
    [("sigma*", 1.0, True), ("sigma*", 2.0, False), ("trusted", 1.0, False)],
)
def test_a_best_sigma_at_the_end_counts_at_sigma_star_alone(
    unit: str, largest: float, compared: bool
) -> None:
    """Which is trusted if nothing beyond it was searched."""
    rows = best("all", RIGHT, 1.0)
    for row in best("random:10", RIGHT, 1.0, unit=unit):
        rows.append(row | {"factor": largest if row["factor"] == 1.0 else 0.5})
    assert bool(relative_gains(rows, "random:")) is compared
    assert {row["bracketed"] for row in best_gains(rows) if row["place"] != "all"} == {compared}


def test_gains_have_no_share_of_a_whole_space_that_was_not_searched() -> None:
    rows = best("all", RIGHT, 1.0) + best("random:10", RIGHT, 1.0, task="b")
    assert relative_gains(rows, "random:") == []
    assert (most_candidates(rows), most_candidates([])) == (8, 1)


def test_places_that_gain_nothing_have_no_rank() -> None:
    rows = ranked(best("all", RIGHT, 0.0) + best("name:embed", RIGHT, 0.0))
    assert {row["value"] for row in rows} == {None}
    assert {row["density"] for row in rows} == {1.0}


def test_c5_counts_curvature_up_to_a_fifth_of_the_slope() -> None:
    rows = best("random:10", [0.0, 0.0], 1.0, second_order=0.21)
    rows += best("name:a", [1.0, 1.0], 1.0, second_order=0.2)
    near, far = parts(searched(rows), "Searches inside their band in all places")
    assert (near["spread by curvature over that by slope"], near["share inside"]) == (
        "up to 0.2",
        1.0,
    )
    assert (far["spread by curvature over that by slope"], far["share inside"]) == (
        "above 0.2",
        0.0,
    )
    assert near["nominal share"] == pytest.approx(0.95)


BANDS = "Searches inside their predicted 95% band"


def test_c5_lists_coverage_and_gains_of_most_candidates_by_sigma() -> None:
    rows = [
        row | {"inside": inside, "factor": factor}
        for factor, inside in ((0.25, 1.0), (0.5, 0.9), (1.0, 0.875))
        for row in best("all", RIGHT, 1.0)
        if row["factor"] == 1.0
    ]
    told = parts(searched([*rows, *best("name:a", [0.0] * 3, 9.0)]), BANDS)
    assert [row["sigma"] for row in told] == [0.25, 0.5, 1.0]
    assert [row["share inside"] for row in told] == pytest.approx([1.0, 0.9, 0.875])
    assert [row["in the predicted range"] for row in told] == [True, True, False]
    for row in told:
        assert row["nominal share"] == pytest.approx(0.95)
        # Over seeds, 1 + 0.01 s of the best of 8.
        assert row["gain of the best of 8"] == pytest.approx(1.01)
        assert row["predicted gain"] == 1.0


def test_intervals_of_coverage_stay_within_0_and_1() -> None:
    (row, _) = parts(searched(best("all", [0.5, 1.0], 1.0)), BANDS)
    assert (row["low"], row["share inside"], row["high"]) == (0.0, 0.75, 1.0)


def test_c5_warns_of_searches_without_a_best_sigma_and_of_gains_that_are_not_compared() -> None:
    rows = best("all", RIGHT, 1.0) + best("random:10", RIGHT, 1.0)
    places = [{"table": "place", "seed": s, "sigma_star": 0.1} for s in range(3)]
    assert searched(rows + places).notes == ()
    (bare,) = searched([*rows, *places, {"table": "place", "sigma_star": None}]).notes
    assert bare.startswith("1 of 4 searches")
    grows = best("random:100", RIGHT, 9.0, unit="trusted")
    finding = searched(rows + grows)
    (uncompared,) = finding.notes
    assert "6 gains" in uncompared
    assert "3 cannot" in uncompared
    _, row = parts(finding, "Gain at the best sigma")
    assert (row["random directions"], row["share"]) == (100, None)
    assert (row["cases compared"], row["cases"]) == (0, 3)


def test_a_gain_beyond_a_quarter_more_contradicts_c5() -> None:
    rows = best("all", RIGHT, 1.0) + best("random:10", RIGHT, 1.3)
    assert searched(rows).verdict == "contradicted"


def test_places_are_ranked_from_four_on_and_by_what_differs() -> None:
    """Interval of a rank correlation: down to -1, and no further."""

    def rows(places: int, turned: tuple[int, ...] = (), **changes: object):
        return [
            row | {"density": (5.0 - i if row["seed"] in turned else 1.0 + i)} | changes
            for i in range(places)
            for row in best(f"name:{i}", RIGHT, 1.0 + i)
        ]

    (row,) = parts(searched(rows(4)), RANKS)
    assert [row[name] for name in ("correlation", "low", "high")] == pytest.approx([1.0] * 3)
    assert parts(searched(rows(3)), RANKS) == []
    assert parts(searched(rows(4, density=1.0)), RANKS) == []
    (row,) = parts(searched(rows(4, turned=(0, 1))), RANKS)
    found = [row[name] for name in ("correlation", "low", "high")]
    assert found == pytest.approx([-1 / 3, -1.0, 1.0])


def directions(**changes: object) -> list[dict[str, object]]:
    """Rows of two directions in the tables of direction-scale, over three seeds."""
    base = {"space": "full", "task": "a", "where": "weights", "eps": 0.2, "has_share": True}
    return [
        base | {"direction": d, "seed": s, "sign": sign, "lag": lag} | changes
        for d in ("gradient", "random")
        for s in range(3)
        for sign in (1, -1)
        for lag in (0, 1, 100)
    ]


def values(chart: object) -> list[dict[str, object]]:
    """All data of a chart."""
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows]  # type: ignore[attr-defined]


def test_charts_of_direction_scale_hold_what_they_show() -> None:
    """Every direction along its sign, every lag but the start, and a line at a half, for stale."""
    radii = values(scale.radius_chart(directions(relative=0.5, relative_predicted=1.0)))
    assert {row["direction"] for row in radii} == {"gradient", "random"}
    assert {round(float(str(row["value"])), 9) for row in radii} == {0.5, 1.0}
    chart = scale.share_chart(directions(ratio=0.8))
    layers = chart.to_dict()["spec"]["layer"]  # type: ignore[attr-defined]
    assert all(part["encoding"]["y"]["scale"]["domain"] == [0, 1.2] for part in layers)
    shares = values(chart)
    assert {row["lag"] for row in shares if "lag" in row} == {1, 100}
    assert {row["at"] for row in shares if "at" in row} == {0.5}
    ends = {"steps_low": 0.0, "steps_high": 20.0}
    lives = values(scale.map_chart(directions(relative=0.5, **ends)))
    assert {(row["life"], row["after"], row["by"]) for row in lives} == {(20.0, 0.5, 20.0)}
    lives = values(scale.map_chart(directions(relative=0.5, steps_low=50.0, steps_high=None)))
    assert {row["life"] for row in lives} == {50.0}


def test_a_radius_that_is_only_a_lower_bound_says_so() -> None:
    rows = directions(relative=0.5, relative_predicted=1.0, unbounded=False)
    open_ended = [row | {"unbounded": row["direction"] == "random"} for row in rows]
    shown = values(scale.radius_chart(open_ended))
    assert {(row["direction"], row["series"]) for row in shown} == {
        ("gradient", scale.FOUND), ("random", scale.AT_LEAST),
        ("gradient", scale.QUADRATIC), ("random", scale.QUADRATIC),
    }  # fmt: skip


def test_deviations_are_shown_for_the_first_seed_where_they_can_be_seen() -> None:
    rows = [
        row | {"share": share, "deviation": deviation + 10 * row["seed"] + (row["sign"] < 0)}
        for row in directions()
        for share, deviation in ((1e-3, 1.0), (1.1e-3, 2.0), (1.0, 0.0), (29.0, 4.0), (30.0, 6.0))
    ]
    shown = [row for row in values(scale.deviation_chart(rows)) if "deviation" in row]
    assert {row["deviation"] for row in shown} == {2.0, 4.0}


def test_the_map_holds_directions_with_a_share_a_radius_and_a_lifetime() -> None:
    ends = {"steps_low": 10.0, "steps_high": 20.0}
    given = {"has_share": True, "relative": 0.5, **ends}
    for missing in ({"has_share": False}, {"relative": None}, {"steps_low": None}):
        rows = directions(**given) + directions(**given | missing, task="missing")
        points = values(scale.map_chart(rows))
        assert len(points) == len(directions())
        assert {(row["life"], row["after"], row["by"]) for row in points} == {(20.0, 10.0, 20.0)}


def test_panels_name_the_unit_of_the_space_that_has_another() -> None:
    rows = directions(relative=0.5, steps_low=1.0, steps_high=2.0, share_of="weights")
    rows += [row | {"space": "lora", "share_of": "factors"} for row in rows]
    panels = {row["panel"] for row in values(scale.map_chart(rows))}
    assert panels == {"full", "lora, over the norm of the factors"}


def test_a_radius_of_zero_has_no_place_on_a_logarithmic_axis() -> None:
    rows = directions(relative=0.5, relative_predicted=None)
    none = [row | {"relative": 0.0} for row in rows if row["direction"] == "random"]
    kept = [row for row in rows if row["direction"] != "random"]
    assert values(scale.radius_chart(kept + none)) == values(scale.radius_chart(kept))


def test_one_row_has_a_deviation_and_its_limit() -> None:
    (row, *_) = directions(share=1.0, deviation=0.1, eps=0.3)
    shown = values(scale.deviation_chart([row]))
    assert [row["at"] for row in shown if "at" in row] == [0.3]
    assert [row["deviation"] for row in shown if "deviation" in row] == [0.1]


def test_the_drift_chart_names_the_space_where_there_are_several() -> None:
    for spaces, named in ((["full"], False), (["full", "lora"], True)):
        rows = [row for space in spaces for row in drifts([0.5, 0.5], 1.0, space=space)]
        paths = {row["path"] for row in values(drift_chart(rows)) if "path" in row}
        wanted = {f"adam:1e-3, {space}" if named else "adam:1e-3" for space in spaces}
        assert paths == {*wanted, "frozen control", "threshold"}


def test_what_a_measure_is_compared_with_is_of_the_same_cases() -> None:
    """The control of a case without the measure says nothing about the others."""
    rows = [
        {"a": 1, "seed": 0, "v": 1.0, "o": 5.0},
        {"a": 1, "seed": 1, "v": None, "o": 100.0},
        {"a": 1, "seed": 2, "v": float("nan"), "o": 100.0},
    ]
    (table,) = breakdown("t", rows, by=("a",), values={"v": "V", "o": "O"}, counts={"v": "n"})
    assert table.rows == (
        {"a": 1, "V": 1.0, "low": None, "high": None, "seeds": 1, "O": 5.0, "n": 1},
    )


def test_c5_is_open_if_no_case_of_some_number_of_directions_can_be_compared() -> None:
    rows = best("all", RIGHT, 1.0) + best("random:10", RIGHT, 1.0)
    assert searched(rows).verdict == "supported"
    bare = [row | {"gain": -1.0} for row in best("random:1000", RIGHT, 1.0)]
    # A place whose best sigma is the largest one tried has no gain that counts.
    unbracketed = [row | {"factor": 4.0, "unit": "trusted"} for row in bare]
    finding = searched(rows + unbracketed)
    assert (finding.verdict, "1000 random directions" in finding.why) == ("undecided", True)
