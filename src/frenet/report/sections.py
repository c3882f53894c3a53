"""What follows the claims: for each run what failed, its figures, its tables, how it was made."""

import base64
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from markupsafe import Markup

from frenet.experiments.experiment import Column, Figure, Finding, Rows, Study
from frenet.report import figures, tables
from frenet.report.markup import join, packed, tag, user_text
from frenet.report.numbers import join_words
from frenet.report.provenance import again, failures
from frenet.runs import Run

NO_SCRIPT = "Tables need scripts. frenet report RUN --export FOLDER writes each of them as CSV."
# Characters of a name, so that it fits into every file system with what follows it.
LONGEST = 80


class Section(NamedTuple):
    """One run on the page.

    Attributes:
        id: the start of anchors and file names.
        label: the name of the network.
        run: the run to show, with long texts shortened.
        experiment: the experiment of the run.
        stored: the unshortened run.
    """

    id: str
    label: str
    run: Run
    experiment: Study
    stored: Run

    @property
    def model(self) -> str:
        """The network itself, which may have another label in each of several runs."""
        return model_of(self.run)

    def anchor(self, figure: str) -> str | None:
        """The id of a figure on the page; None if the experiment has no such figure."""
        known = {entry.id for entry in self.experiment.figures}
        return f"{self.id}-{figure}" if figure in known else None

    def breakdown_anchor(self, finding: Finding, index: int = 0) -> str:
        """The anchor of a table of the parts of a claim's numbers."""
        return f"{self.id}-parts-{slug(finding.name)}{f'-{index + 1}' if index else ''}"


def model_of(run: Run) -> str:
    """The network of a run; empty if it names none."""
    return str(run.config.get("model", ""))


def slug(text: str) -> str:
    """A text as a name for anchors and files, in letters that every file system takes.

    >>> slug("a/b c.d"), slug("?"), len(slug("long" * 75))
    ('a-b-c-d', 'run', 80)
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:LONGEST] or "run"


def section(
    part: Section,
    said: Markup | None = None,
    findings: Sequence[Finding] = (),
    found: Mapping[str, str] = MappingProxyType({}),
    *,
    static: bool,
    alone: bool = False,
) -> Markup:
    """The whole section of one run.

    Args:
        part: the run, its experiment, and its name on the page.
        said: the answers to show before the figures.
        findings: of its claims, with the parts to list.
        found: figure -> what it shows, in a sentence.
        static: add pictures for readers without scripts.
        alone: it is the only run of the page, which has its question as title.
    """
    run, experiment = part.run, part.experiment
    label = tag("p", user_text(part.label), class_="run") if part.label else Markup("")
    head = tag(
        "header",
        tag("p", part.run.experiment, class_="eyebrow"),
        tag("h2", "Figures and tables" if alone else experiment.question),
        label,
    )
    own = [entry for entry in experiment.figures if not entry.front]
    empty = [entry for entry in own if not figures.rows_of(entry, run.rows)]
    shown = {
        entry: figure_of(part, entry, static=static, found=found.get(entry.id, ""))
        for entry in own
        if entry not in empty
    }
    drawn = join(figure for entry, figure in shown.items() if not entry.more)
    more = {entry: figure for entry, figure in shown.items() if entry.more}
    with_rows = tables.tables_of(experiment, run.rows)
    listed = join(
        tables.html_table(
            name, columns, rows, file=f"{part.id}-{name}.csv", id=f"{part.id}-table-{name}"
        )
        for name, (columns, rows) in with_rows.items()
    )
    parts = join(_parts(part, finding) for finding in findings)
    without = tag("noscript", tag("p", NO_SCRIPT, class_="empty"))
    title = tag("h3", "The numbers behind the figures")
    behind = tag("div", title, without, parts, listed, class_="block")
    above = (head, said or "", failures(run), drawn, _folded(more), _missing(empty))
    return tag("section", *above, behind, again(run, experiment), id=part.id)


def _folded(more: Mapping[Figure, Markup]) -> Markup:
    """The figures that decide nothing, under a line that names them; empty without any."""
    if not more:
        return Markup("")
    titles = join_words([f"“{figure.title}”" for figure in more])
    return tag("details", tag("summary", f"More figures: {titles}"), *more.values(), class_="more")


def _missing(empty: Sequence[Figure]) -> Markup:
    """One sentence about all figures whose table has no row; empty if there is none."""
    if not empty:
        return Markup("")
    names = join_words([f"“{entry.title}”" for entry in empty])
    tables_named = join_words(list(dict.fromkeys(entry.table for entry in empty)))
    words = f"These runs hold no row of {tables_named}, so these figures are left out: {names}."
    return tag("p", words, class_="empty block")


def _parts(part: Section, finding: Finding) -> Markup:
    """The parts of a claim's numbers as more tables."""
    listed = []
    for index, (title, rows) in enumerate(finding.breakdowns):
        columns = [
            Column(name, "", "", "key" if isinstance(value, str) else "measure")
            for name, value in rows[0].items()
        ]
        name, anchor = f"{finding.name}: {title}", part.breakdown_anchor(finding, index)
        listed.append(tables.html_table(name, columns, rows, file=f"{anchor}.csv", id=anchor))
    return join(listed)


def figure_of(part: Section, figure: Figure, *, static: bool, found: str = "") -> Markup:
    """One figure of a run, with its caption and its text; or why it is not drawn."""
    link = tag("a", f"table {figure.table}", href=f"#{part.id}-table-{figure.table}")
    anchor = f"{part.id}-{figure.id}"
    return framed(anchor, figure, part.run.rows, link, static=static, found=found)


def framed(
    anchor: str, figure: Figure, every: Rows, numbers: Markup, *, static: bool, found: str = ""
) -> Markup:
    """A figure of rows, with its caption and its text; or why it is not drawn.

    Args:
        anchor: its id on the page.
        figure: what to draw.
        every: rows, also of other tables.
        numbers: the link to the table of its numbers.
        static: add a picture for readers without scripts.
        found: its claim in a sentence, for the title, after the figure's own finding.
    """
    title = _titled(anchor, figure, found)
    caption = tag("figcaption", figure.caption)
    rows = figures.rows_of(figure, every)
    if not rows:
        empty = f"These runs hold no row of the table {figure.table}, so there is nothing to draw."
        return tag("figure", title, tag("p", empty, class_="empty"), caption, id=anchor)
    if why := figures.undrawable():
        reason = tag("p", f"Not drawn: {why}.", class_="empty")
        return tag("figure", title, reason, caption, id=anchor)
    try:
        found = figures.headline(figure, rows, found)
        title = _titled(anchor, figure, found)
        spec = figures.draw(figure, rows)
        still = _picture(spec, figure, found) if static and not figures.blank(spec) else Markup("")
    # Any error of a chart: the other figures and the numbers must still be readable.
    except Exception as error:
        reason = tag("p", f"Not drawn: {type(error).__name__}: {error}", class_="empty")
        return tag("figure", title, reason, caption, id=anchor)
    if figures.blank(spec):
        nothing = f"No row of the table {figure.table} is of the kind that this figure draws."
        empty = figures.instead(spec) or nothing
        return tag("figure", title, tag("p", empty, class_="empty"), caption, id=anchor)
    words = str(spec.get("description") or figure.caption)
    chart = tag(
        "div",
        class_="chart",
        data_chart=f"{anchor}-spec",
        data_height=figures.height(spec),
        role="img",
        aria_label=f"{found or f'{figure.title}.'} {words}",
    )
    data = packed(figures.for_page(spec), id=f"{anchor}-spec")
    as_text = tag(
        "details",
        tag("summary", "As text"),
        tag("p", user_text(words), " All numbers: ", numbers, "."),
    )
    return tag("figure", title, chart, data, still, caption, as_text, id=anchor)


def _titled(anchor: str, figure: Figure, found: str) -> Markup:
    """The title: what was found, below the question; or the question alone."""
    kicker = tag("p", figure.title, class_="kicker") if found else Markup("")
    title = user_text(found) if found else figure.title
    return join((kicker, tag("h3", title, id=f"{anchor}-title")))


def _picture(spec: figures.Spec, figure: Figure, found: str) -> Markup:
    drawn = figures.svg(figures.for_file(spec, figure, found)).encode()
    source = "data:image/svg+xml;base64," + base64.b64encode(drawn).decode("ascii")
    return tag("noscript", tag("img", src=source, alt=figure.caption, class_="still"))
