"""Titles of figures: what was found above the question, on the page, in a file, in Markdown."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_up
import pytest

from frenet.experiments.experiment import Figure, Rows
from frenet.report import figures
from frenet.report.page import sections_of
from frenet.report.results import write_results
from frenet.report.sections import section

QUESTION, FOUND, CLAIM = "How large is it?", "It is 0.61 on <copy>.", "It is supported."


def finds(rows: Rows) -> str:
    return FOUND if rows else ""


def part_with(**changes: Any) -> Any:
    """A section whose figures are one plain figure and one with these changes."""
    run = next(run for run in made_up.runs() if run.experiment == "gradient-rank")
    (part,) = sections_of([run], made_up.experiments())
    plain = part.experiment.figures[0]._replace(title="Plain")
    changed = plain._replace(id="changed", title=QUESTION, **changes)
    study = part.experiment.__class__(
        **{**vars(part.experiment), "figures": (plain, changed), "claims": ()}
    )
    return part._replace(experiment=study)


def html_of(part: Any, **found: str) -> str:
    return str(section(part, found=found, static=False))


def test_what_a_figure_finds_is_its_title_and_its_question_stands_above() -> None:
    text = html_of(part_with(finds=finds), changed=CLAIM)
    shown = FOUND.replace("<", "&lt;").replace(">", "&gt;")
    kicker, title = f'<p class="kicker">{QUESTION}</p>', f"<bdi>{shown} {CLAIM}</bdi></h3>"
    assert text.index(kicker) < text.index(title)
    assert re.search(rf'aria-label="{re.escape(shown)} ', text)


@pytest.mark.parametrize("own", [None, lambda rows: ""])
def test_without_a_finding_of_its_own_a_figure_has_that_of_its_claim(own: Any) -> None:
    assert f"<bdi>{CLAIM}</bdi></h3>" in html_of(part_with(finds=own), changed=CLAIM)
    bare = html_of(part_with(finds=own))
    assert f">{QUESTION}</h3>" in bare
    assert "kicker" not in bare


def test_a_finding_that_fails_spares_the_other_figures() -> None:
    def fails(rows: Rows) -> str:
        raise KeyError("no such column")

    text = html_of(part_with(finds=fails))
    assert "Not drawn: KeyError" in text
    assert text.count("data-chart=") == 1


def test_figures_that_decide_nothing_are_folded_under_their_names() -> None:
    text = html_of(part_with(more=True))
    (block,) = re.findall(r'<details class="more">.*?</summary>(.*?)</figure></details>', text)
    assert f"<summary>More figures: “{QUESTION}”</summary>" in text
    assert 'id="gradient-rank-changed"' in block
    assert 'id="gradient-rank-spectrum"' not in block
    assert 'class="more"' not in html_of(part_with())


def test_a_file_has_the_finding_in_lines_above_the_question_and_the_caption() -> None:
    figure = Figure("f", QUESTION, "A caption. " * 20, "t", lambda rows: None)
    spec = {"mark": "point", "data": {"values": [{"x": 1}]}}
    long = "Optimisers differ by a factor of 38 in steps, and of 1.9 in the distance travelled."
    title = figures.for_file(spec, figure, long)["title"]
    assert " ".join(title["text"]) == long
    assert len(title["text"]) == 2
    assert title["subtitle"][0] == QUESTION
    bare = figures.for_file(spec, figure)["title"]
    assert bare["text"] == [QUESTION]
    assert bare["subtitle"] == title["subtitle"][1:]


def test_the_results_page_gives_the_finding_in_place_of_a_picture(tmp_path: Path) -> None:
    experiments = made_up.experiments()
    known = experiments["gradient-rank"]
    first = known.figures[0]._replace(finds=finds, front=True)
    changed = known.__class__(**{**vars(known), "figures": (first, *known.figures[1:])})
    run = next(run for run in made_up.runs() if run.experiment == "gradient-rank")
    machine = {"machine": {"platform": "made up"}, "commit": None, "cell_seconds": None}
    run = replace(run, manifest=run.manifest | machine)
    write_results([run], tmp_path, experiments={**experiments, "gradient-rank": changed})
    page = (tmp_path / "synthetic.md").read_text("utf-8")
    assert re.search(r"!\[It is 0\.61 on &lt;copy&gt;\. .*\]\(\S+spectrum\.svg\)", page)
