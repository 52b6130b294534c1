"""A hierarchical variational autoencoder: latents at two resolutions, the finer ones given the coarser ones."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from unfog.networks.compact import AdaptiveBlock
from unfog.networks.conditioning import Cond
from unfog.networks.direct import Likelihood
from unfog.networks.layers import ChannelNorm, at_least, conv, gather, spread, zeroed
from unfog.networks.pixels import PixelDistribution
from unfog.runtime.brief import outline

LEVELS = 2
"""Resolutions with latents: a quarter and a half of the sides."""
LEAST, MOST = -6.0, 6.0
"""The range of log standard deviations."""


class Explained(NamedTuple):
    """What the model makes of pictures.

    Attributes:
        given: Parameters of the pixels, `(batch, parameters, *space)`.
        divergence: KL(q ‖ p) of the latents of each level in nats, `(batch, levels)`, coarse first.
    """

    given: Tensor
    divergence: Tensor


class Level(nn.Module):
    """Latents at one resolution: p(z | d) and q(z | d, picture), and what they add to d.

    q is given as its difference from p, mean and log standard deviation alike; both start as standard normals.

    Source: Vahdat & Kautz 2020, NVAE, section 3.2.
    """

    def __init__(self, dims: int, width: int, latent: int, embedding: int) -> None:
        """Keep `latent` numbers at each place."""
        super().__init__()
        self.before, self.after = (AdaptiveBlock(dims, width, embedding, 0.0) for _ in range(2))
        self.prior = zeroed(conv(dims, width, 2 * latent, kernel=1))
        self.mixed = AdaptiveBlock(dims, width, embedding, 0.0)
        self.merge = conv(dims, 2 * width, width, kernel=1)
        self.posterior = zeroed(conv(dims, width, 2 * latent, kernel=1))
        self.added = conv(dims, latent, width, kernel=1)

    def forward(self, d: Tensor, embedding: Tensor, noise: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return d with the latents added, and KL(q ‖ p), `(batch,)`.

        Args:
            d: State of the decoder, `(batch, width, *space)`.
            embedding: The condition, `(batch, embedding)`.
            noise: Standard normal noise, `(batch, latent, *space)`.
            seen: State of the encoder at this resolution; None draws from p.
        """
        d = self.before(d, embedding)
        mean, spread = self.prior(d).float().chunk(2, dim=1)
        spread = spread.clamp(LEAST, MOST)
        divergence = noise.new_zeros(len(noise))
        if seen is not None:
            h = self.mixed(self.merge(torch.cat([d, seen], 1)), embedding)
            further, wider = self.posterior(h).float().chunk(2, dim=1)
            wider = wider.clamp(LEAST, MOST)
            divergence = gaussian_divergence(further, wider, spread).flatten(1).sum(1)
            mean, spread = mean + further, spread + wider
        z = mean + spread.exp() * noise
        return self.after(d + self.added(z.to(d.dtype)), embedding), divergence


def gaussian_divergence(further: Tensor, wider: Tensor, spread: Tensor) -> Tensor:
    """Return KL(N(m + further, exp(spread + wider)²) ‖ N(m, exp(spread)²)) of each number, in nats."""
    return ((further / spread.exp()) ** 2 + (2 * wider).exp()) / 2 - wider - 0.5


class Ladder(nn.Module):
    """log p(x) >= E[log p(x | z)] - sum of KL(q(z_l | x, z_<l) ‖ p(z_l | z_<l)), z_1 coarse and z_2 given it.

    Source: Sønderby et al. 2016, Ladder Variational Autoencoders; Vahdat & Kautz 2020, NVAE.
    """

    likelihood: ClassVar[Likelihood] = "bound"
    multiple: ClassVar[int] = 2**LEVELS

    __repr__ = outline

    def __init__(self, shape: tuple[int, ...], pixels: PixelDistribution, *, width: int = 32, latent: int = 8) -> None:
        """Build the network.

        Args:
            shape: Of a picture, `(channels, *space)`, its sides multiples of `multiple`.
            pixels: The distribution of a pixel.
            width: Features at full resolution; the coarser ones have twice as many.
            latent: Numbers of a latent at each place.

        Raises: ValueError: If a number is too small, or a side no multiple.
        """
        super().__init__()
        at_least(1, width=width, latent=latent)
        channels, *sides = shape
        if any(side % self.multiple for side in sides):
            raise ValueError(f"sides must be multiples of {self.multiple}")
        dims, wide = len(sides), 2 * width
        self.pixels = pixels
        coarse = [tuple(side // factor for side in sides) for factor in (4, 2)]
        self.embedding_dim = embedding = 4 * width
        self.unconditional = nn.Parameter(torch.zeros(embedding))
        self.look = conv(dims, channels, width)
        self.seeing = nn.ModuleList(AdaptiveBlock(dims, one, embedding, 0.0) for one in (width, wide, wide))
        self.halving = nn.ModuleList(gather(dims, one, wide, 2) for one in (width, wide))
        self.start = nn.Parameter(torch.zeros(1, wide, *coarse[0]))
        self.levels = nn.ModuleList(Level(dims, wide, latent, embedding) for _ in range(LEVELS))
        self.doubling = nn.ModuleList(spread(dims, wide, one, 2) for one in (wide, width))
        self.last = AdaptiveBlock(dims, width, embedding, 0.0)
        self.norm = ChannelNorm(width)
        self.out = zeroed(conv(dims, width, pixels.parameters(channels)))
        self.noises: Sequence[tuple[int, ...]] = [(latent, *sides) for sides in coarse]
        self.uniforms: tuple[int, ...] | None = (pixels.uniforms(channels), *sides)

    def forward(self, noise: list[Tensor], cond: Cond | None = None, x: Tensor | None = None) -> Explained:
        """Return what is made of pictures, or without any of latents drawn from the prior.

        Args:
            noise: Standard normal noise of each level, `(batch, *shape)`, see `noises`.
            cond: The condition.
            x: Pictures, `(batch, channels, *space)`.
        """
        embedding = self.unconditional.expand(len(noise[0]), -1)
        if cond is not None and cond.vector is not None:
            embedding = embedding + cond.vector
        seen = [None, None] if x is None else self._seen(x, embedding)
        d, divergences = self.start.expand(len(noise[0]), *self.start.shape[1:]), []
        for level, double, own, looked in zip(self.levels, self.doubling, noise, seen, strict=True):
            d, divergence = level(d, embedding, own, looked)
            d = double(d)
            divergences.append(divergence)
        given = self.out(self.norm(self.last(d, embedding), act=True))
        return Explained(given, torch.stack(divergences, 1))

    def bound(self, x: Tensor, noise: list[Tensor], cond: Cond | None = None, share: float = 1.0) -> Tensor:
        """Return log p(x | z) - share·KL of pictures in nats, `(batch,)`: a bound of log p(x) with a share of 1."""
        found: Explained = self(noise, cond, x)
        restored = self.pixels.log_prob(found.given, x).flatten(1).sum(1)
        return restored - share * found.divergence.sum(1)

    def log_prob(self, x: Tensor, noise: list[Tensor], cond: Cond | None = None) -> Tensor:
        """Return a draw of the bound, see `bound`."""
        return self.bound(x, noise, cond)

    def pictures(self, noise: list[Tensor], u: Tensor | None, cond: Cond | None = None) -> Tensor:
        """Return pictures of latents that are drawn from the prior, without the noise of their pixels."""
        assert u is not None
        return self.pixels.shown(self(noise, cond).given, u)

    def _seen(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """Return the states of the encoder at the resolutions of the latents, coarse first."""
        h = self.seeing[0](self.look(x), embedding)
        states = []
        for halve, block in zip(self.halving, list(self.seeing)[1:], strict=True):
            h = block(halve(h), embedding)
            states.append(h)
        return states[::-1]
