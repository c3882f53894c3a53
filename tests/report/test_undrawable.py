"""With a limited address space, figures are drawn in another process, or left out with a note."""

import subprocess
import sys
from pathlib import Path

import made_up
import pytest

from frenet.report import export, figures, write_report, write_results
from frenet.runs import Run

ROOT = Path(__file__).resolve().parents[2]
resource = pytest.importorskip("resource")
# `ulimit -v`, then a report: drawing in this very process would end it by a signal.
PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
from frenet.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def forgetting():
    """Clear the cached answers about this process before and after."""
    figures.undrawable.cache_clear()
    figures.bundle.cache_clear()
    yield
    figures.undrawable.cache_clear()
    figures.bundle.cache_clear()


def test_a_report_under_a_limit_has_its_numbers_and_says_why_it_has_no_figures(tmp_path):
    run = ROOT / "docs" / "results" / "gpt2-gradient-rank.run.jsonl.gz"
    page, tables, results = tmp_path / "report.html", tmp_path / "tables", tmp_path / "results"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(16 * 2**30), "report", run, "--out", page,
         "--export", tables, "--results", results],
        capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "no figures: the address space of this process is limited to 16 GiB" in done.stdout
    text = page.read_text("utf-8")
    assert "Not drawn: the address space of this process is limited to 16 GiB (ulimit -v)" in text
    assert "Of 2 claims, 2 are contradicted" in text
    assert 'data-rows="' in text
    assert 'data-chart="' not in text
    assert {file.suffix for file in tables.iterdir()} == {".csv"}
    told = (results / "gpt2.md").read_text("utf-8")
    assert "not drawn; the address space" in told
    assert ".svg" not in told


@pytest.mark.usefixtures("forgetting")
def test_what_is_drawn_apart_is_what_is_drawn_here(monkeypatch):
    spec = {"data": {"values": [{"x": 1, "y": "caf\u00e9"}]}, "mark": "point",
            "encoding": {"x": {"field": "x"}, "y": {"field": "y"}}}  # fmt: skip
    here = figures.svg(spec), figures.png(spec)
    monkeypatch.setattr(figures, "address_limit", lambda: 2**60)
    assert figures.undrawable() == ""
    assert (figures.svg(spec), figures.png(spec)) == here


@pytest.mark.usefixtures("forgetting")
def test_a_process_that_draws_and_dies_leaves_this_one(monkeypatch, tmp_path):
    """By a signal, as the engine ends if its addresses are not granted."""
    monkeypatch.setattr(figures, "address_limit", lambda: 2**33)
    monkeypatch.setattr(figures, "APART", "import os; os.kill(os.getpid(), 5)")
    assert "limited to 8 GiB" in figures.undrawable()
    with pytest.raises(RuntimeError, match="ended with code -5"):
        figures.svg({})
    run = made_up.runs()[0]
    machine = {"machine": {"platform": "made up"}, "commit": None, "cell_seconds": 1.0}
    run = Run(**{**run.__dict__, "manifest": run.manifest | machine})
    known = made_up.experiments()
    text = write_report([run], tmp_path / "r.html", experiments=known).read_text("utf-8")
    count = len(known[run.experiment].figures)
    assert text.count("Not drawn: the address space") == count > 0
    written = export([run], tmp_path / "e", experiments=known)
    assert {file.suffix for file in written} == {".csv"}
    write_results([run], tmp_path / "m", experiments=known)
    assert not list((tmp_path / "m").glob("*.svg"))


@pytest.mark.usefixtures("forgetting")
def test_a_missing_engine_is_a_sentence_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert "vl-convert-python cannot be loaded" in figures.undrawable()


def test_a_limit_is_seen(monkeypatch):
    for limit, expected in ((resource.RLIM_INFINITY, None), (2**40, 2**40)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert figures.address_limit() == expected
