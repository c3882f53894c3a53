"""What runs without a claim say, in sentences; where there are none, their question."""

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from frenet.experiments.experiment import Answer, answered
from frenet.report.markup import join, tag, user_text
from frenet.report.sections import Section

# Lines on one subject that are seen without opening anything.
OPEN = 3


def said(part: Section) -> dict[str, list[tuple[str, str]]]:
    """What one run says about each subject: which cell, and the sentence.

    A cell is named by the keys in which the answers differ; where they do not, it is empty.
    """
    found = answered(part.experiment, part.run.rows)
    differ = _differ(found)
    groups: dict[str, list[tuple[str, str]]] = {}
    for answer in found:
        which = ", ".join(f"{key} {answer.keys[key]}" for key in differ)
        groups.setdefault(answer.subject, []).append((which, answer.sentence))
    return groups


def answers(part: Section) -> Markup:
    """The sentences of one run, grouped by what they are about; nothing where it has none."""
    groups = said(part)
    if not groups:
        return Markup("")
    return tag("dl", join(_group(*group) for group in groups.items()), class_="answers")


def opening(sections: Sequence[Section]) -> Iterator[Markup]:
    """The first lines of a page that decides no claim: each question with its answers."""
    for part in sections:
        found = answers(part)
        link = tag("a", part.experiment.question, href=f"#{part.id}")
        where = join((" On ", user_text(part.label), ".")) if part.label else Markup("")
        see = Markup("") if found else " No claim is put to the test; the figures are the answer."
        yield tag("p", link, where, see, class_="answer")
        yield found


def _differ(found: Sequence[Answer]) -> list[str]:
    """The keys in which the answers of a run differ."""
    keys = found[0].keys if found else ()
    return [key for key in keys if len({answer.keys[key] for answer in found}) > 1]


def _group(subject: str, sentences: Sequence[tuple[str, str]]) -> Markup:
    lines = [
        tag("li", tag("span", user_text(which), class_="run") if which else "", user_text(words))
        for which, words in sentences
    ]
    few = tag("ul", *lines[:OPEN])
    rest = lines[OPEN:]
    more = tag("details", tag("summary", f"{len(rest)} more"), tag("ul", *rest)) if rest else ""
    return tag("div", tag("dt", user_text(subject)), tag("dd", few, more))
