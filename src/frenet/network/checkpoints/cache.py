"""The cache of trained and converted networks."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from frenet._files import DamagedFileError, named_errors

if TYPE_CHECKING:
    from torch import Tensor

# The variable that moves the cache, for messages.
VARIABLE = "FRENET_CACHE"


def cache_dir() -> Path:
    """``$FRENET_CACHE``, or ``frenet`` in the platform's cache folder."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "frenet"


def kept_tensors(path: Path, make: "Callable[[], Mapping[str, Tensor]]") -> "dict[str, Tensor]":
    """The tensors of a cached file; if it is missing or damaged, they are made and stored.

    Args:
        path: the file; if it is damaged or has no digests, a line on standard error says so.
        make: returns the tensors, the same at every call.

    Raises:
        OSError: the cache cannot be written; raised before ``make`` is called, unless the disk
            gets full.
    """
    from frenet.network.checkpoints.tensor_files import load_tensors, save_tensors

    try:
        return load_tensors(path, sealed=True)[0]
    except FileNotFoundError:
        pass
    except DamagedFileError as error:
        print(f"{path} {error.why}; it is made again", file=sys.stderr, flush=True)
    with named_errors(path, moves=VARIABLE):
        path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(dict(make()), path, named=True, moves=VARIABLE)
    return load_tensors(path, sealed=True)[0]
