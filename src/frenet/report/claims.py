"""The first screen: the claims of the paper, the measured numbers, and their references."""

import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from string import Formatter
from typing import NamedTuple

from markupsafe import Markup

from frenet._notebook import one_line
from frenet.experiments.experiment import (
    OPEN,
    VERDICTS,
    Claim,
    Decision,
    Finding,
    Verdict,
    claim_order,
)
from frenet.experiments.figures.wording import two
from frenet.report.glossary import explained
from frenet.report.glyph import glyph
from frenet.report.markup import tag, user_text
from frenet.report.numbers import estimate, join_words, spread

ICONS: dict[Verdict, str] = {
    "supported": "✓",
    "contradicted": "✕",
    "equivalent": "≈",
    "undecided": "?",
    "not testable": "–",
}
# Characters of a reason on the first screen.
LONGEST = 130


class Entry(NamedTuple):
    """One claim, what one run says about it, and where on the page its figure and tables are.

    Attributes:
        claim: the claim.
        finding: what the run says.
        run: the label of the network.
        figure: the anchor of the claim's figure.
        tables: the anchors of its tables.
        model: the network itself, which has another label in each of several runs.
    """

    claim: Claim
    finding: Finding
    run: str
    figure: str | None
    tables: tuple[str, ...] = ()
    model: str = ""


def answer(decisions: Sequence[Entry], *, named: bool = True) -> str:
    """The verdicts in one sentence, with the names of what is decided; ``named``: the network's."""
    runs = list(dict.fromkeys(decision.run for decision in decisions))
    several = Counter(decision.finding.name for decision in decisions).most_common(1)[0][1] > 1
    groups = []
    for verdict in VERDICTS:
        mine = [d for d in decisions if d.finding.verdict == verdict]
        if mine:
            unnamed = several or verdict in OPEN
            which = "" if unnamed else f" ({join_words(_names(mine, decisions))})"
            groups.append(f"{len(mine)} {'is' if len(mine) == 1 else 'are'} {verdict}{which}")
    what = "verdicts" if several else "claims"
    if len(decisions) == 1:
        what = what.removesuffix("s")
    on = f" on {runs[0]}" if runs[0] and named else ""
    if len(runs) > 1:
        on = f" on {len(runs)} networks"
    everywhere = f" {_everywhere(decisions, len(runs))}" if several else ""
    return f"Of {len(decisions)} {what}{on}, {join_words(groups)}.{everywhere}"


def _names(mine: Sequence[Entry], every: Sequence[Entry]) -> list[str]:
    """The claims; a case is named only if another case of its claim has another verdict."""
    verdict = mine[0].finding.verdict
    split = {d.finding.claim for d in every if d.finding.verdict != verdict}
    named = Counter(d.finding.name if d.finding.claim in split else d.finding.claim for d in mine)
    # The number of cases, so that the names add up to the count before them.
    times = {1: "", 2: " twice"}
    return [f"{name}{times.get(count, f' {count} times')}" for name, count in named.items()]


def _everywhere(decisions: Sequence[Entry], networks: int) -> str:
    """The claims on which all networks agree."""
    by_claim: dict[str, list[str]] = {}
    for decision in decisions:
        by_claim.setdefault(decision.finding.name, []).append(decision.finding.verdict)
    words = []
    for verdict in ("supported", "contradicted"):
        same = [c for c, verdicts in by_claim.items() if verdicts == [verdict] * networks]
        if same:
            words.append(f"{join_words(same)} {'is' if len(same) == 1 else 'are'} {verdict} on all")
    return (
        f"{'; '.join(words)}."
        if words
        else "No claim is supported, or contradicted, on all of them."
    )


def matrix(decisions: Sequence[Entry], addresses: Mapping[str, str]) -> Markup:
    """Claims in rows, networks in columns: verdict, number, and its reference.

    Args:
        decisions: of all networks.
        addresses: where more on each network is, by label.
    """
    claims = {decision.finding.name: decision.claim for decision in decisions}
    by_cell = {(decision.finding.name, decision.run): decision for decision in decisions}
    links = (
        tag("th", tag("a", user_text(label), href=address), scope="col")
        for label, address in addresses.items()
    )
    head = tag("thead", tag("tr", tag("th", "Claim", scope="col"), *links))
    rows, before = [], ""
    for name, claim in sorted(claims.items(), key=lambda item: claim_order(item[0])):
        first = (tag("b", name, class_="id"), *(_measures(claim) if claim.id != before else ()))
        before = claim.id
        cells = [_verdict(by_cell.get((name, label)), label) for label in addresses]
        rows.append(tag("tr", tag("th", *first, scope="row"), *cells))
    caption = tag("caption", "The claims on every network", class_="hidden")
    return tag("table", caption, head, tag("tbody", *rows), class_="claims matrix")


def _measures(claim: Claim) -> tuple[object, ...]:
    """What a claim says, what is measured for it, and what the paper found."""
    what = tag("small", claim.across.quantity) if claim.across else ""
    return " ", claim.short or claim.statement, what, tag("small", f"paper: {claim.paper}")


def _verdict(decision: Entry | None, label: str) -> Markup:
    if decision is None:
        return tag("td", "not measured", data_label=label)
    claim, finding = decision.claim, decision.finding
    verdict, value, other = sign(finding.decision), finding.estimate, finding.reference_estimate
    if value is None:
        return tag(
            "td", tag("div", verdict), tag("small", "nothing was measured"), data_label=label
        )
    compared = comparison(finding) if other is None else f"against {two(other.value)}"
    words = " ".join(filter(None, (spread(value), compared)))
    first = tag("div", verdict, " ", tag("strong", two(value.value)))
    return tag("td", first, glyph(claim, finding), tag("small", words), data_label=label)


def comparison(finding: Finding) -> str:
    """What a claim's number is compared with, in few words: a number, or how to read it."""
    if finding.reference_estimate is None:
        return finding.reference
    return f"compared with {estimate(finding.reference_estimate)}"


def listed(decisions: Sequence[Entry]) -> Markup:
    """One line for each decision; its rule, reasons, cautions and cases open on demand."""
    many = len({decision.run for decision in decisions}) > 1
    before = [None, *(decision.claim.id for decision in decisions)]
    lines = [
        _claim(decision, named=many, again=decision.claim.id == last)
        for decision, last in zip(decisions, before, strict=False)
    ]
    return tag("div", *lines, class_="lines")


def _claim(decision: Entry, *, named: bool, again: bool) -> Markup:
    """A claim; of its further cases only what is different."""
    claim, finding = decision.claim, decision.finding
    run = tag("small", user_text(decision.run)) if named else Markup("")
    case = finding.name.removeprefix(finding.claim).strip()
    statement = (
        tag("b", finding.claim, class_="id"),
        " ",
        "the same, " if again and case else claim.short or claim.statement,
        explained(case if again else f" ({case})" * bool(case), set()),
    )
    link = tag("a", "figure", href=f"#{decision.figure}", aria_label=f"Figure for {finding.name}")
    more = tag("summary", "why", aria_label=f"Why {finding.name} is {finding.verdict}")
    return tag(
        "div",
        tag("p", sign(finding.decision), class_="verdict"),
        tag("p", *statement, run, class_="statement"),
        tag("div", glyph(claim, finding), class_="glyph"),
        tag("p", in_words(claim, finding), class_="found"),
        tag("p", link if decision.figure else "", class_="links"),
        tag("details", more, *_why(decision)),
        class_="claim",
    )


def sign(decision: Decision) -> Markup:
    """The verdict as a word with a sign; the colour only repeats it."""
    icon = tag("span", ICONS[decision.verdict], aria_hidden="true", class_="icon")
    kind = decision.verdict.replace(" ", "-")
    return tag("span", icon, decision.verdict, class_=f"badge {kind}")


def in_words(claim: Claim, finding: Finding) -> str:
    """What was found, in one line: the numbers, or why there are none."""
    if finding.estimate is None:
        return f"Not measured: {_first(finding.why)}."
    text = in_clauses(claim, finding)
    alone = f" (criteria alone: {finding.decision.alone})"
    if finding.verdict == "not testable" and not finding.decision.alone:
        alone = f". Not testable: {_first(finding.why)}"
    return f"{text[:1].upper()}{text[1:]}{alone if finding.verdict == 'not testable' else ''}."


def in_clauses(claim: Claim, finding: Finding) -> str:
    """The numbers that were found; empty if nothing was measured."""
    if finding.estimate is None:
        return ""
    numbers = {"value": finding.estimate, "reference": finding.reference_estimate, **finding.also}
    known = {name: two(n.value) for name, n in numbers.items() if n is not None}
    clauses = [
        clause.format(**known)
        for clause in claim.says
        if {field for _, field, _, _ in Formatter().parse(clause) if field} <= set(known)
    ]
    return "; ".join(clauses) or f"{finding.quantity}: {two(finding.estimate.value)}"


def _first(why: str) -> str:
    """The first reason of several."""
    first = re.split(r"; |, so | \(\d", why)[0]
    return textwrap.shorten(one_line(first), LONGEST, placeholder=" …")


def _why(decision: Entry) -> Iterator[Markup]:
    """Everything behind a verdict."""
    claim, finding = decision.claim, decision.finding
    seen: set[str] = set()

    def text(words: str) -> Markup:
        return explained(words, seen)

    yield tag("p", tag("b", claim.statement))
    yield tag("p", sign(finding.decision), " ", text(finding.decision.detail))
    yield tag("p", text(finding.reason))
    for name, value, words in (
        ("Measured", finding.estimate, finding.quantity),
        ("Compared with", finding.reference_estimate, finding.reference),
    ):
        number = f" {estimate(value)}" if value is not None else ""
        yield tag("p", tag("b", name), number, " ", tag("span", text(words), class_="what"))
    yield tag("p", tag("b", "In the paper "), claim.paper)
    yield tag("p", tag("b", "The rule, fixed before the run "), text(claim.rule))
    if finding.notes:
        items = (tag("li", user_text(note)) for note in finding.notes)
        yield tag("div", tag("b", "Cautions"), tag("ul", *items), class_="notes")
    cases = [
        tag("li", tag("a", part.title, href=f"#{anchor}"))
        for part, anchor in zip(finding.breakdowns, decision.tables, strict=False)
    ]
    if cases:
        yield tag("div", tag("b", "By case"), tag("ul", *cases))
