"""Pages as a reader follows them: every block runs, in order, in the folder that the tour makes.

``python tests/reader.py [PAGE ...]`` writes what the commands print into the blocks that show it.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch
from transformers import TrainingArguments

import frenet
from frenet.cli import main
from pages import CUT, FENCE, Block, block_of, blocks, commands, console

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), ROOT / "benchmarks/README.md", *ROOT.glob("docs/**/*.md")]
    # Its blocks are files of one experiment, which test_contributing runs.
    if path.name != "CONTRIBUTING.md"
)
# What is shown and cannot run.
SHOWN = {"", "json", "text", "ini", "toml"}
# Commands that are not run here, and why. Each has to be on some page.
EXEMPT = {
    r"^pip install": "installs from an index",
    r"--model frenet:gpt2": "trains a network; tests/network/test_made.py does so in a few steps",
    r"--model stories260K": "needs a model and tasks that are not in the repository",
    r"--address (ray://)?host:": "needs a cluster",
    r"^ray ": "starts a cluster, and keeps its token in the home directory",
    r"^frenet probe --model \./my-model --tasks my_tasks\.jsonl --(vectors|contrasts)": (
        "trains 100 steps; docs/how-to/scale-an-adapter.md runs it small"
    ),
    r"--budget 512": "scores 512 candidates; docs/how-to/plan-a-search.md scores 64",
    r"^frenet demo$": "takes minutes; the preset smoke of the same runs elsewhere",
    r"^frenet report docs/results": (
        "needs the stored runs; tests/test_made_pages.py compares its output"
    ),
    r"--preset demo": "takes minutes; the preset smoke of the same runs elsewhere",
    r"^frenet reproduce --preset cpu": "takes hours; tests/test_cli_reproduce.py runs it small",
}


def exempt(command: str) -> bool:
    """Whether a command is not run here."""
    return any(re.search(pattern, joined(command)) for pattern in EXEMPT)


def joined(command: str) -> str:
    """A command of several lines as one, without its comment."""
    return re.sub(r"\\\n\s*", "", command).partition("  #")[0].strip()


@contextlib.contextmanager
def toured(folder: Path) -> Iterator[None]:
    """In a folder, with the files of a reader who has followed the tour.

    One processor, so that nothing waits for worker processes; networks are kept between pages.
    """
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    cache = {"FRENET_CACHE": str(folder.with_name(f"{folder.name}-cache"))}
    os.sched_setaffinity(0, {min(before)})
    torch.set_num_threads(1)
    try:
        with mock.patch.dict(os.environ, cache), contextlib.chdir(folder):
            run_tour()
            yield
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, before)


def run_tour() -> None:
    """Write the files that the other pages start from as the tour does."""
    page = "docs/tour.md"
    names: dict[str, Any] = {}
    for block in blocks((ROOT / page).read_text(encoding="utf-8")):
        if block.language == "python":
            run_python(block, page, names)


def training() -> dict[str, Any]:
    """What pages about a training of the reader's own take for granted."""
    loaded = frenet.load("my-model")
    tasks = frenet.text_tasks("my_tasks.jsonl", loaded.tokenizer, max_length=64)
    args = TrainingArguments(
        "checkpoints", max_steps=12, report_to=[], save_strategy="no", use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    return {
        "model": frenet.attach_lora(loaded.model, rank=2),
        "args": args,
        "data": [padded(row.encoded) for row in tasks["reverse"].examples["train"]],
        "probes": list(tasks.values()),
        "tokenizer": loaded.tokenizer,
    }


def padded(row: Any, width: int = 32) -> dict[str, list[int]]:
    """One example as Trainer takes it, of the same width for all."""
    ids, rest = row.context + row.target, width - len(row.context + row.target)
    return {
        "input_ids": ids + [0] * rest,
        "attention_mask": [1] * len(ids) + [0] * rest,
        "labels": [-100] * len(row.context) + row.target + [-100] * rest,
    }


# Names that a page takes from its reader.
GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "docs/trainer.md": training,
    "docs/how-to/watch-a-training-loop.md": training,
}


def followed(page: str) -> str:
    """Run every block of a page in the current folder; the page with what commands print now."""
    names: dict[str, Any] = GIVEN[page]() if page in GIVEN else {}

    def again(found: re.Match[str]) -> str:
        block = block_of(found)
        if block.language == "console":
            return console((run, printed(run, was)) for run, was in commands(block.text))
        if block.language == "python":
            run_python(block, page, names)
        else:
            assert block.language in SHOWN, f"{page}:{block.line}: say how {block.language} runs"
        return found[0]

    return FENCE.sub(again, (ROOT / page).read_text(encoding="utf-8"))


def run_python(block: Block, page: str, names: dict[str, Any]) -> None:
    """Run a block in the names of its page; a traceback shows the line of the page."""
    code = "\n" * (block.line - 1) + block.text
    exec(compile(code, str(ROOT / page), "exec"), names)


def printed(command: str, shown: list[str]) -> list[str]:
    """Run a command; what it prints as far as the page shows it, or what is shown if exempt."""
    words = shlex.split(joined(command))
    if exempt(command):
        return shown
    if words[0] != "frenet":
        assert subprocess.run(["bash", "-c", command], check=False).returncode == 0, command
        return shown
    lines = output(words[1:])
    if shown and shown[-1] == CUT and len(lines) >= len(shown):
        return [*lines[: len(shown) - 1], CUT]
    return lines if shown else []


class Terminal(io.StringIO):
    """A terminal of 80 columns without colours, which remembers what it shows."""

    SETTINGS: ClassVar = {"TERM": "dumb", "COLUMNS": "80"}

    def isatty(self) -> bool:
        """So that lines are wrapped as for a person."""
        return True


def output(words: list[str]) -> list[str]:
    """The lines that a command of frenet prints on a terminal; it must succeed."""
    with mock.patch.dict(os.environ, Terminal.SETTINGS), redirect_stdout(Terminal()) as said:
        assert main(words) == 0, words
    return [line.rstrip() for line in said.getvalue().rstrip().splitlines()]


def write(pages: list[str]) -> None:
    """Write what the commands of pages print."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "reader")
        folder.mkdir()
        with toured(folder):
            for page in pages:
                here = Path(parent, "page")
                shutil.copytree(folder, here)
                with contextlib.chdir(here):
                    (ROOT / page).write_text(followed(page), encoding="utf-8")
                shutil.rmtree(here)


if __name__ == "__main__":
    write(sys.argv[1:] or PAGES)
