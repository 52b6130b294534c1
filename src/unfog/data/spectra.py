"""Transforms of sounds: the lapped cosine transform, in which they are diffused, and log-mel spectrograms."""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FLOOR_DB = -80.0
"""Level of the quietest spectrogram, in decibels below a sine of full scale."""


@cache
def basis(bands: int) -> Tensor:
    """Return the waves of the modified discrete cosine transform under a sine window, `(bands, 1, 2·bands)`.

    w_k(n) = sqrt(2/M) · sin(pi (n + 1/2) / 2M) · cos(pi/M (n + 1/2 + M/2) (k + 1/2)). Each frame overlaps half of its
    neighbours, and all waves are orthonormal: white noise stays white noise.

    Source: Princen, Johnson & Bradley 1987, Subband/transform coding using filter bank designs based on time domain
    aliasing cancellation.
    """
    n = torch.arange(2 * bands, dtype=torch.float64) + 0.5
    k = torch.arange(bands, dtype=torch.float64)[:, None] + 0.5
    window = torch.sin(math.pi * n / (2 * bands))
    waves = math.sqrt(2 / bands) * window * torch.cos(math.pi / bands * (n + bands / 2) * k)
    return waves.float()[:, None]


def lapped(x: Tensor, bands: int) -> Tensor:
    """Return the cosine coefficients of sounds.

    Args:
        x: Sounds, `(batch, samples)`; a multiple of `bands`.
        bands: Coefficients of a frame.

    Returns: `(batch, bands, samples / bands + 1)`.
    """
    return F.conv1d(F.pad(x, (bands, bands))[:, None], basis(bands).to(x), stride=bands)


def unlapped(coefficients: Tensor, bands: int) -> Tensor:
    """Return the sounds of cosine coefficients, the inverse of `lapped`."""
    return F.conv_transpose1d(coefficients, basis(bands).to(coefficients), stride=bands)[:, 0, bands:-bands]


class Mel(NamedTuple):
    """How a spectrogram is taken.

    Attributes:
        rate: Samples a second.
        window: Samples of a frame.
        hop: Samples from one frame to the next.
        bands: Mel bands.
        floor: Decibels below full scale at which levels end.
    """

    rate: int
    window: int
    hop: int
    bands: int
    floor: float = FLOOR_DB

    @classmethod
    def usual(cls, rate: int) -> "Mel":
        """Return frames of 32 ms every 16 ms, in 40 bands, or 64 from 16,000 samples a second on."""
        window = 1 << max(4, round(math.log2(0.032 * rate)))
        return cls(rate, window, window // 2, 64 if rate >= 16_000 else 40)


@cache
def filters(mel: Mel) -> Tensor:
    """Return triangles over the frequencies of a spectrum, evenly spaced in mel, `(bands, window/2 + 1)`.

    mel(f) = 2595 · log10(1 + f/700). Each reaches from the centre of the band before to that of the band behind, and at
    least to the frequencies of the spectrum next to its own centre.

    Source: Davis & Mermelstein 1980; O'Shaughnessy 1987 for the scale.
    """
    top = 2595 * math.log10(1 + mel.rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, mel.bands + 2) / 2595) - 1)
    step = mel.rate / mel.window
    places = np.arange(mel.window // 2 + 1) * step
    low, centre, high = (edges[first : first + mel.bands, None] for first in range(3))
    low, high = np.minimum(low, centre - step), np.maximum(high, centre + step)
    rising, falling = (places - low) / (centre - low), (high - places) / (high - centre)
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling))).float()


def spectrogram(x: Tensor, mel: Mel) -> Tensor:
    """Return the power of sounds in mel bands, `(batch, bands, frames)`; a sine of full scale has about 1.

    Args:
        x: Sounds in [-1, 1], `(batch, samples)`.
        mel: How it is taken.
    """
    window = torch.hann_window(mel.window, device=x.device)
    waves = torch.stft(x, mel.window, mel.hop, window=window, return_complex=True, pad_mode="constant")
    power = (waves.abs() * 2 / window.sum()) ** 2
    return filters(mel).to(x.device) @ power


def log_mel(x: Tensor, mel: Mel) -> Tensor:
    """Return spectrograms as levels from -1, the floor or less, to 1, full scale, `(batch, bands, frames)`.

    level = 2 · (10 · log10(power) - floor) / -floor - 1.
    """
    decibels = 10 * torch.log10(spectrogram(x, mel).clamp(min=10 ** (mel.floor / 10)))
    return (2 * (decibels - mel.floor) / -mel.floor - 1).clamp(-1, 1)


def power_of(level: Tensor, mel: Mel) -> Tensor:
    """Return the power in mel bands of levels, the inverse of `log_mel` down to the floor."""
    return 10 ** ((level.clamp(-1, 1) + 1) / 2 * -mel.floor / 10 + mel.floor / 10)


def linear(power: Tensor, mel: Mel, rounds: int = 50) -> Tensor:
    """Return the power spectrum, 0 or more, that is nearest to mel bands in least squares, `(batch, bins, frames)`.

    By multiplicative updates, p <- p · (W^T m) / (W^T W p), which keep it non-negative.

    Source: Lee & Seung 2001, Algorithms for non-negative matrix factorization, eq. 4.
    """
    weights = filters(mel).to(power)
    wanted, product = weights.T @ power, weights.T @ weights
    found = wanted / weights.sum(0)[:, None].clamp(min=1e-3) ** 2
    for _ in range(rounds):
        found = found * wanted / (product @ found).clamp(min=1e-20)
    return found


def griffin_lim(power: Tensor, mel: Mel, length: int, rounds: int = 60, momentum: float = 0.99) -> Tensor:
    """Return sounds with such a power spectrum, `(batch, length)`; phases are found by going back and forth.

    Args:
        power: Power spectra, `(batch, bins, frames)`.
        mel: How they are taken.
        length: Samples of a sound.
        rounds: Steps.
        momentum: How far a step is continued; 0 is the algorithm of 1984.

    Source: Griffin & Lim 1984; Perraudin, Balazs & Søndergaard 2013, A fast Griffin-Lim algorithm.
    """
    window = torch.hann_window(mel.window, device=power.device)
    size = power.clamp(min=0).sqrt() * (window.sum() / 2)
    # a phase that turns by the hop of each bin's own frequency, and differs from bin to bin
    bins, frames = (torch.arange(count, dtype=torch.float64) for count in size.shape[1:])
    turned = 2 * math.pi * (mel.hop / mel.window * bins[:, None] * frames + (bins[:, None] * 0.618034) ** 2)
    waves = torch.polar(size, turned.remainder(2 * math.pi).to(size).expand_as(size))
    before = torch.zeros_like(waves)
    for _ in range(rounds):
        again = _analysed(_synthesised(waves, mel, window, length), mel, window)
        ahead = again + momentum * (again - before)
        waves, before = size * ahead / ahead.abs().clamp(min=1e-12), again
    return _synthesised(waves, mel, window, length)


def _analysed(x: Tensor, mel: Mel, window: Tensor) -> Tensor:
    """Return the short-time spectrum of sounds."""
    return torch.stft(x, mel.window, mel.hop, window=window, return_complex=True, pad_mode="constant")


def _synthesised(waves: Tensor, mel: Mel, window: Tensor, length: int) -> Tensor:
    """Return the sounds whose short-time spectra are nearest."""
    return torch.istft(waves, mel.window, mel.hop, window=window, length=length)
