"""docs/results: the page follows from the runs beside it, word for word."""

from pathlib import Path

from frenet.report import write_results
from frenet.runs import find_runs, read_run

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def test_the_runs_in_the_folder_make_its_page_again(tmp_path):
    page = write_results([read_run(file) for file in find_runs([RESULTS])], tmp_path)
    assert page.read_text("utf-8") == (RESULTS / "index.md").read_text("utf-8")
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in RESULTS.iterdir()}
