"""The report: whole, offline, escaped, and no number without its reference."""

import base64
import hashlib
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import made_up
import pytest

from frenet.experiments.experiment import MODEL, Decision, Row
from frenet.report import write_report
from frenet.report.claims import Entry, matrix
from frenet.report.markup import unpacked
from frenet.report.numbers import estimate
from frenet.report.provenance import command_line
from frenet.runs import Run

VOID = {"meta", "link", "img", "br", "input"}


class Parsed(HTMLParser):
    """The elements, addresses, ids, scripts and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif inside == "style":
            self.styles.append(data)
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split()).replace("\u00a0", " ")

    @property
    def unbroken(self) -> str:
        """The text without spaces, since a word may be an element of its own."""
        return "".join(self.text.split())

    def packed(self, id: str) -> Any:
        """The data of the script with this id."""
        (letters,) = (text for kind, text in self.scripts if kind.get("id") == id)
        return unpacked(letters)

    @property
    def ids(self) -> list[str | None]:
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "new" / "report.html"
    return write_report(made_up.runs(), out, experiments=made_up.experiments(), static=False)


@pytest.fixture(scope="module")
def page(path: Path) -> Parsed:
    return Parsed(path.read_text("utf-8"))


def rewritten(tmp_path: Path, run: Run, **changes: object) -> Parsed:
    """The page of one changed run."""
    changed = Run(**{**run.__dict__, **changes})
    out = tmp_path / "report.html"
    write_report([changed], out, experiments=made_up.experiments(), static=False)
    return Parsed(out.read_text("utf-8"))


def test_the_encoding_is_declared_where_browsers_look_for_it(path: Path) -> None:
    head = path.read_bytes()[:1024]
    assert head.startswith(b"<!doctype html>")
    assert b'<meta charset="utf-8">' in head


def test_the_file_is_small_enough_to_send(path: Path) -> None:
    assert 300_000 < path.stat().st_size < 1_500_000


def test_nothing_on_the_page_has_an_address_outside_it(page: Parsed) -> None:
    for name, attributes in page.tags:
        for key in ("src", "href", "action", "data", "poster", "srcset"):
            address = attributes.get(key)
            assert address is None or address.startswith(("#", "data:")), f"{name} {key}={address}"
    assert not re.search(r"url\(|@import|https?:", "".join(page.styles))
    own = [text for kind, text in page.scripts if "type" in kind] + [page.scripts[-1][1]]
    assert not re.search(r"https?://", "".join(own))


def test_the_policy_forbids_requests_and_allows_only_the_scripts_that_are_there(
    page: Parsed,
) -> None:
    (policy,) = (
        attributes["content"]
        for _, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = {rule.split()[0]: rule.split()[1:] for rule in str(policy).split(";")}
    assert rules["default-src"] == ["'none'"]
    assert "unsafe" not in str(policy)
    assert "http" not in str(policy)

    def hashed(text: str) -> str:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return f"'sha256-{digest}'"

    (own,) = (text for kind, text in page.scripts if "type" not in kind)
    assert rules["script-src"] == [hashed(own), hashed(page.packed("engine"))]
    assert rules["style-src"] == [hashed(text) for text in page.styles]
    assert not [a for _, a in page.tags if any(key.startswith(("on", "style")) for key in a)]


def test_every_link_within_the_page_leads_somewhere(page: Parsed) -> None:
    links = [str(a["href"]) for tag, a in page.tags if tag == "a"]
    targets = [link[1:] for link in links if link.startswith("#")]
    assert len(targets) > 10
    assert set(targets) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_hostile_text_is_text(path: Path, page: Parsed) -> None:
    raw = path.read_text("utf-8")
    assert "<script>alert" not in raw
    assert html.escape(made_up.HOSTILE) in raw
    for word in (*made_up.TASKS, f"seed=1,task={made_up.HOSTILE}"):
        assert word in page.text
    spec = page.packed(SPECTRUM)
    # Long names are wrapped as the titles of panels.
    names = {row["task"].replace("\n", "") for rows in spec["datasets"].values() for row in rows}
    assert names == set(made_up.TASKS)


SPECTRUM = "gradient-rank-spectrum-spec"


def test_user_text_does_not_turn_its_surroundings_round(page: Parsed) -> None:
    assert [tag for tag, _ in page.tags if tag == "bdi"]
    assert 'dir: "auto"' in page.scripts[-1][1]


def test_text_that_utf8_cannot_hold_is_written_out(tmp_path: Path) -> None:
    run = made_up.runs()[0]
    broken = [row | {"task": "half \ud800 and \x00"} for row in run.rows[:9]]
    page = rewritten(tmp_path, run, rows=broken)
    assert r"half \ud800 and \x00" in page.text
    assert "Not drawn" not in page.text


def test_every_claim_stands_beside_its_reference(page: Parsed) -> None:
    claims = [c for e in made_up.experiments().values() for c in e.claims]
    assert len(claims) == 4
    for claim in claims:
        found = claim.decide([])
        for words in (
            claim.id,
            claim.statement,
            claim.paper,
            claim.rule,
            found.verdict,
            found.quantity,
            estimate(found.estimate),
            found.reference,
            estimate(found.reference_estimate),
            found.why,
            *found.notes,
        ):
            assert "".join(words.split()) in page.unbroken, words


def test_the_parts_of_a_claims_number_are_a_table_that_the_claim_leads_to(page: Parsed) -> None:
    links = [a["href"] for tag, a in page.tags if tag == "a" and "parts-C1" in str(a.get("href"))]
    assert links == ["#gradient-rank-parts-C1", "#gradient-rank-parts-C1-2"]
    assert page.text.count("Held-out energy by task") == 2  # link, table
    files = [a.get("data-file") for tag, a in page.tags if tag == "button"]
    assert "gradient-rank-parts-C1.csv" in files
    table = page.packed("gradient-rank-parts-C1-rows")
    assert table["columns"][0]["values"] == ["<i>a|b</i>", "c"]
    # Its columns are named by the parts themselves: no empty list of meanings is left.
    legends = [a for tag, a in page.tags if tag == "dl" and a.get("class") == "legend"]
    tables = [a for tag, a in page.tags if tag == "details" and a.get("class") == "table"]
    assert len(legends) == len(tables) - 2


def test_the_first_sentence_counts_the_verdicts(page: Parsed) -> None:
    assert (
        "Of 4 claims, 2 are supported (C1 and C3), 1 is contradicted (C2) and 1 is undecided."
        in page.text
    )
    assert "synthetic transformer · 5 tasks · 3 seeds · frenet " in page.text


def test_a_verdict_is_more_than_a_colour(page: Parsed) -> None:
    badges = [str(a["class"]) for _, a in page.tags if str(a.get("class")).startswith("badge ")]
    # Each on its line and again above its reasons.
    verdicts = ("supported", "contradicted", "supported", "undecided")
    assert badges == [f"badge {v}" for v in verdicts for _ in range(2)]
    assert "✓ supported" in page.text
    assert "✕ contradicted" in page.text


def test_a_rule_that_fails_leaves_the_claim_undecided_and_says_why(tmp_path: Path) -> None:
    def broken(rows: object) -> object:
        raise ZeroDivisionError("no rows at k = 10")

    experiments = made_up.experiments()
    drift = experiments["basis-drift"]
    claim = drift.claims[0]._replace(decide=broken)
    experiments["basis-drift"] = type(drift)(**{**drift.__dict__, "claims": (claim,)})
    out = write_report(
        made_up.runs()[2:], tmp_path / "r.html", experiments=experiments, static=False
    )
    text = Parsed(out.read_text("utf-8")).text
    assert "? undecided" in text
    assert "ZeroDivisionError: no rows at k = 10" in text


def test_figures_have_names_texts_and_data(page: Parsed) -> None:
    charts = [a for _, a in page.tags if "data-chart" in a]
    assert len(charts) == 5
    for chart in charts:
        assert chart["role"] == "img"
        assert len(str(chart["aria-label"])) > 40
        assert chart["data-chart"] in page.ids
    assert "held-out energy from 0.309 to" in page.text


def test_a_figure_that_cannot_be_drawn_says_so_and_spares_the_others(page: Parsed) -> None:
    assert "These runs hold no row of absent, so these figures are left out: “A table" in page.text
    assert "Not drawn: UsageError: no row has the column 'task'" in page.text
    assert "recovery-basis-function-spec" in page.ids


def test_figures_follow_the_colours_of_the_page(page: Parsed) -> None:
    (light, dark) = re.findall(r":root \{(.*?)\}", page.styles[0], re.DOTALL)[:2]
    used: set[str] = set()
    for kind, _ in page.scripts:
        if str(kind.get("id")).endswith("-spec"):
            text = json.dumps(page.packed(str(kind["id"])))
            used |= set(re.findall(r"var\((--[a-z0-9-]+)\)", text))
            assert "$schema" not in text
    assert {"--ink", "--series-1", "--reference", "--heat"} <= used
    for name in used:
        assert f"{name}:" in light
        assert f"{name}:" in dark


def test_measures_stand_next_to_their_references(page: Parsed) -> None:
    columns = page.packed("recovery-basis-table-capture-rows")["columns"]
    assert [column["name"] for column in columns] == [
        *("seed", "damage", "optimiser", "basis"),
        *("captured", "random_walk", "regained", "regained_random"),
    ]
    assert columns[4]["hint"] == "share of the recovery displacement (fraction, 0 to 1)"
    assert "share of the recovery displacement; compare with random_walk" in page.text


def test_long_tables_are_cut_aloud_and_whole_in_the_file(tmp_path: Path) -> None:
    run = made_up.runs()[2]
    rows = [dict(run.rows[0]) | {"lag": lag} for lag in range(1, 1001)]
    page = rewritten(tmp_path, run, rows=rows)
    told = "The first 200 of 1,000 rows in this order are shown; the file has all."
    assert told in page.text
    columns = {one["name"]: one for one in page.packed("basis-drift-table-drift-rows")["columns"]}
    assert columns["lag"]["values"] == list(range(1, 1001))


def test_packed_numbers_have_six_digits_and_large_integers_all_of_them(tmp_path: Path) -> None:
    run = made_up.runs()[2]
    seed = 2**63 - 25
    rows = [dict(run.rows[0]) | {"seed": seed, "ratio": 1 / 3, "control": float("nan")}]
    page = rewritten(tmp_path, run, rows=rows)
    columns = {one["name"]: one for one in page.packed("basis-drift-table-drift-rows")["columns"]}
    assert columns["seed"]["values"] == [str(seed)]
    assert columns["ratio"]["values"] == [0.333333]
    assert columns["control"]["values"] == ["nan"]


def test_columns_that_nobody_described_are_shown_all_the_same(tmp_path: Path) -> None:
    run = made_up.runs()[2]
    page = rewritten(tmp_path, run, rows=[*run.rows, dict(run.rows[0]) | {"surprise": 7}])
    assert "not described by the experiment" in page.text


def test_failures_are_told(page: Parsed) -> None:
    assert "1 cell has failed." in page.text
    assert "(run): FloatingPointError: non-finite loss at step 17 of task مهمة" in page.text
    assert "1 failed cell" in page.text


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    run = made_up.runs()[2]
    page = rewritten(tmp_path, run, manifest=run.manifest | {"complete": False})
    assert "This run is not finished. 3 of 4 cells are finished." in page.text


def test_a_page_of_first_results_says_what_is_to_come(tmp_path: Path, page: Parsed) -> None:
    made, out = made_up.experiments(), tmp_path / "report.html"
    waiting = ["best-of-n", "the rest of basis-drift on a<b>"]
    write_report(made_up.runs(), out, experiments=made, static=False, waiting=waiting)
    assert (
        "First results. This page is written again after every experiment, and verdicts may "
        "change. Still to come: best-of-n and the rest of basis-drift on a<b>."
    ) in Parsed(out.read_text("utf-8")).text
    assert "First results" not in page.text


def test_the_command_is_the_nearest_preset_and_what_differs() -> None:
    run, experiment = made_up.runs()[0], made_up.experiments()["gradient-rank"]
    assert command_line(run, experiment) == (
        "frenet run gradient-rank --preset demo --no-quick --threads 1"
    )
    changed = Run(**{**run.__dict__, "config": run.config | {"tasks": ["a b", "c"], "k": 5}})
    assert command_line(changed, experiment) == (
        "frenet run gradient-rank --preset smoke --tasks 'a b' c --k 5 --no-quick --threads 1"
    )


def test_the_command_of_a_model_starts_from_the_settings_for_models() -> None:
    run, experiment = made_up.runs()[0], made_up.experiments()["gradient-rank"]
    presets = {**experiment.presets, "lm": made_up.Config(tasks=("a",), k=7)}
    changed = replace(experiment, presets=presets, changes={MODEL: {"demo": {"k": 3}}})
    config = {**run.config, "model": "some/model", "tasks": ["a"], "k": 3, "quick": True}
    of_model = Run(**{**run.__dict__, "config": config})
    assert command_line(of_model, changed) == (
        "frenet run gradient-rank --preset demo --model some/model --threads 1"
    )


def test_a_second_network_is_named_wherever_it_matters(tmp_path: Path) -> None:
    first = made_up.runs()[2]
    second = Run(**{**first.__dict__, "config": first.config | {"model": "models/<other>"}})
    other = {"config": first.config | {"k": 11}, "path": Path("runs") / "again"}
    third = Run(**{**first.__dict__, **other})
    out = tmp_path / "report.html"
    write_report([first, second, third], out, experiments=made_up.experiments(), static=False)
    page = Parsed(out.read_text("utf-8"))
    assert "Of 3 verdicts on 3 networks, 3 are supported" in page.text
    assert "C3 is supported on all." in page.text
    assert "models/<other>" in page.text
    assert "the synthetic transformer (again)" in page.text
    drifts = {"synthetic-basis-drift", "other-basis-drift", "synthetic-basis-drift-2"}
    assert drifts <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_a_network_on_which_nothing_was_measured_has_no_number_to_stand_beside() -> None:
    first = made_up.runs()[2]
    claim = made_up.experiments()["basis-drift"].claims[0]
    nothing = claim.decide(first.rows)._replace(
        estimate=None,
        reference="a null",
        reference_estimate=None,
        decision=Decision("undecided", "nothing was measured"),
    )
    other = [Entry(claim, nothing, "other", None)]
    cell = str(matrix(other, {"other": "o"})).partition("<tbody>")[2]
    assert "nothing was measured" in cell
    assert "a null" not in cell


def test_pictures_for_readers_without_scripts(tmp_path: Path) -> None:
    experiments, run = made_up.experiments(), made_up.runs()[2]
    out = write_report([run], tmp_path / "report.html", experiments=experiments, static=True)
    page = Parsed(out.read_text("utf-8"))
    (picture,) = (a for tag, a in page.tags if tag == "img")
    kind, content = str(picture["src"]).split(",", 1)
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(content).startswith(b"<svg")
    assert picture["alt"]
    assert page.tags[[tag for tag, _ in page.tags].index("img") - 1][0] == "noscript"


def test_the_same_runs_give_the_same_file(tmp_path: Path, path: Path) -> None:
    again = write_report(
        made_up.runs(), tmp_path / "r.html", experiments=made_up.experiments(), static=False
    )
    assert again.read_bytes() == path.read_bytes()


def test_more_rows_than_altair_allows_in_a_notebook(tmp_path: Path) -> None:
    run = made_up.runs()[2]
    rows: list[Row] = [dict(run.rows[0]) | {"lag": lag} for lag in range(6000)]
    assert "Not drawn" not in rewritten(tmp_path, run, rows=rows).text


def test_a_write_that_fails_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")

    def full(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"disk full: .*report\.html needs"):
        write_report(made_up.runs()[2:], out, experiments=made_up.experiments(), static=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    assert out.read_text() == "old"


def test_mistakes_are_named(tmp_path: Path) -> None:
    experiments, run = made_up.experiments(), made_up.runs()[0]
    with pytest.raises(ValueError, match="there is no run to report; give at least one run folder"):
        write_report([], tmp_path / "report.html", experiments=experiments)
    with pytest.raises(ValueError, match=r"no experiment is called 'gradient-rank'; known are a$"):
        write_report([run], tmp_path / "report.html", experiments={"a": experiments["basis-drift"]})
    with pytest.raises(IsADirectoryError, match=r"is a folder; name a file, such as .*report.html"):
        write_report([run], tmp_path, experiments=experiments)


def test_the_package_brings_its_own_experiments(tmp_path: Path) -> None:
    run = Run(**{**made_up.runs()[0].__dict__, "rows": [], "config": {}})
    page = Parsed(write_report([run], tmp_path / "r.html", static=False).read_text("utf-8"))
    assert "gradient-rank" in page.text
    assert "? undecided" in page.text
