"""docs/results: the verdicts and numbers of the page follow from the rows beside it."""

import csv
import gzip
import io
from pathlib import Path

import pytest

from frenet.experiments import EXPERIMENTS
from frenet.report.numbers import estimate
from frenet.report.results import _text

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def parsed(text):
    """A value of a CSV file."""
    if text in ("", "true", "false"):
        return {"": None, "true": True, "false": False}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def stored():
    """Rows of every run, by the name that its files start with, and its experiment."""
    found = {}
    for file in sorted(RESULTS.glob("*.csv.gz")):
        stem = file.name.removesuffix(".csv.gz")
        name = next(name for name in EXPERIMENTS if f"-{name}-" in f"-{stem}")
        run, _, table = stem.rpartition("-")
        lines = csv.DictReader(io.StringIO(gzip.decompress(file.read_bytes()).decode(), newline=""))
        rows = [{"table": table} | {k: parsed(v) for k, v in line.items()} for line in lines]
        found.setdefault((run, name), []).extend(rows)
    return found


@pytest.mark.parametrize(("run", "name"), list(stored()))
def test_claims_and_their_numbers_follow_from_the_rows(run, name):
    page = (RESULTS / "index.md").read_text(encoding="utf-8")
    for claim in EXPERIMENTS[name].claims:
        found = claim.decide(stored()[run, name])
        assert f"**{claim.id}. {_text(claim.statement)}: {found.verdict}.**" in page
        value = f": {estimate(found.estimate)}" if found.estimate else ""
        assert f"{_text(found.quantity[:1].upper() + found.quantity[1:])}{value}." in page
        assert all(f"- {_text(note)}\n" in page for note in found.notes)
