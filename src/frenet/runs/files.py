"""The lock of a run folder, and why a folder cannot be used."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from frenet._errors import UsageError
from frenet._files import (
    TEMPORARY,
    DamagedFileError,
    DiskFullError,
    named_errors,
    remove_leftovers,
    write_whole,
)
from frenet._notebook import one_line

__all__ = [
    "LOCK",
    "TEMPORARY",
    "DamagedRunError",
    "DiskFullError",
    "RunFolderError",
    "locked",
    "remove_leftovers",
    "require_folder",
    "require_path",
    "write_whole",
]

LOCK = ".lock"
# A child that a killed writer was starting holds the lock until it has loaded its program.
LOCK_PATIENCE_S = 1.0


class RunFolderError(UsageError):
    """The folder cannot be used for this run; the message says why and what to do."""


def require_path(path: Path | str) -> Path:
    """The path, if it has no NUL character, which every system call refuses.

    Raises:
        ValueError: it has one; the message names the path.
    """
    if "\0" in str(path):
        raise UsageError(f"{one_line(path)} holds a NUL character; a file name cannot have one")
    return Path(path)


def require_folder(path: Path | str) -> Path:
    """The path, if it is a folder or can become one.

    Raises:
        ValueError: it has a NUL character.
        NotADirectoryError: it is a file.
    """
    path = require_path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; name a folder, which is made if it is missing")
    return path


class DamagedRunError(RunFolderError):
    """A file of a run is damaged: ``damage`` says which and how, the message also the remedy."""

    def __init__(self, damage: str, remedy: str) -> None:
        super().__init__(f"{damage}; {remedy}")
        self.damage = damage

    @classmethod
    def of(cls, error: DamagedFileError, remedy: str) -> "DamagedRunError":
        """The same for a file that could not be read."""
        return cls(f"{error.where} is damaged: it {error.why}", remedy)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder against other processes; the system releases it if this one dies.

    Raises:
        RunFolderError: another process holds it.
        OSError: the folder cannot be written.
    """
    lock = FileLock(folder / LOCK, timeout=LOCK_PATIENCE_S, thread_local=False)
    try:
        with named_errors(folder):
            lock.acquire()
    except Timeout:
        raise RunFolderError(
            f"another process is writing into {folder}; wait for it to end, or use another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()
