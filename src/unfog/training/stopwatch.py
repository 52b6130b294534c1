"""Timing of a training's steps and reports."""

from dataclasses import dataclass

from unfog.training.budget import clock
from unfog.training.trainer import Trainer


@dataclass(frozen=True)
class Pace:
    """The speed of a training.

    Attributes:
        step: Seconds per optimizer step.
        report: Seconds per report.
    """

    step: float
    report: float

    def fit(self, seconds: float, spent: float, reports: int) -> tuple[int, int]:
        """Return how many more steps fit into a budget of which `spent` is used, and how many of `reports` reports.

        Reports get at most a tenth of the budget, steps the rest.
        """
        reports = min(reports, max(1, int(0.1 * seconds / self.report)))
        return max(1, int((0.97 * seconds - spent - reports * self.report) / self.step)), reports

    def seconds(self, steps: int, reports: int) -> float:
        """Return the seconds that `steps` and `reports` take."""
        return steps * self.step + reports * self.report


@dataclass
class Stopwatch:
    """Times the first steps of a training, and then a report.

    Attributes:
        warm: The step and the time at which timing started.
    """

    warm: tuple[int, float] | None = None

    def measure(self, trainer: Trainer, least: float = 0.0) -> Pace | None:
        """Time a step; once enough steps are timed, write and time a report and return the pace.

        Call it after every step until it returns a pace. The sheet of the report stays in the run folder.

        Args:
            trainer: The trainer, just after a step.
            least: Seconds of steps to time, at least.
        """
        step = self.lap(trainer.step, least)
        return None if step is None else Pace(step, write_timed_report(trainer))

    def lap(self, step: int, least: float = 0.0) -> float | None:
        """Time step number `step`; return the mean seconds per step, or None while too few are timed.

        The first three steps are not timed, since kernels are chosen during them; then 20 steps are, or as many as fit
        `least` seconds.
        """
        now = clock()
        if self.warm is None:
            self.warm = (step, now) if step >= 3 else None
            return None
        first, began = self.warm
        if step - first < 20 or now - began < least:
            return None
        return (now - began) / (step - first)


def write_timed_report(trainer: Trainer) -> float:
    """Measure the held-out loss and write a sheet of samples, as a report does; return the seconds it took."""
    began = clock()
    trainer.held_out_loss()
    trainer.preview()
    return clock() - began
