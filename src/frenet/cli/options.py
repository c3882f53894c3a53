"""The words and the flags of the command line."""

import contextlib
import difflib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import docstring_parser
import tyro

from frenet._errors import UsageError
from frenet._notebook import one_line
from frenet.cli.streams import Tamed

DEFAULT_PRESET = "demo"
RUN_HELP = """\
usage: frenet run EXPERIMENT [--preset NAME] [options]

Runs one experiment into a run folder. frenet run EXPERIMENT --help shows its options.

experiments:
"""

Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
Count = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
# What is off unless it is asked for; of a setting that a preset may have there is --no-x, too.
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """Options of all commands that run experiments."""

    preset: Annotated[str, tyro.conf.arg(metavar="NAME")] = DEFAULT_PRESET
    """Settings to start from, which depend on the kind of network: smoke, demo, cpu or gpu, from
    seconds to all of it; of single experiments also lm, the default if --model names a language
    model."""
    out: Folder = None
    """Folder for the results. By default a name made from the settings, below runs/."""
    workers: Count = None
    """Processes that work at the same time. By default one for each processor; 1 for a language
    model on a GPU."""
    threads: Count = None
    """Torch threads of each process. By default the processors are shared out."""
    engine: Literal["processes", "ray"] = "processes"
    """Processes of this machine, or the workers of a Ray cluster (pip install 'frenet[ray]')."""
    address: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="")] = None
    """Ray cluster, such as ray://host:10001. By default one is started on this machine."""
    retry_failed: Switch = False
    """Run the failed cells of a finished run again."""
    quiet: Switch = False
    """Show no progress."""
    json: Switch = False
    """Print the result as JSON on standard output, and nothing else there."""


@dataclass(frozen=True)
class List:
    """Options of ``frenet list``."""

    json: Switch = False
    """Print JSON on standard output."""


@dataclass(frozen=True)
class Report:
    """Options of ``frenet report``."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folders, runs in one file (.run.jsonl.gz), or folders of them."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """The HTML file. By default report.html beside the runs."""
    export: Folder = None
    """Also write the figures (PNG, SVG) and tables (CSV) there."""
    results: Folder = None
    """Also write a Markdown page there, with figures and the runs, to keep beside code."""
    partial: Switch = False
    """Accept runs that are not finished."""
    json: Switch = False
    """Print the paths and the claims as JSON on standard output, and nothing else there."""


@dataclass(frozen=True)
class Convert:
    """Options of ``frenet convert``."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.gguf")]
    """The GGUF file."""
    out: Folder = None
    """The folder that is made. By default one in the cache, where --model FILE.gguf finds it."""


def named(name: str, known: Mapping[str, T], what: str) -> T:
    """Look a name up, or say which names there are."""
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"no {what} {name!r}; {hint}there are: {', '.join(known)}")


def parse(options: type[T], args: Sequence[str], *, command: str, about: str) -> T:
    """Command-line flags of a dataclass; ends the program on a mistake, or after help."""
    with _read_by_people():
        return tyro.cli(options, prog=f"frenet {command}", description=about, args=args)


def parse_both(
    running: type[T],
    settings: Any,
    args: Sequence[str],
    *,
    command: str,
    about: str,
    titles: tuple[str, str],
) -> tuple[T, Any]:
    """The flags of a run: how it runs, and a configuration, from its type or from a preset."""
    preset = not isinstance(settings, type)
    kind = type(settings) if preset else settings
    both: Any = make_dataclass("Both", [(titles[0], running), (titles[1], kind)])
    given = {"default": both(running(), settings)} if preset else {}
    with _read_by_people():
        parsed = tyro.cli(
            both,
            prog=f"frenet {command}",
            description=about,
            args=args,
            config=(tyro.conf.OmitArgPrefixes,),
            **given,
        )
    return getattr(parsed, titles[0]), getattr(parsed, titles[1])


@contextlib.contextmanager
def _read_by_people() -> Iterator[None]:
    """Messages that repeat what was given, and help, as people may and can read them."""
    plain = docstring_parser.parse_from_object

    def joined(obj: Any, style: Any = docstring_parser.DocstringStyle.AUTO) -> Any:
        found = plain(obj, style)
        for part in found.params:
            # tyro takes the indent of a docstring's further lines for new paragraphs.
            part.description = part.description and " ".join(part.description.split())
        return found

    docstring_parser.parse_from_object = joined
    try:
        with contextlib.redirect_stderr(Tamed(sys.stderr)):
            yield
    finally:
        docstring_parser.parse_from_object = plain


@contextlib.contextmanager
def printing(as_json: bool) -> Iterator[Callable[[Any], None]]:
    """Where results go, a line at a time, or as JSON.

    With JSON, all that libraries print goes to standard error instead.
    """
    out = sys.stdout

    def show(value: Any) -> None:
        text = json.dumps(value, indent=2, allow_nan=False) if as_json else one_line(value)
        print(text, file=out, flush=True)

    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield show
