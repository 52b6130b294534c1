"""Denoisers: a network joined with a schedule and a target. The only file that knows both."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, cast, get_args

import torch
from torch import Tensor, nn

from unfog.diffusion.defaults import target_of
from unfog.diffusion.schedules import EDM, RectifiedFlow, Schedule, as_time, expand
from unfog.diffusion.targets import Prediction, Target
from unfog.networks.conditioning import Cond, Embedder
from unfog.networks.layers import Network, ScalarEmbedding
from unfog.runtime.brief import outline
from unfog.runtime.errors import UserError, unknown

InputScale = Literal["none", "unit"]
NetworkTime = Literal["index", "whole", "thousand", "log_snr", "clock"]
Clock = Literal["flow", "edm", "own"]
"""What velocities are integrated over, see `on_clock`."""
_ROUNDED = 1e-9
"""Relative difference below which two times are one, up to the rounding of clocks."""
Condition = Cond | Tensor
"""What a network is conditioned on: a `Cond` for the networks of this package, or a tensor for your own module."""


class Denoise(Protocol):
    """(x, t) -> (x0, eps): the one contract that solvers, guidance and editing rely on."""

    @property
    def schedule(self) -> Schedule:
        """The schedule whose clock the times are on."""
        ...

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict (x0, eps) of `x`, `(batch, *shape)`, at time `t`, `()` or `(batch,)`."""
        ...


class Denoiser(nn.Module):
    """A network with its schedule, its target and the scaling of its two inputs."""

    __repr__ = outline

    def extra_repr(self) -> str:
        """Return what is shown next to the size."""
        return f"{self.schedule!r}, {self.target!r}, network_time={self.network_time!r}"[:200]

    def __init__(
        self,
        network: nn.Module | Network,
        schedule: Schedule,
        target: Target | None = None,
        *,
        embedder: Embedder | None = None,
        input_scale: InputScale | None = None,
        network_time: NetworkTime | None = None,
        sigma_data: float = 0.5,
        learned_variance: bool = False,
        changes: nn.Module | None = None,
        span: ScalarEmbedding | None = None,
        guidance: ScalarEmbedding | None = None,
    ) -> None:
        """Join the parts.

        Args:
            network: Any module of (state, time) or (state, time, cond) whose output is shaped like the state; the
                time is `(batch,)`.
            schedule: How noisy a state is at each time.
            target: What the network predicts. Default: flow on `RectifiedFlow`, edm on `EDM`, else eps, or v where
                the schedule ends at pure noise.
            embedder: Maps the condition of each row to a `Cond`; None for unconditional models.
            input_scale: `"none"` passes x_t unchanged, `"unit"` divides it by its standard deviation
                sqrt(alpha²·sigma_data² + sigma²). Default: unit on `EDM`, where the state grows, else none.
            network_time: The time passed to the network: `"index"` is T·t - 1 (discrete schedules only), `"whole"`
                the same rounded, `"thousand"` 1000·t/t_max, `"log_snr"` -log_snr/8 = ln(sigma/alpha)/4, `"clock"` t.
                Default: index on discrete schedules (0 ... T - 1), log_snr on `EDM`, and elsewhere t itself, or
                1000·t for the networks of this package.
            sigma_data: Standard deviation of the clean data, for `"unit"`.
            learned_variance: Whether the network outputs twice the channels, the second half being v, with
                (v + 1)/2 the variance fraction.
            changes: Maps the numbers that say how a row was augmented to what is added to the time embedding; in
                sampling it is not used, which is as for unchanged rows.
            span: Makes this a flow map: maps u(t) - u(s), u = sigma/(alpha + sigma), to what is added to the time
                embedding, where s is the time that the prediction is to lead to.
            guidance: Maps the scale of guidance to what is added to the time embedding, for models that learned to
                predict as if they were guided.

        Raises: UserError: If `schedule` is not a schedule, target or network time do not fit it, or a name is unknown.
        """
        super().__init__()
        if not isinstance(network, nn.Module):
            raise UserError(f"the network of a denoiser is a torch.nn.Module, not a {type(network).__name__}")
        if not isinstance(schedule, Schedule) or not isinstance(target, Target | None):
            raise UserError("a denoiser is Denoiser(network, schedule, target), schedule and target being values")
        schedule.check()
        target = target or target_of(schedule)
        target.check(schedule)
        grows = schedule.keeps == "signal"
        self._ours = hasattr(network, "embedding_dim")
        usual: NetworkTime = "log_snr" if grows else "thousand" if self._ours else "clock"
        self.input_scale: InputScale = input_scale or ("unit" if grows else "none")
        self.network_time: NetworkTime = network_time or ("index" if schedule.steps else usual)
        if self.input_scale not in get_args(InputScale):
            raise unknown("input_scale", self.input_scale, get_args(InputScale))
        if self.network_time not in get_args(NetworkTime):
            raise unknown("network_time", self.network_time, get_args(NetworkTime))
        if network_time in ("index", "whole") and not schedule.steps:
            raise UserError(
                f"network_time {network_time!r} needs a schedule of discrete steps: use 'thousand' or 'log_snr'"
            )
        self.network = cast(Network, network)  # those that recipes build offer the whole protocol
        self.embedder, self.changes = embedder, changes
        self.span, self.guidance = span, guidance
        self.schedule, self.target = schedule, target
        self.sigma_data, self.learned_variance = sigma_data, learned_variance
        self._conditional = _takes_condition(network)

    def time_input(self, t: Tensor | float) -> Tensor:
        """Return the network's time input for time `t`, float64, shaped like `t`."""
        t = as_time(t)
        if self.network_time in ("index", "whole"):
            assert self.schedule.steps is not None
            index = self.schedule.steps * t - 1
            return index.round() if self.network_time == "whole" else index
        if self.network_time == "thousand":
            return 1000 * t / self.schedule.t_max
        return t.clone() if self.network_time == "clock" else -self.schedule.log_snr(t) / 8

    def embedded(self, cond: Condition | None) -> Condition | None:
        """Return the condition to pass to the network: a tensor goes through the embedder, if there is one."""
        return self.embedder(cond) if self.embedder is not None and isinstance(cond, Tensor) else cond

    def output(
        self, x: Tensor, t: Tensor, cond: Condition | None = None, s: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the network's output for `x` at time `t`, in the target's space, and its variance fraction.

        Args:
            x: Noisy state, `(batch, *shape)`.
            t: Time, `()` or `(batch,)`, not before the first trained time.
            cond: The condition, or None.
            s: Of a flow map the time that the prediction is to lead to, shaped like `t`; default: `t` itself.

        Returns: The output and the fraction (or None), each with the shape and dtype of `x`.
        Raises: UserError: If the network returns another shape, or the time is off the clock.
        Source: Nichol & Dhariwal 2021, Improved DDPM, eq. 15, for the fraction.
        """
        self.schedule.check_time(t)
        if self.input_scale == "unit":
            variance = self.schedule.alpha(t) ** 2 * self.sigma_data**2 + self.schedule.sigma(t) ** 2
            scaled = expand(variance.rsqrt(), x) * x
        else:
            scaled = x
        time = self.schedule._recall(self.network_time, t, self.time_input).to(x.device, torch.float32).expand(len(x))
        output = self._ask(scaled, time, self._leading(cond, t, s, x))
        if not isinstance(output, Tensor):
            raise UserError(f"the network must return a tensor, not a {type(output).__name__}")
        output = output.to(x.dtype)
        wanted = (len(x), (1 + self.learned_variance) * x.shape[1], *x.shape[2:])
        if output.shape != wanted:
            kind = "with" if self.learned_variance else "without"
            if output.ndim == x.ndim and output.shape[1] != wanted[1]:
                raise UserError(
                    f"the network returns {output.shape[1]} channels, where a state of {x.shape[1]} {kind} a learned "
                    f"variance needs {wanted[1]}"
                )
            raise UserError(f"the network returns the shape {tuple(output.shape)}, where {wanted} is needed")
        if not self.learned_variance:
            return output, None
        output, v = output.chunk(2, dim=1)
        return output, (v + 1) / 2

    def _leading(self, cond: Condition | None, t: Tensor, s: Tensor | None, x: Tensor) -> Condition | None:
        """Return the condition with how far the prediction is to lead, for a flow map."""
        if self.span is None:
            if s is not None:
                raise UserError("only a flow map, which has a span, can be asked for the way to another time: omit s")
            return cond
        assert not isinstance(cond, Tensor)  # the networks that take a vector have an embedder
        t = as_time(t).expand(len(x))
        return (cond or Cond()).plus(self.spans(t, t if s is None else as_time(s).expand(len(x)), x.device))

    def spans(self, t: Tensor, s: Tensor, device: torch.device | None = None) -> Tensor:
        """Return what a flow map adds to the time embedding for ways from times `t` to `s`, `(batch, embedding)`."""
        assert self.span is not None
        far = _share(self.schedule, t) - _share(self.schedule, s)
        added: Tensor = self.span(far.to(device, torch.float32))
        return added

    def _ask(self, x: Tensor, time: Tensor, cond: Condition | None) -> Tensor:
        """Call the network in the dtype of its weights, and with the condition if it takes one."""
        weight = next(cast(nn.Module, self.network).parameters(), None)
        if weight is not None and weight.dtype != torch.float32 and weight.is_floating_point():
            x = x.to(weight.dtype)
            time = time if self._ours else time.to(weight.dtype)  # ours embed it in float32 first
        elif weight is not None and x.dtype == torch.float64:
            x = x.float()
        network = cast(Callable[..., Tensor], self.network)
        if self._conditional or (self._conditional is None and cond is not None):
            return network(x, time, cond)
        if cond is not None:
            raise UserError("this network takes (x, t) and no condition: give it a third parameter, or omit cond")
        return network(x, time)

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None, s: Tensor | None = None) -> Prediction:
        """Predict (x0, eps) from the network's output, at time max(t, first trained time).

        With `s` the pair of a flow map, which leads there: x_s = alpha_s·x0 + sigma_s·eps.
        """
        self.schedule.check_time(t)
        t = as_time(t).clamp(min=self.schedule.t_first)
        output, fraction = self.output(x, t, cond, s)
        return self.target.solve(output, x, t, self.schedule)._replace(variance_fraction=fraction)


def _share(schedule: Schedule, t: Tensor) -> Tensor:
    """Return sigma/(alpha + sigma), the time of `RectifiedFlow` with the same log-SNR."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return sigma / (alpha + sigma)


def _takes_condition(network: nn.Module | Network) -> bool | None:
    """Return whether a network takes a condition after state and time; None if its signature does not tell."""
    try:
        parameters = inspect.signature(network.forward if isinstance(network, nn.Module) else network).parameters
    except (TypeError, ValueError):
        return None
    kinds = [one.kind for one in parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return None
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(kind in places for kind in kinds) > 2


@dataclass(frozen=True)
class Conditioned:
    """A denoiser with its condition filled in.

    Attributes:
        denoiser: The denoiser.
        cond: The condition.
        ends: Of a flow map the times that predictions lead to, in any order: from t the next one below. None is t
            itself, which makes it an ordinary denoiser.
    """

    denoiser: Denoiser
    cond: Condition | None
    ends: Tensor | None = None

    @property
    def schedule(self) -> Schedule:
        """The denoiser's schedule."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict (x0, eps) under the condition."""
        s = self._next(as_time(t))
        prediction: Prediction = self.denoiser(x, t, self.cond, *(() if s is None else (s,)))
        return prediction

    def _next(self, t: Tensor) -> Tensor | None:
        """Return the next end below each time, 0 where there is none."""
        if self.ends is None or self.denoiser.span is None:
            return None
        ends = torch.cat([t.new_zeros(1), as_time(self.ends).sort().values])
        return ends[torch.searchsorted(ends, t * (1 - _ROUNDED)).sub(1).clamp(min=0)]


def side_by_side(one: Denoise, other: Denoise, x: Tensor, t: Tensor) -> tuple[Prediction, Prediction]:
    """Return the predictions of two models for the same states.

    If they are one denoiser under two conditions, both are computed in one evaluation of twice the batch: 1.03 to
    1.7 times as fast as two evaluations, most for small batches.
    """
    if isinstance(one, Conditioned) and isinstance(other, Conditioned) and one.denoiser is other.denoiser:
        cond, cond_other, t = one.cond, other.cond, as_time(t)
        if isinstance(cond, Cond) and isinstance(cond_other, Cond):
            times = t if t.ndim == 0 else torch.cat([t, t])
            twice = replace(one, cond=cond.followed_by(cond_other))(torch.cat([x, x]), times)
            (x0, x0_other), (eps, eps_other) = twice.x0.chunk(2), twice.eps.chunk(2)
            if twice.variance_fraction is None:
                return Prediction(x0, eps), Prediction(x0_other, eps_other)
            fraction, fraction_other = twice.variance_fraction.chunk(2)
            return Prediction(x0, eps, fraction), Prediction(x0_other, eps_other, fraction_other)
    return one(x, t), other(x, t)


@dataclass(frozen=True)
class Wrapped:
    """Base of wrappers that change a model's predictions.

    Attributes:
        denoise: The model.
    """

    denoise: Denoise

    @property
    def schedule(self) -> Schedule:
        """The model's schedule."""
        return self.denoise.schedule


@dataclass(frozen=True)
class Clipped(Wrapped):
    """x0 clipped to [low, high], and eps = (x_t - alpha·x0)/sigma recomputed from it unless `keep_eps`.

    DDPM equals DDIM(eta=1) only if eps is recomputed.
    """

    low: float = -1.0
    high: float = 1.0
    keep_eps: bool = False

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict (x0, eps) with x0 clipped."""
        prediction = self.denoise(x, t)
        x0 = prediction.x0.clamp(self.low, self.high)
        sigma = self.schedule.sigma(t)
        if self.keep_eps or not (sigma > 0).all():
            return prediction._replace(x0=x0)
        return prediction._replace(x0=x0, eps=(x - expand(self.schedule.alpha(t), x) * x0) / expand(sigma, x))


@dataclass(frozen=True)
class Rescheduled:
    """A denoiser on another schedule's clock: times matched by log-SNR, the state rescaled accordingly.

    With `EDM` this is the (x/alpha, sigma/alpha) space in which other toolkits run Euler and Heun; Euler is DDIM
    there, whatever the schedule.

    Source: Karras et al. 2022, section 3 and appendix C.
    """

    denoise: Denoise
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict (x0, eps), which mean the same under both schedules."""
        inner = self.denoise.schedule
        time = inner.time(self.schedule.log_snr(t))
        scale = _size(inner, time) / _size(self.schedule, t)
        return self.denoise(expand(scale, x) * x, time)


def _size(schedule: Schedule, t: Tensor) -> Tensor:
    """Return sqrt(alpha² + sigma²); at equal log-SNR the ratio of two is also that of the alphas and the sigmas."""
    return torch.hypot(schedule.alpha(t), schedule.sigma(t))


def edm_clock(schedule: Schedule) -> EDM:
    """Return the EDM schedule with the same final noise level sigma/alpha as `schedule`.

    Raises: UserError: If the schedule ends at pure noise, where that level is infinite.
    """
    level = float(schedule.sigma(schedule.t_max) / schedule.alpha(schedule.t_max))
    if level == float("inf"):
        raise UserError(
            "the schedule ends at pure noise, where the clock 'edm', sigma/alpha, is infinite: use the clock 'flow'"
        )
    return EDM(level)


def on_clock(denoise: Denoise, times: Tensor, clock: Clock) -> tuple[Denoise, Tensor]:
    """Return a model on another clock and the times there, matched by log-SNR: `Rescheduled` where it has to be.

    Args:
        denoise: The model.
        times: Times on its schedule's clock.
        clock: "flow" is that of `RectifiedFlow`, "edm" is sigma/alpha, "own" leaves both as they are.

    Raises: UserError: For an unknown clock, or for "edm" on a schedule that ends at pure noise.
    """
    if clock not in get_args(Clock):
        raise unknown("clock", clock, get_args(Clock))
    inner = denoise.schedule
    if clock == "own":
        return denoise, times
    outer = RectifiedFlow() if clock == "flow" else edm_clock(inner)
    if type(inner) is type(outer):
        return denoise, times
    # rounding may lead a last digit past the end of the clock
    return Rescheduled(denoise, outer), outer.time(inner.log_snr(times)).clamp(max=outer.t_max)
