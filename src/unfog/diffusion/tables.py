"""Schedules of discrete steps, as tables of alphas_cumprod: linear, quadratic, cosine, and any other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from unfog.diffusion.schedules import CosineContinuous, Schedule, as_time
from unfog.runtime.errors import UserError


@dataclass(frozen=True)
class Table(Schedule):
    """alpha² = alphas_cumprod[i] at t = (i+1)/T: the discrete schedules of DDPM, and any other.

    Between two entries the log-SNR is linear in t. Where it is infinite, alpha² is linear before the first entry
    (t = 0 is clean data) and alpha is linear before a last entry of 0 (pure noise).
    """

    alphas_cumprod: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check that the entries fall from below 1, and not below 0."""
        values = (1.0, *self.alphas_cumprod)
        if len(values) < 2 or any(not a > b for a, b in pairwise(values)) or not values[-1] >= 0:
            raise UserError("alphas_cumprod must fall strictly, from below 1 to 0 or above")
        object.__setattr__(self, "steps", len(self.alphas_cumprod))

    @classmethod
    def from_betas(cls, betas: Tensor) -> "Table":
        """Return the table of alphas_cumprod = prod(1 - beta_i), from `betas` of shape `(T,)`."""
        return cls(tuple(torch.cumprod(1 - betas.double(), dim=0).tolist()))

    @cached_property
    def _knots(self) -> tuple[Tensor, Tensor]:
        """The alphas_cumprod and the log-SNR at t = 0, 1/T, ..., 1."""
        signal = torch.tensor((1.0, *self.alphas_cumprod), dtype=torch.float64)
        return signal, torch.logit(signal)

    def _signal(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return alpha² and sigma², each without cancellation."""
        t = as_time(t)
        signal, log_snr = (knot.to(t.device) for knot in self._knots)
        place = t * len(self.alphas_cumprod)
        left = place.floor().clamp(0, len(self.alphas_cumprod) - 1).long()
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

    def alpha(self, t: Tensor | float) -> Tensor:
        """Return sqrt(alphas_cumprod), interpolated."""
        return self._signal(t)[0].sqrt()

    def sigma(self, t: Tensor | float) -> Tensor:
        """Return sqrt(1 - alphas_cumprod), interpolated."""
        return self._signal(t)[1].sqrt()

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return t by inverting the interpolation; log-SNRs beyond the ends give the ends."""
        wanted = as_time(log_snr)
        signal, knots = (knot.to(wanted.device) for knot in self._knots)
        left = torch.searchsorted(-knots, -wanted).sub(1).clamp(0, len(self.alphas_cumprod) - 1)
        start, end = signal[left], signal[left + 1]
        bent = (knots[left] - wanted) / (knots[left] - knots[left + 1])
        fading = 1 - (wanted.sigmoid() / start).sqrt()
        first, last = left == 0, end == 0
        inner = torch.where(first, (-wanted).sigmoid() / (1 - end), torch.where(last, fading, bent))
        return ((left + inner) / len(self.alphas_cumprod)).clamp(0, 1)


def _checked_betas(betas: Tensor) -> Table:
    """Return the table of `betas` after checking that each lies between 0 and 1."""
    if not ((betas > 0) & (betas < 1)).all():
        raise UserError("every beta must lie strictly between 0 and 1: mend beta_start, beta_end or max_beta")
    return Table.from_betas(betas)


def _count(steps: int) -> int:
    """Return the number of steps after checking it."""
    if steps < 2:
        raise UserError(f"a table needs 2 steps or more, not {steps}")
    return steps


def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Table:
    """beta_i linear from beta_start to beta_end.

    Source: Ho et al. 2020, section 4.
    """
    return _checked_betas(torch.linspace(beta_start, beta_end, _count(steps), dtype=torch.float64))


def quadratic(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Table:
    """sqrt(beta_i) linear from sqrt(beta_start) to sqrt(beta_end).

    Latent-diffusion code calls this one 'linear', diffusers 'scaled_linear'.
    """
    if min(beta_start, beta_end) <= 0:
        raise UserError("beta_start and beta_end must be above 0")
    roots = torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), _count(steps), dtype=torch.float64)
    return _checked_betas(roots**2)


def cosine(steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Table:
    """beta_i = 1 - f(i+1)/f(i), f(i) = cos²((i/T + s)/(1 + s)·pi/2), at most max_beta.

    Source: Nichol & Dhariwal 2021, eq. 17.
    """
    alpha = CosineContinuous(s).alpha(torch.linspace(0, 1, _count(steps) + 1, dtype=torch.float64))
    return _checked_betas((1 - (alpha[1:] / alpha[:-1]) ** 2).clamp(max=max_beta))


def table(alphas_cumprod: Sequence[float]) -> Table:
    """alpha² = alphas_cumprod[i] at t = (i+1)/T, given entry by entry."""
    return Table(tuple(float(value) for value in alphas_cumprod))


def discrete(schedule: Schedule, steps: int = 1000) -> Table:
    """alphas_cumprod[i] = SNR/(1 + SNR) at t = t_max·(i+1)/T: the T steps of any continuous schedule.

    A schedule that ends at pure noise gives a table that ends at 0.
    """
    log_snr = schedule.log_snr(schedule.t_max * torch.arange(1, _count(steps) + 1, dtype=torch.float64) / steps)
    return Table(tuple(log_snr.sigmoid().tolist()))


def zero_terminal_snr(schedule: Schedule) -> Table:
    """sqrt(alphas_cumprod) shifted and stretched so that the last entry is 0 and the first stays.

    Source: Lin et al. 2024, Common Diffusion Noise Schedules and Sample Steps are Flawed, algorithm 1.
    Raises: UserError: If `schedule` is no table of two steps or more.
    """
    if not isinstance(schedule, Table) or len(schedule.alphas_cumprod) < 2:
        raise UserError("only a table of 2 steps or more is rescaled to zero terminal SNR, for instance 'linear'")
    first, last = (math.sqrt(schedule.alphas_cumprod[end]) for end in (0, -1))
    roots = ((math.sqrt(value) - last) * first / (first - last) for value in schedule.alphas_cumprod)
    return Table(tuple(root**2 for root in roots))
