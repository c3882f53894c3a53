"""How the numbers came about: the command, the configuration, what failed, the versions."""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from frenet.experiments.experiment import SYNTHETIC, Experiment, Study, kind_of
from frenet.experiments.reproduce.registered import declared_words
from frenet.report.markup import join, tag, user_text
from frenet.report.numbers import figure
from frenet.runs import Run, config_dict
from frenet.runs.header import PACKED

# Shown elsewhere on the page.
LEFT_OUT = ("config", "declared", "experiment", "failures", "format")


def again(run: Run, experiment: Study) -> Markup:
    """The command that gives the same rows, and configuration, versions and machine."""
    lines = command_line(run, experiment).split("\n")
    shown = Markup("\n").join(map(_words, lines))
    command = tag("pre", tag("code", shown), class_="command", tabindex="0")
    said = declared_words(run.manifest.get("declared"), experiment)
    declared = [tag("p", said)] if experiment.claims else []
    made = {key: value for key, value in run.manifest.items() if key not in LEFT_OUT}
    lists = join((_pairs("Configuration", run.config), _pairs("Versions and machine", made)))
    title = tag("h3", "How to run it again")
    return tag("div", title, command, *declared, lists, class_="block")


def _words(line: str) -> Markup:
    """A line word by word, since a browser would break it after the hyphens of a flag."""
    return Markup(" ").join(tag("span", word) for word in line.split(" "))


def command_line(run: Run, experiment: Study) -> str:
    """The preset nearest to the configuration, and every setting that differs from it."""
    if experiment.command is not None:
        return experiment.command(run.config)
    if not isinstance(experiment, Experiment):  # a separate command, without presets or threads
        defaults = {f.name: f.default for f in dataclasses.fields(experiment.config)}
        given = _changed(run.config, {k: _stored(value) for k, value in defaults.items()})
        return shlex.join(["frenet", run.experiment, *_flags(given)])
    kind = kind_of(run.config.get("model", SYNTHETIC))
    presets = {name: config_dict(experiment.settings(name, kind)) for name in experiment.presets}
    changed = {name: _changed(run.config, preset) for name, preset in presets.items()}
    nearest = min(changed, key=lambda name: len(changed[name]))
    words = ["frenet", "run", run.experiment, "--preset", nearest, *_flags(changed[nearest])]
    # Sums in another order change the last digit.
    if run.manifest.get("threads"):
        words += ["--threads", str(run.manifest["threads"])]
    return shlex.join(words)


def failures(run: Run) -> Markup:
    """What failed, or has not run yet; empty if all is done."""
    parts = []
    if run.manifest.get("complete") is False:
        parts.append(tag("p", tag("b", "This run is not finished."), " ", counted(run.manifest)))
    if run.failures:
        few = len(run.failures) == 1
        count = f"{len(run.failures)} cell{' has' if few else 's have'} failed."
        why = " Figures and verdicts use the others."
        if not run.path.name.endswith(PACKED):
            why += " Tracebacks: the run folder, failed/."
        items = (tag("li", _failure(failure)) for failure in run.failures)
        parts += [tag("p", tag("b", count), why), tag("ul", *items)]
    return tag("div", *parts, class_="failures", role="note") if parts else Markup("")


def counted(manifest: Mapping[str, Any]) -> str:
    """How many cells are finished, if the manifest says so."""
    cells = manifest.get("cells")
    if not isinstance(cells, Mapping):
        return ""
    return f"{cells.get('finished')} of {cells.get('total')} cells are finished."


def _failure(failure: Mapping[str, Any]) -> Markup:
    """`cell (stage): type: error`, and whatever else was recorded."""
    known = dict(failure)
    cell, stage = known.pop("cell", "unnamed cell"), known.pop("stage", None)
    kind, error = known.pop("type", None), known.pop("error", "")
    message = f"{kind}: {error}" if kind else str(error)
    rest = "".join(f"; {key}: {value}" for key, value in known.items())
    where = f" ({stage})" if stage else ""
    return join((tag("code", user_text(cell)), where, ": ", user_text(message + rest)))


def _pairs(title: str, values: Mapping[str, Any]) -> Markup:
    lines = [
        tag("div", tag("dt", user_text(key)), tag("dd", user_text(value)))
        for key, value in _flat(values)
    ]
    body = tag("dl", *lines, class_="pairs") if lines else tag("p", "None recorded.")
    return tag("details", tag("summary", title), body)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list | tuple | Mapping):
            yield name, ", ".join(map(str, value)) or "none"
        else:
            # Settings are shown as given, not rounded.
            yield name, str(value) if isinstance(value, int | float) else figure(value)


def _stored(value: Any) -> Any:
    """A setting as it is read back from JSON."""
    return list(value) if isinstance(value, tuple) else value


def _changed(config: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if preset.get(key) != value}


def _flags(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        name = f"{prefix}{key}".replace("_", "-")
        if isinstance(value, Mapping):
            yield from _flags(value, f"{name}.")
        elif isinstance(value, bool):
            yield f"--{name}" if value else f"--no-{name}"
        elif isinstance(value, list | tuple):
            yield from (f"--{name}", *map(str, value))
        else:
            yield from (f"--{name}", str(value))
