"""The progress of a request, on the screen or through a function of the caller's."""

from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from torch import Tensor

from unfog.runtime.progress import bar

Progress = bool | Callable[[int, int], object]
"""Whether a bar is shown on standard error, or a function of the samples done and of all of them."""


def watched(parts: Iterable[Tensor], total: int, progress: Progress) -> Iterator[Tensor]:
    """Yield the parts of a request, and report after each how many samples are done.

    Args:
        parts: Batches of samples.
        total: Samples in all.
        progress: How to report; False is not at all.
    """
    if not isinstance(progress, bool):
        yield from _reported(parts, total, progress)
    elif progress:
        with bar(Console(stderr=True)) as shown:
            task = shown.add_task("sampling", total=total)
            yield from _reported(parts, total, lambda done, _: shown.update(task, completed=done))
    else:
        yield from parts


def _reported(parts: Iterable[Tensor], total: int, report: Callable[[int, int], object]) -> Iterator[Tensor]:
    """Yield the parts, and call a function after each."""
    done = 0
    for part in parts:
        done += len(part)
        report(done, total)
        yield part
