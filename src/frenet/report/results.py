"""Runs as a folder to store with code: a Markdown page, the figures of claims, the runs."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from frenet._files import write_whole
from frenet._notebook import one_line
from frenet.experiments.experiment import (
    SYNTHETIC,
    Breakdown,
    Claim,
    Figure,
    Finding,
    Rows,
    Study,
    claim_order,
)
from frenet.experiments.reproduce.registered import declared_words
from frenet.experiments.setup.networks import LEARNING, SHOWN
from frenet.report import across, figures
from frenet.report import sentences as answers
from frenet.report.claims import Entry, answer, comparison, in_words
from frenet.report.front_page import Network, decided, grouped
from frenet.report.markup import markdown
from frenet.report.numbers import estimate
from frenet.report.numbers import figure as number
from frenet.report.page import sections_of
from frenet.report.provenance import command_line, counted
from frenet.report.sections import Section
from frenet.runs import Run, decide_claims, pack_run
from frenet.runs.header import PACKED
from frenet.runs.machine import system_of

# What moves the folder, for messages.
MOVES = "--results"


def write_results(
    runs: Sequence[Run],
    out: Path,
    *,
    experiments: Mapping[str, Study] | None = None,
) -> Path:
    """Write ``index.md``, SVGs of the figures of claims and of the first screen, and the runs.

    Every number of the page comes from a row of a run, in ``NETWORK-EXPERIMENT.run.jsonl.gz``.
    :func:`frenet.runs.read_run` and ``frenet report`` read these files like run folders. The same
    finished runs in the same order give the same files, byte for byte.

    Args:
        runs: finished or partial runs.
        out: the folder; files of the same names are replaced.
        experiments: name -> experiment; default: those of frenet.

    Returns:
        The path of the page.

    Raises:
        ValueError: no run, or a run of an unknown experiment.
    """
    networks = grouped(sections_of(runs, experiments, with_network=True))
    decisions = [decision for network in networks for decision in decided(network)]
    lines = ["# Results", ""]
    if decisions:
        lines += [markdown(answer(decisions)), "", *_matrix(networks, decisions), ""]
    if together := across.pools(decisions):
        lines += _together(together, out)
    for network in networks:
        lines += _network(network, out)
    lines += _made(networks)
    return write_whole(out / "index.md", ("\n".join(lines).rstrip() + "\n").encode(), moves=MOVES)


def _matrix(networks: Sequence[Network], decisions: Sequence[Entry]) -> Iterator[str]:
    """Claims in rows, networks in columns."""
    by_cell = {(d.finding.name, d.run): d for d in decisions}
    claims = {d.finding.name: d.claim for d in decisions}
    yield _row("claim", "in the paper", *(markdown(network.label) for network in networks))
    yield _row(*["---"] * (len(networks) + 2))
    for name in sorted(claims, key=claim_order):
        cells = []
        for network in networks:
            decision = by_cell.get((name, network.label))
            cells.append("not measured" if decision is None else _verdict(decision))
        claim = claims[name]
        yield _row(f"**{name}** {markdown(claim.statement)}", markdown(claim.paper), *cells)


def _verdict(decision: Entry) -> str:
    finding = decision.finding
    if finding.estimate is None:
        return f"**{finding.decision}**: nothing was measured"
    number = f"{estimate(finding.estimate)}; {comparison(finding)}"
    return f"**{finding.decision}**: {markdown(number)}"


def _together(found: Sequence[across.Pool], out: Path) -> Iterator[str]:
    """The lines about all networks; this also writes their figures."""
    yield from (f"## {across.TITLE}", "", across.EXPLAINED, "")
    yield _row(*across.HEADINGS)
    yield _row(*["---"] * len(across.HEADINGS))
    for one in found:
        name = f"**{one.name}** {markdown(one.claim.statement)}"
        yield _row(name, *map(markdown, across.cells(one)))
    yield ""
    for one in found:
        figure, rows = across.forest(one)
        yield from _picture(figure, rows, out / f"{one.id}.svg")


def _network(network: Network, out: Path) -> Iterator[str]:
    """The lines about one network; this also writes its files."""
    yield from (f"## {markdown(network.label)}", "", *_declared(network))
    findings = [
        (claim, finding, _shown_settings(part))
        for part in network.parts
        for claim, finding in decide_claims(part.experiment, part.run)
    ]
    findings.sort(key=lambda one: claim_order(one[1].name))
    if missing := [line for part in network.parts for line in _missing(part.run)]:
        yield from ("Some cells are missing; verdicts and figures use the others:", "")
        yield from (*missing, "")
    for claim, finding, shown_settings in findings:
        yield from _claim(claim, finding, shown_settings)
    for part in network.parts:
        yield from (*_sentences(part), "")
        mine = [one for one in findings if one[0] in part.experiment.claims]
        found = {claim.figure: in_words(claim, finding) for claim, finding, _ in reversed(mine)}
        yield from _figures(part, out, found)
        file = f"{part.id}{PACKED}"
        # A run that is read from there stays as it was packed.
        if part.stored.path.resolve() != (out / file).resolve():
            write_whole(out / file, pack_run(part.stored), moves=MOVES)
        yield from (f"[Rows of `{part.run.experiment}`]({file})", "")
    for _, finding, _ in findings:
        for table in finding.breakdowns:
            yield from (f"### {markdown(f'{finding.name} on {network.label}: {table.title}')}", "")
            yield from _breakdown(table)


def _declared(network: Network) -> Iterator[str]:
    """Whether the runs with claims were declared beforehand."""
    said: dict[str, list[str]] = {}
    for part in network.parts:
        if part.experiment.claims:
            words = declared_words(part.run.manifest.get("declared"), part.experiment)
            said.setdefault(words, []).append(f"`{part.run.experiment}`")
    for words, names in said.items():
        yield f"{', '.join(names)}: {markdown(words)}" if len(said) > 1 else markdown(words)
        yield ""


def _missing(run: Run) -> Iterator[str]:
    """The cells that have not run yet or failed."""
    if run.manifest.get("complete") is False:
        yield f"- `{run.experiment}` is not finished. {markdown(counted(run.manifest))}"
    for failure in run.failures:
        why = f"{failure.get('cell')} failed: {failure.get('type')}: {failure.get('error')}"
        yield f"- `{run.experiment}`: {markdown(why)}"


def _claim(claim: Claim, finding: Finding, shown_settings: Sequence[str]) -> Iterator[str]:
    paper = claim.paper if claim.paper.startswith("not in") else f"in the paper: {claim.paper}"
    yield (
        f"**{finding.name}. {markdown(claim.statement)}: {finding.decision}.** "
        f"{markdown(paper[0].upper() + paper[1:])}."
    )
    for name, value in (
        (finding.quantity, finding.estimate),
        (finding.reference, finding.reference_estimate),
    ):
        if name:
            text = "" if value is None else f": {estimate(value)}"
            yield f"{markdown(name[:1].upper() + name[1:])}{text}."
    if shown_settings:
        yield f"Settings: {markdown('; '.join(shown_settings))}."
    why = markdown(finding.reason[:1].upper() + finding.reason[1:])
    yield f"{why}. The rule: {markdown(claim.rule)}."
    yield ""
    for line in finding.notes:
        yield f"- {markdown(line)}"
    yield ""


def _breakdown(table: Breakdown) -> Iterator[str]:
    """The parts of a number as a table."""
    names = list(table.rows[0])
    yield _row(*map(markdown, names))
    yield _row(*["---"] * len(names))
    for row in table.rows:
        yield _row(*(markdown(number(row[name], 3)) for name in names))
    yield ""


def _sentences(part: Section) -> Iterator[str]:
    """The answers of a run, if it has any: a list for each subject."""
    for subject, sentences in answers.said(part).items():
        yield f"- {markdown(subject)}"
        for which, words in sentences:
            yield f"    - {markdown(f'{which}: {words}' if which else words)}"


def _figures(part: Section, out: Path, found: Mapping[str, str]) -> Iterator[str]:
    """The figures of claims, and those of the first screen."""
    of_claims = {claim.figure for claim in part.experiment.claims}
    for figure in part.experiment.figures:
        rows = figures.rows_of(figure, part.run.rows)
        if (figure.front or figure.id in of_claims) and rows:
            path = out / f"{part.id}-{figure.id}.svg"
            yield from _picture(figure, rows, path, found.get(figure.id, ""))


def _picture(figure: Figure, rows: Rows, path: Path, found: str = "") -> Iterator[str]:
    """The lines that show a figure; this also writes its file.

    ``found``: its claim in a sentence.
    """
    if why := figures.undrawable():
        yield from (markdown(f"{figure.title}: not drawn; {why}."), "")
        return
    try:
        found = figures.headline(figure, rows, found)
        drawn = figures.draw(figure, rows)
    # Any error of a chart: the other figures and the numbers must still be readable.
    except Exception as error:
        yield from (markdown(f"{figure.title}: not drawn, {type(error).__name__}: {error}"), "")
        return
    if not figures.blank(drawn):
        still = figures.svg(figures.for_file(drawn, figure, found))
        write_whole(path, still.encode(), moves=MOVES)
        yield from (f"![{markdown(found or figure.title)}]({path.name})", "")
    elif words := figures.instead(drawn):
        yield from (markdown(words), "")


def _made(networks: Sequence[Network]) -> Iterator[str]:
    """Versions, machines, settings and commands."""
    yield from ("## How these numbers came about", "")
    open_yet = any(p.run.manifest.get("complete") is False for n in networks for p in n.parts)
    yield (
        "Every number comes from a row of one of the runs in this folder. `frenet report FOLDER "
        f"--out report.html{' --partial' if open_yet else ''}` makes a page with all figures and "
        "tables, also as CSV; in Python the rows are "
        f'`frenet.read_run("NAME{PACKED}").rows`.'
    )
    yield ""
    circumstances: dict[str, list[str]] = {}
    for network in networks:
        apart: dict[str, list[str]] = {}
        for part in network.parts:
            apart.setdefault(_circumstances(part.run), []).append(f"`{part.run.experiment}`")
        for listed, names in apart.items():
            which = ", ".join(names) if len(apart) > 1 else "everything"
            circumstances.setdefault(listed, []).append(f"{which} on {markdown(network.label)}")
    for listed, runs in circumstances.items():
        if len(circumstances) > 1:
            which = "; ".join(runs)
            yield from (f"{which[0].upper() + which[1:]}:", "")
        yield from (listed, "")
    for network in networks:
        yield from (f"### {markdown(network.label)}: settings", "")
        for part in network.parts:
            config = part.run.config
            keys = SHOWN if config.get("model") == SYNTHETIC else SHOWN + LEARNING
            items = [f"{key} {_listed(config[key])}" for key in keys if config.get(key)]
            items = [markdown(item) for item in (*items, *_shown_settings(part))]
            if seconds := part.run.manifest["cell_seconds"]:
                items.append(f"{seconds:,.0f} s of cells")
            yield f"- `{part.run.experiment}`: {'; '.join(items)}"
        yield ""
        yield from _fenced([command_line(part.run, part.experiment) for part in network.parts])


def _circumstances(run: Run) -> str:
    """Versions, machine and commits of a run, as a list."""
    made = run.manifest
    # Earlier builds recorded the commit only at the end.
    commits = made.get("commits", [made["commit"]])
    about = made["machine"] | {"platform": system_of(made["machine"])}
    machine = ", ".join(f"{key} {value}" for key, value in about.items())
    versions = [f"{name} {value}" for name, value in made["versions"].items()]
    noted = "commit" if len(commits) == 1 else "commits, in this order,"
    lines = (*versions, f"{machine}; {noted} {', '.join(map(str, commits))}")
    return "\n".join(f"- {markdown(line)}" for line in lines)


def _shown_settings(part: Section) -> list[str]:
    """The settings to show with the claims, for the measured spaces."""
    config = part.run.config
    return [
        f"{setting.words} {_listed(config[setting.name])}"
        for setting in part.experiment.shown_settings
        if config.get(setting.name)
        and (not setting.space or setting.space in config.get("spaces", ()))
    ]


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _fenced(lines: Sequence[str]) -> Iterator[str]:
    """Lines between fences that none of them can close."""
    lines = [one_line(line, sys.maxsize) for line in lines]
    runs = [len(found) for line in lines for found in re.findall("`+", line)]
    fence = "`" * max(3, 1 + max(runs, default=0))
    yield from (fence, *lines, fence, "")


def _row(*cells: str) -> str:
    """A table row of cells that are Markdown already."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
