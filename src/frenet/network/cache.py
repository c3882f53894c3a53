"""Where trained and converted networks are kept between runs."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$FRENET_CACHE``, or ``frenet`` in the platform's cache folder."""
    if own := os.environ.get("FRENET_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "frenet"
