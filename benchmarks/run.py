"""All benchmarks in one command; `make bench` runs it and writes the tables of README.md.

    python benchmarks/run.py [--model FILE] [--resume] [--only bench_search ...] [--quick]

Every script runs in a separate process, so that its memory and threads do not affect the next one.
Rows are stored as they come, in build/bench.jsonl: --resume continues after an interruption, --only
measures some scripts again and keeps the rows of the others. A failed measurement has a row with
the reason.
"""

import argparse
import datetime
import importlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

import page
import records
from timing import attempted, show

ROOT = Path(__file__).resolve().parents[1]
# Packages to compare with, installed outside the environment.
PEERS = ROOT / "build" / "peers"
PACKAGES = (
    "torch", "transformers", "peft", "numpy", "scikit-learn", "ray", "curvlinops-for-pytorch",
    "steering-vectors", "mergekit",
)  # fmt: skip
# A model that computes for minutes gets fewer rows and repeats, and no batches of 2,048 tokens.
ON_A_MODEL: dict[str, dict[str, Any]] = {
    "bench_gradients": {"n": 8, "repeats": 3},
    "bench_trajectory": {"steps": 3, "repeats": 3},
    "bench_search": {"repeats": 3, "shapes": ((2, 16), (8, 32)), "most": 8, "whole": 4},
    "bench_steering": {"repeats": 3, "pairs": 32, "few": 16},
    "bench_trainer": {"steps": 12, "repeats": 3},
    "bench_curvature": {"repeats": 3, "rows": 2, "probes": 4, "pairs": 0},
    "bench_update_order": {"repeats": 3, "rows": 8},
    "bench_probe": {"rows": 16},
}
# The smallest sizes, to check that all of them run.
QUICK: dict[str, dict[str, Any]] = {
    "bench_linalg": {"n": 8, "d": 20_000, "k": 4, "repeats": 1},
    "bench_gradients": {"n": 2, "repeats": 1},
    "bench_trajectory": {"steps": 2, "repeats": 1},
    "bench_search": {
        "repeats": 1,
        "shapes": ((2, 16),),
        "most": 8,
        "whole": 1,
        "whole_shapes": ((2, 16),),
    },
    "bench_plan": {"searches": 1, "networks": 1, "repeats": 1},
    "bench_worth": {"searches": 1, "networks": 1, "budget": 16},
    "bench_renewal": {"steps": 6, "trainings": 1},
    "bench_probe": {"rows": 4},
    "bench_advice": {"rows": 8, "most": 1},
    "bench_steering": {"repeats": 1, "pairs": 2, "few": 2},
    "bench_steer_advice": {"rows": 4, "draws": 2, "only": ("size",)},
    "bench_task_vectors": {"layers": 1, "repeats": 1},
    "bench_trainer": {"steps": 12, "repeats": 1},
    "bench_curvature": {"repeats": 1, "rows": 2, "probes": 2, "pairs": 0},
    "bench_update_order": {"repeats": 1, "rows": 2},
    "bench_startup": {"repeats": 1},
    "bench_growth": {"most": 1e4, "only": "candidate drawn"},
}
# The order of the table, and settings that differ from the scripts' defaults.
SETTINGS: dict[str, dict[str, Any]] = {name: {} for name in QUICK} | {
    "bench_task_vectors": {"repeats": 3},
    "bench_trainer": {"repeats": 3},
}


# With a CUDA device only these run, on a model with these settings; their rows have a separate file
# and table.
ON_A_GPU: dict[str, dict[str, Any]] = {
    "bench_gradients": {"repeats": 5},
    "bench_trajectory": {"repeats": 5},
    "bench_search": {"repeats": 3, "most": 16, "whole": 2},
    "bench_steering": {},
}


class Work(NamedTuple):
    """One script on one model; None is the script's default."""

    script: str
    model: str | None = None

    @property
    def job(self) -> str:
        """The job's name in the records."""
        return f"{self.script} on {Path(self.model).name}" if self.model else self.script

    def settings(self, *, quick: bool) -> dict[str, Any]:
        """Arguments of the script's ``run``."""
        if self.model is None:
            return (QUICK if quick else SETTINGS)[self.script]
        usual = ON_A_GPU if torch.cuda.is_available() else ON_A_MODEL
        return {"source": self.model, **(QUICK if quick else usual)[self.script]}


def planned(model: str | None, only: Sequence[str]) -> list[Work]:
    """The work to do, in the order of the table.

    Raises:
        ValueError: ``only`` names no script.
    """
    if unknown := [name for name in only if name not in SETTINGS]:
        raise ValueError(f"no benchmark {unknown[0]!r}; there are {', '.join(SETTINGS)}")
    usual = ON_A_GPU if torch.cuda.is_available() else SETTINGS
    work = []
    for name in SETTINGS:
        if name in (only or usual):
            work.append(Work(name))
            if model and name in ON_A_MODEL:
                work.append(Work(name, model))
    return work


def measure(work: Work, results: Path, *, quick: bool) -> None:
    """Run a script in this process and store its rows."""

    def rows() -> Any:
        return importlib.import_module(work.script).run(**work.settings(quick=quick))

    for row in attempted(work.job, rows):
        records.add(results, job=work.job, row=row)
        show([row])


def measure_apart(work: Work, results: Path, *, quick: bool) -> None:
    """Run a script in a separate process; if it is killed, a row says so."""
    records.add(results, job=work.job, environment=environment())
    start = time.perf_counter()
    command = [sys.executable, __file__, "--script", work.script, "--results", str(results)]
    command += ["--model", work.model] if work.model else []
    status = subprocess.run([*command, *(["--quick"] if quick else [])]).returncode
    if status:
        why = f"the process ended with status {status}"
        records.add(results, job=work.job, row={"name": work.job, "model": None, "why": why})
    records.add(results, job=work.job, seconds=time.perf_counter() - start)


def environment() -> dict[str, Any]:
    """Machine, versions, commit and date."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "commit": commit(),
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory": psutil.virtual_memory().total,
        "load": os.getloadavg()[0],
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and the packages; peers may be missing."""
    installed = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "missing"
    return installed


def processor() -> str:
    """The processor's name."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None) or platform.processor() or platform.machine()


def commit() -> str:
    """The current commit, and whether the code differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "src", "benchmarks/*.py")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def known(results: Path) -> dict[str, records.Job]:
    """The jobs with records, in the order of the table: each script on its models."""
    jobs = records.read(results)
    extra = dict.fromkeys(name.partition(" on ")[2] for name in jobs if " on " in name)
    names = [Work(script, model).job for script in SETTINGS for model in (None, *extra)]
    return {name: jobs[name] for name in names if name in jobs}


def report(results: Path) -> None:
    """Write the tables and the figure into the page; with a GPU, its table."""
    jobs = known(results)
    if torch.cuda.is_available():
        page.write({"gpu": page.tables(jobs)["table"]}, page.PAGE)
        return
    if missing := [name for name in SETTINGS if name not in jobs]:
        raise SystemExit(
            f"{results.name} has no rows of {', '.join(missing)}, so the page is left unchanged; "
            "run with --resume to measure them"
        )
    page.write(page.tables(jobs), page.PAGE)
    page.FIGURE.write_text(page.figure(jobs[page.GROWTH].rows), encoding="utf-8")


def main() -> None:
    """Measure, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="one more model, a folder or a GGUF file")
    parser.add_argument("--only", nargs="+", default=[], help="measure only these, again")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--quick", action="store_true", help="smallest sizes; leaves the page")
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--script", help=argparse.SUPPRESS)
    options = parser.parse_args()
    # Last, so that packages of the environment take precedence.
    sys.path.append(str(PEERS))
    usual = "bench-gpu.jsonl" if torch.cuda.is_available() else "bench.jsonl"
    name = "bench-quick.jsonl" if options.quick else usual
    results = options.results or ROOT / "build" / name
    if options.script:
        measure(Work(options.script, options.model), results, quick=options.quick)
        return
    work = planned(options.model, options.only)
    if not options.resume and not options.only:
        results.unlink(missing_ok=True)
    done = {name for name, job in records.read(results).items() if job.seconds is not None}
    for each in work:
        if not (options.resume and each.job in done):
            print(f"\n{each.job}", flush=True)
            measure_apart(each, results, quick=options.quick)
    # An error of our code would be a row like that of a missing peer: print all of them.
    if lost := [row for job in known(results).values() for row in job.rows if "why" in row]:
        print(f"\n{len(lost)} rows were not measured:")
        show(lost)
    if options.quick:
        print("\n\n".join(page.tables(known(results)).values()))
    else:
        report(results)


if __name__ == "__main__":
    main()
