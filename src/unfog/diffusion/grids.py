"""Grids, the times of a solver's steps: (schedule, steps) -> steps + 1 falling times."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from unfog.diffusion.schedules import Schedule, as_time
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError, whole_number

LOUD = 10.0
"""Bound on |log_snr| in grids over the noise level, and in classifier guidance; at -10 sigma/alpha is 148."""
Snap = Callable[[Tensor], Tensor]
"""Rounds indices to whole numbers, or leaves them as they are."""
End = Literal["data", "first"]
"""Where the last step leads: to clean data at t = 0, or to the first trained time."""


@dataclass(frozen=True)
class Grid(ABC):
    """A rule that places the steps."""

    @abstractmethod
    def place(self, schedule: Schedule, steps: int) -> Tensor:
        """Return the times, `(steps + 1,)`."""

    @final
    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        """Return the `steps` + 1 times of `steps` steps.

        Args:
            schedule: The schedule whose clock the times are on.
            steps: Number of steps, 1 or more.

        Returns: Falling times, `(steps + 1,)`, float64 on the CPU.
        Raises: UserError: If `steps` is below 1, or the times leave the clock or do not fall.
        """
        steps = whole_number("the number of steps", steps, 1)
        name, times = type(self).__name__, self.place(schedule, steps)
        if len(times) != steps + 1:
            raise UserError(f"the grid {name} gives {len(times)} times, where {steps} steps need {steps + 1}")
        if not (times.diff() < 0).all():
            raise UserError(f"the times of the grid {name} do not fall at every one of {steps} steps: take fewer steps")
        if not (times[0] <= schedule.t_max and times[-1] >= 0):
            raise UserError(
                f"the grid {name} leaves the clock [0, {schedule.t_max:g}]: its times lie between {times[-1]:g} and "
                f"{times[0]:g}"
            )
        return times


def _pinned(schedule: Schedule, times: Tensor) -> Tensor:
    """Return `times` with the first one replaced by t_max and 0 appended."""
    return torch.cat([as_time([schedule.t_max]), times[1:], as_time([0.0])])


@dataclass(frozen=True)
class PolynomialGrid(Grid):
    """t_i = t_max·(1 - i/steps)^power: with power 2, small steps near the data.

    Attributes:
        power: Exponent; 1 is uniform, larger values make smaller steps near the data.

    Source: Song et al. 2021, Denoising Diffusion Implicit Models, appendix D.2 (linear and quadratic).
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        """Check the exponent."""
        if not self.power > 0:
            raise UserError(f"the power of a grid must be above 0, not {self.power}")

    def place(self, schedule: Schedule, steps: int) -> Tensor:
        """Return the times."""
        return schedule.t_max * (torch.arange(steps, -1, -1, dtype=torch.float64) / steps) ** self.power


@dataclass(frozen=True)
class UniformGrid(Grid):
    """t_i = t_max·(1 - i/steps): steps equal in time; T steps on a discrete schedule visit each of its steps."""

    def place(self, schedule: Schedule, steps: int) -> Tensor:
        """Return the times."""
        return schedule.t_max * torch.arange(steps, -1, -1, dtype=torch.float64) / steps


def _log_snr_ends(schedule: Schedule) -> tuple[float, float]:
    """Return the log-SNRs between which grids in the noise level lie."""
    loud, quiet = schedule.log_snr(as_time([schedule.t_max, schedule.t_first])).tolist()
    return max(loud, -LOUD), min(quiet, LOUD)


@dataclass(frozen=True)
class LogSNRGrid(Grid):
    """Steps equal in log-SNR, from that of t_max or -10 to that of the first trained time or +10; then to 0.

    Source: Lu et al. 2022, DPM-Solver, section 3.3.
    """

    def place(self, schedule: Schedule, steps: int) -> Tensor:
        """Return the times."""
        loud, quiet = _log_snr_ends(schedule)
        return _pinned(schedule, schedule.time(torch.linspace(loud, quiet, steps, dtype=torch.float64)))


@dataclass(frozen=True)
class KarrasGrid(Grid):
    """Equal steps in (sigma/alpha)^(1/rho), from sigma_max to sigma_min; then to 0.

    Attributes:
        rho: Exponent; larger values make smaller steps near the data.
        sigma_max: Highest sigma/alpha. Default: that of t_max, or of log-SNR -10.
        sigma_min: Lowest sigma/alpha above 0. Default: that of the first trained time, or of log-SNR 10.

    Source: Karras et al. 2022, eq. 5.
    """

    rho: float = 7.0
    sigma_max: float | None = None
    sigma_min: float | None = None

    def __post_init__(self) -> None:
        """Check the exponent and the ends."""
        if not self.rho > 0:
            raise UserError(f"rho must be above 0, not {self.rho}")
        if any(end is not None and not end > 0 for end in (self.sigma_max, self.sigma_min)):
            raise UserError("sigma_max and sigma_min must be above 0")
        if self.sigma_max is not None and not (self.sigma_min or 0) < self.sigma_max < math.inf:
            raise UserError("sigma_max must be finite and above sigma_min")

    def place(self, schedule: Schedule, steps: int) -> Tensor:
        """Return the times."""
        ends = [torch.exp(as_time(-end / 2)) for end in _log_snr_ends(schedule)]
        given = (self.sigma_max, self.sigma_min)
        loud, quiet = (
            (end if level is None else as_time(level)) ** (1 / self.rho) for end, level in zip(ends, given, strict=True)
        )
        ratio = torch.lerp(loud, quiet, torch.linspace(0, 1, steps, dtype=torch.float64)) ** self.rho
        times = schedule.time(-2 * ratio.log())
        return _pinned(schedule, times) if self.sigma_max is None else torch.cat([times, as_time([0.0])])


@dataclass(frozen=True)
class Indexed(Grid):
    """A grid of indices i at t = (i + 1)/T, T the steps of a discrete schedule, 1,000 on a continuous one.

    The indices are rounded as numpy does, so that they match those of imported models in every tie.

    Attributes:
        end: Where the last step ends.
        drop_last: Whether one more index is computed and the one nearest the data dropped.
    """

    end: End = "data"
    drop_last: bool = False

    @abstractmethod
    def indices(self, count: int, points: int, snap: Snap) -> Tensor:
        """Return `points` falling indices out of 0 ... `count` - 1, rounded by `snap`."""

    @final
    def place(self, schedule: Schedule, steps: int) -> Tensor:
        """Return the times of the indices, whole ones on a discrete schedule, and the end."""
        count = schedule.steps or 1000
        snap: Snap = torch.round if schedule.steps else lambda index: index
        indices = self.indices(count, steps + self.drop_last, snap)[:steps]
        end = 0.0 if self.end == "data" else schedule.t_max / count
        return torch.cat([(indices + 1) / count * schedule.t_max, as_time([end])])


@dataclass(frozen=True)
class LeadingGrid(Indexed):
    """Indices offset + i·(T // points), counted from the clean end: does not start at the last index.

    diffusers' 'leading' for DDPM, DDIM, PNDM and Euler; with `drop_last`, for its multistep solvers. `offset` is
    its `steps_offset`, `end="first"` its `set_alpha_to_one=False`.

    Attributes:
        offset: Index that is added to all; diffusers' `steps_offset`.

    Source: Lin et al. 2024, Common Diffusion Noise Schedules and Sample Steps are Flawed, table 2.
    """

    offset: int = 0

    def __post_init__(self) -> None:
        """Check the offset."""
        if self.offset < 0:
            raise UserError(f"the offset of a grid must be 0 or more, not {self.offset}")

    def indices(self, count: int, points: int, snap: Snap) -> Tensor:
        """Return the indices."""
        return torch.arange(points - 1, -1, -1, dtype=torch.float64) * (count // points) + self.offset


@dataclass(frozen=True)
class TrailingGrid(Indexed):
    """Indices T - 1 - i·T/points: starts at the last index and skips the first ones.

    Source: Lin et al. 2024, table 2.
    """

    def indices(self, count: int, points: int, snap: Snap) -> Tensor:
        """Return the indices."""
        return snap(torch.from_numpy(np.arange(count, 0, -count / points)[:points])) - 1


@dataclass(frozen=True)
class LinspaceGrid(Indexed):
    """Equally spaced indices from T - 1 to 0, both included; without the 0 if `drop_last`.

    Source: Lin et al. 2024, table 2.
    """

    def indices(self, count: int, points: int, snap: Snap) -> Tensor:
        """Return the indices."""
        return (
            snap(torch.from_numpy(np.linspace(0, count - 1, points)[::-1].copy()))
            if points > 1
            else as_time([count - 1])
        )


@dataclass(frozen=True)
class TimesGrid(Grid):
    """Explicit times, as fractions of t_max that fall from 1 to 0: for grids optimised elsewhere.

    Attributes:
        shares: The times as fractions of t_max, from 1 falling to 0.
    """

    shares: Sequence[float] = (1.0, 0.5, 0.0)

    __repr__ = brief

    def place(self, schedule: Schedule, steps: int) -> Tensor:
        """Return the given times."""
        if len(self.shares) != steps + 1 or not all(0 <= share <= 1 for share in self.shares):
            wanted = f"{steps + 1} shares of t_max, from 1 down to 0"
            raise UserError(f"a grid of {steps} steps needs {wanted}: set grid.shares in the recipe")
        return schedule.t_max * as_time(list(self.shares))
