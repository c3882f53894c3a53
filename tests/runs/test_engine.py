"""The engine: the same rows from any number of workers and after any interruption."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from toy_experiment import EXPERIMENT, Config, cells

from frenet.experiments.experiment import Cell
from frenet.network.space import ParamSpace
from frenet.runs import (
    DiskFullError,
    Interrupted,
    RunFailedError,
    RunFolderError,
    WorkerPool,
    decide_claims,
    finding_dict,
    read_run,
    run_dict,
    run_experiment,
)
from frenet.runs.machine import cpu_count, device_of
from frenet.runs.progress import Watch
from frenet.runs.worker import is_user_mistake, message_of

HERE = Path(__file__).parent


def run(config, out, **options):
    return run_experiment(EXPERIMENT, config, out, **{"workers": 1, "threads": 1} | options)


def marks(folder):
    return Counter(path.name.split("~")[0] for path in folder.iterdir())


def rows_of(folder):
    return (folder / "rows.jsonl").read_bytes()


def test_rows_come_in_the_order_of_the_cells_and_torch_is_left_as_it_was(tmp_path):
    threads = torch.get_num_threads()
    found = run(Config(), tmp_path, threads=threads + 1)
    assert torch.get_num_threads() == threads
    order = [(row["seed"], row["task"], row["step"]) for row in found.rows]
    assert order == [(s, t, i) for s in (0, 1) for t in ("copy", "sort", "count") for i in range(3)]
    assert found.rows[2]["loss"] is None
    assert found.manifest["workers"] == 1
    assert found.manifest["threads"] == threads + 1
    assert found == read_run(tmp_path)


@pytest.fixture
def marks_in(tmp_path, monkeypatch):
    """A folder in which the toy leaves marks of its calls."""
    folder = tmp_path / "marks"
    folder.mkdir()
    monkeypatch.setenv("TOY_MARKS", str(folder))
    return folder


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """One sweep in worker processes with everything that can go wrong in a cell."""
    base = tmp_path_factory.mktemp("spoilt")
    (base / "marks").mkdir()
    config = Config(tasks=("copy", "fail", "noisy", "odd", "sort", "beside", "kill"), seeds=(13, 0))
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_MARKS", str(base / "marks"))
        # What a library prints must not fail its cell for want of a character.
        patch.setenv("PYTHONIOENCODING", "ascii")
        patch.setattr(Watch, "say", lambda self, text: said.append(text))
        found = run(config, base / "run", workers=2)
    return found, said, marks(base / "marks")


def test_failed_cells_do_not_sink_the_sweep(spoilt):
    found, _, _ = spoilt
    done = {row["task"] for row in found.rows}
    assert done == {"copy", "beside", "noisy", "sort"}
    assert "prints \N{CHECK MARK}" in (found.path / "log.txt").read_text("utf-8")
    failed = {(f["cell"], f["type"]) for f in found.failures if "seed=0" in f["cell"]}
    assert failed == {
        ("seed=0,task=fail", "FloatingPointError"),
        ("seed=0,task=odd", "UsageError"),
        ("seed=0,task=kill", "WorkerKilled"),
    }
    assert found.manifest["cells"] == {"total": 14, "finished": 4, "failed": 10}


def test_a_failed_cell_keeps_message_traceback_and_rows_so_far(spoilt):
    found, _, _ = spoilt
    stored = json.loads((found.path / "failed" / "seed=0,task=fail.json").read_text())
    assert stored["error"] == "loss is nan at step 1, task fail"
    assert "toy_experiment.py" in stored["traceback"]
    assert [row["step"] for row in stored["rows"]] == [0]
    stored = json.loads((found.path / "failed" / "seed=0,task=odd.json").read_text())
    assert "table 'losses', column 'loss': a row holds str" in stored["error"]


def test_a_killed_worker_is_tried_once_more_alone(spoilt):
    found, said, called = spoilt
    assert called["run-0-kill"] == 2
    assert called["run-0-beside"] == 2
    assert called["run-0-copy"] == 1
    warned = "a worker process was killed during seed=0,task=beside; seed=0,task=kill: trying again"
    assert any(text.startswith(warned) for text in said)
    killed = [f for f in found.failures if f["type"] == "WorkerKilled"]
    assert "ran out of memory; use fewer --workers" in killed[0]["error"]


def test_what_cells_share_is_prepared_once_and_its_failure_is_theirs(spoilt):
    found, said, called = spoilt
    assert called["prepare-0"] == 1
    assert called["prepare-13"] == 1
    assert not any("run-13" in name for name in called)
    lost = [f for f in found.failures if "seed=13" in f["cell"]]
    assert len(lost) == 7
    assert {(f["stage"], f["error"]) for f in lost} == {("prepare", "seed 13 cannot be prepared")}
    assert any(text.startswith("prepared seed 0 in") for text in said)


def test_what_workers_print_goes_to_the_log(spoilt):
    found, _, _ = spoilt
    assert "a library that prints" in (found.path / "log.txt").read_text()


def test_rows_do_not_depend_on_the_number_of_workers(spoilt, tmp_path):
    found, _, _ = spoilt
    alone = run(Config(tasks=("copy", "noisy", "sort"), seeds=(0,)), tmp_path)
    in_workers = [row for row in found.rows if row["task"] in ("copy", "noisy", "sort")]
    assert [json.dumps(row) for row in alone.rows] == [json.dumps(row) for row in in_workers]


def test_a_first_look_is_part_of_the_run(tmp_path, marks_in):
    config = Config(tasks=("copy", "sort"), seeds=(0, 1))
    whole = run(config, tmp_path / "whole")
    for mark in marks_in.iterdir():
        mark.unlink()
    look = run(config, tmp_path / "run", seeds=[0])
    assert {row["seed"] for row in look.rows} == {0}
    assert not look.manifest["complete"]
    assert look.manifest["cells"] == {"total": 4, "finished": 2, "failed": 0}
    # Alone, the worker does not keep the first look waiting for another seed.
    assert marks(marks_in) == {"prepare-0": 1, "run-0-copy": 1, "run-0-sort": 1}
    assert run(config, tmp_path / "run").rows == whole.rows
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")
    assert marks(marks_in)["run-0-copy"] == 1


def test_a_first_look_prepares_one_seed_for_each_worker(tmp_path, marks_in):
    config = Config(tasks=("copy", "sort"), seeds=(0, 1, 2))
    run(config, tmp_path / "run", workers=2, seeds=[0])
    assert marks(marks_in) == {f"prepare-{i}": 1 for i in (0, 1)} | {
        f"run-0-{task}": 1 for task in ("copy", "sort")
    }


def test_runs_in_turn_share_their_workers(tmp_path, marks_in):
    """Also after a worker was killed; each run has its own log, and the rows of any run."""
    with WorkerPool() as pool:
        for name, tasks in (("a", ("noisy", "copy")), ("b", ("kill", "sort")), ("c", ("noisy",))):
            seeds = [0] if name == "a" else None
            run(Config(tasks=tasks), tmp_path / name, workers=2, seeds=seeds, pool=pool)
    logs = [(tmp_path / name / "log.txt").read_text() for name in "abc"]
    assert [text.count("a library that prints") for text in logs] == [3, 0, 6]
    # The first look at run a prepares the seed that comes later.
    assert marks(marks_in)["prepare-1"] == 3
    assert [f["type"] for f in read_run(tmp_path / "b").failures] == ["WorkerKilled"] * 2
    alone = run(Config(tasks=("noisy",)), tmp_path / "alone")
    assert read_run(tmp_path / "c").rows == alone.rows


def test_a_second_run_starts_no_processes(tmp_path):
    config = Config(tasks=("copy", "sort"), seeds=(0, 1))
    with WorkerPool() as pool:
        run(config, tmp_path / "a", workers=2, pool=pool)
        before = pool.started(2, threads=1, log=tmp_path / "a" / "log.txt")
        run(replace(config, seeds=(2,)), tmp_path / "b", workers=1, pool=pool)
        run(config, tmp_path / "c", workers=2, pool=pool)
        assert pool.started(1, threads=1, log=tmp_path / "c" / "log.txt") is before
        assert len(before._processes) == 2
        # Some libraries read the number of threads only when they are loaded.
        assert pool.started(1, threads=2, log=tmp_path / "c" / "log.txt") is not before


def test_the_default_threads_do_not_depend_on_the_workers_asked_for(tmp_path):
    config = Config(tasks=("copy",))
    many = run(config, tmp_path / "a", threads=None)
    assert many.manifest["threads"] == max(1, cpu_count() // min(cpu_count(), 2))
    one = run(replace(config, seeds=(0,)), tmp_path / "b", threads=None)
    assert one.manifest["threads"] == cpu_count()


def test_a_run_that_goes_on_keeps_its_threads(tmp_path):
    config = Config(tasks=("copy", "stop"), seeds=(0,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toy_experiment._misbehave", stop_at("stop"))
        with pytest.raises(Interrupted, match="stopped: 1 of 2 cells are finished and stored in"):
            run(config, tmp_path, threads=2)
    with pytest.raises(RunFolderError, match="with threads=2, and this one has threads=1"):
        run(config, tmp_path, threads=1)
    assert run(config, tmp_path, threads=None).manifest["threads"] == 2


def test_a_run_begun_on_a_gpu_does_not_go_on_without_it(tmp_path):
    config = Config(model="./mine", tasks=("copy", "stop"), seeds=(0,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toy_experiment._misbehave", stop_at("stop"))
        patch.setattr("frenet.runs.machine.has_cuda", lambda: True)
        patch.setattr("torch.cuda.get_device_name", lambda: "H100")
        assert device_of(replace(config, model="synthetic")) == "cpu"
        with pytest.raises(Interrupted):
            run(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["device"] == "cuda: H100"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("frenet.runs.machine.has_cuda", lambda: False)
        with pytest.raises(RunFolderError, match="device='cuda: H100', and this one has device="):
            run(config, tmp_path)


def test_going_on_at_another_commit_is_said_in_one_line(tmp_path, capsys):
    config = Config(tasks=("copy", "stop"), seeds=(0,))
    for name, stop in (("one", stop_at("stop")), ("two", lambda cell, calls: {})):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("toy_experiment._misbehave", stop)
            for module in ("store", "header"):
                patch.setattr(f"frenet.runs.{module}.commit", lambda name=name: name)
            capsys.readouterr()
            with pytest.raises(Interrupted) if name == "one" else contextlib.nullcontext():
                run(config, tmp_path)
    said = capsys.readouterr().err.splitlines()
    start = f"{tmp_path} was made so far at commit one of frenet and resumes at commit two"
    assert sum(text.startswith(start) for text in said) == 1
    assert read_run(tmp_path).manifest["commits"] == ["one", "two"]


def stop_at(task):
    """Ctrl-C in the middle of a cell."""

    def misbehave(cell, calls):
        if cell["task"] == task:
            raise KeyboardInterrupt
        return {}

    return misbehave


def test_a_finished_run_is_returned_without_work(tmp_path, marks_in, capsys):
    config = Config(tasks=("copy",), seeds=(0,))
    first = run(config, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    assert run(config, tmp_path / "run") == first
    assert "was finished at" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before
    assert marks(marks_in) == {"prepare-0": 1, "run-0-copy": 1}
    with pytest.raises(RunFolderError, match="with k=3, and this one has k=4"):
        run(replace(config, k=4), tmp_path / "run")


def test_failed_cells_of_a_finished_run_are_tried_again_on_request(tmp_path, marks_in):
    config = Config(tasks=("copy", "stop"), seeds=(0,))

    def broken(cell, calls):
        if cell["task"] == "stop":
            raise ArithmeticError("for now")
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toy_experiment._misbehave", broken)
        assert len(run(config, tmp_path / "run").failures) == 1
    assert len(run(config, tmp_path / "run").failures) == 1
    again = run(config, tmp_path / "run", retry_failed=True)
    assert again.failures == []
    assert marks(marks_in)["run-0-copy"] == 1
    run(config, tmp_path / "undisturbed")
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "undisturbed")


def test_without_any_result_there_is_an_error_and_no_manifest(tmp_path):
    with pytest.raises(RunFailedError, match=r"step 1, task fail \(all 2 cells; details") as caught:
        run(Config(tasks=("fail",)), tmp_path / "a")
    assert not caught.value.user_mistake
    assert not (tmp_path / "a" / "manifest.json").exists()
    with pytest.raises(RunFailedError, match=r"words\.jsonl \(the only cell; details") as caught:
        run(Config(tasks=("mistake",), seeds=(0,)), tmp_path / "b")
    assert caught.value.user_mistake
    with pytest.raises(RunFailedError, match="all 2 cells failed, the first: loss is nan"):
        run(Config(tasks=("fail", "mistake"), seeds=(0,)), tmp_path / "c")


def test_configurations_and_counts_are_checked_first(tmp_path):
    with pytest.raises(TypeError, match="toy-sums takes a configuration of type Config, not dict"):
        run({}, tmp_path)
    with pytest.raises(ValueError, match="has no cells: nothing to do"):
        run(Config(seeds=()), tmp_path)
    with pytest.raises(ValueError, match="has two cells seed=0,task=copy"):
        run(Config(seeds=(0, 0)), tmp_path)
    with pytest.raises(ValueError, match="workers=0 is not possible; give 1 or more"):
        run(Config(), tmp_path, workers=0)
    with pytest.raises(ValueError, match="threads=-1 is not possible"):
        run(Config(), tmp_path, threads=-1)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_travel_to_a_worker_is_refused_before_any_starts(tmp_path):
    local = replace(EXPERIMENT, run=lambda config, cell: iter(()))
    with pytest.raises(ValueError, match=r"cannot be sent to worker processes .* use workers=1"):
        run_experiment(local, Config(), tmp_path, workers=2)
    assert run_experiment(local, Config(), tmp_path, workers=1).rows == []


@dataclass(frozen=True)
class Plain:
    """A configuration without seeds."""

    model: str = "synthetic"


def test_without_seeds_the_preparation_runs_once(tmp_path):
    calls = []
    toy = replace(
        EXPERIMENT,
        config=Plain,
        cells=lambda config: [Cell((("step", i),)) for i in range(3)],
        run=lambda config, cell: iter([{"table": "losses", "step": cell["step"]}]),
        prepare=lambda config, cell: calls.append(cell),
    )
    found = run_experiment(toy, Plain(), tmp_path, workers=1)
    assert calls == [Cell((("step", 0),))]
    assert [row["step"] for row in found.rows] == [0, 1, 2]
    bare = run_experiment(replace(toy, prepare=None), Plain(), tmp_path / "bare", workers=1)
    assert bare.rows == found.rows


def test_a_full_disk_stops_the_sweep_and_keeps_what_is_finished(tmp_path, monkeypatch):
    real, count = os.fsync, iter(range(1000))

    def full(handle):
        if next(count) > 6:
            raise OSError(28, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match="free some space and repeat the command"):
            run(Config(), tmp_path / "run")
    kept = len(list((tmp_path / "run" / "cells").iterdir()))
    assert 0 < kept < 6
    run(Config(), tmp_path / "run")
    run(Config(), tmp_path / "undisturbed")
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "undisturbed")


def test_progress_is_one_line_a_cell_without_a_terminal_and_silent_on_request(tmp_path, capsys):
    config = Config(tasks=("copy", "fail"), seeds=(0,))
    run(config, tmp_path / "a")
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith("toy-sums: 2 cells, 0 already finished; workers: 1")
    assert lines[1].startswith("prepared seed 0 in ")
    assert lines[2].startswith("[1/2] seed=0,task=copy in ")
    assert "elapsed, about" in lines[2]
    assert lines[3] == (
        "[2/2] seed=0,task=fail FAILED: FloatingPointError: loss is nan at step 1, task fail"
    )
    run(config, tmp_path / "b", quiet=True)
    assert capsys.readouterr() == ("", "")
    run(Config(tasks=("copy",), seeds=(0,)), tmp_path / "c")
    assert "toy-sums: 1 cell, 0 already finished" in capsys.readouterr().err


def test_progress_is_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Watch("toy-sums", total=4, done=1) as watch:
        watch.preparing(2)
        watch.prepared("seed 0", 61.0)
        watch.finished("seed=0,task=[copy]", 1.0)
        watch.failed("seed=0,task=sort", "ValueError: no")
    err = capsys.readouterr().err
    assert "prepared seed 0 in 1 min 1 s" in err
    assert "[3/4] seed=0,task=sort FAILED: ValueError: no" in err
    assert "3/4" in err.splitlines()[-2]
    assert "task=[copy]" not in err


def environment():
    return os.environ | {"PYTHONPATH": str(HERE)}


def start(config_flags, out, *, workers):
    """The toy's command line in a separate process group, as a terminal would start it."""
    flags = [*config_flags, "--out", str(out), "--workers", str(workers), "--threads", "1"]
    command = [sys.executable, str(HERE / "toy_experiment.py"), "run", "toy-sums", *flags]
    return subprocess.Popen(
        command,
        env=environment(),
        start_new_session=True,
        # Jobs that a shell runs in the background ignore Ctrl-C, and so do their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_cells(out, count, child):
    limit = time.monotonic() + 60
    while len(list(out.glob("cells/*.jsonl"))) < count:
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)


def group_is_gone(group):
    for _ in range(500):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


SLOW = ["--tasks", "copy", "sort", "count", "--seeds", "0", "1", "--seconds", "0.15"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The rows of the slow runs below."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run(Config(seconds=0.15), folder)
    return rows_of(folder)


def test_killed_and_started_again_a_run_ends_with_the_same_rows(tmp_path, undisturbed):
    out = tmp_path / "run"
    child = start(SLOW, out, workers=2)
    wait_for_cells(out, 2, child)
    time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    # Workers notice the death of their parent, which cannot tell them.
    assert group_is_gone(child.pid)
    assert not (out / "manifest.json").exists()
    kept = len(list(out.glob("cells/*.jsonl")))
    assert 2 <= kept < 6
    run(Config(seconds=0.15), out)
    assert rows_of(out) == undisturbed


def test_ctrl_c_stops_the_workers_keeps_the_cells_and_says_how_to_go_on(tmp_path, undisturbed):
    out = tmp_path / "run"
    child = start(SLOW, out, workers=2)
    wait_for_cells(out, 1, child)
    os.killpg(child.pid, signal.SIGINT)
    printed, said = child.communicate(timeout=20)
    assert child.returncode == 130
    assert printed == ""
    assert "run the same command again" in said
    assert "Traceback" not in said
    assert group_is_gone(child.pid)
    assert not (out / "manifest.json").exists()
    run(Config(seconds=0.15), out)
    assert rows_of(out) == undisturbed


def test_ctrl_c_while_workers_start_is_quiet_too(tmp_path):
    out = tmp_path / "run"
    child = start(SLOW, out, workers=2)
    while not (out / "log.txt").exists():
        assert child.poll() is None, child.communicate()
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGINT)
    printed, said = child.communicate(timeout=20)
    assert (child.returncode, printed) == (130, "")
    assert "Traceback" not in said
    assert group_is_gone(child.pid)


UNGUARDED = """
from toy_experiment import EXPERIMENT, Config
from frenet.runs import run_experiment
run_experiment(EXPERIMENT, Config(), OUT, workers=2, threads=1)
"""


def test_a_script_without_a_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED.replace("OUT", repr(str(tmp_path / "run"))))
    done = subprocess.run(
        [sys.executable, str(script)], env=environment(), capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "needs the line `if __name__ == '__main__':` around the call" in done.stderr


def test_claims_are_decided_from_the_stored_rows(tmp_path):
    found = run(Config(), tmp_path)
    ((claim, finding),) = decide_claims(EXPERIMENT, found)
    assert finding.estimate.n == 9
    told = finding_dict(claim, finding)
    assert told["estimate"]["low"] is None
    assert told["paper"] == "77%"
    assert run_dict(found, [(claim, finding)], EXPERIMENT)["claims"] == [told]
    json.dumps(told, allow_nan=False)


def test_a_rule_that_fails_leaves_its_claim_undecided(tmp_path):
    found = run(Config(seeds=(1,)), tmp_path)
    ((_, finding),) = decide_claims(EXPERIMENT, found)
    assert finding.verdict == "undecided"
    assert "could not be applied to these rows: ZeroDivisionError" in finding.why


def raised(call, *args):
    try:
        call(*args)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_a_mistake_of_the_user_is_told_from_a_fault():
    assert is_user_mistake(raised(open, "/nowhere/at/all"))
    assert is_user_mistake(raised(read_run, HERE))
    assert is_user_mistake(raised(run_experiment, EXPERIMENT, Config(seeds=()), HERE))
    assert not is_user_mistake(raised(json.loads, "{"))
    assert not is_user_mistake(raised(float, "x"))
    assert not is_user_mistake(raised(cells, None))
    # Raised inside frenet, but by a key: nobody has put it into words.
    assert not is_user_mistake(raised(Cell.of(seed=0).__getitem__, "task"))
    assert is_user_mistake(raised(ParamSpace(("w",), ((2,),)).locate, 2))
    assert message_of(KeyError("no task 'x'")) == "no task 'x'"
    assert message_of(ValueError()) == "ValueError"
