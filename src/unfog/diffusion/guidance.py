"""Wrappers that steer a prediction."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unfog.diffusion.denoiser import Denoise
from unfog.diffusion.schedules import Schedule
from unfog.diffusion.targets import Prediction


@dataclass(frozen=True)
class ClassifierFree:
    """unconditional + scale·(conditional - unconditional), in x0 and in eps alike; scale 1 is off.

    Some toolkits write the same with 0 for 'off'. Each step costs two evaluations unless the scale is 1.

    Source: Ho & Salimans 2022, Classifier-Free Diffusion Guidance, eq. 6 (their w is scale - 1).
    """

    conditional: Denoise
    unconditional: Denoise
    scale: float

    @property
    def schedule(self) -> Schedule:
        """The schedule of both."""
        return self.conditional.schedule

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict the guided (x0, eps)."""
        conditional = self.conditional(x, t)
        if self.scale == 1:
            return conditional
        free = self.unconditional(x, t)
        x0 = torch.lerp(free.x0, conditional.x0, self.scale)
        return Prediction(x0, torch.lerp(free.eps, conditional.eps, self.scale))
