"""The rules that decide the claims, on rows made for them."""

from dataclasses import replace

import pytest

from frenet.experiments.direction_scale import figures as scale
from frenet.experiments.intervals import breakdown, estimate, fraction, high, low, over_seeds
from frenet.experiments.recovery_basis import findings as recovery_findings
from frenet.experiments.recovery_basis.figures import held
from frenet.experiments.recovery_basis.findings import fixed_plane, prefix_span


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


def captures(basis: str, values: list[float], **changes: object) -> list[dict[str, object]]:
    base = {"table": "capture", "basis": basis, "k": 10, "space": "lora", "optimizer": "adam:1e-3"}
    context = {"walk_share": 0.3, "k_over_stop": 0.2, "protocol": "noise"}
    return [
        base | context | {"seed": s, "captured": v, "lift": v / 0.3} | changes
        for s, v in enumerate(values)
    ]


PREFIX = [0.60, 0.61, 0.62]


@pytest.mark.parametrize(
    ("static", "prefix", "verdict"),
    [
        ([0.10, 0.11, 0.12], PREFIX, "supported"),
        ([0.30, 0.31, 0.32], PREFIX, "contradicted"),
        ([0.10, 0.11, 0.12], [0.05, 0.06, 0.07], "contradicted"),
        ([0.10, 0.20, 0.30], PREFIX, "undecided"),
    ],
)
def test_c2(static: list[float], prefix: list[float], verdict: str) -> None:
    rows = captures("other tasks", static) + captures("prefix", prefix)
    assert fixed_plane(rows).verdict == verdict


def test_c2_takes_the_best_static_basis_and_no_basis_from_the_damaged_point() -> None:
    rows = captures("prefix", PREFIX) + captures("other tasks", [0.01, 0.01, 0.01])
    rows += captures("damage direction", [0.10, 0.11, 0.12], k=1)
    rows += captures("gradients at damage", [0.9, 0.9, 0.9])
    finding = fixed_plane(rows)
    assert finding.verdict == "supported"
    assert "damage direction" in finding.quantity


def test_c2_compares_bases_on_the_same_recoveries() -> None:
    """One that is over too soon for k = 10 has the damage direction, and no prefix to compare."""
    rows = captures("prefix", PREFIX) + captures("gradients at start", [0.2, 0.21, 0.22])
    rows += captures("damage direction", [0.1, 0.1, 0.1], k=1)
    short = captures("damage direction", [0.9, 0.9, 0.9], k=1, optimizer="sgd:1")
    short += captures("prefix", PREFIX, k=5, optimizer="sgd:1")
    finding = fixed_plane(rows + short)
    assert "gradients at start" in finding.quantity
    assert finding.estimate == fixed_plane(rows).estimate
    _, apart = finding.breakdowns
    assert [row["optimizer"] for row in apart.rows] == ["adam:1e-3"]
    # If no recovery is long enough for k = 10, all are compared at the largest k that they have.
    alone = fixed_plane(short)
    assert alone.verdict == "contradicted"
    assert "k = 5" in alone.quantity


def test_c2_holds_where_it_holds_in_every_space() -> None:
    """And shows the space with the higher capture; a mean over both would hide it."""
    lora = captures("prefix", PREFIX) + captures("other tasks", [0.01, 0.02, 0.03])
    for static, verdict in ((0.1, "supported"), (0.25, "undecided"), (0.5, "contradicted")):
        values = [static - 0.01, static, static + 0.01]
        full = captures("prefix", PREFIX, space="full")
        full += captures("gradients at start", values, space="full")
        finding = fixed_plane(lora + full)
        assert finding.verdict == verdict
        assert finding.estimate.value == pytest.approx(static)
        assert "(gradients at start), k = 10, full space" in finding.quantity
        spaces = finding.breakdowns[0].rows
        named = [(row["space"], row["basis"], row["k"], row["verdict"]) for row in spaces]
        assert named == [
            ("full", "gradients at start", 10, verdict), ("lora", "other tasks", 10, "supported")
        ]  # fmt: skip
        # Of both: standard error 0.01 / sqrt(3), t(2) = 4.302653.
        half = 4.302652729911275 * 0.01 / 3**0.5
        for row, captured in zip(spaces, (static, 0.02), strict=True):
            held = [row[name] for name in ("captured", "captured, low", "captured, high")]
            assert held == pytest.approx([captured, max(0, captured - half), captured + half])
            kept = [row[name] for name in ("prefix", "prefix, low", "prefix, high")]
            assert kept == pytest.approx([0.61, 0.61 - half, 0.61 + half])
    assert "verdict" not in fixed_plane(lora).breakdowns[0].rows[0]


def recoveries(statuses: list[str], **changes: object) -> list[dict[str, object]]:
    """Rows of recoveries that go with captures(), one replicate for each status."""
    base = {"table": "recovery", "space": "lora", "optimizer": "adam:1e-3", "protocol": "noise"}
    return [
        base | {"seed": s, "status": status, "replicate": r, "stop": 40} | changes
        for s in (0, 1, 2)
        for r, status in enumerate(statuses)
    ]


def test_c2_counts_the_cases_that_it_stands_on_and_says_why_others_do_not_count() -> None:
    rows = captures("prefix", PREFIX) + captures("other tasks", [0.1, 0.1, 0.1])
    rows += recoveries(["recovered", "recovered"])
    held, apart = fixed_plane(rows).breakdowns
    rows += recoveries(["recovered", "recovered"], optimizer="sgd:1")
    rows += recoveries(["not damaged"], protocol="zeroed-head")
    rows += recoveries(["recovered", "not recovered"], protocol="ascent")
    rows += recoveries(["shallow", "recovered"], protocol="labels")
    *same, outcomes = fixed_plane(rows).breakdowns
    assert same == [held, apart]
    assert [(row["cases"], row["of"]) for row in outcomes.rows] == [(3, 15)] * 5
    named = [str(row["outcome"]) for row in outcomes.rows]
    assert "29 steps that k = 10" in named[1]
    assert named[2:] == ["not damaged by zeroed-head", "not recovered", "shallow"]


def test_c4_warns_on_how_many_recoveries_it_stands() -> None:
    rows = captures("prefix", [0.8, 0.8, 0.8], k=5, replicate=0)
    rows += recoveries(["recovered"])
    assert prefix_span(rows).notes == ()
    rows += recoveries(["recovered"], optimizer="adam:1") + recoveries(["recovered"], space="full")
    (caution,) = prefix_span(rows).notes
    assert all(words in caution for words in ("k = 5", "3 of the 6", "15 steps"))
    rows += recoveries(["not recovered"], optimizer="adam:9", stop=None)
    lost, same = prefix_span(rows).notes
    assert ("3 of 9" in lost, same) == (True, caution)


def test_c2_and_c4_say_what_each_damage_and_optimiser_gave() -> None:
    rows = captures("prefix", [0.8, 0.8, 0.8]) + captures("prefix", [0.4] * 3, protocol="labels")
    rows += captures("prefix", [0.6] * 3, optimizer="sgd:1")
    conditions = [("lora", "noise", "adam:1e-3"), ("lora", "labels", "adam:1e-3")]
    conditions += [("lora", "noise", "sgd:1")]
    for finding, name in ((fixed_plane(rows), "prefix"), (prefix_span(rows), "captured")):
        parts = finding.breakdowns[-1].rows
        assert [r["recoveries"] for r in parts] == [3, 3, 3]
        assert [(r["space"], r["protocol"], r["optimizer"]) for r in parts] == conditions
        assert [r[name] for r in parts] == pytest.approx([0.8, 0.4, 0.6])


def test_c2_lists_capture_and_function_of_every_basis_and_names_where_they_disagree_most() -> None:
    rows = captures("prefix", PREFIX, regained=0.62, regained_full=0.9, chance=0.01)
    assert fixed_plane(rows).notes == ()
    rows += captures("gradients at start", [0.3, 0.3, 0.3], regained=0.5)
    rows += captures("damage direction", [0.01, 0.01, 0.01], k=1, regained=0.9)
    finding = fixed_plane(rows)
    caution = finding.notes[-1]
    assert all(words in caution for words in ("damage direction", "lora", "0.010", "0.90"))
    held = finding.breakdowns[0].rows
    assert [(row["basis"], row["k"], row["recoveries"]) for row in held] == [
        ("prefix", 10, 3), ("gradients at start", 10, 3), ("damage direction", 1, 3)
    ]  # fmt: skip
    assert [row["captured"] for row in held] == pytest.approx([0.61, 0.3, 0.01])
    assert [row["loss regained"] for row in held] == pytest.approx([0.62, 0.5, 0.9])
    whole = held[0]["regained by the whole displacement"]
    assert (whole, held[0]["chance"]) == pytest.approx((0.9, 0.01))


@pytest.mark.parametrize(("regained", "said"), [(0.70, False), (0.72, True)])
def test_capture_and_function_disagree_from_a_difference_of_0_1(regained: float, said: bool):
    rows = captures("prefix", PREFIX, regained=regained)  # captured: 0.61 in the mean
    assert any("is not function" in note for note in fixed_plane(rows).notes) is said


def test_c2_warns_where_a_static_basis_is_not_small() -> None:
    """The largest of each damage and optimiser counts; 0.25 itself is not small."""
    rows = captures("prefix", PREFIX) + captures("task vectors", [0.1, 0.1, 0.1])
    rows += captures("prefix", PREFIX, optimizer="sgd:1")
    assert fixed_plane(rows).notes == ()
    held = (("a", 0.25, 0.125), ("b", 0.24, 0.0), ("c", 0.0, 0.5))
    rows += [
        row
        for optimizer, other, vectors in held
        for basis, value in (("other tasks", other), ("task vectors", vectors), ("prefix", 0.75))
        for row in captures(basis, [value] * 2, optimizer=optimizer)
    ]
    finding = fixed_plane(rows)
    (caution,) = finding.notes
    assert all(words in caution for words in ("2 of 4", "0.25", "0.50"))
    table = {row["optimizer"]: row for row in finding.breakdowns[-1].rows}
    for optimizer, other, vectors in held:
        assert table[optimizer]["other tasks"] == pytest.approx(other)
        assert table[optimizer]["task vectors"] == pytest.approx(vectors)


@pytest.mark.parametrize(
    ("static", "prefix", "line"), [(0.25, 0.125, "the prefix"), (0.5, 0.125, "0.25")]
)
def test_c2_says_below_what_its_best_static_basis_is_not(
    static: float, prefix: float, line: str
) -> None:
    rows = captures("other tasks", [static] * 2) + captures("prefix", [prefix] * 2)
    finding = fixed_plane(rows)
    assert (finding.verdict, line in finding.why) == ("contradicted", True)


def test_capture_and_function_disagree_by_0_1_itself() -> None:
    rows = captures("prefix", [0.0, 0.0], regained=0.1)
    assert any("is not function" in note for note in fixed_plane(rows).notes)


def test_c4_breaks_down_what_it_has_up_to_k_10() -> None:
    """A condition of larger k alone has no number."""
    rows = captures("prefix", [0.8] * 3) + captures("prefix", [0.1] * 3, space="full")
    rows += captures("prefix", [0.9] * 3, k=16, optimizer="sgd:2")
    (table,) = prefix_span(rows).breakdowns
    assert [(row["k"], row["captured"] is None) for row in table.rows] == [
        (10, False), (10, False), (0, True)
    ]  # fmt: skip


def test_a_half_is_not_most_of_a_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    reaching = replace(recovery_findings.REACHING, within=(0.5, 1.0))
    monkeypatch.setattr(recovery_findings, "REACHING", reaching)
    assert prefix_span(captures("prefix", [0.5, 0.5], lift=2.0)).verdict == "undecided"
    assert prefix_span(captures("prefix", [0.75, 0.75], lift=2.0)).verdict == "supported"


@pytest.mark.parametrize(
    ("values", "lift", "verdict"),
    [
        ([0.80, 0.81, 0.82], 2.0, "supported"),
        ([0.80, 0.81, 0.82], 1.0, "undecided"),
        ([0.45, 0.50, 0.60], 2.0, "contradicted"),
        ([0.30, 0.50, 0.80], 2.0, "undecided"),  # wide enough to reach 0.77, and below 0.5
        ([0.40, 0.41, 0.42], 2.0, "contradicted"),
        ([0.40], 2.0, "undecided"),
    ],
)
def test_c4(values: list[float], lift: float, verdict: str) -> None:
    assert prefix_span(captures("prefix", values, lift=lift)).verdict == verdict


def test_c4_lists_each_condition_at_its_largest_k_up_to_10() -> None:
    rows = [
        row
        for k, values in ((5, [0.5] * 3), (10, [0.75] * 3), (16, [0.9] * 3))
        for row in captures("prefix", values, k=k, rest=0.25)
    ]
    (part,) = prefix_span(rows).breakdowns[0].rows
    assert (part["k"], part["captured"], part["recoveries"]) == (10, 0.75, 3)
    assert (part["random walk"], part["captured of the rest"]) == (pytest.approx(0.3), 0.25)


def test_c4_is_about_lora() -> None:
    rows = captures("prefix", [0.80, 0.81, 0.82], space="full", lift=2.0)
    assert prefix_span(rows).verdict == "undecided"


def test_c4_shows_the_dimension_that_comes_closest_and_not_the_widest_interval() -> None:
    wide = captures("prefix", [0.6, 0.65, 0.7], k=2, lift=2.0)
    narrow = captures("prefix", [0.76, 0.77, 0.78], k=5, lift=2.0)
    finding = prefix_span(wide + narrow)
    assert finding.quantity == "LoRA recovery captured by the first 5 updates"
    assert finding.estimate is not None
    assert finding.estimate.value == pytest.approx(0.77)
    assert "at k = 5" in finding.why


def test_a_run_that_has_ended_stays_at_its_last_loss() -> None:
    group = {"optimizer": "adam:1e-3", "protocol": "ascent", "space": "full", "replicate": 0}
    short = {**group, "seed": 0, "task": "sort"}
    long = {**group, "seed": 1, "task": "sort"}
    rows = [{**short, "step": 0, "loss": 3.0}, {**short, "step": 2, "loss": 1.0}]
    rows += [{**long, "step": s, "loss": 4.0 - s} for s in (0, 1, 4)]
    found = {(row["seed"], row["step"]): row["loss"] for row in held(rows)}
    assert [found[0, s] for s in (0, 1, 2, 4)] == [3.0, 2.0, 1.0, 1.0]
    assert [found[1, s] for s in (0, 1, 2, 4)] == [4.0, 3.0, 2.0, 0.0]


def test_rules_at_equality() -> None:
    """An interval that touches its limit is not beyond it."""
    for static, prefix in ((0.25, 0.6), (0.125, 0.125)):
        rows = captures("other tasks", [static] * 2) + captures("prefix", [prefix] * 2)
        assert fixed_plane(rows).verdict == "undecided"
    assert prefix_span(captures("prefix", [0.8, 0.8], lift=1.0)).verdict == "undecided"
    assert prefix_span(captures("prefix", [0.77, 0.77], lift=1.5)).verdict == "supported"


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


def test_without_a_measured_prefix_no_k_is_named() -> None:
    assert prefix_span([]).quantity == "LoRA recovery captured by the first few updates"


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


def test_c2_is_open_for_a_space_whose_recoveries_do_not_count() -> None:
    rows = captures("other tasks", [0.01] * 3) + captures("prefix", [0.6] * 3)
    assert fixed_plane(rows).verdict == "supported"
    lost = {"table": "recovery", "seed": 0, "task": "a", "protocol": "p", "optimizer": "o"}
    finding = fixed_plane([*rows, {**lost, "space": "other", "status": "not recovered"}])
    assert (finding.verdict, "in the other space" in finding.why) == ("undecided", True)
