"""Guidance: wrappers that steer a prediction.

All but CFG++ steer x0 and eps together, so that alpha·x0 + sigma·eps stays x_t.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unfog.diffusion.denoiser import Denoise, Wrapped, side_by_side
from unfog.diffusion.grids import LOUD
from unfog.diffusion.schedules import Schedule, as_time, expand
from unfog.diffusion.targets import Prediction
from unfog.runtime.errors import UserError


class Interval(NamedTuple):
    """The times between which guidance is on; outside, the conditional prediction is used."""

    low: float
    high: float


@dataclass(frozen=True)
class ClassifierFree:
    """unconditional + scale·(conditional - unconditional), in x0 and in eps alike; scale 1 is off.

    In some toolkits 0 means off. Each step costs two evaluations, or one where guidance is off.

    Attributes:
        conditional: The model under the condition.
        unconditional: The model without it. A weaker model under the same condition makes this autoguidance.
        scale: 0 is unconditional, 1 conditional; larger values extrapolate.
        interval: The times between which guidance is on, both included; None is always.
        rescale: How far, from 0 to 1, x0 is rescaled to the standard deviation of the conditional x0; eps follows.

    Raises: UserError: If the interval leaves the clock, or `rescale` is not between 0 and 1.
    Source: Ho & Salimans 2022, Classifier-Free Diffusion Guidance, eq. 6 (their w is scale - 1); Kynkäänniemi et
    al. 2024 for the interval; Lin et al. 2024, eqs. 14 to 16, for the rescaling.
    """

    conditional: Denoise
    unconditional: Denoise
    scale: float
    interval: Interval | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        """Check the interval and the share."""
        if not 0 <= self.rescale <= 1:
            raise UserError(f"the rescaling of guidance must lie between 0 and 1, not {self.rescale}")
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1] <= self.schedule.t_max:
            low, high = self.interval
            raise UserError(
                f"the guidance interval from {low:g} to {high:g} does not lie on the clock of "
                f"{type(self.schedule).__name__}, [0, {self.schedule.t_max:g}]"
            )

    @property
    def schedule(self) -> Schedule:
        """The schedule of both."""
        return self.conditional.schedule

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict the guided (x0, eps)."""
        t = as_time(t)
        scale = torch.full_like(t, self.scale)
        if self.interval is not None:
            scale = torch.where((t >= self.interval[0]) & (t <= self.interval[1]), scale, 1.0)
        if (scale == 1).all():
            return self.conditional(x, t)
        (conditional, free), scale = side_by_side(self.conditional, self.unconditional, x, t), expand(scale, x)
        x0 = free.x0 + scale * (conditional.x0 - free.x0)
        if not self.rescale:
            return conditional._replace(x0=x0, eps=free.eps + scale * (conditional.eps - free.eps))
        ratio = conditional.x0.flatten(1).std(1, correction=0) / x0.flatten(1).std(1, correction=0).clamp(min=1e-12)
        x0 = expand(1 + self.rescale * (ratio - 1), x0) * x0
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return conditional._replace(x0=x0, eps=(x - expand(alpha, x) * x0) / expand(sigma, x))


def autoguidance(model: Denoise, weaker: Denoise, scale: float, interval: Interval | None = None) -> ClassifierFree:
    """Return weaker + scale·(model - weaker): away from errors that a weaker version makes more often.

    Args:
        model: The model to sample.
        weaker: A smaller or less trained model, under the same condition.
        scale: Guidance scale, 1 is off.
        interval: The times between which it is on; None is always.

    Source: Karras et al. 2024, Guiding a Diffusion Model with a Bad Version of Itself, eq. 3.
    """
    return ClassifierFree(model, weaker, scale, interval)


@dataclass(frozen=True)
class CFGPlusPlus:
    """x0 guided as by `ClassifierFree`, with the eps of the unconditional prediction.

    Its scale has another range: from 0 (unconditional) to about 1, and there is no 'off', since even at 1 the eps is
    the unconditional one. The pair no longer adds up to x_t, so it works only with first-order solvers that step
    by the pair alone: DDIM and ancestral.

    Source: Chung et al. 2024, CFG++: Manifold-constrained Classifier-Free Guidance, algorithm 2.
    """

    conditional: Denoise
    unconditional: Denoise
    scale: float

    @property
    def schedule(self) -> Schedule:
        """The schedule of both."""
        return self.conditional.schedule

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict the guided x0 and the unconditional eps."""
        conditional, free = side_by_side(self.conditional, self.unconditional, x, t)
        return conditional._replace(x0=torch.lerp(free.x0, conditional.x0, self.scale), eps=free.eps)


@dataclass(frozen=True)
class ClassifierGuided(Wrapped):
    """eps - scale·sigma·g and x0 + scale·(sigma²/alpha)·g, where g is the gradient of log p(y | x_t); scale 0 is off.

    Towards alpha = 0 both g and alpha vanish: below log-SNR -10 the shift of x0 at -10 is used, and eps follows it.

    Attributes:
        classifier: (x_t, t) -> log p(y | x_t) of the wanted classes, `(batch,)`; t has the device and dtype of x_t.
        scale: 1 samples p(x | y), larger values exaggerate the class.

    Source: Dhariwal & Nichol 2021, Diffusion Models Beat GANs, algorithm 2.
    """

    classifier: Callable[[Tensor, Tensor], Tensor]
    scale: float = 1.0

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict the guided (x0, eps)."""
        prediction = self.denoise(x, t)
        if self.scale == 0:
            return prediction
        noisy = torch.minimum(as_time(t), self.schedule.time(-LOUD))
        with torch.inference_mode(False), torch.enable_grad():
            inner = x.requires_grad  # a likelihood differentiates through the guidance
            state = x if inner else x.clone().requires_grad_()
            log_probability = self.classifier(state, noisy.to(state, copy=True)).sum()
            (gradient,) = torch.autograd.grad(log_probability, state, create_graph=inner)
        strength = self.scale * self.schedule.sigma(noisy) ** 2 / self.schedule.alpha(noisy)
        shift = expand(strength, x) * gradient
        ratio = self.schedule.alpha(t) / self.schedule.sigma(t)
        return prediction._replace(x0=prediction.x0 + shift, eps=prediction.eps - expand(ratio, x) * shift)
