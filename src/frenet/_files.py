"""Files that are complete or absent, and checked JSON, for every layer."""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from frenet._errors import UsageError

TEMPORARY = ".writing-"
# The option that moves most results; the cache has a variable.
OUT = "--out"
_DAY_S = 86_400
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Only writing raises these: a full or read-only disk, a limit on the size of files.
_OF_WRITING = (*_FULL, errno.EROFS, errno.EFBIG)
# With fewer bytes free, a write in blocks can have failed for lack of space.
_NO_ROOM = 1 << 16
# How Rust libraries (safetensors, tokenizers) report a system error.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_OWNED = re.compile(rf"{re.escape(TEMPORARY)}.+\.([0-9a-f]{{8}})-(\d+)")


class NotWrittenError(OSError):
    """A file cannot be written; the message names the file, the cause and the remedy."""

    def __str__(self) -> str:
        return str(self.strerror)


class DiskFullError(NotWrittenError):
    """No space is left for a result; earlier results are complete."""


class DamagedFileError(UsageError):
    """A stored file was changed or damaged; the message is its path, followed by ``why``."""

    def __init__(self, where: Path | str, why: str) -> None:
        super().__init__(f"{where} {why}")
        self.where = where
        self.why = why


@contextlib.contextmanager
def whole(path: Path, *, moves: str = OUT, size: int | None = None) -> Iterator[Path]:
    """A temporary file that replaces ``path`` when the block ends.

    If the process is killed, ``path`` holds all of the old or all of the new content, also after a
    power cut if the file system syncs on request. If the block raises, the temporary file is
    removed; that of a killed process is removed by the next one that writes into the folder.

    Args:
        path: the file; its folder is created if missing.
        moves: the option or variable that moves it to another disk, for messages.
        size: its bytes, for messages.

    Raises:
        DiskFullError: no space or quota is left.
        OSError: it cannot be written for another reason; PermissionError, FileNotFoundError and
            similar keep their class, with a message that names ``path`` and ``moves``.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}.{_owner()}")
    with named_errors(path, moves=moves, size=size):
        path.parent.mkdir(parents=True, exist_ok=True)
        _tidy(path.parent)
        temporary.touch()
    try:
        with named_errors(path, moves=moves, size=size, block=True):
            yield temporary
        with named_errors(path, moves=moves, size=size):
            _sync(temporary)
            temporary.replace(path)
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_files(
    folder: Path, *, last: str, alone: bool = False, moves: str = OUT
) -> Iterator[Path]:
    """A temporary folder; its files move into ``folder`` when the block ends, ``last`` at the end.

    So a folder that holds ``last`` holds the other files of the same write.

    Args:
        folder: created if missing.
        last: name of the file that marks the folder as complete.
        alone: remove all other files; otherwise files of other names stay.
        moves: the option or variable that moves it to another disk, for messages.

    Raises:
        OSError: as ``whole``.
    """
    temporary, is_new = folder / f"{TEMPORARY}files.{_owner()}", not folder.exists()
    with named_errors(folder, moves=moves):
        folder.mkdir(parents=True, exist_ok=True)
        _tidy(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    try:
        try:
            with named_errors(folder, moves=moves, block=True):
                yield temporary
        except NotWrittenError as error:  # of a file inside
            message = str(error).replace(str(temporary), str(folder))
            raise type(error)(error.errno, message) from error
        with named_errors(folder, moves=moves):
            written = sorted(temporary.iterdir(), key=lambda path: (path.name == last, path.name))
            for path in written:
                _sync(path)
            (folder / last).unlink(missing_ok=True)
            names = {path.name for path in written}
            for path in folder.iterdir() if alone else ():
                if path.name not in names and not path.name.startswith(TEMPORARY):
                    _remove(path)
            for path in written:
                _sync_folder(folder)
                path.replace(folder / path.name)
            _sync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # the folder is not empty
                folder.rmdir()


def write_whole(path: Path, content: str | bytes, *, moves: str = OUT) -> Path:
    """Write a file with ``whole``; text as UTF-8, without changing line ends."""
    data = content.encode() if isinstance(content, str) else content
    with whole(path, moves=moves, size=len(data)) as temporary:
        temporary.write_bytes(data)
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove half-written files of killed processes; no other process may write there."""
    for path in sorted(folder.rglob(f"{TEMPORARY}*"), reverse=True):
        _remove(path)


@contextlib.contextmanager
def named_errors(
    path: Path, *, moves: str = OUT, size: int | None = None, block: bool = False
) -> Iterator[None]:
    """Disk errors that name the file being written.

    Args:
        path: the file or folder.
        moves: the option or variable that moves it to another disk.
        size: bytes that it needs, if known.
        block: other code runs inside; its errors are passed on unless only writing raises them.
    """
    try:
        yield
    except (NotWrittenError, DamagedFileError):
        raise
    except Exception as error:
        number = _number(error, path.parent)
        if number is None or (block and number not in _OF_WRITING):
            raise
        raise _not_written(path, error, number, moves=moves, size=size) from error


def _number(error: Exception, folder: Path) -> int | None:
    """The number of a system error; None for any other error."""
    if isinstance(error, OSError):
        # NumPy reports how many entries it wrote, but not why it stopped.
        with contextlib.suppress(OSError):
            if error.errno is None and shutil.disk_usage(folder).free < _NO_ROOM:
                return errno.ENOSPC
        return error.errno
    match = _OS_ERROR.search(str(error))
    return int(match[1]) if match else None


def _not_written(
    path: Path, error: Exception, number: int, *, moves: str, size: int | None
) -> OSError:
    """The error that names the file, the cause and the option that moves it."""
    if number in _FULL:
        needs = f"{path} needs {size:,} bytes" if size is not None else f"{path} does not fit"
        return DiskFullError(
            number,
            f"disk full: {needs} and {_free(path.parent)} are free; finished results are kept: "
            f"free some space and repeat the command, or choose another disk with {moves}",
        )
    why = getattr(error, "strerror", None) or os.strerror(number)
    text = f"{path} cannot be written: {why}; choose a writable place with {moves}"
    by_number = OSError(number, text)
    return NotWrittenError(number, text) if type(by_number) is OSError else type(by_number)(text)


def _free(folder: Path) -> str:
    """Free bytes on the folder's disk, or that the number is unknown."""
    try:
        return f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        return "an unknown number"


def _owner() -> str:
    """This process in temporary names: digits that identify the machine, and the process id."""
    return f"{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-{os.getpid()}"


_tidied: set[Path] = set()


def _tidy(folder: Path) -> None:
    """Remove files of killed processes from a folder, once in the life of this process."""
    if folder in _tidied:
        return
    _tidied.add(folder)
    for path in folder.glob(f"{TEMPORARY}*"):
        match = _OWNED.fullmatch(path.name)
        if match and _abandoned(path, match[1], int(match[2])):
            _remove(path)


def _abandoned(path: Path, machine: str, process: int) -> bool:
    """Whether no process writes a temporary file any more."""
    if machine == _owner().partition("-")[0] and os.name == "posix":
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False
    # A process on another machine, or on this one if signal 0 would end it.
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > _DAY_S
    return False


def _remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Make the content of a file survive a power cut."""
    # POSIX can sync a file opened for reading, and a copied file may be read-only.
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Make a renaming survive a power cut, if the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def canonical(value: object) -> str:
    """One line of JSON that depends only on the value: sorted keys, shortest floats, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def pretty(value: object) -> str:
    """JSON for people: indented, in the order given."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The object with the digest of its entries under ``sha256``."""
    return {**value, "sha256": _seal(value)}


def unsealed(value: Mapping[str, Any], where: Path | str) -> dict[str, Any]:
    """The object without its digest, checked.

    Raises:
        DamagedFileError: there is no digest, or it does not match.
    """
    rest = {key: entry for key, entry in value.items() if key != "sha256"}
    digest = None
    # NaN and nesting at the limit can be read but not written.
    with contextlib.suppress(ValueError, RecursionError):
        digest = _seal(rest)
    if digest is None or value.get("sha256") != digest:
        raise DamagedFileError(
            where, "has changed since it was written: its sha256 does not match its content"
        )
    return rest


def _seal(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def parse_json(data: bytes | str, where: Path | str) -> Any:
    """The value of a JSON text.

    Raises:
        DamagedFileError: it is not JSON or not UTF-8, or is nested too deeply.
    """
    try:
        return json.loads(data.decode() if isinstance(data, bytes) else data)
    except RecursionError:
        raise DamagedFileError(where, "is nested too deeply to be read") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DamagedFileError(where, f"is not UTF-8: byte 0x{byte:02x} at {error.start}") from None
    except ValueError as error:
        raise DamagedFileError(where, f"is not JSON: {error}") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        DamagedFileError: as ``parse_json``.
    """
    return parse_json(path.read_bytes(), path)


def read_object(path: Path, **needed: type | tuple[type, ...]) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: the file.
        needed: required keys, with the types of their values.

    Raises:
        DamagedFileError: as ``parse_json``; it is no object; a key is missing, or its value has
            another type.
    """
    return require_object(read_json(path), path, **needed)


def require_object(
    value: Any, where: Path | str, **needed: type | tuple[type, ...]
) -> dict[str, Any]:
    """A JSON value as an object with some keys; raises the error of ``read_object``."""
    if not isinstance(value, dict):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise DamagedFileError(where, f"holds {kind}, not an object with keys")
    for key, kinds in needed.items():
        if key not in value:
            raise DamagedFileError(where, f"has no key {key!r}")
        if not isinstance(value[key], kinds):
            kind = type(value[key]).__name__
            raise DamagedFileError(where, f"has a value of type {kind} under {key!r}")
    return value
