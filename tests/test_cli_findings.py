"""The terminal: verdicts first, one line for each claim."""

from pathlib import Path

import pytest

from frenet.cli import findings
from frenet.cli.execution import show_runs
from frenet.cli.groups import Groups, identifier
from frenet.cli.options import printing
from frenet.experiments import EXPERIMENTS
from frenet.experiments.experiment import Claim, Decision, Finding, Needs, answered
from frenet.experiments.verdicts import ALONE
from frenet.runs import read_run
from frenet.statistics.intervals import Estimate

CLAIM = Claim("C9z", "A long statement of the claim", "0.77", "rule", lambda rows: (), "figure")
SHORT = CLAIM._replace(short="A [short] one", against="chance")

MEASURED = Estimate(0.1234, 0.05, 0.2, 5)


def found(verdict, *, why="it is so", case="", estimate=MEASURED, **more):
    decision = Decision(verdict, why, **more)
    return Finding("C9z", decision, "q", estimate, "the null", Estimate(0.0123), case=case)


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def shown(capsys, *pairs, why=False):
    findings.show_findings(pairs, why=why)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 80
    return lines


def test_a_claim_is_one_line_with_its_comparison(capsys):
    lines = shown(capsys, (SHORT, found("supported")))
    assert lines == [
        "✓ supported",
        "  C9z A [short] one                      0.12 [0.050, 0.20]    chance 0.012",
    ]


def test_a_further_case_of_one_claim_is_what_differs(capsys):
    pairs = [(SHORT, found("supported", case=case)) for case in ("", "in the weights")]
    assert shown(capsys, *pairs)[2].startswith("      - in the weights ")


def test_what_decides_comes_first_and_what_is_open_has_its_reason(capsys):
    needs = Needs("seed", 3, 5, 3, 73, 0.17)
    lines = shown(
        capsys,
        (CLAIM, found("not testable", why=f"no premise; {ALONE} supported: it is above 0.4")),
        (CLAIM, found("undecided", why="it straddles", needs=needs)),
        (CLAIM, found("supported")),
    )
    heads = [line for line in lines if not line.startswith(" ")]
    assert heads == ["✓ supported", "? undecided", "– not testable"]
    text = " ".join(" ".join(lines).split())
    assert f"C9z: {needs}; it straddles" in text
    assert f"C9z: no premise; {ALONE} supported – " not in text
    assert text.endswith(f"C9z: no premise; {ALONE} supported")
    assert "it is so" not in text
    assert "above 0.4" not in text


def test_why_gives_every_reason_whole(capsys):
    why = f"no premise; {ALONE} supported: it is above 0.4"
    lines = shown(
        capsys, (CLAIM, found("supported")), (CLAIM, found("not testable", why=why)), why=True
    )
    text = " ".join(" ".join(lines).split())
    assert "C9z: it is so" in text
    assert f"C9z: {why}" in text


def test_nothing_measured_is_said_and_a_margin_is_shown(capsys):
    lines = shown(capsys, (SHORT, found("not testable", estimate=None)))
    assert lines[1].endswith("nothing measured")
    (line,) = shown(capsys, (SHORT, found("equivalent", margin=0.05)))[1:]
    assert "A [short] one, within 0.05" in line


def test_a_run_without_claims_prints_its_answers(capsys):
    """On the terminal and as JSON; beside claims they are left to the report."""
    results = Path(__file__).parents[1] / "docs" / "results"
    names = ("task-vector-range", "gradient-rank")
    ranges, claims = (read_run(results / f"synthetic-{name}.run.jsonl.gz") for name in names)
    answers = answered(EXPERIMENTS["task-vector-range"], ranges.rows)
    told = []
    show_runs(told.append, [ranges], {}, as_json=False, noted=False)
    assert len(told) == len(answers) > 0
    for answer in answers:
        (line,) = (line for line in told if line.endswith(answer.sentence))
        assert line.startswith(f"{answer.subject} (seed {answer.keys['seed']}")
    show_runs(told.append, [ranges, claims], {}, as_json=True)
    said = [run["answers"] for run in told[-1]["runs"]]
    assert said[0][0] == {
        "subject": answers[0].subject,
        **answers[0].keys,
        "sentence": answers[0].sentence,
    }
    assert said[1] == []
    told.clear()
    show_runs(told.append, [ranges, claims], {}, as_json=False, noted=False)
    assert told == []


def test_claims_fit_on_a_line():
    """At 80 columns, with numbers of two digits."""
    for experiment in EXPERIMENTS.values():
        for claim in experiment.claims:
            assert 0 < len(claim.short) <= 34, claim.id
            assert len(claim.against) <= 11, claim.id


def test_notes_of_one_kind_are_one_line_and_those_with_a_remedy_come_first():
    notes = [f"kind {chr(97 + i)}" for i in range(10)]
    notes += [
        f"{name}: left out at {loss}; raise it (--steps)" for name in "ab" for loss in (1.5, 2)
    ]
    lines = list(findings.notes([*notes, notes[0]], why=False))
    assert lines[:3] == [
        "note: a: left out at 1.5; raise it (--steps) (and 1 like it)",
        "note: b: left out at 1.5; raise it (--steps) (and 1 like it)",
        "note: kind a",
    ]
    assert len(lines) == findings.NOTES + 1
    assert lines[-1].startswith("4 more notes are in the report")
    assert len(list(findings.notes(notes, why=True))) == len(notes)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_options_in_groups_are_all_options(name):
    """Divided and put together again, a configuration is the same."""
    experiment = EXPERIMENTS[name]
    config = experiment.presets["smoke"]
    groups = Groups.of(config, name)
    made = type("Parsed", (), {identifier(title): kind() for title, kind in groups.parts.items()})
    assert groups.whole(made) == config
    assert "--help" not in groups.parts


@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_long_answer_is_wrapped_on_a_terminal_only(monkeypatch, capsys, on_terminal):
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr("sys.stdout.isatty", lambda: on_terminal)
    path = "/" + "a-long-folder/" * 8
    with printing(as_json=False) as show:
        show(f"  {'word ' * 30}{path}")
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines) > 1) == on_terminal
    assert " ".join(" ".join(lines).split()).endswith(f"word {path}")
