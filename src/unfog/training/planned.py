"""A plan: what a training will take in time, memory and disk, as lines of text."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from unfog.recipes.settings import PORTION
from unfog.runtime.lines import lines_of
from unfog.training.checkpoint import KEPT
from unfog.training.pace import Pace


@dataclass(frozen=True)
class Plan:
    """What a training takes.

    Attributes:
        headline: Its data, parameters, device and precision.
        rows: Rows of the training set.
        batch: Images in a step.
        steps: Optimizer steps.
        reports: Reports on the way.
        pace: Seconds of a step, and of a report with its checkpoint.
        spent: Seconds before the first step.
        memory: Bytes in use at the peak.
        most: How many rows the memory holds at a time; an estimate.
        checkpoint: Bytes of a checkpoint.
        rest: Bytes of everything else in the run folder.
        portion: Samples that are drawn at a time; None for models that are not sampled step by step.
        measured: Whether that number was measured, and not set in the recipe.
        first: The plan of the autoencoder that is trained before, if there is one to train.
        operations: Floating-point operations that an image takes in training.
        timed: The numbers of rows whose steps were timed; none where seconds follow from a convolution's speed.
        share: Operations of a timed row, as a share of a whole one: less than 1 if that is too large.
        expected: What to expect of the pictures, where something was measured.
        chosen: What it computes with, and how much faster other ways were; empty where nothing was timed.
        ahead: Seconds before the first step in which a teacher is sampled.
    """

    headline: str
    rows: int
    batch: int
    steps: int
    reports: int
    pace: Pace
    spent: float
    memory: int
    most: int
    checkpoint: int
    rest: int
    portion: int | None = None
    measured: bool = False
    first: "Plan | None" = None
    operations: int = 0
    timed: tuple[int, ...] = ()
    share: float = 1.0
    expected: str | None = None
    chosen: str = ""
    ahead: float = 0.0

    @property
    def images(self) -> int:
        """Images that are seen, repeats counted."""
        return self.steps * self.batch

    @property
    def seconds(self) -> float:
        """Seconds from the start to the last report."""
        return self.spent + self.pace.seconds(self.steps, self.reports)

    @property
    def disk(self) -> int:
        """Most bytes in the run folder: a new checkpoint is whole before the oldest one goes."""
        return (KEPT + 1) * self.checkpoint + self.rest

    @property
    def _how(self) -> str:
        """Where the speed comes from, if not from a whole step."""
        if not self.timed:
            return " (not timed: counted operations at a convolution's speed)"
        rows = " and ".join(map(str, self.timed))
        if self.share < 1:
            return f" (timed on {rows} smaller rows, and scaled by counted operations)"
        return "" if self.timed[-1] >= self.batch else f" (timed on {rows} rows)"

    def table(self) -> str:
        """Return the plan as lines of text."""
        took = timedelta(seconds=round(self.seconds))
        thousand, epochs = 1000 * self.pace.step / self.batch, round(self.images / self.rows, 2)
        report = self.pace.reports(self.seconds, self.reports) / self.reports
        lines = {
            "speed": f"{thousand:,.2f} s for a thousand images, {report:,.2f} s for a report{self._how}",
            "length": f"{self.images:,} images in {self.steps:,} steps of {self.batch}, which are {epochs:,} epochs",
            "end": f"after {took} with {self.reports} reports: begun now, at {datetime.now() + took:%H:%M on %A %d %B}",
            "memory": f"{_bytes(self.memory)} at the peak; about {self.most:,} rows fit at a time (an estimate)",
            "disk": f"{_bytes(self.disk)}: {KEPT} checkpoints of {_bytes(self.checkpoint)}, one more while it is "
            f"written, and {_bytes(self.rest)} of weights and samples",
        }
        if self.ahead:
            lines["teacher"] = f"sampled first, for about {timedelta(seconds=math.ceil(self.ahead))}"
        if self.chosen:
            lines["choices"] = self.chosen
        if self.portion is not None:
            lines["portion"] = _drawn(self.portion, self.measured)
        if self.expected is not None:
            lines["expect"] = self.expected
        said = (self.headline, *(f"{name:<8}{text}" for name, text in lines.items()))
        own = [part for line in said for part in lines_of(line, 8)]
        if self.first is None:
            return "\n".join(own)
        return "\n".join(["first an autoencoder:", self.first.table(), "", "then the model in its latents:", *own])


def _drawn(portion: int, measured: bool) -> str:
    """Return in words how many samples are drawn at a time, and why."""
    why = "as set in the recipe"
    if measured and portion < PORTION:
        why = f"one sample takes at most a quarter of the time that it would with {PORTION}"
    elif measured:
        why = "with fewer, one sample would hardly take less time, or a thousand more than 5 % longer"
    return f"{portion} samples are drawn at a time: {why}"


def _bytes(count: int) -> str:
    """Return a number of bytes in words."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
