"""Loss weights w(t) on the squared error in the target's own space.

A weight w on the x0 error |x0 - x0'|² is w·(sigma/D)² on |output - output'|². With SNR = alpha²/sigma²:

| weighting | on x0 | on eps | on v (alpha² + sigma² = 1) |
|---|---|---|---|
| `Unit` of eps | SNR | 1 | SNR/(SNR + 1) |
| `MinSNR` | min(SNR, gamma) | min(1, gamma/SNR) | min(SNR, gamma)/(SNR + 1) |
| `P2` | SNR/(k + SNR)^gamma | 1/(k + SNR)^gamma | SNR/((k + SNR)^gamma·(SNR + 1)) |
| `EDMWeighting` | SNR + 1/d² | 1 + 1/(d²·SNR) | (SNR + 1/d²)/(SNR + 1) |
| `SigmoidWeighting` | SNR/(1 + SNR·e^-b) | 1/(1 + SNR·e^-b) | SNR/((1 + SNR·e^-b)·(SNR + 1)) |
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from unfog.diffusion.schedules import Schedule, as_time
from unfog.diffusion.targets import Target
from unfog.runtime.errors import UserError


@dataclass(frozen=True)
class Weighting(ABC):
    """A function of the schedule, the target and the time."""

    @abstractmethod
    def __call__(self, schedule: Schedule, target: Target, t: Tensor) -> Tensor:
        """Return the weight on |output - target|², float64, shaped like `t`."""


@dataclass(frozen=True)
class Unit(Weighting):
    """w = 1 in the target's space: the DDPM simple loss, the v loss, the flow loss and the EDM loss.

    Source: Ho et al. 2020, eq. 14.
    """

    def __call__(self, schedule: Schedule, target: Target, t: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(as_time(t))


@dataclass(frozen=True)
class OfSNR(Weighting):
    """w = of_x0(SNR)·(sigma/D)²: a weight on the x0 error by SNR alone, and therefore the same for every target."""

    @abstractmethod
    def of_x0(self, snr: Tensor) -> Tensor:
        """Return the weight on |x0 - x0'|²; finite at SNR 0."""

    @final
    def __call__(self, schedule: Schedule, target: Target, t: Tensor) -> Tensor:
        """Return of_x0(SNR)·(sigma/D)²; the SNR is the ratio alpha²/sigma², finite at alpha = 0."""
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return self.of_x0((alpha / sigma) ** 2) * (sigma / target.determinant(schedule, t)) ** 2


@dataclass(frozen=True)
class MinSNR(OfSNR):
    """min(SNR, gamma) on x0: caps the weight of low-noise times.

    Attributes:
        gamma: SNR above which the weight no longer grows.

    Source: Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting, section 3.4.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        """Check the bound."""
        if not self.gamma > 0:
            raise UserError(f"gamma must be above 0, not {self.gamma}")

    def of_x0(self, snr: Tensor) -> Tensor:
        """Return min(SNR, gamma)."""
        return snr.clamp(max=self.gamma)


@dataclass(frozen=True)
class P2(OfSNR):
    """SNR/(k + SNR)^gamma on x0: weights coarse content more than fine details.

    Attributes:
        gamma: How fast the weight on eps falls with the SNR; 0 is not at all.
        k: SNR from which on it falls.

    Source: Choi et al. 2022, Perception Prioritized Training of Diffusion Models, eq. 8.
    """

    gamma: float = 1.0
    k: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (self.gamma >= 0 and self.k > 0):
            raise UserError(f"gamma must be 0 or more and k above 0, not {self.gamma} and {self.k}")

    def of_x0(self, snr: Tensor) -> Tensor:
        """Return SNR/(k + SNR)^gamma."""
        return snr / (self.k + snr) ** self.gamma


@dataclass(frozen=True)
class EDMWeighting(OfSNR):
    """(s² + d²)/(s·d)² = SNR + 1/d² on x0, s = sigma/alpha, d = sigma_data: unit weight of the `edm` target.

    Attributes:
        sigma_data: Standard deviation of the clean data.

    Source: Karras et al. 2022, table 1.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        """Check sigma_data."""
        if not self.sigma_data > 0:
            raise UserError(f"sigma_data must be above 0, not {self.sigma_data}")

    def of_x0(self, snr: Tensor) -> Tensor:
        """Return SNR + 1/d²."""
        return snr + 1 / self.sigma_data**2


@dataclass(frozen=True)
class SigmoidWeighting(OfSNR):
    """sigmoid(bias - log_snr) on eps, that is SNR/(1 + SNR·exp(-bias)) on x0.

    Attributes:
        bias: Log-SNR at which the weight on eps is 1/2.

    Source: Kingma & Gao 2023, Understanding Diffusion Objectives as the ELBO; Hoogeboom et al. 2024,
    Simpler Diffusion.
    """

    bias: float = 0.0

    def of_x0(self, snr: Tensor) -> Tensor:
        """Return SNR/(1 + SNR·exp(-bias))."""
        return snr / (1 + snr * math.exp(-self.bias))
