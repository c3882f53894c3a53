"""The command line: exit codes, words for people, JSON for machines."""

import errno
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import frenet.experiments
import frenet.report
from frenet import cli
from frenet._files import DamagedFileError, NotWrittenError
from frenet._version import __version__
from frenet.runs import DiskFullError, Interrupted, RunFolderError, pack_run, read_run
from frenet.runs.forecast import Speed

TOYS = Path(__file__).parent / "runs"
ALONE = ["--workers", "1", "--threads", "1"]
QUICK = ["--tasks", "copy", "--seeds", "0", *ALONE]


@pytest.fixture(autouse=True)
def toy(monkeypatch, tmp_path):
    """Only the toy experiment, in an empty folder, and a report that is quick to write."""
    monkeypatch.syspath_prepend(str(TOYS))
    import toy_experiment

    experiment = toy_experiment.EXPERIMENT
    monkeypatch.setattr(frenet.experiments, "EXPERIMENTS", {experiment.name: experiment})
    written = []

    def write_report(runs, out, **meanwhile):
        if "waiting" in meanwhile:
            unfinished = [run.path.name for run in runs if not run.manifest["complete"]]
            written.append(("so far", unfinished, meanwhile["waiting"]))
            return out
        written.append(("report", [run.path for run in runs]))
        out.write_text("<html>")
        return out

    def export(runs, out_dir):
        written.append(("export", out_dir))
        return []

    def write_site(runs, folder, *, static):
        written.append(("site", folder, static))
        return [folder / "index.html", folder / "toy.html"]

    monkeypatch.setattr(frenet.report, "write_report", write_report)
    monkeypatch.setattr(frenet.report, "write_site", write_site)
    monkeypatch.setattr(frenet.report, "export", export)
    # The toy has no network whose speed could be measured.
    monkeypatch.setattr("frenet.runs.forecast.network_speed", lambda parts: Speed(1.0, 1.0))
    monkeypatch.setattr("frenet.runs.forecast.preparation", lambda *_, **__: 0.0)
    monkeypatch.chdir(tmp_path)
    return written


def frenet_command(*args):
    """The command as a shell runs it, with the toy experiment alone."""
    return subprocess.run(
        [sys.executable, str(TOYS / "toy_experiment.py"), *args],
        env=os.environ | {"PYTHONPATH": str(TOYS)},
        capture_output=True,
        text=True,
    )


def test_help_and_version_are_instant():
    """They load neither torch nor anything else that takes long."""
    code = (
        "import sys; from frenet.cli import main\n"
        "assert main(['--help']) == 0 and main(['--version']) == 0\n"
        "slow = {'torch', 'transformers', 'numpy', 'scipy', 'altair', 'tyro', 'rich'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
        "main(['run', 'gradient-rank', '--help'])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: frenet COMMAND [options]" in done.stdout
    assert f"frenet {__version__}\n" in done.stdout
    assert "--batch-sizes" in done.stdout


def test_help_names_every_command():
    from frenet.cli.commands import COMMANDS

    groups = cli.HELP.split("\n\n")[2:6]
    listed = [line.split()[0] for group in groups for line in group.split("\n")[1:]]
    assert sorted(listed) == sorted(COMMANDS)
    assert max(map(len, cli.HELP.splitlines())) <= 80


def test_doctor_says_what_there_is(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FRENET_CACHE", str(tmp_path))
    (tmp_path / "x").write_bytes(bytes(3 << 20))
    assert cli.main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["versions"]["frenet"] == __version__
    assert told["cache"] == {"folder": str(tmp_path), "files": 1, "size": "3 MiB"}
    assert told["machine"]["cpus"] >= 1
    assert told["machine"]["free on cpu"].endswith("GiB")
    assert told["machine"]["torch threads"] == torch.get_num_threads()
    assert told["optional"]["gguf"] == importlib.metadata.version("gguf")
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert re.search(rf"^  frenet +{re.escape(__version__)}$", said, re.MULTILINE)


def test_doctor_names_what_is_missing_and_never_the_user(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "somebody"))
    monkeypatch.setenv("FRENET_CACHE", str(tmp_path / "somebody" / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr("frenet.cli.doctor.OPTIONAL", {"no-such-package": "nothing at all"})
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^  no-such-package +none \(nothing at all\)$", said, re.MULTILINE)
    assert re.search(r"^  folder +~/cache$", said, re.MULTILINE)
    assert re.search(r"^  OMP_NUM_THREADS +3$", said, re.MULTILINE)
    assert "somebody" not in said
    assert "secret" not in said


def test_doctor_does_not_fail_where_something_is_wrong(monkeypatch, capsys):
    def broken(*args):
        raise RuntimeError("the driver is too old")

    for name in ("has_cuda", "machine", "versions"):
        monkeypatch.setattr(f"frenet.runs.machine.{name}", broken)
    monkeypatch.setattr("frenet.network.checkpoints.cache.cache_dir", broken)
    assert cli.main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    unknown = "not known (RuntimeError: the driver is too old)"
    assert told["versions"]["packages"] == unknown
    assert told["machine"]["gpu"] == told["machine"]["memory"] == unknown
    assert told["cache"] == {"cache": unknown}
    assert told["machine"]["torch threads"] >= 1


def test_python_m_frenet_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "frenet", "nothing"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("frenet: error: no command 'nothing'; there are: demo, list")
    assert "Traceback" not in done.stderr


def test_without_a_command_help_goes_to_standard_error(capsys):
    assert cli.main([]) == 2
    assert capsys.readouterr() == ("", cli.HELP)


def test_help_explains_the_flags_of_an_experiment_with_the_defaults_of_the_preset(capsys):
    assert cli.main(["run", "toy-sums", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Do sums add up? Presets: smoke, demo, cpu." in text
    assert "Time a cell takes. (default: 0.0)" in text
    assert "Tasks; 'fail', 'mistake'" in text
    assert "(default: copy sort count)" in text
    assert cli.main(["run", "toy-sums", "--preset=cpu", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: copy sort count max)" in text


def test_run_without_an_experiment_lists_them(capsys):
    assert cli.main(["run", "--help"]) == 0
    assert "toy-sums  Do sums add up?" in capsys.readouterr().out
    assert cli.main(["run"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "toy-sums" in err


def test_list_says_what_there_is_to_people_and_machines(capsys):
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    assert "toy-sums\n  Do sums add up?\n  T1: Sums add up\n\npresets: smoke, demo, cpu" in text
    assert cli.main(["list", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["experiments"]
    assert told["name"] == "toy-sums"
    assert told["claims"][0]["paper"] == "77%"
    assert told["presets"]["smoke"]["tasks"] == ["copy"]


def test_flags_change_the_preset_and_the_default_folder_is_found_again(capsys):
    args = ["run", "toy-sums", "--preset", "smoke", "--k", "2", "--limit", "5", "--deep", *ALONE]
    assert cli.main(args) == 0
    out, err = capsys.readouterr()
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("toy-sums-")
    config = json.loads((folder / "config.json").read_text())["config"]
    assert (config["k"], config["limit"], config["deep"]) == (2, 5, True)
    assert (config["tasks"], config["seeds"]) == (["copy"], [0])
    assert "Sums add up" in out
    assert f"results: {folder}\nreport: {folder / 'report.html'}" in out
    assert "[1/1] seed=0,task=copy" in err
    assert cli.main(args) == 0
    assert f"{folder} was finished at" in capsys.readouterr().err
    assert len(list(Path("runs").iterdir())) == 1
    assert cli.main([*args, "--no-deep"]) == 0
    assert len(list(Path("runs").iterdir())) == 2


def test_a_whole_configuration_can_be_written_as_flags():
    """As the report does to say how a run is done again."""
    words = ["--model", "synthetic", "--tasks", "copy", "--seeds", "0", "--seconds", "0.0"]
    words += ["--k", "3", "--no-deep", "--limit", "None"]
    assert cli.main(["run", "toy-sums", "--preset", "smoke", *ALONE, "--out", "one"]) == 0
    assert cli.main(["run", "toy-sums", *words, *ALONE, "--out", "two"]) == 0
    one, two = (json.loads(Path(name, "config.json").read_text()) for name in ("one", "two"))
    assert one["config"] == two["config"]


NOISY = ["--tasks", "noisy", "fail", "--seeds", "0", "--json"]


def test_json_is_all_there_is_on_standard_output_of_one_process(capsys):
    assert cli.main(["run", "toy-sums", *NOISY, *ALONE, "--out", "run"]) == 1
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["command"] == "run"
    (run,) = told["runs"]
    assert run["out"] == "run"
    assert run["cells"] == {"total": 2, "finished": 1, "failed": 1}
    assert run["failures"][0]["type"] == "FloatingPointError"
    assert run["claims"][0]["verdict"] == "undecided"
    assert run["claims"][0]["estimate"]["low"] is None
    assert "a library that prints" in err


def test_json_is_all_there_is_on_standard_output_with_workers():
    done = frenet_command("run", "toy-sums", *NOISY, "--workers", "2", "--threads", "1")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["runs"][0]["cells"]["finished"] == 1
    assert "[2/2]" in done.stderr


def test_a_failed_cell_gives_code_1_and_is_named(capsys):
    flags = ["--tasks", "copy", "fail", "--seeds", "0", *ALONE]
    assert cli.main(["run", "toy-sums", *flags, "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert "seed=0,task=fail failed: FloatingPointError: loss is nan at step 1" in out
    assert err == ""
    assert cli.main(["run", "toy-sums", *flags]) == 1
    assert "--retry-failed runs them again" in capsys.readouterr().err
    assert cli.main(["run", "toy-sums", *flags, "--retry-failed"]) == 1
    assert "2 cells, 1 already finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["rum"], "no command 'rum'; did you mean 'run'? there are"),
        (["run", "toy-sum"], "no experiment 'toy-sum'; did you mean 'toy-sums'?"),
        (["run", "--k", "3"], "give the experiment before --k: frenet run EXPERIMENT"),
        (["run", "toy-sums", "--preset", "big"], "no preset of toy-sums 'big'; there are: smoke"),
        (["run", "toy-sums", "--seeds"], "has no cells: nothing to do"),
        (["run", "toy-sums", "--workers", "0"], "workers=0 is not possible"),
        (["run", "toy-sums", "--seconds", "nan"], "configuration field seconds=nan"),
        (["run", "toy-sums", "--out", "full", *ALONE], "full holds other things (notes.txt, ...)"),
        (["run", "toy-sums", "--tasks", "mistake", *ALONE], "no such task file: words.jsonl (all"),
        (["report", "nowhere"], "nowhere does not exist"),
        (["report", "full"], "full is not a run folder and holds none"),
        (["demo", "--experiments", "toy"], "no experiment 'toy'; there are toy-sums"),
        (["run", "toy-sums", "--address", "auto"], "--address is of a Ray cluster; pass --engine"),
        (["demo", "--address", "auto"], "--address is of a Ray cluster; pass --engine ray"),
        (["demo", "--preset", "gpu"], "no experiment has a preset 'gpu'"),
    ],
)
def test_mistakes_get_one_message_and_code_2(capsys, args, words):
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("frenet: error: ")
    assert words in last
    assert "Traceback" not in err


@pytest.mark.parametrize("flag", [["--k", "many"], ["--nothing"], ["--preset"]])
def test_flags_that_do_not_parse_give_code_2(capsys, flag):
    assert cli.main(["run", "toy-sums", *flag]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "frenet run toy-sums --help" in err or "no preset" in err


def test_a_run_without_any_result_gives_code_1(capsys):
    assert cli.main(["run", "toy-sums", "--tasks", "fail", *ALONE]) == 1
    assert "loss is nan at step 1, task fail (all 2 cells; details in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DiskFullError(errno.ENOSPC, "disk full: make room"), 1, "error: disk full: make room"),
        (NotWrittenError(errno.EROFS, "x cannot be written"), 1, "error: x cannot be written"),
        (OSError(errno.EROFS, "Read-only file system", "x"), 1, "error: x: Read-only file system"),
        (DamagedFileError("x.json", "is not JSON"), 2, "frenet: error: x.json is not JSON"),
        (MemoryError("the matrix needs 40 GiB"), 1, "out of memory: the matrix needs 40 GiB"),
        (RunFolderError("another process"), 2, "frenet: error: another process"),
        (FileNotFoundError("no model at x"), 2, "frenet: error: no model at x"),
        (ZeroDivisionError("by zero"), 70, "unexpected ZeroDivisionError: by zero (FRENET_TRACE"),
        (Interrupted("3 of 4 cells are kept"), 130, "frenet: 3 of 4 cells are kept"),
        (KeyboardInterrupt(), 130, "frenet: stopped"),
    ],
)
def test_every_end_has_its_code_and_no_traceback(monkeypatch, capsys, error, code, words):
    def broken(*args, **options):
        raise error

    monkeypatch.setattr("frenet.runs.run_experiment", broken)
    monkeypatch.delenv("FRENET_TRACEBACK", raising=False)
    assert cli.main(["run", "toy-sums", "--json"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert "Traceback" not in err
    monkeypatch.setenv("FRENET_TRACEBACK", "1")
    cli.main(["run", "toy-sums"])
    assert ("Traceback" in capsys.readouterr().err) == (code != 130)


def test_demo_runs_everything_and_writes_the_report(toy, capsys):
    assert cli.main(["demo", "--preset", "smoke", "--out", "out", *ALONE]) == 0
    assert toy == [("report", [Path("out/synthetic-toy-sums")])]
    out, err = capsys.readouterr()
    assert out.endswith("report: out/report.html\n")
    assert "Sums add up" in out
    assert "[1/1]" in err
    args = ["demo", "--preset", "smoke", "--experiments", "toy-sums", "--json", *ALONE]
    assert cli.main(args) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["command"] == "reproduce"
    assert Path(told["report"]).read_text() == "<html>"
    assert told["failed"] == {}
    assert told["runs"][0]["claims"][0]["id"] == "T1"
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("reproduce-smoke-")
    assert told["out"] == str(folder)


def test_demo_goes_on_when_an_experiment_has_no_result(toy, monkeypatch, capsys):
    from dataclasses import replace

    import toy_experiment

    good = toy_experiment.EXPERIMENT
    bad = replace(good, name="bad", presets={"smoke": toy_experiment.Config(tasks=("fail",))})
    monkeypatch.setattr(frenet.experiments, "EXPERIMENTS", {"bad": bad, "toy-sums": good})
    assert cli.main(["demo", "--preset", "smoke", "--out", "out", "--json", *ALONE]) == 1
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert "loss is nan" in told["failed"]["synthetic-bad"]
    assert [run["experiment"] for run in told["runs"]] == ["toy-sums"]
    assert "bad: loss is nan" in err
    alone = ["demo", "--preset", "smoke", "--out", "two", "--experiments", "bad", *ALONE]
    assert cli.main([*alone, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["report"] is None


@pytest.mark.parametrize("between", [0.0, 3600.0])
def test_the_first_seeds_of_those_that_lead_give_the_first_report(
    toy, monkeypatch, capsys, between
):
    """It is written again after every experiment, but not too soon."""
    from dataclasses import replace

    import toy_experiment

    good = toy_experiment.EXPERIMENT
    two = {"smoke": toy_experiment.Config(tasks=("copy",), seeds=(5, 6))}
    others = [replace(good, name="second", presets=two, leads=True), replace(good, name="third")]
    known = {each.name: each for each in (good, *others)}
    monkeypatch.setattr(frenet.experiments, "EXPERIMENTS", known)
    monkeypatch.setattr("frenet.cli.reproduce.BETWEEN", between)
    args = ["demo", "--preset", "smoke", "--out", "out", *ALONE]
    assert cli.main(args) == 0
    begun = ["synthetic-second"]
    folders = [Path("out", f"synthetic-{name}") for name in known]
    more = [("so far", begun, ["the rest of second", "third"]), ("so far", [], ["third"])]
    assert toy == [
        ("so far", begun, ["toy-sums", "the rest of second", "third"]),
        *(more if between == 0 else []),
        ("report", folders),
    ]
    err = capsys.readouterr().err
    assert err.count("report of the first results, to be extended: out/report.html\n") == 1
    assert err.index("second: 1 cell,") < err.index("first results") < err.index("toy-sums: 1")
    assert "second: 2 cells, 1 already finished" in err
    # What is finished is neither run nor looked at again.
    toy.clear()
    assert cli.main([*args, "--quiet"]) == 0
    assert toy == [("report", folders)]
    assert capsys.readouterr().err == ""


def test_demo_leaves_out_what_is_not_its_own_until_it_is_named(toy, monkeypatch, capsys):
    from dataclasses import replace

    import toy_experiment

    good = toy_experiment.EXPERIMENT
    other = replace(good, name="other", in_demo=False)
    monkeypatch.setattr(frenet.experiments, "EXPERIMENTS", {"other": other, "toy-sums": good})
    for named, ran in (([], ["toy-sums"]), (["--experiments", "other"], ["other"])):
        args = ["demo", "--preset", "smoke", "--out", f"out-{ran[0]}", "--json", *named, *ALONE]
        assert cli.main(args) == 0
        assert [run["experiment"] for run in json.loads(capsys.readouterr().out)["runs"]] == ran


def test_report_takes_runs_and_folders_of_runs(toy, capsys):
    for name in ("a", "b"):
        assert cli.main(["run", "toy-sums", *QUICK, "--out", f"all/{name}", "--quiet"]) == 0
    capsys.readouterr()
    assert cli.main(["report", "all/a"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[-2:] == ["T1: it is a toy", "report: all/a/report.html"]
    assert cli.main(["report", "all", "--export", "figures"]) == 0
    assert toy[-2:] == [
        ("report", [Path("all/a"), Path("all/b")]),
        ("export", Path("figures")),
    ]
    assert Path("all/report.html").exists()
    assert capsys.readouterr().out.splitlines()[-2] == "report: all/report.html"
    assert cli.main(["report", "all/b", "all/a", "--out", "r.html", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["report"] == "r.html"
    assert told["site"] == []
    assert [run["out"] for run in told["runs"]] == ["all/b", "all/a"]
    assert cli.main(["report", "all", "--site", "pages", "--static", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["site"] == ["pages/index.html", "pages/toy.html"]
    assert toy[-1] == ("site", Path("pages"), True)
    assert cli.main(["report", "all", "--site", "pages"]) == 0
    assert capsys.readouterr().out.endswith("\nsite: pages/index.html\n")


def test_report_takes_runs_in_one_file_and_writes_beside_them(toy, capsys):
    assert cli.main(["run", "toy-sums", *QUICK, "--out", "run", "--quiet"]) == 0
    file = Path("all", "toy.run.jsonl.gz")
    file.parent.mkdir()
    file.write_bytes(pack_run(read_run("run")))
    capsys.readouterr()
    for given in (file, file.parent):
        assert cli.main(["report", str(given)]) == 0
        assert capsys.readouterr().out.endswith("\nreport: all/report.html\n")
        assert toy[-1] == ("report", [file])


def test_report_takes_a_run_under_way_on_request(toy, capsys):
    assert cli.main(["run", "toy-sums", *QUICK, "--out", "run", "--quiet"]) == 0
    Path("run/manifest.json").unlink()
    capsys.readouterr()
    assert cli.main(["report", "run"]) == 2
    assert "is not finished (1 of 1 cells)" in capsys.readouterr().err
    assert cli.main(["report", "run", "--partial", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["complete"] is False


def test_the_reader_of_a_pipe_may_leave_early():
    command = f"{sys.executable} {TOYS / 'toy_experiment.py'} list | true"
    environment = os.environ | {"PYTHONPATH": str(TOYS)}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)
    assert done.stderr == ""


def test_convert_prints_where_the_folder_is(monkeypatch, capsys):
    loader = types.ModuleType("frenet.network.checkpoints.load")
    loader.convert_gguf = lambda file, out: out or file.with_suffix("")
    monkeypatch.setitem(sys.modules, "frenet.network.checkpoints.load", loader)
    assert cli.main(["convert", "models/tiny.gguf"]) == 0
    assert cli.main(["convert", "models/tiny.gguf", "--out", "mine"]) == 0
    assert capsys.readouterr().out == f"{Path('models/tiny')}\nmine\n"
