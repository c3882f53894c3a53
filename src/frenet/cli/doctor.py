"""``frenet doctor``: what a bug report needs."""

import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frenet.cli.codes import DONE
from frenet.cli.options import Switch, parse, printing

# What each optional package is for.
OPTIONAL = {
    "ray": "search on a cluster",
    "trl": "watching an SFTTrainer",
    "datasets": "tasks from the hub",
    "altair": "the report",
    "vl-convert-python": "figures as PNG and SVG",
    "gguf": "GGUF files and control vectors",
    "accelerate": "inside a Trainer",
}
# Variables that set threads, device, cache and downloads.
VARIABLES = (
    *("FRENET_CACHE", "FRENET_TRACEBACK", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
    *("OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG"),
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "RAY_ADDRESS"),
)


@dataclass(frozen=True)
class Doctor:
    """Options of ``frenet doctor``."""

    json: Switch = False
    """Print JSON on standard output."""


def doctor(args: list[str]) -> int:
    """``frenet doctor``."""
    about = "Versions, machine, memory, cache and optional packages, for a bug report."
    options = parse(Doctor, args, command="doctor", about=about)
    with printing(options.json) as show:
        parts = facts()
        if options.json:
            show(parts)
            return DONE
        for part, values in parts.items():
            show(part)
            for name, value in values.items():
                missing = f"none ({OPTIONAL[name]})" if name in OPTIONAL else "none"
                show(f"  {name:24}{missing if value is None else value}")
            if not values:
                show("  nothing set")
    return DONE


def facts() -> dict[str, dict[str, Any]]:
    """All facts by part; an unknown one says why, and the user's home folder is ``~``."""
    from frenet.runs.machine import commit, versions

    return {
        "versions": _part({"packages": versions, "commit": commit}),
        "machine": _part({"machine": _machine, "threads": _threads, "gpu": _gpu, "memory": _free}),
        "cache": _part({"cache": _cache}),
        "environment": {name: _short(os.environ[name]) for name in VARIABLES if name in os.environ},
        "optional": {name: _version(name) for name in OPTIONAL},
    }


def _part(queries: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """The answers; a query that fails must not stop the others, since something may be broken."""
    answers: dict[str, Any] = {}
    for name, query in queries.items():
        try:
            answer = query()
        except Exception as error:
            answer = f"not known ({type(error).__name__}: {_short(str(error))})"
        answers |= answer if isinstance(answer, dict) else {name: answer}
    return answers


def _machine() -> dict[str, Any]:
    from frenet.runs.machine import machine

    return machine()


def _threads() -> dict[str, Any]:
    import torch

    blas = "MKL" if torch.backends.mkl.is_available() else "not MKL"
    return {"torch threads": torch.get_num_threads(), "BLAS of torch": blas}


def _gpu() -> dict[str, Any]:
    import torch

    from frenet.runs.machine import has_cuda

    if not has_cuda():
        return {"gpu": None}
    count = torch.cuda.device_count()
    return {"gpu": f"{count} x {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"}


def _free() -> dict[str, Any]:
    import torch

    from frenet.network.memory import free_bytes
    from frenet.runs.machine import has_cuda

    devices = [torch.device("cpu"), *([torch.device("cuda")] if has_cuda() else [])]
    return {f"free on {d.type}": f"{free_bytes(d) / 2**30:.1f} GiB" for d in devices}


def _cache() -> dict[str, Any]:
    from frenet.network.checkpoints.cache import cache_dir

    sizes = [path.stat().st_size for path in cache_dir().rglob("*") if path.is_file()]
    size = f"{sum(sizes) / 2**20:.0f} MiB"
    return {"folder": _short(str(cache_dir())), "files": len(sizes), "size": size}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _short(text: str) -> str:
    """The text with ``~`` for the user's home folder."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text
