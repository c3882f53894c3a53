"""Free memory and disk space, checked before a large allocation."""

import shutil
from pathlib import Path

import psutil
import torch


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on the device; on a CPU, within the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch has an own error on a GPU, and only a text on a CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate" in str(error)
    )


def require_memory(needed: int, what: str, *, device: torch.device, remedy: str) -> None:
    """Raise MemoryError with both figures when ``needed`` bytes are not free.

    Args:
        needed: bytes to allocate.
        what: name of the allocation in the message.
        device: device of the allocation.
        remedy: end of the message.
    """
    free = free_bytes(device)
    if needed > free:
        raise MemoryError(
            f"{what} needs {needed / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are free on "
            f"{device}; {remedy}"
        )


def free_disk(folder: Path) -> int:
    """Bytes free on the disk of ``folder``, which need not exist yet."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(existing).free


def require_disk(needed: int, what: str, *, folder: Path, remedy: str) -> None:
    """Raise MemoryError with both figures when ``needed`` bytes are not free on the disk.

    Args:
        needed: bytes to write.
        what: name of the files in the message.
        folder: folder to write to; it need not exist yet.
        remedy: end of the message.
    """
    free = free_disk(folder)
    if needed > free:
        raise MemoryError(
            f"{what} needs {needed / 2**30:.2f} GiB of disk and {free / 2**30:.2f} GiB are free "
            f"at {folder}; {remedy}"
        )
