"""Make docs/pilot.md: the pilot runs under the rules of version 0.1.0 and under the present ones.

The pilot is in ``docs/results`` until a declared run of the same network replaces it there, and
then in ``docs/pilot``. ``docs/pilot.json`` has the verdicts of version 0.1.0 on the same rows, as
that version gave them.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from frenet.experiments import EXPERIMENTS
from frenet.experiments.experiment import Finding
from frenet.report.markup import markdown
from frenet.report.numbers import estimate
from frenet.runs import Run, decide_claims, find_runs, read_run
from frenet.runs.header import PACKED

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS, EARLIER = (ROOT / "docs" / name for name in ("pilot.md", "results", "pilot"))
# Claims that were one claim in version 0.1.0.
SPLIT = {"C4a": "C4", "C4b": "C4", "C5a": "C5", "C5b": "C5"}
INTRO = """# The pilot, judged by old and new rules

`make pages` generates this page from stored runs. These are seeds 0 to 2, by which the present
rules were chosen; they are a pilot and confirm nothing. The same rows are judged twice: by those
of version 0.1.0, and by the [present ones](definitions.md#what-decides-a-claim). The rows lack
numbers that some premises need; such a claim is not testable, and the last column says what its
criteria alone would decide. *Declared* is the word of seeds 3 to 7, which were declared before they
were run (`docs/registered/cpu.toml`); their numbers are in [Results](results/index.md).
"""


def stored(*, declared: bool) -> Iterator[tuple[str, Run]]:
    """The stored runs that were declared beforehand, or those of the pilot, by name of the file."""
    folders = [folder for folder in (EARLIER, RESULTS) if folder.is_dir()]
    for path in sorted(find_runs(folders), key=lambda path: path.name):
        run = read_run(path)
        if (run.manifest.get("declared") is not None) == declared:
            yield path.name.removesuffix(PACKED), run


def page() -> str:
    """The page: one table for each network."""
    tables: dict[str, list[str]] = {}
    words = {
        (name, finding.name): str(finding.decision)
        for name, run in stored(declared=True)
        for _, finding in decide_claims(EXPERIMENTS[run.experiment], run)
    }
    for name, run in stored(declared=False):
        network = name.removesuffix(f"-{run.experiment}")
        old = json.loads((ROOT / "docs" / "pilot.json").read_text("utf-8")).get(name, {})
        findings = [finding for _, finding in decide_claims(EXPERIMENTS[run.experiment], run)]
        later = {f.name: words.get((name, f.name), "not run yet") for f in findings}
        tables.setdefault(network, []).extend(_rows(findings, old, later))
    lines = [INTRO]
    for network, rows in tables.items():
        lines += [
            f"## {network}",
            "",
            "| claim | measured | 0.1.0 | now | declared | why |",
            "|---|---|---|---|---|---|",
        ]
        lines += [*sorted(rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def _rows(
    findings: list[Finding], old: dict[str, dict[str, str]], later: dict[str, str]
) -> Iterator[str]:
    for finding in findings:
        before = old.get(SPLIT.get(finding.claim, finding.claim))
        number = "nothing" if finding.estimate is None else estimate(finding.estimate)
        words = (
            finding.name,
            number,
            before["verdict"] if before else "not in it",
            str(finding.decision),
            later[finding.name],
            finding.why,
        )
        yield f"| {' | '.join(map(markdown, words))} |"


def main(arguments: list[str]) -> None:
    """Write the page, or with ``--check`` fail if it is not up to date."""
    text = page()
    if "--check" in arguments:
        if PAGE.read_text("utf-8") != text:
            sys.exit(f"{PAGE.name} is not what the stored runs say; run make pages")
        return
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
