"""Runs: experiments into write-once folders, in one process or several, and back."""

from frenet.runs.claims import decide_claims, finding_dict, run_dict
from frenet.runs.engine import Interrupted, RunFailedError, run_experiment
from frenet.runs.files import DiskFullError, RunFolderError
from frenet.runs.header import find_runs
from frenet.runs.pool import WorkerPool
from frenet.runs.reading import pack_run, read_run
from frenet.runs.records import config_dict, default_out, reproduction_out
from frenet.runs.store import Run, RunFolder

__all__ = [
    "DiskFullError",
    "Interrupted",
    "Run",
    "RunFailedError",
    "RunFolder",
    "RunFolderError",
    "WorkerPool",
    "config_dict",
    "decide_claims",
    "default_out",
    "find_runs",
    "finding_dict",
    "pack_run",
    "read_run",
    "reproduction_out",
    "run_dict",
    "run_experiment",
]
