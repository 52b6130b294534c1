"""The first equation, x_t = alpha(t)·x0 + sigma(t)·eps: a schedule is an alpha and a sigma.

Time runs from t = 0 (clean) to t = t_max (noise). All values are computed in float64.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, wraps
from typing import Literal, TypeVar, final

import torch
from torch import Tensor

from unfog.runtime.errors import UserError

QUIET = 14.0
"""Log-SNR of the first trained time of continuous schedules: sigma/alpha = e^-7 = 0.0009, a ninth of half a
quantization step of an 8-bit image on [-1, 1]."""


_MOST = 10_000
"""Values that a schedule caches, at most."""

Found = TypeVar("Found")


def expand(value: Tensor, like: Tensor) -> Tensor:
    """Give a coefficient of shape `()` or `(batch,)` the rank, dtype and device of `like`.

    Args:
        value: One coefficient, or one per sample.
        like: A state, `(batch, *shape)`.

    Returns: The coefficient as `()` or `(batch, 1, ...)`, ready to multiply `like`.
    Raises: ValueError: If the shape of `value` is neither `()` nor `(batch,)`, or `like` is not floating-point.
    """
    if value.ndim == 0:
        return value  # a scalar tensor takes on the dtype and device of what it multiplies
    if value.shape != like.shape[:1]:
        raise ValueError(f"times of shape {tuple(value.shape)} do not match a batch of {like.shape[0]}")
    if not like.is_floating_point():
        raise ValueError(f"a state must be floating-point, not {like.dtype}: encode it first")
    return value.reshape(-1, *([1] * (like.ndim - 1))).to(like)


def as_time(t: Tensor | float | Sequence[float]) -> Tensor:
    """Return times as a float64 tensor: on their own device, or from Apple's MPS, which has no float64, on the CPU."""
    if isinstance(t, Tensor) and t.device.type == "mps":
        t = t.cpu()
    return torch.as_tensor(t, dtype=torch.float64)


def _single(t: Tensor | float) -> bool:
    """Return whether `t` is a single time that needs no gradient."""
    return not (isinstance(t, Tensor) and (t.ndim or t.requires_grad))


def _remembered(
    method: Callable[["Schedule", Tensor | float], Tensor],
) -> Callable[["Schedule", Tensor | float], Tensor]:
    """Cache a schedule's method at single times; each caller gets a copy of its own."""
    name = method.__qualname__

    @wraps(method)
    def remembering(schedule: "Schedule", t: Tensor | float) -> Tensor:
        if not _single(t):
            schedule.check_time(t)
            return method(schedule, t)
        if isinstance(t, Tensor) and not t.is_floating_point():
            schedule.check_time(t)
        return schedule._recall(name, t, partial(method, schedule)).clone()

    return remembering


@dataclass(frozen=True)
class Schedule(ABC):
    """alpha(t) and sigma(t), the amounts of signal and noise in a state at each time of a clock [0, t_max]."""

    def __init_subclass__(cls) -> None:
        """Cache each schedule's alpha and sigma at single times."""
        for name in ("alpha", "sigma"):
            if name in vars(cls) and not getattr(vars(cls)[name], "__isabstractmethod__", False):
                setattr(cls, name, _remembered(vars(cls)[name]))

    @property
    def t_max(self) -> float:
        """The time of pure noise: 1, except on schedules with a clock of their own."""
        return 1.0

    @property
    def steps(self) -> int | None:
        """Number of steps of a discrete schedule, None for continuous time."""
        return None

    @property
    def keeps(self) -> Literal["variance", "sum", "signal"]:
        """What equals 1 at all times: alpha² + sigma², alpha + sigma, or alpha; a shift keeps it."""
        return "variance"

    @abstractmethod
    def alpha(self, t: Tensor | float) -> Tensor:
        """Return the coefficient of the signal at time `t`, float64, shaped like `t`."""

    @abstractmethod
    def sigma(self, t: Tensor | float) -> Tensor:
        """Return the coefficient of the noise at time `t`, float64, shaped like `t`."""

    @abstractmethod
    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return the time with this log-SNR: the inverse of `log_snr`."""

    @final
    @_remembered
    def log_snr(self, t: Tensor | float) -> Tensor:
        """Return log(alpha²/sigma²): +inf at clean data, -inf at pure noise.

        Source: Kingma et al. 2021, Variational Diffusion Models, eq. 2.
        """
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    @final
    def _recall(self, what: Hashable, t: Tensor | float, compute: Callable[[Tensor | float], Found]) -> Found:
        """Return compute(t), cached for single times, at which samplers evaluate the same values again and again.

        Returns the cached tensors themselves, so only this folder calls it and changes none of them in place; public
        methods return copies or plain numbers.

        Args:
            what: Cache key of the function.
            t: Time, of any shape.
            compute: A function of schedule and time alone.
        """
        if not _single(t):
            return compute(t)
        known: dict[tuple[Hashable, float], Found] = self.__dict__.setdefault("_known", {})
        key = what, float(t)
        if key not in known:
            if len(known) >= _MOST:
                known.clear()
            self.check_time(key[1])
            with torch.inference_mode(False):  # inference tensors could not be used with gradients later
                known[key] = compute(key[1])
        return known[key]

    @final
    def check_time(self, t: Tensor | float) -> None:
        """Raise a UserError for integer times and for times off the clock.

        Times on a GPU are not checked, since that would synchronize. On `EDM`, whose clock is the noise level, times
        above t_max are allowed, since steps that add noise go there.
        """
        if isinstance(t, Tensor):
            if not t.is_floating_point():
                raise UserError(
                    f"times on the clock [0, {self.t_max:g}] are floating-point numbers, not {t.dtype}: convert "
                    "timesteps 0 ... T - 1 of a discrete schedule with schedule.from_timesteps"
                )
            if t.device.type != "cpu" or not t.numel():
                return
            low, high = (t.item(),) * 2 if t.ndim == 0 else (end.item() for end in t.aminmax())
        else:
            low = high = t
        slack = 1e-6 * self.t_max  # float32
        if not (low >= -slack and (high <= self.t_max + slack or (self.keeps == "signal" and high < math.inf))):
            raise UserError(
                f"times between {low:g} and {high:g} leave the clock of {type(self).__name__}, [0, {self.t_max:g}]"
            )

    @final
    def numbers(self, t: Tensor | float) -> tuple[float, float]:
        """Return alpha and sigma at a single time as floats."""
        return self._recall("numbers", t, self._numbers)

    @final
    def _numbers(self, t: Tensor | float) -> tuple[float, float]:
        return float(self.alpha(t)), float(self.sigma(t))

    @final
    def check(self) -> None:
        """Raise a UserError unless t = 0 is clean data and the log-SNR falls over each thousandth of the clock."""
        t = torch.linspace(0, self.t_max, 1001, dtype=torch.float64)
        fall, name = self.log_snr(t).diff() < 0, type(self).__name__
        if not fall.all():
            at = int((~fall).nonzero()[0])
            raise UserError(
                f"the log-SNR of the schedule {name} does not fall between t = {t[at]:g} and t = {t[at + 1]:g}: "
                "alpha/sigma must decrease all the way to t_max"
            )
        if float(self.sigma(0.0)) != 0:
            raise UserError(f"the schedule {name} has noise at t = 0, which means clean data: sigma(0) must be 0")
        if not 0 < self.t_first < self.t_max:
            raise UserError(
                f"the schedule {name} leaves no time between its first trained time, {self.t_first:g}, and "
                f"t_max = {self.t_max:g}: it must end at more noise"
            )

    @final
    @cached_property
    def t_first(self) -> float:
        """The first trained time: 1/T on a discrete schedule, else where the log-SNR is 14."""
        return 1 / self.steps if self.steps else float(self.time(QUIET))

    @final
    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the derivatives alpha'(t) and sigma'(t).

        Args:
            t: Time, of any shape.

        Returns: The two rates, float64, shaped like `t`.
        Raises: UserError: On a discrete schedule, which has kinks, and where a rate is infinite.
        """
        if self.steps:
            raise UserError(
                "a discrete schedule has kinks and therefore no rates: use its continuous form (for instance "
                "'linear-continuous'), or another clock for a solver that integrates velocities, 'flow' or 'edm'"
            )
        alpha, sigma = self._recall("rates", t, self._rates)
        return alpha.clone(), sigma.clone()

    @final
    def _rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return both derivatives from one backward pass."""
        with torch.inference_mode(False), torch.enable_grad():
            t = as_time(t).clone()
            both = torch.stack([t, t]).requires_grad_()  # one copy per function: one pass gives both rates
            values = self.alpha(both[0]) + self.sigma(both[1]) + 0 * both.sum(0)  # + 0·t, for a constant alpha
            alpha, sigma = torch.autograd.grad(values.sum(), both)[0].unbind()
        if not (alpha.isfinite() & sigma.isfinite()).all():
            where = t[~(alpha.isfinite() & sigma.isfinite())].flatten()[0]
            raise UserError(
                f"the rates of {type(self).__name__} are infinite at t = {where:g}: start at the first trained time, "
                f"{self.t_first:g}, and use a target other than flow"
            )
        return alpha, sigma

    @final
    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
        """Noise clean data to time `t`: x_t = alpha(t)·x0 + sigma(t)·eps.

        Args:
            x0: Clean data, `(batch, *shape)`, about unit variance.
            eps: Standard normal noise, shaped like `x0`.
            t: Time on this schedule's clock, `()` or `(batch,)`, in `[0, t_max]`.

        Returns: The noisy state, with the shape and dtype of `x0`.
        Raises: ValueError: If the shape of `t` is neither `()` nor `(batch,)`, `t` is off the clock, or the shapes of
            data and noise differ.
        Source: Ho et al. 2020, eq. 4; Kingma et al. 2021, eq. 1.
        """
        if eps.shape != x0.shape:
            raise UserError(f"the noise has the shape {tuple(eps.shape)}, where the data have {tuple(x0.shape)}")
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * eps

    @final
    def pair(self, x_t: Tensor, x_s: Tensor, t: Tensor | float, s: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the (x0, eps) that lead from one state to another: x_t = alpha_t·x0 + sigma_t·eps, and so at s.

        x0 = (sigma_s·x_t - sigma_t·x_s)/D and eps = (alpha_t·x_s - alpha_s·x_t)/D with the determinant
        D = alpha_t·sigma_s - alpha_s·sigma_t, which is 0 only where t = s.

        Args:
            x_t: State at time `t`, `(batch, *shape)`.
            x_s: State at time `s`, shaped like `x_t`.
            t: Time, `()` or `(batch,)`.
            s: Another time, shaped like `t`.

        Returns: x0 and eps, each shaped like `x_t`.
        """
        ends = self.alpha(t), self.sigma(t), self.alpha(s), self.sigma(s)
        d = ends[0] * ends[3] - ends[2] * ends[1]
        alpha_t, sigma_t, alpha_s, sigma_s = (expand(end / d, x_t) for end in ends)
        return sigma_s * x_t - sigma_t * x_s, alpha_t * x_s - alpha_s * x_t

    @final
    def transition(self, t: Tensor | float, s: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return (beta, beta-tilde), the variances of q(x_t | x_s) and of q(x_s | x_t, x0), s < t.

        beta = sigma_t² - (alpha_t/alpha_s)²·sigma_s² and beta-tilde = beta·sigma_s²/sigma_t².

        Args:
            t: The later time.
            s: The earlier time.

        Returns: The forward and the posterior variance: DDPM's large and small variance.
        Source: Ho et al. 2020, eq. 7, section 3.2.
        """
        forward = self.sigma(t) ** 2 - (self.alpha(t) / self.alpha(s)) ** 2 * self.sigma(s) ** 2
        return forward, forward * self.sigma(s) ** 2 / self.sigma(t) ** 2

    @final
    def posterior(self, x_t: Tensor, x0: Tensor, t: Tensor | float, s: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return mean and variance of q(x_s | x_t, x0) for s < t.

        mean = (alpha_t/alpha_s)·(sigma_s²/sigma_t²)·x_t + alpha_s·(beta/sigma_t²)·x0; variance: see `transition`.

        Args:
            x_t: State at the later time, `(batch, *shape)`.
            x0: Clean data, shaped like `x_t`.
            t: The later time, `()` or `(batch,)`.
            s: The earlier time, shaped like `t`.

        Returns: The mean, shaped like `x_t`, and the variance, shaped like `t`.
        Source: Ho et al. 2020, eqs. 6 and 7.
        """
        forward, variance = self.transition(t, s)
        from_state = self.alpha(t) / self.alpha(s) * self.sigma(s) ** 2 / self.sigma(t) ** 2
        from_data = self.alpha(s) * forward / self.sigma(t) ** 2
        return expand(from_state, x_t) * x_t + expand(from_data, x_t) * x0, variance


@dataclass(frozen=True)
class VariancePreserving(Schedule):
    """alpha² = exp(-L(t)) and sigma² = 1 - alpha², where L(t) is the integral of a rate beta from 0 to t.

    Attributes:
        beta_min: Rate beta at t = 0, per unit of time.
        beta_max: Rate beta at t = 1, per unit of time.

    Source: Song et al. 2021, appendix C.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        """Check that beta grows."""
        if not 0 < self.beta_min < self.beta_max:
            raise UserError("beta_min and beta_max must satisfy 0 < beta_min < beta_max")

    @abstractmethod
    def integral(self, t: Tensor) -> Tensor:
        """Return L(t)."""

    @abstractmethod
    def inverse(self, integral: Tensor) -> Tensor:
        """Return the t with this L(t)."""

    @final
    def alpha(self, t: Tensor | float) -> Tensor:
        """Return exp(-L(t)/2)."""
        return torch.exp(-self.integral(as_time(t)) / 2)

    @final
    def sigma(self, t: Tensor | float) -> Tensor:
        """Return sqrt(1 - exp(-L(t)))."""
        return torch.sqrt(-torch.expm1(-self.integral(as_time(t))))

    @final
    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return the t with L(t) = log(1 + exp(-log_snr)), at most t_max."""
        value = as_time(log_snr)
        return self.inverse(torch.logaddexp(torch.zeros_like(value), -value)).clamp(max=self.t_max)


@dataclass(frozen=True)
class LinearContinuous(VariancePreserving):
    """beta(t) = beta_min + t·(beta_max - beta_min): the continuous linear schedule."""

    def integral(self, t: Tensor) -> Tensor:
        """Return L = beta_min·t + (beta_max - beta_min)·t²/2."""
        return t * (self.beta_min + (self.beta_max - self.beta_min) * t / 2)

    def inverse(self, integral: Tensor) -> Tensor:
        """Solve the quadratic in the form without cancellation."""
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))


@dataclass(frozen=True)
class QuadraticContinuous(VariancePreserving):
    """sqrt(beta(t)) = b + t·d, linear in the square root of beta: 'scaled linear' elsewhere."""

    @cached_property
    def _root(self) -> tuple[float, float]:
        start = math.sqrt(self.beta_min)
        return start, math.sqrt(self.beta_max) - start

    def integral(self, t: Tensor) -> Tensor:
        """Return L = b²t + b·d·t² + d²t³/3."""
        b, d = self._root
        return t * (b * b + t * (b * d + t * d * d / 3))

    def inverse(self, integral: Tensor) -> Tensor:
        """Solve the cubic: c³ = b³ + 3dL and t = 3L / (c² + c·b + b²)."""
        b, d = self._root
        c = (b**3 + 3 * d * integral) ** (1 / 3)
        return 3 * integral / (c * c + c * b + b * b)


@dataclass(frozen=True)
class CosineContinuous(Schedule):
    """alpha = cos(a)/cos(b), a = (t+s)/(1+s)·pi/2, b = a(0), and sigma² = 1 - alpha².

    alpha is 0 at t = 1. With s = 0 alpha and sigma are a cosine and a sine, with finite rates everywhere; with s > 0
    sigma' is infinite at t = 0.

    Attributes:
        s: Offset of the clock, a fraction of its length; larger values add more noise in the first steps.

    Source: Nichol & Dhariwal 2021, eq. 17.
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        """Check the offset."""
        if not self.s >= 0:
            raise UserError(f"the offset s of a cosine schedule must be 0 or more, not {self.s}")

    @property
    def _offset(self) -> float:
        return self.s / (1 + self.s) * math.pi / 2

    def _angle(self, t: Tensor) -> Tensor:
        """Return a - b."""
        return t * (math.pi / 2 / (1 + self.s))

    def alpha(self, t: Tensor | float) -> Tensor:
        """Return cos(a)/cos(b), as the sine of the remaining angle, so that it is exactly 0 at t = 1."""
        return torch.sin(self._angle(1 - as_time(t))) / math.cos(self._offset)

    def sigma(self, t: Tensor | float) -> Tensor:
        """Return sqrt(sin(a-b)·sin(a+b))/cos(b), which does not cancel at small t."""
        angle = self._angle(as_time(t))
        if self.s == 0:
            return torch.sin(angle)
        return torch.sqrt(torch.sin(angle) * torch.sin(angle + 2 * self._offset)) / math.cos(self._offset)

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return t from sin²(a) = sin²(b) + cos²(b)·sigma², in a form that is exact at both ends."""
        value = as_time(log_snr)
        b = self._offset
        noise = (-value).sigmoid() * math.cos(b) ** 2
        a = torch.atan2(torch.sqrt(noise + math.sin(b) ** 2), math.cos(b) * value.sigmoid().sqrt())
        small = torch.asin((noise / torch.sin(a + b).clamp(min=1e-300)).clamp(max=1))
        return torch.where(a < math.pi / 4, small, a - b) / self._angle(torch.ones_like(a))


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """alpha = 1 - t, sigma = t: straight paths from data to noise.

    Source: Liu et al. 2023, Flow Straight and Fast; Lipman et al. 2023 (with time reversed).
    """

    @property
    def keeps(self) -> Literal["variance", "sum", "signal"]:
        """The sum of alpha and sigma."""
        return "sum"

    def alpha(self, t: Tensor | float) -> Tensor:
        """Return 1 - t."""
        return 1 - as_time(t)

    def sigma(self, t: Tensor | float) -> Tensor:
        """Return t."""
        return as_time(t).clone()

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return t = 1 / (1 + exp(log_snr/2))."""
        return torch.sigmoid(-as_time(log_snr) / 2)


@dataclass(frozen=True)
class EDM(Schedule):
    """alpha = 1, sigma = t: the clock is the noise level itself.

    Attributes:
        sigma_max: Highest noise level, in the units of the data.

    Source: Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models.
    """

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        """Check the end."""
        if not self.sigma_max > 0:
            raise UserError(f"sigma_max must be above 0, not {self.sigma_max}")

    @property
    def t_max(self) -> float:
        """The highest noise level, sigma_max."""
        return float(self.sigma_max)

    @property
    def keeps(self) -> Literal["variance", "sum", "signal"]:
        """The signal alpha."""
        return "signal"

    def alpha(self, t: Tensor | float) -> Tensor:
        """Return 1."""
        return torch.ones_like(as_time(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        """Return t."""
        return as_time(t).clone()

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return exp(-log_snr/2)."""
        return torch.exp(-as_time(log_snr) / 2)


@dataclass(frozen=True)
class Sigmoid(Schedule):
    """alpha² = floor + (1 - floor)·(S(e) - S(x))/(S(e) - S(b)), x from b = start/tau to e = end/tau, S = sigmoid.

    alpha is sqrt(floor) at t = 1: with less, the rounding of t itself would show in the log-SNR.

    Attributes:
        start: Argument of the sigmoid at t = 0, times tau.
        end: Argument of the sigmoid at t = 1, times tau.
        tau: Temperature; smaller values make the middle steeper.
        floor: alpha² at t = 1.

    Source: Jabri et al. 2023, Scalable Adaptive Computation for Iterative Generation; Chen 2023, On the Importance
    of Noise Scheduling for Diffusion Models, algorithm 1.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0
    floor: float = 1e-6

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (self.start < self.end and self.tau > 0 and 0 <= self.floor < 1):
            raise UserError("a sigmoid schedule needs start < end, tau above 0 and a floor in [0, 1)")
        if max(abs(self.start), abs(self.end)) / self.tau > 300:
            raise UserError("start/tau and end/tau of a sigmoid schedule must lie between -300 and 300")

    @property
    def _width(self) -> float:
        return (self.end - self.start) / self.tau

    def _share(self, left: Tensor, right: Tensor) -> Tensor:
        """Return (S(right) - S(left))/(S(e) - S(b)) without cancellation: sinh of the half width over two cosh."""
        low, high = self.start / self.tau, self.end / self.tau
        whole = math.sinh(self._width / 2) / (math.cosh(low / 2) * math.cosh(high / 2))
        ends = torch.cosh((low + left * self._width) / 2) * torch.cosh((low + right * self._width) / 2)
        return torch.sinh((right - left) * self._width / 2) / ends / whole

    def alpha(self, t: Tensor | float) -> Tensor:
        """Return sqrt(floor + (1 - floor)·(S(e) - S(x))/(S(e) - S(b)))."""
        t = as_time(t)
        return torch.sqrt(self.floor + (1 - self.floor) * self._share(t, torch.ones_like(t)))

    def sigma(self, t: Tensor | float) -> Tensor:
        """Return sqrt((1 - floor)·(S(x) - S(b))/(S(e) - S(b)))."""
        t = as_time(t)
        return torch.sqrt((1 - self.floor) * self._share(torch.zeros_like(t), t))

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Invert S from the nearer end, as a difference of two logits in terms of log1p."""
        value = as_time(log_snr)
        low, high = (float(torch.sigmoid(as_time(end / self.tau))) for end in (self.start, self.end))
        below = (-value).sigmoid() / (1 - self.floor) * (high - low)
        above = ((value.sigmoid() - self.floor) / (1 - self.floor)).clamp(min=0) * (high - low)
        from_start = torch.log1p(below / low) - torch.log1p(-below.clamp(max=high - low) / (1 - low))
        from_end = torch.log1p(above / (1 - high)) - torch.log1p(-above.clamp(max=high - low) / high)
        return torch.where(below < above, from_start / self._width, 1 - from_end / self._width)


@dataclass(frozen=True)
class Laplace(Schedule):
    """log_snr = mu - b·log(2t) up to t = 1/2, then mu + b·log(tail + (1 - tail)·2·(1 - t)); alpha² + sigma² = 1.

    Uniform times then have Laplace-distributed log-SNRs, with the lower tail cut so that the log-SNR at t = 1 is
    finite; at t = 1/2 the rates jump by the fraction `tail` and their own rates change sign: on this clock no rule of
    velocities has an order above 2.

    Attributes:
        mu: Log-SNR at t = 1/2, around which the noise levels concentrate.
        b: Width of that concentration, in log-SNR.
        tail: Share of the noisiest levels that is cut off.

    Source: Hang & Gu 2024, Improved Noise Schedule for Diffusion Training, table 1.
    """

    mu: float = 0.0
    b: float = 0.5
    tail: float = 1e-6

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (self.b > 0 and 0 < self.tail < 1):
            raise UserError("a Laplace schedule needs b above 0 and a tail in (0, 1)")

    def _log_snr(self, t: Tensor | float) -> Tensor:
        t = as_time(t)
        tail = torch.log(self.tail + (1 - self.tail) * 2 * (1 - t))
        return self.mu + self.b * torch.where(t > 0.5, tail, -torch.log(2 * t))

    def alpha(self, t: Tensor | float) -> Tensor:
        """Return sqrt(SNR/(1 + SNR))."""
        return self._log_snr(t).sigmoid().sqrt()

    def sigma(self, t: Tensor | float) -> Tensor:
        """Return sqrt(1/(1 + SNR))."""
        return (-self._log_snr(t)).sigmoid().sqrt()

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return the probability of a log-SNR above this one, at most t_max."""
        depth = (as_time(log_snr) - self.mu) / self.b
        left = ((torch.exp(depth.clamp(max=0)) - self.tail) / (1 - self.tail)).clamp(min=0) / 2
        return torch.where(depth > 0, torch.exp(-depth) / 2, 1 - left)


@dataclass(frozen=True)
class Shifted(Schedule):
    """log_snr(t) of `base` minus 2·log(shift): sigma/alpha times `shift`, as larger images need.

    What equals 1 on the base (`keeps`) stays 1. On `RectifiedFlow` this is t -> shift·t/(1 + (shift - 1)·t).

    Attributes:
        base: The schedule to shift, by its name or as an object with its options.
        shift: Factor on sigma/alpha; above 1 is noisier.

    Source: Hoogeboom et al. 2023, Simple Diffusion, eq. 3; Esser et al. 2024, section 5.3.2.
    """

    base: Schedule = RectifiedFlow()
    shift: float = 3.0

    def __post_init__(self) -> None:
        """Check the shift."""
        if not self.shift > 0:
            raise UserError(f"the shift of a schedule must be above 0, not {self.shift}")

    @property
    def t_max(self) -> float:
        """The base's."""
        return self.base.t_max

    @property
    def steps(self) -> int | None:
        """The base's."""
        return self.base.steps

    @property
    def keeps(self) -> Literal["variance", "sum", "signal"]:
        """What the base keeps."""
        return self.base.keeps

    def _size(self, t: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the base's alpha, shift·sigma, and the size by which to divide both."""
        alpha, sigma = self.base.alpha(t), self.shift * self.base.sigma(t)
        sizes = {"variance": torch.hypot(alpha, sigma), "sum": alpha + sigma, "signal": alpha}
        return alpha, sigma, sizes[self.base.keeps]

    def alpha(self, t: Tensor | float) -> Tensor:
        """Return the base's alpha divided by the new size."""
        alpha, _, size = self._size(t)
        return alpha / size

    def sigma(self, t: Tensor | float) -> Tensor:
        """Return shift times the base's sigma, divided by the new size."""
        _, sigma, size = self._size(t)
        return sigma / size

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return the base's time at log_snr + 2·log(shift)."""
        return self.base.time(as_time(log_snr) + 2 * math.log(self.shift))
