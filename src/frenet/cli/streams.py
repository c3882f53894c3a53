"""Standard output and error that accept any text and survive the loss of their reader."""

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
    """A standard stream that escapes characters which its encoding lacks.

    Args:
        stream: the stream; None if the process has none.
        needed: raise an error when it is lost; otherwise drop what is written to it.
    """

    def __init__(self, stream: Any, *, needed: bool) -> None:
        self._stream: Any = io.StringIO() if stream is None else stream
        self._needed = needed

        self._lost = stream is None
        self._before = getattr(stream, "errors", None)
        self._take("backslashreplace")

    def write(self, text: str) -> int:
        """Write a text; its length."""
        if not self._lost:
            with self._losing():
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        if not self._lost:
            with self._losing():
                self._stream.flush()

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def close(self) -> None:
        """Restore the stream."""
        self.flush()
        self._take(self._before)

    def _take(self, errors: str | None) -> None:
        """Set what happens to characters that the encoding lacks."""
        if errors is not None and isinstance(self._stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):
                self._stream.reconfigure(errors=errors)

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self._lost = True
            # The buffer would fail again when Python exits, so it is written to nowhere.
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            if self._needed:
                why = getattr(error, "strerror", None) or str(error)
                number = getattr(error, "errno", None)
                raise OutputLostError(number, f"standard output cannot be written: {why}") from None


class Tamed:
    """A stream for messages of a library, which may repeat control characters from the user.

    Line ends pass, and colours on a terminal; other control characters are escaped.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._passed = re.compile(r"(\n|\x1b\[[0-9;]*m)" if stream.isatty() else r"(\n)")

    def write(self, text: str) -> int:
        """Write a text without control characters; its length."""
        parts = self._passed.split(text)
        parts[::2] = [one_line(part) for part in parts[::2]]
        self._stream.write("".join(parts))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Let standard output and error accept any text.

    A lost standard error stops nothing. A lost standard output raises ``OutputLostError``; results
    on disk are already stored then.
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
