"""The one loop that samples: a solver's rule applied along a grid of times."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from unfog.diffusion.denoiser import Denoise
from unfog.diffusion.solvers import Solver, Step

Draw = Callable[[int, Tensor], Tensor]
"""(step, state) -> standard normal noise shaped like the state."""


def gaussian(step: int, like: Tensor) -> Tensor:
    """Draw standard normal noise shaped like a state from torch's global generator."""
    return torch.randn_like(like)


def trajectory(denoise: Denoise, x: Tensor, times: Tensor, solver: Solver, *, noise: Draw = gaussian) -> Iterator[Step]:
    """Yield the steps of x(times[0]) -> x(times[1]) -> ...

    Args:
        denoise: Predicts (x0, eps).
        x: State at `times[0]`, `(batch, *shape)`.
        times: Times, `(steps + 1,)`, float64, falling for sampling.
        solver: The rule of one step.
        noise: The noise of step i for a state; only stochastic solvers ask for it.

    Yields: Each step, with the state it reached and the prediction it used.
    """
    past: tuple[Step, ...] = ()
    for index, (t, s) in enumerate(pairwise(times.double().cpu().unbind())):
        step = solver.step(denoise, x, t, s, past, partial(noise, index))
        yield step
        x = step.x
        past = (*past, step)[-solver.memory :] if solver.memory else ()


def sample(denoise: Denoise, x: Tensor, times: Tensor, solver: Solver, *, noise: Draw = gaussian) -> Tensor:
    """Return the state at the last of `times`: the end of `trajectory`, without gradients.

    Args:
        denoise: Predicts (x0, eps).
        x: State at `times[0]`, `(batch, *shape)`.
        times: Times, `(steps + 1,)`, float64.
        solver: The rule of one step.
        noise: The noise of step i for a state.

    Returns: The state at `times[-1]`, shaped like `x`.
    """
    with torch.inference_mode():
        for step in trajectory(denoise, x, times, solver, noise=noise):
            x = step.x
    return x
