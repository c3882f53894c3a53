"""What a command costs before it does anything: processor time of short commands.

    python benchmarks/bench_startup.py [--repeats 5]

Each command runs in a process of its own, in turns with a Python that imports torch, as most
commands must. The ratio is the processor time of the command over that of this import.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from timing import Row, ratios, show, times

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
FRENET = (sys.executable, "-m", "frenet")
# Most seconds of processor time before the first word.
SHORT = 0.5


def spent(*command: str) -> float:
    """Seconds of processor time of a command, of all its threads and children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(repeats: int = 5) -> Iterator[Row]:
    """The commands that people wait for most often."""
    with tempfile.TemporaryDirectory() as folder:
        stored = next(RESULTS.glob("synthetic-gradient-rank*.gz"))
        page = str(Path(folder) / "report.html")
        commands: dict[str, tuple[str, ...]] = {
            "frenet --help": (*FRENET, "--help"),
            "frenet list": (*FRENET, "list"),
            "frenet report of a finished run": (*FRENET, "report", str(stored), "--out", page),
        }
        imported = (sys.executable, "-c", "import torch")
        for name, command in commands.items():
            for warm in (command, imported):
                spent(*warm)
            pairs = [(spent(*command), spent(*imported)) for _ in range(repeats)]
            own, other = (list(column) for column in zip(*pairs, strict=True))
            met = "met" if statistics.median(own) <= SHORT else "missed"
            aim = "" if "report" in name else f"; aim at most {SHORT} s, {met}"
            yield {
                "name": f"processor time of {name} against import torch",
                "model": "-",
                **ratios(own, other),
                "aim": "",
                "detail": f"{times(own, other)}{aim}; median of {repeats}",
            }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    show(run(parser.parse_args().repeats))
