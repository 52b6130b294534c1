"""Between what is stored and what is diffused: a codec maps data to about unit range and back."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Codec(Protocol):
    """Maps stored data to the space of the diffusion, and back."""

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The range of encoded data, where it has one: what clipping holds x0 to."""
        ...

    @property
    def bin_width(self) -> float | None:
        """The distance of neighbouring values of encoded data, None where they are continuous."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Map stored data to float32 of about unit range."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Map a sample back to what is stored."""
        ...


@dataclass(frozen=True)
class Pixels:
    """uint8 pixels v to x0 = v/127.5 - 1 in [-1, 1], and back by rounding."""

    bounds: tuple[float, float] | None = field(default=(-1.0, 1.0), init=False)
    bin_width: float | None = field(default=2 / 255, init=False)

    def encode(self, x: Tensor) -> Tensor:
        """Map 0..255 to [-1, 1]."""
        return x.float() / 127.5 - 1

    def decode(self, z: Tensor) -> Tensor:
        """Map [-1, 1] to 0..255, values beyond it to the ends."""
        return ((z.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Identity:
    """Data that already has about unit variance, left as it is."""

    bounds: tuple[float, float] | None = field(default=None, init=False)
    bin_width: float | None = field(default=None, init=False)

    def encode(self, x: Tensor) -> Tensor:
        """Return the data as float32."""
        return x.float()

    def decode(self, z: Tensor) -> Tensor:
        """Return the sample as float32."""
        return z.float()
