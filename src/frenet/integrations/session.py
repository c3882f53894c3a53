"""One training from its first step to its last, as the main process sees it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet.experiments.experiment import Cell, Row
from frenet.experiments.watched import STALE, TRAINING, WatchConfig
from frenet.integrations.checks import space_digest
from frenet.integrations.folder import END, WatchFolder
from frenet.integrations.path import PathSums
from frenet.integrations.probes import Probe, checked, look
from frenet.integrations.recording import Recording, last_recorded
from frenet.measure.drift import half_life
from frenet.measure.trajectory_files import FOLDER
from frenet.network.adapters import structural_zeros
from frenet.network.space import ParamSpace
from frenet.runs import RunFolderError

logger = logging.getLogger("frenet")
# A prefix of k steps says little of a path that is shorter than 5k.
LONG = 5
# How far the resumed parameters may be from the recorded ones, in units of the displacement.
MISMATCH = 0.01

Logs = Sequence[Mapping[str, Any]]


class Plan(NamedTuple):
    """A training as it begins: its planned steps, and those that were taken before."""

    steps: int
    done: int


class Session:
    """Steps and looks of one training, into one folder.

    Args:
        model: at the step where the training begins or goes on.
        space: the d parameters.
        probes: what is looked at.
        config: how closely.
        out: the folder.
        plan: planned and taken steps.
        start_over: forget what the folder holds of this very training.

    Raises:
        RunFolderError: the folder holds another run, or not the steps of the one that goes on.
    """

    def __init__(
        self,
        model: nn.Module,
        space: ParamSpace,
        probes: Sequence[Probe],
        config: WatchConfig,
        *,
        out: Path,
        plan: Plan,
        start_over: bool = False,
    ) -> None:
        inputs = {f"examples of {probe.task.name}": probe.digest for probe in probes}
        inputs["the parameters"] = space_digest(space)
        self.folder = WatchFolder(out, config, inputs=inputs, steps=plan.steps)
        self.model, self.space, self.probes, self.plan = model, space, probes, plan
        self.config = self.folder.config
        self.path = PathSums(space, k=config.k)
        self.diverged = False
        # Found once: looking their names up at every step would take longer than reading them.
        self._parameters = space.parameters(model)
        self._point = self._read()
        self._zeros: int = 0
        self._gradient: Tensor | None = None
        self._steps = out / FOLDER
        # Rows so far: by probe, for its half-life.
        self._drift: dict[str, list[Row]] = {probe.task.name: [] for probe in probes}
        self._first_loss: dict[str, float] = {}
        self._looks: list[int] = []
        found = last_recorded(self._steps)
        if plan.done > found:
            raise RunFolderError(
                f"this training goes on from step {plan.done} and {out} holds the first {found} "
                "steps; give the out of the training that is resumed, or train from the start"
            )
        if found and not plan.done and not start_over:
            raise RunFolderError(
                f"{out} holds {found} steps of a training and this one begins at its start; resume "
                "from a checkpoint, or use another out"
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
        """Take the recorded steps up again, once they are seen to lead to the present point."""
        done = self.plan.done
        recording = Recording(self._steps, self.space, gradients=self.config.gradients)
        for moves in recording.stream(done):
            for step, zeros in zip(moves.steps, moves.zeros.tolist(), strict=True):
                self.path.add(step, zeros=zeros)
        expected = recording.start().double() + self.path.total
        off = float((expected - self._point.cpu()).norm())
        if off > MISMATCH * self.path.displacement:
            raise RunFolderError(
                f"the parameters that are resumed at step {done} are {off:.3g} from those recorded "
                f"in {self.folder.out}, after a displacement of {self.path.displacement:.3g}; this "
                "is another training: use another out"
            )
        self.folder.open(done)
        recording.cut(done)
        self._looks = self.folder.looks(done)
        for row in self.folder.rows():
            if row["table"] == "drift":
                self._drift[str(row["probe"])].append(row)
            elif row["table"] == "loss" and row["loss"] is not None:
                self._first_loss.setdefault(str(row["source"]), float(row["loss"]))
        return recording

    def before_step(self) -> None:
        """Note the gradient that the optimiser is about to use."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        gradient = _flat(parts)
        self._zeros = self.space.dim - int(gradient.count_nonzero())
        self._gradient = gradient.cpu() if self.config.gradients else None

    def _read(self) -> Float[Tensor, " d"]:
        return _flat(self._parameters)

    def after_step(self) -> None:
        """Record the move since the step before; nothing from a step on that is not finite."""
        if self.diverged:
            return
        point = self._read()
        step = (point - self._point).cpu()
        if not self.path.add(step, zeros=self._zeros):
            number = self.path.steps + 1
            try:
                self.space.check_finite(step, f"step {number} of this training")
            except FloatingPointError as error:
                self._stop(str(error))
            return
        self.recording.add(step, zeros=self._zeros, gradient=self._gradient)
        self._point = point

    def _stop(self, why: str) -> None:
        """Keep what there is, and say why there will be no more."""
        self.diverged = True
        self.recording.flush()
        kept = f"{why}; the {len(self.recording)} steps before it are kept in {self.folder.out}"
        self.folder.fail(kept)
        logger.error("frenet: training diverged: %s", kept)

    def look(self, step: int, logs: Logs) -> list[Row]:
        """Measure the probes and the path so far, and store it; the rows are given back.

        Args:
            step: optimiser steps taken.
            logs: what Trainer has logged.
        """
        if self.diverged or step in self._looks:
            return []
        self.recording.flush()
        rows: list[Row] = []
        try:
            for index, probe in enumerate(self.probes):
                rows += self._look_at(probe, step, self._steps / f"probe-{index}.safetensors")
        except FloatingPointError as error:
            self._stop(f"{error}, after step {step}")
            return []
        rows += [*self.path.rows(), *self._logged(logs, before=step), *self._notes(step)]
        self.folder.write(Cell.of(step=step), rows)
        self._looks.append(step)
        return rows

    def _look_at(self, probe: Probe, step: int, start: Path) -> list[Row]:
        name, k = probe.task.name, min(self.config.k, self.config.n)
        found, loss = look(self.model, probe, space=self.space, k=k, start=start)
        drift: Row = {**found, "step": step, "displacement": self.path.displacement}
        fresh_until = _half_life(self._drift[name])
        self._drift[name].append(drift)
        stale = _half_life(self._drift[name])
        rows = [drift, self._loss_row(name, step, loss)]
        if stale is not None and fresh_until is None:
            note = (
                f"the gradient basis that probe {name} had at the start has gone stale: its energy "
                f"ratio fell below {STALE} at step {stale:.0f} (control "
                f"{drift['control']:.2f}, chance {drift['chance']:.2g})"
            )
            logger.warning("frenet: %s", note)
            rows.append({"table": "notes", "step": step, "note": note})
        return rows

    def _loss_row(self, source: str, step: int, loss: float) -> Row:
        first = self._first_loss.setdefault(source, loss)
        return {"table": "loss", "source": source, "step": step, "loss": loss, "loss_0": first}

    def _logged(self, logs: Logs, *, before: int | None = None) -> list[Row]:
        """Trainer's losses since the last look, which had none of its own step yet."""
        since = self._looks[-1] if self._looks else 0
        return [
            self._loss_row(TRAINING, entry["step"], float(entry["loss"]))
            for entry in logs
            if "loss" in entry
            and since <= entry["step"]
            and (before is None or entry["step"] < before)
        ]

    def _notes(self, step: int) -> list[Row]:
        """What has to be known about the start."""
        if step:
            return []
        config, notes = self.config, []
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in self._parameters})
        notes.append(f"{self.space.dim:,} parameters are watched, in {' and '.join(kinds)}")
        for probe in self.probes[:1]:
            check = checked(self.model, probe, space=self.space)
            notes += [check.note] if check.note else []
        dead = structural_zeros(self.model, self.space)
        if dead.zero and self.probes:
            notes.append(
                f"at the start {dead.share:.0%} of the coordinates have no gradient (the other "
                "half of the adapter is zero): the start's bases hold nothing of them"
            )
        if config.n < config.k and self.probes:
            notes.append(f"gradient bases have n={config.n} dimensions, since k={config.k} is more")
        if self.plan.steps < LONG * config.k:
            notes.append(
                f"{self.plan.steps} planned steps are less than {LONG} k = {LONG * config.k}: what "
                "the prefix captures says little"
            )
        return [{"table": "notes", "step": 0, "note": note} for note in notes]

    def finish(self, logs: Logs) -> None:
        """Write what is known at the end, and close the folder."""
        self.recording.flush()
        if not self.diverged:
            rows = self._logged(logs)
            rows += [_half_life_row(name, found) for name, found in self._drift.items() if found]
            self.folder.write(END, rows)
        self.folder.finish(self._looks)
        self.folder.close()


def _flat(tensors: Sequence[Tensor]) -> Float[Tensor, " d"]:
    return torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])


def _half_life(rows: Sequence[Row], column: str = "step") -> float | None:
    """The first crossing of a half, in steps or in displacement."""
    found = {
        name: {float(row["step"] or 0): float(row[name] or 0) for row in rows}
        for name in ("ratio", column)
    }
    return half_life(found["ratio"], STALE, moved=found[column])


def _half_life_row(name: str, rows: Sequence[Row]) -> Row:
    return {
        "table": "half_life",
        "probe": name,
        "steps": _half_life(rows),
        "longest": rows[-1]["step"],
        "distance": _half_life(rows, "displacement"),
        "farthest": max(float(row["displacement"] or 0) for row in rows),
    }
