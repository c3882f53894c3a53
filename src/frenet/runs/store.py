"""Run folders: written once, whole after any interruption, manifest last.

config.json    first: experiment, configuration, cells, threads, inputs, versions, device, commits
cells/         one file for each finished cell: its name, the digest of its run, its rows
failed/        one file for each cell that failed: message, traceback, its rows so far
log.txt        what worker processes printed
rows.jsonl     every row in the order of the cells
timings.json   seconds of each cell
manifest.json  last: it says that the run is finished, and with what

config.json, manifest.json, the heads of cells and failures hold the sha256 of their content, cells
and manifest also that of the rows. When a run resumes, damaged files that follow from others are
named and made again: a cell from its experiment, rows and manifest from the cells.
"""

import contextlib
import datetime
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from frenet._files import (
    DamagedFileError,
    named_errors,
    pretty,
    read_object,
    remove_leftovers,
    sealed,
    unsealed,
    write_whole,
)
from frenet._notebook import Fact, Interval, Shown
from frenet.experiments import described
from frenet.experiments.experiment import Answer, Cell, Finding, Row, answered, decided
from frenet.runs.files import DamagedRunError, RunFolderError, locked
from frenet.runs.header import (
    FORMAT,
    Header,
    State,
    commits_of,
    compare_headers,
    note_commit,
    read_header,
    refuse_foreign,
    write_head,
)
from frenet.runs.machine import commit, machine
from frenet.runs.manifest import MANIFEST, ROWS, read_finished
from frenet.runs.records import StoredCell, cell_stem, config_digest, encode_cell, read_cell


@dataclass(frozen=True, repr=False)
class Run(Shown):
    """A stored run.

    ``manifest`` holds versions, machine, counts, ``complete`` and the ``commits`` of frenet that
    worked on the run (``commit`` if it is one); ``failures`` the cell, stage, type and message of
    each failed cell; ``path`` is the folder or file. ``stored`` are the rows as written, ``rows``
    the same rows converted to this version.
    """

    experiment: str
    config: dict[str, Any]
    rows: list[Row]
    manifest: dict[str, Any]
    failures: list[dict[str, Any]]
    path: Path
    stored: list[Row] | None = None

    @property
    def notes(self) -> list[str]:
        """Caveats about networks and data, each once."""
        texts = (row.get("note") for row in self.rows if row["table"] == "notes")
        return [str(text) for text in dict.fromkeys(texts)]

    def _summary(self) -> str:
        failed = f", failed cells: {len(self.failures)}" if self.failures else ""
        return f"{self.experiment}, {len(self.rows)} rows in {self.path}{failed}"

    def _entries(self) -> Iterator[Fact]:
        declared = described().get(self.experiment)
        if declared is None:
            return
        for claim, finding in decided(declared, self.rows):
            null = finding.reference_estimate
            reference = f"{finding.quantity}; {finding.reference}: {null or 'none'}"
            yield f"{finding.name}: {claim.statement}", _measured(finding), reference
        yield from _by_seed(answered(declared, self.rows))


def _measured(finding: Finding) -> object:
    """The verdict of a finding, with its number."""
    found, null = finding.estimate, finding.reference_estimate
    if found is None:
        return f"{finding.decision}"
    chance = None if null is None else null.value
    return Interval(found.value, found.low, found.high, chance, word=str(finding.decision))


def _by_seed(answers: Iterable[Answer]) -> Iterator[Fact]:
    """One entry for each subject, with the answers of all seeds; those that agree stand once."""
    grouped: dict[str, dict[str, list[str]]] = {}
    for answer in answers:
        keys = (f"{key}\u00a0{value}" for key, value in answer.keys.items() if key != "seed")
        found = grouped.setdefault(", ".join((answer.subject, *keys)), {})
        found.setdefault(answer.sentence, []).append(str(answer.keys.get("seed", "")))
    for subject, found in grouped.items():
        parts = [
            (f"seed {', '.join(seeds)}: " if len(found) > 1 and any(seeds) else "") + sentence
            for sentence, seeds in found.items()
        ]
        count = sum(map(len, found.values()))
        yield subject, "; ".join(parts), f"{count} seed{'' if count == 1 else 's'}"


class Failure(NamedTuple):
    """Why a cell has no result; ``rows`` are the stored lines of its rows so far."""

    stage: str
    type: str
    error: str
    traceback: str
    user_mistake: bool
    rows: tuple[str, ...] = ()


class RunFolder:
    """A run folder opened for writing; as a context manager it is locked against other processes.

    Args:
        path: the folder; made if missing, refused if it holds something else.
        header: what the run is.
        restart: remove the manifest of a finished run, so that its failed cells run again.
        extend: the cells may differ from those of the stored run and replace them, for a training
            that continues for longer than planned.

    Raises:
        RunFolderError: another run, other versions, a foreign folder, or a second writer.
        DiskFullError: no space left.

    Once it is open, ``note`` is what the user should know about a resumed run: another commit, and
    damaged files that are made again.
    """

    def __init__(
        self, path: Path, header: Header, *, restart: bool = False, extend: bool = False
    ) -> None:
        self.path = path
        self.header = header
        self._restart = restart
        self._extend = extend
        self._open = contextlib.ExitStack()
        self.note: str | None = None
        self._run = config_digest(header.experiment, header.config)

    def __enter__(self) -> "RunFolder":
        refuse_foreign(self.path)
        with named_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._open.enter_context(locked(self.path))
        try:
            self._prepare()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def _prepare(self) -> None:
        """Check the folder, or write the first file."""
        with named_errors(self.path):
            remove_leftovers(self.path)
        stored = read_header(self.path)
        state = self._state()
        if stored is not None:
            before = replace(stored, cells=self.header.cells) if self._extend else stored
            compare_headers(self.path, stored=before, wanted=self.header, state=state)
        notes = [*self._unseal(stored)] if stored is not None and state == "finished" else []
        fresh = stored is None or state == "empty"
        if stored is not None and not fresh:
            self.header = replace(self.header, device=stored.device)
        if fresh or self._extend:
            commits = [commit()] if fresh else commits_of(self.path)
            head = {"format": FORMAT, "started": _now(), "commits": commits, **asdict(self.header)}
            if self.header.declared is None:
                del head["declared"]
            write_head(self.path, head)
        with named_errors(self.path):
            if self._restart:
                for name in (MANIFEST, "timings.json", ROWS):
                    (self.path / name).unlink(missing_ok=True)
            for name in ("cells", "failed"):
                (self.path / name).mkdir(exist_ok=True)
            if not self.finished:
                notes += [*self._drop_damaged()]
        if not self.finished:
            commit_note = note_commit(self.path)
            notes += [commit_note] if commit_note else []
        self.note = "\n".join(notes) or None

    def _unseal(self, stored: Header) -> Iterator[str]:
        """Resume a finished run with a damaged manifest or damaged rows, and say why."""
        try:
            read_finished(self.path, stored)
        except DamagedRunError as error:
            self._restart = True
            try:
                compare_headers(self.path, stored=stored, wanted=self.header, state="begun")
            except RunFolderError as other:
                raise RunFolderError(f"{error}. That is not possible here: {other}") from error
            yield f"{error.damage}; it is made again from the stored cells"

    def _drop_damaged(self) -> Iterator[str]:
        """Remove damaged cells, so that they run again, and report them and unchecked cells."""
        unsealed_cells = 0
        for file in sorted((self.path / "cells").glob("*.jsonl")):
            try:
                unsealed_cells += not read_cell(file, run=self._run).sealed
            except DamagedRunError as error:
                file.unlink()
                yield f"{error.damage}; this cell runs again"
        if unsealed_cells:
            yield (
                f"{self.path}: finished cells without digests, from an earlier build: "
                f"{unsealed_cells}; damage in them cannot be detected"
            )
        for failed in (self.path / "failed").glob("*.json"):
            done = (self.path / "cells" / f"{failed.stem}.jsonl").exists()
            if done or not _readable(failed):  # killed between storing the rows and this
                failed.unlink()

    def _state(self) -> State:
        """The state of the run; a finished run that resumes counts as begun."""
        if self.finished:
            return "begun" if self._restart else "finished"
        return "begun" if any((self.path / "cells").glob("*.jsonl")) else "empty"

    @property
    def finished(self) -> bool:
        """Whether the manifest is there."""
        return (self.path / "manifest.json").exists()

    def done(self, cell: Cell) -> bool:
        """Whether the rows of a cell are stored."""
        return self._cell_file(cell).exists()

    def store(
        self,
        cell: Cell,
        lines: Sequence[str],
        *,
        seconds: float,
        peak_mib: int | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Store the rows of a finished cell; lines as :func:`frenet.runs.records.encode_row`.

        ``about`` goes into the head of its file.
        """
        facts = {**(about or {}), "seconds": round(seconds, 3), "peak_mib": peak_mib}
        write_whole(self._cell_file(cell), encode_cell(cell, lines, run=self._run, about=facts))
        self._failed_file(cell).unlink(missing_ok=True)

    def stored(self, cell: Cell) -> StoredCell:
        """The stored rows of a finished cell.

        Raises:
            DamagedRunError: they are damaged.
        """
        return read_cell(self._cell_file(cell), run=self._run)

    def store_failure(self, cell: Cell, failure: Failure) -> None:
        """Store why a cell failed, and its rows so far; resuming tries it again."""
        record = {"cell": cell.id, "keys": dict(cell.keys), **failure._asdict()}
        record["rows"] = [json.loads(line) for line in failure.rows]
        write_whole(self._failed_file(cell), pretty(sealed(record)))

    def keep_only(self, cells: Sequence[Cell]) -> None:
        """Remove all other stored cells, for a training that goes back to a checkpoint."""
        stems = {cell_stem(cell) for cell in cells}
        for name, ending in (("cells", ".jsonl"), ("failed", ".json")):
            for file in (self.path / name).glob(f"*{ending}"):
                if file.name.removesuffix(ending) not in stems:
                    file.unlink()

    def finish(self, cells: Sequence[Cell], *, workers: int | None) -> None:
        """Write rows and timings in the order of the cells, and the manifest last."""
        parts = [self.stored(cell) for cell in cells if self.done(cell)]
        text = "".join(line for part in parts for line in part.lines)
        costs = [{key: p.head.get(key) for key in ("cell", "seconds", "peak_mib")} for p in parts]
        failures = failures_of(self.path, [cell_stem(cell) for cell in cells])
        write_whole(self.path / ROWS, text)
        write_whole(self.path / "timings.json", pretty(costs))
        note_commit(self.path)
        facts = describe(
            self.header, commits_of(self.path), rows=text, cells=parts, failures=failures
        )
        total = round(sum(part.head["seconds"] for part in parts), 3)
        manifest = facts | {"complete": True, "workers": workers, "cell_seconds": total}
        write_whole(self.path / MANIFEST, pretty(sealed(manifest)))

    def _cell_file(self, cell: Cell) -> Path:
        return self.path / "cells" / f"{cell_stem(cell)}.jsonl"

    def _failed_file(self, cell: Cell) -> Path:
        return self.path / "failed" / f"{cell_stem(cell)}.json"


def describe(
    header: Header,
    commits: list[str | None],
    *,
    rows: str,
    cells: Sequence[StoredCell],
    failures: list[dict[str, Any]],
) -> dict[str, Any]:
    """The entries of a manifest that follow from config.json and the cells.

    ``cells_without_digest``, if present, counts cells in which damage cannot be detected.
    """
    bare = sum(not cell.sealed for cell in cells)
    return {
        "format": FORMAT,
        "experiment": header.experiment,
        "config_sha256": config_digest(header.experiment, header.config),
        "cells": {"total": len(header.cells), "finished": len(cells), "failed": len(failures)},
        **({"cells_without_digest": bare} if bare else {}),
        "rows": rows.count("\n"),
        "rows_sha256": hashlib.sha256(rows.encode()).hexdigest(),
        "failures": failures,
        "inputs": header.inputs,
        **({"declared": header.declared} if header.declared else {}),
        "versions": header.versions,
        "machine": machine(),
        "commit": commits[0] if len(commits) == 1 else None,
        "commits": commits,
        "threads": header.threads,
        "device": header.device,
        "ended": _now(),
    }


def failures_of(folder: Path, stems: Sequence[str]) -> list[dict[str, Any]]:
    """The failed cells in the manifest; their files hold the details.

    A cell with rows does not count, even if a kill left the failure of an earlier try.
    """
    without = [stem for stem in stems if not (folder / "cells" / f"{stem}.jsonl").exists()]
    files = [file for stem in without if (file := folder / "failed" / f"{stem}.json").exists()]
    return [
        {key: record[key] for key in ("cell", "stage", "type", "error")}
        for record in map(_failure, files)
    ]


def _failure(file: Path) -> dict[str, Any]:
    """The stored record of a cell that failed."""
    try:
        record = read_object(file, cell=str, stage=str, type=str, error=str)
        # Earlier builds wrote no digest.
        return unsealed(record, file) if "sha256" in record else record
    except DamagedFileError as error:
        raise DamagedRunError.of(
            error, "run the same command again, which runs this cell again"
        ) from error


def _readable(file: Path) -> bool:
    """Whether the record of a failure is undamaged."""
    try:
        _failure(file)
    except DamagedRunError:
        return False
    return True


def _now() -> str:
    """The time, to the second, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
