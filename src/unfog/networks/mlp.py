"""The network for points: residual fully connected layers."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.conditioning import Cond
from unfog.networks.layers import TimeEmbedding, at_least, concatenated, zeroed
from unfog.runtime.brief import outline


class Layer(nn.Module):
    """x + linear(SiLU(linear(norm(x)) + linear(embedding)))."""

    def __init__(self, width: int) -> None:
        """Keep `width` features."""
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear_1 = nn.Linear(width, width)
        self.time = nn.Linear(width, width)
        self.linear_2 = zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map `(batch, width)` to the same shape."""
        h = F.silu(self.linear_1(self.norm(x)) + self.time(embedding))
        return torch.add(x, self.linear_2(h))


class MLP(nn.Module):
    """Points `(batch, channels)` through `depth` residual layers of `width` features."""

    channels_last: ClassVar[bool] = False

    __repr__ = outline

    def __init__(
        self, channels: int, *, outputs: int | None = None, dims: int = 0, width: int = 128, depth: int = 4
    ) -> None:
        """Build the network.

        Args:
            channels: Coordinates of a point.
            outputs: Features of the output; default: `channels`.
            dims: Space dimensions; must be 0.
            width: Features of each layer, and length of the time embedding.
            depth: Number of residual layers.

        Raises: ValueError: If `dims` is not 0, or a number is too small.
        """
        super().__init__()
        if dims:
            raise ValueError("it only works on points: choose another network for images")
        at_least(0, depth=depth)
        self.embedding_dim = width
        self.multiple = 1
        self.time_embedding = TimeEmbedding(width, width)
        self.lift = nn.Linear(channels, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(depth))
        self.out = zeroed(nn.Linear(width, outputs or channels))

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Map `(batch, channels)` and times `(batch,)` to `(batch, outputs)`."""
        embedding = F.silu(self.time_embedding(time, cond))
        h = self.lift(concatenated(x, cond))
        for layer in self.layers:
            h = layer(h, embedding)
        output: Tensor = self.out(h)
        return output
