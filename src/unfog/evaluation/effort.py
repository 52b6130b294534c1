"""What an evaluation will take, from timed portions of it, and how many samples two minutes are enough for."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from unfog.data.codecs import Codec
from unfog.data.source import Data, Source
from unfog.evaluation.classifier import BATCH, expected_steps, trial_step
from unfog.evaluation.features import features_of, fit_components
from unfog.evaluation.judge import HELD_OUT, LEAST, MEMORY, TRAINING, VERSIONS, fitted, known, rows_of
from unfog.evaluation.levels import LEVELS, rows_for
from unfog.generation.sampler import Sampler
from unfog.runs.run import Run
from unfog.runtime import distributed
from unfog.runtime.progress import duration, working

LIMIT = 90.0
"""Seconds that an evaluation is to take by the estimate, so that it ends in about two minutes on a busy machine."""
ONCE = "before that, once for these data, the thorough judge is trained for minutes"
"""What is said of a time that does not hold the training of the judge."""
AT_LEAST = 30.0
"""Seconds for the samples, however long the judge is trained before: few samples say little."""
LADDER = (5000, 2000, 1000, 500, 200)
"""Numbers of samples to choose from: few, so that runs that are evaluated twice mostly get the same."""
TRIED, PATIENCE = 64, 1.0
"""Rows of a timed portion, and seconds from which on the first step of a sampling is timing enough."""


@dataclass(frozen=True)
class Effort:
    """What an evaluation takes.

    Attributes:
        count: Number of samples.
        scales: Scales of guidance.
        seconds: What it takes, at most: a classifier that is in the cache need not be trained.
        full: What the usual number of samples at the usual scales would take.
        fullest: That number.
        dropped: Scales that are left out.
    """

    count: int
    scales: tuple[float, ...]
    seconds: float
    full: float
    fullest: int = LADDER[0]
    dropped: tuple[float, ...] = ()

    def __str__(self) -> str:
        """Return it as a sentence, with the options for more."""
        text = f"this will take up to about {duration(self.seconds)} for {self.count:,} samples"
        if self.count >= self.fullest and not self.dropped:
            return text
        options = f"-n {self.fullest}"
        if self.dropped:
            text += f" at guidance {self.scales[0]:g} only"
            options += f" --guidance {' '.join(f'{scale:g}' for scale in sorted((*self.dropped, *self.scales)))}"
        return f"{text}; {self.fullest:,} would take about {duration(self.full)}: {options}"


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of an evaluation.

    Attributes:
        fixed: Whatever the number of samples.
        batches: Of a batch of samples at each scale of guidance.
        size: Samples in a batch.
        row: To extract the features of a row.
        compared: Floating-point operations per sample to compare it with real rows.
        rate: Floating-point operations a second.
    """

    fixed: float
    batches: dict[float, float]
    size: int
    row: float
    compared: float
    rate: float

    def seconds(self, count: int, scales: Sequence[float]) -> float:
        """Return what so many samples at each of some scales take."""
        drawn = sum(self.batches[scale] * math.ceil(count / self.size) for scale in scales)
        scored = count * (3 + 4 * len(scales)) * self.row + len(scales) * count * self.compared / self.rate
        return self.fixed + drawn + scored


def effort(
    costs: Costs,
    scales: Sequence[float],
    least: int,
    count: int | None = None,
    *,
    most: int = LADDER[0],
    keep: bool = False,
    limit: float = LIMIT,
) -> Effort:
    """Return what an evaluation takes: of `count` samples, or of as many as the limit allows.

    Where even the least number takes too long at all scales, only the last of them is measured.

    Args:
        costs: Seconds of its parts.
        scales: Scales of guidance, the recipe's last.
        least: Fewest samples that can be judged.
        count: Number of samples that was asked for; None to choose.
        most: The usual number.
        keep: Whether all scales are measured whatever it takes.
        limit: Seconds.
    """
    all_scales, limit = tuple(scales), max(limit, min(costs.fixed + AT_LEAST, 2 * limit))
    full = costs.seconds(most, all_scales)
    if count is not None:
        return Effort(count, all_scales, costs.seconds(count, all_scales), full, count)
    numbers = [most, *(number for number in LADDER if least <= number < most), least]
    last = all_scales if keep else all_scales[-1:]
    for tried in dict.fromkeys((all_scales, last)):
        for number in numbers:
            seconds = costs.seconds(number, tried)
            if seconds <= limit:
                return Effort(number, tried, seconds, full, most, all_scales[: len(all_scales) - len(tried)])
    return Effort(least, last, costs.seconds(least, last), full, most, all_scales[: len(all_scales) - len(last)])


def of_runs(
    runs: Sequence[Run],
    data: Data,
    scale: float,
    solver: str | None,
    steps: int | None,
    codec: Codec,
    count: int,
    thorough: bool = False,
) -> float:
    """Return the seconds in which so many samples of each run are drawn and judged, at most.

    Args:
        runs: The runs, trained on the same data.
        data: Their data.
        scale: Scale of guidance.
        solver: Name of a solver; None for the recipe's.
        steps: Steps of the solver; None for the recipe's.
        codec: Encodes rows.
        count: Samples of each run.
        thorough: As for `measure`.
    """
    first = runs[0]
    costs = measure(first, data, (scale if first.denoises else 1.0,), steps, 0, codec, solver, thorough)
    seconds = costs.seconds(count, tuple(costs.batches))
    for run in runs[1:]:
        own = scale if run.denoises else 1.0
        batch, size, _ = _batch(run, own, solver, steps, 0, data, codec)
        seconds += replace(costs, fixed=0.0, batches={own: batch}, size=size).seconds(count, (own,))
    return seconds


def measure(
    run: Run,
    data: Data,
    scales: Sequence[float],
    steps: int | None,
    seed: int,
    codec: Codec,
    solver: str | None = None,
    thorough: bool = False,
) -> Costs:
    """Time portions of an evaluation: some rows, two steps of the classifier and of the sampling, and a product.

    Args:
        run: The run.
        data: Its data.
        scales: Scales of guidance that will be measured.
        steps: Steps of the solver; None for the recipe's.
        seed: Seed of the samples.
        codec: Encodes rows.
        solver: Name of a solver; None for the recipe's.
        thorough: Whether the judge is the thorough one, whose training does not count: it takes place once.
    """
    judging, row, rate = judge_costs(data, codec, thorough)
    batches, size, levels = {}, LADDER[0], 0.0
    for scale in scales:
        batches[scale], size, step = _batch(run, scale, solver, steps, seed, data, codec)
        levels = levels or step
    rows, numbers = _used(data.train), int(np.prod(data.train.shape))
    held = min(len(data.heldout), HELD_OUT)
    if run.denoises:
        each = rows_for(rows * numbers)
        judging += 2 * LEVELS * (math.ceil(each / size) * levels + each * rows * numbers * 4 / rate)
    pixels = 5 * rows * numbers if 5 * rows * numbers <= VERSIONS else rows * features_of(len(data.train))
    searched = 2 * (pixels + rows * features_of(len(data.train)))
    judging += held * searched / rate
    return Costs(judging, batches, size, row, 2 * searched + 40 * held * features_of(len(data.train)), rate)


def judge_costs(data: Data, codec: Codec, thorough: bool = False) -> tuple[float, float, float]:
    """Return seconds to read rows and fit the judge, seconds to extract the features of a row, and operations a second.

    Args:
        data: The data of the run.
        codec: Encodes rows.
        thorough: As for `measure`.
    """
    began = time.monotonic()
    few = rows_of(data.train, TRIED)
    each = (time.monotonic() - began) / len(few.x)
    rows, held = _used(data.train), min(len(data.heldout), HELD_OUT)
    seconds = each * (rows + held)
    asked = known(few)
    step = 0.0 if asked is None else trial_step(few.x, codec, thorough)
    seconds += step * expected_steps(rows) if step and not thorough else 0.0
    row = step / BATCH / 3  # forward, of forward and backward
    began = time.monotonic()
    fit_components(few.x, codec)
    parts = (time.monotonic() - began) / len(few.x)
    seconds += parts * fitted(rows, int(np.prod(data.train.shape))) + row * (rows + held)
    return distributed.agreed(seconds), distributed.agreed(row), distributed.agreed(_rate())


def _used(train: Source) -> int:
    """Return how many training rows the judge reads."""
    return min(len(train), TRAINING, max(1, MEMORY // int(np.prod(train.shape))))


def _rate() -> float:
    """Return floating-point operations a second, of a product of matrices in float64."""
    side = 768
    one = torch.ones(side, side, dtype=torch.float64)
    one @ one
    began = time.monotonic()
    one @ one
    return 2 * side**3 / max(time.monotonic() - began, 1e-6) / 2  # neighbours are sorted as well


def _batch(
    run: Run, scale: float, solver: str | None, steps: int | None, seed: int, data: Data, codec: Codec
) -> tuple[float, int, float]:
    """Return seconds of a batch of samples, its size, and seconds of a step; of no sampler those of the rows tried."""
    generator = run.generator(guidance=scale, solver=solver, steps=steps, seed=seed)
    count = min(generator.size, TRIED) if not isinstance(generator, Sampler) else generator.size
    rows = rows_of(data.heldout, min(count, len(data.heldout)))
    drawn = torch.zeros(len(rows.x), 4, dtype=torch.float64)
    condition = generator.conditioning.read(generator.known, rows, codec.encode(rows.x), drawn)
    if condition is not None:
        condition = condition[torch.arange(count) % len(condition)]
    began = time.monotonic()
    if not isinstance(generator, Sampler):
        for _ in generator.batches(condition, count):
            pass
        return distributed.agreed(time.monotonic() - began), count, 0.0
    step, last = 0.0, began
    for number, found in enumerate(generator.steps(0, generator.padded(condition, 0))):
        float(found.x.flatten()[0])  # a GPU is waited for
        now = time.monotonic()
        step, last = distributed.agreed(now - last), now
        if number or step > PATIENCE:
            break
    return step * len(generator.grid(generator.denoiser.schedule, generator.settings.steps)), count, step


def effort_of_pictures(data: Data, codec: Codec, again: Callable[[Tensor], Tensor], count: int | None) -> Effort:
    """Return what the evaluation of an autoencoder takes, of `count` held-out pictures or as many as the limit allows.

    Args:
        data: The data of the run.
        codec: Encodes rows for the judge.
        again: Encodes and decodes pictures.
        count: Pictures that were asked for; None to choose. There are no more than are held out.
    """
    fixed, row, rate = judge_costs(data, codec)
    few = rows_of(data.heldout, 4).x
    began = time.monotonic()
    again(few)
    costs = Costs(fixed, {1.0: distributed.agreed(time.monotonic() - began)}, len(few), row, 0.0, rate)
    most = min(len(data.heldout), LADDER[0])
    least = max(LEAST, 2 * features_of(len(data.train)) + 2)
    return effort(costs, (1.0,), min(least, most), None if count is None else min(count, most), most=most)


def begin(
    run: Run,
    data: Data,
    scales: tuple[float, ...],
    steps: int | None,
    seed: int,
    codec: Codec,
    count: int | None,
    chosen: bool,
    console: Console | None,
    thorough: bool = False,
) -> Effort:
    """Time a portion of an evaluation, say what it will take, and return of how many samples at which scales it is.

    Args:
        run: The run.
        data: Its data.
        scales: Scales of guidance.
        steps: Steps of the solver; None for the recipe's.
        seed: Seed of the samples.
        codec: Encodes rows.
        count: Number of samples that was asked for; None to choose.
        chosen: Whether the scales were asked for, so that none is left out.
        console: Where to say it.
        thorough: As for `measure`.

    Raises: UserError: If a batch cannot be drawn.
    """
    least = max(LEAST, 2 * min(features_of(len(data.train)), int(np.prod(data.train.shape))) + 2)
    if console is not None:
        console.print(f"evaluating {run.path}", highlight=False, markup=False, soft_wrap=True)
    with working("timing a portion", console=console):
        costs = measure(run, data, scales, steps, seed, codec, thorough=thorough)
    planned = effort(costs, scales, least, count, keep=chosen)
    if console is not None:
        once = f"; {ONCE}" if thorough else ""
        console.print(f"{run.path}: {planned}{once}", highlight=False, markup=False, soft_wrap=True)
    return planned
