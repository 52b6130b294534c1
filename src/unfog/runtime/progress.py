"""Progress that is never silent: a bar on a terminal; elsewhere a line after three seconds, then one every twelve."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from operator import length_hint
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn

Part = TypeVar("Part")
FIRST, EVERY = 3.0, 12.0
"""Seconds until the first line, which short work does not need, and from one line to the next."""


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


@contextmanager
def working(what: str, console: Console | None = None) -> Iterator[None]:
    """Show that a piece of work goes on whose length is not known.

    Args:
        what: What is done, for instance "importing my_model".
        console: Where to show it. Default: standard error.
    """
    with bar(Console(stderr=True) if console is None else console) as progress:
        progress.add_task(what, total=None)
        yield


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
