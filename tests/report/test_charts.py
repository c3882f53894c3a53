"""Charts: means over seeds, grey references, and that everything can be drawn."""

import math
import subprocess
import sys
from typing import Any

import pytest

from frenet.experiments import intervals
from frenet.experiments.experiment import Row
from frenet.experiments.figures import charts
from frenet.experiments.figures.charts import Axis, Rule
from frenet.experiments.figures.series import GREY, PALETTE
from frenet.report.figures import svg

CURVE: list[Row] = [
    {"k": k, "series": name, "value": 0.1 * k * scale, "low": 0.08 * k * scale, "high": 0.12 * k}
    for name, scale in (("measure", 1.0), ("null", 0.1))
    for k in (1, 2, 4)
]


def layers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return list(spec["spec"]["layer"] if "facet" in spec else spec["layer"])


def scale_of(spec: dict[str, Any], channel: str) -> dict[str, Any]:
    return next(
        layer["encoding"][channel]["scale"]
        for layer in layers(spec)
        if channel in layer.get("encoding", {})
    )


def drawn(spec: dict[str, Any]) -> str:
    spec.pop("$schema", None)
    return svg(spec)


def test_aggregate_is_the_mean_with_students_interval() -> None:
    rows: list[Row] = [{"k": 1, "seed": s, "x": x} for s, x in enumerate((1.0, 2.0, 3.0))]
    (row,) = intervals.aggregate(rows, by=("k",), value="x")
    assert (row["k"], row["value"], row["n"]) == (1, 2.0, 3)
    # t with 2 degrees of freedom at 97.5% is 4.302653, the standard error 1 / sqrt(3).
    assert row["low"] == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert row["high"] == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def test_one_seed_has_no_interval_and_what_is_missing_is_not_counted() -> None:
    rows: list[Row] = [
        {"k": 1, "x": 0.5},
        {"k": 1, "x": None},
        {"k": 1, "x": float("nan")},
        {"k": 2, "x": None},
        {"k": 3},
    ]
    assert intervals.aggregate(rows, by=("k",), value="x") == [
        {"k": 1, "value": 0.5, "low": None, "high": None, "n": 1}
    ]


def test_groups_keep_their_order_of_appearance() -> None:
    rows: list[Row] = [{"task": t, "x": 1.0} for t in ("sort", "copy", "sort", "add")]
    found = intervals.aggregate(rows, by=("task",), value="x")
    assert [row["task"] for row in found] == ["sort", "copy", "add"]


def test_an_unknown_column_is_an_error_that_lists_the_columns() -> None:
    with pytest.raises(
        ValueError, match="no row has the column 'energie'; the rows have energy, k"
    ):
        intervals.aggregate([{"k": 1, "energy": 0.5}], by=("k",), value="energie")
    with pytest.raises(ValueError, match="no row has the column 'lo' to draw; the rows have"):
        charts.lines(CURVE, x="k", interval=("lo", "high"))


def test_melt_stacks_measure_and_null() -> None:
    rows: list[Row] = [{"k": 1, "energy": 0.5, "null": 0.1}, {"k": 1, "energy": 0.7, "null": 0.1}]
    found = intervals.melt(rows, by=("k",), values={"energy": "measured", "null": "chance"})
    assert [(row["series"], row["value"]) for row in found] == [("measured", 0.6), ("chance", 0.1)]


def test_nulls_and_levels_are_grey_dashed_and_in_the_legend() -> None:
    spec = charts.lines(
        CURVE,
        x="k",
        rules=("null", Rule("paper: 0.77", 0.77), Rule("band", 0.1, 0.2)),
        direct=False,
    ).to_dict()
    colours = scale_of(spec, "color")
    assert colours["domain"] == ["measure", "null", "paper: 0.77", "band"]
    assert colours["range"] == [PALETTE[0], GREY, GREY, GREY]
    dashes = scale_of(spec, "strokeDash")["range"]
    assert dashes[0] == [1, 0]
    assert len({tuple(dash) for dash in dashes}) == 4
    line = next(layer for layer in layers(spec) if layer["mark"]["type"] == "line")
    assert line["encoding"]["color"]["legend"]["symbolStrokeWidth"] == 0
    picture = drawn(spec)
    for word in colours["domain"]:
        assert f">{word}</text>" in picture


def test_the_ninth_series_takes_the_first_colour_with_a_dash() -> None:
    rows: list[Row] = [
        {"k": k, "series": f"s{i}", "value": 0.5} for i in range(9) for k in (1, 2, 3)
    ]
    spec = charts.lines(rows, x="k", interval=None).to_dict()
    assert scale_of(spec, "color")["range"] == [*PALETTE, PALETTE[0]]
    assert scale_of(spec, "strokeDash")["range"][7:] == [[1, 0], [7, 4]]


def test_a_logarithmic_axis_refuses_zero() -> None:
    rows: list[Row] = [*CURVE, {"k": 0, "series": "measure", "value": 0.0}]
    with pytest.raises(ValueError, match="logarithmic axis 'k' got the value 0; leave such rows"):
        charts.lines(rows, x=Axis("k", log=True))


def test_a_null_that_no_row_has_is_left_out_of_the_chart_and_of_its_legend() -> None:
    rules = ("null", "ceiling", Rule("level", 0.3))
    for rows in (CURVE, CURVE[:3]):
        there = [name for name in ("measure", "null") if any(r["series"] == name for r in rows)]
        for chart in (
            charts.lines(rows, x="k", rules=rules),
            charts.dots(rows, row="k", colour="series", rules=rules),
            charts.scatter(rows, x="k", y="value", colour="series", rules=rules),
        ):
            spec = chart.to_dict()
            colours = scale_of(spec, "color")
            assert colours["domain"] == [*there, "level"]
            assert colours["range"] == [PALETTE[0], *[GREY] * (len(there) - 1), GREY]
            assert "ceiling" not in drawn(spec)


def test_a_domain_makes_room_for_values_and_levels_but_not_for_intervals() -> None:
    rows: list[Row] = [{"k": 1, "series": "a", "value": 1.2, "low": -3.0, "high": 9.0}]
    chart = charts.lines(rows, x="k", y=Axis("value", domain=(0, 1)), rules=(Rule("level", -0.5),))
    scale = scale_of(chart.to_dict(), "y")
    assert scale["domain"] == [-0.5, 1.2]
    assert scale["clamp"] is True


def test_a_facet_has_as_many_columns_as_panels_up_to_three() -> None:
    for count, columns in ((1, 1), (2, 2), (4, 2), (5, 3)):
        rows: list[Row] = [row | {"task": f"t{i}"} for i in range(count) for row in CURVE]
        spec = charts.lines(rows, x="k", facet="task", rules=("null",)).to_dict()
        assert spec["columns"] == columns
        assert f">t{count - 1}</text>" in drawn(spec)


def test_panels_of_other_sizes_have_scales_of_their_own_where_that_is_asked() -> None:
    rows = [{**row, "panel": n, "value": n * row["value"]} for row in CURVE for n in (1, 1000)]

    def ticks(y: Axis) -> str:
        chart = charts.lines(rows, x="k", y=y, facet="panel", interval=None)
        return drawn(chart.to_dict())

    # The smaller panel reaches 0.4: its own scale has that tick, one up to 400 has not.
    assert ">0.40<" in ticks(Axis("value", apart=True))
    assert ">0.40<" not in ticks(Axis("value"))


def test_numbers_that_json_lacks_become_gaps() -> None:
    rows: list[Row] = [{"k": 1, "value": float("nan")}, {"k": 2, "value": float("inf")}]
    spec = charts.lines(rows, x="k", interval=None, colour=None).to_dict()
    assert [row["value"] for row in next(iter(spec["datasets"].values()))] == [None, None]


def test_one_seed_is_drawn_without_whiskers() -> None:
    rows: list[Row] = [{"basis": "a", "value": 0.5, "low": None, "high": None}]
    picture = drawn(charts.dots(rows, row="basis").to_dict())
    assert "NaN" not in picture
    assert ">a</text>" in picture


def test_dots_keep_the_order_of_the_rows_and_show_nulls_as_ticks() -> None:
    rows: list[Row] = [
        {"basis": basis, "series": series, "value": value, "low": value - 0.1, "high": value + 0.1}
        for basis in ("prefix", "krylov", "a random one")
        for series, value in (("adam", 0.6), ("sgd", 0.5), ("chance", 0.1))
    ]
    spec = charts.dots(
        rows, row="basis", colour="series", rules=("chance", Rule("paper", 0.77))
    ).to_dict()
    dot = next(layer for layer in layers(spec) if "yOffset" in layer["encoding"])
    assert dot["encoding"]["y"]["sort"] == ["first steps", "krylov", "a random one"]
    assert dot["encoding"]["yOffset"]["scale"]["domain"] == ["adam", "sgd"]
    shapes = scale_of(spec, "shape")["range"]
    assert shapes[:2] == ["circle", "square"]
    assert all(shape.startswith("M") for shape in shapes[2:])
    assert ">paper</text>" in drawn(spec)


def test_few_seeds_are_shown_one_by_one_and_many_by_their_interval() -> None:
    def rows(seeds: int) -> list[Row]:
        measured: list[Row] = [
            {"k": k, "seed": s, "x": k + s} for k in (1, 2, 3) for s in range(seeds)
        ]
        return intervals.aggregate(measured, by=("k",), value="x")

    for seeds, shown in ((3, True), (9, False)):
        for chart, where in ((charts.lines, {"x": "k"}), (charts.dots, {"row": "k"})):
            spec = chart(rows(seeds), colour=None, **where).to_dict()
            marks = {layer["mark"]["type"] for layer in spec["layer"]}
            assert bool({"area", "rule"} & marks) != shown
            data = next(iter(spec["datasets"].values()))
            single = [row["value"] for row in data if row.get("single") is not None]
            assert sorted(single) == (sorted(k + s for k in (1, 2, 3) for s in range(3)) * shown)
            assert spec["description"].endswith("from 2 to 4." if shown else "from 5 to 7.")


def test_two_points_are_no_line() -> None:
    rows: list[Row] = [{"k": k, "series": "s", "value": 0.5} for k in (1, 2, 3)]
    for count, line in ((2, False), (3, True)):
        spec = charts.lines(rows[:count], x="k", interval=None).to_dict()
        assert ("line" in {layer["mark"]["type"] for layer in spec["layer"]}) == line


def test_a_direction_has_one_colour_and_shape_in_every_chart() -> None:
    for names in (("gradient", "prefix"), ("other", "prefix", "task vector"), ("prefix",)):
        rows: list[Row] = [{"k": n, "series": n, "value": 0.5} for n in names]
        spec = charts.dots(rows, row="k", colour="series", interval=None).to_dict()
        colours, shapes = scale_of(spec, "color"), scale_of(spec, "shape")
        place = colours["domain"].index("first steps")
        assert colours["range"][place] == PALETTE[2]
        assert shapes["range"][place] == "triangle-up"
        assert len(set(colours["range"])) == len(set(shapes["range"])) == len(names)


def test_the_heat_map_writes_every_number() -> None:
    rows: list[Row] = [
        {"task": a, "other": b, "value": 0.64 if a == b else 0.03}
        for a in ("copy", "sort")
        for b in ("copy", "sort")
    ]
    picture = drawn(charts.heatmap(rows, x="other", y="task").to_dict())
    assert picture.count(">0.64</text>") == 2
    assert picture.count(">0.03</text>") == 2


def test_the_scatter_draws_the_line_of_agreement_over_all_values() -> None:
    rows: list[Row] = [{"x": 0.2, "y": 0.9, "basis": "a"}, {"x": 0.0, "y": 0.4, "basis": "b"}]
    spec = charts.scatter(rows, x="x", y="y", colour="basis").to_dict()
    ends = [list(data) for data in spec["datasets"].values() if "basis" not in data[0]]
    assert ends == [[{"x": 0.0, "y": 0.0}, {"x": 0.9, "y": 0.9}]]
    plain = charts.scatter(rows, x="x", y="y", diagonal=False).to_dict()
    assert len(plain["layer"]) == len(spec["layer"]) - 1
    assert drawn(spec).startswith("<svg")


def test_charts_say_in_words_what_they_show() -> None:
    chart = charts.lines(CURVE, x=Axis("k", "dimension"), y=Axis("value", "energy"))
    assert chart.to_dict()["description"] == (
        "energy against dimension: measure from 0.1 to 0.4; null from 0.01 to 0.04."
    )


def test_altair_is_loaded_only_to_draw() -> None:
    code = "import sys, frenet.experiments.figures.charts; sys.exit('altair' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_series_without_any_interval_draw_no_band() -> None:
    rows: list[Row] = [
        {"k": k, "series": "s", "value": 0.5, "low": None, "high": None} for k in (1, 2)
    ]
    ends = [row | {"low": 0.25, "high": 0.75} for row in rows]
    for chart in (charts.lines, charts.dots):
        where = {"x": "k"} if chart is charts.lines else {"row": "k"}
        bare, banded = (
            [layer["mark"]["type"] for layer in chart(table, **where).to_dict()["layer"]]
            for table in (rows, ends)
        )
        assert len(banded) == len(bare) + 1
        assert {"area", "rule"} & set(banded)
        assert not {"area", "rule"} & set(bare)
