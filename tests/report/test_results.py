"""Runs as Markdown pages: every row next to them, no tag of users, the same every time."""

from dataclasses import replace
from html.parser import HTMLParser

import hostile
import made_up
import markdown as site
import pytest

from frenet.experiments.setup.damage import shown_settings
from frenet.report import results_page, write_results
from frenet.report.markup import markdown
from frenet.runs import Run, find_runs, read_run


def all_pages(folder):
    """The texts of all pages of a folder."""
    return "\n".join(path.read_text("utf-8") for path in sorted(folder.glob("*.md")))


def written(folder):
    """A folder of results from two made-up networks."""
    first = made_up.runs()[0]
    machine = {"machine": {"platform": "made up"}, "commit": None, "cell_seconds": 1.0}
    first = Run(**{**first.__dict__, "manifest": first.manifest | machine})
    second = Run(**{**first.__dict__, "config": first.config | {"model": "models/<b>other</b>"}})
    page = write_results([first, second], folder, experiments=made_up.experiments())
    return first, page


def test_the_runs_stand_beside_the_page_and_make_it_again_in_another_folder(tmp_path):
    run, page = written(tmp_path / "first")
    files = find_runs([page.parent])
    assert len(files) == 2
    assert all(f"({file.name})" in all_pages(page.parent) for file in files)
    read = [read_run(file) for file in files]
    assert [one.rows for one in read] == [run.rows, run.rows]
    assert [one.config["model"] for one in read] == ["models/<b>other</b>", "synthetic"]
    write_results(read[::-1], tmp_path / "again", experiments=made_up.experiments())
    contents = [
        {file.name: file.read_bytes() for file in folder.iterdir()}
        for folder in (page.parent, tmp_path / "again")
    ]
    assert contents[0] == contents[1]


def test_the_page_says_what_is_not_there(tmp_path):
    run = made_up.runs()[0]
    machine = {"machine": {"platform": "made up"}, "commit": None, "cell_seconds": None}
    cells = {"complete": False, "cells": {"total": 9, "finished": 2, "failed": 1}}
    failure = {"cell": "seed=1", "stage": "run", "type": "ValueError", "error": "<no>"}
    changes = {"manifest": run.manifest | machine | cells, "failures": [failure]}
    page = write_results(
        [Run(**{**run.__dict__, **changes})], tmp_path, experiments=made_up.experiments()
    )
    text = (tmp_path / "synthetic.md").read_text("utf-8")
    assert "- `gradient-rank` is not finished. 2 of 9 cells are finished.\n" in text
    assert "- `gradient-rank`: seed=1 failed: ValueError: &lt;no&gt;\n" in text
    assert "`frenet report FOLDER --out report.html --partial`" in page.read_text("utf-8")
    assert "s of cells" not in text
    (file,) = find_runs([tmp_path])
    assert read_run(file, partial=True).failures == [failure]


def test_a_run_that_is_given_twice_counts_once(tmp_path):
    run, page = written(tmp_path / "first")
    copies = [read_run(file) for file in find_runs([page.parent])]
    again = write_results([*copies, run], tmp_path / "again", experiments=made_up.experiments())
    assert len(find_runs([again.parent])) == 2
    assert {path.name for path in again.parent.glob("*.md")} == {"index.md", "b.md", "synthetic.md"}


def test_a_network_that_joins_renames_no_run(tmp_path):
    run, _ = written(tmp_path / "both")
    write_results([run], tmp_path / "one", experiments=made_up.experiments())
    (alone,) = find_runs([tmp_path / "one"])
    assert (tmp_path / "both" / alone.name).read_bytes() == alone.read_bytes()


def test_the_pages_name_both_networks_link_their_figures_and_hold_no_tag_of_a_user(tmp_path):
    _, page = written(tmp_path)
    index, text = page.read_text("utf-8"), all_pages(tmp_path)
    assert "# the synthetic transformer\n" in text
    # Every second part between fences is a list of commands, shown verbatim.
    assert not any("<b>" in part or "<script" in part for part in text.split("```")[::2])
    assert "&lt;script&gt;" in text
    assert "| **C1** Task gradients are locally low-rank, strongly. |" in index
    assert text.count("In the paper: “strongly low-rank”.") == 2
    place = "synthetic.md#c1-task-gradients-are-locally-low-rank-strongly"
    every = "0.662 [0.601, 0.723], n = 3; compared with 0.0123 [0.0119, 0.0126], n = 3"
    assert (
        f'[<span class="verdict supported">✓ supported</span>]({place}) '
        f'<small title="{every}">0.66 (0.01)</small> |'
    ) in index
    assert text.count("| task | energy |\n| --- | --- |\n| &lt;i&gt;a\\|b&lt;/i&gt; | 0.251 |") == 2
    figures = list(tmp_path.glob("*.svg"))
    assert figures
    assert all(f"]({figure.name})" in text for figure in figures)


def test_a_claim_names_the_damage_and_the_optimisers_of_the_spaces_that_were_measured(tmp_path):
    run = made_up.runs()[0]
    machine = {"machine": {"platform": "made up"}, "commit": None, "cell_seconds": 1.0}
    settings = {"rates": ["adam:1"], "lora_rates": ["sgd:2"], "kind": "noise"}
    known = made_up.experiments()
    known[run.experiment] = replace(
        known[run.experiment],
        shown_settings=shown_settings("kind", full="rates", lora="lora_rates"),
    )
    for spaces, trained in (
        (["full"], "full space trained by adam:1."),
        (["lora"], "lora space trained by sgd:2."),
        (["full", "lora"], "full space trained by adam:1; lora space trained by sgd:2."),
    ):
        config = run.config | settings | {"spaces": spaces}
        one = Run(**{**run.__dict__, "config": config, "manifest": run.manifest | machine})
        write_results([one], tmp_path, experiments=known)
        assert f"Settings: damage by noise; {trained}\n" in all_pages(tmp_path)


def test_text_of_users_makes_no_link_picture_or_code():
    assert markdown("![p](u) [a](b) [a][b] [a]: c `d` e*f* <g>\nh") == (
        r"&#33;[p]\(u) [a]\(b) [a]\[b] [a]&#58; c \`d\` e\*f\* &lt;g&gt; h"
    )
    assert markdown("0.5 [0.4, 0.6], n = 3 (so)") == "0.5 [0.4, 0.6], n = 3 (so)"
    assert list(results_page._fenced(["a ``` b", "c"])) == ["````", "a ``` b", "c", "````", ""]


def test_a_figure_that_fails_leaves_the_others_and_the_numbers(tmp_path, monkeypatch):
    plain = results_page.figures.draw
    drawn = []

    def draw(figure, rows):
        drawn.append(figure.id)
        if len(drawn) == 1:
            raise ZeroDivisionError("no data")
        return plain(figure, rows)

    monkeypatch.setattr(results_page.figures, "draw", draw)
    written(tmp_path)
    text = all_pages(tmp_path)
    assert "not drawn, ZeroDivisionError: no data" in text
    assert len(list(tmp_path.glob("*.svg"))) > 0
    assert len(find_runs([tmp_path])) == 2


def test_a_page_names_versions_machine_and_commits_once_or_for_the_runs_that_had_them(tmp_path):
    first, second = made_up.runs()[:2]
    assert first.experiment != second.experiment
    made = {"machine": {"platform": "System-1-kernel", "cpus": 2}, "cell_seconds": 1.0}
    made |= {"versions": {"frenet": "1"}, "commit": "abc", "commits": ["abc"]}
    changes = (
        (first, "models/a", {}),
        (second, "models/a", {"commit": "ghi", "commits": ["ghi"]}),
        (first, "models/b", {"commit": None, "commits": ["abc", "def-dirty"]}),
        (first, "models/c", {}),
        (first, "models/d", {"versions": {"frenet": "2"}}),
        (first, "models/e", {"machine": {"platform": "System-1-kernel", "cpus": 8}}),
    )
    runs = [
        Run(
            **{
                **run.__dict__,
                "config": run.config | {"model": model},
                "manifest": run.manifest | made | change,
            }
        )
        for run, model, change in changes
    ]
    write_results(runs, tmp_path, experiments=made_up.experiments())
    told = {
        path.stem: path.read_text("utf-8").partition("## Versions and machines\n\n")[2]
        for path in tmp_path.glob("[a-e].md")
    }
    same = "- frenet 1\n- platform System, cpus 2; commit abc\n"
    assert f"`{first.experiment}`:\n\n{same}" in told["a"]
    assert f"`{second.experiment}`:\n\n- frenet 1\n" in told["a"]
    assert "cpus 2; commit ghi\n" in told["a"]
    assert "commits, in this order, abc, def-dirty\n" in told["b"]
    assert told["c"].startswith(same)
    assert told["d"].startswith("- frenet 2\n")
    assert told["e"].startswith("- frenet 1\n- platform System, cpus 8; commit abc\n")


def test_the_same_runs_give_the_same_files(tmp_path):
    for name in ("once", "again"):
        written(tmp_path / name)
    files = sorted(file.name for file in (tmp_path / "once").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "again").iterdir())
    for name in files:
        once, again = ((tmp_path / folder / name).read_bytes() for folder in ("once", "again"))
        assert once == again


class Tags(HTMLParser):
    """Names of the elements of a page, and of their attributes."""

    def __init__(self, page):
        super().__init__()
        self.seen, self.text = set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen |= {tag, *(name for name, _ in attrs)}

    def handle_data(self, data):
        self.text += data


EXTENSIONS = ["attr_list", "abbr", "admonition", "footnotes", "def_list", "toc", "md_in_html"]
MEANT = (
    "{: onclick=alert(1) }", "# a", "1. a", "- a", "+ a", "> a", "::: os", "!!! note", "[TOC]",
    "*[a]: b", "[^1]: a", "[a]: javascript:alert(1)", "\\[a](javascript:alert(1))", "a\\`b`",
    "_a_ __b__", "~~a~~", "--8<-- \"/etc/passwd\"", ": a", "| a | b |", "https://example.org",
    "<a@b.c>", "\x1b[31m\x9b2J\u202e", "a_b_c 0.5 [1, 2] (x) -0.3", "* * *", "===",
)  # fmt: skip


@pytest.mark.parametrize("text", [*MEANT, *hostile.NAMES])
def test_any_text_is_itself_on_a_page_made_of_the_markdown(text):
    """By the program that makes sites of such pages, with extensions that give texts a meaning."""
    for before in ("", "- ", "## "):
        page = Tags(site.markdown(f"{before}{markdown(text)}\n", extensions=EXTENSIONS))
        assert page.seen <= {"p", "ul", "li", "h2", "id"}
        shown = " ".join(text.split())
        for sign in "\x00\x1b\x9b\u202e":
            shown = shown.replace(sign, ascii(sign)[1:-1])
        assert page.text.strip() == shown


def test_hostile_runs_make_a_page_without_tags_and_signs_that_are_obeyed(tmp_path):
    """Model, tasks, failures, versions, machine, commits and settings are all forged."""
    runs = []
    for run in hostile.runs():
        forged = {
            "versions": {name: name for name in hostile.NAMES},
            "machine": {"platform": hostile.NAMES[0], hostile.NAMES[1]: "x\n\n<b>"},
            "commit": "\x1b[31m<script>", "cell_seconds": None, "complete": False,
            "cells": {"finished": "<script>", "total": "\n# a"},
        }  # fmt: skip
        runs.append(Run(**{**run.__dict__, "manifest": run.manifest | forged}))
    write_results(runs, tmp_path, experiments=hostile.experiments())
    page = all_pages(tmp_path)
    assert not set("\x00\x1b\u202e\r") & set(page)
    extensions = ["fenced_code", "tables", "attr_list", "md_in_html"]
    tags = Tags(site.markdown(page, extensions=extensions))
    assert not {"script", "onerror", "b", "h1" if "<h1>a" in page else ""} & tags.seen
    assert "alert(1)" in tags.text


def test_a_name_of_a_megabyte_is_shortened_on_the_page_and_whole_beside_it(tmp_path):
    run = made_up.runs()[0]
    machine = {"machine": {"platform": "made up"}, "commit": None, "cell_seconds": 1.0}
    long = "t" * 2**20
    rows = [
        row | {"task": long} if row.get("task") == made_up.TASKS[0] else row for row in run.rows
    ]
    forged = Run(**{**run.__dict__, "rows": rows, "manifest": run.manifest | machine})
    write_results([forged], tmp_path, experiments=made_up.experiments())
    assert len(all_pages(tmp_path)) < 100_000
    (file,) = find_runs([tmp_path])
    assert read_run(file).rows == rows
