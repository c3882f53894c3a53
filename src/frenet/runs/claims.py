"""What the stored rows of a run say about the claims of its experiment."""

import math
from typing import Any

from frenet.experiments.experiment import Claim, Finding, Study, answered, decided
from frenet.runs.store import Run
from frenet.statistics.intervals import Estimate

# Of the JSON form of findings; it grows when a key changes its meaning or goes.
SCHEMA = 2


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


def run_dict(
    run: Run, findings: list[tuple[Claim, Finding]], study: Study | None
) -> dict[str, Any]:
    """A run as JSON values: its folder, its failures, its claims or answers.

    Args:
        run: the run.
        findings: its claims.
        study: what was run; None if this version does not know it.
    """
    answers = answered(study, run.rows) if study else []
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
        "answers": [{"subject": a.subject, **a.keys, "sentence": a.sentence} for a in answers],
    }
