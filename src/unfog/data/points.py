"""Points in the plane: three small data sets on which trajectories can be plotted."""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from unfog.data.source import Data, InMemory, split
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import stream

Shape = Literal["moons", "spiral", "checkerboard"]


def points(shape: Shape = "moons", count: int = 10_000, noise: float = 0.05) -> Data:
    """Draw labelled 2-D points, scaled to zero mean and unit variance.

    Args:
        shape: `"moons"` (two classes), `"spiral"` (two arms) or `"checkerboard"` (two colours of squares).
        count: Number of points.
        noise: Standard deviation of the added Gaussian noise, before scaling.

    Returns: The data set, a tenth of it held out.
    Raises: UserError: If `count` is less than ten.
    """
    if count < 10:
        raise UserError(f"data.count must be 10 or more, not {count}")
    draw = stream(0, f"points/{shape}")
    labels = np.arange(count) % 2
    x = _SHAPES[shape](draw, labels)
    x = x + noise * draw.standard_normal(x.shape)
    x = x - x.mean(0)
    x = x / x.std()
    names = {"moons": ("upper", "lower"), "spiral": ("first arm", "second arm"), "checkerboard": ("even", "odd")}
    return split(InMemory(torch.from_numpy(x).float(), torch.from_numpy(labels), names[shape]), 0.1)


def _moons(draw: np.random.Generator, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    angle = math.pi * draw.random(len(labels))
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], axis=1)
    moons: NDArray[np.float64] = np.where(labels[:, None] == 0, upper, lower)
    return moons


def _spiral(draw: np.random.Generator, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    turn = np.sqrt(draw.random(len(labels)))  # the square root makes the density uniform along the arm
    angle = 3 * math.pi * turn + math.pi * labels
    return 2 * np.stack([turn * np.cos(angle), turn * np.sin(angle)], axis=1)


def _checkerboard(draw: np.random.Generator, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    column, pair = draw.integers(0, 4, len(labels)), draw.integers(0, 2, len(labels))
    row = 2 * pair + (column + labels) % 2
    return np.stack([column, row], axis=1) + draw.random((len(labels), 2)) - 2.0


_SHAPES: dict[str, Callable[[np.random.Generator, NDArray[np.int64]], NDArray[np.float64]]] = {
    "moons": _moons,
    "spiral": _spiral,
    "checkerboard": _checkerboard,
}
