"""The first screen: the claims of the paper, the measured numbers, and their references."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from frenet.experiments.experiment import VERDICTS, Claim, Decision, Finding, Verdict, claim_order
from frenet.report.markup import join, tag, user_text
from frenet.report.numbers import estimate, join_words
from frenet.statistics.intervals import Estimate

ICONS: dict[Verdict, str] = {
    "supported": "✓",
    "contradicted": "✕",
    "equivalent": "≈",
    "undecided": "?",
    "not testable": "–",
}
# In a sentence.
VERBS: dict[Verdict, str] = {
    **{word: word for word in VERDICTS},
    "undecided": "left undecided",
}
# Cautions about a claim that are visible at once.
NOTES = 2
HEADINGS = ("Claim", "In the paper", "Measured here", "Chance, null or ceiling", "Verdict")


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


def answer(decisions: Sequence[Entry]) -> str:
    """The whole page in one sentence."""
    runs = list(dict.fromkeys(decision.run for decision in decisions))
    several = Counter(decision.finding.name for decision in decisions).most_common(1)[0][1] > 1
    groups = []
    for verdict, verb in VERBS.items():
        mine = [d for d in decisions if d.finding.verdict == verdict]
        if mine:
            named = "" if several else f" ({join_words([d.finding.name for d in mine])})"
            groups.append(f"{len(mine)} {'is' if len(mine) == 1 else 'are'} {verb}{named}")
    what = "verdicts" if several else "claims"
    if len(decisions) == 1:
        what = what.removesuffix("s")
    on = f" on {len(runs)} networks" if len(runs) > 1 else f" on {runs[0]}" if runs[0] else ""
    everywhere = f" {_everywhere(decisions, len(runs))}" if several else ""
    return f"Of {len(decisions)} {what}{on}, {join_words(groups)}.{everywhere}"


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


def matrix(decisions: Sequence[Entry], anchors: Mapping[str, str]) -> Markup:
    """Claims in rows, networks in columns: verdict, number, and its reference.

    Args:
        decisions: of all networks.
        anchors: of every network, by label.
    """
    claims = {decision.finding.name: decision.claim for decision in decisions}
    by_cell = {(decision.finding.name, decision.run): decision for decision in decisions}
    links = (
        tag("th", tag("a", user_text(label), href=f"#{anchor}"), scope="col")
        for label, anchor in anchors.items()
    )
    head = tag("thead", tag("tr", tag("th", "Claim", scope="col"), *links))
    rows = []
    for name, claim in sorted(claims.items(), key=lambda item: claim_order(item[0])):
        first = (tag("b", name, class_="id"), " ", claim.statement, tag("small", claim.paper))
        cells = [_verdict(by_cell.get((name, label)), label) for label in anchors]
        rows.append(tag("tr", tag("th", *first, scope="row"), *cells))
    caption = tag("caption", "The claims on every network", class_="hidden")
    return tag("table", caption, head, tag("tbody", *rows), class_="claims matrix")


def _verdict(decision: Entry | None, label: str) -> Markup:
    if decision is None:
        return tag("td", "not measured", data_label=label)
    finding = decision.finding
    number = (*_measured(finding.estimate, ""), tag("small", comparison(finding)))
    if finding.estimate is None:
        number = (tag("small", "nothing was measured"),)
    return tag("td", badge(finding.decision), *number, data_label=label)


def comparison(finding: Finding) -> str:
    """What a claim's number is compared with, in few words: a number, or how to read it."""
    if finding.reference_estimate is None:
        return finding.reference
    return f"compared with {estimate(finding.reference_estimate)}"


def claims_table(decisions: Sequence[Entry]) -> Markup:
    """One row for each decision, with the rule, the reasons and the cautions beneath it."""
    many = len({decision.run for decision in decisions}) > 1
    head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in HEADINGS)))
    bodies = join(_claim(decision, named=many) for decision in decisions)
    caption = tag("caption", "The claims and what these runs say about them", class_="hidden")
    return tag("table", caption, head, bodies, class_="claims")


def badge(decision: Decision) -> Markup:
    """The verdict as a word with a sign; the colour only repeats it."""
    icon = tag("span", ICONS[decision.verdict], aria_hidden="true", class_="icon")
    name = decision.verdict.replace(" ", "-")
    word = tag("span", icon, decision.verdict, class_=f"badge {name}")
    return join((word, tag("small", decision.detail, class_="detail"))) if decision.detail else word


def _claim(decision: Entry, *, named: bool) -> Markup:
    claim, finding = decision.claim, decision.finding
    run = tag("p", user_text(decision.run), class_="run") if named else Markup("")
    statement = (tag("b", finding.name, class_="id"), " ", claim.statement, run)
    measured = _measured(finding.estimate, finding.quantity)
    reference = _measured(finding.reference_estimate, finding.reference)
    if finding.reference_estimate is None:
        reference = reference[1:]  # a range, and no number
    link = tag("a", "figure", href=f"#{decision.figure}", aria_label=f"Figure for {claim.id}")
    verdict = (badge(finding.decision), *([tag("small", link)] if decision.figure else []))
    contents = (statement, (claim.paper,), measured, reference, verdict)
    cells = [_cell(label, *parts) for label, parts in zip(HEADINGS[1:], contents[1:], strict=True)]
    first = tag("th", *contents[0], scope="row")
    notes = _notes(finding)
    rule = tag("p", tag("b", "The rule, fixed before the run. "), claim.rule)
    why = [tag("p", finding.reason), rule]
    for part, anchor in zip(finding.breakdowns, decision.tables, strict=False):
        why.append(tag("p", tag("a", part.title, href=f"#{anchor}")))
    more = tag("details", tag("summary", "Why, and by which rule"), *why)
    below = tag("td", tag("div", more, notes, class_="beneath"), colspan=len(HEADINGS))
    return tag("tbody", tag("tr", first, *cells), tag("tr", below, class_="more"))


def _cell(label: str, *parts: object) -> Markup:
    return tag("td", *parts, data_label=label)


def _measured(measured: Estimate | None, words: str) -> tuple[Markup, ...]:
    value, _, spread = estimate(measured).partition(" ")
    number = tag("strong", value.rstrip(","))
    return (
        tag("div", number, " ", tag("span", spread, class_="spread")),
        tag("small", _unbroken(words)),
    )


def _unbroken(words: str) -> str:
    """The words with equations that do not break over two lines."""
    return words.replace(" = ", "\u00a0=\u00a0")


def _notes(finding: Finding) -> Markup:
    if not finding.notes:
        return Markup("")
    items = [tag("li", user_text(note)) for note in finding.notes]
    # Many cautions would push the other claims off the first screen.
    seen = len(items) if len(items) <= NOTES + 1 else NOTES
    more = tag("summary", f"{len(items) - seen} more")
    rest = tag("details", more, tag("ul", *items[seen:])) if items[seen:] else Markup("")
    title = tag("b", "Cautions")
    return tag("div", title, tag("ul", *items[:seen]), rest, class_="notes")
