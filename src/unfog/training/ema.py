"""The averaged weights: what `sample` uses."""

import copy

import torch
from torch import Tensor

from unfog.diffusion.denoiser import Denoiser
from unfog.settings import Average


class Averaged:
    """A copy of a denoiser whose weights follow the trained ones: average += share·(weights - average)."""

    def __init__(self, denoiser: Denoiser, profile: Average) -> None:
        """Start at the weights of `denoiser` and follow them as `profile` says."""
        self.denoiser = copy.deepcopy(denoiser).eval().requires_grad_(False)
        self.profile = profile

    @torch.no_grad()
    def update(self, denoiser: Denoiser, step: int, batch: int) -> None:
        """Take in the weights after optimizer step `step` (1, 2, ...) of `batch` images."""
        mine: list[Tensor] = list(self.denoiser.parameters())
        new: list[Tensor] = [parameter.detach() for parameter in denoiser.parameters()]
        torch._foreach_lerp_(mine, new, self.profile.share(step, batch))
