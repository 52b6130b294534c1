"""At which times a solver stops: a grid maps (schedule, steps) to steps + 1 falling times from t_max to 0."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from unfog.diffusion.schedules import Schedule, as_time
from unfog.errors import UserError

LOUD = 10.0
"""Grids in the log-SNR begin at -10, that is sigma/alpha = 148, on schedules that begin below it."""


@dataclass(frozen=True)
class Grid(ABC):
    """A rule that places the steps."""

    @abstractmethod
    def inner(self, schedule: Schedule, steps: int) -> Tensor:
        """Return `steps` falling times; the first becomes t_max, and 0 is put behind the last."""

    @final
    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        """Return the times of `steps` steps.

        Args:
            schedule: The schedule whose clock the times are on.
            steps: Number of steps, 1 or more.

        Returns: Times, `(steps + 1,)`, float64 on the CPU, from t_max to 0.
        Raises: UserError: If there is no step, or the times do not fall.
        """
        if steps < 1:
            raise UserError(f"a grid needs 1 step or more, not {steps}")
        times = torch.cat([as_time([schedule.t_max]), self.inner(schedule, steps)[1:], as_time([0.0])])
        if not (times.diff() < 0).all():
            raise UserError(f"the grid {type(self).__name__} gives times that do not fall in {steps} steps: take fewer")
        return times


def _log_snr_ends(schedule: Schedule) -> tuple[float, float]:
    """Return the log-SNRs between which grids in the noise level lie."""
    loud, quiet = schedule.log_snr(as_time([schedule.t_max, schedule.t_first])).tolist()
    return max(loud, -LOUD), min(quiet, LOUD)


@dataclass(frozen=True)
class UniformGrid(Grid):
    """t_i = t_max·(1 - i/steps): equal steps of the clock; with T steps on a table, every one of its steps."""

    def inner(self, schedule: Schedule, steps: int) -> Tensor:
        """Return the times above 0."""
        return schedule.t_max * torch.arange(steps, 0, -1, dtype=torch.float64) / steps


@dataclass(frozen=True)
class LogSNRGrid(Grid):
    """Equal steps of the log-SNR, from the schedule's end or -10 to its first trained time or +10.

    Source: Lu et al. 2022, DPM-Solver, section 3.3.
    """

    def inner(self, schedule: Schedule, steps: int) -> Tensor:
        """Return the times above 0."""
        loud, quiet = _log_snr_ends(schedule)
        return schedule.time(torch.linspace(loud, quiet, steps, dtype=torch.float64))


@dataclass(frozen=True)
class KarrasGrid(Grid):
    """(sigma/alpha)^(1/rho) falls in equal steps.

    Source: Karras et al. 2022, eq. 5.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        """Check the exponent."""
        if not self.rho > 0:
            raise UserError(f"rho must be above 0, not {self.rho}")

    def inner(self, schedule: Schedule, steps: int) -> Tensor:
        """Return the times above 0."""
        loud, quiet = (torch.exp(as_time(-end / 2 / self.rho)) for end in _log_snr_ends(schedule))
        ratio = torch.lerp(loud, quiet, torch.linspace(0, 1, steps, dtype=torch.float64)) ** self.rho
        return schedule.time(-2 * ratio.log())


@dataclass(frozen=True)
class TimesGrid(Grid):
    """Given times, as shares of t_max that fall from 1 to 0 (both included): for grids found elsewhere."""

    shares: Sequence[float] = (1.0, 0.5, 0.0)

    def inner(self, schedule: Schedule, steps: int) -> Tensor:
        """Return the given times above 0."""
        if len(self.shares) != steps + 1 or self.shares[0] != 1 or self.shares[-1] != 0:
            wanted = f"{steps + 1} shares of the clock, from 1 to 0"
            raise UserError(f"a grid of {steps} steps is given by {wanted}: set grid.shares in the recipe")
        return schedule.t_max * as_time(list(self.shares[:-1]))
