"""Progress of what takes long: a bar in a terminal; elsewhere a line at the start, and one every ten seconds."""

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 10.0
"""Seconds between two lines where there is no terminal."""


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02}"


def spelled(seconds: float) -> str:
    """Return a duration in a sentence: "85 s", "3 min 5 s"."""
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60} s"


class Watch:
    """Shows how far a piece of work is, as long as it is entered."""

    def __init__(self, console: Console | None, what: str, total: float | None = None) -> None:
        """Watch a piece of work.

        Args:
            console: Where to show it; None for nowhere.
            what: What is being done.
            total: How many parts it has, if that is known.
        """
        self.console, self.what, self.total, self.done = console, what, total, 0.0
        self._bar: Progress | None = None
        self._ended = threading.Event()
        self._lines: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Show the bar, or the first line."""
        if self.console is None:
            return self
        if self.console.is_terminal:
            columns = (TextColumn("{task.description:32}"), BarColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.add_task(self.what, total=self.total)
            self._bar.start()
        else:
            self._say(f"{self.what} ..." if self.what else "begun ...")
            self._lines = threading.Thread(target=self._report, daemon=True)
            self._lines.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away, or end the lines."""
        self._ended.set()
        if self._bar is not None:
            self._bar.stop()
        if self._lines is not None:
            self._lines.join()

    def advance(self, parts: float = 1) -> None:
        """Count parts that are done."""
        self.done += parts
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], parts)

    def describe(self, what: str) -> None:
        """Say what is being done now."""
        self.what = what
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=what)

    def _report(self) -> None:
        """Print a line every ten seconds."""
        began = time.monotonic()
        while not self._ended.wait(EVERY):
            share = f"{self.done / self.total:.0%}, " if self.total else ""
            self._say(f"{self.what}: {share}{clock(time.monotonic() - began)} so far")

    def _say(self, line: str) -> None:
        assert self.console is not None
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)
