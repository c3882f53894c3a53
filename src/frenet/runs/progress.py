"""The progress of a run on standard error: a bar on a terminal, elsewhere a line for each cell."""

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from frenet._notebook import one_line


class _Left(ProgressColumn):
    """Time left by the pace of all cells; rich's column forgets cells longer than 30 s."""

    def render(self, task: Task) -> Text:
        end = task.fields["end"]
        return Text("unknown" if end is None else duration(max(0.0, end - time.monotonic())))


class Watch:
    """Shows the progress of one run.

    Args:
        title: name of the experiment.
        total: number of cells.
        done: how many of them were finished before.
        quiet: show nothing.
    """

    def __init__(self, title: str, *, total: int, done: int, quiet: bool = False) -> None:
        self._title = one_line(title)
        self._total = total
        self._done = self._before = done
        self._quiet = quiet
        self._start = time.monotonic()
        self._last_error = ""
        console = Console(file=sys.stderr, highlight=False)
        self._bar: Progress | None = None
        if console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("cells, elapsed"),
                TimeElapsedColumn(),
                TextColumn("left"),
                _Left(),
                console=console,
            )
            self._task = self._bar.add_task(self._title, total=total, completed=done, end=None)

    def __enter__(self) -> "Watch":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Show a line."""
        if self._bar is not None:
            self._bar.console.print(one_line(text), markup=False, soft_wrap=True)
        elif not self._quiet:
            print(one_line(text), file=sys.stderr, flush=True)

    def preparing(self, count: int) -> None:
        """``count`` shared preparations are not finished yet."""
        if self._bar is not None:
            text = f"{self._title} (preparing {count})" if count else self._title
            self._bar.update(self._task, description=text)

    def prepared(self, what: str, seconds: float) -> None:
        """Something that several cells share is ready."""
        self.say(f"prepared {what} in {duration(seconds)}")

    def finished(self, cell: str, seconds: float) -> None:
        """A cell is finished."""
        times = self._advance()
        if self._bar is None:
            self.say(f"[{self._done}/{self._total}] {cell} in {duration(seconds)}, {times}")

    def failed(self, cell: str, error: str) -> None:
        """A cell failed; a repeated error, or that of a run of one cell, is not printed."""
        self._advance()
        text = ": the same" if error == self._last_error else f": {error}"
        self._last_error = error
        self.say(f"[{self._done}/{self._total}] {cell} FAILED{text if self._total > 1 else ''}")

    def _advance(self) -> str:
        """Count a cell; the time since the start and, at the pace so far, to the end."""
        self._done += 1
        now = time.monotonic()
        elapsed = now - self._start
        left = elapsed / (self._done - self._before) * (self._total - self._done)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, end=now + left)
        return f"{duration(elapsed)} elapsed, about {duration(left)} left"


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(3.14159), duration(42.0), duration(75.0), duration(7322.0)
    ('3.1 s', '42 s', '1 min 15 s', '2 h 2 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"
