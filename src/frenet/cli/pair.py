"""``frenet pair``: do two directions compose, and how should they be merged?"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from frenet._errors import UsageError
from frenet.cli.execution import run_here, teller
from frenet.cli.options import Folder, OneProcess, parse_both, printing
from frenet.experiments.experiment import Row, Rows, answered
from frenet.experiments.pair_command import PAIR, Config
from frenet.experiments.pair_command.figures import TABLES

ABOUT = (
    "Do two directions in the weights of a model compose, and how should they be merged? Losses of "
    "both tasks with each and with both, how far both can be scaled, the blocks in which they "
    "interact, from which step size on the order of training matters, and merges that are chosen "
    "on some examples and reported on others. With --out the advised merge is written, too."
)
MERGED = "merged"


@dataclass(frozen=True, kw_only=True)
class Pairing(OneProcess):
    """How the command runs."""

    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A", help_behavior_hint="")]
    """Direction A: the folder of an adapter or a checkpoint, or a saved task vector."""
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B", help_behavior_hint="")]
    """Direction B."""
    out: Folder = None
    """Folder for the results, and in it "merged" with the advised merge: one adapter for two
    adapters (the exact sum, as ranks side by side), otherwise a checkpoint. By default runs/ and a
    name made from the settings, without a merge."""


@dataclass(frozen=True, kw_only=True)
class Options(Config):
    """Two directions in the weights of a model, and the task of each."""

    vectors: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()


def pair(args: list[str]) -> int:
    """``frenet pair``."""
    pairing, options = parse_both(
        Pairing, Options, args, command="pair", about=ABOUT, titles=("running", "pair")
    )
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(Config)}
    config = Config(**given | {"vectors": (pairing.a, pairing.b)})
    with printing(pairing.json) as show:
        _refuse_data_files(pairing)
        ended = run_here(PAIR, config, pairing)
        rows = ended.run.rows
        say = teller(quiet=pairing.quiet)
        merged = _written(config, rows, pairing.out / MERGED, say) if pairing.out else None
        if pairing.json:
            show(ended.facts("pair") | {"merged": merged, **_numbers(rows)})
        else:
            for answer in answered(PAIR, rows):
                show(str(answer))
            _show_merges(rows)
            written = [f"merged: {merged['folder']} ({merged['what']})"] if merged else []
            ended.show(show, *written)
    return ended.code


def _refuse_data_files(pairing: Pairing) -> None:
    """Refuse a data file as a direction.

    The parser takes the last file of --tasks for B if only A is given.
    """
    from frenet.network.data.files import SUFFIXES

    for name, path in (("A", pairing.a), ("B", pairing.b)):
        if Path(path).suffix in SUFFIXES:
            raise UsageError(
                f"direction {name} is {path}, a data file; give both directions before the "
                "options: frenet pair A B --model MODEL --tasks FILE ..."
            )


def _written(
    config: Config, rows: Rows, folder: Path, say: Callable[[str], None]
) -> dict[str, str] | None:
    """Write the advised merge, if there is one and it is not there yet."""
    if not any(row["table"] == "merge" and row.get("chosen") for row in rows):
        return None
    from frenet.experiments.pair_command.merged import LAST, write_merge
    from frenet.experiments.pair_command.subject import load_subject

    if any((folder / name).exists() for name in LAST):
        return {"folder": str(folder), "what": "written before"}
    say("writing the advised merge")
    written = write_merge(load_subject(config), rows, folder, base=Path(config.model).expanduser())
    return {"folder": str(written.folder), "what": written.what}


def _numbers(rows: Rows) -> dict[str, Any]:
    """The sentences, and the rows of every table but the notes."""
    tables: dict[str, list[Row]] = {name: [] for name in TABLES if name != "notes"}
    for row in rows:
        if row["table"] in tables:
            tables[str(row["table"])].append({k: v for k, v in row.items() if k != "table"})
    answers = [{"subject": a.subject, "sentence": a.sentence} for a in answered(PAIR, rows)]
    return {"answers": answers, **tables}


def _show_merges(rows: Rows) -> None:
    """The table of merges for the terminal."""
    from rich.console import Console
    from rich.table import Table

    found = [row for row in rows if row["table"] == "merge"]
    if not found:
        return
    table = Table("merge", "A", "B", "score", "over 1.0 and 1.0")
    for row in found:
        a, b = ("" if row.get(side) is None else f"{row[side]:g}" for side in ("a", "b"))
        if row.get("left_out"):
            table.add_row(str(row["merge"]), a, b, "", f"left out: {row['left_out']}")
            continue
        name = f"{row['merge']} (chosen)" if row["chosen"] else str(row["merge"])
        score, over = (
            f"{row[key]:{form}} [{row[low]:.3g}, {row[high]:.3g}]"
            for key, low, high, form in (
                ("score", "low", "high", ".3g"),
                ("over_whole", "over_whole_low", "over_whole_high", "+.2g"),
            )
        )
        table.add_row(name, a, b, score, over)
    Console().print(table)
