"""The command that runs all benchmarks: failures have rows, finished jobs are not repeated."""

import importlib
import inspect
import sys
import types
from types import SimpleNamespace

import pytest
import torch

import page
import records
import run
import timing

ENVIRONMENT = {
    "date": "2026-01-02", "commit": "abc1234", "processor": "P", "cores": 2, "threads": 1,
    "gpu": None, "memory": 2**33, "load": 0.5, "versions": {"Python": "3.11"},
}  # fmt: skip
ROW = {"name": "a", "model": None, "ratio": 1.0, "aim": "", "detail": ""}
CURVE = {
    "name": "c", "over": "d", "expected": "1", "stopped": None,
    "points": [{"size": s, "seconds": float(s), "bytes": 0} for s in (1, 2, 4)],
}  # fmt: skip


def test_an_error_becomes_a_row_without_the_folders_of_the_machine():
    def rows():
        yield ROW
        raise FileNotFoundError("no model at /some/where/model.gguf; two/parts stay\nmore")

    assert list(timing.attempted("x", rows, model="m")) == [
        ROW,
        {
            "name": "x",
            "model": "m",
            "why": "FileNotFoundError: no model at model.gguf; two/parts stay",
        },
    ]


def test_a_process_of_its_own_gives_back_what_it_prints_or_its_last_words(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys; print([1, int(sys.argv[1])])")
    assert timing.alone(str(script), 2) == [1, 2]
    script.write_text("raise MemoryError('too much')")
    with pytest.raises(RuntimeError, match="ended early: MemoryError: too much"):
        timing.alone(str(script))


def test_routines_take_turns():
    calls = []
    routines = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = timing.turns(routines, 2)
    assert calls == ["a", "b"] * 3
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_ratios_are_of_the_turns_and_not_of_the_medians():
    found = timing.ratios([1.0, 10.0, 6.0], [1.0, 5.0, 2.0])
    assert found == {"ratio": 2.0, "low": 1.5, "high": 2.5}
    assert timing.ratios([3.0], [2.0]) == {"ratio": 1.5}


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Two scripts that exist only here, a page, and the file of the results."""
    monkeypatch.setattr(run, "SETTINGS", {"bench_fake": {"rows": 2}, "bench_growth": {}})
    monkeypatch.setattr(run, "ON_A_MODEL", {"bench_fake": {"rows": 1}})
    module = types.ModuleType("bench_fake")
    module.run = lambda rows, source="own": iter([ROW | {"name": source}] * rows)
    monkeypatch.setitem(sys.modules, "bench_fake", module)
    growth = types.ModuleType("bench_growth")
    growth.run = lambda: iter([CURVE])
    monkeypatch.setitem(sys.modules, "bench_growth", growth)
    monkeypatch.setattr(run, "environment", lambda: ENVIRONMENT)
    monkeypatch.setattr(page, "PAGE", tmp_path / "README.md")
    monkeypatch.setattr(page, "FIGURE", tmp_path / "growth.svg")
    parts = ("table", "growth")
    text = "\n".join(f"<!-- {part} --><!-- end of {part} -->" for part in parts)
    page.PAGE.write_text(text)
    return SimpleNamespace(module=module, results=tmp_path / "bench.jsonl")


def in_this_process(monkeypatch):
    """Children run here; the calls, as the names of their jobs."""
    called = []

    def child(command):
        given = dict(zip(command[2::2], command[3::2], strict=True))
        work = run.Work(given["--script"], given.get("--model"))
        called.append(work.job)
        run.measure(work, run.Path(given["--results"]), quick=False)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(run, "subprocess", SimpleNamespace(run=child))
    return called


def command(monkeypatch, fake, *arguments):
    monkeypatch.setattr(sys, "argv", ["run.py", "--results", str(fake.results), *arguments])
    monkeypatch.setattr(sys, "path", sys.path.copy())
    run.main()


def test_all_then_only_one_again(fake, monkeypatch):
    called = in_this_process(monkeypatch)
    command(monkeypatch, fake, "--model", "folder/m.gguf")
    assert called == ["bench_fake", "bench_fake on m.gguf", "bench_growth"]
    text = page.PAGE.read_text()
    assert text.count("| own |") == 2
    assert text.count("| folder/m.gguf |") == 1
    assert "| c | 1 to 4 d | 1 s, 4 s | 0.0 MiB, 0.0 MiB | 1.00 ± 0.00 | 1.00 | 1 |" in text
    assert page.FIGURE.read_text().startswith("<svg")

    called.clear()
    fake.module.run = lambda rows: iter([ROW | {"name": "again"}])
    command(monkeypatch, fake, "--only", "bench_fake")
    assert called == ["bench_fake"]
    text = page.PAGE.read_text()
    assert "| own |" not in text
    assert text.count("| again |") == text.count("| folder/m.gguf |") == text.count("| c |") == 1


def test_resume_goes_on_where_it_was_interrupted(fake, monkeypatch):
    called = in_this_process(monkeypatch)

    def interrupted(rows):
        yield ROW
        raise KeyboardInterrupt

    whole, fake.module.run = fake.module.run, interrupted
    with pytest.raises(KeyboardInterrupt):
        command(monkeypatch, fake)
    assert records.read(fake.results)["bench_fake"].rows == [ROW]
    fake.module.run = whole
    command(monkeypatch, fake, "--resume")
    assert called == ["bench_fake", "bench_fake", "bench_growth"]
    called.clear()
    command(monkeypatch, fake, "--resume")
    assert called == []
    assert len(records.read(fake.results)["bench_fake"].rows) == 2


def test_a_page_does_not_lose_the_rows_that_were_never_measured(fake, monkeypatch):
    in_this_process(monkeypatch)
    before = page.PAGE.read_text()
    with pytest.raises(
        SystemExit, match=r"has no rows of bench_growth, so the page is left unchanged"
    ):
        command(monkeypatch, fake, "--only", "bench_fake")
    assert page.PAGE.read_text() == before


def test_a_benchmark_that_fails_leaves_the_others(fake, monkeypatch, capsys):
    in_this_process(monkeypatch)

    def failing(rows):
        yield ROW
        raise RuntimeError("peer | missing")

    fake.module.run = failing
    command(monkeypatch, fake)
    text = page.PAGE.read_text()
    assert "| a | - | 1 |" in text
    assert r"| bench_fake | - | not measured |  |  |  | RuntimeError: peer \| missing |" in text
    assert "| c |" in text
    assert "\n1 rows were not measured:\nbench_fake" in capsys.readouterr().out
    monkeypatch.delitem(sys.modules, "bench_fake")
    command(monkeypatch, fake, "--only", "bench_fake")
    assert "ModuleNotFoundError: No module named 'bench_fake'" in page.PAGE.read_text()


def test_a_process_that_is_killed_has_a_row(fake, monkeypatch):
    killed = SimpleNamespace(run=lambda command: SimpleNamespace(returncode=-9))
    monkeypatch.setattr(run, "subprocess", killed)
    run.measure_apart(run.Work("bench_fake"), fake.results, quick=False)
    job = records.read(fake.results)["bench_fake"]
    assert job.rows == [
        {"name": "bench_fake", "model": None, "why": "the process ended with status -9"}
    ]
    assert job.seconds is not None


def test_the_environment_has_all_that_the_page_says_of_it():
    found = run.environment()
    assert set(found) == set(ENVIRONMENT)
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__
    assert {"curvlinops-for-pytorch", "steering-vectors", "mergekit"} <= set(found["versions"])
    assert page.describe(found).startswith(found["date"])


def test_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no benchmark 'bench_x'; there are bench_linalg, "):
        run.planned(None, ["bench_x"])


@pytest.mark.parametrize("script", list(run.SETTINGS))
def test_every_script_takes_the_settings_that_it_is_given(script):
    assert (run.ROOT / "benchmarks" / f"{script}.py").exists()
    parameters = inspect.signature(importlib.import_module(script).run).parameters
    given = {**run.SETTINGS[script], **run.QUICK[script], **run.ON_A_MODEL.get(script, {})}
    assert set(given) <= set(parameters)
    assert ("source" in parameters) == (script in run.ON_A_MODEL)


def test_on_a_gpu_its_scripts_run_with_their_own_settings_into_its_own_table(fake, monkeypatch):
    monkeypatch.setattr(run.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(run, "ON_A_GPU", {"bench_fake": {"rows": 2}})
    called = in_this_process(monkeypatch)
    page.PAGE.write_text(page.PAGE.read_text() + "\n<!-- gpu --><!-- end of gpu -->\n")
    command(monkeypatch, fake, "--model", "folder/m.gguf")
    assert called == ["bench_fake", "bench_fake on m.gguf"]
    before, after = page.PAGE.read_text().split("<!-- gpu -->")
    assert "| own |" not in before
    assert after.count("| own |") == 2
    assert after.count("| folder/m.gguf |") == 2
    assert page.describe(ENVIRONMENT | {"gpu": "G"}).startswith("2026-01-02, commit abc1234; G; P,")


def test_all_scripts_have_their_place():
    scripts = {path.stem for path in (run.ROOT / "benchmarks").glob("bench_*.py")}
    assert scripts == set(run.SETTINGS) == set(run.QUICK)
