"""A generator of pictures from noise, and the critic that tells them from real ones."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from unfog.networks.compact import AdaptiveBlock
from unfog.networks.conditioning import Cond
from unfog.networks.direct import Likelihood
from unfog.networks.layers import ChannelNorm, at_least, conv, zeroed
from unfog.runtime.brief import outline

COARSEST = 4
"""Sides are halved as long as they are even and reach this afterwards."""


def halvings(sides: tuple[int, ...]) -> int:
    """Return how often sides are halved."""
    times = 0
    while sides and all(side % 2 ** (times + 1) == 0 and side // 2 ** (times + 1) >= COARSEST for side in sides):
        times += 1
    return times


class PictureGenerator(nn.Module):
    """x = tanh(out(blocks(z))): from a coarse grid upwards, with scale and shift from z and the condition.

    Source: Karras et al. 2019, A Style-Based Generator Architecture, for scale and shift from a mapping of z.
    """

    def __init__(self, shape: tuple[int, ...], width: int, noise: int) -> None:
        """Draw pictures of a shape, `(channels, *space)`."""
        super().__init__()
        channels, *sides = shape
        dims, levels = len(sides), halvings(tuple(sides))
        self.noise, self.embedding_dim = noise, 4 * width
        wide = [2 * width] * levels + [width]
        self.coarse = (wide[0], *(side >> levels for side in sides))
        self.map_1, self.map_2 = nn.Linear(noise, self.embedding_dim), nn.Linear(self.embedding_dim, self.embedding_dim)
        self.start = nn.Linear(self.embedding_dim, math.prod(self.coarse))
        self.first, self.second = (
            nn.ModuleList(AdaptiveBlock(dims, one, self.embedding_dim, 0.0) for one in wide) for _ in range(2)
        )
        self.narrow = nn.ModuleList(conv(dims, before, after) for before, after in pairwise(wide))
        self.norm = ChannelNorm(width)
        self.out = conv(dims, width, channels)

    def forward(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """Map noise, `(batch, noise)`, to pictures in [-1, 1], `(batch, channels, *space)`."""
        embedding = self.map_1(z * torch.rsqrt((z**2).mean(1, keepdim=True) + 1e-8))
        if cond is not None and cond.vector is not None:
            embedding = embedding + cond.vector
        embedding = self.map_2(F.silu(embedding))
        h = self.start(F.silu(embedding)).reshape(len(z), *self.coarse)
        for level, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            if level:
                h = self.narrow[level - 1](F.interpolate(h, scale_factor=2.0))
            h = second(first(h, embedding), embedding)
        x: Tensor = self.out(self.norm(h, act=True)).tanh()
        return x


class Residual(nn.Module):
    """x + conv(act(conv(act(x)))): without norms, and with second derivatives everywhere."""

    def __init__(self, dims: int, channels: int, spectral: bool) -> None:
        """Keep `channels` channels; it begins as the identity, unless its weights are to be normalised."""
        super().__init__()
        self.conv1, self.conv2 = (conv(dims, channels, channels) for _ in range(2))
        if not spectral:
            zeroed(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, channels, *space)` to the same shape."""
        added: Tensor = self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, 0.2)), 0.2))
        return x + added


class PictureCritic(nn.Module):
    """One logit a picture, larger for real ones; a condition's vector is projected onto the features.

    Source: Huang et al. 2024, The GAN is dead; long live the GAN! (R3GAN), section 4, for blocks without norms;
    Miyato & Koyama 2018, cGANs with Projection Discriminator, eq. 4.
    """

    def __init__(self, shape: tuple[int, ...], width: int, embedding: int | None, spectral: bool) -> None:
        """Judge pictures of a shape, `(channels, *space)`, under conditions with vectors of length `embedding`."""
        super().__init__()
        channels, *sides = shape
        dims, levels = len(sides), halvings(tuple(sides))
        wide = [width] + [2 * width] * levels
        self.look = conv(dims, channels, width)
        self.blocks = nn.ModuleList(Residual(dims, one, spectral) for one in wide)
        self.widen = nn.ModuleList(conv(dims, before, after) for before, after in pairwise(wide))
        self.pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[dims]
        self.features = nn.Linear(wide[-1] * math.prod(side >> levels for side in sides), 4 * width)
        self.logit = nn.Linear(4 * width, 1)
        self.project = nn.Linear(embedding, 4 * width, bias=False) if embedding else None
        if spectral:
            for part in list(self.modules()):
                if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                    spectral_norm(part)

    def forward(self, x: Tensor, cond: Cond | None = None) -> Tensor:
        """Return the logits of pictures, `(batch,)`."""
        h = self.look(x)
        for level, block in enumerate(self.blocks):
            if level:
                h = self.widen[level - 1](self.pool(h, 2))
            h = block(h)
        h = F.leaky_relu(self.features(F.leaky_relu(h, 0.2).flatten(1)), 0.2)
        logit: Tensor = self.logit(h)[:, 0]
        if self.project is not None and cond is not None:
            logit = logit + (h * self.project(cond.vector)).sum(1) / math.sqrt(h.shape[1])
        return logit


class GAN(nn.Module):
    """A generator of pictures and a critic of them."""

    likelihood: ClassVar[Likelihood] = "none"

    __repr__ = outline

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        conditional: bool,
        width: int = 32,
        noise: int = 64,
        critic: int = 48,
        spectral: bool = False,
    ) -> None:
        """Build both.

        Args:
            shape: Of a picture, `(channels, *space)`.
            conditional: Whether there is a condition.
            width: Features of the generator at full resolution; the coarser ones have twice as many.
            noise: Numbers that a picture is made from.
            critic: Features of the critic at full resolution.
            spectral: Whether the critic's weights are divided by their largest singular values.

        Raises: ValueError: If a number is too small.
        Source: Miyato et al. 2018, Spectral Normalization for Generative Adversarial Networks.
        """
        super().__init__()
        at_least(1, width=width, noise=noise, critic=critic)
        self.generator = PictureGenerator(shape, width, noise)
        self.embedding_dim = self.generator.embedding_dim
        self.critic = PictureCritic(shape, critic, self.embedding_dim if conditional else None, spectral)
        self.noises: Sequence[tuple[int, ...]] = [(noise,)]
        self.uniforms: tuple[int, ...] | None = None

    def pictures(self, noise: list[Tensor], u: Tensor | None, cond: Cond | None = None) -> Tensor:
        """Return the pictures that the generator makes of noise, `(batch, numbers)`."""
        made: Tensor = self.generator(noise[0], cond)
        return made
