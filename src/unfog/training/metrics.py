"""What a training tells: lines in `metrics.jsonl`, a progress bar, and `loss.png` in the end."""

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from unfog.recipes.schema import fits
from unfog.runtime import distributed
from unfog.runtime.files import disk, parse_json, read_bounded, whole, write_whole
from unfog.training.loggers import Trackers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVERY = 20
"""Steps that one line of `metrics.jsonl` sums up."""
MOST = 1 << 28
"""Bytes of a `metrics.jsonl`, at most."""


class Metrics:
    """Appends to `metrics.jsonl`: a line for every 20 steps, and one for each held-out loss."""

    def __init__(self, path: Path, batch: int, step: int, trackers: Trackers | None = None) -> None:
        """Go on at `step`: later lines, of steps that are about to be taken again, are dropped."""
        self.path, self.batch, self.trackers = path, batch, trackers or Trackers(())
        self.losses: list[float] = []
        self.smooth = math.nan
        self.speed = math.nan
        self.started = self.since = time.monotonic()
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        if distributed.rank() == 0:
            write_whole(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def add(self, step: int, loss: float, rate: float) -> None:
        """Take in the loss of a step."""
        self.losses.append(loss)
        if math.isfinite(loss):
            self.smooth = loss if math.isnan(self.smooth) else 0.98 * self.smooth + 0.02 * loss
        if step % EVERY == 0:
            self._write(step, rate)

    def held_out(self, step: int, loss: float, memory: float | None = None) -> None:
        """Write the loss on held-out data, and the most MiB that the process took so far."""
        line: dict[str, float | None] = {"step": step, "images": step * self.batch, "held_out_loss": loss}
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
    """Return the lines of a `metrics.jsonl`; damaged ones, as a last one that a crash cut short, are left out."""
    lines: list[dict[str, float]] = []
    for text in read_bounded(path, MOST).splitlines() if path.is_file() else []:
        try:
            line = parse_json(text)
        except ValueError:
            continue
        counted = isinstance(line, dict) and fits(line.get("step"), int) and fits(line.get("images"), int)
        if counted and all(fits(value, float | None) for value in line.values()):
            lines.append(line)
    return lines


def losses(folder: Path) -> "Figure | None":
    """Return a figure of the losses in a run folder's `metrics.jsonl`, if there are any."""
    from matplotlib.figure import Figure  # here, since matplotlib takes half a second to import

    lines = read_metrics(folder / "metrics.jsonl")
    if not lines:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, style, label in (("loss", "-", "training"), ("held_out_loss", "o--", "held out")):
        found = [(line["images"], line[key]) for line in lines if line.get(key) is not None]
        axes.plot([x for x, _ in found], [y for _, y in found], style, label=label, linewidth=1, markersize=4)
    axes.set(xlabel="images seen", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure


def draw_losses(folder: Path) -> None:
    """Draw them into its `loss.png`."""
    if not distributed.rank() and (figure := losses(folder)) is not None:
        with whole(folder / "loss.png") as part:
            figure.savefig(part, dpi=120, format="png")


class Display:
    """A progress bar with loss, images per second and time left; on a pipe, only the reports."""

    def __init__(self, console: Console) -> None:
        """Show on `console`."""
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("training", total=None, figures="")

    def __enter__(self) -> Self:
        """Show the bar."""
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it stands."""
        self.progress.stop()

    def advance(self, images: int, total: int | None, metrics: Metrics) -> None:
        """Move the bar."""
        speed = "" if math.isnan(metrics.speed) else f"  {metrics.speed:.0f} images/s"
        self.progress.update(self.task, completed=images, total=total, figures=f"loss {metrics.smooth:.4f}{speed}")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.progress.console.print(text, highlight=False)
