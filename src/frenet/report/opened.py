"""Runs to ask in Python: claims, tables, figures, a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frenet._errors import UsageError
from frenet._notebook import listed
from frenet.experiments import EXPERIMENTS, described
from frenet.experiments.experiment import SYNTHETIC, Study, kind_of
from frenet.report.figures import rows_of
from frenet.report.page import write_report
from frenet.report.tables import tables_of
from frenet.runs import claims, default_out, engine, reading
from frenet.runs.store import Run

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class OpenRun(Run):
    """A stored run that can be asked; see :class:`frenet.runs.Run` for what it holds."""

    @classmethod
    def of(cls, run: Run) -> "OpenRun":
        """The same run."""
        return cls(**{field.name: getattr(run, field.name) for field in fields(run)})

    @property
    def _study(self) -> Study:
        return described()[self.experiment]

    @property
    def claims(self) -> "pd.DataFrame":
        """The claims of the experiment, one row each, with the claim's name as the index.

        Columns: ``statement``, ``verdict`` (one of five words), ``detail`` (what belongs to the
        word, such as the margin), ``quantity``, ``value``, ``low`` and ``high`` (95% interval),
        ``n`` and ``unit`` (what is counted), ``reference`` and ``reference_value`` (chance level,
        null or ceiling), ``why``. An experiment without claims has no rows.
        """
        import pandas as pd

        found = claims.decide_claims(self._study, self)
        rows = [
            {
                "claim": finding.name,
                "statement": claim.statement,
                "verdict": finding.verdict,
                "detail": finding.decision.detail,
                "quantity": finding.quantity,
                **{name: getattr(finding.estimate, name, None) for name in _ESTIMATE},
                "reference": finding.reference,
                "reference_value": getattr(finding.reference_estimate, "value", None),
                "why": finding.why,
            }
            for claim, finding in found
        ]
        columns = ["statement", "verdict", "detail", "quantity", *_ESTIMATE]
        columns += ["reference", "reference_value", "why"]
        return pd.DataFrame(rows, columns=["claim", *columns]).set_index("claim")

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables that have rows."""
        return tuple(tables_of(self._study, self.rows))

    def table(self, name: str) -> "pd.DataFrame":
        """The rows of a table; ``attrs["units"]`` has the units of its columns.

        Raises:
            ValueError: the run has no rows of such a table; names those that it has.
        """
        import pandas as pd

        there = tables_of(self._study, self.rows)
        if name not in there:
            raise UsageError(f"the run has no table {name!r}; it has {listed(there)}")
        columns, rows = there[name]
        frame = pd.DataFrame(rows, columns=[column.name for column in columns])
        frame.attrs["units"] = {column.name: column.unit for column in columns}
        return frame

    def figure(self, name: str) -> Any:
        """A figure of the experiment as an Altair chart.

        Raises:
            ValueError: no such figure, or no rows for it; names those that there are.
        """
        figures = {figure.id: figure for figure in self._study.figures}
        drawn = {key: rows for key, one in figures.items() if (rows := rows_of(one, self.rows))}
        if name not in drawn:
            why = "has no rows for the" if name in figures else "has no"
            raise UsageError(f"the run {why} figure {name!r}; it has {listed(drawn)}")
        return figures[name].chart(drawn[name])

    def report(self, path: Path | str) -> Path:
        """Write the report of this run as one HTML file; returns its path."""
        return write_report([self], Path(path))


_ESTIMATE = ("value", "low", "high", "n", "unit")


def read_run(path: Path | str, *, partial: bool = False) -> OpenRun:
    """Read a stored run, to ask it for claims, tables, figures and a report.

    Args:
        path: the run folder, or the file that :func:`frenet.runs.pack_run` made of it.
        partial: also accept a run that is not finished, with the rows of its finished cells; its
            manifest then says ``complete: false``.

    Raises:
        FileNotFoundError: no such file.
        RunFolderError: no run folder, not finished, or rows that differ from the manifest.
    """
    return OpenRun.of(reading.read_run(path, partial=partial))


def run(
    name: str,
    *,
    model: str = SYNTHETIC,
    tasks: str | Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    preset: str | None = None,
    out: Path | str | None = None,
    workers: int | None = None,
    quiet: bool = False,
    **settings: Any,
) -> OpenRun:
    """Run an experiment, resume it, or read it if it is finished, like ``frenet run``.

    Args:
        name: of the experiment, such as "recovery-basis".
        model: "synthetic", a hub id, a folder or a GGUF file.
        tasks: files or names of data sets, for a language model.
        seeds: each gives one replicate; None: those of the preset.
        preset: the settings to start from; None: "demo" for the synthetic transformer, otherwise
            "lm".
        out: the run folder; None: runs/ and a name that the settings give.
        workers: processes; None: one per processor.
        quiet: show no progress.
        **settings: further fields of the experiment's configuration.

    Returns:
        The finished run.

    Raises:
        ValueError: an unknown experiment, preset or setting; names those that there are.
        RunFailedError: every cell failed.
    """
    if name not in EXPERIMENTS:
        raise UsageError(f"no experiment {name!r}; there are {listed(EXPERIMENTS)}")
    experiment, kind = EXPERIMENTS[name], kind_of(model)
    given: Mapping[str, Any] = {"model": model, **settings}
    if tasks:
        given = {**given, "tasks": (tasks,) if isinstance(tasks, str) else tuple(tasks)}
    if seeds is not None:
        given = {**given, "seeds": tuple(seeds)}
    known = [field.name for field in fields(experiment.config)]
    if unknown := [key for key in given if key not in known]:
        raise UsageError(f"{name} has no setting {unknown[0]!r}; it has {listed(known)}")
    start = experiment.settings(preset or experiment.usual_preset(kind), kind)
    config = replace(start, **given)
    folder = default_out(experiment, config) if out is None else out
    made = engine.run_experiment(experiment, config, folder, workers=workers, quiet=quiet)
    return OpenRun.of(made)
