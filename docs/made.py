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
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from frenet.cli import main
from frenet.cli.findings import OPEN
from frenet.experiments import EXPERIMENTS
from frenet.experiments.experiment import VERDICTS, Claim, Finding
from frenet.experiments.reproduce import short_name
from frenet.report.claims import in_words
from frenet.report.markup import markdown
from frenet.report.numbers import join_words
from frenet.runs import decide_claims, find_runs, read_run

ROOT = Path(__file__).resolve().parents[1]
PART = re.compile(r"(<!-- made: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
# The claims that the README names, each with what a reader may want to know it for.
FINDINGS = ("C2", "C4a", "C3", "C1", "C5a")
MAP = "docs/results/stories260K-direction-scale-map.svg"
Decided = dict[str, tuple[Claim, Finding]]


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
    decided = dict(_by_network())
    return "\n".join(_finding(name, decided) for name in FINDINGS)


def _by_network() -> Iterator[tuple[str, Decided]]:
    """By the name of the network, the claims with their findings by name."""
    every: dict[str, Decided] = {}
    for path in find_runs([ROOT / "docs/results"]):
        run = read_run(path)
        network = short_name(str(run.config["model"]))
        for claim, finding in decide_claims(EXPERIMENTS[run.experiment], run):
            every.setdefault(network, {})[finding.name] = claim, finding
    yield from every.items()


def _finding(name: str, decided: dict[str, Decided]) -> str:
    """A claim, by verdict the networks that have it, and the numbers of those that decide it."""
    of_claim = {network: known[name] for network, known in decided.items() if name in known}
    words: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    for network, (claim, finding) in of_claim.items():
        numbers = "" if finding.verdict in OPEN else f" ({in_words(claim, finding).rstrip('.')})"
        words[finding.verdict].append(markdown(f"{network}{numbers}"))
    verdicts = "; ".join(f"*{word}* on {join_words(some)}" for word, some in words.items() if some)
    return f"- **{claim.statement}** ({name}): {verdicts}."


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
