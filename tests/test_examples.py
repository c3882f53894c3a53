"""The examples run as a reader would run them; they check their results themselves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(name, *arguments):
    """Standard output of an example, which must not fail."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_watch_finetune(tmp_path):
    said = run("watch_finetune.py", "--out", tmp_path)
    assert "energy ratio" in said
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_watch_finetune_of_a_model_in_a_folder(tmp_path, shared):
    assert "energy ratio" in run(
        "watch_finetune.py", shared / "models" / "stories260K", "--out", tmp_path
    )


def test_scale_adapter():
    assert "of the adapter's length" in run("scale_adapter.py")


def test_merge_adapters():
    said = run("merge_adapters.py")
    assert "one adapter of rank 8" in said
