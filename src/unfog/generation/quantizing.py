"""A sampler whose network multiplies bytes, calibrated on samples of its own, and how far it is from the original."""

import copy
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from unfog.diffusion.targets import Prediction
from unfog.generation.sampler import Sampler
from unfog.networks.quantized import KERNELS, able, quantize
from unfog.runtime.errors import UserError

ROWS = 16
"""Samples of the calibration, and as many others that tell the difference."""
STEPS = 8
"""Their steps, at most."""


class Quantization(NamedTuple):
    """What int8 changes.

    Attributes:
        layers: Layers that are computed in it.
        error: Root mean square of the change of the predicted x0, over that of x0, at the states of other samples.
        rounding: The same of bfloat16, next to float32.
    """

    layers: int
    error: float
    rounding: float

    def __str__(self) -> str:
        """Return it as a sentence."""
        return (
            f"int8 in {self.layers} layers: the predicted x0 differs by {100 * self.error:.1f} % (root mean square) "
            f"from that in float32; in bfloat16 it differs by {100 * self.rounding:.1f} %"
        )


def in_int8(sampler: Sampler, condition: Tensor | None) -> tuple[Sampler, Quantization]:
    """Return a sampler whose network computes its large layers in int8, and how far it is from the given one.

    The range of each layer's inputs is that of a few samples, drawn in a few steps; so the result depends on nothing
    but the model, its settings, and the condition.

    Args:
        sampler: The sampler, which stays as it is.
        condition: The condition of `2 * ROWS` samples, or None.

    Raises: UserError: If there is no processor or layer for it.
    """
    if sampler.device.type != "cpu":
        raise UserError(f"int8 is computed on a CPU, not on {sampler.device.type}: omit precision, or use cpu")
    if not able():
        raise UserError(
            "this processor has no instructions for products of bytes (VNNI or AMX), without which int8 saves no time: "
            "omit precision"
        )
    KERNELS.available(build=True)
    model = copy.deepcopy(sampler.denoiser)
    steps = min(sampler.settings.steps, STEPS)
    few = replace(
        sampler,
        denoiser=model,
        precision="bfloat16",
        settings=replace(sampler.settings, batch=ROWS, steps=steps),
    )
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = model.register_forward_pre_hook(lambda _, given, named: calls.append((given, named)), with_kwargs=True)
    _draw(few, ROWS, condition)
    hook.remove()
    exact = _predicted(replace(few, precision="float32"), calls)
    rounding = _distance(_predicted(few, calls), exact)
    layers = quantize(cast(nn.Module, model.network), lambda: _draw(few, 0, condition))
    if not layers:
        raise UserError(
            "int8 has nothing to do in this network, which has no convolution over two dimensions and no linear map of "
            "places with 16 channels or more: omit precision"
        )
    error = _distance(_predicted(few, calls), exact)
    return replace(sampler, denoiser=model, precision="int8"), Quantization(layers, error, rounding)


def _draw(sampler: Sampler, first: int, condition: Tensor | None) -> None:
    """Draw a batch, which nobody looks at."""
    for _ in sampler.steps(first, None if condition is None else condition[first : first + ROWS]):
        pass


@torch.inference_mode()
def _predicted(sampler: Sampler, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[Tensor]:
    """Return the x0 that a denoiser predicts when it is called so."""
    with sampler.arithmetic():
        found: list[Prediction] = [sampler.denoiser(*given, **named) for given, named in calls]
    return [prediction.x0 for prediction in found]


def _distance(found: list[Tensor], exact: list[Tensor]) -> float:
    """Return the root mean square of a difference, over that of what is exact."""
    off, whole = (torch.cat([one.double().flatten() for one in part]) for part in (found, exact))
    return float((off - whole).norm() / whole.norm())
