"""Adapters to and from the models of diffusers and k-diffusion, without importing either."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from unfog.diffusion.denoiser import Condition, Conditioned, Denoise, Denoiser, Rescheduled
from unfog.diffusion.schedules import EDM, RectifiedFlow, Schedule, as_time, expand
from unfog.diffusion.tables import Table
from unfog.diffusion.targets import X0, Eps, Flow, Prediction, Target, V
from unfog.runtime.errors import UserError, unknown

TARGETS: dict[str, Target] = {"epsilon": Eps(), "sample": X0(), "v_prediction": V(), "flow_prediction": Flow()}
"""diffusers' prediction types."""
KModel = Callable[..., Tensor]
"""A k-diffusion model: (x, sigma, **extra) -> denoised, with x = x0 + sigma·eps and sigma of shape `(batch,)`."""


class Scheduler(Protocol):
    """The part of a diffusers scheduler that is read here."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Its options."""
        ...


class _Unet(nn.Module):
    """A diffusers model with the signature of our networks."""

    def __init__(self, unet: nn.Module, whole: bool) -> None:
        """Keep the model; `whole` is whether it takes integer timesteps."""
        super().__init__()
        self.unet, self.whole = unet, whole

    def forward(self, x: Tensor, time: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the model's `.sample`; the condition is passed as encoder_hidden_states."""
        given = {} if cond is None else {"encoder_hidden_states": cond}
        output: Tensor = self.unet(x, time.round().long() if self.whole else time, **given).sample
        return output


def wrap_diffusers(unet: nn.Module, scheduler: Scheduler) -> Denoiser:
    """Wrap a diffusers model as a `Denoiser`, with schedule and target from the scheduler's configuration.

    Args:
        unet: A `UNet2DModel`, a `UNet2DConditionModel` or the like, whose output has a `.sample`. The denoiser's
            condition is a tensor, passed as encoder_hidden_states.
        scheduler: The pipeline's scheduler. Its betas become a `Table`, on which the model gets integer timesteps; a
            flow-matching scheduler becomes `RectifiedFlow`.

    Raises: UserError: For a prediction type or a scheduler without an equivalent here.
    """
    if not (isinstance(unet, nn.Module) and hasattr(scheduler, "config")):
        both = f"{type(unet).__name__} and {type(scheduler).__name__}"
        raise UserError(f"wrap_diffusers takes a model and a scheduler of diffusers, not {both}")
    products, config = getattr(scheduler, "alphas_cumprod", None), scheduler.config
    name = type(scheduler).__name__
    flow = name.startswith("FlowMatch")
    prediction = "flow_prediction" if flow else str(config.get("prediction_type", "epsilon"))
    if prediction not in TARGETS:
        raise unknown("prediction_type", prediction, TARGETS)
    if flow:
        schedule: Schedule = RectifiedFlow()
    elif isinstance(products, Tensor):
        schedule = Table(tuple(products.double().tolist()))
    else:
        raise UserError(f"the scheduler {name} has no alphas_cumprod: use one with betas, or one for flow matching")
    known: Mapping[str, Any] = getattr(unet, "config", {})
    learned = known.get("out_channels") == 2 * (known.get("in_channels") or 0) != 0
    return Denoiser(
        _Unet(unet, not flow),
        schedule,
        TARGETS[prediction],
        input_scale="none",
        network_time="thousand" if flow else "whole",
        learned_variance=bool(learned),
    )


def wrap_k(denoiser: Denoise) -> KModel:
    """Wrap a denoiser as a k-diffusion model, for its samplers to call.

    Args:
        denoiser: A `Denoiser`, or anything that predicts (x0, eps).

    Returns: A function (x, sigma) -> x0, with x = x0 + sigma·eps and sigma of shape `()` or `(batch,)`; for a
        `Denoiser` it also takes `cond`.
    """

    def model(x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        inner: Denoise = denoiser
        if cond is not None:
            if not isinstance(denoiser, Denoiser):
                raise UserError("only a Denoiser takes a condition here: wrap this model in Conditioned first")
            inner = Conditioned(denoiser, denoiser.embedded(cond))
        return Rescheduled(inner, EDM())(x, as_time(sigma)).x0

    return model


@dataclass(frozen=True)
class _OfK:
    """A k-diffusion model as a `Denoise`."""

    model: KModel
    schedule: EDM

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict x0, and eps = (x - x0)/sigma."""
        sigma = as_time(t).clamp(min=self.schedule.t_first)
        x0 = self.model(x, sigma.to(x).expand(len(x)))
        return Prediction(x0, (x - x0) / expand(sigma, x))


def unwrap_k(model: KModel, sigma_max: float = 80.0) -> Denoise:
    """Wrap a k-diffusion model as one that predicts (x0, eps) on the schedule `EDM(sigma_max)`.

    Args:
        model: (x, sigma) -> denoised, with sigma of shape `(batch,)`.
        sigma_max: The highest noise level that it was trained on.
    """
    return _OfK(model, EDM(sigma_max))
