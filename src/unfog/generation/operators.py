"""What is measured of data: linear maps of clean rows, `(batch, channels, *space)`, which torch can differentiate."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unfog.runtime.errors import UserError

Operator = Callable[[Tensor], Tensor]
"""A linear map of clean data, `(batch, *shape)`, to what is measured of them, `(batch, ...)`."""


def _weights(deviation: float) -> Tensor:
    """Return the weights of a Gaussian blur, up to three deviations, with the sum 1."""
    places = torch.arange(-math.ceil(3 * deviation), math.ceil(3 * deviation) + 1, dtype=torch.float64)
    weights = torch.exp(-(places**2) / (2 * deviation**2))
    return weights / weights.sum()


def _along(x: Tensor, matrix: Callable[[int], Tensor]) -> Tensor:
    """Multiply each axis behind batch and channels by a matrix, made for its length."""
    for axis in range(2, x.ndim):
        x = (x.movedim(axis, -1) @ matrix(x.shape[axis]).to(x).T).movedim(-1, axis)
    return x


@dataclass(frozen=True)
class Blur:
    """A Gaussian blur along all axes of space; beyond an edge its values are repeated.

    Attributes:
        deviation: Of the Gaussian, in places.
    """

    deviation: float

    def __post_init__(self) -> None:
        """Check the deviation."""
        if not (0 < self.deviation <= 1000):
            raise UserError(f"a blur has a standard deviation above 0 and up to 1,000 places, not {self.deviation}")

    def __call__(self, x: Tensor) -> Tensor:
        """Blur rows, `(batch, channels, *space)`."""
        return _along(x, self._matrix)

    def _matrix(self, length: int) -> Tensor:
        """Return the blur of an axis."""
        weights = _weights(self.deviation)
        reach = len(weights) // 2
        matrix = torch.zeros(length, length, dtype=torch.float64)
        for place in range(length):
            taken = torch.arange(place - reach, place + reach + 1).clamp(0, length - 1)
            matrix[place].index_add_(0, taken, weights)
        return matrix


@dataclass(frozen=True)
class Downsample:
    """The mean of each block of `factor` places along all axes of space.

    Attributes:
        factor: 2 or more; it divides the sides.
    """

    factor: int

    def __post_init__(self) -> None:
        """Check the factor."""
        if isinstance(self.factor, bool) or self.factor != int(self.factor) or self.factor < 2:
            raise UserError(f"downsampling is by a whole factor of 2 or more, not {self.factor}")

    def __call__(self, x: Tensor) -> Tensor:
        """Downsample rows, `(batch, channels, *space)`.

        Raises: UserError: If the factor does not divide a side.
        """
        if any(side % self.factor for side in x.shape[2:]):
            sides = "×".join(map(str, x.shape[2:]))
            raise UserError(f"sides of {sides} cannot be divided by {self.factor}: choose a factor that divides them")
        for axis in range(2, x.ndim):
            x = x.reshape(*x.shape[:axis], -1, self.factor, *x.shape[axis + 1 :]).mean(axis + 1)
        return x


@dataclass(frozen=True)
class Masked:
    """Some places, the others being 0.

    Attributes:
        known: 1 where a place is measured, 0 where it is not; broadcast to a row.
    """

    known: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Mask rows, `(batch, *shape)`."""
        return x * self.known.to(x)


@dataclass(frozen=True)
class Crop:
    """A window of each row.

    Attributes:
        first: First place along each axis of space.
        sides: Places along each.
    """

    first: tuple[int, ...]
    sides: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Crop rows, `(batch, channels, *space)`.

        Raises: UserError: If the window does not lie within them.
        """
        space = x.shape[2:]
        ends = [first + side for first, side in zip(self.first, self.sides, strict=True)]
        if len(ends) != len(space) or min(self.first) < 0 or any(e > s for e, s in zip(ends, space, strict=True)):
            raise UserError(f"a window from {self.first} to {tuple(ends)} does not lie within {tuple(space)}")
        for axis, (first, side) in enumerate(zip(self.first, self.sides, strict=True), 2):
            x = x.narrow(axis, first, side)
        return x


@dataclass(frozen=True)
class Kernel:
    """A correlation with a kernel along the two axes of pictures; beyond an edge their values are repeated.

    Attributes:
        weights: `(height, width)`, both odd.
    """

    weights: Tensor

    def __post_init__(self) -> None:
        """Check the sides."""
        if self.weights.ndim != 2 or any(side % 2 == 0 for side in self.weights.shape):
            raise UserError(
                f"a kernel has two odd sides, such as 5×5, so that it has a middle, not {tuple(self.weights.shape)}"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Filter pictures, `(batch, channels, height, width)`."""
        height, width = (side // 2 for side in self.weights.shape)
        around = torch.nn.functional.pad(x, (width, width, height, height), mode="replicate")
        flat = around.flatten(0, 1)[:, None]
        return torch.nn.functional.conv2d(flat, self.weights.to(x)[None, None]).reshape(x.shape)
