"""Runs as a folder to store with code: Markdown pages, the figures of claims, the runs."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from frenet.experiments.experiment import VERDICTS, Study, claim_order
from frenet.experiments.figures.wording import two
from frenet.report import across, summary
from frenet.report.claims import Entry, answer, comparison
from frenet.report.facts import measured
from frenet.report.front_page import Network, decided, grouped, maps, said_together
from frenet.report.markup import markdown, tag
from frenet.report.numbers import estimate, join_words
from frenet.report.page import sections_of
from frenet.report.pages import INDEX, named, page_files, write_pages
from frenet.report.results_page import (
    MOVES,
    anchor,
    badge,
    claim_heading,
    declared,
    folded,
    network_page,
    picture,
    table_row,
)
from frenet.runs import Run
from frenet.runs.files import require_folder
from frenet.runs.header import PACKED

SUFFIX = ".md"


def write_results(
    runs: Sequence[Run],
    out: Path,
    *,
    experiments: Mapping[str, Study] | None = None,
) -> Path:
    """Write ``index.md``, a page for every network, SVGs of the figures of claims, and the runs.

    Every number of the pages comes from a row of a run, in ``NETWORK-EXPERIMENT.run.jsonl.gz``.
    :func:`frenet.runs.read_run` and ``frenet report`` read these files like run folders. The same
    finished runs in the same order give the same files, byte for byte.

    Args:
        runs: finished or partial runs.
        out: the folder; its index, figures and runs of the same names are replaced, and pages that
            this function has written, which are removed if their network is gone.
        experiments: name -> experiment; default: those of frenet.

    Returns:
        The path of the index.

    Raises:
        ValueError: no run, or a run of an unknown experiment.
        NotADirectoryError: ``out`` is a file.
        FileExistsError: a page would replace a file that this function has not written.
    """
    out = require_folder(out)
    networks = grouped(named(sections_of(runs, experiments, with_network=True)))
    files = page_files(out, networks, SUFFIX, moves=MOVES)
    by_network = {network.label: decided(network) for network in networks}
    pages = {
        files[network.label]: network_page(network, by_network[network.label], out)
        for network in networks
    }
    decisions = [decision for some in by_network.values() for decision in some]
    pages[f"{INDEX}{SUFFIX}"] = "\n".join(_index(networks, decisions, files, out))
    return write_pages(out, pages, moves=MOVES)[0]


def _index(
    networks: Sequence[Network], decisions: Sequence[Entry], files: Mapping[str, str], out: Path
) -> Iterator[str]:
    """The lines of the index; this also writes its figures."""
    yield from ("# Results", "")
    if words := answer(decisions) if decisions else said_together(networks):
        yield from (markdown(words), "")
    for entries in summary.chosen(decisions):
        yield f"- {summary.markdown(entries, lambda one: _link(one, markdown(one.run), files))}"
    if decisions:
        yield from ("", "## The claims on every network", "")
        yield from _matrix(networks, decisions, files)
    for i, (figure, rows) in enumerate(maps(networks)):
        shown = picture(figure, rows, out / f"networks-{figure.id}.svg")
        yield from folded(figure.title, shown) if i else shown
    if together := across.pools(decisions):
        yield from folded(
            f"{across.TITLE}: means, and a figure of each claim", _together(together, out)
        )
    yield from folded("The networks: tasks, seeds, dates, declarations", _networks(networks, files))
    yield from _rows(networks)


def _link(decision: Entry, text: str, files: Mapping[str, str]) -> str:
    """A link, with a text in Markdown, to a claim on the page of a network."""
    place = anchor(claim_heading(decision.finding, decision.claim.statement))
    return f"[{text}]({files[decision.run]}#{place})"


def _matrix(
    networks: Sequence[Network], decisions: Sequence[Entry], files: Mapping[str, str]
) -> Iterator[str]:
    """Claims in rows, networks in columns; further cases of a claim open on demand."""
    ordered = sorted(decisions, key=lambda one: claim_order(one.finding.name))
    first: dict[str, str] = {}
    for one in ordered:
        first.setdefault(one.claim.id, one.finding.name)
    main = [one for one in ordered if one.finding.name == first[one.claim.id]]
    cases = [one for one in ordered if one.finding.name != first[one.claim.id]]
    yield from _table(networks, main, files)
    if cases:
        names = [one.finding.name.removeprefix(one.claim.id).strip() for one in cases]
        counts = Counter(one.finding.verdict for one in cases)
        found = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]]
        title = f"The same {join_words(list(dict.fromkeys(names)))}: {', '.join(found)}"
        yield from folded(title, _table(networks, cases, files))


def _table(
    networks: Sequence[Network], decisions: Sequence[Entry], files: Mapping[str, str]
) -> Iterator[str]:
    """The lines of a table of verdicts and numbers."""
    by_cell = {(d.finding.name, d.run): d for d in decisions}
    claims = {d.finding.name: d.claim for d in decisions}
    yield from ('<div class="matrix" markdown>', "")
    yield table_row(
        "claim, its number (compared with)",
        *(f"[{markdown(n.label)}]({files[n.label]})" for n in networks),
    )
    yield table_row(*["---"] * (len(networks) + 1))
    for name, claim in claims.items():
        cells = (_cell(by_cell.get((name, network.label)), files) for network in networks)
        yield table_row(f"**{name}** {markdown(claim.short or claim.statement)}", *cells)
    yield from ("", "</div>", "")


def _cell(decision: Entry | None, files: Mapping[str, str]) -> str:
    """The verdict, which leads to the claim on its network's page, and the number beside another.

    The other one is what the number is compared with.
    """
    if decision is None:
        return "<small>not measured</small>"
    finding = decision.finding
    link = _link(decision, badge(finding), files)
    value = finding.estimate
    if value is None:
        return link
    every = f"{estimate(value)}; {comparison(finding)}"
    other = finding.reference_estimate
    beside = "" if other is None else f" ({two(other.value)})"
    number = tag("small", f"{two(value.value)}{beside}", title=every)
    # Inside a tag, a backslash before the sign that ends a cell would be shown.
    return f"{link} {str(number).replace('|', '&#124;')}"


def _together(found: Sequence[across.Pool], out: Path) -> Iterator[str]:
    """The lines about all networks; this also writes their figures."""
    yield from (across.EXPLAINED, "")
    yield table_row(*across.HEADINGS)
    yield table_row(*["---"] * len(across.HEADINGS))
    for one in found:
        name = f"**{one.name}** {markdown(one.claim.short or one.claim.statement)}"
        yield table_row(name, *map(markdown, across.cells(one)))
    yield ""
    for one in found:
        figure, rows = across.forest(one)
        yield from picture(figure, rows, out / f"{one.id}.svg")


def _networks(networks: Sequence[Network], files: Mapping[str, str]) -> Iterator[str]:
    """What every network is, and whether its runs were declared."""
    for network in networks:
        name, *about = map(markdown, measured(network.parts))
        words = " ".join(line for line in declared(network) if line)
        line = " · ".join((f"[{name}]({files[network.label]})", *about))
        yield f"- {line}. {words}".rstrip()


def _rows(networks: Sequence[Network]) -> Iterator[str]:
    """How to read the rows."""
    open_yet = any(p.run.manifest.get("complete") is False for n in networks for p in n.parts)
    yield (
        "Every number comes from a row of one of the runs in this folder. `frenet report FOLDER "
        f"--out report.html{' --partial' if open_yet else ''}` makes a page with all figures and "
        "tables, also as CSV; in Python the rows are "
        f'`frenet.read_run("NAME{PACKED}").rows`.'
    )
