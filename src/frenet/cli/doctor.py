"""``frenet doctor``: what a bug report needs."""

import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frenet.cli.codes import DONE
from frenet.cli.options import Switch, parse, printing

# What each optional package, as an index names it, is for.
OPTIONAL = {
    "ray": "search on a cluster",
    "trl": "watching an SFTTrainer",
    "datasets": "tasks from the hub",
    "altair": "the report",
    "vl-convert-python": "figures as PNG and SVG",
    "gguf": "GGUF files and control vectors",
    "accelerate": "inside a Trainer",
}
# What changes how many threads run, which device is used and what is asked of a network.
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
        found = facts()
        if options.json:
            show(found)
            return DONE
        for part, values in found.items():
            show(part)
            for name, value in values.items():
                missing = f"not there ({OPTIONAL[name]})" if name in OPTIONAL else "not there"
                show(f"  {name:24}{missing if value is None else value}")
    return DONE


def facts() -> dict[str, dict[str, Any]]:
    """Everything, by part; what cannot be found out says why, and the user's folder is ``~``."""
    from frenet.runs.machine import commit, versions

    return {
        "versions": _part({"packages": versions, "commit": commit}),
        "machine": _part({"machine": _machine, "threads": _threads, "gpu": _gpu, "memory": _free}),
        "cache": _part({"cache": _cache}),
        "environment": {name: _short(os.environ[name]) for name in VARIABLES if name in os.environ},
        "optional": {name: _version(name) for name in OPTIONAL},
    }


def _part(asked: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """What was asked; a doctor that fails where something is wrong would be of no use."""
    told: dict[str, Any] = {}
    for name, ask in asked.items():
        try:
            found = ask()
        except Exception as error:
            found = f"not known ({type(error).__name__}: {_short(str(error))})"
        told |= found if isinstance(found, dict) else {name: found}
    return told


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
    """The text without the name of the user's own folder."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text
