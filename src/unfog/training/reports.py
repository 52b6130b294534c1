"""Reports on the way: the held-out loss, a sheet of samples and a checkpoint, when due and as large as fits."""

import math
import time
from dataclasses import replace
from fractions import Fraction

from unfog.runtime.device import peak_memory
from unfog.training.budget import Clocked, Pacer, clock
from unfog.training.hooks import Hooks, Report
from unfog.training.metrics import Metrics, draw_losses
from unfog.training.reporting import CROWD, HELD_OUT, SHEET, allowed, evaluations, fitting
from unfog.training.trainer import Trainer

EARLY, WARM = 0.03, 5
"""Share of a budget and steps after which a first report is written, which shows what the last one will take."""

Share = Fraction | float
"""How much of a training is done."""


def due(before: Share, now: Share, times: int) -> bool:
    """Return whether one of `times` evenly spaced points of a training lies between two shares of it."""
    return math.floor(before * times) < math.floor(now * times)


class Reports:
    """The reports of a training."""

    def __init__(self, trainer: Trainer, pacer: Pacer | None, metrics: Metrics, hooks: Hooks) -> None:
        """Begin just before a step."""
        self.trainer, self.pacer, self.metrics, self.hooks = trainer, pacer, metrics, hooks
        self.times, self.began = trainer.settings.reports, clock()
        self.first, self.start = trainer.step, trainer.progress
        self.sized = False

    def due(self, before: Share) -> bool:
        """Return whether a report is due after a step, before which `before` of the training was done."""
        now = self.trainer.progress
        if isinstance(self.pacer, Clocked) and not self.sized:
            warm = self.trainer.step - self.first >= WARM
            return warm and now - self.start >= EARLY * (1 - self.start)
        return due(before, now, self.times)

    def write(self) -> str:
        """Write a report, and return a line to print."""
        first, said = not self.sized, ""
        if first:
            said = self._size()
        began = clock()
        line = self._report()
        took = clock() - began
        if isinstance(self.pacer, Clocked):
            if first and not self.trainer.finished:
                took += self._plotting()
                images = self.trainer.length
                said += f"\nabout {float(f'{images:.2g}'):,.0f} images in all at the pace so far" if images else ""
            self.pacer.reported(took)
            self.times = fitting(self.trainer.trace.span if self.trainer.trace else 0.0, took, self.times)
        return line + said

    def _size(self) -> str:
        """Choose the size of the reports from the pace so far; return what is smaller than usual, in words."""
        trainer, self.sized = self.trainer, True
        steps = trainer.step - self.first
        step = (clock() - self.began) / steps
        generator = trainer.objective.generator(trainer.recipe, trainer.averaged.model)
        by_clock = trainer.trace is not None
        whole = (trainer.length or 0) / trainer.settings.batch
        seconds = trainer.trace.span if trainer.trace else step * whole
        # by the clock the first one and the last one must fit, and others are written if more do
        each = allowed(seconds, 2 if by_clock else self.times, by_clock)
        usual = CROWD if trainer.recipe.modality.together else SHEET
        usual_rows, rows = trainer.reporting, min(trainer.settings.batch, len(trainer.prepared.heldout))
        trainer.reporting, began = replace(usual_rows, rows=rows), clock()
        trainer.held_out_loss()
        row = (clock() - began) / rows
        trainer.reporting = usual_rows.within(each, row, evaluations(generator), usual)
        return f"\n{trainer.reporting.said}" if trainer.reporting.said else ""

    def _plotting(self) -> float:
        """Return the seconds that the plot of the losses takes once its library is imported."""
        import matplotlib.figure  # noqa: F401

        began = clock()
        draw_losses(self.trainer.folder)
        return clock() - began

    def _report(self) -> str:
        """Measure the held-out loss, write a sheet of samples and a checkpoint, and return a line to print."""
        trainer, metrics = self.trainer, self.metrics
        held_out = trainer.held_out_loss()
        metrics.held_out(trainer.step, held_out, trainer.judged, peak_memory(trainer.device) / 2**20)
        sheet = trainer.preview()
        trainer.save()  # after the report, so that the checkpoint has it
        if sheet is not None:
            metrics.trackers.picture(trainer.step, sheet)
        self.hooks.tell(Report(trainer.step, trainer.seen, metrics.smooth, held_out, sheet))
        skipped = f"   {trainer.skipped} steps skipped" if trainer.skipped else ""
        seconds = time.monotonic() - metrics.started
        usual = min(HELD_OUT, len(trainer.prepared.heldout))
        rows = f" (of {trainer.judged} rows)" if trainer.judged < usual else ""  # which are fewer in a short training
        losses = f"loss {metrics.smooth:.4f}   held-out loss {held_out:.4f}{rows}"
        return f"{trainer.seen:>9,} images   {seconds:5.0f} s   {losses}{skipped}"
