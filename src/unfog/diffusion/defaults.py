"""The defaults of each schedule: target, training times and grid; and which grids do not fit."""

import math
import warnings

from unfog.diffusion.grids import Grid, KarrasGrid, LogSNRGrid, UniformGrid
from unfog.diffusion.names import name_of
from unfog.diffusion.schedules import RectifiedFlow, Schedule
from unfog.diffusion.targets import EDMTarget, Eps, Flow, Target, V
from unfog.diffusion.times import LogitNormal, LogNormal, Times, Uniform

COARSE = 2.0
"""Log-SNR before the last step below which that step, straight to clean data, blurs: sigma/alpha is 0.37."""


def target_of(schedule: Schedule) -> Target:
    """Return a schedule's default target: flow, edm or eps; v where eps cannot be solved.

    The velocity where alpha + sigma = 1 (`RectifiedFlow`, shifted or not), the EDM target where alpha = 1. Where
    alpha² + sigma² = 1, as on all discrete schedules, eps, or v if the schedule ends at pure noise.
    """
    if schedule.keeps == "sum":
        return Flow()
    if schedule.keeps == "signal":
        return EDMTarget()
    return Eps() if schedule.numbers(schedule.t_max)[0] > 0 else V()


def times_of(schedule: Schedule) -> Times:
    """Return log-normal times for EDM, logit-normal times for flows, uniform times for all others."""
    times: dict[str, Times] = {"signal": LogNormal(), "sum": LogitNormal(), "variance": Uniform()}
    return times[schedule.keeps]


def grid_of(schedule: Schedule) -> Grid:
    """Return the Karras grid for EDM, steps equal in time for `RectifiedFlow`, equal in log-SNR elsewhere.

    On most schedules equal steps in time are too coarse near the data: on the linear one 20 steps equal in log-SNR
    are four times as accurate.
    """
    if schedule.keeps == "signal":
        return KarrasGrid()
    return UniformGrid() if isinstance(schedule, RectifiedFlow) else LogSNRGrid()


def doubt_grid(schedule: Schedule, grid: Grid, steps: int, usual: Grid) -> None:
    """Warn of a grid whose last step begins at much noise, if that of the usual grid does not."""
    levels = [float(schedule.log_snr(one(schedule, steps)[-2])) for one in (grid, usual)]
    if levels[0] < COARSE <= levels[1]:
        warnings.warn(
            f"the last of {steps} steps of the grid {name_of('grid', grid)!r} on the schedule "
            f"{name_of('schedule', schedule)!r} begins at sigma/alpha {math.exp(-levels[0] / 2):.2g}, so that samples "
            f"will be blurred: set grid={name_of('grid', usual)}",
            stacklevel=3,
        )
