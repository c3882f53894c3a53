"""Fill the marked parts of README.md and of the documentation, from stored runs and commands.

``<!-- made: WHAT -->`` begins such a part, and ``<!-- end -->`` ends it. WHAT is ``$ frenet ...``,
a command whose output is shown as it is printed at 80 columns, or the name of a function below.
"""

import contextlib
import glob
import io
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path
from unittest import mock

from frenet.cli import main
from frenet.experiments import EXPERIMENTS
from frenet.experiments.reproduce import short_name
from frenet.report import summary
from frenet.report.claims import Entry
from frenet.report.markup import markdown
from frenet.runs import decide_claims, find_runs, read_run

ROOT = Path(__file__).resolve().parents[1]
PART = re.compile(r"(<!-- made: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
MAP = "docs/results/stories260K-direction-scale-map.svg"


def pages() -> list[Path]:
    """The files with marked parts."""
    every = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    return [path for path in every if PART.search(path.read_text("utf-8"))]


def made(page: Path) -> str:
    """The text of a page with its marked parts made again."""
    text = page.read_text("utf-8")
    return PART.sub(lambda found: f"{found[1]}{_part(found[2])}\n{found[3]}", text)


def _part(what: str) -> str:
    return output(what[2:]) if what.startswith("$ ") else PARTS[what]()


def output(command: str) -> str:
    """A command with what it prints, in an empty folder that has only ``docs``."""
    words = [part for word in shlex.split(command)[1:] for part in _expanded(word)]
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, COLUMNS="80"):
        Path(folder, "docs").symlink_to(ROOT / "docs")
        with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
            if main(words):
                sys.exit(f"{command} failed")
    lines = "\n".join(line.rstrip() for line in printed.getvalue().rstrip().splitlines())
    return f"```console\n$ {command}\n{lines}\n```"


def _expanded(word: str) -> list[str]:
    """What a shell makes of a word."""
    return sorted(glob.glob(word, root_dir=ROOT)) if "*" in word else [word]


def findings() -> str:
    """What the stored runs say about the first claims, a line for each."""
    decided = [
        Entry(claim, finding, short_name(str(run.config["model"])), None)
        for run in map(read_run, find_runs([ROOT / "docs/results"]))
        for claim, finding in decide_claims(EXPERIMENTS[run.experiment], run)
    ]
    lines = (
        summary.markdown(entries, lambda one: markdown(one.run))
        for entries in summary.chosen(decided)
    )
    return "\n".join(f"- {line}" for line in lines)


def picture() -> str:
    """How far and for how long directions of a small language model can be followed."""
    return f"![How far and for how long directions of stories260K can be followed]({MAP})"


PARTS = {"findings": findings, "map": picture}


def run(arguments: list[str]) -> None:
    """Write the pages, or with ``--check`` fail if one is not up to date."""
    for page in pages():
        text = made(page)
        if "--check" not in arguments:
            page.write_text(text, encoding="utf-8")
        elif text != page.read_text("utf-8"):
            sys.exit(f"{page.name} is not what the stored runs say; run make pages")


if __name__ == "__main__":
    run(sys.argv[1:])
