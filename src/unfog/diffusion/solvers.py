"""The rules that take a state from time t to time s, each over the pair (x0, eps).

A solver keeps no state: what a multistep rule needs of earlier steps it gets as `past`. The times are
float64 scalars on the CPU and the coefficients plain floats; a state keeps its own dtype.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from unfog.diffusion.denoiser import Denoise
from unfog.diffusion.schedules import Schedule
from unfog.diffusion.targets import Prediction
from unfog.errors import UserError

Noise = Callable[[Tensor], Tensor]
"""Returns standard normal noise shaped like its argument: the draw of the current step."""


class Step(NamedTuple):
    """One step of a trajectory: from time `t` to time `s`, the state `x` at `s`, the prediction at `t`."""

    t: Tensor
    s: Tensor
    x: Tensor
    prediction: Prediction


class Solver(ABC):
    """A rule for one step."""

    order: ClassVar[int]
    """Order of convergence to the exact solution; 1 for stochastic rules."""
    memory: ClassVar[int] = 0
    """How many past steps the rule reads."""
    velocity: ClassVar[bool] = False
    """Whether the rule integrates the schedule's rates, which a table does not have."""

    @abstractmethod
    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Take the state from time `t` to time `s`.

        Args:
            denoise: Predicts (x0, eps).
            x: State at time `t`, `(batch, *shape)`.
            t: The present time, `()`.
            s: The next time, `()`; below `t`, or above it when a deterministic rule inverts.
            past: The last `memory` steps, the latest last; fewer at the start.
            noise: Draws noise; only stochastic rules call it.

        Returns: The step, with the state at time `s`.
        """


def _ends(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[float, float, float, float]:
    """Return alpha and sigma at `t`, then at `s`."""
    return float(schedule.alpha(t)), float(schedule.sigma(t)), float(schedule.alpha(s)), float(schedule.sigma(s))


def _variances(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[float, float]:
    """Return the forward and the posterior variance of a step backward in time."""
    if s >= t:
        raise UserError("a stochastic solver goes from noise to data: its times must fall")
    forward, posterior = schedule.transition(t, s)
    return float(forward), float(posterior)


@dataclass(frozen=True)
class Ancestral(Solver):
    """x_s ~ q(x_s | x_t, x0): DDPM's sampler, without noise in the last step.

    Mean alpha_s·x0 + sqrt(sigma_s² - beta-tilde)·eps; variance beta-tilde ("small") or beta ("large").

    Source: Ho et al. 2020, algorithm 2.
    """

    variance: Literal["small", "large"] = "small"
    order: ClassVar[int] = 1

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Take one ancestral step."""
        prediction = denoise(x, t)
        _, _, alpha_s, sigma_s = _ends(denoise.schedule, t, s)
        large, small = _variances(denoise.schedule, t, s)
        mean = alpha_s * prediction.x0 + math.sqrt(sigma_s**2 - small) * prediction.eps
        if sigma_s == 0:
            return Step(t, s, mean, prediction)
        return Step(t, s, mean + math.sqrt(large if self.variance == "large" else small) * noise(x), prediction)


@dataclass(frozen=True)
class DDIM(Solver):
    """x_s = alpha_s·x0 + sqrt(sigma_s² - eta²·beta-tilde)·eps + eta·sqrt(beta-tilde)·z.

    eta = 0 is deterministic and of first order, eta = 1 is DDPM with the small variance.

    Source: Song et al. 2021, Denoising Diffusion Implicit Models, eq. 12.
    """

    eta: float = 0.0
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check the share of noise."""
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta must lie between 0 and 1, not {self.eta}")

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Take one step with the noise that `eta` asks for."""
        prediction = denoise(x, t)
        _, _, alpha_s, sigma_s = _ends(denoise.schedule, t, s)
        fresh = self.eta**2 * _variances(denoise.schedule, t, s)[1] if self.eta else 0.0
        state = alpha_s * prediction.x0 + math.sqrt(sigma_s**2 - fresh) * prediction.eps
        return Step(t, s, state + math.sqrt(fresh) * noise(x) if fresh else state, prediction)


def _velocity(schedule: Schedule, t: Tensor, prediction: Prediction) -> Tensor:
    """Return dx/dt = alpha'·x0 + sigma'·eps of the probability-flow equation."""
    alpha_rate, sigma_rate = (float(rate) for rate in schedule.rates(t))
    return alpha_rate * prediction.x0 + sigma_rate * prediction.eps


@dataclass(frozen=True)
class Euler(Solver):
    """x_s = x_t + (s - t)·(alpha'·x0 + sigma'·eps), on the schedule's own clock.

    Equal to DDIM where alpha and sigma are affine (flow, EDM).
    """

    order: ClassVar[int] = 1
    velocity: ClassVar[bool] = True

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Take one step along the velocity at `t`."""
        prediction = denoise(x, t)
        return Step(t, s, x + float(s - t) * _velocity(denoise.schedule, t, prediction), prediction)


@dataclass(frozen=True)
class Heun(Solver):
    """x_s = x_t + (s - t)·(v(t) + v(s))/2, the velocity at `s` taken behind an Euler step.

    The last step, onto clean data, stays an Euler step: n steps cost 2n - 1 evaluations.

    Source: Karras et al. 2022, algorithm 1.
    """

    order: ClassVar[int] = 2
    velocity: ClassVar[bool] = True

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Take one step along the mean of the velocities at both ends."""
        prediction = denoise(x, t)
        velocity = _velocity(denoise.schedule, t, prediction)
        euler = x + float(s - t) * velocity
        if float(denoise.schedule.sigma(s)) == 0:
            return Step(t, s, euler, prediction)
        corrected = (velocity + _velocity(denoise.schedule, s, denoise(euler, s))) / 2
        return Step(t, s, x + float(s - t) * corrected, prediction)


@dataclass(frozen=True)
class DPMSolverPP2M(Solver):
    """x_s = alpha_s·x0 + sigma_s·eps + (alpha_s - alpha_t·sigma_s/sigma_t)·h/(2h')·(x0 - x0').

    h is this step in half the log-SNR; h' and x0' are the step before and what was predicted in it. The first step,
    and the last one onto clean data, are DDIM steps.

    Source: Lu et al. 2022, DPM-Solver++, algorithm 2.
    """

    order: ClassVar[int] = 2
    memory: ClassVar[int] = 1

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Take one second-order multistep step."""
        prediction = denoise(x, t)
        schedule = denoise.schedule
        alpha_t, sigma_t, alpha_s, sigma_s = _ends(schedule, t, s)
        state = alpha_s * prediction.x0 + sigma_s * prediction.eps
        if past and sigma_s > 0:
            before, now, then = (float(schedule.log_snr(time)) for time in (past[-1].t, t, s))
            slope = (then - now) / (2 * (now - before))  # 0 behind a start at alpha = 0, where `before` is -inf
            weight = (alpha_s - alpha_t * sigma_s / sigma_t) * slope
            state = state + weight * (prediction.x0 - past[-1].prediction.x0)
        return Step(t, s, state, prediction)
