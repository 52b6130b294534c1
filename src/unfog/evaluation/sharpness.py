"""How sharp pictures are: energy at high frequencies, and gradients, next to those of real pictures."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfog.evaluation.intervals import of_mean
from unfog.evaluation.trained import Figure

HIGH = 0.25
"""Cycles a pixel, half the Nyquist frequency, above which energy counts as fine."""
STEEP = 20
"""The steepest of so many gradients are the edges."""


def fineness(x: Tensor) -> NDArray[np.float64]:
    """Return the share of the energy of pictures above half the Nyquist frequency, `(batch,)`.

    The sum of |F(x)|² over frequencies of more than 1/4 cycle a pixel, over that of all but the mean, F the Fourier
    transform of each channel. Of white noise it is about 0.8, and of a flat picture 0.

    Args:
        x: Pictures, `(batch, channels, height, width)`.
    """
    power = torch.fft.fft2(x.double()).abs().square().sum(1)
    power[:, 0, 0] = 0
    up, across = (torch.fft.fftfreq(side, dtype=torch.float64) for side in x.shape[2:])
    high = (up[:, None].square() + across.square()).sqrt() > HIGH
    total = power.sum((1, 2))
    shares: NDArray[np.float64] = (power[:, high].sum(1) / total.clamp(min=1e-9)).numpy()
    return shares


def gradients(x: Tensor) -> Tensor:
    """Return |x's gradient| at each place by forward differences, as shares of the range, `(batch, places)`."""
    x = x.double() / 255
    across, down = x[..., :-1, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, :-1]
    return (across.square() + down.square()).mean(1).sqrt().flatten(1)


def slope(x: Tensor) -> NDArray[np.float64]:
    """Return the mean gradient of each picture, `(batch,)`."""
    return gradients(x).mean(1).numpy()


def edges(x: Tensor) -> NDArray[np.float64]:
    """Return the mean of the steepest twentieth of the gradients of each picture, `(batch,)`."""
    found = gradients(x)
    return found.topk(max(1, found.shape[1] // STEEP), dim=1).values.mean(1).numpy()


MEASURES: dict[str, Callable[[Tensor], NDArray[np.float64]]] = {
    "energy at high frequencies": fineness,
    "mean gradient": slope,
    "steepest gradients": edges,
}
"""By their names in tables; none is better when it is larger: what counts is how near it is to real pictures'."""


def sharpness(samples: Tensor, real: Tensor, noise: Tensor) -> dict[str, Figure]:
    """Return each measure of samples, its floor being that of real pictures and its ceiling that of noise.

    Args:
        samples: uint8, `(batch, channels, height, width)`.
        real: Held-out pictures, alike.
        noise: Decoded noise, alike.
    """
    found = {}
    for name, measure in MEASURES.items():
        own = measure(samples)
        low, high = of_mean(own)
        found[name] = Figure(float(own.mean()), low, high, float(measure(real).mean()), float(measure(noise).mean()))
    return found
