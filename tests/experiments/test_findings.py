"""The rules that decide the claims, on rows made for them."""

import pytest

from frenet.experiments.direction_scale import figures as scale
from frenet.experiments.intervals import breakdown, estimate, high, low, over_seeds, share
from frenet.statistics.intervals import Estimate, bounded_interval


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


def test_the_interval_of_a_share_stays_in_its_range_and_the_raw_one_decides() -> None:
    wide = [0.0, 1.0]
    rows = [{"seed": s, "x": x} for s, x in enumerate(wide)]
    for least in (0.0, -1.0):
        found = share(rows, "x", least=least)
        assert (found.low, found.high) == bounded_interval(wide, least=least)[1:3]
        assert least <= found.low < found.high <= 1.0
        assert found.raw == estimate(rows, "x").raw == pytest.approx((-5.853, 6.853), abs=1e-3)
    # One seed has no interval, and rounding may leave the range.
    assert share(rows[1:], "x") == Estimate(1.0, unit="seed")
    assert share([], "x") is None
    beyond = [{"seed": s, "x": x} for s, x in enumerate((1.0 + 1e-12, 0.9))]
    assert share(beyond, "x").high == 1.0


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


# The directions of `directions`.
NAMED = ("gradient", "random")


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
    drawn = seeds_of(scale.map_chart(lifetimes(steps_low=0.0, steps_high=20.0)))
    assert {(row["after"], row["by"]) for row in drawn} == {(0.5, 20.0)}
    stale = scale.map_chart(lifetimes(steps_low=100.0, steps_high=None)).to_dict()  # type: ignore[attr-defined]
    assert "went stale" in str(stale)


def lifetimes(**changes: object) -> list[dict[str, object]]:
    """Rows of lifetimes, whose distance is half of the norm of the weights."""
    given = {"table": "lifetime", "share_of": "weights", "relative": 0.5, "longest": 100.0}
    return directions(**{**given, "steps": None, **changes})


def seeds_of(chart: object) -> list[dict[str, object]]:
    """The marks of single seeds in a map."""
    return [row for row in values(chart) if row.get("kind") == "seed"]


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
    shown = [row for row in values(scale.deviation_chart(rows)) if row.get("direction") in NAMED]
    assert {row["deviation"] for row in shown} == {2.0, 4.0}


def test_only_three_directions_are_followed_along_their_lines() -> None:
    rows = [
        row | {"share": 1.0, "deviation": 0.5, "direction": name}
        for row in directions()[:1]
        for name in ("gradient", "task vector", "random", "Adam step", "prefix")
    ]
    shown = {row.get("direction") for row in values(scale.deviation_chart(rows))}
    assert {"gradient", "task vector", "random"} <= shown
    assert not {"Adam step", "first steps"} & shown


def test_the_map_holds_directions_with_a_share_a_radius_and_a_lifetime() -> None:
    """One mark for each direction and seed, on the two measured steps of its lifetime."""
    ends = {"steps_low": 10.0, "steps_high": 20.0}
    whole = lifetimes(**ends)
    for missing in ({"has_share": False}, {"relative": None}, {"steps_low": None}):
        rows = whole + lifetimes(**ends | missing | {"space": "lora"})
        marks = seeds_of(scale.map_chart(rows))
        assert len(marks) == 2 * 3
        assert {row["panel"] for row in marks} == {"all weights"}
        assert {(row["far"], row["after"], row["by"]) for row in marks} == {(0.5, 10.0, 20.0)}


def test_panels_name_the_unit_of_the_space_that_has_another() -> None:
    rows = lifetimes(steps_low=1.0, steps_high=2.0)
    rows += [row | {"space": "lora", "share_of": "factors"} for row in rows]
    panels = {row["panel"] for row in seeds_of(scale.map_chart(rows))}
    assert panels == {"all weights", "LoRA: factors (earlier build)"}


def test_a_radius_of_zero_has_no_place_on_a_logarithmic_axis() -> None:
    rows = directions(relative=0.5, relative_predicted=None)
    none = [row | {"relative": 0.0} for row in rows if row["direction"] == "random"]
    kept = [row for row in rows if row["direction"] != "random"]
    assert values(scale.radius_chart(kept + none)) == values(scale.radius_chart(kept))


def test_one_row_has_a_deviation_and_its_limit() -> None:
    (row, *_) = directions(share=1.0, deviation=0.1, eps=0.3)
    shown = values(scale.deviation_chart([row]))
    assert [row["at"] for row in shown if "at" in row] == [0.3]
    assert [row["deviation"] for row in shown if row.get("direction") in NAMED] == [0.1]


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
