"""The one sampling loop: a solver applied along a grid of times."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from unfog.diffusion.denoiser import Denoise
from unfog.diffusion.schedules import Schedule
from unfog.diffusion.solvers import Solver, Step
from unfog.runtime.errors import UserError

Draw = Callable[[int, Tensor], Tensor]
"""(step, state) -> standard normal noise shaped like the state."""


def gaussian(step: int, like: Tensor) -> Tensor:
    """Draw standard normal noise shaped like a state from torch's global generator."""
    return torch.randn_like(like)


def check_times(times: Tensor, schedule: Schedule, solver: Solver) -> None:
    """Raise a UserError unless the times lie on the clock and fall at every step.

    For deterministic solvers they may instead rise at every step; for stochastic ones single steps may climb.
    """
    name = type(schedule).__name__
    if times.ndim != 1 or len(times) < 2:
        raise UserError(f"times must have one axis and two or more entries, not the shape {tuple(times.shape)}")
    if not ((times >= 0) & (times <= schedule.t_max)).all():
        raise UserError(
            f"times from {times.min():g} to {times.max():g} leave the clock of {name}, [0, {schedule.t_max:g}]"
        )
    steps = times.diff()
    if solver.stochastic:
        if steps[0] > 0 or (steps == 0).any():
            raise UserError("a stochastic solver goes from noise to data: its times must fall in the first step")
        if (times[:-1] == 0).any():
            raise UserError("times must not climb from 0, which is clean data: climb from a later time")
    elif not ((steps < 0).all() or (steps > 0).all()):
        raise UserError("times must fall at every step to sample, or rise at every step to invert: sort them")


def trajectory(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    solver: Solver,
    *,
    noise: Draw = gaussian,
    past: Sequence[Step] = (),
) -> Iterator[Step]:
    """Yield the steps of x(times[0]) -> x(times[1]) -> ...

    Args:
        denoise: Predicts (x0, eps).
        x: State at `times[0]`, `(batch, *shape)`.
        times: Times on the schedule's clock, `(steps + 1,)`, falling for sampling, rising for inversion. Where falling
            times climb in between, which needs a stochastic solver, the state is noised again.
        solver: The rule of one step.
        noise: (step, state) -> noise; only stochastic solvers use it.
        past: The steps that led to `x`, the latest last, for a multistep solver to continue from.

    Yields: Each step, with the state it reached and the prediction it used.
    Raises: UserError: If times leave the clock, neither fall nor rise, or begin by rising for a stochastic solver.
    """
    check_times(times, denoise.schedule, solver)
    reached: Step | None = None
    for index, (t, s) in enumerate(pairwise(times.double().cpu().unbind())):
        if solver.stochastic and s > t:
            assert reached is not None  # the first step falls
            reached = reached._replace(t=t, s=s, x=climb(denoise.schedule, x, t, s, noise(index, x)))
            past = ()
        else:
            reached = solver.step(denoise, x, t, s, past, partial(_fitting, noise, index))
            past = (*past, reached)[-solver.memory :] if solver.memory else ()
        yield reached
        x = reached.x


def _fitting(noise: Draw, index: int, like: Tensor) -> Tensor:
    """Return the noise of a step, after checking that it has the state's shape."""
    drawn = noise(index, like)
    if drawn.shape != like.shape:
        raise UserError(f"the noise has the shape {tuple(drawn.shape)}, where the state has {tuple(like.shape)}")
    return drawn


def climb(schedule: Schedule, x: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
    """Return (alpha_s/alpha_t)·x + sqrt(beta)·noise: the state at t noised to the later time s, see `transition`.

    Source: Lugmayr et al. 2022, RePaint, algorithm 1, line 10.
    """
    beta, _ = schedule.transition(s, t)
    return float(schedule.alpha(s) / schedule.alpha(t)) * x + float(beta.sqrt()) * noise


def follow(denoise: Denoise, x: Tensor, times: Tensor, solver: Solver, *, noise: Draw = gaussian) -> Tensor:
    """Return the state at `times[-1]`: the end of `trajectory`, without gradients.

    Args:
        denoise: Predicts (x0, eps).
        x: State at `times[0]`, `(batch, *shape)`.
        times: Times, `(steps + 1,)`, float64.
        solver: The rule of one step.
        noise: (step, state) -> noise; only stochastic solvers use it.
    Returns: The state at `times[-1]`, shaped like `x`.
    """
    with torch.inference_mode():
        for step in trajectory(denoise, x, times, solver, noise=noise):
            x = step.x
    return x
