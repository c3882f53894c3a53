"""Where trained and converted networks are kept between runs."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def cache_dir() -> Path:
    """``$FRENET_CACHE``, or ``frenet`` in the platform's cache folder."""
    if own := os.environ.get("FRENET_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "frenet"


def save_atomically(tensors: "Mapping[str, Tensor]", path: Path) -> None:
    """Write a safetensors file that is either whole or not there."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_suffix(f".{os.getpid()}.tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial_path)
    partial_path.replace(path)
