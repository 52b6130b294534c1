"""How diffusion draws: what comes first, layout or texture, and what the noise of a stochastic solver does."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfog.evaluation.intervals import of_mean
from unfog.evaluation.judge import Judge
from unfog.evaluation.report import draw, heldout_conditions
from unfog.generation.drawing import Stepwise
from unfog.runs.run import Run
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError
from unfog.runtime.files import parse_json, read_bounded, write_whole

COARSE, FINE = 0.125, 0.25
"""Cycles a pixel below which a frequency is layout, and above which it is texture."""
ALIKE = 0.9
"""The correlation with the final picture from which a band is there."""
WATCHED, STEPS = 64, 50
"""Pictures that are watched, and steps in which."""
SOLVERS = {"ddim": "without noise", "ancestral": "with noise"}
"""The solvers that are compared."""


@dataclass(frozen=True)
class Habits:
    """What was measured of one diffusion model.

    Attributes:
        layout: Mean share of the steps after which the coarse band of x0 is there, with its interval.
        texture: The same of the fine band.
        recall: Of samples, by solver; and of held-out rows as "real".
        distance: Fréchet distance by solver, with its interval.
    """

    layout: tuple[float, float, float]
    texture: tuple[float, float, float]
    recall: dict[str, float]
    distance: dict[str, tuple[float, float, float]]

    __repr__ = brief


def bands(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Fourier coefficients of pictures below and above, `(batch, numbers)`; the mean is in neither.

    Args:
        x: Pictures, `(batch, channels, height, width)`.
    """
    up, across = (torch.fft.fftfreq(side, dtype=torch.float64) for side in x.shape[2:])
    radius = (up[:, None].square() + across.square()).sqrt()
    found = torch.fft.fft2(x.double())
    coarse, fine = (radius > 0) & (radius <= COARSE), radius > FINE
    return found[..., coarse].flatten(1), found[..., fine].flatten(1)


def alike(first: Tensor, second: Tensor) -> Tensor:
    """Return Re<a, b> / (|a|·|b|) of rows of coefficients, `(batch,)`."""
    product = (first * second.conj()).real.sum(1)
    return product / (first.abs().square().sum(1) * second.abs().square().sum(1)).sqrt().clamp(min=1e-12)


def arrivals(course: Tensor) -> NDArray[np.float64]:
    """Return after which share of the steps each row is alike for good, `(batch,)`.

    Args:
        course: How alike a row is to its end, `(moments, batch)`, the last one being the end.
    """
    late = (course < ALIKE).double()
    last = (late * torch.arange(1, len(course) + 1, dtype=torch.float64)[:, None]).amax(0)
    found: NDArray[np.float64] = (last / (len(course) - 1)).numpy()
    return found


def habits(run: Run, judge: Judge, count: int) -> Habits:
    """Measure how a diffusion model draws.

    The share of steps after which the predicted x0 is like the final picture, correlation 0.9 and above from then on,
    in frequencies of up to 1/8 cycle a pixel (layout) and of more than 1/4 (texture). And recall and distance of
    samples by DDIM, which adds no noise, and by ancestral sampling, which does.

    Args:
        run: A run of pictures.
        judge: Fitted on its data.
        count: Samples to score each solver with.

    Raises: UserError: If the model is not sampled step by step.
    """
    guidance = run.recipe.sampling.guidance
    generator = run.generator(steps=STEPS, guidance=guidance)
    if not isinstance(generator, Stepwise):
        raise UserError(f"{run.path} does not draw step by step")
    moments = [moment.x0.float().cpu() for moment in generator.moments(min(WATCHED, generator.size))]
    ends = bands(moments[-1])
    courses = [[alike(own, end) for own, end in zip(bands(x0), ends, strict=True)] for x0 in moments]
    layout, texture = (arrivals(torch.stack([course[band] for course in courses])) for band in range(2))
    recall: dict[str, float] = {}
    distance: dict[str, tuple[float, float, float]] = {}
    for solver in SOLVERS:
        own = run.generator(solver=solver, steps=STEPS, guidance=guidance)
        condition, asked = heldout_conditions(run, judge, count)
        scores = judge.score(draw(own, count, condition)[0], asked)
        recall |= {"real": scores["recall"].floor, solver: scores["recall"].value}
        first = next(one for name, one in scores.items() if name.startswith("frechet"))
        distance[solver] = (first.value, first.value if first.low is None else first.low, first.high or first.value)
    return Habits(_with_interval(layout), _with_interval(texture), recall, distance)


def _with_interval(rows: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return a mean with its interval."""
    return (float(rows.mean()), *of_mean(rows))


def remembered(path: Path, run: Run, judge: Judge, count: int) -> Habits:
    """Return what a file holds, or measure it and write the file.

    Raises: EnvironmentFailure: If the disk fails.
    """
    try:
        plain = parse_json(read_bounded(path))
        triples = {name: tuple(map(float, plain[name])) for name in ("layout", "texture")}
        distance = {solver: tuple(map(float, plain["distance"][solver])) for solver in SOLVERS}
        recall = {name: float(plain["recall"][name]) for name in ("real", *SOLVERS)}
        if plain["count"] == count and {len(one) for one in (*triples.values(), *distance.values())} == {3}:
            return Habits(triples["layout"], triples["texture"], recall, distance)  # type: ignore[arg-type]
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        pass  # it is measured, or again
    found = habits(run, judge, count)
    write_whole(path, json.dumps({"count": count, **asdict(found)}, indent=1).encode())
    return found
