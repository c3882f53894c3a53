"""One folder, one question. ``EXPERIMENTS`` maps the name of every experiment to its declaration.

A folder takes part by defining ``EXPERIMENT``. The folders are imported when ``EXPERIMENTS`` is
first used, not when this package is imported.
"""

import functools
import importlib
import pkgutil
from typing import Any

from frenet._errors import UsageError
from frenet.experiments.experiment import Experiment

__all__ = ["EXPERIMENTS", "Experiment", "described"]

EXPERIMENTS: dict[str, Experiment]
"""The experiments by name, those with claims in the order of the claims after those without."""


@functools.cache
def _discover() -> dict[str, Experiment]:
    """Import the folders and collect what they declare, in the claims' order."""
    declared: dict[str, Experiment] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        experiment = getattr(importlib.import_module(f"{__name__}.{name}"), "EXPERIMENT", None)
        if experiment is None:
            continue
        if experiment.name in declared:
            raise UsageError(f"two experiments are named {experiment.name!r}, one in {name}")
        declared[experiment.name] = experiment
    by_claim = sorted(declared.values(), key=lambda e: ([claim.id for claim in e.claims], e.name))
    return {experiment.name: experiment for experiment in by_claim}


def described() -> dict[str, Experiment]:
    """Everything that a report can show: experiments, ``frenet search`` and watched trainings."""
    from frenet import experiments
    from frenet.experiments.search_command import SEARCH
    from frenet.experiments.watched_training import WATCHED

    return {**experiments.EXPERIMENTS, SEARCH.name: SEARCH, WATCHED.name: WATCHED}


def __getattr__(name: str) -> Any:
    """Look the experiments up lazily."""
    if name == "EXPERIMENTS":
        return _discover()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
