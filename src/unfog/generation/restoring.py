"""Restoration of pictures by a trained model: from a blurred, smaller, masked, cropped or noisy version of them."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from unfog.data.codecs import Latents, Pixels
from unfog.diffusion.denoiser import Clipped, Denoise
from unfog.diffusion.editing import begin
from unfog.diffusion.solvers import DDIM
from unfog.generation.edits import Beginning, Canvas
from unfog.generation.inverse import GradientGuided, PseudoInverse
from unfog.generation.operators import Masked, Operator
from unfog.generation.sampler import Sampler
from unfog.recipes.conditions import Asked
from unfog.runtime.errors import UserError, unknown
from unfog.runtime.randomness import normal

How = Literal["pseudo-inverse", "gradient"]
"""How a measurement leads the model: see `PseudoInverse` and `GradientGuided`."""
ROUNDED = 1 / 255 / 12**0.5
"""Deviation of the rounding to bytes, as a share of the range from black to white."""
PIXELS = Pixels()
PORTION = 8
"""Pictures that are drawn at a time, at most: each keeps what its gradient needs."""


@dataclass(frozen=True)
class Measurement:
    """A measured picture.

    Attributes:
        picture: What was measured, uint8 `(channels, ...)`.
        operator: What measured it, a linear map of pictures in [-1, 1], `(batch, channels, height, width)`.
        size: Height and width of the picture that it was measured of.
        noise: Standard deviation of its noise, as a share of the range from black to white.
    """

    picture: Tensor
    operator: Operator
    size: tuple[int, int]
    noise: float

    def of(self, pictures: Tensor) -> Tensor:
        """Return what the operator makes of pictures, uint8 `(batch, channels, height, width)`, in [-1, 1]."""
        return self.operator(PIXELS.encode(pictures))

    @property
    def values(self) -> Tensor:
        """What was measured in [-1, 1], `(1, channels, ...)`."""
        found = PIXELS.encode(self.picture[None])
        return self.operator(found) if isinstance(self.operator, Masked) else found  # what it hides is not known

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise in [-1, 1], that of rounding at least."""
        return 2 * max(self.noise, ROUNDED)

    def misfit(self, pictures: Tensor) -> float:
        """Return the root mean square of what was measured less what the pictures give, over that of the noise.

        About 1 is right, and less where black or white cut the noise off.
        """
        apart = self.of(pictures) - self.values
        share = self.operator(torch.ones_like(apart)).mean() if isinstance(self.operator, Masked) else 1.0
        return float((apart.square().mean() / share).sqrt()) / self.deviation


def measured(clean: Tensor, operator: Operator, noise: float, seed: int = 0) -> Measurement:
    """Measure a clean picture, to see how well it can be restored.

    Args:
        clean: uint8, `(channels, height, width)`.
        operator: See `Measurement`.
        noise: Standard deviation of the noise that is added, as a share of the range from black to white.
        seed: Of the noise.
    """
    made = operator(PIXELS.encode(clean[None]))
    made = made + 2 * noise * normal(seed, "measurement", 0, 0, 1, tuple(made.shape[1:]))
    return Measurement(PIXELS.decode(made)[0], operator, (clean.shape[1], clean.shape[2]), noise)


def restoring(sampler: Sampler, asked: Asked) -> Sampler:
    """Return the sampler that restores in place of a sampler.

    A solver that draws no noise is replaced by DDIM with eta=1, whose noise mends errors of the guidance: on
    Fashion-MNIST the mean of eight pictures gains about 1 dB. Without a condition there is nothing to guide by.
    """
    solver = sampler.solver if sampler.solver.stochastic else DDIM(eta=1.0)
    guidance, portion = 1.0 if asked is None else sampler.settings.guidance, min(sampler.size, PORTION)
    return replace(sampler, solver=solver, settings=replace(sampler.settings, guidance=guidance, batch=portion))


def restore(
    sampler: Sampler, measurement: Measurement, count: int = 1, asked: Asked = None, how: How = "gradient"
) -> Tensor:
    """Draw pictures from p(picture | measurement), as the model knows pictures.

    Args:
        sampler: Of a model of pixels; see `restoring` for what it is replaced by.
        measurement: What was measured, and how.
        count: How many pictures; their mean is nearest to the truth, one of them the most natural.
        asked: What the picture shows, if that is known.
        how: "gradient" differentiates the network and takes three to five times as long as "pseudo-inverse".

    Returns: uint8, `(count, channels, height, width)`.
    Raises: UserError: If the measurement fits neither operator nor model, or the model cannot restore.
    """
    if how not in get_args(How):
        raise unknown("way to restore", how, get_args(How))
    if not 0 <= measurement.noise <= 1:
        raise UserError(f"noise is a share of the range from black to white, from 0 to 1, not {measurement.noise}")
    if not sampler.modality.pixels:
        raise UserError("only models of pictures can restore, and this one was trained on another kind of data")
    if isinstance(sampler.codec, Latents):
        raise UserError("only models of pixels can restore, and this one is of latents")
    if sampler.denoiser.span is not None:
        raise UserError(
            "a flow map jumps over the times at which a measurement could lead it: restore with its teacher"
        )
    if how == "gradient" and sampler.precision == "int8":
        raise UserError("int8 has no gradients: restore with how='pseudo-inverse', or without int8")
    canvas = Canvas(sampler, torch.zeros(measurement.picture.shape[0], *measurement.size, dtype=torch.uint8)[None])
    (height, width), used = measurement.size, restoring(sampler, asked)

    def operator(x: Tensor) -> Tensor:
        return measurement.operator(x[..., :height, :width])  # without what is padded for the network

    device, shape = canvas.device, tuple(canvas.encode(canvas.picture).shape[1:])
    values, noise = measurement.values.to(device), measurement.deviation

    def start(denoise: Denoise, times: Tensor, first: int) -> Beginning:
        eps = plain.noise("start", 0, first, shape)
        x = begin(denoise.schedule, torch.zeros_like(eps), eps, times, 1.0)
        spread = sampler.denoiser.sigma_data
        led: Denoise = (
            PseudoInverse(denoise, operator, values, noise, spread)
            if how == "pseudo-inverse"
            else GradientGuided(denoise, operator, values, noise)
        )
        bounds = sampler.codec.bounds
        return Beginning(Clipped(led, *bounds) if sampler.settings.clip and bounds is not None else led, x, times)

    # clipped after the measurement led it: a clipped x0 has no gradient
    settings = replace(used.settings, clip=False)
    plain = Canvas(replace(used, settings=settings), canvas.picture)
    with sampler.arithmetic():
        return torch.cat(list(plain.batches(count, asked, start, used.solver, asked is None)))
