"""Standard output and standard error that take any text, and survive the loss of their reader."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from frenet._notebook import one_line


class OutputLostError(OSError):
    """Standard output cannot be written: its reader went away, or its disk is full."""


class Stream:
    """A standard stream that writes as an escape what its encoding does not hold.

    Args:
        stream: the stream; None where the process was started without.
        needed: losing it is an error, once; else what is written to it afterwards is dropped.
    """

    def __init__(self, stream: Any, *, needed: bool) -> None:
        self._stream: Any = io.StringIO() if stream is None else stream
        self._needed = needed
        # Without a stream there is nothing to write to, and nothing to keep.
        self._lost = stream is None
        self._before = getattr(stream, "errors", None)
        self._take("backslashreplace")

    def write(self, text: str) -> int:
        if not self._lost:
            with self._losing():
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if not self._lost:
            with self._losing():
                self._stream.flush()

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def close(self) -> None:
        """Leave the stream as it was found."""
        self.flush()
        self._take(self._before)

    def _take(self, errors: str | None) -> None:
        """Change what becomes of characters without a place in the encoding."""
        if errors is not None and isinstance(self._stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):
                self._stream.reconfigure(errors=errors)

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self._lost = True
            # What waits in the buffer would fail again when Python ends.
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            if self._needed:
                why = getattr(error, "strerror", None) or str(error)
                number = getattr(error, "errno", None)
                raise OutputLostError(number, f"standard output cannot be written: {why}") from None


class Tamed:
    """A stream for messages of a library that repeat what the user gave.

    Line ends and, on a terminal, colours are the library's own; all else is written out.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._own = re.compile(r"(\n|\x1b\[[0-9;]*m)" if stream.isatty() else r"(\n)")

    def write(self, text: str) -> int:
        parts = self._own.split(text)
        parts[::2] = [one_line(part) for part in parts[::2]]
        self._stream.write("".join(parts))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Make standard output and error ones that take any text.

    Progress that nobody reads any more stops nothing; a result that cannot be written is an
    ``OutputLostError``, when what the command stores is stored.
    """
    before = sys.stdout, sys.stderr
    out, err = Stream(before[0], needed=True), Stream(before[1], needed=False)
    sys.stdout, sys.stderr = out, err
    try:
        yield
        out.close()
    finally:
        err.close()
        sys.stdout, sys.stderr = before
