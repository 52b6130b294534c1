"""Times, grids and inputs that fit a schedule: the defaults of recipes, and sentences about a poor choice."""

import warnings

import torch

from unfog.diffusion import defaults
from unfog.diffusion.defaults import grid_of, times_of
from unfog.diffusion.grids import Grid, KarrasGrid, LogSNRGrid, UniformGrid
from unfog.diffusion.schedules import Schedule
from unfog.diffusion.solvers import DPMSolverPP3M, Solver, UniPC
from unfog.diffusion.times import Times
from unfog.recipes.kinds import kind_of
from unfog.recipes.settings import Inputs

SELDOM = 0.02
"""Share of the training times with more signal than noise below which a model hardly learns any detail."""


def default_times(schedule: Schedule) -> Times:
    """Return a schedule's default training times."""
    return times_of(schedule)


def default_grid(schedule: Schedule) -> Grid:
    """Return a schedule's default grid of sampling times; on tables T equal steps visit each entry, as in DDPM."""
    return UniformGrid() if schedule.steps else grid_of(schedule)


def default_inputs(schedule: Schedule) -> Inputs:
    """Return the scaled inputs of EDM, whose noise grows to 80, and the plain ones of all others."""
    return Inputs("unit", "log_snr") if schedule.keeps == "signal" else Inputs()


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
    defaults.doubt_grid(schedule, grid, steps, default_grid(schedule))


def doubt_inputs(schedule: Schedule, inputs: Inputs) -> None:
    """Warn of inputs that are not scaled, or of times that hardly differ, on a schedule whose noise grows."""
    usual = default_inputs(schedule)
    poor = {"input_scale": "none", "network_time": "thousand"}
    found = [name for name, value in poor.items() if getattr(inputs, name) == value != getattr(usual, name)]
    if found:
        chosen = ", ".join(f"inputs.{name}={poor[name]}" for name in found)
        better = " and ".join(f"inputs.{name}={getattr(usual, name)}" for name in found)
        warnings.warn(
            f"{chosen} on the schedule {kind_of('schedule', schedule)!r} gives the network states of up to "
            f"{schedule.numbers(schedule.t_max)[1]:g} or times that hardly differ near the data: set {better}",
            stacklevel=2,
        )


def extrapolates_far(solver: Solver, grid: Grid, steps: int) -> bool:
    """Return whether a rule draws a parabola through x0 across steps that are too long, or too uneven, for one.

    On exact mixtures `DPMSolverPP3M`, and `UniPC` with p = 3, have half the error of `DPMSolverPP2M` or less from 12
    steps of the log-SNR grid on, and no more from 30 of the Karras grid on. In fewer they have up to fifteen times
    as much, and on the other grids, which are uneven in log-SNR, up to five times in most numbers of steps.
    """
    if not (isinstance(solver, DPMSolverPP3M) or (isinstance(solver, UniPC) and solver.p == 3)):
        return False
    if isinstance(grid, LogSNRGrid):
        return steps < 12
    return not (isinstance(grid, KarrasGrid) and grid.rho >= 7 and steps >= 30)


def _share(schedule: Schedule, times: Times) -> float:
    """Return the share of training times at which there is more signal than noise."""
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    return float((schedule.log_snr(times(u, schedule)) > 0).double().mean())
