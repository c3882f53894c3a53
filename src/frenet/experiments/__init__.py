"""One folder, one question. ``EXPERIMENTS`` maps the name of every experiment to its declaration.

A folder takes part by defining ``EXPERIMENT``, ``STUDY`` if its runs are made elsewhere, or both.
The folders are imported when ``EXPERIMENTS`` is first used, not when this package is imported.
"""

import functools
import importlib
import pkgutil
from typing import Any

from frenet._errors import UsageError
from frenet.experiments.experiment import Experiment, Study, claim_order

__all__ = ["EXPERIMENTS", "Experiment", "Study", "described"]

EXPERIMENTS: dict[str, Experiment]
"""The experiments by name, those with claims in the order of the claims after those without."""


@functools.cache
def _discover() -> dict[str, Study]:
    """Import the folders and collect what they declare, in the claims' order."""
    declared: dict[str, Study] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        module = importlib.import_module(f"{__name__}.{name}")
        for study in (getattr(module, kind, None) for kind in ("EXPERIMENT", "STUDY")):
            if study is None:
                continue
            if study.name in declared:
                raise UsageError(f"two experiments are named {study.name!r}, one in {name}")
            declared[study.name] = study
    by_claim = sorted(declared.values(), key=lambda s: (_claims(s), s.name))
    return {study.name: study for study in by_claim}


def _claims(study: Study) -> list[list[str | int]]:
    return [claim_order(claim.id) for claim in study.claims]


def described() -> dict[str, Study]:
    """Everything that a report can show: experiments, ``frenet search`` and watched trainings."""
    from frenet import experiments

    return {**_discover(), **experiments.EXPERIMENTS}


def __getattr__(name: str) -> Any:
    """Look the experiments up lazily."""
    if name == "EXPERIMENTS":
        found = _discover().items()
        return {name: study for name, study in found if isinstance(study, Experiment)}
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
