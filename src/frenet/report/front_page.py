"""The first screen, and the first lines on each network if there are several."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from markupsafe import Markup

from frenet.experiments.experiment import Figure, Reach, Rows, claim_order
from frenet.report import sentences as answers
from frenet.report import summary
from frenet.report.claims import Entry, answer, listed, matrix
from frenet.report.facts import facts
from frenet.report.markup import join, tag, user_text
from frenet.report.numbers import join_words
from frenet.report.reach import PROBE, advice, figure, on_common_axes, sentence, together
from frenet.report.sections import Section, figure_of, framed
from frenet.runs import decide_claims

TITLE = "How far, and for how long, can a direction be trusted?"


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
            part.model,
        )
        for part in network.parts
        for claim, finding in decide_claims(part.experiment, part.run)
    ]
    return sorted(decisions, key=lambda decision: claim_order(decision.finding.name))


def _title(networks: Sequence[Network]) -> str:
    """The title of a page: the question of its only run, or that of frenet."""
    parts = [part for network in networks for part in network.parts]
    return parts[0].experiment.question if len(parts) == 1 else TITLE


def opening(
    networks: Sequence[Network],
    decisions: Sequence[Entry],
    *,
    static: bool,
    waiting: Sequence[str] = (),
    pages: Mapping[str, str] = MappingProxyType({}),
) -> Markup:
    """The first screen: the answer, the figure that shows it, and one line for each claim.

    Args:
        networks: all of them.
        decisions: on all of them.
        static: add pictures for readers without scripts.
        waiting: what is still to be measured.
        pages: the page of each network, by label, if this screen is a page of its own.
    """
    parts = [part for network in networks for part in network.parts]
    several = len(networks) > 1 or bool(pages)
    lead = said_together(networks) if several else said(networks[0])
    found = join_sentences(lead, answer(decisions, named=several) if decisions else "")
    results = tag("section", *_results(networks, decisions, pages), id="claims")
    if not several:
        only = networks[0]
        shown = [reached(only), _advice(only), results, fronts(only, static=static)]
    else:
        maps = overview(networks, pages, static=static)
        shown = [results, *maps] if pages else [*maps[:1], results, *maps[1:]]
    return join(
        [
            tag("p", user_text(" · ".join(("frenet report", *facts(parts)))), class_="facts"),
            tag("h1", _title(networks)),
            tag("p", user_text(found), class_="answer") if found else Markup(""),
            summary.html(decisions, pages) if pages else "",
            _still(waiting),
            *shown,
        ]
    )


def join_sentences(*sentences: str) -> str:
    """Sentences one after the other, without the empty ones."""
    return " ".join(sentence for sentence in sentences if sentence)


def _results(
    networks: Sequence[Network], decisions: Sequence[Entry], pages: Mapping[str, str]
) -> Iterator[Markup]:
    """The claims of one network, a matrix of several, or the answers of runs without claims."""
    if not decisions:
        parts = [part for network in networks for part in network.parts]
        yield tag("h2", "Results", class_="hidden")
        yield from answers.opening(parts, pages)
    elif len(networks) > 1 or pages:
        yield claims_heading(decisions, "The claims on every network")
        yield matrix(decisions, {one.label: _address(one, pages) for one in networks})
    else:
        yield claims_heading(decisions)
        yield listed(decisions)


def _address(network: Network, pages: Mapping[str, str]) -> str:
    """Where more on a network is: a page of its own, or its chapter."""
    return pages.get(network.label, f"#{network.id}")


def claims_heading(decisions: Sequence[Entry], title: str = "The claims") -> Markup:
    """The heading of the claims, with the legend of their pictures."""
    counts = {d.finding.estimate.n for d in decisions if d.finding.estimate is not None}
    units = {d.finding.estimate.unit for d in decisions if d.finding.estimate is not None}
    of = ""
    if len(counts) == len(units) == 1 and (n := counts.pop()) > 1:
        of = f" of {n} {units.pop()}s"
    key = (
        f"dot: measured, with the 95% interval{of}; line: compared with; shaded: values that "
        "support the claim"
    )
    return tag("h2", title, " ", tag("small", key), class_="claims-heading")


def said(network: Network) -> str:
    """How far and for how long directions can be followed on a network, in a sentence."""
    return sentence(_reach(network))


def followed(network: Network) -> str:
    """What to do with the directions of a network, in sentences; empty if nothing is known."""
    return advice(_reach(network))


def said_together(networks: Sequence[Network]) -> str:
    """How long a gradient is good on each network, in a sentence."""
    return together(_reaches(networks))


def _advice(network: Network) -> Markup:
    words = followed(network)
    if not words:
        return Markup("")
    command = tag("code", PROBE, class_="whole")
    shown = command.join(map(user_text, words.split(PROBE)))
    return tag("p", tag("b", "What follows "), shown, class_="next")


def _reaches(networks: Sequence[Network]) -> dict[str, list[Reach]]:
    return {network.label: _reach(network) for network in networks}


def _as_it_is(made: Any, rows: Rows) -> Any:
    """A chart or a sentence that was made before."""
    del rows
    return made


def maps(networks: Sequence[Network]) -> Iterator[tuple[Figure, Rows]]:
    """The maps of all networks on common axes, as figures with rows."""
    for kind, caption, chart in on_common_axes(_reaches(networks)):
        title = f"How far and for how long, in the {kind}"
        chart_of = partial(_as_it_is, chart)
        finds = partial(_as_it_is, together(_reaches(networks))) if kind == "weights" else None
        shown = Figure(f"all-{kind}", title, caption, "reach", chart_of, finds=finds)
        yield shown, [{"table": "reach"}]


def overview(
    networks: Sequence[Network], pages: Mapping[str, str], *, static: bool
) -> list[Markup]:
    """The maps of all networks on common axes, for a page."""
    link = tag("a", "the chapters of the networks", href=f"#{networks[0].id}")
    if pages:
        link = tag("a", "the pages of the networks", href="#claims")
    return [framed(one.id, one, rows, link, static=static) for one, rows in maps(networks)]


def reached(network: Network) -> Markup:
    """The figure of how far and for how long directions can be followed; empty without any."""
    return figure(_reach(network), f"{network.id}-reach")


def _reach(network: Network) -> list[Reach]:
    """The reach of every direction, from the first run that knows it."""
    for part in network.parts:
        if part.experiment.reach is not None:
            return part.experiment.reach(part.run.rows)
    return []


def chapter(network: Network, decisions: Sequence[Entry], *, static: bool) -> Markup:
    """The first lines on one network of several: its claims, its map, its experiments."""
    text = said(network)
    head = tag(
        "header",
        tag("h2", user_text(network.label)),
        tag("p", user_text(" · ".join(facts(network.parts)[1:])), class_="facts"),
        tag("p", user_text(text), class_="answer") if text else "",
    )
    claims = (claims_heading(decisions), listed(decisions)) if decisions else ()
    links = [tag("a", part.run.experiment, href=f"#{part.id}") for part in network.parts]
    front = fronts(network, static=static)
    navigation = tag("nav", *links, aria_label=f"Experiments on {network.label}", class_="inside")
    inside = (head, reached(network), *claims, front, navigation)
    return tag("section", *inside, id=network.id, class_="chapter")


def fronts(network: Network, *, static: bool) -> Markup:
    """The figures before the chapters."""
    return join(
        figure_of(part, figure, static=static, found=said(network) if part.experiment.reach else "")
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


def contents(
    networks: Sequence[Network],
    above: Mapping[str, str],
    pages: Mapping[str, str] = MappingProxyType({}),
) -> Markup:
    """The bar at the top of the window: links to the parts of the page.

    Args:
        networks: all of them.
        above: words -> the address of what comes before the networks.
        pages: the page of each network, by label, if that is another one.
    """
    links = [tag("a", "Top", href="#top"), tag("a", "Results", href="#claims")]
    links += [tag("a", words, href=address) for words, address in above.items()]
    if len(networks) > 1 or pages:
        links += [tag("a", user_text(n.label), href=_address(n, pages)) for n in networks]
    else:
        links += [tag("a", p.run.experiment, href=f"#{p.id}") for p in networks[0].parts]
    links.append(tag("a", "Glossary", href="#glossary"))
    return tag("nav", *links, aria_label="Contents", class_="contents")
