"""Run folders in, one HTML file out, and the same figures and tables as files.

The page loads nothing: script, style, data and fallback pictures are inside it, and its
Content-Security-Policy forbids all requests, and all scripts except two, by their hashes: that of
the page, and Vega, which is compressed until the first figure needs it. Vega interprets its
expressions (``ast: true``), so 'unsafe-eval' is not needed.
"""

import base64
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from markupsafe import Markup

from frenet._errors import UsageError
from frenet._files import write_whole
from frenet._notebook import shortened
from frenet.experiments.experiment import Study
from frenet.experiments.reproduce import short_name
from frenet.report import across, figures
from frenet.report import sentences as answers
from frenet.report.claims import in_words
from frenet.report.front_page import Network, chapter, contents, decided, grouped, opening
from frenet.report.glossary import glossary
from frenet.report.markup import join, packed, tag
from frenet.report.sections import Section, model_of, section, slug
from frenet.report.tables import csv_bytes, tables_of
from frenet.runs import Run
from frenet.runs.files import require_path

TITLE = "frenet report"


def write_report(
    runs: Sequence[Run],
    out: Path | str,
    *,
    experiments: Mapping[str, Study] | None = None,
    static: bool = False,
    waiting: Sequence[str] = (),
) -> Path:
    """Write one HTML file with the results of the runs, whole or not at all.

    Args:
        runs: finished or partial runs; the page shows them in the order of their claims, then those
            without claims, in the given order.
        out: the file; its folder is made, an older file of that name is replaced.
        experiments: name -> experiment; default: those of frenet.
        static: add a picture of every figure for readers without scripts.
        waiting: what is still to be measured, for a report that is written meanwhile.

    Returns:
        The path of the file.

    Raises:
        ValueError: no run, or a run of an unknown experiment.
        IsADirectoryError: ``out`` is a folder.
    """
    out = require_path(out)
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; name a file, such as {out / 'report.html'}")
    networks = grouped(sections_of(runs, experiments))
    page = document(networks, static=static, waiting=waiting)
    return write_whole(out, page.encode(), moves="frenet report RUN --out FILE")


def document(
    networks: Sequence[Network],
    *,
    static: bool,
    waiting: Sequence[str] = (),
    above: Mapping[str, str] = MappingProxyType({}),
) -> Markup:
    """A whole page about some networks.

    Args:
        networks: one or several.
        static: add a picture of every figure for readers without scripts.
        waiting: what is still to be measured.
        above: words -> address of another page, for the bar of links.
    """
    by_network = {network.id: decided(network) for network in networks}
    decisions = [decision for some in by_network.values() for decision in some]
    together = across.pools(decisions)
    bodies = [across.section(together, static=static)] if together else []
    for network in networks:
        if len(networks) > 1:
            bodies.append(chapter(network, by_network[network.id], static=static))
        # Without claims, the answers are on the first screen.
        said = {part.id: answers.answers(part) for part in network.parts if decisions}
        for part in network.parts:
            mine = [d for d in by_network[network.id] if d.claim in part.experiment.claims]
            findings = [decision.finding for decision in mine]
            shown = {d.claim.figure: in_words(d.claim, d.finding) for d in reversed(mine)}
            alone = len(networks) == len(network.parts) == 1
            text = section(part, said.get(part.id), findings, shown, static=static, alone=alone)
            bodies.append(text)
    bar = contents(networks, {**above, **_all_networks(together)})
    first = opening(networks, decisions, static=static, waiting=waiting)
    title = f"{networks[0].label} · {TITLE}" if above else TITLE
    return _page(title, bar, first, join([*bodies, glossary()]))


def index_of(networks: Sequence[Network], pages: Mapping[str, str], *, static: bool) -> Markup:
    """A whole page about all networks, each of which has a page of its own.

    Args:
        networks: one or several.
        pages: the page of each network, by label.
        static: add a picture of every figure for readers without scripts.
    """
    decisions = [decision for network in networks for decision in decided(network)]
    together = across.pools(decisions)
    bodies = [across.section(together, static=static)] if together else []
    bar = contents(networks, _all_networks(together), pages)
    first = opening(networks, decisions, static=static, pages=pages)
    return _page(TITLE, bar, first, join([*bodies, glossary()]))


def _all_networks(together: Sequence[across.Pool]) -> dict[str, str]:
    """The link of the bar to the claims over all networks, if they have lines."""
    return {"All networks": f"#{across.TABLE}"} if together else {}


def pooled_lines(
    runs: Sequence[Run], *, experiments: Mapping[str, Study] | None = None
) -> list[dict[str, Any]]:
    """One line per claim over several networks, as JSON values; they decide nothing.

    Args:
        runs: finished or partial runs.
        experiments: name -> experiment; default: those of frenet.

    Returns:
        For every claim on two networks or more: the mean over networks and its 95% interval, the
        standard deviation ``between`` them (of logarithms if ``scale`` is "log"), the 95%
        prediction interval for the ``next`` network, and the networks left out, with the reason.

    Raises:
        ValueError: no run, or a run of an unknown experiment.
    """
    networks = grouped(sections_of(runs, experiments))
    decisions = [decision for network in networks for decision in decided(network)]
    return [across.as_dict(found) for found in across.pools(decisions)]


def export(
    runs: Sequence[Run],
    out_dir: Path,
    *,
    experiments: Mapping[str, Study] | None = None,
) -> list[Path]:
    """Write every figure as SVG and PNG and every table as CSV, under stable names.

    Args:
        runs: finished or partial runs; figures without rows in their table are left out, and all of
            them if this process cannot draw (``figures.undrawable`` says why).
        out_dir: the folder, made if it is missing.
        experiments: name -> experiment; default: those of frenet.

    Returns:
        The files written: ``EXPERIMENT-FIGURE.svg``, ``.png`` and ``EXPERIMENT-TABLE.csv``, with
        a number after the experiment's name from its second run on.

    Raises:
        ValueError: no run, or a run of an unknown experiment.
    """
    written = []
    for part in sections_of(runs, experiments):
        for figure in () if figures.undrawable() else part.experiment.figures:
            rows = figures.rows_of(figure, part.run.rows)
            if not rows or figures.blank(drawn := figures.draw(figure, rows)):
                continue
            spec = figures.for_file(drawn, figure, figures.headline(figure, rows))
            name = Path(out_dir) / f"{part.id}-{figure.id}"
            written.append(
                _exported(name.with_name(f"{name.name}.svg"), figures.svg(spec).encode())
            )
            written.append(_exported(name.with_name(f"{name.name}.png"), figures.png(spec)))
        for table, (columns, rows) in tables_of(part.experiment, part.stored.rows).items():
            text = csv_bytes(columns, rows)
            written.append(_exported(Path(out_dir) / f"{part.id}-{slug(table)}.csv", text))
    return written


def _exported(path: Path, content: bytes) -> Path:
    return write_whole(path, content, moves="--export")


def sections_of(
    runs: Sequence[Run],
    experiments: Mapping[str, Study] | None,
    *,
    with_network: bool = False,
) -> list[Section]:
    """The runs with their experiments and names, in the given order.

    The names start with the network if there are several, or if ``with_network``. A run that is
    given twice, from two places, counts once.
    """
    if not runs:
        raise UsageError("there is no run to report; give at least one run folder")
    if experiments is None:
        from frenet.experiments import described

        experiments = described()
    parts: list[Section] = []
    shown = [_on_page(run) for run in runs]
    labels, used = _labels(shown), Counter[str]()
    for run, stored in zip(shown, runs, strict=True):
        if run.experiment not in experiments:
            known = ", ".join(sorted(experiments))
            raise UsageError(f"no experiment is called {run.experiment!r}; known are {known}")
        if any(_same(part.stored, stored) for part in parts):
            continue
        label = labels[model_of(run)]
        name = slug(run.experiment)
        if with_network or len(labels) > 1:
            name = f"{slug(short_name(model_of(run)))}-{name}"
        before = used[name] = used[name] + 1
        name += f"-{before}" if before > 1 else ""
        if any((part.run.experiment, part.label) == (run.experiment, label) for part in parts):
            label = f"{label} ({run.path.name})"
        parts.append(Section(name, label, run, experiments[run.experiment], stored))
    return parts


def _on_page(run: Run) -> Run:
    """The run with shortened texts, since no page can show thousands of characters."""
    return dataclasses.replace(
        run,
        config=_shortened(run.config),
        rows=_shortened(run.rows),
        manifest=_shortened(run.manifest),
        failures=_shortened(run.failures),
    )


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return shortened(value)
    if isinstance(value, list):
        return [_shortened(entry) for entry in value]
    if isinstance(value, dict):
        return {_shortened(key): _shortened(entry) for key, entry in value.items()}
    return value


def _same(one: Run, other: Run) -> bool:
    return (one.experiment, one.config, one.rows) == (other.experiment, other.config, other.rows)


def _labels(runs: Sequence[Run]) -> dict[str, str]:
    """The label of each model: all of a hub id, the last part of a path if it is unique."""
    models = list(dict.fromkeys(map(model_of, runs)))
    short = [_short(model) for model in models]
    return {m: m if short.count(s) > 1 else s for m, s in zip(models, short, strict=True)}


def _short(model: str) -> str:
    if model == "synthetic":
        return "the synthetic transformer"
    parts = model.replace("\\", "/").rstrip("/").split("/")
    path = len(parts) > 2 or parts[0] in ("", ".", "..", "~") or model.endswith(".gguf")
    return parts[-1].removesuffix(".gguf") if path else model


def _page(title: str, contents: Markup, opening: Markup, sections: Markup) -> Markup:
    script, style = _asset("page.js"), _asset("page.css")
    # The script of the page unpacks and starts the drawing engine for the first figure.
    engine = "" if figures.undrawable() else figures.bundle()
    hashes = " ".join(_hash(text) for text in (script, engine) if text)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the results", href="#claims", class_="skip"),
        contents,
        tag("main", tag("header", opening, class_="opening"), sections, id="top"),
        packed(engine, id="engine") if engine else "",
        tag("script", Markup(script)),
    )
    return Markup(f"<!doctype html>\n{tag('html', head, body, lang='en')}\n")


def _asset(name: str) -> str:
    text = resources.files("frenet.report").joinpath(name).read_text("utf-8")
    # A browser hashes the parsed text, in which every line ends with LF.
    return text.replace("\r\n", "\n")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
