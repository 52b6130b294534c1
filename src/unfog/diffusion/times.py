"""Distributions of training times, as quantile functions that map u in [0, 1) to t."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from unfog.diffusion.schedules import Schedule, as_time
from unfog.runtime.errors import UserError


def stratify(u: Tensor) -> Tensor:
    """Return (i + u_i)/batch: stratified uniform numbers, one in each of `batch` equal parts of [0, 1).

    Args:
        u: Independent uniform numbers, `(batch,)`.

    Returns: Almost evenly spaced numbers, `(batch,)`; each is uniform in its own part.
    """
    return (torch.arange(len(u), dtype=u.dtype, device=u.device) + u) / len(u)


@dataclass(frozen=True)
class Times(ABC):
    """A distribution of training times, for any schedule."""

    @abstractmethod
    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return the quantile at `u`: the time below which the fraction `u` of the distribution lies."""

    @final
    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Map u in [0, 1) to times between the first trained time and t_max; on discrete schedules, to their steps.

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
    """t = t_max·u, uniform; one of the T steps on a discrete schedule.

    Source: Ho et al. 2020, algorithm 1.
    """

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return t_max·u, with u = 0 rounded up into the first step."""
        return schedule.t_max * u.clamp(min=1e-12)


@dataclass(frozen=True)
class DiscreteTimes(Times):
    """t = t_max·i/steps, i uniform in 1 ... steps: equally spaced times, as DDPM trains.

    Attributes:
        steps: Number of times.
    """

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
    """logit(t/t_max) ~ N(mean, std²): concentrated in the middle of the clock.

    Attributes:
        mean: Mean of the logit; above 0 trains more on noisier times.
        std: Standard deviation of the logit.

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


@dataclass(frozen=True)
class LogNormal(Times):
    """ln(sigma/alpha) ~ N(mean, std²): concentrated on the noise levels at which images take shape.

    Attributes:
        mean: Mean of ln(sigma/alpha); higher trains more on noisier times.
        std: Standard deviation of ln(sigma/alpha).

    Source: Karras et al. 2022, table 1 (P_mean, P_std).
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        """Check the width."""
        if not self.std > 0:
            raise UserError(f"the std of log-normal times must be above 0, not {self.std}")

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return the time with log_snr = -2·(mean + std·probit(u))."""
        return schedule.time(-2 * (self.mean + self.std * math.sqrt(2) * torch.erfinv(2 * u - 1)))


@dataclass(frozen=True)
class Importance(Times):
    """Importance sampling, p_k proportional to sqrt(E[loss²]) in bin k of u, weight 1/p_k: same mean, less variance.

    The unit interval of u is divided into equal bins, so this works with any distribution of times. Draws are uniform
    until every bin has been seen ten times; E is a running mean.

    The training loop keeps the statistics, which are part of a checkpoint.

    Attributes:
        base: The distribution whose u is resampled.
        bins: Number of bins.
        window: Number of losses per bin over which the mean runs.
        floor: Fraction of the draws that stays uniform.

    Source: Nichol & Dhariwal 2021, Improved DDPM, eq. 18.
    """

    base: Times = Uniform()
    bins: int = 32
    window: int = 100
    floor: float = 0.05

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.bins < 1 or self.window < 1 or not 0 <= self.floor <= 1:
            raise UserError("importance needs bins and window of 1 or more, and a floor between 0 and 1")

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return the base's quantile."""
        return self.base.quantile(u, schedule)

    def history(self) -> Tensor:
        """Return empty statistics: running mean of loss² and count of each bin, `(2, bins)`, float64."""
        return torch.zeros(2, self.bins, dtype=torch.float64)

    def spread(self, u: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        """Map uniform numbers to the distribution over bins.

        Args:
            u: Uniform numbers in [0, 1), `(batch,)`.
            history: The statistics, `(2, bins)`.

        Returns: The new numbers, and the weights 1/density that keep the expected loss, each `(batch,)`.
        """
        squares, counts = history
        root = squares.sqrt()
        if counts.min() < 10 or not float(root.sum()) > 0:
            return u, torch.ones_like(u)
        share = (1 - self.floor) * root / root.sum() + self.floor / self.bins
        edges = share.cumsum(0)
        place = torch.searchsorted(edges, u, right=True).clamp(max=self.bins - 1)
        inside = ((u - (edges - share)[place]) / share[place]).clamp(0, 1 - 1e-12)
        return (place + inside) / self.bins, 1 / (self.bins * share[place])

    def update(self, history: Tensor, u: Tensor, loss: Tensor) -> Tensor:
        """Return the statistics updated with the losses at `u`, each of shape `(batch,)`."""
        place = (u * self.bins).long().clamp(max=self.bins - 1)
        seen = torch.bincount(place, minlength=self.bins).double()
        total = torch.zeros_like(seen).index_add_(0, place, loss.double() ** 2)
        squares, counts = history[0], history[1] + seen
        share = (seen / counts.clamp(min=1, max=self.window)).clamp(max=1)
        return torch.stack([squares + share * (total / seen.clamp(min=1) - squares), counts])
