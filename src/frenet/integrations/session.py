"""One training from its first step to its last, in the main process."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from frenet.experiments.experiment import Cell, Row
from frenet.experiments.setup.brackets import life_cells, life_of
from frenet.experiments.watched_training import STALE, TRAINING, WatchConfig, looks, sentences
from frenet.experiments.watched_training.advice import gap_cells, projection_gap
from frenet.geometry.linalg import norm
from frenet.integrations.checks import space_digest
from frenet.integrations.folder import END, WatchFolder
from frenet.integrations.order import UNMEASURED, order_rows
from frenet.integrations.path import PathSums
from frenet.integrations.probes import Probe, checked, look
from frenet.integrations.projections import projection_rows
from frenet.integrations.recording import Recording, last_recorded
from frenet.integrations.trained import Gradients, LeftOutError, Trained, flat
from frenet.measure.drift import UndefinedDriftError
from frenet.measure.trajectory_files import FOLDER
from frenet.network.adapters import structural_zeros
from frenet.runs import RunFolderError

logger = logging.getLogger("frenet")
# A prefix of k steps says little about a path shorter than 5k.
LONG = 5
# Largest distance of resumed parameters from the recorded ones, in units of the displacement.
MISMATCH = 0.01

Logs = Sequence[Mapping[str, Any]]


class Plan(NamedTuple):
    """The planned steps of a training, and those taken before this start."""

    steps: int
    done: int


class Session:
    """Records the steps and measurements of one training in one folder.

    Args:
        trained: the model and its d parameters, when the training begins or resumes.
        probes: the tasks to measure on.
        config: of the callback.
        out: the folder.
        plan: planned and taken steps.
        start_over: discard an earlier start of this training in the folder.

    Raises:
        RunFolderError: the folder holds another run, or lacks the steps of a resumed one.
    """

    def __init__(
        self,
        trained: Trained,
        probes: Sequence[Probe],
        config: WatchConfig,
        *,
        out: Path,
        plan: Plan,
        start_over: bool = False,
    ) -> None:
        inputs = {f"examples of {probe.task.name}": probe.digest for probe in probes}
        model, space = trained.model, trained.space
        inputs["the parameters"] = space_digest(space)
        self.folder = WatchFolder(out, config, inputs=inputs, steps=plan.steps)
        self.model, self.space, self.probes, self.plan = model, space, probes, plan
        self.trained, self.config = trained, self.folder.config
        self.planned = frozenset(looks(config.every, plan.steps))
        self.path = PathSums(space, k=config.k)
        # Recording has stopped; the folder says why.
        self.stopped = False
        self.gradients = Gradients(trained, keep=config.gradients)
        self._point = self._read()
        self._steps = out / FOLDER
        # Rows so far: by probe, for its half-life.
        self._drift: dict[str, list[Row]] = {probe.task.name: [] for probe in probes}
        self._projected: dict[tuple[str, str], list[Row]] = {}
        self._first_loss: dict[str, float] = {}
        self._looks: list[int] = []
        # Beginnings of notes that appear only once.
        self._noted: set[str] = set()
        recorded = last_recorded(self._steps)
        if plan.done > recorded:
            raise RunFolderError(
                f"this training resumes at step {plan.done}, but {out} holds the first {recorded} "
                "steps; pass the out of the resumed training, or train from the start"
            )
        if recorded and not plan.done and not start_over:
            raise RunFolderError(
                f"{out} holds {recorded} steps of a training, but this one starts at step 0; "
                "resume from a checkpoint, or use another out"
            )
        self.recording = self._resumed() if plan.done else self._begun()

    def _begun(self) -> Recording:
        self.folder.open(0)
        for file in self._steps.glob("probe-*"):
            file.unlink()
        recording = Recording(self._steps, self.space, gradients=self.config.gradients)
        recording.begin(self._point.cpu())
        return recording

    def _resumed(self) -> Recording:
        """Resume the recorded steps, if they lead to the current parameters."""
        done = self.plan.done
        recording = Recording(self._steps, self.space, gradients=self.config.gradients)
        for moves in recording.stream(done):
            counts = zip(moves.zeros.tolist(), moves.unseen.tolist(), strict=True)
            for step, (zeros, unseen) in zip(moves.steps, counts, strict=True):
                self.path.add(step, zeros=zeros, unseen=unseen)
        expected = recording.start().double() + self.path.total
        off = norm(expected - self._point.cpu())
        if off > MISMATCH * self.path.displacement:
            raise RunFolderError(
                f"the resumed parameters at step {done} are {off:.3g} from those recorded "
                f"in {self.folder.out}, after a displacement of {self.path.displacement:.3g}; this "
                "is another training: use another out"
            )
        self.folder.open(done)
        recording.cut(done)
        self._looks = self.folder.looks(done)
        for row in self.folder.rows():
            if row["table"] == "drift":
                self._drift[str(row["probe"])].append(row)
            elif row["table"] == "projection":
                self._remember_projection(row)
            elif row["table"] == "loss" and row["loss"] is not None:
                self._first_loss.setdefault(str(row["source"]), float(row["loss"]))
            elif row["table"] == "notes":
                self._noted.add(str(row["note"]).partition(":")[0])
        return recording

    def before_step(self) -> None:
        """Read the gradient that the optimiser is about to use."""
        if not self.stopped:
            self.gradients.note()

    def _read(self) -> Float[Tensor, " d"]:
        return flat(self.trained.parameters)

    def after_step(self) -> None:
        """Record the move since the last step.

        Recording stops at a step that is not finite, or when other parameters begin to train.
        """
        if self.stopped:
            return
        number = self.path.steps + 1
        try:
            for name in self.trained.follow():
                logger.warning(
                    "frenet: at step %d %s is another tensor than before; its moves are still "
                    "recorded, including the change of tensors", number, name,
                )  # fmt: skip
        except LeftOutError as error:
            self._stop(LeftOutError, f"step {number} of this training: {error}")
            return
        point = self._read()
        step = (point - self._point).cpu()
        seen = self.gradients.counted(step)
        if not self.path.add(step, zeros=seen.zeros, unseen=seen.unseen):
            try:
                self.space.check_finite(step, f"step {number} of this training")
            except FloatingPointError as error:
                self._stop(FloatingPointError, str(error))
            return
        self.recording.add(
            step, zeros=seen.zeros, unseen=seen.unseen, gradient=self.gradients.vector
        )
        self._point = point

    def _stop(self, kind: type[Exception], why: str) -> None:
        """Stop recording, keep the steps so far, and say why."""
        self.stopped = True
        self.gradients.close()
        self.recording.flush()
        kept = f"{why}; the {len(self.recording)} earlier steps are in {self.folder.out}"
        self.folder.fail(kind, kept)
        logger.error("frenet: recording stopped: %s", kept)

    def look(self, step: int, logs: Logs) -> list[Row]:
        """Measure the probes and the path so far, and store and return the rows.

        Args:
            step: optimiser steps taken.
            logs: what Trainer has logged.
        """
        if self.stopped or step in self._looks:
            return []
        self.recording.flush()
        rows: list[Row] = []
        try:
            self.trained.follow(thorough=True)
            self.trained.check_outside()
        except LeftOutError as error:
            before = self._looks[-1] if self._looks else 0
            self.recording.cut(before)
            self._stop(LeftOutError, f"between steps {before} and {step} of this training: {error}")
            return []
        try:
            for index, probe in enumerate(self.probes):
                rows += self._look_at(probe, step, self._steps / f"probe-{index}.safetensors")
                rows += self._projections(
                    probe, step, self._steps / f"probe-{index}-projections.safetensors"
                )
            rows += self._orders(step)
        except FloatingPointError as error:
            self._stop(FloatingPointError, f"{error}, after step {step}")
            return []
        rows += [*self.path.rows(), *self._logged(logs, before=step), *self._notes(step)]
        self.folder.write(Cell.of(step=step), rows)
        self._looks.append(step)
        self.gradients.watch()
        return rows

    def _look_at(self, probe: Probe, step: int, start: Path) -> list[Row]:
        name, k = probe.task.name, min(self.config.k, self.config.n)
        try:
            measured, loss = look(self.model, probe, space=self.space, k=k, start=start)
        except UndefinedDriftError as error:
            note = f"the basis of probe {name} was not measured: {error}"
            logger.warning("frenet: %s", note)
            return [{"table": "notes", "step": step, "note": note}]
        drift: Row = {**measured, "step": step, "displacement": self.path.displacement}
        self._drift[name].append(drift)
        life = life_of(self._drift[name], lag="step")
        rows = [drift, self._loss_row(name, step, loss)]
        # A half-life ends at the first measurement below the threshold, so this note appears once.
        if life is not None and life.steps.high == step:
            note = (
                f"the gradient basis that probe {name} had at the start has gone stale: its energy "
                f"ratio fell below {STALE} after {life.steps.in_words('step')} (control "
                f"{drift['control']:.2f}, chance {drift['chance']:.2g})"
            )
            logger.warning("frenet: %s", note)
            rows.append({"table": "notes", "step": step, "note": note})
        return rows

    def _projections(self, probe: Probe, step: int, start: Path) -> list[Row]:
        """Rows of the tables projection and projections, if they are asked for."""
        if not (rank := self.config.projection_rank):
            return []
        at: Row = {"step": step, "displacement": self.path.displacement}
        rows = []
        for row in projection_rows(
            self.model, probe, space=self.space, rank=rank, n=self.config.n, start=start
        ):
            single = row["table"] == "projection"
            rows.append(row | (at if single else {"step": step}))
            if single:
                self._remember_projection(rows[-1])
        return rows

    def _remember_projection(self, row: Row) -> None:
        key = (str(row["probe"]), str(row["matrix"]))
        self._projected.setdefault(key, []).append(row)

    def _orders(self, step: int) -> list[Row]:
        """Rows of the table order; a reason why there are none appears once."""
        if not self.config.order:
            return []
        rows = order_rows(self.model, self.probes, space=self.space, n=self.config.n, step=step)
        if rows[0]["table"] == "notes":
            if UNMEASURED in self._noted:
                return []
            self._noted.add(UNMEASURED)
            logger.info("frenet: %s", rows[0]["note"])
        return rows

    def _loss_row(self, source: str, step: int, loss: float) -> Row:
        first = self._first_loss.setdefault(source, loss)
        return {"table": "loss", "source": source, "step": step, "loss": loss, "loss_0": first}

    def _logged(self, logs: Logs, *, before: int | None = None) -> list[Row]:
        """Trainer's losses since the last measurement, which came before the loss of its step."""
        since = self._looks[-1] if self._looks else 0
        return [
            self._loss_row(TRAINING, entry["step"], float(entry["loss"]))
            for entry in logs
            if "loss" in entry
            and since <= entry["step"]
            and (before is None or entry["step"] < before)
        ]

    def _notes(self, step: int) -> list[Row]:
        """Notes about the start, and about gradients that could not be seen."""
        notes = self._at_start() if not step else self._unseen()
        return [{"table": "notes", "step": step, "note": note} for note in notes]

    def _unseen(self) -> list[str]:
        """A note, once, that the counts leave some gradients out."""
        note = "gradients that were not seen"
        if not self.path.unseen or note in self._noted:
            return []
        self._noted.add(note)
        share = self.path.unseen / (self.path.steps * self.space.dim)
        why = "a parameter was frozen at that step, or no loss depends on it"
        if self.gradients.gone:
            why = "the optimiser steps inside the backward pass and frees them"
            logger.warning("frenet: gradients are not seen: %s", why)
        return [
            f"{note}: {share:.0%} of the coordinates so far, since {why}; they are not counted"
            + (", and are recorded as NaN" if self.config.gradients else "")
        ]

    def _at_start(self) -> list[str]:
        config, notes = self.config, []
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in self.trained.parameters})
        notes.append(f"{self.space.dim:,} parameters are watched, in {' and '.join(kinds)}")
        if frozen := self.trained.frozen:
            notes.append(
                f"{frozen} of {len(self.space.names)} watched tensors are frozen at the start; "
                "they are still recorded, since the optimiser has them"
            )
        for probe in self.probes[:1]:
            check = checked(self.model, probe, space=self.space)
            notes += [check.note] if check.note else []
        dead = structural_zeros(self.model, self.space)
        if dead.zero and self.probes:
            notes.append(
                f"at the start {dead.share:.0%} of the coordinates have no gradient (the other "
                "half of the adapter is zero) and are not in the start's bases"
            )
        if config.n < config.k and self.probes:
            notes.append(f"gradient bases have n={config.n} dimensions, not k={config.k}")
        if self.plan.steps < LONG * config.k:
            notes.append(
                f"{self.plan.steps} planned steps are less than {LONG} k = {LONG * config.k}: the "
                "share that the prefix captures says little"
            )
        return notes

    def leave(self) -> None:
        """Leave the folder unfinished, with the steps so far, after an exception."""
        self.gradients.close()
        if not self.stopped:
            self.recording.flush()
        self.folder.close()

    def finish(self, logs: Logs) -> None:
        """Write the rows of the end, and close the folder."""
        self.recording.flush()
        self.gradients.close()
        if not self.stopped:
            rows = self._logged(logs)
            for name, drift in self._drift.items():
                rows += _half_life(name, drift)
            for (name, matrix), looks in self._projected.items():
                about: Row = {"probe": name, "rank": self.config.projection_rank, "matrix": matrix}
                if gap := projection_gap(looks):
                    rows.append({"table": "update_gap", **about, **gap_cells(gap)})
            self.folder.write(END, rows)
            for answer in sentences([*self.folder.rows()]):
                logger.warning("frenet: %s: %s", answer.subject, answer.sentence)
        self.folder.finish(self._looks)
        self.folder.close()


def _half_life(probe: str, rows: Sequence[Row]) -> list[Row]:
    """The half-life of one probe's basis."""
    life = life_of(rows, lag="step")
    if life is None:
        return []
    ends: Row = {"longest": life.longest, "farthest": life.farthest}
    return [{"table": "half_life", "probe": probe, **life_cells(life), **ends}]
