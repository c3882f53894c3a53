"""Files that are there whole or not at all, and the lock of a folder."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from frenet._notebook import one_line

TEMPORARY = ".writing-"
LOCK = ".lock"
# A child that a killed writer was just starting holds the lock until it is another program.
LOCK_PATIENCE_S = 1.0


class RunFolderError(ValueError):
    """The folder cannot be used for this run; the message says why and what to do."""


class DiskFullError(OSError):
    """No space left for a result; what was written before is whole."""


def require_path(path: Path | str) -> Path:
    """The path, which no system call would take with a NUL character in it.

    Raises:
        ValueError: it holds one; the message names the path.
    """
    if "\0" in str(path):
        raise ValueError(f"{one_line(path)} holds a NUL character, which no file name can have")
    return Path(path)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that, killed at any moment, it holds everything or is not there.

    Args:
        path: the file; its folder exists.
        content: all that it will hold.

    Raises:
        DiskFullError: no space, or no quota, left.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            error.errno,
            f"disk full: {path} needs {len(data):,} bytes and {_free(path.parent)} are free; "
            "finished cells are kept: make room and start the same command again",
        ) from error


def _free(folder: Path) -> str:
    """Bytes free where the folder lies, or that nobody knows."""
    try:
        return f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        return "an unknown number"


def _sync_folder(folder: Path) -> None:
    """Make a renaming last through a power cut, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove the half-written files of a process that was killed."""
    for path in folder.rglob(f"{TEMPORARY}*"):
        path.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes; the system lets go of it if this one dies.

    Raises:
        RunFolderError: another process holds it.
    """
    lock = FileLock(folder / LOCK, timeout=LOCK_PATIENCE_S, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunFolderError(
            f"another process is writing into {folder}; wait for it to end, or use another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()
