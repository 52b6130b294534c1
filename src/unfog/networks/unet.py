"""The U-Net of the ecosystem: the topology of DDPM as diffusers' `UNet2DModel` lays it out."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.conditioning import Cond
from unfog.networks.layers import (
    CrossAttention,
    SelfAttention,
    TimeEmbedding,
    at_least,
    beside,
    conv,
    enlarged,
    over_space,
)


def group_norm(channels: int, groups: int = 32) -> nn.GroupNorm:
    """Return a group norm with `groups` groups, or the most that divide both numbers."""
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps=1e-5)


class ResidualBlock(nn.Module):
    """shortcut(x) + conv(SiLU(norm(conv(SiLU(norm(x))) + linear(SiLU(embedding)))))."""

    def __init__(self, dims: int, inputs: int, outputs: int, embedding: int, dropout: float) -> None:
        """Map `inputs` to `outputs` channels."""
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = conv(dims, inputs, outputs)
        self.time_emb_proj = nn.Linear(embedding, outputs)
        self.norm2 = group_norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(dims, outputs, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else conv(dims, inputs, outputs, kernel=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map `(batch, inputs, *space)` to `(batch, outputs, *space)`."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + over_space(self.time_emb_proj(F.silu(embedding)), h)
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return torch.add(self.shortcut(x), h)


class Stage(nn.Module):
    """A residual block, and where asked self-attention behind it, and cross-attention to the condition's tokens."""

    def __init__(self, block: ResidualBlock, channels: int, attention: bool, head: int, context: int | None) -> None:
        """Put attention over `channels` channels behind `block` if `attention`, to `context` entries if there are."""
        super().__init__()
        self.block = block
        self.attention = SelfAttention(group_norm(channels), channels, head) if attention else nn.Identity()
        self.cross = CrossAttention(channels, context, head) if attention and context else None

    def forward(self, x: Tensor, embedding: Tensor, cond: Cond | None) -> Tensor:
        """Map `(batch, inputs, *space)` to `(batch, channels, *space)`."""
        h: Tensor = self.attention(self.block(x, embedding))
        return h if self.cross is None else self.cross(h, cond)


class UNet(nn.Module):
    """Encoder, middle and decoder with skip connections at every residual block.

    Source: Ho et al. 2020, appendix B.
    """

    channels_last: ClassVar[bool] = False

    def __init__(
        self,
        channels: int,
        *,
        outputs: int | None = None,
        dims: int = 2,
        context: int | None = None,
        widths: Sequence[int] = (32, 64, 64),
        blocks: int = 2,
        attention: Sequence[bool] = (False, True, True),
        head: int = 32,
        dropout: float = 0.0,
    ) -> None:
        """Build the network.

        Args:
            channels: Channels of the state.
            outputs: Channels of the output; as many if left away.
            dims: Space dimensions, 1, 2 or 3.
            context: Entries of a token of the condition; None for conditions without tokens.
            widths: Channels of each level, from the finest; each further level halves the sides.
            blocks: Residual blocks of each level.
            attention: Which levels attend.
            head: Channels of one attention head.
            dropout: Dropout inside the residual blocks.

        Raises: ValueError: If `attention` does not name every level, or a number is too small.
        """
        super().__init__()
        if len(attention) != len(widths):
            raise ValueError(f"attention names {len(attention)} levels where widths has {len(widths)}")
        at_least(1, levels=len(widths), blocks=blocks, head=head, **{f"width {width}": width for width in widths})
        self.embedding_dim = 4 * widths[0]
        self.multiple = 2 ** (len(widths) - 1)
        self.time_embedding = TimeEmbedding(widths[0], self.embedding_dim)
        self.conv_in = conv(dims, channels, widths[0])

        def stage(inputs: int, outputs: int, attends: bool) -> Stage:
            block = ResidualBlock(dims, inputs, outputs, self.embedding_dim, dropout)
            return Stage(block, outputs, attends, head, context)

        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        skips, width, last = [widths[0]], widths[0], len(widths) - 1
        for level, wide in enumerate(widths):
            for _ in range(blocks):
                self.down.append(stage(width, wide, attention[level]))
                skips.append(width := wide)
            if level < last:
                self.downsample.append(conv(dims, width, width, stride=2))
                skips.append(width)
        self.middle = nn.ModuleList([stage(width, width, True), stage(width, width, False)])
        for level in reversed(range(len(widths))):
            for _ in range(blocks + 1):
                self.up.append(stage(width + skips.pop(), widths[level], attention[level]))
                width = widths[level]
            if level > 0:
                self.upsample.append(conv(dims, width, width))
        self.norm_out = group_norm(width)
        self.conv_out = conv(dims, width, outputs or channels)
        self.blocks = blocks

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Map `(batch, channels, *space)` and times `(batch,)` to an output on the same places."""
        embedding = self.time_embedding(time, cond)
        h = self.conv_in(beside(x, cond))
        skips = [h]
        for index, stage in enumerate(self.down):
            skips.append(h := stage(h, embedding, cond))
            level, place = divmod(index, self.blocks)
            if place == self.blocks - 1 and level < len(self.downsample):
                skips.append(h := self.downsample[level](h))
        for stage in self.middle:
            h = stage(h, embedding, cond)
        for index, stage in enumerate(self.up):
            h = stage(torch.cat([h, skips.pop()], dim=1), embedding, cond)
            level, place = divmod(index, self.blocks + 1)
            if place == self.blocks and level < len(self.upsample):
                h = enlarged(h, self.upsample[level])
        output: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return output
