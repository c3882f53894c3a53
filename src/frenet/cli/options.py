"""Names and flags of the command line."""

import contextlib
import difflib
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import docstring_parser
import tyro

from frenet._errors import UsageError
from frenet._notebook import one_line
from frenet.cli.groups import Groups, identifier
from frenet.cli.streams import Tamed
from frenet.experiments.experiment import DEFAULT_PRESET

RUN_HELP = """\
usage: frenet run EXPERIMENT [--preset NAME] [options]

Runs one experiment into a run folder. frenet run EXPERIMENT --help shows its options.

experiments:
"""

Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
Count = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
# Off by default, without a --no-x; fields that a preset may switch on have both flags.
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """Options of all commands that run experiments."""

    preset: Annotated[str, tyro.conf.arg(metavar="NAME")] = DEFAULT_PRESET
    """Settings to start from; they depend on the kind of network. smoke takes seconds; demo, cpu
    and gpu measure more. A single experiment also has lm, the default if --model names a language
    model."""
    out: Folder = None
    """Folder for the results. By default runs/ and a name made from the settings."""
    workers: Count = None
    """Number of parallel processes. By default one per processor; 1 for a language model on a
    GPU."""
    threads: Count = None
    """Torch threads per process. By default the processors are shared equally."""
    engine: Literal["processes", "ray"] = "processes"
    """Run on processes of this machine, or on a Ray cluster (pip install 'frenet[ray]')."""
    address: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="")] = None
    """Ray cluster, such as ray://host:10001. By default one is started on this machine."""
    retry_failed: Switch = False
    """Run the failed cells of a finished run again."""
    quiet: Switch = False
    """Show no progress."""
    why: Switch = False
    """Give the reason of every verdict, and not only of those that leave a claim open."""
    json: Switch = False
    """Print only JSON on standard output."""


@dataclass(frozen=True, kw_only=True)
class OneProcess:
    """Options of the commands that measure everything in their own process."""

    out: Folder = None
    """Folder for the results. By default runs/ and a name made from the settings."""
    threads: Count = None
    """Torch threads. By default one per processor, or what a resumed run began with."""
    retry_failed: Switch = False
    """Run the failed parts of a finished run again."""
    quiet: Switch = False
    """Show no progress."""
    json: Switch = False
    """Print only JSON on standard output."""


@dataclass(frozen=True)
class List:
    """Options of ``frenet list``."""

    json: Switch = False
    """Print JSON on standard output."""


@dataclass(frozen=True)
class Report:
    """Options of ``frenet report``."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folders, packed runs (.run.jsonl.gz), or folders that contain them."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """The HTML file. By default report.html in the folder of the runs."""
    export: Folder = None
    """Also write the figures (PNG, SVG) and tables (CSV) to this folder."""
    results: Folder = None
    """Also write Markdown pages with figures (index.md, and one page per network), and the packed
    runs, to this folder, for a repository."""
    site: Folder = None
    """Also write HTML pages that open offline (index.html, and one page per network) to this
    folder."""
    static: Switch = False
    """Add a picture of every figure for browsers without scripts; the files become larger."""
    partial: Switch = False
    """Accept unfinished runs."""
    why: Switch = False
    """Give the reason of every verdict, and every note. Verdicts are printed for one network."""
    json: Switch = False
    """Print only JSON on standard output: the paths and the claims."""


@dataclass(frozen=True)
class Convert:
    """Options of ``frenet convert``."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.gguf")]
    """The GGUF file."""
    out: Folder = None
    """Folder to write. By default one in the cache, where --model FILE.gguf looks for it."""


def named(name: str, choices: Mapping[str, T], what: str) -> T:
    """Look a name up, or refuse it with the names that there are."""
    if name in choices:
        return choices[name]
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"no {what} {name!r}; {hint}there are: {', '.join(choices)}")


def parse(options: type[T], args: Sequence[str], *, command: str, about: str) -> T:
    """Read command-line flags into a dataclass; exits on a mistake, or after help."""
    return _parsed([Groups.of(options, command)], args, command=command, about=about)[0]


def parse_both(
    running: type[T],
    settings: Any,
    args: Sequence[str],
    *,
    command: str,
    about: str,
    titles: tuple[str, str],
) -> tuple[T, Any]:
    """Read the flags of a run: how it runs, and its configuration, a type or a preset."""
    divided = [Groups.of(settings, titles[1]), Groups.of(running, titles[0])]
    configuration, work = _parsed(divided, args, command=command, about=about)
    return work, configuration


def _parsed(
    divided: Sequence[Groups], args: Sequence[str], *, command: str, about: str
) -> list[Any]:
    """The dataclasses of the groups."""
    parts = [part for groups in divided for part in groups.parts.items()]
    together = make_dataclass(
        "Options",
        [(identifier(title), Annotated[kind, tyro.conf.arg(name=title)]) for title, kind in parts],
    )
    with _read_by_people():
        parsed: Any = tyro.cli(
            together,
            prog=f"frenet {command}",
            # tyro joins lines that do not begin with a space.
            description=wrapped(about, 1),
            args=args,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    return [groups.whole(parsed) for groups in divided]


def wrapped(text: str, indent: int) -> str:
    """A text in the width of the terminal; all lines but the first are indented.

    Words are left whole, so that paths can be copied.
    """
    return textwrap.fill(
        text, shutil.get_terminal_size().columns - 1, subsequent_indent=" " * indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


@contextlib.contextmanager
def _read_by_people() -> Iterator[None]:
    """Print help as whole paragraphs, and error messages without control characters."""
    plain = docstring_parser.parse_from_object

    def joined(obj: Any, style: Any = docstring_parser.DocstringStyle.AUTO) -> Any:
        parsed = plain(obj, style)
        for part in parsed.params:
            # tyro starts a new paragraph at every indented line of a docstring.
            part.description = part.description and " ".join(part.description.split())
        return parsed

    docstring_parser.parse_from_object = joined
    try:
        with contextlib.redirect_stderr(Tamed(sys.stderr)):
            yield
    finally:
        docstring_parser.parse_from_object = plain


@contextlib.contextmanager
def printing(as_json: bool) -> Iterator[Callable[[Any], None]]:
    """A function that prints results, line by line or as JSON.

    With JSON, everything that libraries print goes to standard error. On a terminal lines are
    wrapped; in a file or pipe each result stays one line.
    """
    out = sys.stdout

    def show(value: Any) -> None:
        text = json.dumps(value, indent=2, allow_nan=False) if as_json else one_line(value)
        if not as_json and out.isatty():
            text = wrapped(text, 2)
        print(text, file=out, flush=True)

    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield show
