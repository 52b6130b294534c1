"""The fast default for small pictures: two resolutions, channel norm, adaptive scale and shift."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.conditioning import Cond
from unfog.networks.factorised import Factorised
from unfog.networks.layers import (
    ChannelNorm,
    CrossAttention,
    SelfAttention,
    TimeEmbedding,
    at_least,
    concatenated,
    conv,
    gather,
    positions,
    spread,
    zeroed,
)
from unfog.runtime.brief import outline


class AdaptiveBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x))))·(1 + scale) + shift)), scale and shift from the embedding.

    Source: Dhariwal & Nichol 2021, section 3.1 (adaptive group norm); here a norm over channels.
    """

    def __init__(self, dims: int, channels: int, embedding: int, dropout: float) -> None:
        """Keep `channels` channels."""
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.conv1 = conv(dims, channels, channels)
        self.norm2 = ChannelNorm(channels, affine=False)
        self.modulation = zeroed(nn.Linear(embedding, 2 * channels))
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(conv(dims, channels, channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map `(batch, channels, *space)` to the same shape."""
        h = self.conv1(self.norm1(x, act=True))
        h = self.norm2(h, self.modulation(F.silu(embedding)), act=True)
        return torch.add(x, self.conv2(self.dropout(h)))


class Compact(nn.Module):
    """A small U-Net over patches: `blocks` blocks per level in encoder and decoder, and a middle with attention."""

    channels_last: ClassVar[bool] = True

    __repr__ = outline

    def __init__(
        self,
        channels: int,
        *,
        outputs: int | None = None,
        dims: int = 2,
        context: int | None = None,
        width: int = 32,
        patch: int = 1,
        blocks: int = 1,
        middle: int = 2,
        dropout: float = 0.0,
        factorised: bool = False,
    ) -> None:
        """Build the network.

        Args:
            channels: Channels of the state.
            outputs: Channels of the output; default: `channels`.
            dims: Space dimensions, 1, 2 or 3.
            context: Length of a condition token; None without tokens.
            width: Channels at the finer of the two resolutions; the coarser has twice as many.
            patch: Side of a patch; 1 means single pixels.
            blocks: Blocks per level, in the encoder and in the decoder.
            middle: Blocks with attention at the coarser resolution.
            dropout: Dropout inside the blocks.
            factorised: Whether attention is over space and then over time, the first of the dimensions.

        Raises: ValueError: If a number is too small, `width` is odd, or there is no time to factorise.
        """
        super().__init__()
        at_least(1, patch=patch)
        at_least(0, blocks=blocks, middle=middle)
        if factorised and dims < 2:
            raise ValueError("factorised attention needs time and space: two dimensions or more")
        self.embedding_dim = 4 * width
        self.multiple = 2 * patch
        self.time_embedding = TimeEmbedding(width, self.embedding_dim)
        wide = 2 * width

        def run(count: int, channels: int) -> nn.ModuleList:
            return nn.ModuleList(AdaptiveBlock(dims, channels, self.embedding_dim, dropout) for _ in range(count))

        self.patch_in = conv(dims, channels, width) if patch == 1 else gather(dims, channels, width, patch)
        self.encoder, self.encoder_coarse = run(blocks, width), run(blocks, wide)
        self.down = gather(dims, width, wide, 2)
        self.middle = run(middle, wide)

        def attention() -> nn.Module:
            return SelfAttention(ChannelNorm(wide), wide)

        self.attention = nn.ModuleList(Factorised(attention) if factorised else attention() for _ in range(middle))
        self.cross = nn.ModuleList(CrossAttention(wide, context) for _ in range(middle) if context)
        self.merge_coarse = conv(dims, 2 * wide, wide, kernel=1)
        self.decoder_coarse, self.decoder = run(blocks, wide), run(blocks, width)
        self.up = spread(dims, wide, width, 2)
        self.merge = conv(dims, 2 * width, width, kernel=1)
        self.norm_out = ChannelNorm(width)
        last = outputs or channels
        self.patch_out = zeroed(conv(dims, width, last) if patch == 1 else spread(dims, width, last, patch))

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Map `(batch, channels, *space)` and times `(batch,)` to an output with the same space."""
        embedding = self.time_embedding(time, cond)
        fine = h = self.patch_in(concatenated(x, cond))
        for block in self.encoder:
            fine = h = block(h, embedding)
        h = self.down(h)
        for block in self.encoder_coarse:
            h = block(h, embedding)
        coarse = h
        places = positions(tuple(h.shape[2:]), h.shape[1], h)  # attention by itself has no notion of position
        h = h + places.T.reshape(h.shape[1:])
        for index, (block, attention) in enumerate(zip(self.middle, self.attention, strict=True)):
            h = attention(block(h, embedding))
            if self.cross:
                h = self.cross[index](h, cond)
        h = self.merge_coarse(torch.cat([h, coarse], dim=1))
        for block in self.decoder_coarse:
            h = block(h, embedding)
        h = self.merge(torch.cat([self.up(h), fine], dim=1))
        for block in self.decoder:
            h = block(h, embedding)
        output: Tensor = self.patch_out(self.norm_out(h, act=True))
        return output
