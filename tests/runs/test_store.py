"""Run folders: write-once, whole after any interruption, held by one writer."""

import errno
import gzip
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from frenet.experiments.experiment import Cell
from frenet.runs import (
    DiskFullError,
    RunFolder,
    RunFolderError,
    find_runs,
    pack_run,
    read_run,
)
from frenet.runs.files import TEMPORARY, locked, write_whole
from frenet.runs.header import Header
from frenet.runs.machine import commit, cpu_count, versions
from frenet.runs.store import Failure

CELLS = [Cell((("seed", seed),)) for seed in range(4)]
HEADER = Header(
    experiment="toy",
    config={"k": 3, "lr": 0.1},
    cells=[cell.id for cell in CELLS],
    inputs={"tasks.jsonl": "0123"},
    threads=1,
    versions={"frenet": "0.1.0", "torch": "2.13.0"},
    device="cpu",
)
FAILURE = Failure("run", "ValueError", "no", "Traceback ...", False, ('{"x":1}',))


def line(seed):
    return json.dumps({"seed": seed, "table": "t"}, separators=(",", ":"))


def fill(path, cells, *, finish=True, header=HEADER, **options):
    with RunFolder(path, header, **options) as folder:
        for cell in cells:
            if not folder.done(cell):
                folder.store(
                    cell, [line(cell["seed"]), line(cell["seed"])], seconds=0.5, peak_mib=7
                )
        if finish:
            folder.finish(CELLS, workers=2)


def of_format_1(run):
    """Make a folder what early builds wrote: no digests, commits or device; what it had."""
    file = run / "config.json"
    head = json.loads(file.read_text())
    early = {k: v for k, v in head.items() if k not in ("sha256", "commits", "device")}
    file.write_text(json.dumps(early | {"format": 1}))
    for cell in (run / "cells").glob("*.jsonl"):
        first, *rows = cell.read_text().splitlines(keepends=True)
        kept = {k: v for k, v in json.loads(first).items() if k in ("cell", "seconds", "peak_mib")}
        cell.write_text("".join([json.dumps(kept) + "\n", *rows]))
    manifest = run / "manifest.json"
    if manifest.exists():
        found = json.loads(manifest.read_text())
        del found["sha256"]
        manifest.write_text(json.dumps(found | {"format": 1}))
    return head


def test_a_run_comes_back_as_it_was_stored(tmp_path):
    fill(tmp_path / "run", reversed(CELLS))
    run = read_run(tmp_path / "run")
    assert [row["seed"] for row in run.rows] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert run.experiment == "toy"
    assert run.config == {"k": 3, "lr": 0.1}
    assert run.failures == []
    assert run.path == tmp_path / "run"
    manifest = run.manifest
    assert manifest["complete"] is True
    assert manifest["cells"] == {"total": 4, "finished": 4, "failed": 0}
    assert manifest["rows"] == 8
    assert manifest["cell_seconds"] == 2.0
    assert (manifest["threads"], manifest["workers"]) == (1, 2)
    assert manifest["machine"]["cpus"] == cpu_count()
    timings = json.loads((tmp_path / "run" / "timings.json").read_text())
    assert timings[0] == {"cell": {"seed": 0}, "seconds": 0.5, "peak_mib": 7}


def test_rows_do_not_depend_on_interruptions_or_order(tmp_path):
    fill(tmp_path / "one", CELLS)
    for done in (CELLS[2:3], CELLS[:1], [], CELLS):
        fill(tmp_path / "two", done, finish=done is CELLS)
    one, two = ((tmp_path / name / "rows.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two


def test_the_configuration_is_written_first_and_the_manifest_last(tmp_path, monkeypatch):
    names = []
    for module in ("header", "store"):
        monkeypatch.setattr(
            f"frenet.runs.{module}.write_whole",
            lambda path, text: (names.append(path.name), write_whole(path, text)),
        )
    fill(tmp_path / "run", CELLS[:1])
    assert names[0] == "config.json"
    assert names[-1] == "manifest.json"


def test_failures_are_kept_apart_and_forgotten_when_the_cell_works(tmp_path):
    with RunFolder(tmp_path, HEADER) as folder:
        folder.store(CELLS[0], [line(0)], seconds=1.0)
        folder.store_failure(CELLS[1], FAILURE)
        folder.finish(CELLS, workers=1)
    run = read_run(tmp_path)
    assert run.failures == [{"cell": "seed=1", "stage": "run", "type": "ValueError", "error": "no"}]
    stored = json.loads((tmp_path / "failed" / "seed=1.json").read_text())
    assert stored["rows"] == [{"x": 1}]
    assert stored["traceback"] == "Traceback ..."
    fill(tmp_path, CELLS, restart=True)
    assert read_run(tmp_path).failures == []
    assert list((tmp_path / "failed").iterdir()) == []


def test_a_cell_that_worked_has_not_failed_even_where_a_kill_left_its_failure(tmp_path):
    """Killed between the rows of a cell that was tried again and the end of its failure."""

    def failed(run):
        return [failure["cell"] for failure in run.failures], run.manifest["cells"]["failed"]

    with RunFolder(tmp_path, HEADER) as folder:
        folder.store(CELLS[1], [line(1)], seconds=1.0)
        for cell in CELLS[1:3]:
            folder.store_failure(cell, FAILURE)
        assert failed(read_run(tmp_path, partial=True)) == (["seed=2"], 1)
        folder.finish(CELLS, workers=1)
    assert failed(read_run(tmp_path)) == (["seed=2"], 1)
    with RunFolder(tmp_path, HEADER, restart=True):
        assert [file.name for file in (tmp_path / "failed").iterdir()] == ["seed=2.json"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"experiment": "other"}, "experiment='toy', and this one has experiment='other'"),
        ({"config": {"k": 4, "lr": 0.2}}, "with k=3, and this one has k=4; use another --out"),
        ({"config": {"k": 3}}, r"with lr=0.1, and this one has lr=\(absent\)"),
        ({"inputs": {"tasks.jsonl": "9"}}, "contents of tasks.jsonl='0123'"),
        ({"cells": ["seed=0"]}, r"with cells=\['seed=0', 'seed=1'"),
        ({"threads": 2}, "with threads=1, and this one has threads=2"),
        ({"versions": {"frenet": "0.1.0", "torch": "3"}}, "version of torch='2.13.0'"),
        ({"device": "cuda: H100"}, "with device='cpu', and this one has device='cuda: H100'"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(tmp_path, change, words):
    fill(tmp_path, CELLS[:2], finish=False)
    before = (tmp_path / "config.json").read_bytes()
    with (
        pytest.raises(RunFolderError, match=words),
        RunFolder(tmp_path, replace(HEADER, **change)),
    ):
        pass
    assert (tmp_path / "config.json").read_bytes() == before


def test_before_the_first_cell_only_experiment_and_configuration_are_fixed(tmp_path):
    fill(tmp_path, [], finish=False)
    changed = replace(HEADER, inputs={}, threads=2, versions={})
    fill(tmp_path, CELLS, header=changed)
    assert read_run(tmp_path).manifest["threads"] == 2
    with pytest.raises(RunFolderError, match="k=3"):
        fill(tmp_path, CELLS, header=replace(HEADER, config={"k": 1}))


def test_a_finished_run_may_be_looked_at_with_other_versions_but_not_gone_on_with(tmp_path):
    fill(tmp_path, CELLS[:3])
    later = replace(HEADER, versions={"frenet": "0.2.0"})
    with RunFolder(tmp_path, later) as folder:
        assert folder.finished
    with pytest.raises(RunFolderError, match=r"version of frenet='0\.1\.0'"):
        fill(tmp_path, CELLS, header=later, restart=True)
    assert (tmp_path / "manifest.json").exists()


def test_a_run_of_an_unknown_device_goes_on_and_does_not_claim_one(tmp_path):
    """Begun before devices were recorded, or resumed on a cluster with other devices."""
    fill(tmp_path / "old", CELLS[:2], finish=False)
    assert of_format_1(tmp_path / "old").pop("device") == "cpu"
    fill(tmp_path / "old", CELLS, header=replace(HEADER, device="cuda: H100"))
    assert read_run(tmp_path / "old").manifest["device"] is None
    fill(tmp_path / "new", CELLS[:2], finish=False)
    assert read_run(tmp_path / "new", partial=True).manifest["device"] == "cpu"
    fill(tmp_path / "new", CELLS, header=replace(HEADER, device=None))
    assert read_run(tmp_path / "new").manifest["device"] == "cpu"


def test_foreign_folders_and_files_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"holds other things \(thesis.txt"):
        fill(tmp_path, CELLS)
    with pytest.raises(RunFolderError, match="is a file; a run needs a folder"):
        fill(tmp_path / "thesis.txt", CELLS)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(RunFolderError, match="not written by this version of frenet"):
        fill(model, CELLS)
    (model / "config.json").write_text("{")
    with pytest.raises(RunFolderError, match="is damaged or not frenet's"):
        fill(model, CELLS)


def test_reading_says_what_is_wrong(tmp_path):
    with pytest.raises(RunFolderError, match="is not a run folder: it has no config"):
        read_run(tmp_path)
    fill(tmp_path / "run", CELLS[:3], finish=False)
    (tmp_path / "run" / "cells" / f"{TEMPORARY}seed=3.jsonl").touch()
    with pytest.raises(RunFolderError, match=r"not finished \(3 of 4 cells\)"):
        read_run(tmp_path / "run")
    fill(tmp_path / "run", CELLS)
    rows = tmp_path / "run" / "rows.jsonl"
    rows.write_text(rows.read_text().replace('"seed":1', '"seed":2'))
    with pytest.raises(RunFolderError, match="not what the manifest says: it was edited"):
        read_run(tmp_path / "run")


def test_a_run_under_way_can_be_read_on_request(tmp_path):
    with RunFolder(tmp_path, HEADER) as folder:
        folder.store(CELLS[2], [line(2)], seconds=1.0)
        folder.store(CELLS[0], [line(0)], seconds=1.0)
        folder.store_failure(CELLS[1], FAILURE)
    run = read_run(tmp_path, partial=True)
    assert [row["seed"] for row in run.rows] == [0, 2]
    assert run.manifest["complete"] is False
    assert run.manifest["cells"] == {"total": 4, "finished": 2, "failed": 1}
    assert run.failures[0]["error"] == "no"
    fill(tmp_path, CELLS)
    assert run.manifest.keys() == read_run(tmp_path).manifest.keys()


def test_a_run_in_one_file_is_the_run_and_tells_what_is_wrong_with_it(tmp_path):
    fill(tmp_path / "run", CELLS)
    run, file = read_run(tmp_path / "run"), tmp_path / "a.run.jsonl.gz"
    file.write_bytes(pack_run(run))
    packed = read_run(file)
    machine = run.manifest["machine"] | {"platform": platform.platform().partition("-")[0]}
    assert packed == replace(run, path=file, manifest=run.manifest | {"machine": machine})
    assert pack_run(packed) == pack_run(run)
    (tmp_path / "._a.run.jsonl.gz").write_bytes(b"not a run")
    assert find_runs([tmp_path]) == [file, tmp_path / "run"]
    assert find_runs([file]) == [file]
    content = gzip.decompress(file.read_bytes())
    for changed, complaint in (
        (file.read_bytes()[:-9], "is damaged or not frenet's"),
        (content, "is damaged or not frenet's"),
        (gzip.compress(b"no JSON"), "is damaged or not frenet's"),
        (gzip.compress(b"[1]"), "was not written by this version"),
        (gzip.compress(b'{"format": 3}'), "was not written by this version"),
        (gzip.compress(b'{"format": 1}'), "has no key 'experiment'"),
        (gzip.compress(content.replace(b'"seed":1', b'"seed":2')), "it was edited"),
        (gzip.compress(content.replace(b'"lr": 0.1', b'"lr": 0.2')), "sha256 does not match"),
    ):
        file.write_bytes(changed)
        with pytest.raises(RunFolderError, match=complaint):
            read_run(file)
    with pytest.raises(FileNotFoundError):
        read_run(tmp_path / "none.run.jsonl.gz")


def test_a_run_under_way_stays_one_in_a_file(tmp_path):
    with RunFolder(tmp_path, HEADER) as folder:
        folder.store(CELLS[2], [line(2)], seconds=1.0)
        folder.store_failure(CELLS[1], FAILURE)
    run, file = read_run(tmp_path, partial=True), tmp_path / "a.run.jsonl.gz"
    file.write_bytes(pack_run(run))
    with pytest.raises(RunFolderError, match="not finished; pass --partial to read what is"):
        read_run(file)
    packed = read_run(file, partial=True)
    assert (packed.rows, packed.failures) == (run.rows, run.failures)
    assert packed.manifest["complete"] is False


def test_a_damaged_cell_is_named_and_made_again(tmp_path):
    fill(tmp_path / "undisturbed", CELLS)
    run = tmp_path / "run"
    fill(run, CELLS, finish=False)
    (run / "cells" / "seed=1.jsonl").write_text("")
    with pytest.raises(RunFolderError, match=r"seed=1\.jsonl is damaged: .* runs this cell again"):
        read_run(run, partial=True)
    with RunFolder(run, HEADER) as folder:
        assert "seed=1.jsonl is damaged" in folder.note
        assert [folder.done(cell) for cell in CELLS] == [True, False, True, True]
    fill(run, CELLS)
    expected = (tmp_path / "undisturbed" / "rows.jsonl").read_bytes()
    assert (run / "rows.jsonl").read_bytes() == expected


def test_run_folders_are_found_one_level_down(tmp_path):
    for name in ("b", "a"):
        fill(tmp_path / name, CELLS)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    assert find_runs([tmp_path]) == [tmp_path / "a", tmp_path / "b"]
    (tmp_path / "models").mkdir()
    (tmp_path / "model").rename(tmp_path / "models" / "model")
    with pytest.raises(RunFolderError, match="models is not a run folder and holds none"):
        find_runs([tmp_path / "models"])
    assert find_runs([tmp_path / "b", tmp_path]) == [tmp_path / "b", tmp_path / "a"]
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(RunFolderError, match="is not a run folder and holds none"):
        find_runs([tmp_path / "a" / "cells"])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_loses_nothing(tmp_path, monkeypatch, code):
    fill(tmp_path, CELLS[:2], finish=False)

    def full(handle):
        raise OSError(code, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match=r"disk full: .*seed=2.jsonl needs \d+ bytes"):
            fill(tmp_path, CELLS, finish=False)
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))
    assert sorted(p.name for p in (tmp_path / "cells").iterdir()) == [
        "seed=0.jsonl",
        "seed=1.jsonl",
    ]
    fill(tmp_path, CELLS)
    assert len(read_run(tmp_path).rows) == 8


def test_other_errors_of_the_disk_are_passed_on(tmp_path, monkeypatch):
    def broken(handle):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="broken") as caught:
        write_whole(tmp_path / "file", "text")
    assert not isinstance(caught.value, DiskFullError)
    assert list(tmp_path.iterdir()) == []


HOLD = """
import sys, time
from pathlib import Path
from frenet.runs.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_dead_one_does_not_block(tmp_path, monkeypatch):
    monkeypatch.setattr("frenet.runs.files.LOCK_PATIENCE_S", 0.1)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match="another process is writing into"):
            fill(tmp_path, CELLS)
        assert not (tmp_path / "config.json").exists()
        os.kill(holder.pid, signal.SIGKILL)
    fill(tmp_path, CELLS)


def test_a_second_writer_in_the_same_process_is_refused_too(tmp_path, monkeypatch):
    monkeypatch.setattr("frenet.runs.files.LOCK_PATIENCE_S", 0.1)
    with (
        locked(tmp_path),
        pytest.raises(RunFolderError, match="another process is writing"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


STORE = """
import sys
from pathlib import Path
from test_store import CELLS, fill
print("go", flush=True)
fill(Path(sys.argv[1]), CELLS)
"""


def test_killed_at_any_moment_a_folder_goes_on_to_the_same_rows(tmp_path):
    fill(tmp_path / "undisturbed", CELLS)
    expected = (tmp_path / "undisturbed" / "rows.jsonl").read_bytes()
    # Sleeping in fsync stretches the moments in which files are half there.
    slow = f"import os, time; os.fsync = lambda handle: time.sleep(0.004)\n{STORE}"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    draw = random.Random(0)
    for trial in range(8):
        run = tmp_path / f"run{trial}"
        command = [sys.executable, "-c", slow, str(run)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as child:
            assert child.stdout.readline() == b"go\n"
            time.sleep(draw.uniform(0, 0.08))
            child.kill()
        fill(run, CELLS)
        assert read_run(run).manifest["complete"]
        assert (run / "rows.jsonl").read_bytes() == expected
        assert not list(run.rglob(f"{TEMPORARY}*"))


def test_versions_name_what_numbers_depend_on():
    found = versions()
    assert set(found) == {"frenet", "python", "torch", "transformers", "peft", "numpy", "scipy"}
    assert found["torch"]


def test_the_commit_is_frenets_own_or_none(monkeypatch, tmp_path):
    found = commit()
    assert found is None or len(found.removesuffix("-dirty")) == 40
    monkeypatch.setattr("frenet.runs.machine.__file__", str(tmp_path / "a" / "b" / "c.py"))
    assert commit() is None


@pytest.fixture
def checked_out(monkeypatch):
    """Checks a commit out, as far as run folders can see."""

    def check_out(name):
        for module in ("store", "header"):
            monkeypatch.setattr(f"frenet.runs.{module}.commit", lambda: name)

    return check_out


def test_a_run_names_the_commits_at_which_its_cells_were_made(tmp_path, checked_out):
    checked_out("one")
    with RunFolder(tmp_path, HEADER) as folder:
        assert folder.note is None
        assert json.loads((tmp_path / "config.json").read_text())["commits"] == ["one"]
        folder.store(CELLS[0], [line(0)], seconds=1.0)
    started = json.loads((tmp_path / "config.json").read_text())["started"]
    checked_out("two-dirty")
    with RunFolder(tmp_path, HEADER) as folder:
        assert "at commit one of frenet and resumes at commit two-dirty" in folder.note
        folder.store(CELLS[1], [line(1)], seconds=1.0)
        assert read_run(tmp_path, partial=True).manifest["commits"] == ["one", "two-dirty"]
        checked_out("three")  # what workers that start from now on will run
        folder.finish(CELLS, workers=1)
    manifest = read_run(tmp_path).manifest
    assert manifest["commits"] == ["one", "two-dirty", "three"]
    assert manifest["commit"] is None
    checked_out("four")
    fill(tmp_path, CELLS)
    assert json.loads((tmp_path / "config.json").read_text())["started"] == started


def test_a_run_of_one_commit_names_that_one_and_says_nothing(tmp_path, checked_out):
    for name, known in (("one", "one"), (None, None)):
        checked_out(name)
        fill(tmp_path / str(name), CELLS[:1], finish=False)
        with RunFolder(tmp_path / str(name), HEADER) as folder:
            assert folder.note is None
        fill(tmp_path / str(name), CELLS)
        manifest = read_run(tmp_path / str(name)).manifest
        assert (manifest["commit"], manifest["commits"]) == (known, [known])


def test_looking_at_a_finished_run_leaves_its_commits(tmp_path, checked_out):
    checked_out("one")
    fill(tmp_path, CELLS)
    checked_out("two")
    before = (tmp_path / "config.json").read_bytes()
    with RunFolder(tmp_path, HEADER) as folder:
        assert folder.note is None
    assert (tmp_path / "config.json").read_bytes() == before


def test_before_the_first_cell_no_commit_is_kept(tmp_path, checked_out):
    checked_out("one")
    fill(tmp_path, [], finish=False)
    checked_out("two")
    fill(tmp_path, CELLS)
    assert read_run(tmp_path).manifest["commits"] == ["two"]


def test_a_run_whose_first_commit_was_not_recorded_says_so(tmp_path, checked_out):
    checked_out("two")
    fill(tmp_path, CELLS[:1], finish=False)
    of_format_1(tmp_path)
    with RunFolder(tmp_path, HEADER) as folder:
        assert "at commit (unknown) of frenet and resumes at commit two" in folder.note
        folder.finish(CELLS[:1], workers=1)
    assert read_run(tmp_path).manifest["commits"] == [None, "two"]


def test_a_containers_quota_limits_the_processors(monkeypatch, tmp_path):
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr("frenet.runs.machine.QUOTA_FILE", quota)
    without = cpu_count()
    quota.write_text("max 100000\n")
    assert cpu_count() == without
    quota.write_text("50000 100000\n")
    assert cpu_count() == 1


def test_a_run_goes_back_to_some_of_its_cells(tmp_path):
    fill(tmp_path / "run", CELLS[:3], finish=False)
    with RunFolder(tmp_path / "run", HEADER) as folder:
        folder.store_failure(CELLS[3], FAILURE)
        folder.keep_only([CELLS[0], CELLS[2]])
        assert [folder.done(cell) for cell in CELLS] == [True, False, True, False]
        assert not any((tmp_path / "run" / "failed").iterdir())


def test_a_run_that_goes_on_for_longer_has_more_cells(tmp_path):
    fill(tmp_path / "run", CELLS)
    longer = replace(HEADER, cells=[*HEADER.cells, "seed=9"])
    with (
        pytest.raises(RunFolderError, match="holds a run with cells="),
        RunFolder(tmp_path / "run", longer, restart=True),
    ):
        pass
    with RunFolder(tmp_path / "run", longer, restart=True, extend=True) as folder:
        assert not folder.finished
        folder.store(Cell((("seed", 9),)), [line(9)], seconds=0.5)
    run = read_run(tmp_path / "run", partial=True)
    assert [row["seed"] for row in run.rows] == [0, 0, 1, 1, 2, 2, 3, 3, 9]
    other = replace(longer, config={"k": 4, "lr": 0.1})
    with (
        pytest.raises(RunFolderError, match="k=3, and this one has k=4"),
        RunFolder(tmp_path / "run", other, restart=True, extend=True),
    ):
        pass


def test_bytes_are_written_as_they_are(tmp_path):
    write_whole(tmp_path / "file", b"\x00\xff\r\n")
    assert (tmp_path / "file").read_bytes() == b"\x00\xff\r\n"


def test_a_run_of_a_version_without_a_setting_says_so_and_how_to_read_it(tmp_path):
    """The user never gave that setting."""
    fill(tmp_path, CELLS)
    newer = replace(HEADER, config={**HEADER.config, "dtype": "float32"})
    with pytest.raises(RunFolderError, match="earlier version, which had no dtype; frenet report"):
        fill(tmp_path, CELLS, header=newer)
