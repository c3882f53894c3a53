"""Every block of every page runs as a reader would run it, and prints what the page shows."""

import contextlib
import functools
import io
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tyro

import reader
from frenet.cli import main
from frenet.cli.commands import COMMANDS
from frenet.cli.steer import COMMANDS as STEER
from frenet.experiments import EXPERIMENTS
from pages import CUT, Block, blocks, commands, console
from reader import EXEMPT, PAGES, ROOT, exempt, followed, joined, toured

# A time, in units that depend on how long it is; a number.
NUMBER = re.compile(
    r"(?:\d+ h )?(?:\d+ min )?\d[\d.]* s\b|\d+ h \d+ min\b|[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
)
# The lines of a table, as long as its widest number.
FRAME = re.compile("[\u2500-\u257f]+")
# Characters of code beside both columns of a page in a window of 1280 pixels (site.css).
WIDEST = 88


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Iterator[Path]:
    """The folder of a reader who has followed the tour."""
    folder = tmp_path_factory.mktemp("reader")
    with toured(folder):
        yield folder


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs_and_prints_what_is_shown(page, prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    made = followed(page)
    assert words(made) == words((ROOT / page).read_text("utf-8")), "run make outputs"


def words(page: str) -> list[str]:
    """The words of a page without its numbers, whose last digits depend on the processor."""
    return NUMBER.sub("#", FRAME.sub(" ", page)).split()


def test_only_a_number_may_differ():
    assert words("gain 0.0796 [-0.067, 9e-05]") == words("gain 0.08\n[0.1, 0.2]")
    assert words("┏━━━━━━━┓\n┃ 0.125 ┃") == words("┏━━━┓\n┃ 1 ┃")
    assert words("7.2 s, 2 steps") == words("1 min 5 s, 9 steps") == words("2 h 1 min, 0 steps")
    assert words("gain 0.0796") != words("loss 0.0796")


def test_the_options_of_commands_that_are_not_run_exist():
    for command in filter(exempt, every_command()):
        found = shlex.split(joined(command))
        if found[0] == "frenet":
            name = found[1:3] if found[1] in ("run", "steer") else found[1:2]
            options = {word for word in found if word.startswith("--")}
            assert options <= options_of(*name), command


def every_command() -> list[str]:
    """The commands of all pages."""
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    consoles = [b.text for text in texts for b in blocks(text) if b.language == "console"]
    return [command for text in consoles for command, _ in commands(text)]


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


def test_code_is_as_wide_as_a_page_shows():
    """The commands on the pages of results are those that were run, as long as they are."""
    pages = [page for page in PAGES if not page.startswith("docs/results/")]
    wide = [
        f"{page}:{block.line}: {line}"
        for page in pages
        for block in blocks((ROOT / page).read_text(encoding="utf-8"))
        for line in block.text.splitlines()
        if len(line) > WIDEST
    ]
    assert wide == []


def test_every_exemption_is_needed():
    lines = [joined(command) for command in every_command()]
    assert [p for p in EXEMPT if not any(re.search(p, line) for line in lines)] == []


def test_commands_with_here_documents_continued_lines_and_outputs_are_found():
    text = "$ cat > f <<'END'\na\nEND\n$ frenet list \\\n  --json\noutput\n\nmore\n"
    found = list(commands(text))
    assert found == [
        ("cat > f <<'END'\na\nEND", []),
        ("frenet list \\\n  --json", ["output", "", "more"]),
    ]
    assert console(found) == f"```console\n{text}```"
    assert blocks("a\n```python\nx = 1\n```\n") == [Block("python", "x = 1\n", 3)]


def test_an_output_is_shown_as_far_as_its_block_shows_it(monkeypatch):
    monkeypatch.setattr(reader, "output", lambda words: ["a", "b", "c"])
    shown = {"whole": ["old"], "cut": ["old", CUT], "short": ["w", "x", "y", "z", CUT], "not": []}
    made = {name: reader.printed("frenet list", lines) for name, lines in shown.items()}
    whole = ["a", "b", "c"]
    assert made == {"whole": whole, "cut": ["a", CUT], "short": whole, "not": []}
    assert reader.printed("frenet demo", ["as it was"]) == ["as it was"]
