"""Every block of every page runs as a reader would run it, and the site can be built."""

import contextlib
import functools
import io
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from transformers import TrainingArguments

import frenet
from frenet.cli import main
from frenet.cli.commands import COMMANDS
from frenet.cli.steer import COMMANDS as STEER
from frenet.experiments import EXPERIMENTS
from pages import Block, blocks, commands

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
    line = joined(command).partition("  #")[0].strip()
    return any(re.search(pattern, line) for pattern in EXEMPT)


def joined(command: str) -> str:
    """A command of several lines as one."""
    return re.sub(r"\\\n\s*", "", command)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Iterator[Path]:
    """The folder of a reader who has followed the tour.

    One processor, so that nothing waits for worker processes; networks are kept between pages.
    """
    folder = tmp_path_factory.mktemp("reader")
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    patch = pytest.MonkeyPatch()
    patch.setenv("FRENET_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.chdir(folder)
    os.sched_setaffinity(0, {min(before)})
    torch.set_num_threads(1)
    try:
        run_tour()
        yield folder
    finally:
        patch.undo()
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


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs(page, prepared, tmp_path, monkeypatch):
    found = blocks((ROOT / page).read_text(encoding="utf-8"))
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = GIVEN[page]() if page in GIVEN else {}
    for block in found:
        if block.language == "python":
            run_python(block, page, names)
        elif block.language == "console":
            for command in commands(block.text):
                run_command(command)
        else:
            assert block.language in SHOWN, f"{page}:{block.line}: say how {block.language} runs"


def run_python(block: Block, page: str, names: dict[str, Any]) -> None:
    """Run a block in the names of its page; a traceback shows the line of the page."""
    code = "\n" * (block.line - 1) + block.text
    exec(compile(code, str(ROOT / page), "exec"), names)


def run_command(command: str) -> None:
    """Run a command that is not exempt; it must succeed."""
    words = shlex.split(joined(command), comments=True)
    if exempt(command):
        if words[0] == "frenet":
            require_options(words)
    elif words[0] == "frenet":
        assert main(words[1:]) == 0, command
    else:
        assert subprocess.run(["bash", "-c", command], check=False).returncode == 0, command


def require_options(words: list[str]) -> None:
    """The options of a command that is not run exist."""
    name = words[1:3] if words[1] in ("run", "steer") else words[1:2]
    options = {word for word in words if word.startswith("--")}
    assert options <= options_of(*name), words


@functools.cache
def options_of(*name: str) -> set[str]:
    """The options in the help of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main([*name, "--help"]) == 0
    return set(re.findall(r"--[\w-]+", said.getvalue()))


def test_every_example_of_every_help_is_accepted(monkeypatch, capsys):
    """As far as its options are read: the files that it names are not there."""
    asked = [[], *([name] for name in COMMANDS), *(["steer", name] for name in STEER)]
    for words in (*asked, *(["run", name] for name in EXPERIMENTS)):
        assert main([*words, "--help"]) == 0
    shown = re.findall(r"^ +(frenet .+)$", capsys.readouterr().out, re.MULTILINE)
    assert len(shown) >= 6
    read, parse = [], tyro.cli

    def only_parse(*args, **how):
        parse(*args, **how)
        read.append(how["prog"])
        raise SystemExit(0)

    monkeypatch.setattr(tyro, "cli", only_parse)
    for command in shown:
        assert main(shlex.split(command)[1:]) == 0, command
    assert all(c.startswith(prog) for c, prog in zip(shown, read, strict=True))
    assert main(["run", "recovery-basis", "--k", "20"]) != 0


def test_every_exemption_is_needed():
    lines = [
        command
        for page in PAGES
        for block in blocks((ROOT / page).read_text(encoding="utf-8"))
        if block.language == "console"
        for command in commands(block.text)
    ]
    lines = [joined(line).partition("  #")[0].strip() for line in lines]
    assert [p for p in EXEMPT if not any(re.search(p, line) for line in lines)] == []


def test_commands_with_here_documents_and_continued_lines_are_found():
    text = "$ cat > f <<'END'\na\nEND\n$ frenet list \\\n  --json\noutput\n"
    assert list(commands(text)) == ["cat > f <<'END'\na\nEND", "frenet list \\\n  --json"]
    assert blocks("a\n```python\nx = 1\n```\n") == [Block("python", "x = 1\n", 3)]
