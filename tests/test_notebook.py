"""Results in a console and in a notebook: short, escaped, and each number beside its chance."""

import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import frenet
from frenet._notebook import HEADINGS, LONGEST, Interval, Shown, showable, table
from frenet.geometry.theory import QuadraticModel
from frenet.measure.loss_line import LossLine
from frenet.measure.trajectory import Trajectory
from frenet.methods.candidates import Noise
from frenet.methods.linear_range import LinearRange, Point
from frenet.methods.local_model import LocalModel
from frenet.methods.plan import Plan, plan
from frenet.methods.search import Gain, SearchResult
from frenet.network.checkpoints.load import Loaded
from frenet.runs import Run
from frenet.statistics.intervals import Estimate

HOSTILE = "<script>alert(1)</script>\x00\u202e" + "long" * 100


DRAWN = ("svg", "line", "circle", "br")


class Cells(HTMLParser):
    """The rows of a table, and every tag in it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.drawn: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in DRAWN:
            self.drawn.append((tag, dict(attrs)))
            return
        assert {name for name, _ in attrs} <= {"style", "scope"}
        self.tags.append(tag)
        if tag in ("tr", "caption"):
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.tags[-1] == "caption":
            self.rows[-1].append(data)
        else:
            self.rows[-1][-1] += data


SPACE = frenet.ParamSpace.select(torch.nn.Linear(30, 20))
STEPS = torch.zeros(4, SPACE.dim)
STEPS[torch.arange(4), torch.arange(4)] = 2.0
GAIN = Gain(-2.0, -1.5, Estimate(0.5, 0.25, 0.75, 16))
SURVEY = LocalModel(QuadraticModel(1000, 0.5, 20.0, 4.0), loss=2.0, transfer=0.75, trace_error=1.5)


def results() -> dict[str, Any]:
    """One of each, with as many numbers as real ones have where that matters."""
    scores = torch.arange(512.0)
    keys = {"seed": 3, "space": "full", "task": "t", "direction": HOSTILE}
    life = {"table": "lifetime", **keys, "has_share": False}
    return {
        "ParamSpace": SPACE,
        "Basis": frenet.prefix_basis(STEPS, 3, space=SPACE, origin=HOSTILE),
        "Trajectory": Trajectory(STEPS[0], STEPS, torch.tensor([3.0, 2.0, 1.5, 1.25]), None, SPACE),
        "Loaded": Loaded(
            torch.nn.Linear(30, 20), None, HOSTILE, "folder", torch.float32, "abcdef", ()
        ),
        "SteeringVector": frenet.SteeringVector({2: torch.full((64,), 0.5)}, HOSTILE),
        "TaskVector": frenet.TaskVector({"w": (20, 20)}, lambda name: torch.ones(20, 20), HOSTILE),
        "LinearRange": LinearRange(
            1, 0.5, 0.25, 0.75, False, 8.0, 0.625, -1.0, (Point(1.0, 2.0, 3.0),) * 99
        ),
        "SearchResult": SearchResult(
            Noise(0.125), scores, 500.0, tuple(range(511, -1, -1)), GAIN, None, GAIN, 0.0
        ),
        "LocalModel": SURVEY,
        "Plan": plan(SURVEY, budget=64),
        "Run": Run(
            "direction-scale", {}, [life] * 3, {}, [{"cell": HOSTILE}], Path("runs") / HOSTILE
        ),
        "Experiment": frenet.EXPERIMENTS["gradient-rank"],
    }


@pytest.fixture(params=results())
def result(request: pytest.FixtureRequest) -> Any:
    return results()[request.param]


def test_a_repr_is_one_short_line(result: Any) -> None:
    text = repr(result)
    assert text == str(result)
    assert text.startswith(f"<{type(result).__name__}: ")
    assert len(text) <= LONGEST + len(type(result).__name__) + 4
    assert "tensor(" not in text
    assert text == showable(text).replace("\n", " ")


def test_a_table_holds_text_only_and_says_what_to_read_beside(result: Any) -> None:
    html = result._repr_html_()
    cells = Cells(html)
    caption, head, *rows = cells.rows
    if type(result) is Plan:
        return
    assert set(cells.tags) == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert caption == [showable(f"{type(result).__name__}: {result._summary()}")]
    assert head == list(HEADINGS)
    assert rows
    assert all(len(row) == 3 and row[0] and row[1] for row in rows)
    assert "tensor(" not in html
    if type(result) is not Run:
        assert all(beside for _, _, beside in rows)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("Basis", ["coordinates", "620", "a random vector has k / d = 0.00484 inside"]),
        ("Trajectory", ["distance", "4", "4 by a random walk of these step lengths"]),
        (
            "SteeringVector",
            ["norm after block 2", "4", "cosines of random vectors are about 0.125"],
        ),
        ("TaskVector", ["coordinates", "400", "cosines of random vectors are about 0.05"]),
        ("Loaded", ["parameters", "620", "fingerprint abcdef"]),
        (
            "LinearRange",
            ["radius", "0.5 [0.25, 0.75]", "0.625 of a quadratic, 2 eps |slope / curvature|"],
        ),
        ("LocalModel", ["trace of the Hessian", "20", "standard error 1.5"]),
        (
            "SearchResult",
            [
                "gain of the best, selection batch",
                "11",
                "the excess over the held-out gain is selection luck",
            ],
        ),
        (
            "SearchResult",
            [
                "gain of the best, held-out data",
                "0.5 [0.25, 0.75]",
                "0, the unperturbed weights, with a score of -2",
            ],
        ),
    ],
)
def test_numbers_by_hand(name: str, row: list[str]) -> None:
    assert row in Cells(results()[name]._repr_html_()).rows


def test_a_line_says_its_slope_and_holds_no_tensor() -> None:
    line = LossLine(
        lambda r: torch.zeros(300), torch.full((300,), -2.0), torch.full((300,), 4.0), 1.0
    )
    assert repr(line) == "<LossLine: 300 examples, slope -0.5 at 0>"


def test_a_model_shows_its_notes() -> None:
    model = torch.nn.Linear(3, 2)
    found = Loaded(model, None, "a/b", "hub", torch.bfloat16, "abc", ("Tied.",), "./adapter")
    assert repr(found) == "<Loaded: a/b with the adapter ./adapter (hub), bfloat16>"
    assert Cells(found._repr_html_()).rows[-1] == ["note", "Tied.", ""]


def test_a_straight_path_is_longer_than_a_random_walk() -> None:
    steps = torch.zeros(9, SPACE.dim)
    steps[:, 0] = 1.0
    path = Trajectory(steps[0], steps, torch.ones(9), None, SPACE)
    told = ["distance", "9", "3 by a random walk of these step lengths"]
    assert told in Cells(path._repr_html_()).rows
    empty = Trajectory(steps[0], steps[:0], torch.ones(0), None, SPACE)
    assert repr(empty) == f"<Trajectory: 0 steps, d = {SPACE.dim}>"
    assert Cells(empty._repr_html_()).tags == ["table", "caption"]


def test_a_plan_is_a_grid_of_sigma_and_candidates_with_the_best_bold() -> None:
    found = plan(SURVEY, budget=64)
    cells = Cells(found._repr_html_())
    (caption,), head, *rows = cells.rows
    assert caption.startswith(found.advice)
    assert head == ["sigma, candidates", "4", "16", "64"]
    sigmas = sorted({setting.sigma for setting in found.table})
    assert [row[0] for row in rows] == [f"{sigma:.3g}" for sigma in sigmas]
    assert found.best is not None
    assert rows[-1][-1] == f"{found.best.held_out:.4g}"
    assert cells.tags.count("b") == 1
    by_hand = {(s.sigma, s.candidates): f"{s.held_out:.4g}" for s in found.table}
    table = [[by_hand[sigma, n] for n in (4, 16, 64)] for sigma in sigmas]
    assert [row[1:] for row in rows] == table


def test_an_interval_is_drawn_to_scale_with_a_tick_at_chance() -> None:
    html = table("t", [("gain", Interval(1.0, 0.5, 2.0, 0.0, word="supported"), "nothing")])
    cells = Cells(html)
    assert cells.rows[-1] == ["gain", "supported: 1 [0.5, 2]", "nothing"]
    drawn = [(tag, attrs) for tag, attrs in cells.drawn if tag in ("line", "circle")]
    (_, tick), (_, bar), (_, dot) = drawn
    assert tick["x1"] == tick["x2"] == "10.0"
    assert (bar["x1"], bar["x2"]) == ("55.0", "190.0")
    assert dot["cx"] == "100.0"
    assert Interval(math.nan, None, None, None).picture() == ""
    assert "circle" in Interval(1.0, None, None, None).picture()
    assert 'x2="190.0"' in Interval(1.0, 0.5, math.inf, None).picture()


def test_a_radius_that_was_not_found_says_how_far_was_looked() -> None:
    far = LinearRange(-1, 8.0, 1.0, math.inf, True, 8.0, None, 1.0, ())
    assert (
        repr(far)
        == "<LinearRange: linear against the direction up to the largest distance tried, 8>"
    )
    assert "not known" in far._repr_html_()


def test_a_run_says_its_verdicts_and_its_answers() -> None:
    run = Run("gradient-rank", {}, [], {}, [], Path("runs/rank"))
    rows = Cells(run._repr_html_()).rows[2:]
    claims = frenet.EXPERIMENTS["gradient-rank"].claims
    assert [row[0] for row in rows] == [f"{claim.id}: {claim.statement}" for claim in claims]
    assert all(row[1].startswith("undecided") for row in rows)
    answers = Cells(results()["Run"]._repr_html_()).rows[2:]
    which = f"{showable(HOSTILE)}, space\u00a0full, task\u00a0t"
    assert [(row[0], row[2]) for row in answers] == [(which, "1 seed")]
    assert all("10 times chance" in row[1] for row in answers)
    assert repr(results()["Run"]).startswith("<Run: direction-scale, 3 rows in runs/")
    foreign = Run("somebody's", {}, [], {}, [], Path("x"))
    assert repr(foreign) == "<Run: somebody's, 0 rows in x>"
    assert Cells(foreign._repr_html_()).tags == ["table", "caption"]


def test_everything_is_escaped() -> None:
    html = table(HOSTILE, [(HOSTILE, HOSTILE, HOSTILE)])
    assert "<script" not in html
    assert "\x00" not in html
    assert "\u202e" not in html
    assert Cells(html).rows[-1] == [showable(HOSTILE)] * 3


def test_a_result_without_words_of_its_own_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Shown does not describe itself"):
        repr(Shown())
    with pytest.raises(NotImplementedError, match="Shown does not describe itself"):
        Shown()._entries()
