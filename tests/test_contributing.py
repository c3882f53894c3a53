"""The worked example of CONTRIBUTING.md is a whole experiment."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_a_new_experiment_is_one_new_folder(tmp_path):
    """It is listed, run, reported and decided by a copy of the package that holds it besides."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = re.findall(r"^`(first_step/\w+\.py)`.*?^```python\n(.*?)^```", text, re.M | re.S)
    assert [name for name, _ in files] == [
        f"first_step/{name}.py" for name in ("__init__", "measure", "findings")
    ]
    assert sum(line.strip() != "" for _, code in files for line in code.splitlines()) < 60
    package = tmp_path / "frenet"
    shutil.copytree(ROOT / "src" / "frenet", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, code in files:
        path = package / "experiments" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, encoding="utf-8")

    def frenet(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "frenet", *arguments],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "first-step" in frenet("list")
    small = ("--width", "16", "--train-steps", "60", "--seeds", "0", "1", "2", "--workers", "1")
    told = json.loads(
        frenet("run", "first-step", "--preset", "smoke", *small, "--json", "--out", "x")
    )
    (finding,) = told["runs"][0]["claims"]
    gradient, random = finding["estimate"]["value"], finding["reference_estimate"]["value"]
    # The gradient of a hardly trained network falls far below a random direction in R^d.
    assert gradient < random
    assert finding["verdict"] == "supported"
    frenet("report", "x", "--out", "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Does a step down the gradient lower the loss" in page
    assert "Change of loss." in page
