"""Times and grids that fit a schedule: the defaults of recipes, and sentences about a poor choice."""

import math
import warnings

import torch

from unfog.diffusion.defaults import grid_of, times_of
from unfog.diffusion.grids import Grid, UniformGrid
from unfog.diffusion.schedules import Schedule
from unfog.diffusion.times import Times
from unfog.recipes.kinds import kind_of

SELDOM = 0.02
"""Share of the training times with more signal than noise below which a model hardly learns any detail."""
COARSE = 2.0
"""Log-SNR before the last step below which that step, straight to clean data, blurs: sigma/alpha is 0.37."""


def default_times(schedule: Schedule) -> Times:
    """Return a schedule's default training times."""
    return times_of(schedule)


def default_grid(schedule: Schedule) -> Grid:
    """Return a schedule's default grid of sampling times; on tables T equal steps visit each entry, as in DDPM."""
    return UniformGrid() if schedule.steps else grid_of(schedule)


def doubt_times(schedule: Schedule, times: Times) -> None:
    """Warn of training times that leave out the low noise levels, if the schedule's default ones do not."""
    shares = [_share(schedule, one) for one in (times, default_times(schedule))]
    if shares[0] < SELDOM <= shares[1]:
        warnings.warn(
            f"only {shares[0]:.1%} of the times {kind_of('times', times)!r} on the schedule "
            f"{kind_of('schedule', schedule)!r} have more signal than noise, so that samples will lack detail: set "
            f"times={kind_of('times', default_times(schedule))}",
            stacklevel=2,
        )


def doubt_grid(schedule: Schedule, grid: Grid, steps: int) -> None:
    """Warn of a grid whose last step begins at much noise, if that of the schedule's default grid does not."""
    levels = [float(schedule.log_snr(one(schedule, steps)[-2])) for one in (grid, default_grid(schedule))]
    if levels[0] < COARSE <= levels[1]:
        warnings.warn(
            f"the last of {steps} steps of the grid {kind_of('grid', grid)!r} on the schedule "
            f"{kind_of('schedule', schedule)!r} begins at sigma/alpha {math.exp(-levels[0] / 2):.2g}, so that "
            f"samples will be blurred: set grid={kind_of('grid', default_grid(schedule))}",
            stacklevel=2,
        )


def _share(schedule: Schedule, times: Times) -> float:
    """Return the share of training times at which there is more signal than noise."""
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    return float((schedule.log_snr(times(u, schedule)) > 0).double().mean())
