"""What a training computes with, and how many samples it draws at a time: chosen by timing them when it begins."""

import hashlib
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from unfog.generation.portion import measured
from unfog.generation.sampler import Sampler
from unfog.networks import flash, modulated
from unfog.networks.attention import Form
from unfog.recipes.choices import AUTO, REFERENCE, Choices, attend_by, attentions, fuse, norms, small
from unfog.recipes.parse import to_plain
from unfog.recipes.settings import PORTION
from unfog.runtime import distributed
from unfog.runtime.device import Precision, has_bfloat16
from unfog.runtime.errors import EnvironmentFailure, UserError
from unfog.runtime.files import cache_folder, locked, parse_json, read_bounded, write_whole
from unfog.runtime.native import processor
from unfog.runtime.sharing import disturbed
from unfog.training.trainer import Trainer

SECONDS = 1.0
"""For which two ways are compared, about."""
ROUNDS, FEWEST = 15, 3
"""Steps of each way, in turns: at most, and at least."""
WORTH = 1.03
"""How much faster than the reference another way must be to be chosen."""
SHORT = 60.0
"""Seconds of a budget below which the usual ways are taken: to time others takes a few seconds."""
DISTURBED = 1.3
"""Median over least time of a way from which on other programs disturbed it, so that nothing is concluded."""

ALL = [Choices(*one) for one in product(get_args(Precision), (False, True), get_args(Form))]
Ratios = dict[str, float]
"""How many times as fast as the reference each way was that was tried."""


def choose(trainer: Trainer) -> Ratios:
    """Let a new training compute with what is fastest for it here, and write that into its recipe.

    On a CPU its arithmetic, its attention, and whether its norms are fused, are timed for a second each on steps of its
    own, whose gradients are thrown away. The choice is kept in the cache, by processor, threads, torch, network and
    batch, so that the same command computes the same bits again. With UNFOG_CHOICES=reference in the environment, or
    within a budget of less than a minute, nothing is timed.

    Args:
        trainer: Its model is left in the way that was chosen.

    Returns: What was measured, now or when the choice was kept; empty where the recipe itself has chosen.
    """
    settings = trainer.settings
    if settings.choices != AUTO:
        return {}
    plain = settings.compile or settings.sharded or os.environ.get("UNFOG_CHOICES") == REFERENCE
    plain |= settings.seconds is not None and settings.seconds < SHORT
    if plain or trainer.device.type != "cpu":
        trainer.compute_with(Choices())
        return {}
    choices, ratios = Choices(), Ratios()
    if not distributed.rank():
        path = _file(trainer)
        choices, ratios = _kept(path) or _measured(trainer, path)
    found = ALL[int(distributed.agreed(ALL.index(choices)))]
    if found.fused:
        modulated.KERNELS.available(build=True)
    if found.attention == "flash":
        flash.KERNELS.available(build=True)
    trainer.compute_with(found)
    return ratios


def settle(trainer: Trainer) -> None:
    """Choose what a new training computes with, and in what portions its samples are drawn."""
    choose(trainer)
    choose_portion(trainer)


def choose_portion(trainer: Trainer) -> None:
    """Write into a training's recipe how many samples are drawn at a time: measured, unless it says so already."""
    sampling = trainer.recipe.sampling
    if sampling.batch is not None:
        return
    found, best = trainer.objective.generator(trainer.recipe, trainer.averaged.model), PORTION
    if isinstance(found, Sampler):
        condition = trainer.held_out(np.zeros(1, dtype=np.int64)).condition
        best = measured(replace(found, precision=trainer.precision), condition)
    trainer.recipe = replace(trainer.recipe, sampling=replace(sampling, batch=best))


def _file(trainer: Trainer) -> Path:
    """Return the file in which the choices for such trainings on this machine are kept."""
    recipe, settings = trainer.recipe, trainer.settings
    parts = [to_plain(name, getattr(recipe, name)) for name in ("network", "conditioning", "objective")]
    rows = settings.batch // settings.accumulate
    machine = (processor(), torch.get_num_threads(), torch.__version__)
    key = repr((3, machine, parts, trainer.known.shape, rows, settings.precision)).encode()
    return cache_folder() / "choices" / f"{hashlib.sha256(key).hexdigest()[:16]}.json"


def _kept(path: Path) -> tuple[Choices, Ratios] | None:
    """Return choices from the cache; None where there are none, they are damaged, or their kernel is gone."""
    try:
        plain = parse_json(read_bounded(path))
        choices = Choices.read(plain["choices"])
        ratios = {str(name): float(ratio) for name, ratio in plain["ratios"].items()}
    except (OSError, EnvironmentFailure, UserError, ValueError, KeyError, TypeError, AttributeError):
        return None
    gone = choices.fused and not modulated.KERNELS.available(build=True)
    gone |= choices.attention == "flash" and not flash.KERNELS.available(build=True)
    return None if gone else (choices, ratios)


def _measured(trainer: Trainer, path: Path) -> tuple[Choices, Ratios]:
    """Time the ways of computing in turns, and keep what is faster than the reference."""
    if disturbed():
        return _undecided()
    rule, ratios = trainer.precision, Ratios()
    shared, fused, best = False, False, rule
    attention: Form = "rule"
    step = _step(trainer)
    if trainer.settings.precision == "auto" and has_bfloat16():
        other: Precision = "float32" if rule == "bfloat16" else "bfloat16"

        def compute_in(new: bool) -> None:
            trainer.precision = other if new else rule

        ratio = _ratio(step, compute_in)
        shared |= ratio is None
        if ratio is not None:
            ratios[other] = ratio
            best = other if ratio > WORTH else rule
        trainer.precision = best
    if norms(trainer.model) and modulated.KERNELS.available(build=True):
        ratio = _ratio(step, lambda new: fuse([trainer.model], new))
        shared |= ratio is None
        if ratio is not None:
            ratios["fused-norm"] = ratio
            fused = ratio > WORTH
    forms: list[Form] = ["fused" if best == "bfloat16" else "plain"] if attentions(trainer.model) else []
    if small(trainer.model) and flash.KERNELS.available(build=True):
        forms.append("flash")
    for form in forms:  # those which the rule does not take

        def attend(new: bool, form: Form = form) -> None:
            attend_by([trainer.model], form if new else "rule")

        ratio = _ratio(step, attend)
        shared |= ratio is None
        if ratio is not None:
            ratios[f"{form}-attention"] = ratio
            if ratio > max(WORTH, ratios.get(f"{attention}-attention", 0.0)):
                attention = form
    if shared or disturbed():
        return _undecided()
    found = Choices(best, fused, attention) if ratios else Choices()
    if ratios:
        with suppress(EnvironmentFailure, UserError), locked(path.parent, wait=True):  # it costs a second, no more
            write_whole(path, json.dumps({"choices": str(found), "ratios": ratios}).encode())
    return found, ratios


def _undecided() -> tuple[Choices, Ratios]:
    """Say that nothing could be measured, and return the reference."""
    warnings.warn(
        "other programs disturbed the timing by which the fastest kernels are chosen, so the usual ones are used: the "
        "training is right, but may be slower than on an idle machine",
        stacklevel=5,
    )
    return Choices(), {}


def _step(trainer: Trainer) -> Callable[[], float]:
    """Return what takes the gradients of some rows of the first batch, and returns the seconds."""
    weights = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]

    def take(rows: int) -> float:
        draw, _ = trainer.prepare(replace(trainer.draws, batch=rows, part=None)(0))
        began = time.perf_counter()
        losses = trainer.losses(draw).values()
        torch.autograd.grad(torch.stack([loss.mean() for loss in losses]).sum(), weights, allow_unused=True)
        return time.perf_counter() - began

    rows = trainer.settings.batch // trainer.settings.accumulate
    with torch.random.fork_rng(devices=[]):
        take(1)
        single = take(1)
        if rows * single > SECONDS / FEWEST / 2:  # more than that, or few rows of a large network
            rows = max(1, min(rows, int(SECONDS / FEWEST / 2 / single)))
    return lambda: take(rows)


def _ratio(step: Callable[[], float], compute: Callable[[bool], None]) -> float | None:
    """Return how many times as fast as the reference another way is, by the least time of each; None if disturbed."""
    took: tuple[list[float], list[float]] = [], []
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        for round_ in range(1 + ROUNDS):
            for new in (False, True) if round_ % 2 else (True, False):
                compute(new)
                seconds = step()
                if round_:  # kernels are chosen in the first step of each
                    took[new].append(seconds)
            if round_ >= FEWEST and time.perf_counter() - began > SECONDS:
                break
    compute(False)
    if any(statistics.median(times) > DISTURBED * min(times) for times in took):
        return None
    return min(took[False]) / min(took[True])
