"""At which times a denoiser is trained: quantile functions that map u in [0, 1) to t."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from unfog.diffusion.schedules import Schedule, as_time
from unfog.errors import UserError


def stratify(u: Tensor) -> Tensor:
    """Spread uniform numbers over a batch: u_i becomes (i + u_i)/batch, one in each of `batch` equal parts.

    Args:
        u: Independent uniform numbers, `(batch,)`.

    Returns: Numbers that are each uniform and together almost evenly spaced, `(batch,)`.
    """
    return (torch.arange(len(u), dtype=u.dtype, device=u.device) + u) / len(u)


@dataclass(frozen=True)
class Times(ABC):
    """A distribution of training times, on every schedule."""

    @abstractmethod
    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return the time below which a share `u` of the distribution lies."""

    @final
    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Map u in [0, 1) to times between the first trained time and t_max; on a table, to its steps.

        Args:
            u: Uniform numbers, `(batch,)`.
            schedule: The schedule whose clock the times are on.

        Returns: Times, `(batch,)`, float64.
        """
        t = self.quantile(as_time(u), schedule).clamp(schedule.t_first, schedule.t_max)
        if schedule.steps:
            t = (t * schedule.steps - 1e-9).ceil() / schedule.steps
        return t


@dataclass(frozen=True)
class Uniform(Times):
    """Every time is as likely as every other: t = t_max·u, one of the T steps on a table.

    Source: Ho et al. 2020, algorithm 1.
    """

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return t_max·u, with u = 0 moved into the first step."""
        return schedule.t_max * u.clamp(min=1e-12)


@dataclass(frozen=True)
class Discrete(Times):
    """One of `steps` equally spaced times t = t_max·i/steps, i = 1..steps, as DDPM trains."""

    steps: int = 1000

    def __post_init__(self) -> None:
        """Check the number of steps."""
        if self.steps < 1:
            raise UserError(f"discrete times need 1 step or more, not {self.steps}")

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return t_max·(floor(u·steps) + 1)/steps."""
        return schedule.t_max * ((u * self.steps).floor() + 1) / self.steps


@dataclass(frozen=True)
class LogitNormal(Times):
    """logit(t/t_max) ~ N(mean, std²): most often in the middle of the clock.

    Source: Esser et al. 2024, Scaling Rectified Flow Transformers, eq. 19.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        """Check the width."""
        if not self.std > 0:
            raise UserError(f"the std of logit-normal times must be above 0, not {self.std}")

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return t_max·sigmoid(mean + std·probit(u))."""
        probit = math.sqrt(2) * torch.erfinv(2 * u - 1)
        return schedule.t_max * torch.sigmoid(self.mean + self.std * probit)
