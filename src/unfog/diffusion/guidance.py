"""Wrappers that steer a prediction.

For every rule x0 and eps are steered together, so that alpha·x0 + sigma·eps stays x_t; only CFG++ parts them.
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
    """Between which times guidance is on; elsewhere the conditional prediction stands."""

    low: float
    high: float


@dataclass(frozen=True)
class ClassifierFree:
    """unconditional + scale·(conditional - unconditional), in x0 and in eps alike; scale 1 is off.

    Some toolkits write the same with 0 for 'off'. Each step costs two evaluations, one where guidance is off.

    Attributes:
        conditional: Knows the condition.
        unconditional: Does not. With a weaker model that does, this is autoguidance.
        scale: How far to go from the one to the other and beyond.
        interval: Between which times, both included; None is always.
        rescale: Share by which x0 gets back the standard deviation of the conditional x0; eps follows it.

    Raises: UserError: If the interval leaves the clock, or the rescaling is no share.
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
            raise UserError(f"guidance is rescaled by a share between 0 and 1, not {self.rescale}")
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
        scale = torch.full_like(as_time(t), self.scale)
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
    """Return weaker + scale·(model - weaker): away from the mistakes that a worse version makes more of.

    Args:
        model: The model to sample.
        weaker: One that was trained less, or is smaller, under the same condition.
        scale: 1 is off.
        interval: Between which times; None is always.

    Source: Karras et al. 2024, Guiding a Diffusion Model with a Bad Version of Itself, eq. 3.
    """
    return ClassifierFree(model, weaker, scale, interval)


@dataclass(frozen=True)
class CFGPlusPlus:
    """x0 guided as by `ClassifierFree`, with the eps of the unconditional prediction.

    Its scale is of its own kind: from 0 (unconditional) to about 1, and without an 'off', since even at 1 the eps is
    the unconditional one. The pair no longer adds up to x_t, so it works only with rules that step by the pair
    alone, of first order: DDIM and ancestral.

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
        """Predict the guided x0 beside the unconditional eps."""
        conditional, free = side_by_side(self.conditional, self.unconditional, x, t)
        return conditional._replace(x0=torch.lerp(free.x0, conditional.x0, self.scale), eps=free.eps)


@dataclass(frozen=True)
class ClassifierGuided(Wrapped):
    """eps - scale·sigma·g and x0 + scale·(sigma²/alpha)·g, where g is the gradient of log p(y | x_t); scale 0 is off.

    Towards alpha = 0 both g and alpha vanish: the shift of x0 is taken from where the log-SNR is -10, and eps follows.

    Attributes:
        classifier: Maps the state and the time to log p(y | x_t) of the wanted classes, `(batch,)`.
        scale: 1 samples p(y | x), larger ones exaggerate it.

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
            inner = x.requires_grad  # of a likelihood, which needs the guidance's own derivative
            state = x if inner else x.clone().requires_grad_()
            log_probability = self.classifier(state, noisy.clone()).sum()
            (gradient,) = torch.autograd.grad(log_probability, state, create_graph=inner)
        strength = self.scale * self.schedule.sigma(noisy) ** 2 / self.schedule.alpha(noisy)
        shift = expand(strength, x) * gradient
        ratio = self.schedule.alpha(t) / self.schedule.sigma(t)
        return prediction._replace(x0=prediction.x0 + shift, eps=prediction.eps - expand(ratio, x) * shift)
