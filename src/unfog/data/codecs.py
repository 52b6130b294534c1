"""Between what is stored and what is diffused: a codec maps data to about unit range and back."""

from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from unfog.networks.autoencoder import Autoencoder, tiled
from unfog.runtime.errors import UserError


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

    @property
    def plain(self) -> "Codec":
        """The codec without what was learned, for comparing what is stored: itself, where nothing was."""
        ...

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of an encoded row from that of a stored one."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Map stored data to float32 of about unit range."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Map a sample back to what is stored."""
        ...


class Unlearned:
    """What codecs share of which nothing was learned."""

    @property
    def plain(self) -> Self:
        """The codec itself."""
        return self

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the same shape."""
        return stored


@dataclass(frozen=True)
class Pixels(Unlearned):
    """uint8 pixels v to x0 = v/127.5 - 1 in [-1, 1], and back by rounding."""

    bounds: tuple[float, float] | None = field(default=(-1.0, 1.0), init=False)
    bin_width: float | None = field(default=2 / 255, init=False)

    def encode(self, x: Tensor) -> Tensor:
        """Map 0..255 to [-1, 1].

        Raises: UserError: For floating-point data, which are on another scale.
        """
        if x.is_floating_point():
            raise UserError(
                "the codec 'pixels' takes whole numbers from 0 to 255, not floating-point data: use the codec "
                "'identity' for data that already have about unit variance"
            )
        return x.float() / 127.5 - 1

    def decode(self, z: Tensor) -> Tensor:
        """Map [-1, 1] to 0..255, values beyond it to the ends."""
        return ((z.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Identity(Unlearned):
    """Data that already has about unit variance, left as it is."""

    bounds: tuple[float, float] | None = field(default=None, init=False)
    bin_width: float | None = field(default=None, init=False)

    def encode(self, x: Tensor) -> Tensor:
        """Return the data as float32."""
        return x.float()

    def decode(self, z: Tensor) -> Tensor:
        """Return the sample as float32."""
        return z.float()


PORTION = 16
"""Pictures that an autoencoder works on at a time."""
TILE = 96
"""Places of a latent's side up to which it is decoded at once."""


@dataclass(frozen=True)
class Latents:
    """Pixels through a trained autoencoder, about unit variance in each channel, and back.

    Pictures whose sides are no multiples of its factor are continued by their last row and column, and cut back.

    Attributes:
        autoencoder: With its weights, shift and scale.
        stored: Shape of a stored picture, `(channels, height, width)`.
    """

    autoencoder: Autoencoder
    stored: tuple[int, ...]
    bounds: tuple[float, float] | None = field(default=None, init=False)
    bin_width: float | None = field(default=None, init=False)

    @property
    def plain(self) -> Codec:
        """The codec of the pixels."""
        return Pixels()

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a latent: `factor` times smaller sides, rounded up."""
        factor = self.autoencoder.factor
        return (self.autoencoder.latent, *(-(-side // factor) for side in stored[1:]))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Map pictures, 0..255, to latents."""
        self.autoencoder.to(x.device)
        x = self.plain.encode(x)
        factor = self.autoencoder.factor
        behind = [amount for side in reversed(x.shape[2:]) for amount in (0, -side % factor)]
        if any(behind):
            x = F.pad(x, behind, mode="replicate")
        return torch.cat([self.autoencoder.encode(part) for part in torch.split(x, PORTION)])

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Map latents to pictures, 0..255."""
        self.autoencoder.to(z.device)
        parts = (
            tiled(self.autoencoder.decode, part, self.autoencoder.factor, TILE) for part in torch.split(z, PORTION)
        )
        x = torch.cat([self.plain.decode(part) for part in parts])
        inside: tuple[Any, ...] = (..., *(slice(side) for side in self.stored[1:]))
        return x[inside]
