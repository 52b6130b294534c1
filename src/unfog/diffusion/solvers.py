"""Solvers: the rules that take a state from time t to time s, given the pair (x0, eps).

A solver keeps no state: multistep rules get earlier steps as `past`. Times are float64 scalars on the CPU,
coefficients plain floats; a state keeps its own dtype.

Velocity solvers integrate alpha'·x0 + sigma'·eps over time, which needs a clock on which the flow is smooth: whoever
draws samples runs them on their `clock`, see `on_clock`. Exponential solvers use l = log(alpha/sigma), half the
log-SNR, over which the exact solution from l to l + h is

    x_s = alpha_s·x0 + sigma_s·eps + (alpha_s - alpha_t·sigma_s/sigma_t)·correction,

where the correction is the mean of x0(l + u) - x0(l) under the weight exp(u), 0 < u < h. Both fall back to the
first-order rule where l is infinite, in steps from or to pure noise and clean data.

The stated orders hold in the interior of the clock, with exact starting values, and where the clock is smooth: on the
own clock of `Laplace`, which has a kink, Adams-Bashforth falls to order 2. A multistep rule that starts by itself
takes its first steps at lower order, which costs one order where three or more past values are read; and the last
step, onto clean data, is first-order in every rule. Of stochastic rules the order is that of mean and variance.
`unfog verify` measures all of this.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from unfog.diffusion.denoiser import Clock, Denoise
from unfog.diffusion.integration import integrate
from unfog.diffusion.schedules import Schedule, as_time, expand
from unfog.diffusion.targets import Prediction
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError, unknown

Noise = Callable[[Tensor], Tensor]
"""Returns the current step's standard normal noise, shaped like its argument."""
Variance = Literal["small", "large", "learned"]
"""Variance of a reverse step: beta-tilde, beta, or the model's interpolation between the two."""


class Step(NamedTuple):
    """One step of a trajectory: from time `t` to time `s`, the state `x` at `s`, the prediction at `t`."""

    t: Tensor
    s: Tensor
    x: Tensor
    prediction: Prediction

    def __repr__(self) -> str:
        """Return the fields by their shapes."""
        return brief(self)


class Solver(ABC):
    """A rule for one step."""

    velocity: bool = False
    """Whether the rule integrates the schedule's rates, which discrete schedules lack."""

    @property
    def clock(self) -> Clock:
        """The clock that the rule runs on when samples are drawn: "flow" if it integrates a velocity, else "own"."""
        return "flow" if self.velocity else "own"

    @property
    def leads(self) -> bool:
        """Whether a step is alpha_s·x0 + sigma_s·eps of one prediction, so that the pair of a flow map leads to s."""
        return self.pairwise and not self.stochastic

    pairwise: bool = False
    """Whether the step depends on x0 and eps of one prediction alone, so that a pair which disagrees with x_t (CFG++)
    is used as intended."""

    @property
    @abstractmethod
    def order(self) -> int:
        """Order of convergence to the exact solution; of stochastic rules, to the exact mean and variance."""

    @property
    def memory(self) -> int:
        """Number of past steps that the rule reads."""
        return 0

    @property
    def stochastic(self) -> bool:
        """Whether the rule draws noise, and therefore only runs from noise to data."""
        return False

    @abstractmethod
    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Step the state from time `t` to time `s`.

        Args:
            denoise: Predicts (x0, eps).
            x: State at time `t`, `(batch, *shape)`.
            t: The current time, `()`.
            s: The next time, `()`; below `t`, or above it for inversion by a deterministic rule.
            past: The last `memory` steps, latest last; fewer at the start.
            noise: Draws noise; called by stochastic rules only.

        Returns: The step, with the state at time `s`.
        """


def _ends(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[float, float, float, float]:
    """Return alpha and sigma at `t`, then at `s`."""
    return *schedule.numbers(t), *schedule.numbers(s)


def _mixed(alpha: float, sigma: float, prediction: Prediction) -> Tensor:
    """Return alpha·x0 + sigma·eps, with one pass over memory less than the plain expression."""
    return torch.add(alpha * prediction.x0, prediction.eps, alpha=sigma)


def _level(schedule: Schedule, t: Tensor) -> float:
    """Return l, half the log-SNR."""
    return schedule._recall(_level, t, lambda t: float(schedule.log_snr(t)) / 2)


def _whole(name: str, value: int, low: int, high: int) -> None:
    """Raise a UserError for an order that is not a whole number from `low` to `high`."""
    if isinstance(value, bool) or not (isinstance(value, int) and low <= value <= high):
        raise UserError(f"the order of {name} must be a whole number from {low} to {high}, not {value}")


def _variances(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[float, float]:
    """Return the forward and the posterior variance of a reverse step."""
    forward, posterior = schedule.transition(t, s)
    return float(forward), float(posterior)


def _rest(sigma_s: float, fresh: float) -> float:
    """Return sqrt(sigma_s² - fresh), 0 where rounding makes it negative: from pure noise both are equal."""
    return math.sqrt(max(0.0, sigma_s**2 - fresh))


def step_log_variance(
    schedule: Schedule, prediction: Prediction, x: Tensor, t: Tensor, s: Tensor, variance: Variance
) -> Tensor:
    """Return log beta-tilde ("small"), log beta ("large"), or the model's interpolation between them ("learned").

    The last step, where beta-tilde is 0, uses that of the step before it.

    Args:
        schedule: The schedule.
        prediction: The model's prediction; "learned" reads its variance fraction.
        x: A state, `(batch, *shape)`.
        t: The later time, `()` or `(batch,)`.
        s: The earlier time, shaped like `t`.
        variance: "small", "large" or "learned".

    Returns: Logarithms that broadcast to the shape of `x`.
    Raises: UserError: If `variance` is "learned" and the model has not learned one.
    Source: Nichol & Dhariwal 2021, eq. 15.
    """
    large, small = schedule.transition(t, s)
    before = torch.minimum(2 * as_time(t) - as_time(s), as_time(schedule.t_max))
    floor = torch.where(before > t, schedule.transition(before, t)[1], large)
    low, high = (expand(value.log(), x) for value in (torch.where(small > 0, small, floor), large))
    if variance != "learned":
        return low if variance == "small" else high
    if prediction.variance_fraction is None:
        raise UserError("this model has no learned variance: use 'small' or 'large', or train with variance=learned")
    return low + (high - low) * prediction.variance_fraction


@dataclass(frozen=True)
class Ancestral(Solver):
    """x_s ~ q(x_s | x_t, x0): DDPM's sampler, with no noise in the last step.

    The mean is alpha_s·x0 + sqrt(sigma_s² - beta-tilde)·eps, the variance beta-tilde ("small"), beta ("large") or
    learned.

    Attributes:
        variance: Variance of a step: "small" is beta-tilde, "large" is beta, "learned" is the model's.

    Source: Ho et al. 2020, algorithm 2; Nichol & Dhariwal 2021, eq. 15.
    """

    variance: Variance = "small"
    order = 1
    stochastic = True
    pairwise = True

    def __post_init__(self) -> None:
        """Check the variance."""
        if self.variance not in get_args(Variance):
            raise UserError(f"the variance of ancestral steps must be small, large or learned, not {self.variance!r}")

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Take one ancestral step."""
        prediction = denoise(x, t)
        _, _, alpha_s, sigma_s = _ends(denoise.schedule, t, s)
        _, small = _variances(denoise.schedule, t, s)
        mean = _mixed(alpha_s, _rest(sigma_s, small), prediction)
        if sigma_s == 0:
            return Step(t, s, mean, prediction)
        deviation = torch.exp(step_log_variance(denoise.schedule, prediction, x, t, s, self.variance) / 2)
        return Step(t, s, mean + deviation * noise(x), prediction)


@dataclass(frozen=True)
class DDIM(Solver):
    """x_s = alpha_s·x0 + sqrt(sigma_s² - eta²·beta-tilde)·eps + eta·sqrt(beta-tilde)·z.

    eta = 0 is deterministic and first-order, eta = 1 is DDPM with the small variance.

    Attributes:
        eta: Share of fresh noise, from 0 (deterministic) to 1 (DDPM).

    Source: Song et al. 2021, Denoising Diffusion Implicit Models, eq. 12.
    """

    eta: float = 0.0
    order = 1
    pairwise = True

    def __post_init__(self) -> None:
        """Check the share of noise."""
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta must lie between 0 and 1, not {self.eta}")

    @property
    def stochastic(self) -> bool:
        """Whether eta is above 0."""
        return self.eta > 0

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Take one step."""
        prediction = denoise(x, t)
        _, _, alpha_s, sigma_s = _ends(denoise.schedule, t, s)
        fresh = self.eta**2 * _variances(denoise.schedule, t, s)[1] if self.eta else 0.0
        state = _mixed(alpha_s, _rest(sigma_s, fresh), prediction)
        return Step(t, s, state + math.sqrt(fresh) * noise(x) if fresh else state, prediction)


@dataclass(frozen=True)
class VelocitySolver(Solver):
    """A rule that integrates the velocity alpha'·x0 + sigma'·eps.

    Attributes:
        clock: The clock that it runs on when samples are drawn. "flow", that of `RectifiedFlow`, is smooth whatever the
            schedule; "edm", sigma/alpha, is that of diffusers and k-diffusion; "own" is the schedule's, which is not
            smooth on `Sigmoid` and `Laplace` and has no rates on tables.
    """

    clock: Clock = field(default="flow", kw_only=True)
    velocity = True

    def __post_init__(self) -> None:
        """Check the clock."""
        if self.clock not in get_args(Clock):
            raise unknown("clock", self.clock, get_args(Clock))


def _along(schedule: Schedule, x: Tensor, h: float, t: Tensor, prediction: Prediction) -> Tensor:
    """Return x + h·(alpha'·x0 + sigma'·eps): a step of length h along the velocity of the probability flow at `t`."""
    alpha_rate, sigma_rate = schedule._recall(_along, t, lambda t: tuple(map(float, schedule.rates(t))))
    moved = torch.add(x, prediction.x0, alpha=h * alpha_rate)
    return torch.add(moved, prediction.eps, alpha=h * sigma_rate)


_AFFINE = 1e-9
"""How far alpha and sigma may be from affine before it is more than rounding."""


def _onto(
    schedule: Schedule, x: Tensor, t: Tensor, s: Tensor, prediction: Prediction, moves: Sequence[tuple[float, Step]]
) -> Tensor:
    """Return x after moves h_j along the velocities of steps; onto clean data a DDIM step, unless that is its equal.

    Moves to t = 0 would leave sigma_t + sum_j h_j·sigma'_j of the noise in the state, which is 0 where alpha and sigma
    are affine.
    """
    moved, (alpha_t, sigma_t, alpha_s, sigma_s) = x, _ends(schedule, t, s)
    for h, step in moves:
        moved = _along(schedule, moved, h, step.t, step.prediction)
    if sigma_s > 0:
        return moved
    rates = [(h, *map(float, schedule.rates(step.t))) for h, step in moves]
    kept = alpha_t + sum(h * rate for h, rate, _ in rates) - alpha_s
    left = sigma_t + sum(h * rate for h, _, rate in rates)
    return moved if max(abs(kept), abs(left)) < _AFFINE else _mixed(alpha_s, sigma_s, prediction)


@dataclass(frozen=True)
class Euler(VelocitySolver):
    """x_s = x_t + (s - t)·(alpha'·x0 + sigma'·eps).

    Equal to DDIM where alpha and sigma are affine (flow, EDM), and on every clock in the step onto clean data.
    """

    order = 1

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Take one step along the velocity at `t`."""
        prediction = denoise(x, t)
        move = (float(s) - float(t), Step(t, s, x, prediction))
        return Step(t, s, _onto(denoise.schedule, x, t, s, prediction, [move]), prediction)


@dataclass(frozen=True)
class EulerAncestral(VelocitySolver):
    """x_s = (alpha_s/alpha_s')·x_s' + eta·sqrt(beta-tilde)·z: an Euler step to s' below s, then fresh noise up to s.

    s' is the time with sigma/alpha = sqrt(sigma_s² - eta²·beta-tilde)/alpha_s. On `Rescheduled(EDM())`, where other
    toolkits run it, it is DDIM with this eta.

    Attributes:
        eta: Share of fresh noise, from 0 (deterministic) to 1.

    Source: Karras et al. 2022, section 4; the ancestral Euler sampler of k-diffusion.
    """

    eta: float = 1.0
    order = 1
    stochastic = True

    def __post_init__(self) -> None:
        """Check the share of noise."""
        super().__post_init__()
        if not 0 < self.eta <= 1:
            raise UserError(f"eta must be above 0 and at most 1, not {self.eta}: use euler for a rule without noise")

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Step to s' below `s`, then add noise up to `s`."""
        schedule, prediction = denoise.schedule, denoise(x, t)
        _, _, alpha_s, sigma_s = _ends(schedule, t, s)
        fresh = self.eta**2 * _variances(schedule, t, s)[1]
        rest = as_time(sigma_s**2 - fresh).clamp(min=0)
        below = schedule.time(2 * math.log(alpha_s) - rest.log())
        state = _onto(schedule, x, t, below, prediction, [(float(below - t), Step(t, s, x, prediction))])
        state = alpha_s / float(schedule.alpha(below)) * state
        return Step(t, s, state + math.sqrt(fresh) * noise(x) if fresh else state, prediction)


@dataclass(frozen=True)
class Heun(VelocitySolver):
    """x_s = x_t + (s - t)·(v(t) + v(s))/2, where v(s) is the velocity after an Euler step.

    The last step, onto clean data, is an Euler step: n steps cost 2n - 1 evaluations. With churn, each step that
    starts between `churn_min` and `churn_max` first raises sigma/alpha by the fraction `churn` with fresh noise. Then
    the order is that in distribution: 2 where the churn falls as S_churn/n, as in EDM; with a fixed churn at most 1,
    and in very many steps the error stays, since each adds as much noise. So it does where `churn_noise` is not 1.

    Attributes:
        churn: From 0 to sqrt(2) - 1; EDM's S_churn divided by the number of steps.
        churn_min: Lowest sigma/alpha that is churned, S_tmin.
        churn_max: Highest sigma/alpha that is churned, S_tmax; None is no limit.
        churn_noise: Standard deviation of the fresh noise, S_noise.

    Source: Karras et al. 2022, algorithms 1 and 2.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float | None = None
    churn_noise: float = 1.0

    @property
    def order(self) -> int:
        """Order without churn, 2; 1 with one that is the same in every number of steps."""
        return 1 if self.churn else 2

    def __post_init__(self) -> None:
        """Check the share of noise."""
        super().__post_init__()
        if not 0 <= self.churn <= math.sqrt(2) - 1:
            raise UserError(f"churn must lie between 0 and sqrt(2) - 1, not {self.churn}")
        if not (self.churn_min >= 0 and self.churn_noise >= 0):
            raise UserError("churn_min and churn_noise must be 0 or more")

    @property
    def stochastic(self) -> bool:
        """Whether there is churn."""
        return self.churn > 0

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Take one step along the mean of the two velocities."""
        schedule, start = denoise.schedule, t
        ratio = float(schedule.sigma(t) / schedule.alpha(t)) if self.churn else math.inf  # pure noise is not churned
        highest = math.inf if self.churn_max is None else self.churn_max
        if self.churn_min <= ratio < math.inf and ratio <= highest:
            start = schedule.time(schedule.log_snr(t) - 2 * math.log1p(self.churn))
            added = max(0.0, float(schedule.transition(start, t)[0]))
            x = float(schedule.alpha(start) / schedule.alpha(t)) * x + self.churn_noise * math.sqrt(added) * noise(x)
        prediction, h = denoise(x, start), float(s) - float(start)
        euler = _onto(schedule, x, start, s, prediction, [(h, Step(start, s, x, prediction))])
        if float(schedule.sigma(s)) == 0:
            return Step(t, s, euler, prediction)
        half = _along(schedule, x, h / 2, start, prediction)
        return Step(t, s, _along(schedule, half, h / 2, s, denoise(euler, s)), prediction)


@dataclass(frozen=True)
class DPMSolver2(Solver):
    """x_s = alpha_s·x0 + sigma_s·eps - sigma_s·(exp(h) - 1)·(eps' - eps), eps' at the midpoint in log-SNR.

    A single-step rule with two evaluations per step, and one where the log-SNR is infinite at either end.

    Source: Lu et al. 2022, DPM-Solver, algorithm 1.
    """

    order = 2

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Step to the midpoint, then take the whole step with the eps predicted there."""
        schedule, prediction = denoise.schedule, denoise(x, t)
        alpha_t, _, alpha_s, sigma_s = _ends(schedule, t, s)
        state = _mixed(alpha_s, sigma_s, prediction)
        if alpha_t == 0 or sigma_s == 0:
            return Step(t, s, state, prediction)
        half = schedule._recall(float(s), t, lambda t: schedule.time((schedule.log_snr(t) + schedule.log_snr(s)) / 2))
        middle = half.clone()
        halfway = _mixed(float(schedule.alpha(middle)), float(schedule.sigma(middle)), prediction)
        growth = math.expm1(_level(schedule, s) - _level(schedule, t))
        change = denoise(halfway, middle).eps - prediction.eps
        return Step(t, s, torch.sub(state, change, alpha=sigma_s * growth), prediction)


@lru_cache(10_000)
def _moments(h: float, count: int) -> tuple[float, ...]:
    """Return the means of u^k, k = 1 ... count, under the weight exp(u) on 0 < u < h; accurate at small h, too."""
    if abs(h) < 0.5:  # power series, where the closed form cancels
        whole = sum(h**j / math.factorial(j + 1) for j in range(24))
        return tuple(
            h**k * sum(h**j / math.factorial(j) / (j + k + 1) for j in range(24)) / whole for k in range(1, count + 1)
        )
    found: list[float] = []
    share = -1 / math.expm1(-h)  # integral of u^k·exp(u): h^k·exp(h) - k·(the previous one)
    for k in range(1, count + 1):
        found.append(h**k * share - k * (found[-1] if found else 1.0))
    return tuple(found)


@lru_cache(10_000)
def _weights(nodes: tuple[float, ...], moments: tuple[float, ...]) -> list[float]:
    """Return w with sum_j w_j·node_j^k = moment_k for all k: the polynomial through 0 and the nodes, integrated."""
    if not nodes:
        return []
    unit, rows = nodes[0], range(1, len(nodes) + 1)
    powers = np.array([[(node / unit) ** k for node in nodes] for k in rows])
    found: list[float] = np.linalg.solve(powers, np.array([moments[k - 1] / unit**k for k in rows])).tolist()
    return found


def _corrected(
    alpha: float,
    sigma: float,
    gain: float,
    prediction: Prediction,
    nodes: Sequence[float],
    values: Sequence[Tensor],
    h: float,
) -> Tensor:
    """Return alpha·x0 + sigma·eps + gain·correction, the correction sum_j w_j·(value_j - x0).

    Args:
        alpha: Coefficient of x0.
        sigma: Coefficient of eps.
        gain: Coefficient of the correction, the mean of x0(l + u) - x0(l).
        prediction: The prediction at l.
        nodes: Where else x0 is known, relative to l. With a single node the mean of u is approximated by h/2, as in
            the published rules; without nodes there is no correction.
        values: x0 at l + node_j.
        h: Length of the step in l.
    """
    weights = [h / 2 / nodes[0]] if len(nodes) == 1 else _weights(tuple(nodes), _moments(h, len(nodes)))
    state = _mixed(alpha - gain * sum(weights), sigma, prediction)
    for weight, value in zip(weights, values, strict=True):
        state = torch.add(state, value, alpha=gain * weight)
    return state


def _known(schedule: Schedule, t: Tensor, past: Sequence[Step], count: int) -> tuple[list[float], list[Tensor]]:
    """Return nodes l' - l and values x0 of the latest `count` past steps, without those at pure noise."""
    level = _level(schedule, t)
    found = [(_level(schedule, step.t) - level, step.prediction.x0) for step in reversed(past[-count:])]
    found = [(place, value) for place, value in found if math.isfinite(place)] if count else []
    return [place for place, _ in found], [value for _, value in found]


def _exponential(
    schedule: Schedule,
    t: Tensor,
    s: Tensor,
    prediction: Prediction,
    past: Sequence[Step],
    count: int,
    x0_s: Tensor | None = None,
) -> Tensor:
    """Return the state at `s` by the polynomial through x0 at `t`, at up to `count` past times, and at `s` if given."""
    alpha_t, sigma_t, alpha_s, sigma_s = _ends(schedule, t, s)
    nodes, values = _known(schedule, t, past, count)
    h = _level(schedule, s) - _level(schedule, t)
    if x0_s is not None:
        nodes, values = [h, *nodes], [x0_s, *values]
    if not nodes or not math.isfinite(h):
        return _mixed(alpha_s, sigma_s, prediction)
    return _corrected(alpha_s, sigma_s, alpha_s - alpha_t * sigma_s / sigma_t, prediction, nodes, values, h)


@dataclass(frozen=True)
class DPMSolverPP2M(Solver):
    """x_s = alpha_s·x0 + sigma_s·eps + (alpha_s - alpha_t·sigma_s/sigma_t)·h/(2h')·(x0 - x0').

    h is the length of this step in half the log-SNR, h' that of the step before and x0' its prediction. The first step
    and the last one, onto clean data, are DDIM steps. The first does not lower the order, since its error is of second
    order and occurs once; the last can dominate the error at few steps.

    Source: Lu et al. 2022, DPM-Solver++, algorithm 2.
    """

    order = 2
    memory = 1

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Take one second-order multistep step."""
        prediction = denoise(x, t)
        return Step(t, s, _exponential(denoise.schedule, t, s, prediction, past, 1), prediction)


@dataclass(frozen=True)
class DPMSolverPP3M(Solver):
    """The third-order form of 2M: the parabola through three values of x0, integrated exactly.

    Started by itself its second step is 2M's and its order 2. The published code halves the quadratic term and thereby
    loses the third order. For many steps that are even in log-SNR: with 12 steps of `LogSNRGrid`, or 30 of
    `KarrasGrid`, it is as accurate as 2M or more so; in fewer steps, and on other grids, use 2M.

    Source: Lu et al. 2022, DPM-Solver++, appendix; Hochbruck & Ostermann 2010, Exponential Integrators, section 2.6.
    """

    order = 3
    memory = 2

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Take one third-order multistep step."""
        prediction = denoise(x, t)
        return Step(t, s, _exponential(denoise.schedule, t, s, prediction, past, 2), prediction)


@dataclass(frozen=True)
class DPMSolverPPSDE2M(Solver):
    """x_s = alpha_s·x0 + sigma_s·e^-h·eps + alpha_s·(1 - e^-2h)·h/(2h')·(x0 - x0') + sigma_s·sqrt(1 - e^-2h)·z.

    2M for the stochastic differential equation; its first step is DDPM's.

    Source: Lu et al. 2022, DPM-Solver++, appendix B (SDE-DPM-Solver++(2M)).
    """

    order = 2
    memory = 1
    stochastic = True

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Take one second-order step with noise."""
        schedule, prediction = denoise.schedule, denoise(x, t)
        alpha_s, fresh = float(schedule.alpha(s)), _variances(schedule, t, s)[1]
        sigma_s = float(schedule.sigma(s))
        if sigma_s == 0:
            return Step(t, s, alpha_s * prediction.x0, prediction)
        nodes, values = _known(schedule, t, past, 1)
        gain, h = alpha_s * fresh / sigma_s**2, _level(schedule, s) - _level(schedule, t)
        state = _corrected(alpha_s, _rest(sigma_s, fresh), gain, prediction, nodes, values, h)
        return Step(t, s, torch.add(state, noise(x), alpha=math.sqrt(fresh)), prediction)


@dataclass(frozen=True)
class UniPC(Solver):
    """Predict with p values of x0, then correct with the next one, which the following step evaluates anyway.

    The corrector repeats the previous step with the polynomial through p + 1 values, including the newest, which makes
    the order p + 1 at one evaluation per step. The correction of x goes into eps; x0 stays as evaluated. The step onto
    clean data is DDIM's. Started by itself the first step is corrected, too, and second-order: p = 2 keeps its order,
    p = 3 loses up to one in the limit.

    Attributes:
        p: Order of the predictor, 2 or 3; 3 is for steps as `DPMSolverPP3M` needs them.

    Source: Zhao et al. 2023, UniPC, algorithms 1 and 2 (B(h) = exp(h) - 1, x0 prediction).
    """

    p: int = 2

    def __post_init__(self) -> None:
        """Check the order."""
        _whole("unipc (p)", self.p, 2, 3)

    @property
    def order(self) -> int:
        """Order of predictor and corrector together, p + 1."""
        return self.p + 1

    @property
    def memory(self) -> int:
        """Past steps: the predictor reads p - 1, the corrector one more."""
        return self.p

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Correct the state with the prediction at `t`, then predict the state at `s`."""
        schedule, prediction = denoise.schedule, denoise(x, t)
        if past and math.isfinite(_level(schedule, past[-1].t)):  # a step from pure noise is not corrected
            shift = self.correct(schedule, t, prediction.x0, past) - x
            prediction = prediction._replace(eps=torch.add(prediction.eps, shift, alpha=1 / float(schedule.sigma(t))))
        return Step(t, s, _exponential(schedule, t, s, prediction, past, self.p - 1), prediction)

    def correct(self, schedule: Schedule, t: Tensor, x0: Tensor, past: Sequence[Step]) -> Tensor:
        """Return the state at `t`, the last step repeated with `x0` at `t` known."""
        *before, last = past
        return _exponential(schedule, last.t, t, last.prediction, before, self.p - 1, x0)


@dataclass(frozen=True)
class AdamsBashforth(VelocitySolver):
    """x_s = x_t + sum_j w_j·v_j: the integral of the polynomial through the last velocities, on any grid.

    Started by itself, its first steps read fewer velocities and have order 1, 2 and so on: the error of the first step
    is of second order, which bounds the order of the whole in the limit. So does a kink of the clock, that of `Laplace`
    with clock="own".
    On `Rescheduled(EDM())` it is k-diffusion's LMS and the rho-Adams-Bashforth form of DEIS. iPNDM uses the weights of
    equal steps throughout, and keeps its order on equal steps only: on smoothly stretched grids it falls to second
    order, on rough ones to first.

    Attributes:
        order: Number of velocities that it reads, 1 to 4; 1 is Euler.

    Source: Hairer, Nørsett & Wanner 1993, Solving Ordinary Differential Equations I, section III.5.
    """

    order: int = 3

    def __post_init__(self) -> None:
        """Check the order."""
        super().__post_init__()
        _whole("adams-bashforth", self.order, 1, 4)

    @property
    def memory(self) -> int:
        """Past velocities."""
        return self.order - 1

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Take one step along the extrapolated velocity."""
        prediction, h = denoise(x, t), float(s) - float(t)
        latest = [Step(t, s, x, prediction), *reversed(past)]
        nodes = tuple(float(step.t) - float(t) for step in latest[1:])
        weights = _weights(nodes, tuple(h**k / (k + 1) for k in range(1, len(nodes) + 1)))
        moves = [(h * weight, step) for weight, step in zip([1 - sum(weights), *weights], latest, strict=True)]
        return Step(t, s, _onto(denoise.schedule, x, t, s, prediction, moves), prediction)


@dataclass(frozen=True)
class RungeKutta45(VelocitySolver):
    """Dormand and Prince's adaptive pair of orders 5 and 4, with as many steps from `t` to `s` as the tolerances need.

    The number of evaluations depends on the tolerances; a grid of one step is enough. A step onto clean data
    integrates to the first trained time and takes a DDIM step from there.

    Attributes:
        rtol: Error allowed per step, relative to the state.
        atol: Error allowed per step, absolute, in the units of the state.

    Source: Dormand & Prince 1980.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    order = 5

    def __post_init__(self) -> None:
        """Check the tolerances."""
        super().__post_init__()
        if not (self.rtol >= 0 and self.atol > 0):
            raise UserError(f"rtol must be 0 or more and atol above 0, not {self.rtol} and {self.atol}")

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Integrate the velocity from `t` to `s`."""
        schedule, prediction = denoise.schedule, denoise(x, t)

        def velocity(state: Tensor, time: Tensor) -> Tensor:
            inner = denoise(state, time)
            alpha_rate, sigma_rate = (expand(rate, state) for rate in schedule.rates(time))
            return alpha_rate * inner.x0 + sigma_rate * inner.eps

        end = max(float(s), schedule.t_first) if float(schedule.sigma(s)) == 0 else float(s)
        if float(t) > end or s > t:
            x = integrate(velocity, x, float(t), end, self.rtol, self.atol)
        if end != float(s):
            return DDIM().step(denoise, x, as_time(end), s, (), noise)._replace(t=t, prediction=prediction)
        return Step(t, s, x, prediction)
