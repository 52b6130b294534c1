"""Discrete schedules, tables of alphas_cumprod: linear, quadratic, cosine, or any other."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from unfog.diffusion.schedules import CosineContinuous, Schedule, as_time
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError


@dataclass(frozen=True)
class DiscreteSchedule(Schedule):
    """alpha² = alphas_cumprod[i] at t = (i+1)/T: a schedule of T discrete steps, as DDPM's.

    Between two entries the log-SNR is linear in t. Where it would be infinite, alpha² is linear before the first
    entry (t = 0 is clean data) and alpha is linear before a last entry of 0 (pure noise).
    """

    @property
    @abstractmethod
    def steps(self) -> int:
        """The number of steps T."""

    @property
    @abstractmethod
    def alphas_cumprod(self) -> tuple[float, ...]:
        """alpha² of each of the T steps, falling."""

    @final
    def __post_init__(self) -> None:
        """Check that the entries fall strictly within [0, 1)."""
        values = (1.0, *self.alphas_cumprod)
        if len(values) < 2 or any(not a > b for a, b in pairwise(values)) or not values[-1] >= 0:
            raise UserError("alphas_cumprod must fall strictly, from below 1 to 0 or above")

    @final
    @property
    def betas(self) -> Tensor:
        """beta_i = 1 - alphas_cumprod[i]/alphas_cumprod[i-1], `(T,)`, float64."""
        return as_time([1 - after / before for before, after in pairwise((1.0, *self.alphas_cumprod))])

    @final
    def from_timesteps(self, timesteps: Tensor | int | Sequence[int]) -> Tensor:
        """Return t = (i + 1)/T, the time of timestep i = 0 ... T - 1 in DDPM's counting.

        Args:
            timesteps: Whole numbers, of any shape.

        Returns: Times on this schedule's clock, float64, shaped like `timesteps`.
        Raises: UserError: If one is not a whole number from 0 to T - 1.
        """
        index = torch.as_tensor(timesteps)
        if index.is_floating_point() or not ((index >= 0) & (index < self.steps)).all():
            raise UserError(
                f"timesteps are whole numbers from 0 to {self.steps - 1}: times on the clock need no conversion"
            )
        return (index.double() + 1) / self.steps

    @cached_property
    def _knots(self) -> tuple[Tensor, Tensor]:
        """The alphas_cumprod and the log-SNR at t = 0, 1/T, ..., 1."""
        signal = torch.tensor((1.0, *self.alphas_cumprod), dtype=torch.float64)
        return signal, torch.logit(signal)

    def _signal(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return alpha² and sigma², each without cancellation."""
        t = as_time(t)
        signal, log_snr = (knot.to(t.device) for knot in self._knots)
        place = t * self.steps
        left = place.floor().clamp(0, self.steps - 1).long()
        weight = place - left
        start, end = signal[left], signal[left + 1]
        inner = torch.lerp(log_snr[left], log_snr[left + 1], weight)
        fading = (1 - weight) ** 2 * start
        noise = weight * (start - end)  # below the first entry, where start is 1
        first, last = left == 0, end == 0
        return (
            torch.where(first, 1 - noise, torch.where(last, fading, inner.sigmoid())),
            torch.where(first, noise, torch.where(last, 1 - fading, (-inner).sigmoid())),
        )

    @final
    def alpha(self, t: Tensor | float) -> Tensor:
        """Return sqrt(alphas_cumprod), interpolated."""
        return self._signal(t)[0].sqrt()

    @final
    def sigma(self, t: Tensor | float) -> Tensor:
        """Return sqrt(1 - alphas_cumprod), interpolated."""
        return self._signal(t)[1].sqrt()

    @final
    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return t by inverting the interpolation, clamped to the clock."""
        wanted = as_time(log_snr)
        signal, knots = (knot.to(wanted.device) for knot in self._knots)
        left = torch.searchsorted(-knots, -wanted).sub(1).clamp(0, self.steps - 1)
        start, end = signal[left], signal[left + 1]
        bent = (knots[left] - wanted) / (knots[left] - knots[left + 1])
        fading = 1 - (wanted.sigmoid() / start).sqrt()
        first, last = left == 0, end == 0
        inner = torch.where(first, (-wanted).sigmoid() / (1 - end), torch.where(last, fading, bent))
        return ((left + inner) / self.steps).clamp(0, 1)


def _products(betas: Tensor) -> tuple[float, ...]:
    """Return alphas_cumprod = prod(1 - beta_i), after checking that each beta lies between 0 and 1."""
    if not ((betas > 0) & (betas < 1)).all():
        raise UserError("every beta must lie strictly between 0 and 1: correct beta_start, beta_end or max_beta")
    return tuple(torch.cumprod(1 - betas.double(), dim=0).tolist())


def _count(steps: int) -> int:
    """Return the number of steps after checking it."""
    if steps < 2:
        raise UserError(f"a discrete schedule needs 2 steps or more, not {steps}")
    return steps


@final
@dataclass(frozen=True)
class Linear(DiscreteSchedule):
    """beta_i linear from beta_start to beta_end.

    Attributes:
        steps: Number of discrete steps, T.
        beta_start: Variance that the first step adds, above 0.
        beta_end: Variance that the last step adds, below 1.

    Source: Ho et al. 2020, section 4.
    """

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    @cached_property
    def alphas_cumprod(self) -> tuple[float, ...]:
        """prod(1 - beta_i)."""
        return _products(torch.linspace(self.beta_start, self.beta_end, _count(self.steps), dtype=torch.float64))


@final
@dataclass(frozen=True)
class Quadratic(DiscreteSchedule):
    """sqrt(beta_i) linear from sqrt(beta_start) to sqrt(beta_end).

    Called 'linear' in latent-diffusion code, 'scaled_linear' in diffusers.

    Attributes:
        steps: Number of discrete steps, T.
        beta_start: Variance that the first step adds, above 0.
        beta_end: Variance that the last step adds, below 1.
    """

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    @cached_property
    def alphas_cumprod(self) -> tuple[float, ...]:
        """prod(1 - beta_i)."""
        if min(self.beta_start, self.beta_end) <= 0:
            raise UserError("beta_start and beta_end must be above 0")
        ends = math.sqrt(self.beta_start), math.sqrt(self.beta_end)
        return _products(torch.linspace(*ends, _count(self.steps), dtype=torch.float64) ** 2)


@final
@dataclass(frozen=True)
class Cosine(DiscreteSchedule):
    """beta_i = 1 - f(i+1)/f(i), f(i) = cos²((i/T + s)/(1 + s)·pi/2), at most max_beta.

    Attributes:
        steps: Number of discrete steps, T.
        s: Offset of the clock, a fraction of its length; larger values add more noise in the first steps.
        max_beta: Largest variance that a step adds, below 1.

    Source: Nichol & Dhariwal 2021, eq. 17.
    """

    steps: int = 1000
    s: float = 0.008
    max_beta: float = 0.999

    @cached_property
    def alphas_cumprod(self) -> tuple[float, ...]:
        """prod(1 - beta_i)."""
        alpha = CosineContinuous(self.s).alpha(torch.linspace(0, 1, _count(self.steps) + 1, dtype=torch.float64))
        return _products((1 - (alpha[1:] / alpha[:-1]) ** 2).clamp(max=self.max_beta))


@final
@dataclass(frozen=True)
class Table(DiscreteSchedule):
    """alpha² = alphas_cumprod[i] at t = (i+1)/T, with explicit entries.

    Attributes:
        alphas_cumprod: The values of alpha², one per step, falling strictly between 1 and 0.
    """

    alphas_cumprod: tuple[float, ...] = ()  # without a default, dataclasses would take the base's property for one

    __repr__ = brief

    @property
    def steps(self) -> int:
        """The number of entries."""
        return len(self.alphas_cumprod)

    @classmethod
    def from_betas(cls, betas: Tensor) -> "Table":
        """Return the table of alphas_cumprod = prod(1 - beta_i), from `betas` of shape `(T,)`."""
        return cls(tuple(torch.cumprod(1 - betas.double(), dim=0).tolist()))


@final
@dataclass(frozen=True)
class Discrete(DiscreteSchedule):
    """alphas_cumprod[i] = SNR/(1 + SNR) at t = t_max·(i+1)/T: the T steps of any continuous schedule.

    If the base ends at pure noise, so does this one.

    Attributes:
        base: The continuous schedule, by its name or as an object with its options.
        steps: Number of discrete steps, T.
    """

    base: Schedule = CosineContinuous()
    steps: int = 1000

    @cached_property
    def alphas_cumprod(self) -> tuple[float, ...]:
        """sigmoid(log_snr) of the base."""
        t = self.base.t_max * torch.arange(1, _count(self.steps) + 1, dtype=torch.float64) / self.steps
        return tuple(self.base.log_snr(t).sigmoid().tolist())


@final
@dataclass(frozen=True)
class ZeroTerminalSNR(DiscreteSchedule):
    """sqrt(alphas_cumprod) of a discrete schedule, rescaled linearly: the last entry is 0, the first is kept.

    Attributes:
        base: The discrete schedule, by its name or as an object with its options.

    Source: Lin et al. 2024, Common Diffusion Noise Schedules and Sample Steps are Flawed, algorithm 1.
    Raises: UserError: If `base` is not a discrete schedule of two steps or more.
    """

    base: Schedule = Linear()

    @property
    def steps(self) -> int:
        """The base's number of steps."""
        return len(self.alphas_cumprod)

    @cached_property
    def alphas_cumprod(self) -> tuple[float, ...]:
        """The base's, rescaled."""
        if not isinstance(self.base, DiscreteSchedule) or self.base.steps < 2:
            raise UserError("zero-terminal-snr needs a discrete schedule of 2 steps or more, for instance 'linear'")
        first, last = (math.sqrt(self.base.alphas_cumprod[end]) for end in (0, -1))
        roots = ((math.sqrt(value) - last) * first / (first - last) for value in self.base.alphas_cumprod)
        return tuple(root**2 for root in roots)
