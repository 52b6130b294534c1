"""The autoencoder for latent diffusion, with the topology of diffusers' `AutoencoderKL`."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.layers import Halving, SelfAttention, at_least, conv, enlarged
from unfog.networks.unet import Norm, ResidualBlock, group_norm
from unfog.runtime.brief import outline

LEAST, MOST = -30.0, 20.0
"""Bounds to which log variances are clamped."""


class Posterior(NamedTuple):
    """A diagonal Gaussian.

    Attributes:
        mean: Means, `(batch, latent, *space)`.
        log_variance: Log variances, of the same shape.
    """

    mean: Tensor
    log_variance: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """Return mean + std·noise."""
        return self.mean + (self.log_variance / 2).exp() * noise

    def divergence(self) -> Tensor:
        """Return KL(posterior || N(0, 1)) = sum of (mean² + var - 1 - log var)/2 for each row, `(batch,)`, in nats.

        Source: Kingma & Welling 2014, Auto-Encoding Variational Bayes, appendix B.
        """
        terms = self.mean**2 + self.log_variance.exp() - 1 - self.log_variance
        return terms.flatten(1).sum(1) / 2


class Middle(nn.Module):
    """A residual block, single-head self-attention, and another residual block."""

    def __init__(self, dims: int, width: int, norm: Norm, attention: bool) -> None:
        """Keep `width` channels."""
        super().__init__()
        self.block1, self.block2 = ResidualBlock(dims, width, width, norm), ResidualBlock(dims, width, width, norm)
        self.attention = SelfAttention(norm(width), width, width) if attention else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, width, *space)` to the same shape."""
        output: Tensor = self.block2(self.attention(self.block1(x)))
        return output


class Encoder(nn.Module):
    """Residual blocks, level by level; each level halves the sides."""

    def __init__(
        self, dims: int, channels: int, outputs: int, widths: Sequence[int], blocks: int, norm: Norm, attention: bool
    ) -> None:
        """Map `channels` to `outputs` channels."""
        super().__init__()
        self.conv_in = conv(dims, channels, widths[0])
        self.levels, self.halving = nn.ModuleList(), nn.ModuleList()
        width = widths[0]
        for level, wide in enumerate(widths):
            row = [ResidualBlock(dims, width, wide, norm)]
            row += [ResidualBlock(dims, wide, wide, norm) for _ in range(blocks - 1)]
            self.levels.append(nn.Sequential(*row))
            width = wide
            if level < len(widths) - 1:
                self.halving.append(Halving(dims, wide, pad_behind=True))
        self.middle = Middle(dims, width, norm, attention)
        self.norm_out = norm(width)
        self.conv_out = conv(dims, width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, channels, *space)` to `(batch, outputs, *(space / factor))`."""
        h = self.conv_in(x)
        for level, row in enumerate(self.levels):
            h = row(h)
            if level < len(self.halving):
                h = self.halving[level](h)
        output: Tensor = self.conv_out(F.silu(self.norm_out(self.middle(h))))
        return output


class Decoder(nn.Module):
    """Residual blocks, level by level; each level doubles the sides."""

    def __init__(
        self, dims: int, channels: int, outputs: int, widths: Sequence[int], blocks: int, norm: Norm, attention: bool
    ) -> None:
        """Map `channels` to `outputs` channels; `widths` start at the finest level, as in the encoder."""
        super().__init__()
        width = widths[-1]
        self.conv_in = conv(dims, channels, width)
        self.middle = Middle(dims, width, norm, attention)
        self.levels, self.enlarging = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(widths))):
            wide = widths[level]
            row = [ResidualBlock(dims, width, wide, norm)]
            row += [ResidualBlock(dims, wide, wide, norm) for _ in range(blocks)]
            self.levels.append(nn.Sequential(*row))
            width = wide
            if level > 0:
                self.enlarging.append(conv(dims, wide, wide))
        self.norm_out = norm(width)
        self.conv_out = conv(dims, width, outputs)

    def forward(self, z: Tensor) -> Tensor:
        """Map `(batch, channels, *space)` to `(batch, outputs, *(space · factor))`."""
        h = self.middle(self.conv_in(z))
        for level, row in enumerate(self.levels):
            h = row(h)
            if level < len(self.enlarging):
                h = enlarged(h, self.enlarging[level])
        output: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return output


class Autoencoder(nn.Module):
    """Images to latents and back: z = (mean - shift)·scale, of unit variance in each channel.

    The encoder returns a diagonal Gaussian over a smaller space; the latent is its mean, with one shift and one scale
    per channel.

    Source: Rombach et al. 2022, section 3.1 and appendix G; Esser et al. 2021, Taming Transformers, table 7.
    """

    __repr__ = outline

    def __init__(
        self,
        channels: int,
        *,
        dims: int = 2,
        latent: int = 4,
        widths: Sequence[int] = (32, 64, 64),
        blocks: int = 1,
        groups: int = 32,
        attention: bool = True,
        quant: bool = True,
        post_quant: bool = True,
    ) -> None:
        """Build encoder and decoder.

        Args:
            channels: Channels of an image.
            dims: Space dimensions, 1, 2 or 3.
            latent: Channels of a latent.
            widths: Channels of each level, finest first; each further level halves the sides.
            blocks: Residual blocks per level of the encoder; the decoder has one more.
            groups: Groups of the group norms.
            attention: Whether the middle has self-attention.
            quant: Whether a 1×1 convolution follows the encoder.
            post_quant: Whether a 1×1 convolution precedes the decoder.

        Raises: ValueError: If a number is too small.
        """
        super().__init__()
        at_least(1, levels=len(widths), latent=latent, blocks=blocks, groups=groups)
        at_least(1, **{f"width {width}": width for width in widths})
        norm = partial(group_norm, groups=groups, epsilon=1e-6)
        self.factor = self.multiple = 2 ** (len(widths) - 1)
        self.channels, self.latent, self.dims = channels, latent, dims
        self.encoder = Encoder(dims, channels, 2 * latent, widths, blocks, norm, attention)
        self.decoder = Decoder(dims, latent, channels, widths, blocks, norm, attention)
        self.quant = conv(dims, 2 * latent, 2 * latent, kernel=1) if quant else nn.Identity()
        self.post_quant = conv(dims, latent, latent, kernel=1) if post_quant else nn.Identity()
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.zeros(latent, *[1] * dims))
        self.register_buffer("scale", torch.ones(latent, *[1] * dims))

    def posterior(self, x: Tensor) -> Posterior:
        """Return the posterior of images, `(batch, channels, *space)`, whose sides are multiples of `factor`."""
        mean, log_variance = self.quant(self.encoder(x)).float().chunk(2, dim=1)
        return Posterior(mean, log_variance.clamp(LEAST, MOST))

    def restore(self, mean: Tensor) -> Tensor:
        """Decode a mean or a draw of the posterior, not shifted and scaled."""
        output: Tensor = self.decoder(self.post_quant(mean))
        return output.float()

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of images, `(batch, latent, *(space / factor))`."""
        return (self.posterior(x).mean - self.shift) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        """Return the images of latents, `(batch, channels, *space)`."""
        return self.restore(z / self.scale + self.shift)

    @torch.inference_mode()
    def measure(self, pictures: Iterator[Tensor]) -> None:
        """Set shift and scale so that the latents of `pictures` have mean 0 and variance 1 in each channel.

        Raises: ValueError: If there are no images.
        """
        means = torch.cat([self.posterior(x).mean.cpu() for x in pictures]).double().transpose(0, 1).flatten(1)
        view = (-1, *[1] * self.dims)
        self.shift.copy_(means.mean(1).view(view))
        self.scale.copy_((1 / means.std(1).clamp(min=1e-6)).view(view))


def tiled(decode: Callable[[Tensor], Tensor], z: Tensor, factor: int, tile: int = 64, overlap: int = 16) -> Tensor:
    """Return decode(z) computed tile by tile, so that memory does not grow with the image.

    Neighbouring tiles overlap by `overlap` places or more and are blended there. A tile does not see beyond its edges,
    so the result differs slightly from decoding all at once.

    Args:
        decode: Maps `(batch, latent, *space)` to `(batch, channels, *(space · factor))`.
        z: Latents, `(batch, latent, *space)`.
        factor: Enlargement of each side by `decode`.
        tile: Side of a tile, in places of the latent.
        overlap: Places shared by two neighbours, fewer than half a tile.

    Returns: The decoded image.
    """
    sides = z.shape[2:]
    if max(sides) <= tile:
        return decode(z)
    total = torch.zeros([side * factor for side in sides])
    summed: Tensor | None = None
    for corner in product(*(_starts(side, tile, overlap) for side in sides)):
        part = decode(z[_window(corner, [tile] * len(corner))])
        fade = torch.ones(())
        for side in part.shape[2:]:
            place = torch.arange(side) + 0.5
            fade = fade[..., None] * torch.minimum(place, side - place).clamp(max=overlap * factor / 2)
        window = _window([first * factor for first in corner], part.shape[2:])
        if summed is None:
            summed = part.new_zeros(*part.shape[:2], *total.shape)
        summed[window] += part * fade.to(part)
        total[window] += fade
    assert summed is not None
    return summed / total.to(summed)


def _window(corner: Sequence[int], sides: Sequence[int]) -> tuple[Any, ...]:
    """Return the index of a window with this first corner and these sides."""
    return (..., *(slice(first, first + side) for first, side in zip(corner, sides, strict=True)))


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """Return the start of each tile; the first is 0 and the last tile ends at `side`."""
    if side <= tile:
        return [0]
    count = math.ceil((side - overlap) / (tile - overlap))
    return [round(place * (side - tile) / (count - 1)) for place in range(count)]
