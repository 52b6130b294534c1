"""The training loop: steps, reports, checkpoints, budgets, and stopping on a signal."""

import os
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
from unfog.recipes.sources import Given
from unfog.runtime import distributed
from unfog.runtime.device import peak_memory
from unfog.runtime.errors import EnvironmentFailure, Stopped
from unfog.runtime.files import disk, write_whole
from unfog.training.draws import ahead, in_turn, pinned
from unfog.training.home import Home
from unfog.training.hooks import Hooks, Report
from unfog.training.loggers import Trackers, loggers
from unfog.training.metrics import Display, Metrics
from unfog.training.trainer import Trainer

LOOK = 1 / 3
"""Fraction of the remaining budget after which the speed is measured again."""
ASKED = 127
"""Takes the place of a signal number if the hooks ask to stop; no signal has it."""
LEFT = 128
"""Takes the place of a signal number if the run folder was moved or deleted."""
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that stop a training: Ctrl-C, a scheduler or `kill`, and a terminal that is closed."""
NO_HOOKS = Hooks()


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
        now = _clock()
        if self.warm is None:
            self.warm = (step, now) if step >= 3 else None
            return None
        first, began = self.warm
        if step - first < 20 or now - began < least:
            return None
        return (now - began) / (step - first)


def write_timed_report(trainer: Trainer) -> float:
    """Measure the held-out loss and write a sheet of samples, as a report does; return the seconds it took."""
    began = _clock()
    trainer.held_out_loss()
    trainer.preview()
    return _clock() - began


@dataclass
class Budget:
    """Measures how many images fit into a budget of seconds.

    Attributes:
        seconds: The budget, from the start of the training to its last report.
        started: The time at which the training started.
        stopwatch: Times the first steps and a report.
        first: Step, time and pace of the first plan.
        settled: Whether the second plan has been made.
    """

    seconds: float
    started: float = field(default_factory=lambda: _clock())
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    first: tuple[int, float, Pace] | None = None
    settled: bool = False

    def measure(self, trainer: Trainer) -> tuple[int, int] | None:
        """Time a step; return how many images and reports fit if a plan is due, otherwise None.

        A plan is due twice: when 3 % of the budget have been timed (a report is then written, to time it), and after a
        third of the rest, since machines slow down as they warm up, and the speed of a busy one changes. After that the
        learning rate may already be falling.
        """
        if self.settled:
            return None
        if self.first is None:
            return self._first_plan(trainer)
        return self._second_plan(trainer, *self.first)

    def _first_plan(self, trainer: Trainer) -> tuple[int, int] | None:
        """Plan from the first steps and a report, once they are timed."""
        pace = self.stopwatch.measure(trainer, 0.03 * self.seconds)
        if pace is None:
            return None
        now = _clock()
        self.first = trainer.step, now, pace
        steps, reports = pace.fit(self.seconds, now - self.started, trainer.settings.reports)
        return trainer.seen + trainer.settings.batch * steps, reports

    def _second_plan(self, trainer: Trainer, step: int, since: float, pace: Pace) -> tuple[int, int] | None:
        """Plan from all steps since the first plan, once a third of the remaining budget or images is used."""
        now = _clock()
        used = (now - since) / (self.started + self.seconds - since)  # an autoencoder may have used part of the budget
        assert trainer.images is not None  # the first plan set it
        if used < LOOK and trainer.seen < LOOK * trainer.images:
            return None
        self.settled = True
        latest = Pace((now - since) / (trainer.step - step), pace.report)  # seconds per step, reports included
        steps, _ = latest.fit(self.seconds, now - self.started, 1)
        return trainer.seen + trainer.settings.batch * steps, trainer.settings.reports


def _clock() -> float:
    """Return the first process's clock in seconds, so that all processes agree on what is due."""
    return distributed.agreed(time.monotonic())


def train(trainer: Trainer, console: Console, budget: Budget | None = None, hooks: Hooks = NO_HOOKS) -> None:
    """Train to the end of the recipe, or until a signal or the hooks stop it.

    Args:
        trainer: The trainer.
        console: Shows the progress.
        budget: Seconds to train for, instead of the recipe's number of images.
        hooks: Trackers, callbacks, and whether to stop.

    Raises: Stopped: After Ctrl-C, SIGTERM, SIGHUP or where the hooks ask for it, with the state saved.
        UserError: If the loss stays non-finite.
        EnvironmentFailure: If the disk fails.
    """
    if trainer.finished:
        return
    if budget:
        trainer.images = None
    trackers = Trackers(
        () if distributed.rank() else loggers(hooks.log, trainer.folder, trainer.recipe.to_json(), trainer.step)
    )
    metrics = Metrics(trainer.folder / "metrics.jsonl", trainer.settings.batch, trainer.step, trackers)
    home = Home(trainer.folder)
    try:
        try:
            signalled = _steps(trainer, console, budget, metrics, hooks, home)
        except EnvironmentFailure:
            if home.intact() or distributed.size() > 1:
                raise
            signalled = LEFT  # while something was written
        if signalled == LEFT:
            raise EnvironmentFailure(_rescued(trainer, home))
        if trainer.finished:
            return
        if trainer.images is None:
            raise Stopped(
                "stopped before the budget was measured, with nothing to save: start the training from the beginning",
                signalled,
            )
        saved_now = "saved" if trainer.save() else "not saved, since a weight is not finite"
        raise Stopped(f"stopped and {saved_now}: resume with {_resuming(trainer)}", signalled)
    finally:
        trackers.close()  # after saving, since it may wait for a network
        home.close()


def _rescued(trainer: Trainer, home: Home) -> str:
    """Save a training whose run folder was moved or deleted, and return what happened and how to resume it."""
    before = trainer.folder
    if trainer.images is None:
        return f"{before} was moved or deleted before the budget was measured: start the training from the beginning"
    recipe = trainer.recipe.relocated(before, relative=True)
    trainer.folder, moved = home.refuge()
    if not moved:
        with disk(trainer.folder):
            trainer.folder.mkdir(parents=True)
        write_whole(trainer.folder / "recipe.json", recipe.to_json().encode())
    saved_now = "saved" if trainer.save() else "not saved, since a weight is not finite,"
    what = f"was moved to {trainer.folder} while it was trained: stopped and {saved_now} there"
    if not moved:
        what = f"was deleted while it was trained: stopped and {saved_now} in a new folder, {trainer.folder}"
    return f"{before} {what}: resume with {_resuming(trainer)}"


def _resuming(trainer: Trainer) -> str:
    """Return the command or call that resumes a training."""
    if isinstance(trainer.recipe.data, Given):
        return f"unfog.resume({str(trainer.folder)!r}, dataset=...)"
    return f"`unfog train --resume {trainer.folder}`"


def _steps(
    trainer: Trainer, console: Console, budget: Budget | None, metrics: Metrics, hooks: Hooks, home: Home
) -> int:
    """Take steps to the end of the recipe or until a signal; return the signal's number, or 0."""
    saved, seconds, signalled = time.monotonic(), 60 * trainer.settings.checkpoint_minutes, 0
    with Display(console) as display, _signals() as caught, torch.random.fork_rng():
        display.say(headline(trainer))
        for draw in batches(trainer):
            loss = trainer.descend(draw)
            if signalled := distributed.most(0 if home.intact() else LEFT):  # asked before anything is written
                break
            metrics.add(trainer.step, loss, trainer.rate)
            display.advance(trainer.seen, trainer.images, metrics)
            if budget and (plan := budget.measure(trainer)):
                _fix(trainer, *plan)
                display.say(f"at this pace the budget of {budget.seconds:g} s holds {plan[0]:,} images")
            late = distributed.agreed(time.monotonic() - saved) > seconds
            if _due(trainer, trainer.settings.snapshots):
                trainer.snapshot()
            if trainer.finished or _due(trainer, trainer.settings.reports):
                display.say(_report(trainer, metrics, hooks))
                saved = time.monotonic()
            elif trainer.images and late:
                trainer.save()
                saved = time.monotonic()
            if hooks.stop is not None and hooks.stop():
                caught.append(ASKED)
            if (signalled := distributed.most(max(caught, default=0))) or trainer.finished:
                break
    return signalled


def batches(trainer: Trainer) -> Iterator[Draw]:
    """Return the endless batches of a training, from its current step on."""
    if trainer.device.type == "cuda":
        return ahead(lambda step: pinned(trainer.draws(step)), trainer.step)
    order = ahead if trainer.prepared.train.slow or trainer.device.type != "cpu" else in_turn
    return order(trainer.draws, trainer.step)


def headline(trainer: Trainer) -> str:
    """Return one line on what is about to be trained, on what data and how."""
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    rows = f"{len(trainer.data.train):,} {trainer.recipe.rows}, {len(trainer.data.heldout):,} held out"
    conditional = getattr(trainer.model, "embedder", None)
    condition = f"conditioned on {trainer.recipe.kind('conditioning')}" if conditional else "unconditional"
    return f"{rows}; {condition}; {parameters:,} parameters; {trainer.device}, {trainer.precision}"


def _fix(trainer: Trainer, images: int, reports: int) -> None:
    """Write the images and reports that fit a budget into the recipe."""
    trainer.settings = replace(trainer.settings, images=images, reports=reports)
    trainer.recipe = replace(trainer.recipe, training=trainer.settings)
    trainer.images = images
    write_recipe(trainer)


def write_recipe(trainer: Trainer) -> None:
    """Write the recipe into the run folder."""
    if distributed.rank():
        return
    recipe = trainer.recipe.relocated(trainer.folder, relative=True)
    write_whole(trainer.folder / "recipe.json", recipe.to_json().encode())


def _due(trainer: Trainer, times: int) -> bool:
    """Return whether one of `times` evenly spaced points of the training falls on this step."""
    if trainer.images is None:
        return False
    before = trainer.seen - trainer.settings.batch
    return trainer.seen * times // trainer.images > before * times // trainer.images


def _report(trainer: Trainer, metrics: Metrics, hooks: Hooks) -> str:
    """Measure the held-out loss, write a sheet of samples and a checkpoint, and return a line to print."""
    held_out = trainer.held_out_loss()
    metrics.held_out(trainer.step, held_out, peak_memory(trainer.device) / 2**20)
    sheet = trainer.preview()
    trainer.save()  # after the report, so that the checkpoint has it
    if sheet is not None:
        metrics.trackers.picture(trainer.step, sheet)
    hooks.tell(Report(trainer.step, trainer.seen, metrics.smooth, held_out, sheet))
    skipped = f"   {trainer.skipped} steps skipped" if trainer.skipped else ""
    seconds = time.monotonic() - metrics.started
    losses = f"loss {metrics.smooth:.4f}   held-out loss {held_out:.4f}"
    return f"{trainer.seen:>9,} images   {seconds:5.0f} s   {losses}{skipped}"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect signals instead of being interrupted; a second one interrupts at once. `nohup` keeps its effect."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    # shells ignore SIGINT for what runs in the background, where `kill -INT` still means to stop it
    before = {number: old for number, old in before.items() if number == signal.SIGINT or old != signal.SIG_IGN}

    terminals = [stream for stream in (1, 2) if os.isatty(stream)]

    def take(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for stream in terminals:
            if not os.isatty(stream):  # it was closed, and a line that cannot be shown must not end the saving
                with open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), stream)
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in before:
        signal.signal(number, take)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is take:  # after a loss, runtime.distributed has set its own
                signal.signal(number, handler)
