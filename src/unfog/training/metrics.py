"""Training metrics: `metrics.jsonl`, a progress bar, and `loss.png` at the end."""

import json
import math
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from unfog.recipes.schema import fits
from unfog.runtime import distributed
from unfog.runtime.files import disk, parse_json, read_bounded, whole, write_whole
from unfog.training.loggers import Trackers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVERY = 20
"""Steps per line of `metrics.jsonl`."""
QUIET = 12.0
"""Seconds after which a training prints a line where it has no bar: before `unfog.cli` says that it is at work."""
DECADE = 8.0
"""Factor between the ends of an axis from which on 1, 2 and 5 are enough ticks."""
MOST = 1 << 28
"""Largest `metrics.jsonl` that is read, in bytes."""


class Metrics:
    """Appends to `metrics.jsonl`: one line per 20 steps, and one per held-out loss."""

    def __init__(self, path: Path, batch: int, step: int, trackers: Trackers | None = None) -> None:
        """Resume at `step`: lines of later steps are removed, since those steps are repeated."""
        self.path, self.batch, self.trackers = path, batch, trackers or Trackers(())
        self.losses: list[float] = []
        self.smooth = math.nan
        self.speed = math.nan
        self.started = self.since = time.monotonic()
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        if distributed.rank() == 0:
            write_whole(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def add(self, step: int, loss: float, rate: float) -> None:
        """Record the loss of a step."""
        self.losses.append(loss)
        if math.isfinite(loss):
            self.smooth = loss if math.isnan(self.smooth) else 0.98 * self.smooth + 0.02 * loss
        if step % EVERY == 0:
            self._write(step, rate)

    def held_out(self, step: int, loss: float, rows: int, memory: float | None = None) -> None:
        """Write the held-out loss with the number of its rows, and the peak memory so far in MiB."""
        line: dict[str, float | None] = {"step": step, "images": step * self.batch, "held_out_loss": loss}
        line["held_out_rows"] = rows
        self._append(line if memory is None else {**line, "memory_MiB": round(memory)})

    def _write(self, step: int, rate: float) -> None:
        now = time.monotonic()
        self.speed = len(self.losses) * self.batch / (now - self.since)
        finite = [loss for loss in self.losses if math.isfinite(loss)]
        line: dict[str, float | None] = {
            "step": step,
            "images": step * self.batch,
            "loss": sum(finite) / len(finite) if finite else None,
            "lr": rate,
            "images_per_second": round(self.speed, 1),
        }
        if len(finite) < len(self.losses):
            line["skipped"] = len(self.losses) - len(finite)
        self._append(line)
        self.losses, self.since = [], now

    def _append(self, line: dict[str, float | None]) -> None:
        if distributed.rank():
            return
        with disk(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.trackers.line(line)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the lines of a `metrics.jsonl` without damaged ones, such as a last line cut short by a crash."""
    lines: list[dict[str, float]] = []
    for text in read_bounded(path, MOST).splitlines() if path.is_file() else []:
        try:
            line = parse_json(text)
        except ValueError:
            continue
        numbered = isinstance(line, dict) and fits(line.get("step"), int) and fits(line.get("images"), int)
        if numbered and all(fits(value, float | None) for value in line.values()):
            lines.append(line)
    return lines


def losses(folder: Path) -> "Figure | None":
    """Plot the losses in a run folder's `metrics.jsonl`; None if there are none."""
    from matplotlib.figure import Figure  # imported here, since matplotlib takes half a second to import
    from matplotlib.ticker import LogLocator, MaxNLocator

    lines = read_metrics(folder / "metrics.jsonl")
    if not lines:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, style, label in (("loss", "-", "training"), ("held_out_loss", "o--", "held out")):
        points = [(line["images"], line[key]) for line in lines if line.get(key) is not None]
        axes.plot([x for x, _ in points], [y for _, y in points], style, label=label, linewidth=1, markersize=4)
    positive = any((line.get(key) or 0) > 0 for line in lines for key in ("loss", "held_out_loss"))
    axes.set(xlabel="images seen", ylabel="loss", yscale="log" if positive else "linear")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if positive and high > DECADE * low else MaxNLocator(6))
    axes.yaxis.set_major_formatter("{x:g}")  # 0.3, and not 3 × 10^-1
    axes.yaxis.set_minor_formatter("")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure


def draw_losses(folder: Path) -> None:
    """Plot the losses of a run folder to its `loss.png`."""
    if not distributed.rank() and (figure := losses(folder)) is not None:
        with whole(folder / "loss.png") as part:
            figure.savefig(part, dpi=120, format="png")


class Display:
    """A progress bar with loss, images per second and remaining time; on a pipe, only the printed lines."""

    def __init__(self, console: Console) -> None:
        """Show on `console`."""
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[figures]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("training", total=1.0, figures="")
        self.said = self.started = time.monotonic()
        self.begun: tuple[int, float] | None = None

    def __enter__(self) -> Self:
        """Show the bar."""
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the bar and leave it on the screen."""
        with suppress(OSError):  # a terminal that was closed
            self.progress.stop()

    def advance(self, images: int, done: float, left: float | None, metrics: Metrics) -> None:
        """Advance the bar; on a pipe, print a line from time to time.

        Args:
            images: Images seen, with those of this step.
            done: Share of the training that is done.
            left: Seconds that are left, where they are known; otherwise they follow from the pace so far.
            metrics: The latest figures.
        """
        now = time.monotonic()
        if self.begun is None:  # the first step also chooses kernels
            self.begun, self.started = (images, done), now
            return
        images, share, took = images - self.begun[0], done - self.begun[1], now - self.started
        left = (1 - done) * took / share if left is None and share > 0 else left
        speed = images / took if math.isnan(metrics.speed) and took > 0 else metrics.speed
        rest = "" if left is None else f"  {timedelta(seconds=max(0, round(left)))} left"
        figures = f"loss {metrics.smooth:.4f}  {speed:,.0f} images/s{rest}"
        self.progress.update(self.task, completed=done, figures=figures)
        if self.progress.disable and now - self.said > QUIET:
            self.say(f"{done:5.0%}  {figures}")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.said = time.monotonic()
        with suppress(OSError):  # a terminal that was closed
            self.progress.console.print(text, highlight=False)
