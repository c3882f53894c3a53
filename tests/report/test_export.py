"""Figures as PNG and SVG, tables as CSV."""

import csv
import io
import struct
from pathlib import Path
from xml.etree import ElementTree

import made_up
import pytest

from frenet.experiments.experiment import Column, Experiment
from frenet.report import export
from frenet.report.tables import arranged, csv_bytes


def only_sound_figures() -> dict[str, Experiment]:
    experiments = made_up.experiments()
    recovery = experiments["recovery-basis"]
    kept = tuple(figure for figure in recovery.figures if figure.id != "broken")
    experiments["recovery-basis"] = Experiment(**{**recovery.__dict__, "figures": kept})
    return experiments


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("export") / "figures"
    written = export(made_up.runs(), out, experiments=only_sound_figures())
    assert sorted(out.iterdir()) == sorted(written)
    return {file.name: file for file in written}


def test_names_say_experiment_and_figure_or_table(files: dict[str, Path]) -> None:
    drawn = ["gradient-rank-spectrum", "gradient-rank-overlap", "recovery-basis-capture"]
    drawn += ["recovery-basis-function", "basis-drift-drift"]
    tables = ["gradient-rank-spectrum", "gradient-rank-overlap", "recovery-basis-capture"]
    tables += ["basis-drift-drift"]
    expected = [f"{name}.{kind}" for name in drawn for kind in ("svg", "png")]
    assert sorted(files) == sorted(expected + [f"{name}.csv" for name in tables])


def test_png_files_are_pictures_of_a_sensible_size(files: dict[str, Path]) -> None:
    for name, file in files.items():
        if name.endswith(".png"):
            head = file.read_bytes()[:24]
            assert head.startswith(b"\x89PNG\r\n\x1a\n")
            width, height = struct.unpack(">II", head[16:24])
            assert 900 < width < 1700, name
            assert 200 < height < 2400, name


def test_svg_files_parse_and_hold_title_legend_and_hostile_names(files: dict[str, Path]) -> None:
    root = ElementTree.parse(files["gradient-rank-spectrum.svg"]).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for word in ("Gaussian null", "split-half ceiling", "energy (fraction)"):
        assert word in words
    # Long names are wrapped as the titles of panels.
    assert made_up.HOSTILE in "".join(root.itertext())
    assert "How much of a held-out gradient do the top k directions hold?" in words
    assert "var(--" not in files["gradient-rank-spectrum.svg"].read_text("utf-8")


def test_csv_files_give_the_rows_back(files: dict[str, Path]) -> None:
    content = files["gradient-rank-spectrum.csv"].read_bytes().decode("utf-8")
    assert not content.startswith("\ufeff")
    found = list(csv.DictReader(io.StringIO(content, newline="")))
    rows = made_up.spectrum_rows()
    assert len(found) == len(rows)
    for read, row in zip(found, rows, strict=True):
        assert read["task"] == row["task"]
        assert float(read["energy"]) == row["energy"]
        assert int(read["k"]) == row["k"]


def test_csv_is_rfc_4180() -> None:
    columns = [Column(name, "", "", "key") for name in ("a", "b")]
    rows = [
        {"a": 'say "hi", twice\nor more', "b": 0.1},
        {"a": None, "b": float("nan")},
        {"a": True, "b": "emoji 🧭"},
        {"a": "half \ud800", "b": 3},
    ]
    assert csv_bytes(columns, rows) == (
        b'a,b\r\n"say ""hi"", twice\nor more",0.1\r\n,nan\r\n'
        b"true,emoji \xf0\x9f\xa7\xad\r\nhalf \\ud800,3\r\n"
    )


def test_references_follow_their_measures_and_nothing_is_lost() -> None:
    columns = (
        Column("null", "", "", "reference"),
        Column("x", "", "", "measure", "null"),
        Column("seed", "", "", "key"),
        Column("y", "", "", "measure"),
        Column("spare", "", "", "reference"),
    )
    order = [column.name for column in arranged(columns, [{"x": 1, "extra": 2, "table": "t"}])]
    assert order == ["seed", "x", "null", "y", "spare", "extra"]


def test_a_chart_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no row has the column 'task'") as caught:
        export(made_up.runs()[1:2], tmp_path, experiments=made_up.experiments())
    assert caught.value.__notes__ == ["while drawing the figure 'broken' from table 'capture'"]


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("\t=1", "'\t=1"),
        ("-0.5", "-0.5"),
        ("+1e-3", "+1e-3"),
        ("a=1", "a=1"),
        ("'quoted", "'quoted"),
    ],
)
def test_no_text_is_a_formula_and_numbers_stay_numbers(text: str, cell: str) -> None:
    columns = [Column(name, "", "", "key") for name in ("a", "b")]
    content = csv_bytes(columns, [{"a": text, "b": -0.5}]).decode()
    assert list(csv.reader(io.StringIO(content, newline="")))[1] == [cell, "-0.5"]
