"""Codecs map stored data to the diffusion space, about unit range, and back."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from unfog.networks.autoencoder import Autoencoder, tiled
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError


class Codec(Protocol):
    """Maps stored data to the diffusion space and back."""

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The range of encoded data, to which x0 is clipped; None if unbounded."""
        ...

    @property
    def bin_width(self) -> float | None:
        """The distance between neighbouring values of encoded data; None if continuous."""
        ...

    @property
    def plain(self) -> "Codec":
        """The codec without learned parts, for comparing stored data; itself if nothing is learned."""
        ...

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of an encoded row, given that of a stored one."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Map stored data to float32 of about unit range."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Map samples back to stored data."""
        ...

    def compared(self, x: Tensor) -> Tensor:
        """Return stored data as features are computed of them: encoded, or of sounds the spectrograms."""
        ...


class Unlearned(ABC):
    """Shared by codecs without learned parts."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Map stored data to float32 of about unit range."""

    def build(self, stored: tuple[int, ...]) -> Self:
        """Return the codec itself, whatever the shape of a stored row."""
        return self

    @property
    def plain(self) -> Self:
        """The codec itself."""
        return self

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the same shape."""
        return stored

    def compared(self, x: Tensor) -> Tensor:
        """Return encoded data."""
        return self.encode(x)


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
        """Map [-1, 1] to 0..255, clamped."""
        return ((z.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Identity(Unlearned):
    """x0 = x: for data that already has about unit variance."""

    bounds: tuple[float, float] | None = field(default=None, init=False)
    bin_width: float | None = field(default=None, init=False)

    def encode(self, x: Tensor) -> Tensor:
        """Return the data as float32."""
        return x.float()

    def decode(self, z: Tensor) -> Tensor:
        """Return the sample as float32."""
        return z.float()


PORTION = 16
"""Images per batch of the autoencoder."""
TILE = 96
"""Largest side of a latent that is decoded in one piece."""


@dataclass(frozen=True)
class Latents:
    """Pixels to latents of a trained autoencoder, about unit variance in each channel, and back.

    Images whose sides are not multiples of its factor are padded by repeating the last row and column; decoding crops
    them again.

    Attributes:
        autoencoder: The autoencoder, with its weights, shift and scale.
        stored: Shape of a stored image, `(channels, height, width)`.
    """

    autoencoder: Autoencoder
    stored: tuple[int, ...]
    bounds: tuple[float, float] | None = field(default=None, init=False)
    bin_width: float | None = field(default=None, init=False)

    __repr__ = brief

    @property
    def plain(self) -> Codec:
        """The pixel codec."""
        return Pixels()

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a latent: sides divided by `factor`, rounded up."""
        factor = self.autoencoder.factor
        return (self.autoencoder.latent, *(-(-side // factor) for side in stored[1:]))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Map images, 0..255, to latents."""
        self.autoencoder.to(x.device)
        x = self.plain.encode(x)
        factor = self.autoencoder.factor
        padding: list[int] = []  # as F.pad takes it: last axis first, before and after
        for side in reversed(x.shape[2:]):
            padding += [0, -side % factor]
        if any(padding):
            x = F.pad(x, padding, mode="replicate")
        return torch.cat([self.autoencoder.encode(part) for part in torch.split(x, PORTION)])

    @torch.no_grad()
    def compared(self, x: Tensor) -> Tensor:
        """Return encoded images."""
        return self.plain.encode(x)

    def decode(self, z: Tensor) -> Tensor:
        """Map latents to images, 0..255."""
        self.autoencoder.to(z.device)
        parts = (
            tiled(self.autoencoder.decode, part, self.autoencoder.factor, TILE) for part in torch.split(z, PORTION)
        )
        x = torch.cat([self.plain.decode(part) for part in parts])
        inside: tuple[Any, ...] = (..., *(slice(side) for side in self.stored[1:]))
        return x[inside]
