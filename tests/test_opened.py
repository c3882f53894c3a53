"""A run that is asked in Python: claims, tables and figures are those of the report."""

from pathlib import Path

import pytest

import frenet
from frenet.experiments import EXPERIMENTS
from frenet.runs import decide_claims

STORED = Path(__file__).resolve().parents[1] / "docs" / "results"


@pytest.fixture(scope="module")
def opened():
    return frenet.read_run(STORED / "synthetic-recovery-basis.run.jsonl.gz")


def test_claims_have_the_numbers_of_the_rules(opened) -> None:
    table = opened.claims
    for claim, finding in decide_claims(EXPERIMENTS["recovery-basis"], opened):
        row = table.loc[finding.name]
        assert (row.verdict, row.statement) == (finding.verdict, claim.statement)
        if finding.estimate is not None:
            ends = (finding.estimate.value, finding.estimate.low, finding.estimate.high)
            assert (row.value, row.low, row.high) == ends
    assert table.index.is_unique


def test_a_table_has_all_its_rows_and_units(opened) -> None:
    frame = opened.table("capture")
    rows = [row for row in opened.rows if row["table"] == "capture"]
    assert len(frame) == len(rows)
    known = [row["captured"] for row in rows if row["captured"] is not None]
    assert frame["captured"].sum() == pytest.approx(sum(known), rel=1e-12)
    assert frame.attrs["units"]["captured"] == "fraction"
    assert set(opened.tables) == {row["table"] for row in opened.rows}
    with pytest.raises(ValueError, match=r"no table 'captures'; it has .*capture"):
        opened.table("captures")


def test_a_figure_is_a_chart_of_the_same_rows(opened) -> None:
    drawn = opened.figure("bases").to_dict()
    assert any(len(rows) > 1 for rows in drawn["datasets"].values())
    with pytest.raises(ValueError, match=r"no figure 'base'; it has .*bases"):
        opened.figure("base")


def test_an_experiment_runs_by_its_name(tmp_path: Path) -> None:
    made = frenet.run(
        "gradient-rank", preset="smoke", seeds=(5,), train_steps=3, n=4, ks=(1,), repeats=2,
        out=tmp_path / "run", workers=1, quiet=True,
    )  # fmt: skip
    assert set(made.table("energy")["seed"]) == {5}
    assert made.claims.loc["C1"].verdict in ("undecided", "not testable")
    assert made.report(tmp_path / "report.html").stat().st_size > 10_000
    again = frenet.run(
        "gradient-rank", preset="smoke", seeds=(5,), train_steps=3, n=4, ks=(1,), repeats=2,
        out=tmp_path / "run", workers=1, quiet=True,
    )  # fmt: skip
    assert again.rows == made.rows


def test_names_that_do_not_exist_are_refused_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no experiment 'rank'; there are .*gradient-rank"):
        frenet.run("rank")
    with pytest.raises(ValueError, match=r"no setting 'size'; it has .*batch_sizes"):
        frenet.run("gradient-rank", size=3)
