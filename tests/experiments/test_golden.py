"""What the stored runs say, to the last number and mark: every finding and every figure, digested.

``python tests/experiments/test_golden.py --write`` records an intended change.
"""

import argparse
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from frenet.experiments import EXPERIMENTS
from frenet.report import figures
from frenet.runs import decide_claims, find_runs, finding_dict, read_run

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
STORED = Path(__file__).with_name("golden.json")
ENDING = ".run.jsonl.gz"
# Of sentences the numbers count: they may be put better.
PROSE = frozenset(
    ("caption", "description", "notes", "paper", "quantity", "reference", "rule", "statement")
) | {"title", "why"}
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def plain(value: Any, data: dict[str, Any]) -> Any:
    """A value for the digest: numbers to six digits, only the numbers of prose, data in place."""
    if isinstance(value, float):
        # Last digits depend on the machine; 0.0 and -0.0, 1.0 and 1 are the same.
        return float(f"{value:.6g}") + 0.0
    if isinstance(value, list | tuple):
        return [plain(part, data) for part in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"name"} and value["name"] in data:
        return plain(data[value["name"]], data)
    return {
        key: numbers(part) if key in PROSE else plain(part, data)
        for key, part in value.items()
        if key not in ("config", "datasets")
    }


def numbers(words: Any) -> Any:
    """The numbers in a sentence, or in each of several."""
    if isinstance(words, list):
        return list(map(numbers, words))
    return NUMBER.findall(json.dumps(words))


def digest(value: dict[str, Any]) -> str:
    """A short name for a finding or a specification."""
    text = json.dumps(plain(value, value.get("datasets", {})), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def digests(path: Path) -> dict[str, str]:
    """Every finding and every figure of a stored run by its name."""
    run = read_run(path)
    experiment = EXPERIMENTS[run.experiment]
    names = {}
    for claim, finding in decide_claims(experiment, run):
        rest = finding_dict(claim, finding)
        judged = {key: rest.pop(key) for key in ("verdict", "estimate", "reference_estimate")}
        names[finding.name] = f"{finding.verdict} {digest(judged)}"
        names[f"{finding.name}, in words and tables"] = digest(rest)
    for figure in experiment.figures:
        if rows := [row for row in run.rows if row["table"] == figure.table]:
            words = {"caption": figure.caption, "title": figure.title}
            names[figure.id] = digest({**words, **figures.draw(figure, rows)})
    return names


def name_of(path: Path) -> str:
    return path.name.removesuffix(ENDING)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("path", find_runs([RESULTS]), ids=name_of)
def test_a_stored_run_says_and_shows_what_it_did(path: Path) -> None:
    stored, now = json.loads(STORED.read_text("utf-8"))[name_of(path)], digests(path)
    names = sorted({*stored, *now})
    different = [f"{name_of(path)}: {n}" for n in names if stored.get(n) != now.get(n)]
    assert different == []


def test_every_digest_is_of_a_stored_run() -> None:
    assert set(json.loads(STORED.read_text("utf-8"))) == set(map(name_of, find_runs([RESULTS])))


def test_a_digest_follows_numbers_and_marks_and_neither_rounding_nor_words() -> None:
    rows = [{"x": 0.1 + 0.2, "name": "a"}]
    spec = {"data": {"name": "data-1"}, "title": "of 3", "datasets": {"data-1": rows}}
    same = [
        {**spec, "datasets": {"data-1": [{"x": 0.3, "name": "a"}]}},
        {**spec, "title": "out of 3"},
        {**spec, "data": {"name": "data-2"}, "datasets": {"data-2": rows}},
    ]
    other = [
        {**spec, "datasets": {"data-1": [{"x": 0.30001, "name": "a"}]}},
        {**spec, "datasets": {"data-1": [{"x": 0.3, "name": "b"}]}},
        {**spec, "title": "of 4"},
        {**spec, "mark": "point"},
    ]
    assert {digest(value) for value in same} == {digest(spec)}
    assert digest(spec) not in {digest(value) for value in other}
    assert len({digest(value) for value in other}) == len(other)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Digests of all that the stored runs say.")
    parser.add_argument("--write", action="store_true", help="to golden.json, in place of it")
    options = parser.parse_args()
    table = {name_of(path): digests(path) for path in find_runs([RESULTS])}
    text = json.dumps(table, indent=1, sort_keys=True) + "\n"
    if options.write:
        STORED.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
