"""The U-Net of DDPM, with the topology of diffusers' `UNet2DModel`."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.conditioning import Cond
from unfog.networks.layers import (
    CrossAttention,
    Halving,
    SelfAttention,
    TimeEmbedding,
    at_least,
    concatenated,
    conv,
    enlarged,
    over_space,
)
from unfog.runtime.brief import outline

Norm = Callable[[int], nn.Module]
"""Builds a norm for a number of channels."""
Attends = Callable[[int, int | None], tuple[nn.Module, nn.Module | None]]
"""(channels, level) -> self-attention and cross-attention after a block; the level of the middle is None."""


def group_norm(channels: int, groups: int = 32, epsilon: float = 1e-5) -> nn.GroupNorm:
    """Return a group norm with gcd(groups, channels) groups."""
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps=epsilon)


class ResidualBlock(nn.Module):
    """shortcut(x) + conv(SiLU(norm(conv(SiLU(norm(x))) + linear(SiLU(embedding))))); the embedding is optional."""

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        norm: Norm = group_norm,
        embedding: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Map `inputs` to `outputs` channels."""
        super().__init__()
        self.norm1 = norm(inputs)
        self.conv1 = conv(dims, inputs, outputs)
        if embedding is not None:
            self.time_emb_proj = nn.Linear(embedding, outputs)
        self.norm2 = norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(dims, outputs, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else conv(dims, inputs, outputs, kernel=1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Map `(batch, inputs, *space)` to `(batch, outputs, *space)`."""
        h = self.conv1(F.silu(self.norm1(x)))
        if embedding is not None:
            h = h + over_space(self.time_emb_proj(F.silu(embedding)), h)
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return torch.add(self.shortcut(x), h)


class Stage(nn.Module):
    """A residual block, followed by self-attention and by cross-attention to the condition's tokens."""

    def __init__(self, block: ResidualBlock, attention: nn.Module, cross: nn.Module | None) -> None:
        """Apply `attention`, and `cross` if not None, after `block`."""
        super().__init__()
        self.block, self.attention, self.cross = block, attention, cross

    def forward(self, x: Tensor, embedding: Tensor, cond: Cond | None) -> Tensor:
        """Map `(batch, inputs, *space)` to `(batch, channels, *space)`."""
        h: Tensor = self.attention(self.block(x, embedding))
        return h if self.cross is None else self.cross(h, cond)


class Ladder(nn.Module):
    """A U-Net: encoder, middle and decoder with skip connections at every residual block.

    Source: Ho et al. 2020, appendix B.
    """

    channels_last: ClassVar[bool] = False

    def __init__(
        self,
        channels: int,
        outputs: int,
        dims: int,
        widths: Sequence[int],
        blocks: int,
        attends: Attends,
        norm: Norm,
        dropout: float,
        pad_behind: bool,
        time: TimeEmbedding,
    ) -> None:
        """Build all levels; `attends` builds the attention after a block, `norm` the norms; the rest as in `UNet`."""
        super().__init__()
        at_least(1, levels=len(widths), blocks=blocks, **{f"width {width}": width for width in widths})
        self.embedding_dim = 4 * widths[0]
        self.multiple = 2 ** (len(widths) - 1)
        self.time_embedding = time
        self.conv_in = conv(dims, channels, widths[0])

        def stage(inputs: int, outputs: int, level: int | None, attending: bool = True) -> Stage:
            block = ResidualBlock(dims, inputs, outputs, norm, self.embedding_dim, dropout)
            return Stage(block, *(attends(outputs, level) if attending else (nn.Identity(), None)))

        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        skips, width, last = [widths[0]], widths[0], len(widths) - 1
        for level, wide in enumerate(widths):
            for _ in range(blocks):
                self.down.append(stage(width, wide, level))
                skips.append(width := wide)
            if level < last:
                self.downsample.append(Halving(dims, width, pad_behind))
                skips.append(width)
        self.middle = nn.ModuleList([stage(width, width, None), stage(width, width, None, attending=False)])
        for level in reversed(range(len(widths))):
            for _ in range(blocks + 1):
                self.up.append(stage(width + skips.pop(), widths[level], level))
                width = widths[level]
            if level > 0:
                self.upsample.append(conv(dims, width, width))
        self.norm_out = norm(width)
        self.conv_out = conv(dims, width, outputs)
        self.blocks = blocks

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Map `(batch, channels, *space)` and times `(batch,)` to an output with the same space."""
        embedding = self.time_embedding(time, cond)
        h = self.conv_in(concatenated(x, cond))
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


class UNet(Ladder):
    """A U-Net with self-attention, and with tokens cross-attention, at some levels and in the middle."""

    __repr__ = outline

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
        groups: int = 32,
        epsilon: float = 1e-5,
        pad_behind: bool = False,
        time_shift: int = 0,
        sines_first: bool = False,
    ) -> None:
        """Build the network.

        Args:
            channels: Channels of the state.
            outputs: Channels of the output; default: `channels`.
            dims: Space dimensions, 1, 2 or 3.
            context: Length of a condition token; None without tokens.
            widths: Channels of each level, finest first; each further level halves the sides.
            blocks: Residual blocks per level.
            attention: Which levels have attention; the middle always has it.
            head: Channels of one attention head.
            dropout: Dropout inside the residual blocks.
            groups: Groups of the group norms.
            epsilon: Added to the variance in the norms.
            pad_behind: Whether downsampling pads only the end of each side, as in DDPM.
            time_shift: `shift` of `sinusoidal`; 1 as in DDPM.
            sines_first: Whether the sines of the time embedding precede its cosines, as in DDPM.

        Raises: ValueError: If `attention` does not name every level, or a number is too small.
        """
        if len(attention) != len(widths):
            raise ValueError(f"attention has {len(attention)} levels, but widths has {len(widths)}")
        at_least(1, head=head, groups=groups, levels=len(widths))
        norm = partial(group_norm, groups=groups, epsilon=epsilon)

        def attends(channels: int, level: int | None) -> tuple[nn.Module, nn.Module | None]:
            if level is not None and not attention[level]:
                return nn.Identity(), None
            cross = CrossAttention(channels, context, head) if context else None
            return SelfAttention(norm(channels), channels, head), cross

        time = TimeEmbedding(widths[0], 4 * widths[0], time_shift, sines_first)
        super().__init__(channels, outputs or channels, dims, widths, blocks, attends, norm, dropout, pad_behind, time)
