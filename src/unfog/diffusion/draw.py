"""Sampling in one call, with defaults that fit the schedule."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unfog.diffusion.defaults import doubt_grid, grid_of
from unfog.diffusion.denoiser import Condition, Conditioned, Denoise, Denoiser, on_clock
from unfog.diffusion.grids import Grid
from unfog.diffusion.guidance import ClassifierFree
from unfog.diffusion.names import named
from unfog.diffusion.sampling import trajectory
from unfog.diffusion.schedules import as_time
from unfog.diffusion.solvers import Solver
from unfog.runtime.errors import UserError, whole_number
from unfog.runtime.randomness import normal


def sample(
    denoiser: Denoiser | Denoise,
    shape: Sequence[int],
    steps: int = 20,
    *,
    solver: Solver | str = "dpmpp-2m",
    grid: Grid | str | None = None,
    noise: Tensor | None = None,
    seed: int = 0,
    cond: Condition | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """Draw samples: start from noise at t_max and let a solver take it to clean data along a grid.

    Runs the network in eval mode and without gradients, and the solver on its `clock`: the times are those of the grid,
    matched by log-SNR.

    Args:
        denoiser: A `Denoiser`, or anything that predicts (x0, eps).
        shape: `(count, *row)`.
        steps: Number of steps; most solvers evaluate the network once per step.
        solver: A solver or its name, for instance `DDIM(eta=1.0)` or `"heun"`.
        grid: A grid or its name. Default: karras on `EDM`, uniform on `RectifiedFlow`, else log-snr.
        noise: Standard normal noise to start from, shaped like the samples. Default: drawn from the seed.
        seed: The same seed gives the same samples; the noise of sample i does not depend on the count.
        cond: The condition of the samples: a `Cond`, or a tensor with one row per sample.
        guidance: Scale of classifier-free guidance, 1 is off.

    Returns: Samples on the denoiser's device, `shape`; float32, or float64 from a network in float64.
    Raises: UserError: For an unknown name, a shape that does not fit, or a solver that does not fit the schedule.
    """
    if not hasattr(denoiser, "schedule"):
        raise UserError(f"a {type(denoiser).__name__} has no schedule: wrap it, Denoiser(network, schedule)")
    if not isinstance(shape, Sequence) or isinstance(shape, str) or not shape[1:]:
        raise UserError(f"the shape of samples is (count, *row), each 1 or more, not {shape!r}")
    count, *row = (whole_number("each number of the shape of samples", side, 1) for side in shape)
    rule, usual = named("solver", solver), grid_of(denoiser.schedule)
    places = usual if grid is None else named("grid", grid)
    like = _weight(denoiser)
    if noise is None:
        noise = normal(seed, "start", 0, 0, count, tuple(row))
    elif not isinstance(noise, Tensor):
        raise UserError(f"the noise must be a tensor, not {noise!r}")
    elif noise.shape != torch.Size((count, *row)):
        raise UserError(f"the noise has the shape {tuple(noise.shape)}, where the samples have {tuple(shape)}")
    with torch.no_grad(), _evaluating(denoiser):
        times = places(denoiser.schedule, steps)
        denoise = _guided(denoiser, cond, guidance, count, times if rule.leads else None)
        if grid is not None:
            doubt_grid(denoise.schedule, places, steps, usual)
        denoise, times = on_clock(denoise, times, rule.clock)
        x = as_time(denoise.schedule.sigma(times[0])).to(like) * noise.to(like)
        for step in trajectory(
            denoise, x, times, rule, noise=lambda index, at: normal(seed, "step", index, 0, count, tuple(row)).to(at)
        ):
            x = step.x
    return x


def _weight(denoiser: Denoiser | Denoise) -> Tensor:
    """Return a scalar with the device and dtype of the state."""
    first = next(denoiser.parameters(), None) if isinstance(denoiser, nn.Module) else None
    if first is None:
        return torch.zeros(())
    return torch.zeros((), device=first.device, dtype=torch.promote_types(first.dtype, torch.float32))


def _guided(
    denoiser: Denoiser | Denoise, cond: Condition | None, guidance: float, count: int, ends: Tensor | None
) -> Denoise:
    """Return the model under the condition, with classifier-free guidance unless the scale is 1."""
    if not isinstance(denoiser, Denoiser):
        if cond is not None or guidance != 1:
            raise UserError(
                "only a Denoiser takes a condition here: wrap this model in Conditioned or ClassifierFree first"
            )
        return denoiser
    embedder = denoiser.embedder
    free = Conditioned(denoiser, embedder.null(count) if embedder is not None else None, ends)
    if cond is None:
        if guidance != 1:
            raise UserError(f"guidance {guidance:g} needs a condition: give cond, or leave guidance at 1")
        return free
    conditional = Conditioned(denoiser, denoiser.embedded(cond), ends)
    return conditional if guidance == 1 else ClassifierFree(conditional, free, guidance)


@contextmanager
def _evaluating(denoiser: object) -> Iterator[None]:
    """Put a module and its submodules into eval mode, and restore each one's mode afterwards."""
    modules = list(denoiser.modules()) if isinstance(denoiser, nn.Module) else []
    training = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode
