"""The run folder of a watched training: one cell per measurement, and one for the end."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from frenet.experiments.experiment import Cell, Row
from frenet.experiments.watched_training import STUDY, TABLES, WatchConfig, cells, looks
from frenet.runs import RunFolder, RunFolderError, read_run
from frenet.runs.header import Header, compare_headers, read_header
from frenet.runs.machine import versions
from frenet.runs.records import cell_stem, config_dict, encode_row, table_columns
from frenet.runs.store import Failure

logger = logging.getLogger("frenet")
END = Cell.of(part="end")


class WatchFolder:
    """Cells of one watched training; locked against other processes from ``open`` to ``close``.

    Args:
        out: the folder.
        config: what is watched.
        inputs: digests of the inputs that the configuration names.
        steps: planned steps of the whole training.

    Raises:
        RunFolderError: the folder holds a run of another configuration.
    """

    def __init__(
        self, out: Path, config: WatchConfig, *, inputs: Mapping[str, str], steps: int
    ) -> None:
        before = read_header(out)
        if before is not None and before.experiment == STUDY.name:
            # A resumed training may have loaded the model from the checkpoint's folder.
            config = replace(config, model=before.config["model"])
        self.out, self.config, self._steps = out, config, steps
        self._header = Header(
            experiment=STUDY.name,
            config=config_dict(config),
            cells=[cell_stem(cell) for cell in cells(config, steps=steps)],
            inputs=dict(inputs),
            threads=before.threads if before else torch.get_num_threads(),
            versions=versions(),
        )
        if before is not None:
            compare_headers(out, stored=before, wanted=self._header, state="empty")
        self._store: RunFolder | None = None
        self._since = time.monotonic()

    def open(self, done: int) -> None:
        """Lock the folder, and keep the measurements in the first ``done`` steps of a training.

        The measurement at an irregular last step stays only if the training is over: a longer
        training does not have it.
        """
        store = RunFolder(self.out, self._header, restart=True, extend=True)
        self._store = store.__enter__()
        if store.note:
            logger.warning("frenet: %s", store.note)
        cells = [Cell.of(step=step) for step in self._looked_at(done)]
        self.store.keep_only(cells if done else [])

    @property
    def store(self) -> RunFolder:
        """The open folder."""
        if self._store is None:
            raise RunFolderError(f"{self.out} is not open")
        return self._store

    def looks(self, done: int) -> list[int]:
        """Steps with a stored measurement among the first ``done``."""
        return [step for step in self._looked_at(done) if self.store.done(Cell.of(step=step))]

    def _looked_at(self, done: int) -> list[int]:
        """Steps at which a training measures in its first ``done`` steps."""
        return [step for step in looks(self.config.every, self._steps) if step <= done]

    def write(self, cell: Cell, rows: Sequence[Row]) -> None:
        """Store the rows of a measurement, or of the end."""
        tables = table_columns(TABLES)
        lines = [encode_row(row, tables) for row in rows]
        self.store.store(cell, lines, seconds=time.monotonic() - self._since)
        self._since = time.monotonic()

    def fail(self, kind: type[Exception], message: str) -> None:
        """Store why recording stopped."""
        failure = Failure("training", kind.__name__, message, "", user_mistake=True)
        self.store.store_failure(END, failure)

    def rows(self) -> Iterator[Row]:
        """The stored rows."""
        yield from read_run(self.out, partial=True).rows

    def finish(self, looks: Sequence[int]) -> None:
        """Write the rows of these steps and of the end, and the manifest."""
        self.store.finish([*(Cell.of(step=step) for step in looks), END], workers=1)

    def close(self) -> None:
        """Unlock the folder."""
        if self._store is not None:
            self._store.__exit__(None, None, None)
            self._store = None
