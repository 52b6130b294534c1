"""Noisy oscillations, included: series of known distributions of frequency, amplitude and phase, and their reader."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from unfog.data.source import Data, InMemory, split
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import stream

LENGTH = 64
"""Points of a series."""
CYCLES, AMPLITUDES = (2.0, 6.0), (0.5, 1.5)
"""Between which numbers frequency, in cycles a series, and amplitude are uniform; the phase is from 0 to 2 pi."""
COLUMNS = ("displacement",)
FEWEST, MOST = 100, 10_000_000
"""Rows, at least and at most."""
FINE, ROUNDS = 16, 12
"""Frequencies that are tried per cycle, and steps of Newton's method from the best of them."""


class Oscillation(NamedTuple):
    """What series are made of, each `(series,)`.

    Attributes:
        cycles: Cycles in a series.
        amplitude: Half the height.
        phase: At the first point, from 0 to 2 pi.
    """

    cycles: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    phase: NDArray[np.float64]


def oscillators(count: int = 50_000, noise: float = 0.05, seed: int = 0) -> Data:
    """Draw x_i = amplitude · sin(2 pi · cycles · i / 64 + phase) + noise, a tenth of it held out.

    Args:
        count: Number of series.
        noise: Standard deviation of the noise.
        seed: Seed of the series.

    Returns: Rows, float32 `(1, 64)`.
    Raises: UserError: If a number is out of range.
    """
    if not FEWEST <= count <= MOST or not 0 <= noise <= 1:
        raise UserError(f"data.count is from {FEWEST} to {MOST:,} and data.noise from 0 to 1, not {count} and {noise}")
    draw = stream(seed, "oscillators")
    u = draw.random((count, 3))
    parts = Oscillation(_between(CYCLES, u[:, 0]), _between(AMPLITUDES, u[:, 1]), 2 * math.pi * u[:, 2])
    x = curve(parts) + noise * draw.standard_normal((count, LENGTH))
    return split(InMemory(torch.from_numpy(x).float()[:, None]), 0.1)


def curve(parts: Oscillation) -> NDArray[np.float64]:
    """Return oscillations without noise, `(series, 64)`."""
    angle = 2 * math.pi * parts.cycles[:, None] * np.arange(LENGTH) / LENGTH + parts.phase[:, None]
    wave: NDArray[np.float64] = parts.amplitude[:, None] * np.sin(angle)
    return wave


def read(x: NDArray[np.floating[Any]]) -> Oscillation:
    """Return what series, `(series, 64)`, are made of: the sines that are nearest to them in least squares.

    Of each frequency the best amplitude and phase are linear least squares; the best frequency is sought on a fine grid
    and then by parabolas through three neighbours, closer and closer.
    """
    low, high = CYCLES[0] - 1, CYCLES[1] + 1
    grid = np.arange(low, high, 1 / FINE)
    best = np.array([_explained(x, np.full(len(x), one))[0] for one in grid]).argmax(0)
    cycles, step = grid[best], 1 / FINE
    for _ in range(ROUNDS):
        left, middle, right = (_explained(x, cycles + shift)[0] for shift in (-step, 0.0, step))
        bend = left - 2 * middle + right
        shift = np.where(bend < 0, 0.5 * step * (left - right) / np.where(bend < 0, bend, 1.0), 0.0)
        cycles, step = cycles + shift.clip(-step, step), step / 2
    _, sine, cosine = _explained(x, cycles)
    return Oscillation(cycles, np.hypot(sine, cosine), np.arctan2(cosine, sine) % (2 * math.pi))


def cumulative(parts: Oscillation) -> tuple[NDArray[np.float64], ...]:
    """Return the distribution functions of frequency, amplitude and phase at these values, each `(series,)`."""
    spans = CYCLES, AMPLITUDES, (0.0, 2 * math.pi)
    return tuple(((one - low) / (high - low)).clip(0, 1) for one, (low, high) in zip(parts, spans, strict=True))


def _between(span: tuple[float, float], u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return uniform numbers in a span."""
    return span[0] + (span[1] - span[0]) * u


def _explained(
    x: NDArray[np.floating[Any]], cycles: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the squares that the best sines of these frequencies explain, and their sine and cosine parts."""
    angle = 2 * math.pi * cycles[:, None] * np.arange(LENGTH) / LENGTH
    sine, cosine = np.sin(angle), np.cos(angle)
    ss, cc, sc = (sine**2).sum(1), (cosine**2).sum(1), (sine * cosine).sum(1)
    xs, xc = (x * sine).sum(1), (x * cosine).sum(1)
    det = ss * cc - sc**2
    a, b = (cc * xs - sc * xc) / det, (ss * xc - sc * xs) / det
    return a * xs + b * xc, a, b
