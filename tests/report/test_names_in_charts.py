"""Names in charts in place of a legend, and what else a chart marks."""

import itertools
import random
from typing import Any

import pytest

from frenet.experiments import intervals
from frenet.experiments.experiment import Row
from frenet.experiments.figures import charts, labels
from frenet.experiments.figures.charts import Axis, Rule
from frenet.experiments.figures.ends import MOVED, NAME
from frenet.experiments.figures.landscape import HIGH, WIDE
from frenet.experiments.figures.parts import UNIT, short, ticks
from frenet.experiments.figures.series import BLOCK, GREY, SHADES
from frenet.report.figures import blank, for_page, svg


def curves(count: int, *, panels: int = 0) -> list[Row]:
    """Lines that all end at 1."""
    rows: list[Row] = [
        {"k": k, "series": f"series {i}", "value": 1 - (3 - k) * i / 20, "low": None, "high": None}
        for i in range(count)
        for k in (1, 2, 3)
    ]
    return [{**row, "panel": f"p{n}"} for n in range(panels) for row in rows] if panels else rows


def layers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return list(spec["spec"]["layer"] if "facet" in spec else spec["layer"])


def data(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the data set that most layers share."""
    found: list[dict[str, Any]] = max(spec["datasets"].values(), key=len)
    return found


def legends(spec: dict[str, Any]) -> list[Any]:
    channels = [part for layer in layers(spec) for part in layer.get("encoding", {}).values()]
    return [part["legend"] for part in channels if isinstance(part, dict) and part.get("legend")]


def picture(spec: dict[str, Any]) -> str:
    return svg({key: value for key, value in spec.items() if key != "$schema"})


def test_up_to_six_series_have_their_names_at_their_ends_and_no_legend() -> None:
    for count, named in ((6, True), (7, False)):
        spec = charts.lines(curves(count), x="k", rules=(Rule("level", 0.5),)).to_dict()
        assert bool(legends(spec)) != named
        ends = [row for row in data(spec) if NAME in row]
        assert [row["series"] for row in ends] == named * [
            *(f"series {i}" for i in range(count)), "level"
        ]  # fmt: skip
        assert {row["k"] for row in ends} <= {3}
        for name in (f"series {i}" for i in range(count)):
            assert picture(spec).count(f">{name}</text>") == 1


def test_names_that_would_overlap_are_moved_apart_and_stay_in_the_panel() -> None:
    spec = charts.lines(curves(6), x="k", interval=None).to_dict()
    moved = [row[MOVED] for row in data(spec) if NAME in row]
    # All lines end at the upper edge, and every name needs a line of text.
    assert [round(b - a) for a, b in itertools.pairwise(moved)] == [15] * 5
    assert moved[0] >= 0


def test_places_keep_their_distance_and_their_mean() -> None:
    dice = random.Random(0)
    for _ in range(50):
        wanted = [dice.uniform(0, 280) for _ in range(8)]
        heights = [dice.choice((15.0, 29.0)) for _ in wanted]
        places = labels.apart(wanted, heights, 280.0)
        order = sorted(range(8), key=lambda i: wanted[i])
        for one, other in itertools.pairwise(order):
            assert places[other] - places[one] >= (heights[one] + heights[other]) / 2 - 1e-9
        assert min(p - h / 2 for p, h in zip(places, heights, strict=True)) >= -1e-9
        assert max(p + h / 2 for p, h in zip(places, heights, strict=True)) <= 280 + 1e-9
    assert labels.apart([100.0, 101.0, 102.0], [20.0] * 3, 280.0) == [81.0, 101.0, 121.0]
    assert labels.apart([10.0, 100.0], [20.0, 20.0], 280.0) == [10.0, 100.0]


def test_with_panels_every_name_stands_once_in_the_last_panel_of_the_first_row() -> None:
    rows = curves(2, panels=4)
    elsewhere = [row | {"series": "elsewhere"} for row in rows if row["panel"] == "p3"]
    rows += elsewhere[:3]
    spec = charts.lines(rows, x="k", facet="panel", interval=None).to_dict()
    ends = {row["series"]: row["panel"] for row in data(spec) if NAME in row}
    assert ends == {"series 0": "p1", "series 1": "p1", "elsewhere": "p3"}
    assert spec["usermeta"]["room"] == labels.room(list(ends))


def test_long_names_are_wrapped_to_the_room_that_they_ask_for() -> None:
    name = "random vectors with the covariance of the stream"
    assert all(len(line) <= labels.WRAP for line in labels.wrapped(name).split("\n"))
    assert labels.wrapped(name).replace("\n", " ") == name
    assert labels.room([name, "a"]) < labels.LETTER * len(name)


def test_a_column_of_rows_called_unit_is_no_single_value() -> None:
    rows: list[Row] = [
        {
            "k": k,
            "unit": "sigma*",
            "value": 1.0,
            "each": '{"seed 3": 0.5, "seed 4": 1.5}',
            "low": None,
            "high": None,
        }
        for k in (1, 2, 3)
    ]
    for chart in (
        charts.lines(rows, x="k", colour=None, facet="unit"),
        charts.dots(rows, row="k", facet="unit"),
    ):
        singles = [row for row in data(chart.to_dict()) if row.get(UNIT) is not None]
        assert sorted(row["value"] for row in singles) == [0.5] * 3 + [1.5] * 3


def test_what_chance_gives_is_one_grey_region() -> None:
    region: list[Row] = [
        {"k": k, "series": "chance", "value": 0.2, "low": -0.2, "high": 0.2} for k in (1, 2, 3)
    ]
    rows = curves(1) + region
    for chart, mark, end in (
        (charts.lines(rows, x="k", shaded="chance"), "area", "y2"),
        (charts.dots(rows, row="k", colour="series", shaded="chance"), "bar", "x2"),
    ):
        spec = chart.to_dict()
        (shade,) = [layer for layer in layers(spec) if layer["mark"]["type"] == mark]
        assert shade["encoding"][end] == {"field": "high"}
        colours = shade["encoding"]["color"]["scale"]
        assert colours["range"][colours["domain"].index("chance")] == GREY
        shapes = [layer["encoding"]["shape"]["scale"]["range"] for layer in layers(spec)
                  if "shape" in layer["encoding"]]  # fmt: skip
        assert all(found[1] == BLOCK for found in shapes)


def test_a_band_of_a_rule_is_a_block_in_the_legend() -> None:
    rules = (Rule("level", 0.5), Rule("band", 0.1, 0.2))
    spec = charts.dots(curves(1), row="k", colour="series", rules=rules).to_dict()
    shapes = next(layer["encoding"]["shape"]["scale"] for layer in layers(spec)
                  if "shape" in layer["encoding"])  # fmt: skip
    assert [shape == BLOCK for shape in shapes["range"]] == [False, False, True]


def test_what_has_an_order_goes_from_light_to_dark_in_one_hue() -> None:
    rows = curves(3)
    spec = charts.lines(rows, x="k", ordered=("series 2", "series 0", "series 1")).to_dict()
    colours = layers(spec)[0]["encoding"]["color"]["scale"]
    found = dict(zip(colours["domain"], colours["range"], strict=True))
    assert (found["series 2"], found["series 1"]) == (SHADES[0], SHADES[-1])
    assert found["series 0"] in SHADES[1:-1]

    def light(colour: str) -> int:
        return sum(int(colour[i : i + 2], 16) for i in (1, 3, 5))

    assert sorted(SHADES, key=light, reverse=True) == list(SHADES)


def test_rings_mark_points_and_are_in_no_line() -> None:
    ring: Row = {"k": 1.5, "series": "series 0", "value": 0.5, "says": "between 1 and 2 steps"}
    spec = charts.lines(curves(1), x="k", interval=None, marked=[ring]).to_dict()
    rings = [row for row in data(spec) if row.get("says")]
    assert [(row["k"], row["value"], row["says"]) for row in rings] == [
        (1.5, 0.5, "between 1 and 2 steps")
    ]
    for layer in layers(spec):
        filters = [str(step["filter"]) for step in layer.get("transform", [])]
        hollow = layer["mark"].get("filled") is False
        assert ("isValid(datum.says)" in filters) == hollow
        if layer["mark"]["type"] == "line":
            assert "!isValid(datum.says)" in filters


def test_headings_stand_above_their_rows_and_lanes_have_shapes() -> None:
    rows: list[Row] = [
        {"basis": basis, "group": group, "optimizer": optimizer, "value": 0.5}
        for basis, group in (("a", "one"), ("b", "one"), ("c", "two"))
        for optimizer in ("adam:3e-5", "sgd:0.01")
    ]
    chart = charts.dots(
        rows, row="basis", colour="group", lane="optimizer", interval=None,
        headings={"a": "first", "c": "second"}, rules=(Rule("limit", 0.25),),
    )  # fmt: skip
    spec = chart.to_dict()
    dot = next(layer for layer in layers(spec) if "yOffset" in layer["encoding"])
    assert dot["encoding"]["y"]["scale"]["domain"] == ["first", "a", "b", "second", "c"]
    assert dot["encoding"]["color"]["scale"]["domain"] == ["one", "two", "limit"]
    lanes = ["Adam, rate 3e-5", "SGD, rate 0.01"]
    assert dot["encoding"]["yOffset"]["scale"]["domain"] == lanes
    assert dot["encoding"]["shape"]["scale"]["domain"] == lanes
    assert len(set(dot["encoding"]["shape"]["scale"]["range"])) == 2
    # Without a colour of its own a symbol would be black, also on a dark page.
    assert "var(--ink)" in str(for_page(spec)["layer"][-1]["encoding"]["shape"]["legend"])
    drawn = picture(spec)
    for word in ("first", "second", "limit", *lanes):
        assert f">{word}</text>" in drawn


def test_a_logarithmic_axis_has_marks_at_1_3_and_10_only() -> None:
    rows: list[Row] = [{"k": k, "series": "s", "value": 0.5} for k in (1, 2, 5, 20, 200)]
    spec = charts.lines(rows, x=Axis("k", log=True), interval=None).to_dict()
    drawn = picture(spec)
    shown = [value for value in (1, 2, 3, 5, 10, 20, 30, 50, 100) if f">{value}</text>" in drawn]
    assert shown == [1, 3, 10, 30, 100]
    assert ticks(0.02, 0.5, dense=False) == [0.03, 0.1, 0.3]
    assert short(1.0, 8.9)
    assert not short(1.0, 9.0)


def test_the_cells_of_a_heat_map_are_square() -> None:
    for across, down in ((3, 3), (2, 5), (12, 12)):
        rows: list[Row] = [
            {"x": f"x{i}", "y": f"y{j}", "value": 0.5} for i in range(across) for j in range(down)
        ]
        spec = charts.heatmap(rows, x="x", y="y").to_dict()
        assert spec["height"] == down * spec["width"]["step"]
        assert across * spec["width"]["step"] <= charts.HEAT_WIDTH


def test_points_can_have_their_names_beside_them() -> None:
    rows: list[Row] = [
        {"x": x, "y": y, "basis": name}
        for x, y, name in ((0.0, 0.0, "a"), (0.01, 0.01, "b"), (1.0, 1.0, "c"))
    ]
    spec = charts.scatter(rows, x="x", y="y", colour="basis", named=True).to_dict()
    assert legends(spec) == []
    sides = {row["basis"]: row["side"] for row in data(spec) if "side" in row}
    assert sides["a"] != sides["b"]
    for name in "abc":
        assert picture(spec).count(f">{name}</text>") == 1


def test_no_name_covers_another_in_a_crowd() -> None:
    spots = [(60.0 + 30 * i, 120.0 + 20 * (i % 2)) for i in range(6)]
    names = ["gradient", "Adam step", "first steps", "task vector", "random", "a winner"]
    chosen = labels.sides(names, spots, [], (WIDE, HIGH))
    boxes = [labels._box(*each) for each in zip(names, spots, chosen, strict=True)]
    for i, box in enumerate(boxes):
        assert all(box.overlap(other) == 0 for other in boxes[i + 1 :])
        assert box.overlap(labels.Box(0, 0, WIDE, HIGH)) == pytest.approx(
            (box.right - box.left) * (box.bottom - box.top)
        )


def test_a_chart_without_rows_stays_without_rows() -> None:
    rules = (Rule("one", 0.5), Rule("two", 0.7))
    for facet in (None, "panel"):
        spec = charts.lines([], x="k", facet=facet, rules=rules).to_dict()
        assert blank({key: value for key, value in spec.items() if key != "$schema"})


def test_every_point_says_which_seed_or_how_many_it_is_of() -> None:
    seeds = {1: (3, 4, 8), 2: (3, 4)}
    rows: list[Row] = [{"seed": s, "k": k, "x": float(s)} for k in seeds for s in seeds[k]]
    table = intervals.over_seeds(rows, by=("k",), value="x")
    for chart in (charts.lines(table, x="k", colour=None), charts.dots(table, row="k")):
        spec = chart.to_dict()
        said = {(int(row["k"]), row["value"]): row["of"] for row in data(spec)}
        single = {(k, float(seed)): f"seed {seed}" for k in seeds for seed in seeds[k]}
        assert said == {**single, (1, 5.0): "3 seeds", (2, 3.5): "2 seeds"}
        tips = [layer["encoding"]["tooltip"] for layer in layers(spec)
                if layer["mark"]["type"] == "point"]  # fmt: skip
        assert all({"field": "of", "type": "nominal"} in tip for tip in tips)


def test_a_row_of_one_seed_is_named_by_it() -> None:
    rows: list[Row] = [{"seed": 5, "x": 1.0, "y": 2.0}]
    spec = charts.scatter(rows, x="x", y="y", diagonal=False).to_dict()
    assert [row["of"] for row in data(spec)] == ["seed 5"]


def test_long_titles_of_panels_have_several_lines_and_keep_their_words() -> None:
    name = "a-network-with-a-long-name-0123456789-abc, rank 8: half-life of more than 20 steps"
    for count, most in ((1, 45), (2, 43), (3, 28)):
        rows = [row | {"panel": f"{row['panel']} {name}"} for row in curves(1, panels=count)]
        spec = charts.lines(rows, x="k", facet="panel", direct=False).to_dict()
        titles = {row["panel"] for row in data(spec)}
        assert len(titles) == count
        for title in titles:
            assert max(map(len, title.split("\n"))) <= most
            assert title.replace("-\n", "-").replace("\n", " ").endswith(name)
        assert spec["facet"]["sort"] == list(dict.fromkeys(row["panel"] for row in data(spec)))
