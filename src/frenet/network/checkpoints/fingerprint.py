"""A sample of a large file that identifies it."""

from collections.abc import Iterator
from pathlib import Path

BLOCKS, BLOCK_BYTES = 64, 1 << 16


def sampled(path: Path) -> Iterator[bytes]:
    """64 evenly spaced blocks of 64 KiB, the first at the start of a file and the last at its end.

    A change of a few bytes between two blocks goes unnoticed; other weights do not.
    """
    last = max(0, path.stat().st_size - BLOCK_BYTES)
    with path.open("rb") as file:
        for i in range(BLOCKS):
            file.seek(last * i // (BLOCKS - 1))
            yield file.read(BLOCK_BYTES)
