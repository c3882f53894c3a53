"""One network as a Markdown page: its claims with their reasons, its figures, how it was run."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from frenet._files import write_whole
from frenet._notebook import one_line
from frenet.experiments.experiment import SYNTHETIC, Breakdown, Figure, Finding, Rows
from frenet.experiments.reproduce.registered import declared_words
from frenet.experiments.setup.networks import LEARNING, SHOWN
from frenet.report import figures
from frenet.report import sentences as answers
from frenet.report.claims import ICONS, Entry, answer, in_words
from frenet.report.facts import measured
from frenet.report.front_page import Network, followed, join_sentences, said
from frenet.report.markup import escape, markdown, tag
from frenet.report.numbers import estimate
from frenet.report.numbers import figure as number
from frenet.report.pages import INDEX
from frenet.report.provenance import command_line, counted
from frenet.report.sections import Section
from frenet.runs import Run, pack_run
from frenet.runs.header import PACKED
from frenet.runs.machine import system_of

# What moves the folder, for messages.
MOVES = "--results"


def network_page(network: Network, decisions: Sequence[Entry], out: Path) -> str:
    """The text of the page of a network; this also writes its figures and runs into a folder."""
    return "\n".join(_lines(network, decisions, out))


def _lines(network: Network, decisions: Sequence[Entry], out: Path) -> Iterator[str]:
    yield from (f"# {markdown(network.label)}", "")
    yield f"{markdown(' · '.join(measured(network.parts)))} · [all networks]({INDEX}.md)"
    yield from ("", *declared(network))
    found = answer(decisions, named=False) if decisions else ""
    if words := join_sentences(said(network), found, followed(network)):
        yield from (markdown(words), "")
    if missing := [line for part in network.parts for line in _missing(part.run)]:
        yield from ("Some cells are missing; verdicts and figures use the others:", "")
        yield from (*missing, "")
    for part in network.parts:
        yield from _figures(part, out, decisions, front=True)
    if decisions:
        yield from ("## The claims", "")
    for decision in decisions:
        yield from _claim(decision, network)
    for part in network.parts:
        yield from _experiment(part, decisions, out)
    yield from _made(network)


def claim_heading(finding: Finding, statement: str) -> str:
    """The heading of a claim on the page of a network."""
    return f"{finding.name}. {statement}"


def anchor(heading: str) -> str:
    """The anchor that makers of sites, and GitHub, give to a heading.

    >>> anchor("C5b. From 10 to 1,000 directions")
    'c5b-from-10-to-1000-directions'
    """
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def declared(network: Network) -> Iterator[str]:
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


def badge(finding: Finding) -> str:
    """The verdict as a word with its sign, in an element for a style sheet."""
    verdict = finding.verdict
    kind = verdict.replace(" ", "-")
    return str(tag("span", f"{ICONS[verdict]} {verdict}", class_=f"verdict {kind}"))


def _claim(decision: Entry, network: Network) -> Iterator[str]:
    """A claim: its verdict, what was found, and on demand why."""
    claim, finding = decision.claim, decision.finding
    part = next(part for part in network.parts if claim in part.experiment.claims)
    paper = claim.paper if claim.paper.startswith("not in") else f"in the paper: {claim.paper}"
    yield from (f"### {markdown(claim_heading(finding, claim.statement))}", "")
    detail = f" ({markdown(finding.decision.detail)})" if finding.decision.detail else ""
    yield f"{badge(finding)}{detail} {markdown(in_words(claim, finding))}"
    yield f"{markdown(paper[0].upper() + paper[1:])}."
    yield ""
    if finding.notes:
        yield from (*(f"- {markdown(line)}" for line in finding.notes), "")
    cases = ", and the numbers by case" if finding.breakdowns else ""
    yield from folded(f"Why, by which rule{cases}", _why(decision, _shown_settings(part)))


def _why(decision: Entry, settings: Sequence[str]) -> Iterator[str]:
    claim, finding = decision.claim, decision.finding
    for name, value in (
        (finding.quantity, finding.estimate),
        (finding.reference, finding.reference_estimate),
    ):
        if name:
            text = "" if value is None else f": {estimate(value)}"
            yield from (f"{markdown(name[:1].upper() + name[1:])}{text}.", "")
    if settings:
        yield from (f"Settings: {markdown('; '.join(settings))}.", "")
    yield from (f"{markdown(finding.reason[:1].upper() + finding.reason[1:])}.", "")
    yield from (f"The rule: {markdown(claim.rule)}.", "")
    for table in finding.breakdowns:
        yield from (f"**{markdown(table.title)}**", "", *_breakdown(table))


def _breakdown(table: Breakdown) -> Iterator[str]:
    """The parts of a number as a table."""
    names = list(table.rows[0])
    yield table_row(*map(markdown, names))
    yield table_row(*["---"] * len(names))
    for row in table.rows:
        yield table_row(*(markdown(number(row[name], 3)) for name in names))
    yield ""


def _experiment(part: Section, decisions: Sequence[Entry], out: Path) -> Iterator[str]:
    """One run: its question, answers and figures, its rows, and the command that makes it again."""
    yield from (f"## {markdown(part.run.experiment)}", "", markdown(part.experiment.question), "")
    yield from _figures(part, out, decisions, front=False)
    if listed := list(_sentences(part)):
        # Without claims, the answers are what the page is about.
        yield from folded("The answers, one by one", listed) if decisions else (*listed, "")
    file = f"{part.id}{PACKED}"
    # A run that is read from there stays as it was packed.
    if part.stored.path.resolve() != (out / file).resolve():
        write_whole(out / file, pack_run(part.stored), moves=MOVES)
    yield from (f"[Rows of `{part.run.experiment}`]({file}). {_settings(part)}", "")
    yield from _fenced([command_line(part.run, part.experiment)])


def _sentences(part: Section) -> Iterator[str]:
    """The answers of a run, if it has any: a list for each subject."""
    for subject, sentences in answers.said(part.experiment, part.run.rows).items():
        yield f"- {markdown(subject)}"
        for which, words in sentences:
            yield f"    - {markdown(f'{which}: {words}' if which else words)}"


def _figures(part: Section, out: Path, decisions: Sequence[Entry], *, front: bool) -> Iterator[str]:
    """The figures for the head of the page, or those of claims, under what was found."""
    found = {
        one.claim.figure: in_words(one.claim, one.finding)
        for one in reversed(decisions)
        if one.claim in part.experiment.claims
    }
    of_claims = {claim.figure for claim in part.experiment.claims}
    for figure in part.experiment.figures:
        rows = figures.rows_of(figure, part.run.rows)
        if rows and (figure.front if front else figure.id in of_claims and not figure.front):
            path = out / f"{part.id}-{figure.id}.svg"
            yield from picture(figure, rows, path, found.get(figure.id, ""))


def picture(figure: Figure, rows: Rows, path: Path, found: str = "") -> Iterator[str]:
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


def _settings(part: Section) -> str:
    """The settings of a run in a sentence."""
    config = part.run.config
    keys = SHOWN if config.get("model") == SYNTHETIC else SHOWN + LEARNING
    items = [f"{key} {_listed(config[key])}" for key in keys if config.get(key)]
    items = [markdown(item) for item in (*items, *_shown_settings(part))]
    if seconds := part.run.manifest["cell_seconds"]:
        items.append(f"{seconds:,.0f} s of cells")
    return f"Settings: {'; '.join(items)}." if items else ""


def _made(network: Network) -> Iterator[str]:
    """Versions, machines and commits."""
    yield from ("## Versions and machines", "")
    circumstances: dict[str, list[str]] = {}
    for part in network.parts:
        circumstances.setdefault(_circumstances(part.run), []).append(f"`{part.run.experiment}`")
    for listed, names in circumstances.items():
        if len(circumstances) > 1:
            yield from (f"{', '.join(names)}:", "")
        yield from (listed, "")


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


def folded(title: str, lines: Iterable[str]) -> Iterator[str]:
    """Lines that open on demand."""
    yield from ("<details markdown>", f"<summary>{escape(title)}</summary>", "")
    yield from ("\n".join(lines).rstrip(), "", "</details>", "")


def table_row(*cells: str) -> str:
    """A table row of cells that are Markdown already."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
