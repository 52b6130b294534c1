"""The training loop: steps, reports, checkpoints, budgets, and stopping on a signal."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

import torch
from rich.console import Console

from unfog.recipes.latents import LatentCodec
from unfog.recipes.objective import Draw
from unfog.recipes.sources import Given
from unfog.runtime import distributed
from unfog.runtime.errors import EnvironmentFailure, Stopped
from unfog.runtime.files import disk, write_whole
from unfog.runtime.sharing import shared
from unfog.training.budget import Budget, Clocked, Following, Pacer, Trace, followed
from unfog.training.draws import ahead, in_turn, pinned
from unfog.training.home import Home
from unfog.training.hooks import Hooks
from unfog.training.loggers import Trackers, loggers
from unfog.training.metrics import Display, Metrics
from unfog.training.reporting import arithmetic_of, headline
from unfog.training.reports import Reports, due
from unfog.training.trainer import Trainer

ASKED = 127
"""Takes the place of a signal number if the hooks ask to stop; no signal has it."""
LEFT = 128
"""Takes the place of a signal number if the run folder was moved or deleted."""
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that stop a training: Ctrl-C, a scheduler or `kill`, and a terminal that is closed."""
NO_HOOKS = Hooks()


def train(trainer: Trainer, console: Console, budget: Budget | None = None, hooks: Hooks = NO_HOOKS) -> None:
    """Train to the end of the recipe, or until a signal or the hooks stop it.

    Args:
        trainer: The trainer.
        console: Shows the progress.
        budget: What is left of the time of a training by the clock; default: what its recipe and checkpoint say.
        hooks: Trackers, callbacks, and whether to stop.

    Raises: Stopped: After Ctrl-C, SIGTERM, SIGHUP or where the hooks ask for it, with the state saved.
        UserError: If the loss stays non-finite.
        EnvironmentFailure: If the disk fails.
    """
    if trainer.finished:
        return
    trackers = Trackers(
        () if distributed.rank() else loggers(hooks.log, trainer.folder, trainer.recipe.to_json(), trainer.step)
    )
    metrics = Metrics(trainer.folder / "metrics.jsonl", trainer.settings.batch, trainer.step, trackers)
    home = Home(trainer.folder)
    try:
        try:
            signalled = _steps(trainer, console, _pacer(trainer, budget), metrics, hooks, home)
        except EnvironmentFailure as failure:
            if distributed.size() > 1 or (home.intact() and not home.vanishing(failure)):
                raise
            signalled = LEFT  # while something was written
        if signalled == LEFT:
            raise EnvironmentFailure(_rescued(trainer, home))
        if trainer.finished:
            _record_length(trainer)
            return
        saved_now = "saved" if trainer.save() else "not saved, since a weight is not finite"
        raise Stopped(f"stopped and {saved_now}: resume with {_resuming(trainer)}", signalled)
    finally:
        trackers.close()  # after saving, since it may wait for a network
        home.close()


def _rescued(trainer: Trainer, home: Home) -> str:
    """Save a training whose run folder was moved or deleted, and return what happened and how to resume it."""
    before = trainer.folder
    recipe = trainer.recipe.relocated(before, relative=True)
    trainer.folder, moved = home.refuge()
    with disk(trainer.folder):
        trainer.folder.mkdir(parents=True, exist_ok=True)
    if not (trainer.folder / "recipe.json").exists():
        write_whole(trainer.folder / "recipe.json", recipe.to_json().encode())
    saved_now = "saved" if trainer.save() else "not saved, since a weight is not finite,"
    what = f"moved to {trainer.folder}" if moved else "deleted"
    ended = f"stopped and {saved_now} in {trainer.folder}"
    return f"{before} was {what} while it was trained: {ended}: resume with {_resuming(trainer)}"


def _resuming(trainer: Trainer) -> str:
    """Return the command or call that resumes a training."""
    if isinstance(trainer.recipe.data, Given):
        return f"unfog.resume({str(trainer.folder)!r}, dataset=...)"
    return f"`unfog train --resume {trainer.folder}`"


def _pacer(trainer: Trainer, budget: Budget | None) -> Pacer | None:
    """Return what moves the progress of a training by the clock; None for one that is as long as its images."""
    if trainer.trace is None:
        return None
    if (pattern := followed(trainer.folder)) is not None:
        return Following(trainer.trace, pattern)
    alone = trainer.device.type == "cpu" and distributed.size() == 1
    return Clocked(trainer.trace, budget or _rest(trainer, trainer.trace), adapt=alone)


def _rest(trainer: Trainer, trace: Trace) -> Budget:
    """Return what is left of the time of a training that resumes."""
    seconds, codec = trainer.settings.seconds, trainer.recipe.codec
    assert seconds is not None
    before = codec.share * seconds if isinstance(codec, LatentCodec) else 0.0  # it trained its autoencoder first
    return Budget((1 - trace.now) * trace.span if trace.span else seconds - before)


def _steps(trainer: Trainer, console: Console, pacer: Pacer | None, metrics: Metrics, hooks: Hooks, home: Home) -> int:
    """Take steps to the end of the recipe or until a signal; return the signal's number, or 0."""
    saved, seconds, signalled = time.monotonic(), 60 * trainer.settings.checkpoint_minutes, 0
    reports = Reports(trainer, pacer, metrics, hooks)
    with Display(console) as display, _signals() as caught, torch.random.fork_rng():
        parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        conditional = getattr(trainer.model, "embedder", None) is not None
        arithmetic = arithmetic_of(trainer.device, trainer.precision, trainer.settings.choices)
        display.say(headline(trainer.recipe, trainer.data, parameters, conditional, arithmetic))
        if pacer is None and trainer.device.type == "cpu" and (busy := shared()):
            display.say(busy)
        for draw in batches(trainer):
            done = trainer.progress
            if pacer is not None:
                pacer.begin()
            loss = trainer.descend(draw)
            if pacer is not None:
                pacer.end()
            if signalled := distributed.most(0 if home.intact() else LEFT):  # asked before anything is written
                break
            metrics.add(trainer.step, loss, trainer.rate)
            display.advance(trainer.seen, float(trainer.progress), None if pacer is None else pacer.left, metrics)
            late = distributed.agreed(time.monotonic() - saved) > seconds
            if due(done, trainer.progress, trainer.settings.snapshots):
                trainer.snapshot()
            if trainer.finished or reports.due(done):
                display.say(reports.write())
                saved = time.monotonic()
            elif late:
                trainer.save()
                saved = time.monotonic()
            if hooks.stop is not None and hooks.stop():
                caught.append(ASKED)
            if (signalled := distributed.most(max(caught, default=0))) or trainer.finished:
                break
        if isinstance(pacer, Clocked) and (fewer := pacer.fewer()):
            display.say(fewer)
    return signalled


def batches(trainer: Trainer) -> Iterator[Draw]:
    """Return the endless batches of a training, from its current step on."""
    if trainer.device.type == "cuda":
        return ahead(lambda step: pinned(trainer.draws(step)), trainer.step)
    order = ahead if trainer.prepared.train.slow or trainer.device.type != "cpu" else in_turn
    return order(trainer.draws, trainer.step)


def _record_length(trainer: Trainer) -> None:
    """Write into the recipe of a training by the clock how many images it saw."""
    if trainer.trace is not None:
        trainer.settings = replace(trainer.settings, images=trainer.seen)
        trainer.recipe = replace(trainer.recipe, training=trainer.settings)
        write_recipe(trainer)


def write_recipe(trainer: Trainer) -> None:
    """Write the recipe into the run folder."""
    if distributed.rank():
        return
    recipe = trainer.recipe.relocated(trainer.folder, relative=True)
    write_whole(trainer.folder / "recipe.json", recipe.to_json().encode())


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
