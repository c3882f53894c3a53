"""Run folders in, one HTML file out, and the same figures and tables as files.

The page asks for nothing: script, style, data and fallback pictures are inside it, and its
Content-Security-Policy forbids any request and any script but the two whose hashes it lists. Vega
evaluates its expressions by an interpreter (``ast: true``), so 'unsafe-eval' is not needed.
"""

import base64
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from frenet._version import __version__
from frenet.experiments.experiment import Experiment
from frenet.report import answers, figures
from frenet.report.claims import Decision, answer, claims_table
from frenet.report.markup import Markup, join, tag, user_text
from frenet.report.sections import Section, section
from frenet.report.tables import csv_bytes, tables_of
from frenet.runs import Run, decide_claims

TITLE = "How far, and for how long, can a direction in a neural network be trusted?"


def write_report(
    runs: Sequence[Run],
    out: Path | str,
    *,
    experiments: Mapping[str, Experiment] | None = None,
    static: bool = True,
) -> Path:
    """One HTML file that says what the runs found; written whole or not at all.

    Args:
        runs: finished or partial runs; the page shows them in the order of their claims, and
            those without a claim behind them, in the order given.
        out: the file; its folder is made, an older file of that name is replaced.
        experiments: name -> experiment; the package's own unless given.
        static: add a picture of every figure for readers without scripts.

    Returns:
        The path of the file.

    Raises:
        ValueError: no run, or a run of an experiment that is not known.
        IsADirectoryError: ``out`` is a folder.
    """
    out = Path(out)
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; name a file, such as {out / 'report.html'}")
    sections = _sections(runs, experiments)
    decisions = [
        Decision(claim, finding, part.label, part.anchor(claim.figure))
        for part in sections
        for claim, finding in decide_claims(part.experiment, part.run)
    ]
    networks = list(dict.fromkeys(part.label for part in sections))
    decisions.sort(key=lambda decision: (networks.index(decision.run), decision.claim.id))
    # Where no claim opens the page, the answers do.
    said = {part.id: answers.answers(part) for part in sections if decisions}
    bodies = join(section(part, said.get(part.id), static=static) for part in sections)
    page = _document(_opening(sections, decisions), bodies)
    return _write(out, page.encode())


def export(
    runs: Sequence[Run],
    out_dir: Path,
    *,
    experiments: Mapping[str, Experiment] | None = None,
) -> list[Path]:
    """Every figure as SVG and PNG, every table as CSV, under names that stay the same.

    Args:
        runs: finished or partial runs; figures whose table has no rows are left out.
        out_dir: the folder, made where it is missing.
        experiments: name -> experiment; the package's own unless given.

    Returns:
        The files written: ``EXPERIMENT-FIGURE.svg``, ``.png`` and ``EXPERIMENT-TABLE.csv``, with
        a number behind the experiment's name from its second run on.

    Raises:
        ValueError: no run, or a run of an experiment that is not known.
    """
    written = []
    for part in _sections(runs, experiments):
        for figure in part.experiment.figures:
            rows = figures.rows_of(figure, part.run.rows)
            if not rows or figures.blank(drawn := figures.draw(figure, rows)):
                continue
            spec = figures.for_file(drawn, figure)
            name = Path(out_dir) / f"{part.id}-{figure.id}"
            written.append(_write(name.with_name(f"{name.name}.svg"), figures.svg(spec).encode()))
            written.append(_write(name.with_name(f"{name.name}.png"), figures.png(spec)))
        for table, (columns, rows) in tables_of(part.experiment, part.run.rows).items():
            text = csv_bytes(columns, rows)
            written.append(_write(Path(out_dir) / f"{part.id}-{_slug(table)}.csv", text))
    return written


def _sections(runs: Sequence[Run], experiments: Mapping[str, Experiment] | None) -> list[Section]:
    if not runs:
        raise ValueError("there is no run to report; give at least one run folder")
    if experiments is None:
        from frenet.experiments import described

        experiments = described()
    parts: list[Section] = []
    for run in runs:
        if run.experiment not in experiments:
            known = ", ".join(sorted(experiments))
            raise ValueError(f"no experiment is called {run.experiment!r}; known are {known}")
        before = sum(part.run.experiment == run.experiment for part in parts)
        name = _slug(run.experiment) + (f"-{before + 1}" if before else "")
        label = _network(run)
        if any((part.run.experiment, part.label) == (run.experiment, label) for part in parts):
            label = f"{label} ({run.path.name})"
        parts.append(Section(name, label, run, experiments[run.experiment]))
    # In the claims' order, which is the paper's; runs without a claim follow as they were given.
    return sorted(parts, key=lambda part: [c.id for c in part.experiment.claims] or ["~"])


def _network(run: Run) -> str:
    model = str(run.config.get("model", ""))
    return {"synthetic": "the synthetic transformer"}.get(model, model)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") or "run"


def _opening(sections: Sequence[Section], decisions: Sequence[Decision]) -> Markup:
    seeds = {row["seed"] for part in sections for row in part.run.rows if "seed" in row}
    facts = [f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}"] if seeds else []
    facts += [f"{sum(len(part.run.rows) for part in sections):,} rows", f"frenet {__version__}"]
    failed = sum(len(part.run.failures) for part in sections)
    facts += [f"{failed} failed cell{'' if failed == 1 else 's'}"] if failed else []
    if any(part.run.manifest.get("complete") is False for part in sections):
        facts.append("not finished")
    links = [tag("a", part.id, href=f"#{part.id}") for part in sections]
    lead = tag("p", user_text(answer(decisions)), class_="answer") if decisions else ""
    found = claims_table(decisions) if decisions else join(answers.opening(sections))
    return join(
        [
            tag("p", "frenet report", class_="eyebrow"),
            tag("h1", TITLE),
            lead,
            tag("p", " · ".join(facts), class_="facts"),
            tag("section", tag("h2", "What was found", class_="hidden"), found, id="claims"),
            tag("nav", tag("span", "Go to"), *links, aria_label="Experiments"),
        ]
    )


def _document(opening: Markup, sections: Markup) -> Markup:
    scripts = [figures.bundle(), _asset("page.js")]
    style = _asset("page.css")
    hashes = " ".join(_hash(script) for script in scripts)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", "frenet report"),
        tag("style", Markup(style)),
    )
    body = tag(
        "body",
        tag("a", "Skip to what was found", href="#claims", class_="skip"),
        tag("main", tag("header", opening, class_="opening"), sections),
        *(tag("script", Markup(script)) for script in scripts),
    )
    return Markup(f"<!doctype html>\n{tag('html', head, body, lang='en')}\n")


def _asset(name: str) -> str:
    text = resources.files("frenet.report").joinpath(name).read_text("utf-8")
    # A browser hashes what it parsed, in which every line ends with LF.
    return text.replace("\r\n", "\n")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
