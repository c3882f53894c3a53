"""What runs without a claim say: the sentences of their table ``answer``, or their question."""

from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from frenet.experiments.experiment import Rows, Scalar
from frenet.report.markup import join, tag, user_text
from frenet.report.sections import Section

TABLE = "answer"
SENTENCE = "sentence"
# Lines on one subject that are seen without opening anything.
OPEN = 3


def said(part: Section) -> dict[str, list[tuple[str, str]]]:
    """What the sentences of one run are about: for each subject which cell says what.

    The cell is told by the keys in which the sentences differ; where they do not, it is empty.
    """
    rows = [row for row in part.run.rows if row.get("table") == TABLE and row.get(SENTENCE)]
    if not rows:
        return {}
    about = _subject(rows)
    told = _telling(rows, about)
    groups: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        subject = str(row.get(about, ""))
        which = ", ".join(f"{key} {row.get(key)}" for key in told)
        words = str(row[SENTENCE]).removeprefix(f"{subject}: ")
        groups.setdefault(subject, []).append((which, words))
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


def _subject(rows: Rows) -> str:
    """The key with which all sentences start; what follows the colon is said about it."""
    start = (k for k in rows[0] if all(_starts(row, k) for row in rows))
    return next(start, "")


def _starts(row: Mapping[str, Scalar], key: str) -> bool:
    return str(row[SENTENCE]).startswith(f"{row.get(key)}: ")


def _telling(rows: Rows, about: str) -> list[str]:
    """The keys that tell sentences on one subject apart."""
    silent = ("table", SENTENCE, about)
    return [k for k in rows[0] if k not in silent and len({row.get(k) for row in rows}) > 1]


def _group(subject: str, sentences: Sequence[tuple[str, str]]) -> Markup:
    lines = [
        tag("li", tag("span", user_text(which), class_="run") if which else "", user_text(words))
        for which, words in sentences
    ]
    few = tag("ul", *lines[:OPEN])
    rest = lines[OPEN:]
    more = tag("details", tag("summary", f"{len(rest)} more"), tag("ul", *rest)) if rest else ""
    return tag("div", tag("dt", user_text(subject)), tag("dd", few, more))
