"""What the stored rows of a run say about the claims of its experiment."""

import math
from typing import Any

from rich.table import Table
from rich.text import Text

from frenet._notebook import one_line
from frenet.experiments.experiment import Claim, Finding, Study, Verdict, decided
from frenet.runs.store import Run
from frenet.statistics.intervals import Estimate

# Of the JSON form of findings; it grows when a key changes its meaning or goes.
SCHEMA = 2
STYLES: dict[Verdict, str] = {
    "supported": "green",
    "contradicted": "red",
    "equivalent": "cyan",
    "undecided": "yellow",
    "not testable": "dim",
}


def decide_claims(experiment: Study, run: Run) -> list[tuple[Claim, Finding]]:
    """Apply the rule of every claim to the rows; if that raises, the claim is undecided."""
    return decided(experiment, run.rows)


def finding_dict(claim: Claim, finding: Finding) -> dict[str, Any]:
    """A claim and its finding as JSON values."""
    needs = finding.decision.needs
    return {
        "id": claim.id,
        "statement": claim.statement,
        "paper": claim.paper,
        "rule": claim.rule,
        "case": finding.case,
        "verdict": finding.verdict,
        "detail": finding.decision.detail,
        "margin": finding.decision.margin,
        "needs": needs and needs._asdict(),
        "quantity": finding.quantity,
        "estimate": _estimate_dict(finding.estimate),
        "reference": finding.reference,
        "reference_estimate": _estimate_dict(finding.reference_estimate),
        "why": finding.why,
        "notes": list(finding.notes),
        "breakdowns": [part._asdict() for part in finding.breakdowns],
    }


def _estimate_dict(estimate: Estimate | None) -> dict[str, Any] | None:
    """An estimate as JSON values: its interval, and those that decide if they differ."""
    if estimate is None:
        return None
    value, low, high = map(_finite, estimate[:3])
    found: dict[str, Any] = {"value": value, "low": low, "high": high, "n": estimate.n}
    return found | {"unit": estimate.unit, "raw": estimate.raw, "narrow": estimate.narrow}


def _finite(value: float | int | None) -> float | int | None:
    """A number for JSON: null if it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def run_dict(run: Run, findings: list[tuple[Claim, Finding]]) -> dict[str, Any]:
    """A run as JSON values: its folder, its failures, its claims."""
    return {
        "schema": SCHEMA,
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
            Text(one_line(f"{finding.name}: {claim.statement}")),
            Text(one_line(claim.paper)),
            _words(finding.quantity, finding.estimate),
            _words(finding.reference, finding.reference_estimate),
            Text(str(finding.decision), style=STYLES[finding.verdict]),
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
