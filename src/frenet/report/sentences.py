"""The answers of runs without claims, in sentences; their question if there are none."""

from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from frenet.experiments.experiment import Answer, Rows, Study, answered
from frenet.report.markup import join, tag, user_text
from frenet.report.sections import Section

# Lines on one subject that are visible at once.
OPEN = 3


def said(study: Study, rows: Rows) -> dict[str, list[tuple[str, str]]]:
    """What the rows of one run say about each subject: which cell, and the sentence.

    A cell is named by the keys in which the answers differ; if they do not, the name is empty.
    """
    all_answers = answered(study, rows)
    differ = _differ(all_answers)
    groups: dict[str, list[tuple[str, str]]] = {}
    for answer in all_answers:
        which = ", ".join(f"{key} {answer.keys[key]}" for key in differ)
        groups.setdefault(answer.subject, []).append((which, answer.sentence))
    return groups


def answers(part: Section) -> Markup:
    """The sentences of one run, grouped by subject; empty if it has none."""
    groups = said(part.experiment, part.run.rows)
    if not groups:
        return Markup("")
    return tag("dl", join(_group(*group) for group in groups.items()), class_="answers")


def opening(sections: Sequence[Section], pages: Mapping[str, str]) -> Iterator[Markup]:
    """The first lines of a page that decides no claim: each question with its answers.

    The question of an only run is the title of the page; what is left is a link to its figures.

    Args:
        sections: the runs.
        pages: the page of each network, by label, if that is another one.
    """
    for part in sections:
        listed = answers(part)
        several = len(sections) > 1 or bool(pages)
        asked = part.experiment.question if several else "Figures and tables"
        link = tag("a", asked, href=f"{pages.get(part.label, '')}#{part.id}")
        named = several and part.label
        network = join((" On ", user_text(part.label), ".")) if named else Markup("")
        see = "" if listed else " No claim is tested; the figures are the answer."
        yield tag("p", link, network, see, class_="answer")
        yield listed


def _differ(answers: Sequence[Answer]) -> list[str]:
    """The keys in which the answers of a run differ."""
    keys = answers[0].keys if answers else ()
    return [key for key in keys if len({answer.keys[key] for answer in answers}) > 1]


def _group(subject: str, sentences: Sequence[tuple[str, str]]) -> Markup:
    lines = [
        tag("li", tag("span", user_text(which), class_="run") if which else "", user_text(words))
        for which, words in sentences
    ]
    few = tag("ul", *lines[:OPEN])
    rest = lines[OPEN:]
    more = tag("details", tag("summary", f"{len(rest)} more"), tag("ul", *rest)) if rest else ""
    return tag("div", tag("dt", user_text(subject)), tag("dd", few, more))
