"""All benchmarks, one table: `make bench` writes it into benchmarks/README.md.

Every row is a ratio measured side by side in one run. The machine and the versions stand above the
table; numbers of different runs are not comparable, their ratios are.
"""

import argparse
import importlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PAGE = Path(__file__).parent / "README.md"
START, END = "<!-- table -->", "<!-- end of table -->"
PACKAGES = ("torch", "transformers", "peft", "scikit-learn", "numpy")


def environment() -> str:
    """The machine and the versions, in one line."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"Python {platform.python_version()}, {versions}; {platform.machine()}, "
        f"{torch.get_num_threads()} threads."
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| what | measured | aim | detail |", "|---|---|---|---|"]
    for row in rows:
        found = row["ratio"]
        figure = f"{found:.3g}"
        aim = row["aim"] or "-"
        cells = (
            str(cell).replace("|", "\\|") for cell in (row["name"], figure, aim, row["detail"])
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmarks and rewrite the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="one more model, a folder or a GGUF file")
    chosen = parser.parse_args().model
    rows: list[dict[str, Any]] = list(importlib.import_module("bench_linalg").run())
    for name in ("bench_gradients", "bench_trajectory", "bench_search", "bench_steering"):
        module = importlib.import_module(name)
        rows += module.run()
        if chosen:
            rows += module.run(chosen, repeats=3)
    rows += importlib.import_module("bench_plan").run()
    rows += importlib.import_module("bench_task_vectors").run()
    rows += importlib.import_module("bench_trainer").run()
    text = f"{START}\n{environment()}\n\n{table(rows)}\n{END}"
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(START)[0], page.split(END)[1]
    PAGE.write_text(before + text + after, encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
