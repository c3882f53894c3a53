"""Read runs: from their folder, finished or not, or from one packed file."""

import gzip
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

from frenet._files import DamagedFileError, canonical, parse_json, require_object, sealed
from frenet.experiments import described
from frenet.experiments.experiment import Row
from frenet.runs.files import DamagedRunError, RunFolderError
from frenet.runs.header import (
    FORMAT,
    FORMATS,
    PACKED,
    Header,
    commits_of,
    read_header,
    without_seal,
)
from frenet.runs.machine import system_of
from frenet.runs.manifest import (
    MANIFEST,
    checked_manifest,
    checked_rows,
    read_finished,
    refuse_other,
    refuse_version,
)
from frenet.runs.records import config_digest, read_cell
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
        RunFolderError: no run folder, not finished, or rows that differ from the manifest.
    """
    folder = Path(path)
    if folder.name.endswith(PACKED):
        return _read_packed(folder, partial=partial)
    header = read_header(folder)
    if header is None:
        raise RunFolderError(f"{folder} is not a run folder: it has no config.json")
    if (folder / MANIFEST).exists():
        manifest, rows = read_finished(folder, header)
    elif partial:
        manifest, rows = _so_far(folder, header)
    else:
        done = sum((folder / "cells" / f"{stem}.jsonl").exists() for stem in header.cells)
        raise RunFolderError(
            f"the run in {folder} is not finished ({done} of {len(header.cells)} cells): run its "
            "command again to finish it, or pass --partial to read what is finished"
        )
    return _run(header.experiment, header.config, rows, manifest, folder)


def _run(
    experiment: str, config: dict[str, Any], stored: list[Row], manifest: dict[str, Any], path: Path
) -> Run:
    """A run, with its rows converted to this version."""
    declared = described().get(experiment)
    rows = stored
    if declared is not None and declared.answers is not None:
        # Earlier builds stored sentences, which are made from the numbers now.
        rows = [row for row in rows if row["table"] != "answer"]
    if declared is not None and declared.reread is not None:
        rows = [dict(row) for row in declared.reread(rows)]
    return Run(experiment, config, rows, manifest, manifest["failures"], path, stored=stored)


def _so_far(folder: Path, header: Header) -> tuple[dict[str, Any], list[Row]]:
    """A manifest of an unfinished run, and the rows of its finished cells."""
    run = config_digest(header.experiment, header.config)
    files = [f for stem in header.cells if (f := folder / "cells" / f"{stem}.jsonl").exists()]
    cells = [read_cell(file, run=run) for file in files]
    text = "".join(line for cell in cells for line in cell.lines)
    failures, commits = failures_of(folder, header.cells), commits_of(folder)
    facts = describe(header, commits, rows=text, cells=cells, failures=failures)
    open_yet = {"complete": False, "workers": None, "cell_seconds": None, "ended": None}
    return facts | open_yet, [json.loads(line) for line in text.splitlines()]


def pack_run(run: Run) -> bytes:
    """A run as one file, to share or to store with code; :func:`read_run` reads it back.

    Gzip of lines of JSON: the first has the experiment, its configuration and the manifest, each
    further line has a row. Of the platform, only the system is named. The same run gives the same
    bytes.

    Args:
        run: a finished or partial run.

    Returns:
        The content of a file with a name that ends in ``.run.jsonl.gz``.
    """
    rows = run.rows if run.stored is None else run.stored
    text = "".join(f"{canonical(row)}\n" for row in rows)
    about = run.manifest["machine"]
    manifest = run.manifest | {
        "config_sha256": config_digest(run.experiment, run.config),
        "rows": len(rows),
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
    # Without a time in its head, a compressed file depends on its content alone.
    content = f"{json.dumps(sealed(head), allow_nan=False)}\n{text}"
    return gzip.compress(content.encode(), mtime=0)


def _read_packed(file: Path, *, partial: bool) -> Run:
    """A run from the file that :func:`pack_run` made of it."""
    try:
        head, manifest, rows = _unpacked(file)
    except (gzip.BadGzipFile, EOFError, zlib.error, DamagedFileError) as error:
        why = f"it {error.why}" if isinstance(error, DamagedFileError) else error
        raise DamagedRunError(
            f"{file} is damaged or not frenet's: {why}",
            "copy it again, or make it again with frenet report RUN_DIR --results FOLDER",
        ) from error
    if manifest["complete"] is False and not partial:
        raise RunFolderError(
            f"the run in {file} is not finished; pass --partial to read what is finished"
        )
    return _run(head["experiment"], head["config"], rows, manifest, file)


def _unpacked(file: Path) -> tuple[dict[str, Any], dict[str, Any], list[Row]]:
    """Head, manifest and rows of a packed run, compared with each other."""
    first, _, text = gzip.decompress(file.read_bytes()).partition(b"\n")
    head = parse_json(first, file)
    if not isinstance(head, dict) or head.get("format") not in FORMATS:
        refuse_version(file)
    head = without_seal(head, file)
    require_object(head, file, experiment=str, config=dict, manifest=dict)
    # The digest of the head covers the manifest.
    manifest = checked_manifest(head["manifest"] | {"format": 1}, file)
    refuse_other(head["experiment"], head["config"], manifest, file)
    return head, head["manifest"], checked_rows(text, manifest, file)
