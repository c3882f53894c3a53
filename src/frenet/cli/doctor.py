"""``frenet doctor``: what a bug report needs."""

import importlib.util
from dataclasses import dataclass
from typing import Any

from frenet.cli.codes import DONE
from frenet.cli.options import parse, printing

# What each optional package is for.
OPTIONAL = {
    "ray": "search on a cluster",
    "trl": "watching an SFTTrainer",
    "datasets": "tasks from the hub",
    "vl_convert": "figures as PNG and SVG",
    "gguf": "GGUF files and control vectors",
}


@dataclass(frozen=True)
class Doctor:
    """Options of ``frenet doctor``."""

    json: bool = False
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
                show(f"  {name:14}{'not there' if value is None else value}")
    return DONE


def facts() -> dict[str, dict[str, Any]]:
    """Everything, by part."""
    import torch

    from frenet.network.cache import cache_dir
    from frenet.network.memory import free_bytes
    from frenet.runs.machine import commit, has_cuda, machine, versions

    devices = [torch.device("cpu"), *([torch.device("cuda")] if has_cuda() else [])]
    free = {f"free on {d.type}": f"{free_bytes(d) / 2**30:.1f} GiB" for d in devices}
    files = [path for path in cache_dir().rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    gpu = {"gpu": torch.cuda.get_device_name() if has_cuda() else None}
    return {
        "versions": {**versions(), "commit": commit()},
        "machine": {**machine(), "torch threads": torch.get_num_threads(), **gpu, **free},
        "cache": {
            "folder": str(cache_dir()),
            "files": len(files),
            "size": f"{size / 2**20:.0f} MiB",
        },
        "optional": {
            name: use if importlib.util.find_spec(name) else None for name, use in OPTIONAL.items()
        },
    }
