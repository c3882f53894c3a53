"""Runs read back: from their folder, finished or not, and from one file that can be handed on."""

import gzip
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

from frenet.experiments import described
from frenet.experiments.experiment import Row
from frenet.runs.files import RunFolderError
from frenet.runs.header import FORMAT, PACKED, Header, commits_of, read_header, read_json
from frenet.runs.machine import system_of
from frenet.runs.records import canonical, read_cell
from frenet.runs.store import Run, describe, failures_of


def read_run(path: Path | str, *, partial: bool = False) -> Run:
    """Read a stored run.

    Args:
        path: the run folder, or the file that :func:`pack_run` made of it.
        partial: also accept a run that is not finished, with the rows of its finished cells; its
            manifest then says ``complete: false``.

    Returns:
        The run; rows in the order of the cells.

    Raises:
        FileNotFoundError: no such file.
        RunFolderError: no run folder, not finished, or rows that are not those of the manifest.
    """
    folder = Path(path)
    if folder.name.endswith(PACKED):
        return _read_packed(folder, partial=partial)
    header = read_header(folder)
    if header is None:
        raise RunFolderError(f"{folder} is not a run folder: it has no config.json")
    if (folder / "manifest.json").exists():
        manifest = read_json(folder / "manifest.json")
        text = (folder / "rows.jsonl").read_text("utf-8")
        _refuse_edited(folder / "rows.jsonl", text, manifest)
    elif partial:
        text, manifest = _so_far(folder, header)
    else:
        done = sum((folder / "cells" / f"{stem}.jsonl").exists() for stem in header.cells)
        raise RunFolderError(
            f"the run in {folder} is not finished ({done} of {len(header.cells)} cells): start its "
            "command again to go on, or ask for what there is with --partial"
        )
    rows = _rows(header.experiment, text)
    return Run(header.experiment, header.config, rows, manifest, manifest["failures"], folder)


def _rows(experiment: str, text: str) -> list[Row]:
    """The stored rows, in the terms of this version."""
    rows: list[Row] = [json.loads(line) for line in text.splitlines()]
    known = described().get(experiment)
    return rows if known is None or known.reread is None else known.reread(rows)


def _so_far(folder: Path, header: Header) -> tuple[str, dict[str, Any]]:
    """Rows of the finished cells of a run under way, and a manifest that says so."""
    files = [f for stem in header.cells if (f := folder / "cells" / f"{stem}.jsonl").exists()]
    text = "".join(line for file in files for line in read_cell(file)[1])
    failures, commits = failures_of(folder, header.cells), commits_of(folder)
    facts = describe(header, commits, rows=text, finished=len(files), failures=failures)
    open_yet = {"complete": False, "workers": None, "cell_seconds": None, "ended": None}
    return text, facts | open_yet


def _refuse_edited(file: Path, text: str, manifest: dict[str, Any]) -> None:
    if hashlib.sha256(text.encode()).hexdigest() != manifest["rows_sha256"]:
        raise RunFolderError(
            f"{file} is not what the manifest says: it was edited; take the file as it was written"
        )


def pack_run(run: Run) -> bytes:
    """A run as one file, to hand on or to keep beside code; :func:`read_run` reads it back.

    Gzip of lines of JSON: the first has the experiment, its configuration and the manifest, each
    further one a row. Of the platform it names the system alone. The same run gives the same bytes.

    Args:
        run: a finished or partial run.

    Returns:
        The content of a file whose name ends with ``.run.jsonl.gz``.
    """
    text = "".join(f"{canonical(row)}\n" for row in run.rows)
    about = run.manifest["machine"]
    manifest = run.manifest | {
        "rows_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "machine": about | {"platform": system_of(about)},
        "failures": run.failures,
    }
    head = {
        "format": FORMAT,
        "experiment": run.experiment,
        "config": run.config,
        "manifest": manifest,
    }
    # Without a time in its head, a compressed file follows from its content alone.
    return gzip.compress(f"{json.dumps(head, allow_nan=False)}\n{text}".encode(), mtime=0)


def _read_packed(file: Path, *, partial: bool) -> Run:
    """A run from the file that :func:`pack_run` made of it."""
    try:
        with gzip.open(file, "rt", encoding="utf-8", newline="\n") as stream:
            head, text = json.loads(stream.readline()), stream.read()
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
        raise RunFolderError(
            f"{file} is damaged or not frenet's: {error}; copy it again, or make it again with "
            "frenet report RUN_DIR --results FOLDER"
        ) from error
    needed = {"experiment", "config", "manifest"}
    if not isinstance(head, dict) or head.get("format") != FORMAT or needed - set(head):
        raise RunFolderError(
            f"{file} was not written by this version of frenet; read it with the one that wrote it"
        )
    manifest = head["manifest"]
    _refuse_edited(file, text, manifest)
    if manifest.get("complete") is False and not partial:
        raise RunFolderError(
            f"the run in {file} is not finished; ask for what there is with --partial"
        )
    rows = _rows(head["experiment"], text)
    return Run(head["experiment"], head["config"], rows, manifest, manifest["failures"], file)
