"""The first screen, and the first lines on each network if there are several."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from markupsafe import Markup

from frenet._version import __version__
from frenet.experiments.experiment import claim_order
from frenet.report import sentences as answers
from frenet.report.claims import Entry, answer, claims_table, matrix
from frenet.report.markup import join, tag, user_text
from frenet.report.numbers import join_words
from frenet.report.sections import Section, figure_of
from frenet.runs import decide_claims

TITLE = "How far, and for how long, can a direction in a neural network be trusted?"


class Network(NamedTuple):
    """The runs on one network, in the order of the claims."""

    id: str
    label: str
    parts: tuple[Section, ...]


def grouped(sections: Sequence[Section]) -> list[Network]:
    """The runs by network, in the order of their claims; runs without claims come last."""
    networks: list[Network] = []
    for label in dict.fromkeys(part.label for part in sections):
        mine = [part for part in sections if part.label == label]
        mine.sort(
            key=lambda part: (
                [claim_order(c.id) for c in part.experiment.claims] or [claim_order("~")]
            )
        )
        networks.append(Network(f"network-{len(networks) + 1}", label, tuple(mine)))
    return networks


def decided(network: Network) -> list[Entry]:
    """What its runs say about every claim, in the order of the claims' ids."""
    decisions = [
        Entry(
            claim,
            finding,
            part.label,
            part.anchor(claim.figure),
            tuple(part.breakdown_anchor(finding, i) for i in range(len(finding.breakdowns))),
            str(part.run.config.get("model", "")),
        )
        for part in network.parts
        for claim, finding in decide_claims(part.experiment, part.run)
    ]
    return sorted(decisions, key=lambda decision: claim_order(decision.finding.name))


def opening(
    networks: Sequence[Network],
    decisions: Sequence[Entry],
    *,
    static: bool,
    waiting: Sequence[str] = (),
    above: Mapping[str, str] = MappingProxyType({}),
) -> Markup:
    """The answer, the numbers behind it, and links.

    Args:
        networks: all of them.
        decisions: on all of them.
        static: add pictures for readers without scripts.
        waiting: what is still to be measured.
        above: words -> the anchor of a section before those of the networks.
    """
    parts = [part for network in networks for part in network.parts]
    several = len(networks) > 1
    lead = tag("p", user_text(answer(decisions)), class_="answer") if decisions else ""
    front = Markup("")
    if not decisions:
        results = join(answers.opening(parts))
    elif several:
        results = matrix(decisions, {network.label: network.id for network in networks})
    else:
        results = claims_table(decisions)
    if not several:
        front = fronts(networks[0], static=static)
        links = [tag("a", part.id, href=f"#{part.id}") for part in parts]
    else:
        links = [tag("a", words, href=f"#{anchor}") for words, anchor in above.items()]
        links += [tag("a", user_text(n.label), href=f"#{n.id}") for n in networks]
    return join(
        [
            tag("p", "frenet report", class_="eyebrow"),
            tag("h1", TITLE),
            lead,
            _still(waiting),
            tag("p", " · ".join(_facts(parts)), class_="facts"),
            tag("section", tag("h2", "Results", class_="hidden"), results, id="claims"),
            front,
            _navigation(links, "Networks" if several else "Experiments"),
        ]
    )


def chapter(network: Network, decisions: Sequence[Entry], *, static: bool) -> Markup:
    """The first lines on one network of several: its claims, its map, its experiments."""
    head = tag("header", tag("p", "network", class_="eyebrow"), tag("h2", user_text(network.label)))
    table = claims_table(decisions) if decisions else Markup("")
    links = [tag("a", part.run.experiment, href=f"#{part.id}") for part in network.parts]
    front = fronts(network, static=static)
    inside = (head, table, front, _navigation(links, f"Experiments on {network.label}"))
    return tag("section", *inside, id=network.id, class_="chapter")


def fronts(network: Network, *, static: bool) -> Markup:
    """The figures of the first screen."""
    return join(
        figure_of(part, figure, static=static)
        for part in network.parts
        for figure in part.experiment.figures
        if figure.front
    )


def _still(waiting: Sequence[str]) -> Markup:
    """What is still to come, and that verdicts may change with it; empty if nothing is."""
    if not waiting:
        return Markup("")
    text = (
        " This page is written again after every experiment, and verdicts may change. "
        f"Still to come: {join_words(list(waiting))}."
    )
    return tag("p", tag("b", "First results."), user_text(text), class_="answer")


def _facts(parts: Sequence[Section]) -> list[str]:
    seeds = {row["seed"] for part in parts for row in part.run.rows if "seed" in row}
    facts = [f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}"] if seeds else []
    facts += [f"{sum(len(part.run.rows) for part in parts):,} rows", f"frenet {__version__}"]
    failed = sum(len(part.run.failures) for part in parts)
    facts += [f"{failed} failed cell{'' if failed == 1 else 's'}"] if failed else []
    if any(part.run.manifest.get("complete") is False for part in parts):
        facts.append("not finished")
    return facts


def _navigation(links: Sequence[Markup], label: str) -> Markup:
    return tag("nav", tag("span", "Go to"), *links, aria_label=label)
