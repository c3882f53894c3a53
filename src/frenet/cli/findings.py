"""What was found, for a terminal: the verdicts first, one line for each claim."""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from frenet._notebook import one_line
from frenet.experiments.experiment import (
    OPEN,
    VERDICTS,
    Claim,
    Finding,
    Reach,
    Rows,
    Study,
    Verdict,
)
from frenet.experiments.verdicts import ALONE

if TYPE_CHECKING:
    from rich.padding import Padding
    from rich.table import Table

    from frenet.statistics.intervals import Estimate

Decided = tuple[Claim, Finding]
# Sign and colour of a verdict.
SIGNS: dict[Verdict, tuple[str, str]] = {
    "supported": ("✓", "green"),
    "contradicted": ("✕", "red"),
    "equivalent": ("=", "cyan"),
    "undecided": ("?", "yellow"),
    "not testable": ("–", "dim"),
}
# What the reason would be if an unknown premise held: only with --why.
FURTHER = re.compile(rf"({ALONE} [a-z ]+).*")
# Most kinds of notes that are shown without --why.
NOTES = 8
NUMBERS = re.compile(r"\d[\d.,]*")


def show_reach(reaches: Sequence[Reach]) -> None:
    """Print how far, and for how long, each direction can be followed, one line for each."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from frenet.report.reach import NO_SHARE, far_words, followed, long_words, moved, spaces

    console = Console(highlight=False)
    for space in spaces(reaches):
        of_space = followed(reaches, space)
        for share_of, directions in itertools.groupby(of_space, lambda one: one.share_of):
            table = Table.grid(padding=(0, 2), expand=True)
            table.add_column(ratio=1)
            table.add_column(min_width=26)
            table.add_column(width=22)
            head = moved(space, share_of)
            long = any(one.longest for one in of_space)
            headings = (head, "how far", "how long" if long else "")
            table.add_row(*(Text(words, style="bold") for words in headings))
            for one in directions:
                lasts = long_words(one) if long else ""
                lasts = "no more than chance" if lasts == NO_SHARE else lasts
                table.add_row(*map(Text, (f"  {one_line(one.name)}", far_words(one), lasts)))
            console.print(table)


def show_answers(show: Callable[[str], None], study: Study, rows: Rows) -> None:
    """Print what the rows of a run without claims say, one line for each answer."""
    from frenet.report.sentences import said

    for subject, sentences in said(study, rows).items():
        for which, sentence in sentences:
            show(f"{subject}{f' ({which})' if which else ''}: {sentence}")


def show_findings(findings: Sequence[Decided], *, why: bool) -> None:
    """Print the verdicts, those that decide something first, with their numbers.

    Args:
        findings: claims with their findings.
        why: whether to give the reasons of all, and not only of what is open.
    """
    from rich.console import Console

    console = Console(highlight=False)
    for verdict in VERDICTS:
        some = [pair for pair in findings if pair[1].verdict == verdict]
        if some:
            sign, colour = SIGNS[verdict]
            console.print(f"{sign} {verdict}", style=colour, markup=False)
            console.print(_lines(some))
            for reason in _reasons(some, why=why) if why or verdict in OPEN else ():
                console.print(reason)


def _lines(findings: Sequence[Decided]) -> "Table":
    """One line for each claim: what it says, what was measured, and what that is compared with."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(width=5)
    table.add_column(ratio=1)
    table.add_column(min_width=21)
    table.add_column(width=17)
    table.expand = True
    before = ""
    for claim, finding in findings:
        again, before = finding.claim == before, finding.claim
        table.add_row(
            Text("" if again else f"  {one_line(finding.claim)}"),
            Text(_statement(claim, finding, again=again)),
            Text(_measured(finding.estimate)),
            Text(_compared(claim, finding), style="dim"),
        )
    return table


def _statement(claim: Claim, finding: Finding, *, again: bool) -> str:
    """A claim in a few words; of a further case only what is different."""
    if again:
        return f"- {one_line(finding.case)}"
    margin = finding.decision.detail if finding.verdict == "equivalent" else ""
    words = filter(None, (claim.short or claim.statement, finding.case, margin))
    return one_line(", ".join(words))


def _measured(estimate: "Estimate | None") -> str:
    """A number with its interval, to two digits."""
    from frenet.report.numbers import figure

    if estimate is None:
        return "nothing measured"
    known = [end for end in (estimate.low, estimate.high) if end is not None]
    ends = [figure(float(end), 2) for end in known if math.isfinite(end)]
    return figure(float(estimate.value), 2) + (f" [{', '.join(ends)}]" if len(ends) == 2 else "")


def _compared(claim: Claim, finding: Finding) -> str:
    """The chance level, null or ceiling of what was measured."""
    from frenet.report.numbers import figure

    reference = finding.reference_estimate
    if finding.estimate is None:
        return ""
    if reference is None:
        return one_line(finding.reference)
    name = claim.against or finding.reference
    return one_line(f"{name} {figure(float(reference.value), 2)}")


def _reasons(findings: Iterable[Decided], *, why: bool) -> "Iterator[Padding]":
    """A paragraph for each reason, with the claims that have it."""
    from rich.padding import Padding
    from rich.text import Text

    by_reason: dict[str, list[str]] = {}
    for _, finding in findings:
        reason = finding.reason if why else FURTHER.sub(r"\1", finding.why)
        if finding.verdict == "undecided" and finding.decision.detail:
            reason = f"{finding.decision.detail}; {reason}"
        by_reason.setdefault(reason, []).append(finding.name)
    for reason, names in by_reason.items():
        yield Padding(Text(one_line(f"{', '.join(names)}: {reason}")), (0, 0, 0, 4))


def notes(found: Iterable[str], *, why: bool) -> Iterator[str]:
    """The notes of runs, each once; without ``why`` one of each kind, and only the first kinds.

    Notes of one kind differ only in their numbers. Those that name an option come first.
    """
    kinds: dict[str, list[str]] = {}
    for note in sorted(dict.fromkeys(found), key=lambda note: "--" not in note):
        kinds.setdefault(note if why else NUMBERS.sub("#", note), []).append(note)
    shown = list(kinds.values()) if why else list(kinds.values())[:NOTES]
    for note, *like in shown:
        yield f"note: {note}{f' (and {len(like)} like it)' if like else ''}"
    if left := sum(map(len, itertools.islice(kinds.values(), len(shown), None))):
        yield f"{left} more notes are in the report, and here with --why"
