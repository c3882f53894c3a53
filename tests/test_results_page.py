"""docs/results: the pages follow from the runs beside them, word for word; every figure draws."""

import re
from pathlib import Path

import pytest

from frenet.experiments import EXPERIMENTS
from frenet.experiments.experiment import answered
from frenet.experiments.figures import charts
from frenet.experiments.figures.names import label
from frenet.report import figures, write_results
from frenet.runs import find_runs, read_run

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


@pytest.fixture(scope="module")
def runs():
    return [read_run(file) for file in find_runs([RESULTS])]


def stored_figures(runs):
    """Every figure of every stored run, with the rows of its table."""
    for run in runs:
        for figure in EXPERIMENTS[run.experiment].figures:
            if rows := figures.rows_of(figure, run.rows):
                yield run, figure, rows


def test_the_runs_in_the_folder_make_its_pages_again(runs, tmp_path):
    write_results(runs, tmp_path)
    pages = sorted(tmp_path.glob("*.md"))
    assert len(pages) == 5
    for page in pages:
        assert page.read_text("utf-8") == (RESULTS / page.name).read_text("utf-8"), page.name
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in RESULTS.iterdir()}


def test_sentences_that_earlier_builds_stored_are_made_from_the_rows_with_the_same_numbers(runs):
    (run,) = (r for r in runs if r.path.name.startswith("synthetic-task-vector-range"))
    stored = [row["sentence"] for row in run.stored if row["table"] == "answer"]
    made = map(str, answered(EXPERIMENTS[run.experiment], run.rows))
    numbers = re.compile(r"-?\d[\d.e-]*")
    assert len(stored) == 24
    assert [numbers.findall(words) for words in made] == list(map(numbers.findall, stored))
    assert "answer" not in {row["table"] for row in run.rows}


def test_every_figure_of_every_stored_run_has_a_chart_and_every_null_is_in_some(runs, monkeypatch):
    """A null that a run lacks is left out silently: a name that none has would be a slip."""
    asked, found, missing = set(), set(), []
    prepare = charts.prepare

    def watched(rows, axes, *, rules, **rest):
        table, series = prepare(rows, axes, rules=rules, **rest)
        asked.update((key, label(rule)) for rule in rules if isinstance(rule, str))
        # A region of the rows has its name from the chart, and not from the rules.
        found.update((key, name) for name in series.nulls if name not in series.areas)
        return table, series

    monkeypatch.setattr(charts, "prepare", watched)
    for run, figure, rows in stored_figures(runs):
        key = run.experiment, figure.id
        try:
            figure.chart(rows)
        except Exception as error:
            missing.append(f"{run.path.name}, {figure.id}: {error}")
    assert missing == []
    assert asked == found
    assert ("best-of-n", "dimension") in {where for where, _ in asked}


@pytest.mark.slow
def test_every_figure_of_every_stored_run_is_drawn(runs):
    """Vega draws each; what has rows and no mark of its own is a blank."""
    for _, figure, rows in stored_figures(runs):
        spec = figures.draw(figure, rows)
        if not figures.blank(spec):
            assert figures.svg(figures.for_file(spec, figure)).startswith("<svg")
