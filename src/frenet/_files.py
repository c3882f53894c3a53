"""Files that are whole or not there, and JSON whose damage is named: for every layer."""

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
# What moves most results; the cache has a variable of its own.
OUT = "--out"
_DAY_S = 86_400
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What only writing can meet: a disk that is full or read-only, a limit of the size of files.
_OF_WRITING = (*_FULL, errno.EROFS, errno.EFBIG)
# Bytes that are free where something did not fit that is written in blocks.
_NO_ROOM = 1 << 16
# How libraries written in Rust (safetensors, tokenizers) report an error of the system.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_OWNED = re.compile(rf"{re.escape(TEMPORARY)}.+\.([0-9a-f]{{8}})-(\d+)")


class NotWrittenError(OSError):
    """A file cannot be written; the message names it, the cause and what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


class DiskFullError(NotWrittenError):
    """No space left for a result; what was written before is whole."""


class DamagedFileError(UsageError):
    """A stored file is not what was written: which one, and why in words that go on from "it"."""

    def __init__(self, where: Path | str, why: str) -> None:
        super().__init__(f"{where} {why}")
        self.where = where
        self.why = why


@contextlib.contextmanager
def whole(path: Path, *, moves: str = OUT, size: int | None = None) -> Iterator[Path]:
    """A temporary file that takes the place of ``path`` when the block ends.

    Killed at any moment, ``path`` holds all of the old or all of the new content; also after a
    power cut, as far as the file system keeps what it was asked to sync. When the block raises,
    nothing stays; what a killed process left is removed when the next one writes into the folder.

    Args:
        path: the file; its folder is made where it is missing.
        moves: the option or variable that moves it to another disk, for messages.
        size: bytes that it will have, for messages.

    Raises:
        DiskFullError: no space, or no quota, left.
        OSError: it cannot be written for another reason; PermissionError, FileNotFoundError and
            their kind stay what they are, with a message that names ``path`` and ``moves``.
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
    """A temporary folder whose files go into ``folder`` when the block ends, ``last`` after all.

    So a folder that holds ``last`` holds the others of the same writing, too.

    Args:
        folder: made where it is missing.
        last: the name of the file that says that the folder is whole.
        alone: what else lies there is removed; otherwise files of other names stay as they are.
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
            told = str(error).replace(str(temporary), str(folder))
            raise type(error)(error.errno, told) from error
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
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()


def write_whole(path: Path, content: str | bytes, *, moves: str = OUT) -> Path:
    """Write a file by ``whole``, whose errors it has; text as UTF-8 with line ends as they are."""
    data = content.encode() if isinstance(content, str) else content
    with whole(path, moves=moves, size=len(data)) as temporary:
        temporary.write_bytes(data)
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove the half-written files of processes that were killed; nobody else may write there."""
    for path in sorted(folder.rglob(f"{TEMPORARY}*"), reverse=True):
        _remove(path)


@contextlib.contextmanager
def named_errors(
    path: Path, *, moves: str = OUT, size: int | None = None, block: bool = False
) -> Iterator[None]:
    """Errors of the disk under the name of the file that is being written.

    Args:
        path: the file or folder.
        moves: the option or variable that moves it to another disk.
        size: bytes that it needs, where they are known.
        block: other code runs inside, whose errors are passed on unless only writing can meet them.
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
    """The number of an error of the system; None for any other error."""
    if isinstance(error, OSError):
        # NumPy says how many entries it wrote, and not why no more.
        with contextlib.suppress(OSError):
            if error.errno is None and shutil.disk_usage(folder).free < _NO_ROOM:
                return errno.ENOSPC
        return error.errno
    found = _OS_ERROR.search(str(error))
    return int(found[1]) if found else None


def _not_written(
    path: Path, error: Exception, number: int, *, moves: str, size: int | None
) -> OSError:
    """The error that says which file cannot be written, why, and what moves it."""
    if number in _FULL:
        needs = f"{path} needs {size:,} bytes" if size is not None else f"{path} does not fit"
        return DiskFullError(
            number,
            f"disk full: {needs} and {_free(path.parent)} are free; what was finished before is "
            f"kept: make room and start the same command again, or choose another disk with "
            f"{moves}",
        )
    why = getattr(error, "strerror", None) or os.strerror(number)
    text = f"{path} cannot be written: {why}; choose a place that can be written with {moves}"
    known = OSError(number, text)
    return NotWrittenError(number, text) if type(known) is OSError else type(known)(text)


def _free(folder: Path) -> str:
    """Bytes free where the folder lies, or that nobody knows."""
    try:
        return f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        return "an unknown number"


def _owner() -> str:
    """This process, as temporary names have it: digits of the machine, and the process."""
    return f"{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-{os.getpid()}"


_tidied: set[Path] = set()


def _tidy(folder: Path) -> None:
    """Remove what killed processes left in a folder, once in the life of this process."""
    if folder in _tidied:
        return
    _tidied.add(folder)
    for path in folder.glob(f"{TEMPORARY}*"):
        found = _OWNED.fullmatch(path.name)
        if found and _abandoned(path, found[1], int(found[2])):
            _remove(path)


def _abandoned(path: Path, machine: str, process: int) -> bool:
    """Whether nobody writes a temporary file any more."""
    if machine == _owner().partition("-")[0] and os.name == "posix":
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False
    # A process of another machine, or of this one where signal 0 would end it.
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
    """Make the content of a file last through a power cut."""
    # POSIX syncs what was only opened for reading, which a copied file may allow alone.
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Make a renaming last through a power cut, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def canonical(value: object) -> str:
    """One line of JSON that depends on the value alone: sorted keys, shortest floats, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def pretty(value: object) -> str:
    """JSON for people: indented, in the order given."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The object with the digest of all its other entries under ``sha256``."""
    return {**value, "sha256": _seal(value)}


def unsealed(value: Mapping[str, Any], where: Path | str) -> dict[str, Any]:
    """The object without its digest.

    Raises:
        DamagedFileError: there is none, or it is another one's.
    """
    rest = {key: entry for key, entry in value.items() if key != "sha256"}
    found = None
    # NaN and nesting at the limit can be read and not written.
    with contextlib.suppress(ValueError, RecursionError):
        found = _seal(rest)
    if found is None or value.get("sha256") != found:
        raise DamagedFileError(
            where, "is not what was written: its sha256 does not match its content"
        )
    return rest


def _seal(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def parse_json(data: bytes | str, where: Path | str) -> Any:
    """The value of a JSON text.

    Raises:
        DamagedFileError: it is none, is not UTF-8, or is nested deeper than can be read.
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
        needed: keys that it must have, with the types of their values.

    Raises:
        DamagedFileError: as ``parse_json``; it is no object; a key is missing, or its value of
            another type.
    """
    return require_object(read_json(path), path, **needed)


def require_object(
    value: Any, where: Path | str, **needed: type | tuple[type, ...]
) -> dict[str, Any]:
    """A JSON value as an object with some keys; the error is that of ``read_object``."""
    if not isinstance(value, dict):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise DamagedFileError(where, f"holds {kind} and no object with keys")
    for key, kinds in needed.items():
        if key not in value:
            raise DamagedFileError(where, f"has no key {key!r}")
        if not isinstance(value[key], kinds):
            kind = type(value[key]).__name__
            raise DamagedFileError(where, f"has a value of type {kind} under {key!r}")
    return value
