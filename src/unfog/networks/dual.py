"""Encoders of pictures and texts, whose embeddings of what belongs together are near each other, and their use."""

import math
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.conditioning import Cond, TextEncoder
from unfog.networks.layers import ChannelNorm, at_least, conv, gather
from unfog.runtime.brief import outline

POOL = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
SHARPEST = 100.0
"""The largest factor of the cosines in the loss."""


class Block(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x))))))."""

    def __init__(self, dims: int, channels: int) -> None:
        """Keep `channels` channels."""
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.conv1, self.conv2 = conv(dims, channels, channels), conv(dims, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, channels, *space)` to the same shape."""
        h = self.conv1(self.norm1(x, act=True))
        return torch.add(x, self.conv2(self.norm2(h, act=True)))


class Tower(nn.Module):
    """Pictures to embeddings: levels of half the sides, pooled to 4 places along each, through two linear layers.

    The places are kept apart, so that an embedding tells what is left of what.
    """

    channels_last: ClassVar[bool] = True
    PLACES: ClassVar[int] = 4

    __repr__ = outline

    def __init__(self, channels: int, *, dims: int = 2, width: int = 32, levels: int = 3, dim: int = 128) -> None:
        """Build the tower.

        Args:
            channels: Channels of a picture.
            dims: Space dimensions, 1, 2 or 3.
            width: Channels of the first level, of half the sides; each further one has twice as many.
            levels: How often the sides are halved.
            dim: Length of an embedding.

        Raises: ValueError: If a number is too small.
        """
        super().__init__()
        at_least(1, levels=levels, dim=dim)
        self.embedding_dim, self.multiple, self.dim = width, 2**levels, dim
        widths = [channels, *(width << level for level in range(levels))]
        self.halving = nn.ModuleList(gather(dims, widths[i], widths[i + 1], 2) for i in range(levels))
        self.blocks = nn.ModuleList(Block(dims, widths[i + 1]) for i in range(levels))
        self.norm = ChannelNorm(widths[-1])
        self.pool = POOL[dims - 1](self.PLACES)
        self.linear_1, self.linear_2 = nn.Linear(widths[-1] * self.PLACES**dims, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, channels, *space)` to embeddings, `(batch, dim)`."""
        for halve, block in zip(self.halving, self.blocks, strict=True):
            x = block(halve(x))
        h = F.silu(self.linear_1(self.pool(self.norm(x, act=True)).flatten(1)))
        found: Tensor = self.linear_2(h)
        return found


class DualEncoder(nn.Module):
    """A tower for pictures, an encoder of texts, and the factor of their cosines in the loss.

    Source: Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision (CLIP).
    """

    def __init__(self, tower: Tower, words: TextEncoder) -> None:
        """Join the two; the text encoder's vectors are as long as the tower's embeddings."""
        super().__init__()
        self.tower, self.words = tower, words
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.tower.dim

    @property
    def sharpness(self) -> Tensor:
        """The factor of the cosines."""
        return self.scale.exp().clamp(max=SHARPEST)

    def pictures(self, x0: Tensor) -> Tensor:
        """Return the embeddings of pictures, encoded as the codec does, `(batch, dim)`, of length 1."""
        return F.normalize(self.tower(x0).float(), dim=1)

    def texts(self, words: Tensor) -> Tensor:
        """Return the embeddings of texts, `(batch, length)` of integers, as `(batch, dim)`, of length 1."""
        vector = self.words(words).vector
        return F.normalize(cast(Tensor, vector).float(), dim=1)


class MeaningEmbedding(nn.Module):
    """What a picture shows, a vector of numbers, as a vector for the time embedding and as a few tokens.

    Both are linear maps of the same features, SiLU(linear(c)).

    Source: Ramesh et al. 2022, Hierarchical Text-Conditional Image Generation with CLIP Latents, section 2.1.
    """

    WIDE: ClassVar[int] = 4

    def __init__(self, numbers: int, dim: int, *, tokens: int, context: int) -> None:
        """Map `numbers` numbers of unit variance to a vector of length `dim`, and to tokens of length `context`."""
        super().__init__()
        self.tokens = tokens
        self.features = nn.Linear(numbers, self.WIDE * numbers)
        self.linear = nn.Linear(self.WIDE * numbers, dim)
        self.words = nn.Linear(self.WIDE * numbers, tokens * context)
        self.norm = nn.LayerNorm(context)
        self.missing = nn.Parameter(torch.zeros(numbers))

    def forward(self, condition: Tensor, drop: Tensor | None = None) -> Cond:
        """Embed numbers, `(batch, numbers)`."""
        given = condition.float() if drop is None else torch.where(drop[:, None], self.missing, condition.float())
        h = F.silu(self.features(given))
        tokens = self.norm(self.words(h).view(len(h), self.tokens, -1))
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Cond(vector=self.linear(h), tokens=tokens, mask=mask)

    def null(self, batch: int) -> Cond:
        """Return the null condition for a batch."""
        return self.forward(self.missing.expand(batch, -1))
