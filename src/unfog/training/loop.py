"""The training loop: steps, reports, checkpoints, a budget, and an orderly stop."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType

import torch
from rich.console import Console

from unfog.recipes.objective import Draw
from unfog.runtime import distributed
from unfog.runtime.device import peak_memory
from unfog.runtime.errors import Stopped
from unfog.runtime.files import write_whole
from unfog.training.draws import ahead, in_turn, pinned
from unfog.training.loggers import Trackers, loggers
from unfog.training.metrics import Display, Metrics
from unfog.training.trainer import Trainer

LOOK = 1 / 3
"""Share of the rest of a budget after which the speed is measured again."""


@dataclass(frozen=True)
class Pace:
    """How fast a training goes, and so how much of it fits into some seconds.

    Attributes:
        step: Seconds of an optimizer step.
        report: Seconds of a report.
    """

    step: float
    report: float

    def fit(self, seconds: float, spent: float, reports: int) -> tuple[int, int]:
        """Return how many more steps fit into a budget of which some is spent, and how many of `reports` reports.

        The reports get at most a tenth of the budget, the steps the rest.
        """
        reports = min(reports, max(1, int(0.1 * seconds / self.report)))
        return max(1, int((0.97 * seconds - spent - reports * self.report) / self.step)), reports

    def seconds(self, steps: int, reports: int) -> float:
        """Return the seconds of some steps and reports."""
        return steps * self.step + reports * self.report


@dataclass
class Stopwatch:
    """Times the first steps of a training, and then a report.

    Attributes:
        warm: The step at which the timing began, and when that was.
    """

    warm: tuple[int, float] | None = None

    def measure(self, trainer: Trainer, least: float = 0.0) -> Pace | None:
        """Take the time after a step; when enough steps were timed, write a report, time it and return the pace.

        To be called after every step until it returns a pace. The sheet of the report stays in the run folder.

        Args:
            trainer: Took a step just now.
            least: Seconds of steps that are timed at least.
        """
        step = self.lap(trainer.step, least)
        return None if step is None else Pace(step, write_timed_report(trainer))

    def lap(self, step: int, least: float = 0.0) -> float | None:
        """Take the time after step number `step`; return the mean seconds of a step, None while too few were timed.

        The first three steps are not timed, since kernels are chosen in them; then 20 steps are, or as many as `least`
        seconds hold.
        """
        now = _clock()
        if self.warm is None:
            self.warm = (step, now) if step >= 3 else None
            return None
        first, began = self.warm
        if step - first < 20 or now - began < least:
            return None
        return (now - began) / (step - first)


def write_timed_report(trainer: Trainer) -> float:
    """Measure the held-out loss and write a sheet of samples, as a report does; return the seconds that it took."""
    began = _clock()
    trainer.held_out_loss()
    trainer.preview()
    return _clock() - began


@dataclass
class Budget:
    """Measures how many images fit into some seconds.

    Attributes:
        seconds: The budget, from the start of the training to its last report.
        started: When the training started.
        stopwatch: Times the first steps and a report.
        first: The step and the moment of the first plan, and the pace that it was made from.
        settled: Whether the second plan was made, too.
    """

    seconds: float
    started: float = field(default_factory=lambda: _clock())
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    first: tuple[int, float, Pace] | None = None
    settled: bool = False

    def measure(self, trainer: Trainer) -> tuple[int, int] | None:
        """Take the time after a step; return how many images and reports fit when a plan is due, otherwise None.

        A plan is due twice: when 3 % of the budget were timed (a report is written then, to time it), and after a third
        of the rest, since a machine that has become warm is slower, and the speed of a busy one changes. After that the
        learning rate may already fall.
        """
        if self.settled:
            return None
        if self.first is None:
            return self._first_plan(trainer)
        return self._second_plan(trainer, *self.first)

    def _first_plan(self, trainer: Trainer) -> tuple[int, int] | None:
        """Plan by the first steps and a report, once they are timed."""
        pace = self.stopwatch.measure(trainer, 0.03 * self.seconds)
        if pace is None:
            return None
        now = _clock()
        self.first = trainer.step, now, pace
        steps, reports = pace.fit(self.seconds, now - self.started, trainer.settings.reports)
        return trainer.seen + trainer.settings.batch * steps, reports

    def _second_plan(self, trainer: Trainer, step: int, since: float, pace: Pace) -> tuple[int, int] | None:
        """Plan by all steps since the first plan, once a third of the rest of the budget or of the images is used."""
        now = _clock()
        used = (now - since) / (self.started + self.seconds - since)  # an autoencoder may have had its part before
        assert trainer.images is not None  # the first plan fixed it
        if used < LOOK and trainer.seen < LOOK * trainer.images:
            return None
        self.settled = True
        latest = Pace((now - since) / (trainer.step - step), pace.report)  # a step with its share of reports
        steps, _ = latest.fit(self.seconds, now - self.started, 1)
        return trainer.seen + trainer.settings.batch * steps, trainer.settings.reports


def _clock() -> float:
    """Return the first process's seconds, so that all processes agree on what is due."""
    return distributed.agreed(time.monotonic())


def train(trainer: Trainer, console: Console, budget: Budget | None = None, log: tuple[str, ...] = ()) -> None:
    """Train to the end of the recipe, with reports, or until a signal.

    Args:
        trainer: Takes the steps.
        console: Shows the progress.
        budget: Seconds to use, instead of the recipe's number of images.
        log: Names of trackers that are informed, too.

    Raises: Stopped: After Ctrl-C or SIGTERM, with the state saved.
        UserError: If the loss stays non-finite.
        EnvironmentFailure: If the disk fails.
    """
    if trainer.finished:
        return
    if budget:
        trainer.images = None
    trackers = Trackers(
        () if distributed.rank() else loggers(log, trainer.folder, trainer.recipe.to_json(), trainer.step)
    )
    metrics = Metrics(trainer.folder / "metrics.jsonl", trainer.settings.batch, trainer.step, trackers)
    try:
        signalled = _steps(trainer, console, budget, metrics)
        if trainer.finished:
            return
        if trainer.images is None:
            raise Stopped(
                "stopped before the budget was measured, with nothing to save: start again without --resume", signalled
            )
        saved_now = "saved" if trainer.save() else "not saved, since a weight is not finite"
        raise Stopped(f"stopped and {saved_now}: resume with `unfog train --resume {trainer.folder}`", signalled)
    finally:
        trackers.close()  # after saving, since it may wait for a network


def _steps(trainer: Trainer, console: Console, budget: Budget | None, metrics: Metrics) -> int:
    """Take steps to the end of the recipe or until a signal, and return the signal's number."""
    saved, seconds, signalled = time.monotonic(), 60 * trainer.settings.checkpoint_minutes, 0
    with Display(console) as display, _signals() as caught, torch.random.fork_rng():
        display.say(headline(trainer))
        for draw in batches(trainer):
            loss = trainer.descend(draw)
            metrics.add(trainer.step, loss, trainer.rate)
            display.advance(trainer.seen, trainer.images, metrics)
            if budget and (plan := budget.measure(trainer)):
                _fix(trainer, *plan)
                display.say(f"at this pace the budget of {budget.seconds:g} s holds {plan[0]:,} images")
            late = distributed.agreed(time.monotonic() - saved) > seconds
            if _due(trainer, trainer.settings.snapshots):
                trainer.snapshot()
            if trainer.finished or _due(trainer, trainer.settings.reports):
                display.say(_report(trainer, metrics))
                saved = time.monotonic()
            elif trainer.images and late:
                trainer.save()
                saved = time.monotonic()
            if (signalled := distributed.most(max(caught, default=0))) or trainer.finished:
                break
    return signalled


def batches(trainer: Trainer) -> Iterator[Draw]:
    """Return the batches of a training from where it stands, without end."""
    if trainer.device.type == "cuda":
        return ahead(lambda step: pinned(trainer.draws(step)), trainer.step)
    order = ahead if trainer.prepared.train.slow or trainer.device.type != "cpu" else in_turn
    return order(trainer.draws, trainer.step)


def headline(trainer: Trainer) -> str:
    """Say what is about to be trained, on what, and how."""
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    rows = f"{len(trainer.data.train):,} {trainer.recipe.rows}, {len(trainer.data.heldout):,} held out"
    conditional = getattr(trainer.model, "embedder", None)
    condition = f"conditioned on {trainer.recipe.kind('conditioning')}" if conditional else "unconditional"
    return f"{rows}; {condition}; {parameters:,} parameters; {trainer.device}, {trainer.precision}"


def _fix(trainer: Trainer, images: int, reports: int) -> None:
    """Write what a budget holds into the recipe."""
    trainer.settings = replace(trainer.settings, images=images, reports=reports)
    trainer.recipe = replace(trainer.recipe, training=trainer.settings)
    trainer.images = images
    write_recipe(trainer)


def write_recipe(trainer: Trainer) -> None:
    """Write the recipe into the run folder."""
    if distributed.rank():
        return
    recipe = trainer.recipe.beside(trainer.folder, relative=True)
    write_whole(trainer.folder / "recipe.json", recipe.to_json().encode())


def _due(trainer: Trainer, times: int) -> bool:
    """Return whether one of so many evenly spaced moments falls on this step."""
    if trainer.images is None:
        return False
    before = trainer.seen - trainer.settings.batch
    return trainer.seen * times // trainer.images > before * times // trainer.images


def _report(trainer: Trainer, metrics: Metrics) -> str:
    """Measure the held-out loss, write a sheet of samples and a checkpoint, and return a line on it."""
    held_out = trainer.held_out_loss()
    metrics.held_out(trainer.step, held_out, peak_memory(trainer.device) / 2**20)
    sheet = trainer.preview()
    trainer.save()  # after the report, so that the checkpoint has it
    if sheet is not None:
        metrics.trackers.picture(trainer.step, sheet)
    skipped = f"   {trainer.skipped} steps skipped" if trainer.skipped else ""
    seconds = time.monotonic() - metrics.started
    losses = f"loss {metrics.smooth:.4f}   held-out loss {held_out:.4f}"
    return f"{trainer.seen:>9,} images   {seconds:5.0f} s   {losses}{skipped}"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of being interrupted; a second one interrupts at once."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def take(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in before:
        signal.signal(number, take)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
