"""Make docs/pilot.md: the pilot runs under the rules of version 0.1.0 and under the present ones.

``docs/pilot.json`` has the verdicts of version 0.1.0 on the same rows, as that version gave them.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from frenet.experiments import EXPERIMENTS
from frenet.experiments.experiment import Finding
from frenet.report.markup import markdown
from frenet.report.numbers import estimate
from frenet.runs import decide_claims, find_runs, read_run
from frenet.runs.header import PACKED

ROOT = Path(__file__).resolve().parents[1]
PAGE, RUNS = ROOT / "docs" / "pilot.md", ROOT / "docs" / "results"
# Claims that were one claim in version 0.1.0.
SPLIT = {"C4a": "C4", "C4b": "C4", "C5a": "C5", "C5b": "C5"}
INTRO = """# The pilot, judged by old and new rules

`make pages` generates this page from stored runs. These are seeds 0 to 2, by which the present rules were
chosen; they are a pilot and confirm nothing. The same rows are judged twice: by the rules of version 0.1.0,
and by the [present rules](definitions.md#what-decides-a-claim). The rows lack numbers that some premises need;
such a claim is not testable, and the last column says what its criteria alone would decide.
"""


def page() -> str:
    """The page: one table for each network."""
    tables: dict[str, list[str]] = {}
    for path in find_runs([RUNS]):
        run = read_run(path)
        name = path.name.removesuffix(PACKED)
        network = name.removesuffix(f"-{run.experiment}")
        old = json.loads((ROOT / "docs" / "pilot.json").read_text("utf-8")).get(name, {})
        findings = [finding for _, finding in decide_claims(EXPERIMENTS[run.experiment], run)]
        tables.setdefault(network, []).extend(_rows(findings, old))
    lines = [INTRO]
    for network, rows in tables.items():
        lines += [
            f"## {network}",
            "",
            "| claim | measured | 0.1.0 | now | why |",
            "|---|---|---|---|---|",
        ]
        lines += [*sorted(rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def _rows(findings: list[Finding], old: dict[str, dict[str, str]]) -> Iterator[str]:
    for finding in findings:
        before = old.get(SPLIT.get(finding.claim, finding.claim))
        number = "nothing" if finding.estimate is None else estimate(finding.estimate)
        words = (
            finding.name,
            number,
            before["verdict"] if before else "not in it",
            str(finding.decision),
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
