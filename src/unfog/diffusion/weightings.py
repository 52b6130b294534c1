"""How much each time counts in the loss: the weight on the square in the target's own space."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from unfog.diffusion.schedules import Schedule, as_time
from unfog.diffusion.targets import Target
from unfog.errors import UserError


@dataclass(frozen=True)
class Weighting(ABC):
    """A function of the schedule, the target and the time."""

    @abstractmethod
    def __call__(self, schedule: Schedule, target: Target, t: Tensor) -> Tensor:
        """Return the weight on |output - target|², float64, shaped like `t`."""


@dataclass(frozen=True)
class Unit(Weighting):
    """w = 1 in the target's space: already the DDPM simple loss, the v loss, the flow loss, the EDM loss.

    Source: Ho et al. 2020, eq. 14.
    """

    def __call__(self, schedule: Schedule, target: Target, t: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(as_time(t))


@dataclass(frozen=True)
class MinSNR(Weighting):
    """w = min(SNR, gamma)·(sigma/D)²: the weight on the x0 error, at most gamma, in the target's space.

    Source: Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting, section 3.4.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        """Check the bound."""
        if not self.gamma > 0:
            raise UserError(f"gamma must be above 0, not {self.gamma}")

    def __call__(self, schedule: Schedule, target: Target, t: Tensor) -> Tensor:
        """Return the weight; the SNR is the ratio alpha²/sigma², finite at alpha = 0."""
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        snr = (alpha / sigma) ** 2
        return snr.clamp(max=self.gamma) * (sigma / target.determinant(schedule, t)) ** 2
