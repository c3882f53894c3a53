"""Runs that decide no claim: their answers open the page, or their section."""

import dataclasses
from pathlib import Path

import made_up
from test_page import Parsed

from frenet.experiments.experiment import Answer, Experiment, Row, Rows
from frenet.experiments.intervals import select
from frenet.report import export, write_report, write_results
from frenet.runs import Run

SILENT = "scale"


def radius_rows(seeds: int, names: tuple[str, ...] = ("gradient", "a: b")) -> list[Row]:
    return [
        {"table": "radius", "seed": seed, "space": "full", "direction": name, "times": seed + 1.5}
        for seed in range(seeds)
        for name in names
    ]


def sentences(rows: Rows) -> list[Answer]:
    return [
        Answer(
            str(row["direction"]),
            {key: row[key] for key in ("seed", "space")},
            f"linear up to {row['times']} of its length",
        )
        for row in select(rows, table="radius")
    ]


def experiments() -> dict[str, Experiment]:
    """The made-up experiments, and one without a claim."""
    found = made_up.experiments()
    drift = found["basis-drift"]
    found[SILENT] = dataclasses.replace(
        drift, name=SILENT, claims=(), question="How far does each go?", answers=sentences
    )
    return found


def scale_run(rows: list[Row]) -> Run:
    drift = made_up.runs()[2]
    return Run(SILENT, drift.config, [*rows, *drift.rows], drift.manifest, [], Path("runs/scale"))


def page(runs: list[Run], tmp_path: Path) -> Parsed:
    out = write_report(runs, tmp_path / "r.html", experiments=experiments(), static=False)
    return Parsed(out.read_text("utf-8"))


def before(text: str, *parts: str) -> None:
    """That all parts are there, in this order."""
    places = [text.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)


def test_answers_open_a_page_without_claims(tmp_path: Path) -> None:
    text = page([scale_run(radius_rows(2))], tmp_path).text
    before(
        text,
        "How far does each go? Results",
        "gradient seed 0 linear up to 1.5 of its length seed 1 linear up to 2.5 of its length",
        "a: b seed 0 linear up to 1.5 of its length",
        "Glossary direction",
    )
    assert text.count("seed 0 linear up to 1.5") == 2
    assert "No claim" not in text


def test_what_all_answers_share_is_not_repeated(tmp_path: Path) -> None:
    text = page([scale_run(radius_rows(1))], tmp_path).text
    assert "gradient linear up to 1.5 of its length a: b linear up to" in text
    assert "space full" not in text


def test_many_answers_are_folded(tmp_path: Path) -> None:
    found = page([scale_run(radius_rows(9, ("gradient",)))], tmp_path)
    before(found.text, "seed 2 linear up to 3.5", "6 more", "seed 3 linear up to 4.5", "seed 8")


def test_among_results_there_is_a_list_for_each_direction(tmp_path: Path) -> None:
    made = {"machine": {"platform": "made up"}, "commit": None, "cell_seconds": 1.0}
    run = scale_run(radius_rows(2))
    run = dataclasses.replace(run, manifest=run.manifest | made)
    write_results([run], tmp_path, experiments=experiments())
    found = (tmp_path / "synthetic.md").read_text("utf-8")
    assert "<details" not in found
    assert (
        "\n- gradient\n"
        "    - seed 0: linear up to 1.5 of its length\n"
        "    - seed 1: linear up to 2.5 of its length\n"
        "- a: b\n"
    ) in found


def test_the_question_of_an_only_run_is_the_title_and_is_asked_once(tmp_path: Path) -> None:
    for rows in ([], radius_rows(1)):
        found = page([scale_run(rows)], tmp_path)
        assert found.text.count("How far does each go?") == 1
        assert ("No claim is tested" in found.text) == (not rows)


def test_beside_claims_the_answers_open_their_own_section(tmp_path: Path) -> None:
    text = page([scale_run(radius_rows(1)), made_up.runs()[2]], tmp_path).text
    before(text, "Of 1 claim", "How far does each go?", "gradient linear up")
    assert text.count("gradient linear up to 1.5") == 1


def test_sections_stand_in_the_order_of_the_claims(tmp_path: Path) -> None:
    first, second, third = made_up.runs()
    found = page([scale_run([]), third, second, first], tmp_path)
    names = ["gradient-rank", "recovery-basis", "basis-drift", SILENT]
    assert [id for id in found.ids if id in names] == names


def test_a_figure_that_draws_none_of_its_rows_says_so(tmp_path: Path) -> None:
    found = experiments()
    drift = found["basis-drift"]
    empty = drift.figures[0]._replace(chart=lambda rows: drift.figures[0].chart([]))
    found["basis-drift"] = dataclasses.replace(drift, figures=(empty,))
    out = write_report(made_up.runs()[2:], tmp_path / "r.html", experiments=found, static=False)
    text = Parsed(out.read_text("utf-8")).text
    assert "No row of the table drift is of the kind that this figure draws." in text
    written = export(made_up.runs()[2:], tmp_path / "out", experiments=found)
    assert [file.name for file in written] == ["basis-drift-drift.csv"]


def test_cautions_are_behind_the_verdict(tmp_path: Path) -> None:
    found = experiments()
    drift = found["basis-drift"]
    (claim,) = drift.claims
    told = claim.decide([])._replace(notes=("caution 0.", "caution 1."))
    changed = (claim._replace(decide=lambda rows: told),)
    found["basis-drift"] = dataclasses.replace(drift, claims=changed)
    out = write_report(made_up.runs()[2:], tmp_path / "r.html", experiments=found, static=False)
    text = Parsed(out.read_text("utf-8")).text
    before(text, "why", "The rule, fixed before the run", "Cautions caution 0. caution 1.")
