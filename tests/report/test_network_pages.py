"""Several networks as an index and a page for each: links, words, names, files of others."""

import html
import re
from dataclasses import replace
from html.parser import HTMLParser

import hostile
import made_up
import markdown
import pytest
from browsing import browser, opened

from frenet.experiments.experiment import Decision, Finding
from frenet.report import summary, write_results, write_site
from frenet.report.claims import Entry
from frenet.runs import Run
from frenet.statistics.intervals import Estimate

NAMES = ["a/one", "b/one", "a/One", "a/index", "../..", *hostile.NAMES]
EXTENSIONS = ["attr_list", "md_in_html", "tables", "fenced_code", "toc"]


class Read(HTMLParser):
    """The ids and the links of a page."""

    def __init__(self, page):
        super().__init__()
        self.ids, self.links = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []


def site(names, folder):
    """The site of made-up networks."""
    runs, known = made_up.networks(names)
    return write_site(runs, folder, experiments=known)


def results(names, folder):
    """Their Markdown pages, the index first."""
    runs, known = made_up.networks(names)
    index = write_results(runs, folder, experiments=known)
    return [index, *sorted(path for path in folder.glob("*.md") if path != index)]


def shown(path):
    """The HTML of a page."""
    text = path.read_text("utf-8")
    return text if path.suffix == ".html" else markdown.markdown(text, extensions=EXTENSIONS)


@pytest.fixture(scope="module", params=[site, results], ids=["site", "results"])
def pages(request, tmp_path_factory):
    return request.param(NAMES, tmp_path_factory.mktemp("pages") / "new")


def test_names_are_safe_and_differ_not_only_in_case(pages):
    stems = [path.stem for path in pages]
    assert stems[0] == "index"
    assert {"one", "one-2", "One-3", "index-2", "run", "script"} <= set(stems)
    assert len(stems) == len(NAMES) + 1 == len({stem.lower() for stem in stems})
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,83}", stem) for stem in stems)
    assert {path.parent for path in pages} == {pages[0].parent}


def test_every_link_of_every_page_leads_somewhere(pages):
    read = {path.name: Read(shown(path)) for path in pages}
    for name, page in read.items():
        assert page.links
        assert len(page.ids) == len(set(page.ids))
        for link in page.links:
            file, _, anchor = link.partition("#")
            if (pages[0].parent / file).suffix in (".md", ".html", ""):
                target = read[file or name]
                assert not anchor or anchor in target.ids, f"{name}: {link}"
            else:
                assert (pages[0].parent / file).is_file(), f"{name}: {link}"
    linked = {link.partition("#")[0] for link in read[pages[0].name].links}
    assert linked >= {path.name for path in pages[1:]}


def test_hostile_names_are_text(pages):
    assert "alert(1)" in shown(pages[0])
    for path in pages:
        text = shown(path)
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert not set("\x00\x1b\u202e\r") & set(text)


def test_a_verdict_is_the_same_word_in_the_index_and_on_the_page_of_the_site(tmp_path):
    index, *networks = site(["a/one", "b/two"], tmp_path)
    cells = re.findall(
        r'data-label="([^"]*)"><div><span class="badge ([a-z-]+)"', index.read_text("utf-8")
    )
    found = {}
    for label, kind in cells:
        found.setdefault(html.unescape(label), []).append(kind)
    assert found == {"a/one": ["supported"] * 2, "b/two": ["contradicted", "supported"]}
    for path, kinds in zip(networks, found.values(), strict=True):
        lines = r'<p class="verdict"><span class="badge ([a-z-]+)"'
        assert re.findall(lines, path.read_text("utf-8")) == kinds


def test_a_verdict_is_the_same_word_in_the_index_and_at_the_claim_that_it_leads_to(tmp_path):
    index, *networks = results(["a/one", "b/two"], tmp_path)
    of_pages = {path.name: shown(path) for path in networks}
    cell = r'<a href="([^"#]+)#([^"]+)"><span class="verdict ([a-z-]+)">'
    cells = re.findall(cell, shown(index))
    assert [kind for *_, kind in cells] == ["supported", "contradicted", "supported", "supported"]
    for file, anchor, kind in cells:
        heading = rf'<h3 id="{re.escape(anchor)}">[^<]*</h3>\s*<p><span class="verdict ([a-z-]+)">'
        assert re.findall(heading, of_pages[file]) == [kind]


@pytest.mark.parametrize("write", [site, results])
def test_the_same_runs_give_the_same_pages(write, tmp_path):
    once, again = (write(["a/one", "b/two"], tmp_path / name) for name in ("once", "again"))
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]
    assert write(["a/one", "b/two"], tmp_path / "once") == once
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]


@pytest.mark.parametrize("write", [site, results])
def test_a_page_is_removed_with_its_network_and_other_files_stay(write, tmp_path):
    index, _, two = write(["a/one", "b/two"], tmp_path)
    mine = tmp_path / f"mine{index.suffix}"
    mine.write_text("# Mine\n")
    again = write(["a/one"], tmp_path)
    assert [path.name for path in again if path != mine] == [index.name, f"one{index.suffix}"]
    assert not two.exists()
    assert mine.read_text() == "# Mine\n"
    assert "b/two" not in index.read_text("utf-8")


@pytest.mark.parametrize("write", [site, results])
def test_no_page_of_a_network_replaces_a_file_of_somebody_else(write, tmp_path):
    ending = write(["a/one"], tmp_path / "first")[0].suffix
    taken = tmp_path / f"two{ending}"
    taken.write_text("mine")
    with pytest.raises(FileExistsError, match=rf"two{ending} was not written by frenet report; mo"):
        write(["a/one", "b/two"], tmp_path)
    assert taken.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", taken.name]
    with pytest.raises(NotADirectoryError, match=rf"two{ending} is a file; name a folder"):
        write(["a/one"], taken)


def test_one_network_has_an_index_too(tmp_path):
    index, page = site(["a/one"], tmp_path)
    assert (index.name, page.name) == ("index.html", "one.html")
    assert 'href="one.html"' in index.read_text("utf-8")
    assert 'href="index.html"' in page.read_text("utf-8")


def test_a_site_without_claims_leads_from_every_question_to_its_answers(tmp_path):
    runs, known = made_up.networks(["a/one", "", "b/two"])
    known["gradient-rank"] = replace(known["gradient-rank"], claims=())
    index, *networks = write_site(runs, tmp_path, experiments=known)
    links = Read(index.read_text("utf-8")).links
    for path in networks:
        (anchor,) = (a for file, _, a in (link.partition("#") for link in links)
                     if file == path.name and a)  # fmt: skip
        assert anchor in Read(path.read_text("utf-8")).ids
    assert "a model without a name" in index.read_text("utf-8")


def test_the_summary_has_five_claims_at_most_those_that_matter_first_and_only_decided_ones():
    (claim,) = made_up.experiments()["gradient-rank"].claims

    def entry(name, network, verdict, value=0.5):
        found = Finding(
            name, Decision(verdict, "so"), "share", Estimate(value), "null", Estimate(0.1)
        )
        says = ("it holds {value}", "by chance {reference}")
        return Entry(claim._replace(id=name, statement=f"S{name}", says=says), found, network, None)

    names = ["C1", "C10", "C2", "C3", "C4a", "C5a", "C6", "C7"]
    decisions = [entry(name, "a", "supported") for name in names if name != "C4a"]
    decisions += [entry("C4a", "a", "undecided"), entry("C2", "b", "not testable")]
    decisions += [entry("C2", "c", "contradicted", 0.01), entry("C2", "d", "supported", 0.75)]
    chosen = summary.chosen(decisions)
    assert [entries[0].finding.name for entries in chosen] == ["C2", "C3", "C1", "C5a", "C6"]
    assert summary.markdown(chosen[0], lambda one: f"[{one.run}]") == (
        "**SC2** (C2): *supported* on 2 of 4 networks ([a]: it holds 0.50; by chance 0.10); "
        "*contradicted* on 1 of 4 networks ([c]: it holds 0.01; by chance 0.10)."
    )
    assert summary.markdown(chosen[1], lambda one: f"[{one.run}]") == (
        "**SC3** (C3): *supported* on [a]: it holds 0.50; by chance 0.10."
    )
    assert summary.chosen([entry("C2", "a", "undecided")]) == []


def test_every_page_of_a_site_forbids_requests_and_makes_none(tmp_path):
    runs, known = made_up.networks(["a/one", "b/<b>two</b>"])
    paths = write_site([*runs, *other_runs("a/one")], tmp_path / "é #1", experiments=known)
    for path in paths:
        text = path.read_text("utf-8")
        assert "default-src &#39;none&#39;" in text
        assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", text)
    with browser() as chromium:
        for path in paths:
            with opened(chromium, path, viewport={"width": 390, "height": 844}) as (page, seen):
                assert page.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0
                assert page.locator("[data-chart]").count() > 0 or path != paths[0]
                assert seen.trouble(page) == []


def other_runs(model):
    """More runs on a network, with figures."""
    return [
        Run(**{**run.__dict__, "config": run.config | {"model": model}})
        for run in made_up.runs()[2:]
    ]
