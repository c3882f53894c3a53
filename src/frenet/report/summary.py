"""The claims that matter most, and on how many networks they are decided, a sentence for each."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from markupsafe import Markup

from frenet.experiments.experiment import OPEN, VERDICTS, claim_order
from frenet.report.claims import Entry, in_clauses, sign
from frenet.report.markup import join, tag, user_text
from frenet.report.markup import markdown as as_text

# Named before the others, in the order in which a reader may want to know them.
FIRST = ("C2", "C4a", "C3", "C1", "C5a")
MOST = 5


def chosen(decisions: Sequence[Entry]) -> list[list[Entry]]:
    """What the networks say about the first five claims that one of them decides, case by case."""
    by_name: dict[str, list[Entry]] = {}
    for decision in decisions:
        by_name.setdefault(decision.finding.name, []).append(decision)
    found: dict[str, list[Entry]] = {}
    for name in (*FIRST, *sorted(by_name, key=claim_order)):
        entries = by_name.get(name, [])
        if any(entry.finding.verdict not in OPEN for entry in entries):
            found.setdefault(entries[0].claim.id, entries)
    return list(found.values())[:MOST]


def markdown(entries: Sequence[Entry], network: Callable[[Entry], str]) -> str:
    """The sentence about one claim; ``network`` gives the Markdown that names a network."""
    parts = [
        f"*{one.finding.verdict}* on {count}{network(one)}: {as_text(words)}{end}"
        for one, count, words, end in _decided(entries)
    ]
    first = entries[0]
    return f"**{as_text(first.claim.statement)}** ({first.finding.name}): {'; '.join(parts)}."


def html(decisions: Sequence[Entry], pages: Mapping[str, str]) -> Markup:
    """A list of the sentences, with links to the pages of the networks; empty without any."""
    lines = [tag("li", _line(entries, pages)) for entries in chosen(decisions)]
    return tag("ul", *lines, class_="summary") if lines else Markup("")


def _line(entries: Sequence[Entry], pages: Mapping[str, str]) -> Markup:
    parts = [
        join(
            (
                sign(one.finding.decision), " on ", count,
                tag("a", user_text(one.run), href=pages[one.run]), ": ", words, end,
            )
        )
        for one, count, words, end in _decided(entries)
    ]  # fmt: skip
    first = entries[0]
    name = f" ({first.finding.name}): "
    return join((tag("b", first.claim.statement), name, Markup("; ").join(parts), "."))


def _decided(entries: Sequence[Entry]) -> Iterator[tuple[Entry, str, str, str]]:
    """For every verdict that decides the claim: its first network, and what is said around it.

    That is on how many networks, and the numbers of the first one.
    """
    for verdict in VERDICTS:
        mine = [entry for entry in entries if entry.finding.verdict == verdict]
        if mine and verdict not in OPEN:
            words = in_clauses(mine[0].claim, mine[0].finding)
            if len(entries) == 1:
                yield mine[0], "", words, ""
            else:
                yield mine[0], f"{len(mine)} of {len(entries)} networks (", words, ")"
