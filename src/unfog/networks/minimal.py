"""The network of the tutorials: a two-level U-Net that fits on one screen."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.conditioning import Cond
from unfog.networks.layers import TimeEmbedding, concatenated, conv, over_space
from unfog.runtime.brief import outline


class ResidualBlock(nn.Module):
    """SiLU(skip(x) + conv(SiLU(conv(x) + linear(embedding)))): the time is added as a bias."""

    def __init__(self, dims: int, inputs: int, outputs: int, embedding: int) -> None:
        """Map `inputs` to `outputs` channels."""
        super().__init__()
        self.conv1 = conv(dims, inputs, outputs)
        self.conv2 = conv(dims, outputs, outputs)
        self.time = nn.Linear(embedding, outputs)
        self.skip = nn.Identity() if inputs == outputs else conv(dims, inputs, outputs, kernel=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map `(batch, inputs, *space)` to `(batch, outputs, *space)`."""
        h = self.conv1(x)
        h = F.silu(h + over_space(self.time(embedding), h))
        return F.silu(self.conv2(h) + self.skip(x))


class Minimal(nn.Module):
    """A U-Net with two encoder blocks, a bottleneck, one decoder block and one skip connection."""

    channels_last: ClassVar[bool] = True

    __repr__ = outline

    def __init__(self, channels: int, *, outputs: int | None = None, dims: int = 2, width: int = 64) -> None:
        """Build the network.

        Args:
            channels: Channels of the state.
            outputs: Channels of the output; default: `channels`.
            dims: Space dimensions, 1, 2 or 3.
            width: Channels of the finer level; the coarser has twice as many.
        """
        super().__init__()
        self.embedding_dim = dim = 2 * width
        self.multiple = 2
        self.time_embedding = TimeEmbedding(dim, dim)
        self.down1 = ResidualBlock(dims, channels, width, dim)
        self.down2 = ResidualBlock(dims, width, 2 * width, dim)
        self.pool = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[dims](2)
        self.bottleneck = ResidualBlock(dims, 2 * width, 2 * width, dim)
        self.up1 = ResidualBlock(dims, 3 * width, width, dim)
        self.out = conv(dims, width, outputs or channels)

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Map `(batch, channels, *space)` and times `(batch,)` to an output with the same space."""
        embedding = self.time_embedding(time, cond)
        fine = self.down1(concatenated(x, cond), embedding)
        coarse = self.bottleneck(self.down2(self.pool(fine), embedding), embedding)
        up = F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        output: Tensor = self.out(self.up1(torch.cat([up, fine], dim=1), embedding))
        return output
