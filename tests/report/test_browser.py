"""The report in a real browser: offline, by keyboard, narrow, dark, printed, and under attack."""

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hostile
import made_up
import pytest
from browsing import CONTRAST, FIGURES, FOCUS, OPEN_ALL, STOPS, browser, opened

from experiments.small import small
from frenet._notebook import showable
from frenet.experiments import EXPERIMENTS
from frenet.report import write_report
from frenet.runs import Run, config_dict

WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
# What a page of 1280 px shows at a zoom of 200%.
ZOOMED = {"width": 640, "height": 450}
# Where elements begin and end across the page.
ENDS = "all => all.map(e => e.getBoundingClientRect()).map(({ left, right }) => [left, right])"


class Report(NamedTuple):
    """A page, the runs that it shows, and how many figures it holds."""

    path: Path
    runs: list[Run]
    figures: int


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A page of made-up runs with hostile names, and with pictures for readers without scripts."""
    runs, experiments = hostile.runs(), hostile.experiments()
    out = tmp_path_factory.mktemp("attacked") / "hostile #1 é.html"
    path = write_report(runs, out, experiments=experiments, static=True)
    return Report(path, runs, sum(len(experiments[run.experiment].figures) for run in runs))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A page of a small run of this package, which opens with answers."""
    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRENET_CACHE", str(folder / "cache"))
        runs = [_run("direction-scale", directions=("gradient", "prefix", "random"))]
    path = write_report(runs, folder / "real.html", static=False)
    return Report(path, runs, sum(len(EXPERIMENTS[run.experiment].figures) for run in runs))


def _run(name: str, **changes: Any) -> Run:
    experiment, config = EXPERIMENTS[name], small(name, width=16, train_steps=60, **changes)
    rows = [row for cell in experiment.cells(config) for row in experiment.run(config, cell)]
    return Run(name, config_dict(config), rows, {"complete": True}, [], Path("runs") / name)


@pytest.fixture(params=["attacked", "real"])
def report(request: pytest.FixtureRequest) -> Report:
    found: Report = request.getfixturevalue(request.param)
    return found


def unreadable(page: Any) -> list[dict[str, Any]]:
    """Text with less contrast than WCAG 2.2 requires at level AA."""
    texts = page.evaluate(CONTRAST)
    assert len(texts) > 100
    return [text for text in texts if text["ratio"] < text["least"]]


def charts(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All figures except a map without a point: in the small run no direction goes stale."""
    return [one for one in figures if not (one["told"] and one["id"] == "direction-scale-map")]


def overflow(page: Any) -> int:
    """Pixels by which the page can be scrolled sideways."""
    return int(page.evaluate("document.scrollingElement.scrollWidth - innerWidth"))


def test_the_page_asks_for_nothing_and_draws_every_figure(chromium: Any, report: Report) -> None:
    with opened(chromium, report.path, viewport=WIDE) as (page, seen):
        page.evaluate(OPEN_ALL)
        figures = page.evaluate(FIGURES)
        assert len(figures) == report.figures
        for figure in charts(figures):
            assert figure["chart"], figure
            assert not figure["told"], figure
            assert figure["marks"] >= 2, figure
            assert len(figure["words"]) >= 4, figure
            assert figure["right"] <= 0, figure
            assert figure["covered"] == [], figure
        assert seen.trouble(page) == []


def test_trouble_is_seen(chromium: Any, attacked: Report) -> None:
    with opened(chromium, attacked.path, viewport=WIDE) as (page, seen):
        page.evaluate("""() => {
          document.body.insertAdjacentHTML("beforeend", "<img src='http://example.org/x.png'>");
          document.body.append(Object.assign(document.createElement("script"), {text: "f()"}));
          console.warn("careful");
          setTimeout(() => { throw new Error("late"); });
          alert("hello");
        }""")
        page.wait_for_timeout(100)
        told = "\n".join(seen.trouble(page))
        for sign in ("img-src http://example.org/x.png", "script-src", "careful", "late", "hello"):
            assert sign in told


def test_tab_reaches_everything_in_order_and_shows_where_it_is(
    chromium: Any, report: Report
) -> None:
    with opened(chromium, report.path, viewport=WIDE) as (page, seen):
        if len(report.runs) > 1:  # the larger page, with all that can be opened open
            page.evaluate(OPEN_ALL)
        count = page.evaluate(STOPS)
        assert count > 12
        stops = []
        for _ in range(count):
            page.keyboard.press("Tab")
            stops.append(page.evaluate(FOCUS))
        assert [stop["stop"] for stop in stops] == list(range(count))
        assert [stop for stop in stops if stop["ring"] < 2 or not stop["onScreen"]] == []
        assert seen.trouble(page) == []


def test_the_keyboard_skips_opens_and_sorts(chromium: Any, real: Report) -> None:
    with opened(chromium, real.path, viewport=WIDE) as (page, seen):
        page.keyboard.press("Tab")
        assert page.locator(".skip").bounding_box()["x"] >= 0
        page.keyboard.press("Enter")
        assert page.url.endswith("#claims")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('#claims') !== null")

        table = page.locator("#direction-scale-table-line")
        table.locator("summary").focus()
        page.keyboard.press("Enter")
        assert table.evaluate("(block) => block.open")
        heading = table.locator("th.measure").first
        index = heading.evaluate("(cell) => cell.cellIndex")
        heading.locator("button").focus()
        orders = {}
        for key, order in (("Space", "ascending"), ("Enter", "descending")):
            page.keyboard.press(key)
            assert heading.get_attribute("aria-sort") == order
            orders[order] = table.locator("tbody tr").evaluate_all(
                "(rows, i) => rows.map((row) => Number(row.cells[i].title))", index
            )
        assert orders["ascending"] == sorted(orders["ascending"])
        assert orders["descending"] == sorted(orders["ascending"], reverse=True)
        assert len(set(orders["ascending"])) > 2
        assert seen.trouble(page) == []


def test_a_link_to_a_closed_table_opens_it(chromium: Any, real: Report) -> None:
    with opened(chromium, real.path, viewport=WIDE) as (page, _):
        figure = page.locator("#direction-scale-radius")
        figure.locator("summary").click()
        figure.locator("details a").click()
        page.locator("#direction-scale-table-radius[open]").wait_for(state="attached")


@pytest.mark.parametrize("size", [WIDE, PHONE, ZOOMED], ids=["wide", "phone", "zoomed"])
def test_pages_fit_and_can_be_read(chromium: Any, report: Report, size: dict[str, int]) -> None:
    with opened(chromium, report.path, viewport=size) as (page, seen):
        assert overflow(page) <= 0
        page.evaluate(OPEN_ALL)
        for figure in charts(page.evaluate(FIGURES)):
            assert figure["marks"] >= 2, figure
            assert figure["right"] <= 0, figure
            assert figure["covered"] == [], figure
        assert overflow(page) <= 0
        paper = {}
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            paper[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert unreadable(page) == []
        assert paper["light"] != paper["dark"]
        assert seen.trouble(page) == []


def test_paper_shows_the_figures_and_what_was_closed(chromium: Any, report: Report) -> None:
    with opened(chromium, report.path, viewport=WIDE, color_scheme="dark") as (page, seen):
        page.emulate_media(media="print")
        for figure in charts(page.evaluate(FIGURES)):
            assert figure["marks"] >= 2, figure
        assert page.locator("details p, details td").first.is_visible()
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(29, 35, 41)"
        assert unreadable(page) == []
        assert page.pdf(format="A4").count(b"/Type /Page\n") > 3
        assert page.locator("details[open]").count() == 0
        assert seen.trouble(page) == []


def test_without_scripts_every_figure_is_a_picture(chromium: Any, attacked: Report) -> None:
    path, _, figures = attacked
    with opened(chromium, path, viewport=PHONE, java_script_enabled=False) as (page, seen):
        pictures = page.locator("figure img")
        assert pictures.count() == figures
        for index in range(figures):
            box = pictures.nth(index).bounding_box()
            assert box["width"] > 200
            assert box["height"] > 60
            assert box["x"] + box["width"] <= PHONE["width"]
        assert "Of 4 claims" in page.locator("header.opening").inner_text()
        page.locator("summary").first.click()
        assert page.locator("details[open] p").first.is_visible()
        assert seen.requests == []


def test_hostile_names_are_text_everywhere(chromium: Any, attacked: Report) -> None:
    path, runs, _ = attacked
    names = [showable(name) for name in hostile.NAMES]
    with opened(chromium, path, viewport=WIDE) as (page, seen):
        page.evaluate(OPEN_ALL)
        assert page.locator("img, iframe, object, embed, svg script, body [onerror]").count() == 0
        scripts = page.locator("script").evaluate_all("(all) => all.map((one) => one.type)")
        # That of the page, and the drawing engine, which it has unpacked.
        assert [kind for kind in scripts if kind != "text/plain"] == ["", ""]
        failures = page.locator(".failures li").all_text_contents()
        for name in names:
            assert f"task={name} (run): ValueError: {name}" in failures
        cells = set(page.locator("td").all_text_contents())
        assert {showable(name) for name in hostile.names_of(runs)} <= cells
        drawn = {figure["id"]: figure["words"] for figure in page.evaluate(FIGURES)}
        for figure, shown in (
            ("gradient-rank-spectrum", names[:5]),  # panels
            ("gradient-rank-overlap", names[:5]),  # both axes
            ("recovery-basis-capture", names[:7]),  # axis
            ("recovery-basis-function", names[:7]),  # legend
            ("basis-drift-drift", names[6:]),  # legend
        ):
            for name in shown:
                assert any(_same(word, name) for word in drawn[figure]), (figure, name)
        assert seen.trouble(page) == []


def _same(word: str, name: str) -> bool:
    """Whether a label is the name in one or more lines, or as much of it as fits."""
    word, name = ("".join(text.split()) for text in (word, name))
    cut = word.removesuffix("…")
    return word == name or (word != cut and len(cut) >= 12 and name.startswith(cut))


def test_the_csv_holds_the_rows_and_no_formula(
    chromium: Any, attacked: Report, tmp_path: Path
) -> None:
    path, runs, _ = attacked
    with opened(chromium, path, viewport=WIDE, accept_downloads=True) as (page, seen):
        table = page.locator("#gradient-rank-table-spectrum")
        table.locator("summary").click()
        with page.expect_download() as waiting:
            table.locator("button.csv").click()
        waiting.value.save_as(tmp_path / "table.csv")
        assert waiting.value.suggested_filename == "gradient-rank-spectrum.csv"
        assert seen.trouble(page) == []
    with open(tmp_path / "table.csv", encoding="utf-8", newline="") as file:
        got = list(csv.DictReader(file))
    rows = [row for row in runs[0].rows if row["table"] == "spectrum"]
    assert len(got) == len(rows)
    for mine, row in zip(got, rows, strict=True):
        assert float(mine["energy"]) == float(f"{row['energy']:.6g}")
        task = str(row["task"])
        assert mine["task"] == (f"'{task}" if task.startswith("=") else task)


def test_tooltips_show_names_as_text(chromium: Any, attacked: Report) -> None:
    with opened(chromium, attacked.path, viewport=WIDE) as (page, seen):
        chart = page.locator("#recovery-basis-function")
        chart.scroll_into_view_if_needed()
        points = chart.locator("svg .mark-symbol.role-mark path")
        shown = set()
        for index in range(0, points.count(), 12):
            points.nth(index).hover(force=True)
            shown.add(page.locator("#vg-tooltip-element").inner_text())
        assert any(any(name[:20] in text for name in hostile.NAMES[:2]) for text in shown)
        assert all(re.search(r"\bof\s+seed \d", text) for text in shown)
        assert page.locator("#vg-tooltip-element img").count() == 0
        assert seen.trouble(page) == []


def test_figures_wait_until_they_are_near_and_tables_until_they_are_opened(
    chromium: Any, attacked: Report
) -> None:
    with opened(chromium, attacked.path, whole=False, viewport=PHONE) as (page, seen):
        last = page.locator("[data-chart]").last
        heights = page.evaluate("document.scrollingElement.scrollHeight")
        assert last.get_attribute("data-drawn") is None
        assert last.evaluate("(chart) => chart.clientHeight") > 200
        assert page.locator("table.data").count() == 0
        last.scroll_into_view_if_needed()
        page.locator("[data-chart][data-drawn='yes']").last.wait_for()
        assert page.evaluate("document.scrollingElement.scrollHeight") < 1.25 * heights
        page.locator("#gradient-rank-table-spectrum summary").click()
        page.locator("#gradient-rank-table-spectrum table.data td").first.wait_for()
        assert page.locator("table.data").count() == 1
        assert seen.trouble(page) == []


def test_printing_draws_all_figures(chromium: Any, attacked: Report) -> None:
    with opened(chromium, attacked.path, whole=False, viewport=WIDE) as (page, _):
        assert page.locator("[data-chart]:not([data-drawn])").count() > 0
        page.pdf(format="A4")
        assert page.locator("[data-chart]:not([data-drawn])").count() == 0
        assert page.locator("table.data").count() > 3


def test_the_first_screen_says_how_far_and_how_long(chromium: Any, real: Report) -> None:
    for size in (WIDE, PHONE):
        with opened(chromium, real.path, whole=False, viewport=size) as (page, seen):
            lead = page.locator(".answer").first.inner_text()
            assert lead.startswith("A gradient is good up to ")
            assert "of the weights’ norm and beyond the run of 30 steps" in lead
            rows = page.locator(".reach tbody th[scope='row']")
            assert rows.all_inner_texts() != []
            box = page.locator(".reach").bounding_box()
            assert box["y"] + box["height"] < size["height"]
            ends = page.locator(".reach .axis text:visible").evaluate_all(ENDS)
            assert all(left >= 0 and right <= size["width"] for left, right in ends)
            assert all(one[1] < other[0] for one, other in itertools.pairwise(ends))
            assert seen.trouble(page) == []


def test_there_are_as_many_hostile_names_as_tasks() -> None:
    assert len(hostile.NAMES) >= len(made_up.TASKS)
