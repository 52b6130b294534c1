"""Progress that is never silent: a bar on a terminal; elsewhere a line after three seconds, then one every twelve."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from operator import length_hint
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TaskID

Part = TypeVar("Part")
FIRST, EVERY = 3.0, 12.0
"""Seconds until the first line, which short work does not need, and from one line to the next."""


def duration(seconds: float) -> str:
    """Return a time as one would say it: "0.42 s", "85 s", "6 minutes", "3 hours"."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.2g} minutes" if seconds < 600 else f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


@contextmanager
def bar(console: Console | None, *columns: ProgressColumn) -> Iterator[Progress]:
    """Show the tasks that are added to a bar; on a pipe or in a file, as lines.

    Args:
        console: Where to show them; None is nowhere.
        columns: What the bar shows; default: description, bar, share and remaining time.
    """
    terminal = console is not None and console.is_terminal
    progress = Progress(*columns, console=console, transient=True, disable=not terminal)
    with progress, nullcontext() if console is None or terminal else _lines(progress, console):
        yield progress


def track(parts: Iterable[Part], what: str, total: int | None = None, *, console: Console | None) -> Iterator[Part]:
    """Yield parts of a piece of work while a bar, or lines, show how many are done.

    Args:
        parts: The parts.
        what: What is done, for instance "encoding".
        total: Number of parts. Default: their length.
        console: Where to show it; None is nowhere.
    """
    with bar(console) as progress:
        task = progress.add_task(what, total=(length_hint(parts) or None) if total is None else total)
        for part in parts:  # its own `track` counts nothing where there is no terminal
            yield part
            progress.advance(task)


class Work(NamedTuple):
    """A piece of work that is shown."""

    progress: Progress
    task: TaskID

    def advance(self, parts: float = 1) -> None:
        """Count parts that are done."""
        self.progress.advance(self.task, parts)

    def describe(self, what: str) -> None:
        """Say what is being done now."""
        self.progress.update(self.task, description=what)


@contextmanager
def working(what: str, total: float | None = None, *, console: Console | None) -> Iterator[Work]:
    """Show that a piece of work goes on.

    Args:
        what: What is done, for instance "importing my_model".
        total: Number of parts, where it has some.
        console: Where to show it; None is nowhere.
    """
    with bar(console) as progress:
        yield Work(progress, progress.add_task(what, total=total))


@contextmanager
def _lines(progress: Progress, console: Console) -> Iterator[None]:
    """Print what is being done every twelve seconds, from a thread: a single part may take minutes."""
    over = threading.Event()

    def report() -> None:
        wait = FIRST
        while not over.wait(wait):
            if text := _line(progress):
                console.print(text, highlight=False, markup=False, soft_wrap=True)
            wait = EVERY

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _line(progress: Progress) -> str:
    """Return what is being done, how much of it is done, since when, and what it will still take."""
    running = [task for task in progress.tasks if not task.finished]
    if not running:
        return ""
    task = running[-1]
    share = "" if task.total is None else f" {task.completed:,.0f} of {task.total:,.0f},"
    left = "" if task.time_remaining is None else f", about {timedelta(seconds=round(task.time_remaining))} left"
    return f"{task.description.strip()}:{share} {timedelta(seconds=round(task.elapsed or 0))}{left}"
