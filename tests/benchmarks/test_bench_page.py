"""Tables of the benchmark page, and the exponents in them."""

import doctest

import numpy as np
import pytest

import page
import timing
import units
from records import Job

ENVIRONMENT = {
    "date": "2026-01-02", "commit": "abc1234", "processor": "P", "cores": 2, "threads": 1,
    "memory": 2**33, "load": 0.5, "versions": {"Python": "3.11", "torch": "2.13.0"},
}  # fmt: skip
ROW = {"name": "a | b", "model": None, "ratio": 1.23456, "aim": "at most 2", "detail": "d"}


@pytest.mark.parametrize("module", [page, timing, units])
def test_the_examples_in_the_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize(
    ("aim", "ratio", "verdict"),
    [
        ("at most 1.05", 1.05, "met"),
        ("at most 1.05", 1.0501, "missed"),
        ("below 1", 1.0, "missed"),
        ("at least 8", 8.0, "met"),
        ("above 1", 1.0, "missed"),
        ("about 1", 1.04, "met"),
        ("about 1", 0.9, "missed"),
        ("at most 1e-05", 2e-8, "met"),
        ("", 3.0, None),
    ],
)
def test_verdicts(aim, ratio, verdict):
    assert page.judged({"ratio": ratio, "aim": aim}) == verdict


def test_an_aim_between_the_quartiles_is_not_decided():
    row = {"ratio": 0.9, "low": 0.8, "high": 1.0, "aim": "at least 0.95"}
    assert page.judged(row) == "within noise"
    assert page.judged(row | {"high": 0.94}) == "missed"


def test_the_table_has_one_line_a_row_and_says_what_was_not_measured():
    spread = ROW | {"model": "m", "low": 1.0, "high": 1.5}
    lines = page.table([ROW, spread, {"name": "c", "model": None, "why": "no x"}]).splitlines()
    assert lines[2:] == [
        r"| a \| b | - | 1.23 |  | at most 2 | met | d |",
        r"| a \| b | m | 1.23 | 1 to 1.5 | at most 2 | met | d |",
        "| c | - | not measured |  |  |  | no x |",
    ]


def test_only_what_stands_between_the_markers_changes(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("one <!-- t -->old<!-- end of t --> two <!-- u --><!-- end of u -->")
    page.write({"t": "new"}, path)
    assert path.read_text() == (
        "one <!-- t -->\nnew\n<!-- end of t --> two <!-- u --><!-- end of u -->"
    )
    page.write({"t": "newer"}, path)
    assert "newer" in path.read_text()
    with pytest.raises(ValueError, match=r"README\.md must have <!-- v -->"):
        page.write({"t": "newest", "v": ""}, path)
    assert "newest" not in path.read_text()


def test_jobs_of_one_environment_share_a_line_and_others_are_named():
    jobs = {"x": Job(ENVIRONMENT, [ROW], 60.0), "y": Job(ENVIRONMENT | {"load": 3.0}, [], 30.0)}
    text = page.environments(jobs)
    assert text.startswith("2026-01-02, commit abc1234; P, 2 cores, 1 threads, 8.0 GiB; Python")
    assert "0.5 to 3.0" in text
    assert "took 2 minutes" in text
    assert "Not ended" not in text
    jobs["z"] = Job(ENVIRONMENT | {"commit": "def5678"}, [])
    text = page.environments(jobs)
    assert "- x, y: 2026-01-02, commit abc1234" in text
    assert "- z: 2026-01-02, commit def5678" in text
    assert "Not ended: z." in text


@pytest.mark.parametrize("power", [-1.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_an_exact_power_law(power):
    sizes = np.array([8.0, 16.0, 64.0, 512.0])
    slope, error = page.exponent(sizes, 3e-4 * sizes**power)
    assert slope == pytest.approx(power, abs=1e-12)
    assert error == pytest.approx(0.0, abs=1e-12)
    assert page.exponent(sizes[:2], sizes[:2] ** power) == (pytest.approx(power), None)


def test_the_standard_error_of_the_exponent_is_that_of_least_squares():
    x, y = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.1, 0.9, 2.2, 2.8])
    slope, error = page.exponent(np.exp(x), np.exp(y))
    moved = x - x.mean()
    expected = (moved @ y) / (moved @ moved)
    left = y - y.mean() - expected * moved
    assert slope == pytest.approx(expected)
    assert error == pytest.approx((left @ left / 2 / (moved @ moved)) ** 0.5)


def curve(**changed):
    points = [{"size": s, "seconds": 2e-6 * s**2, "bytes": s * 2**20} for s in (10, 100, 1000)]
    row = {"name": "f", "over": "d", "expected": "1", "points": points, "stopped": None}
    return row | changed


def test_the_table_of_growth():
    rows = [
        curve(),
        curve(stopped="1e+04 needs 9 GiB"),
        curve(points=[{"size": 2, "seconds": 1.0, "bytes": None, "note": "slow"}]),
        {"name": "g", "model": None, "why": "no x"},
    ]
    assert page.growth_table(rows).splitlines()[2:] == [
        "| f | 10 to 1,000 d | 0.2 ms, 2 s | 10.0 MiB, 1000.0 MiB | 2.00 ± 0.00 | 2.00 | 1 |",
        "| f (stopped: 1e+04 needs 9 GiB) | 10 to 1,000 d | 0.2 ms, 2 s | 10.0 MiB, 1000.0 MiB "
        "| 2.00 ± 0.00 | 2.00 | 1 |",
        "| f; slow | 2 to 2 d | 1 s, 1 s | - |  |  | 1 |",
        "| g |  | not measured |  |  |  | no x |",
    ]


def test_the_figure_has_a_panel_for_each_kind_of_size():
    drawn = page.figure([curve(), curve(name="h", over="candidates"), {"name": "g", "why": "no"}])
    assert drawn.startswith("<svg")
    for text in (">f<", ">h<", ">d<", ">candidates<"):
        assert text in drawn
