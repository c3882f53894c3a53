"""Cached folders of models that frenet made, with the digest of every file."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from frenet._files import DamagedFileError, pretty, read_object, sealed, unsealed

RECORD = "frenet.json"
FORMAT = 2
# Bytes that each thread reads and hashes at a time; hashlib releases the GIL.
_BLOCK_BYTES = 16 << 20
# Folders that this process has compared with their digests, and the state of their files then.
_compared: dict[Path, list[tuple[str, int, int]]] = {}


def seal_folder(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the record of a folder: its description, and the digests of its files."""
    files = {path.name: _file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()}
    record = sealed({"format": FORMAT, **about, "files": files})
    (folder / RECORD).write_text(pretty(record), encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a folder.

    Raises:
        DamagedFileError: it is not what was written, or has another format.
    """
    file = folder / RECORD
    record = read_object(file)
    if record.get("format") != FORMAT:
        raise DamagedFileError(file, "is of another version of frenet")
    return unsealed(record, file)


def whole_folder(folder: Path, about: Mapping[str, Any]) -> bool:
    """Whether a folder exists, with every file as it was written.

    The files are compared by all processors, once per process or after a change.

    Args:
        folder: the folder, which need not exist.
        about: values that its record must have.

    Raises:
        DamagedFileError: one of them is missing, or not what was written.
    """
    if not (folder / RECORD).exists():
        return False
    if _compared.get(folder.resolve()) == (state := _state(folder)):
        return True
    record = read_record(folder)
    if any(record.get(key) != value for key, value in about.items()):
        raise DamagedFileError(folder / RECORD, "is that of another folder")
    for name, digest in record["files"].items():
        if not (folder / name).is_file():
            raise DamagedFileError(folder / name, "is missing")
        if _file_digest(folder / name) != digest:
            raise DamagedFileError(folder / name, "is not what was written (sha256)")
    _compared[folder.resolve()] = state
    return True


def _state(folder: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files."""
    stats = ((path.name, path.stat()) for path in sorted(folder.iterdir()))
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _file_digest(path: Path) -> str:
    """sha256 of the sha256s of a file's blocks."""
    starts = range(0, path.stat().st_size, _BLOCK_BYTES)

    def block(start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(_BLOCK_BYTES)).digest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return hashlib.sha256(b"".join(pool.map(block, starts))).hexdigest()
