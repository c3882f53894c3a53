"""``frenet reproduce``: the cost first, then every part, then one report; stopped, it goes on."""

import io
import json
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from frenet import cli
from frenet.cli import reproduce as command
from frenet.experiments.reproduce import PRESETS, Part, Reproduction, parts, power
from frenet.experiments.reproduce.costs import stored
from frenet.network import memory
from frenet.runs import read_run
from frenet.runs.forecast import Forecast, Speed
from frenet.statistics.intervals import Sample
from frenet.statistics.power import smallest_effect, smallest_margin

SMALL = [
    "reproduce", "--preset", "smoke", "--networks", "synthetic", "--experiments", "gradient-rank",
    "step-vs-vector", "--workers", "1", "--threads", "1", "--out", "out",
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_plan_says_time_and_memory_and_runs_nothing(folder, capsys):
    assert cli.main([*SMALL, "--plan"]) == 0
    said, progress = capsys.readouterr()
    assert re.search(r"^  gradient-rank +\d+ +0 +[\d.]+ (s|min .*) +[\d,]+ MiB", said, re.MULTILINE)
    assert re.search(r"^Time: about .* with 1 worker\.$", said, re.MULTILINE)
    assert re.search(r"^Memory: at most [\d,]+ MiB\.$", said, re.MULTILINE)
    assert progress == ""
    assert not (folder / "out").exists()


def test_a_long_name_of_a_network_is_whole_in_the_plan():
    name = "a-name-as-long-as-those-on-the-hub-Instruct-Q4_K_M"
    console = Console(file=io.StringIO(), width=60)
    power_of = power.Power("C1", name, 3, "above 0.4", 0.1, 0.1, "the median")
    console.print(command._power_table([power_of]))
    _, head, *lines = console.file.getvalue().splitlines()
    column = slice(head.index("network"), head.index("seeds"))
    assert "".join(line[column].strip() for line in lines) == name


def test_the_plan_as_json(capsys):
    assert cli.main([*SMALL, "--plan", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["cells"] == 6
    assert facts["finished"] == 0
    assert facts["expected_seconds"] > 0
    assert facts["expected_mib"] > 100
    assert facts["lacking_memory"] is None


def test_every_part_runs_once_and_one_report_has_them_all(folder, capsys, monkeypatch):
    assert cli.main([*SMALL, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert [run["experiment"] for run in first["runs"]] == ["gradient-rank", "step-vs-vector"]
    assert (folder / "out" / "report.html").stat().st_size > 100_000
    rows = (folder / "out" / "synthetic-gradient-rank" / "rows.jsonl").read_bytes()
    assert read_run(folder / "out" / "synthetic-step-vs-vector").manifest["complete"]

    def untouchable(parts):
        raise AssertionError("a network whose parts are finished was loaded")

    monkeypatch.setattr("frenet.runs.forecast.network_speed", untouchable)
    assert cli.main([*SMALL, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["finished"], again["expected_seconds"]) == (6, 0)
    assert (folder / "out" / "synthetic-gradient-rank" / "rows.jsonl").read_bytes() == rows


def test_too_little_memory_is_said_before_anything_runs(folder, capsys, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**20)
    assert cli.main(SMALL) == 1
    said = capsys.readouterr().err
    assert "1 workers of" in said
    assert "pass fewer --workers" in said
    assert not (folder / "out").exists()


def test_a_plan_that_needs_too_much_memory_says_so_and_is_shown(folder, capsys, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**20)
    assert cli.main([*SMALL, "--plan"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "too much: 1 workers of" in said
    assert "pass fewer --workers" in said
    assert cli.main([*SMALL, "--plan", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["lacking_memory"].startswith("1 workers of")
    assert facts["expected_mib"] > 1


def test_memory_is_that_of_the_workers_that_have_a_cell(capsys):
    few = Forecast(10.0, 50.0, 1000.0, cells=12, finished=10, pending=2, crew=8, processors=8)
    many = Forecast(90.0, 90.0, 100.0, cells=9, finished=0, pending=9, crew=8, processors=8)
    ended = Forecast(0.0, 0.0, 9000.0, cells=9, finished=8, pending=0, crew=8, processors=8)
    found = parts(Reproduction(networks=("synthetic",)), "smoke")[:3]
    work = command.Reproducing(quiet=True, engine="ray")
    facts = command._say_costs(found, [few, many, ended], 0.0, work, out=Path("out"))
    assert facts["expected_mib"] == 2000
    assert facts["expected_seconds"] == pytest.approx(10 / 2 + 90 / 8, abs=0.1)
    assert facts["longest_seconds"] == pytest.approx(50 / 2 + 90 / 8, abs=0.1)
    assert capsys.readouterr().err == ""
    command._say_costs(found, [few, many, ended], 0.0, replace(work, quiet=False), out=Path("out"))
    said = " ".join(capsys.readouterr().err.split())
    cluster = "(on a cluster with 8 processors like this machine's)"
    slowest = "(36 s if recoveries in gradient-rank take all the steps that they may)"
    assert f"about 16 s with 8 workers {cluster} {slowest}." in said
    # The experiments of one network, together; workers of a finished one need no memory.
    assert "together 30 18 16 s 9,000 MiB" in said


def test_what_nobody_has_measured_is_named_and_the_rest_is_summed(capsys):
    known = Forecast(10.0, 10.0, 1000.0, cells=2, finished=0, pending=2, crew=2, processors=2)
    unknown = known._replace(seconds=0.0, longest=0.0, mib=0.0, known=False)
    ended = unknown._replace(finished=2, pending=0)
    found = parts(Reproduction(networks=("synthetic",)), "smoke")[:3]
    work = command.Reproducing()
    facts = command._say_costs(found, [known, unknown, ended], 0.0, work, out=Path("out"))
    assert (facts["expected_seconds"], facts["expected_mib"]) == (5.0, 2000)
    assert facts["not_known"] == [found[1].experiment.name]
    said = " ".join(capsys.readouterr().err.split())
    assert f"about 5.0 s with 2 workers, without {found[1].experiment.name}: not known yet." in said
    assert f"at most 2,000 MiB, without {found[1].experiment.name}: not known yet." in said
    assert "together 6 2 5.0 s 1,000 MiB" in said


def test_no_sum_is_given_if_nothing_is_known(capsys):
    unknown = Forecast(0.0, 0.0, 0.0, cells=2, finished=0, pending=2, crew=2, processors=2)
    found = parts(Reproduction(networks=("synthetic",)), "smoke")[:1]
    unknown = unknown._replace(known=False)
    command._say_costs(found, [unknown], 0.0, command.Reproducing(), out=Path("out"))
    said = " ".join(capsys.readouterr().err.split())
    assert "Time and memory: not known yet." in said
    assert "0 MiB" not in said


@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_workers_beyond_the_processors_cost_memory_and_save_no_time(capsys, monkeypatch, engine):
    monkeypatch.setattr("frenet.runs.forecast.network_speed", lambda parts: Speed(0.01, 1.0))
    monkeypatch.setattr("frenet.runs.forecast.cpu_count", lambda: 2)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**50)
    args = [
        "reproduce",
        "--preset",
        "demo",
        "--networks",
        "synthetic",
        "--plan",
        "--engine",
        engine,
    ]
    told = {}
    for workers in ("1", "2", "64"):
        assert cli.main([*args, "--json", "--workers", workers]) == 0
        told[workers] = json.loads(capsys.readouterr().out)
    assert told["64"]["expected_mib"] > told["2"]["expected_mib"]
    times = [(told[w]["expected_seconds"], told[w]["preparing_seconds"]) for w in ("1", "2", "64")]
    seeds = len(parts(PRESETS["demo"], "demo")[0].config.seeds)
    halves = pytest.approx((times[0][0] / 2, times[0][1] / 2), abs=0.1)
    if engine == "processes":
        assert times[1] == times[2] == halves
    else:
        assert times[1] == halves
        # More workers than cells: each experiment takes the time of its cell, one after another.
        names = [
            part.experiment.name for part in parts(Reproduction(networks=("synthetic",)), "demo")
        ]
        steps = sum(stored()["synthetic", "demo", name].steps for name in names)
        assert times[2][0] == pytest.approx(0.01 * steps, abs=0.1)
        assert times[2][1] == pytest.approx(times[0][1] / seeds, abs=0.1)
    assert cli.main([*args, "--workers", "64"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("on a cluster with 64 processors like this machine's" in said) == (engine == "ray")


def test_names_of_networks_are_shown_as_they_are():
    found = [
        Part("model[v2]", part.experiment, part.config) for part in parts(PRESETS["smoke"], "smoke")
    ]
    cost = Forecast(1.0, 1.0, 1.0, cells=1, finished=0, pending=1, crew=1, processors=1)
    console = Console(file=io.StringIO(), width=200)
    console.print(command._plan_table(found, [cost] * len(found)))
    assert "model[v2]" in console.file.getvalue()


def test_mistakes_are_said_in_one_line(capsys):
    assert cli.main(["reproduce", "--preset", "demi"]) == 2
    assert "no preset of reproduce 'demi'; did you mean 'demo'?" in capsys.readouterr().err
    assert cli.main(["reproduce", "--address", "auto", "--networks", "nowhere.gguf"]) == 2
    assert "--address is of a Ray cluster; pass --engine ray" in capsys.readouterr().err
    assert cli.main(["reproduce", "--networks", "nowhere.gguf"]) == 2
    assert "there is no file or folder nowhere.gguf" in capsys.readouterr().err


def test_the_plan_says_what_the_seeds_can_show(capsys):
    """By the smallest effect of a stored spread; one seed gives no verdict."""
    assert cli.main([*SMALL, "--seeds", "3", "4", "5", "6", "7", "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [text for text in lines if re.match("C1 +synthetic +5 ", text)]
    values = json.loads(Path(power.__file__).with_name(power.FILE).read_text("utf-8"))
    spread = values["C1"]["synthetic"]
    smallest = smallest_effect(Sample(0.0, spread, 5))
    assert line.rstrip().endswith(f"above 0.4, if the truth is {smallest:.2g} from it")
    assert cli.main([*SMALL, "--seeds", "3", "--plan", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["power"]
    assert {one["smallest"] for one in found} == {None}
    assert found[0]["seeds"] == 1


@pytest.mark.parametrize("claim", ["C1", "C4b", "S1"])
def test_a_network_without_earlier_seeds_takes_the_median_of_the_others(claim):
    todo = parts(Reproduction(networks=("elsewhere/other-model",), seeds=(3, 4, 5)), "cpu")
    stored = json.loads(Path(power.__file__).with_name(power.FILE).read_text("utf-8"))[claim]
    found = [one for one in power.powers(todo) if one.claim == claim]
    assert found
    for one in found:
        sample = Sample(0.0, statistics.median(stored.values()), 3)
        equality = "within" in one.line
        expected = smallest_margin(sample) if equality else smallest_effect(sample)
        assert one.smallest == pytest.approx(expected)
