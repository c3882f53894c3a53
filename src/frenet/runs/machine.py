"""What a run ran on: versions, processors, the commit."""

import contextlib
import importlib.metadata
import math
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from frenet._version import __version__
from frenet.experiments.experiment import SYNTHETIC

PACKAGES = ("torch", "transformers", "peft", "numpy", "scipy")
QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")


def versions() -> dict[str, str | None]:
    """Versions of everything that numbers may depend on; None if a package is absent."""
    installed: dict[str, str | None] = {"frenet": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        installed[name] = None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def cpu_count() -> int:
    """Processors that this process may use: its affinity mask and its container's quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = QUOTA_FILE.read_text().split()
        count = min(count, math.ceil(int(quota) / int(period)))
    return max(1, count)


def has_cuda() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def usual_workers(config: Any) -> int:
    """Processes for a configuration: one per processor, or one for a model on a GPU.

    The synthetic transformer stays on the processors.
    """
    return 1 if _takes_gpu(config) else cpu_count()


def device_of(config: Any) -> str:
    """The device of a configuration: "cpu", or a GPU by its name."""
    if not _takes_gpu(config):
        return "cpu"
    import torch

    return f"cuda: {torch.cuda.get_device_name()}"


def _takes_gpu(config: Any) -> bool:
    return config.model != SYNTHETIC and has_cuda()


def machine() -> dict[str, Any]:
    """Platform, kind of processor and number of processors."""
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpus": cpu_count(),
    }


def system_of(about: dict[str, Any]) -> str:
    """The operating system in a :func:`machine`; the rest of its platform is about the kernel."""
    return str(about["platform"]).partition("-")[0]


def peak_mib() -> int | None:
    """Peak resident memory of this process in MiB; None if the system does not count it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if platform.system() == "Darwin" else 2**10)


def commit() -> str | None:
    """The commit of frenet's checkout, marked ``-dirty`` after edits; None without a checkout."""
    package = Path(__file__).resolve().parents[1]
    root = package.parents[1]
    # An installed copy may lie inside another repository; its commit means nothing here.
    if package != root / "src" / "frenet" or not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [*command, "--exclude", "*"], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip() or None
    return None
