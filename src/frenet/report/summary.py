"""The claims that matter most, and what each network says about them, one sentence for each."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from markupsafe import Markup

from frenet.experiments.experiment import OPEN, VERDICTS, claim_order
from frenet.report.claims import Entry, in_clauses, sign
from frenet.report.markup import escape, join, tag, user_text
from frenet.report.markup import markdown as as_text
from frenet.report.numbers import join_words

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
    parts = []
    for mine in _by_verdict(entries):
        named = [
            f"{network(one)}{as_text(words) and f' ({as_text(words)})'}" for one, words in mine
        ]
        parts.append(f"*{mine[0][0].finding.verdict}* on {join_words(named)}")
    first = entries[0]
    return f"**{as_text(first.claim.statement)}** ({first.finding.name}): {'; '.join(parts)}."


def html(decisions: Sequence[Entry], pages: Mapping[str, str]) -> Markup:
    """A list of the sentences, with links to the pages of the networks; empty without any."""
    lines = [tag("li", _line(entries, pages)) for entries in chosen(decisions)]
    return tag("ul", *lines, class_="summary") if lines else Markup("")


def _line(entries: Sequence[Entry], pages: Mapping[str, str]) -> Markup:
    parts = []
    for mine in _by_verdict(entries):
        named = [
            tag("a", user_text(one.run), href=pages[one.run]) + escape(words and f" ({words})")
            for one, words in mine
        ]
        verdict = sign(mine[0][0].finding.decision)
        parts.append(join((verdict, " on ", Markup(join_words(list(map(str, named)))))))
    first = entries[0]
    name = f" ({first.finding.name}): "
    return join((tag("b", first.claim.statement), name, Markup("; ").join(parts), "."))


def _by_verdict(entries: Sequence[Entry]) -> Iterator[list[tuple[Entry, str]]]:
    """The networks of every verdict, with the numbers of those that decide the claim."""
    for verdict in VERDICTS:
        mine = [entry for entry in entries if entry.finding.verdict == verdict]
        if mine:
            yield [
                (one, "" if verdict in OPEN else in_clauses(one.claim, one.finding)) for one in mine
            ]
