"""What the stored rows of a run say about the claims of its experiment."""

import math
from typing import Any

from rich.table import Table
from rich.text import Text

from frenet._notebook import one_line
from frenet.experiments.experiment import Claim, Finding, Study, decided
from frenet.runs.store import Run
from frenet.statistics.intervals import Estimate

STYLES = {"supported": "green", "contradicted": "red", "undecided": "yellow"}


def decide_claims(experiment: Study, run: Run) -> list[tuple[Claim, Finding]]:
    """Apply the rule of every claim to the rows; if that raises, the claim is undecided."""
    return decided(experiment, run.rows)


def finding_dict(claim: Claim, finding: Finding) -> dict[str, Any]:
    """A claim and its finding as JSON values."""
    return {
        "id": claim.id,
        "statement": claim.statement,
        "paper": claim.paper,
        "rule": claim.rule,
        "verdict": finding.verdict,
        "quantity": finding.quantity,
        "estimate": _estimate_dict(finding.estimate),
        "reference": finding.reference,
        "reference_estimate": _estimate_dict(finding.reference_estimate),
        "why": finding.why,
        "notes": list(finding.notes),
        "breakdowns": [part._asdict() for part in finding.breakdowns],
    }


def _estimate_dict(estimate: Estimate | None) -> dict[str, Any] | None:
    """An estimate as JSON values."""
    if estimate is None:
        return None
    return {key: _finite(value) for key, value in estimate._asdict().items()}


def _finite(value: float | int | None) -> float | int | None:
    """A number for JSON: null if it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def run_dict(run: Run, findings: list[tuple[Claim, Finding]]) -> dict[str, Any]:
    """A run as JSON values: its folder, its failures, its claims."""
    return {
        "experiment": run.experiment,
        "out": str(run.path),
        "complete": run.manifest["complete"],
        "cells": run.manifest["cells"],
        "rows": run.manifest["rows"],
        "config": run.config,
        "failures": run.failures,
        "notes": run.notes,
        "claims": [finding_dict(claim, finding) for claim, finding in findings],
    }


def claims_table(findings: list[tuple[Claim, Finding]]) -> Table:
    """The claims with the numbers of the paper, for a terminal."""
    table = Table(show_lines=True)
    for heading in ("claim", "paper", "measured", "chance, null or ceiling", "verdict"):
        table.add_column(heading)
    for claim, finding in findings:
        table.add_row(
            Text(one_line(f"{claim.id} {claim.statement}")),
            Text(one_line(claim.paper)),
            _words(finding.quantity, finding.estimate),
            _words(finding.reference, finding.reference_estimate),
            Text(finding.verdict, style=STYLES[finding.verdict]),
        )
    return table


def _words(name: str, estimate: Estimate | None) -> Text:
    """A named number with its interval."""
    if estimate is None:
        return Text(one_line(name or "none"))
    text = f"{name}: {estimate.value:.3g}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{estimate.low:.3g}, {estimate.high:.3g}]"
    return Text(one_line(text))
