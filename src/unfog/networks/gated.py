"""The gated PixelCNN: pixels one after the other, each given those above it and to its left."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.conditioning import Cond
from unfog.networks.direct import Likelihood
from unfog.networks.layers import at_least, zeroed
from unfog.networks.pixels import PixelDistribution
from unfog.runtime.brief import outline

ROWS, COLUMNS = 3, 7
"""Rows above, and width, that the first layer sees of a picture; columns to the left are as many as rows."""


def gate(h: Tensor, bias: Tensor) -> Tensor:
    """Return tanh(a)·sigmoid(b) of the halves a and b of h + bias, `(batch, 2·width, ...)`."""
    a, b = (h + bias.reshape(*bias.shape, *[1] * (h.ndim - bias.ndim))).chunk(2, dim=1)
    return a.tanh() * b.sigmoid()


class Layer(nn.Module):
    """Two stacks: what lies above a pixel, v, and what lies to its left, h, which also reads v.

    v <- v + gate(V*v), over this row of v and the one above it; h <- h + out(gate(H*h + across(V*v))), over this place
    and the one to the left.

    Source: van den Oord et al. 2016, Conditional Image Generation with PixelCNN Decoders, figure 2.
    """

    def __init__(self, width: int, embedding: int) -> None:
        """Keep `width` features."""
        super().__init__()
        self.above = nn.Conv2d(width, 2 * width, (2, 3))
        self.left = nn.Conv2d(width, 2 * width, (1, 2))
        self.across = nn.Conv2d(2 * width, 2 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        self.given = nn.Linear(embedding, 4 * width)

    def biases(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the condition adds to both stacks, `(batch, 2·width)` each."""
        first, second = self.given(embedding).chunk(2, dim=1)
        return first, second

    def vertical(self, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next v, and what h reads of it, for all rows of `v` but the first, which only lies above them."""
        seen = self.above(F.pad(v, (1, 1)))
        return v[:, :, 1:] + gate(seen, bias), self.across(seen)

    def horizontal(self, h: Tensor, told: Tensor, bias: Tensor) -> Tensor:
        """Return the next h, for all columns of `h` but the first, which only lies to the left of them."""
        added: Tensor = self.out(gate(self.left(h) + told, bias))
        return h[..., 1:] + added


class GatedPixelCNN(nn.Module):
    """p(x) = product of p(x_i | x_1 .. x_(i-1)) over the pixels of a picture, row by row.

    Source: van den Oord et al. 2016, Conditional Image Generation with PixelCNN Decoders.
    """

    likelihood: ClassVar[Likelihood] = "exact"

    __repr__ = outline

    def __init__(self, shape: tuple[int, ...], pixels: PixelDistribution, *, width: int = 48, depth: int = 8) -> None:
        """Build the network.

        Args:
            shape: Of a picture, `(channels, height, width)`.
            pixels: The distribution of a pixel.
            width: Features of both stacks.
            depth: Number of layers, each of which sees one row further up.

        Raises: ValueError: If a number is too small, or the rows are no pictures.
        """
        super().__init__()
        at_least(1, width=width, depth=depth)
        if len(shape) != 3:
            raise ValueError("it writes pictures, row by row: the rows have other axes")
        channels = shape[0]
        self.noises: Sequence[tuple[int, ...]] = []
        self.uniforms: tuple[int, ...] | None = (pixels.uniforms(channels), *shape[1:])
        self.channels, self.pixels, self.embedding_dim = channels, pixels, 2 * width
        self.first_above = nn.Conv2d(channels, width, (ROWS, COLUMNS))
        self.first_left = nn.Conv2d(channels, width, (1, ROWS))
        self.layers = nn.ModuleList(Layer(width, self.embedding_dim) for _ in range(depth))
        self.unconditional = nn.Parameter(torch.zeros(self.embedding_dim))
        self.mix = nn.Conv2d(width, 2 * width, 1)
        self.last = zeroed(nn.Conv2d(2 * width, pixels.parameters(channels), 1))

    def forward(self, x: Tensor, cond: Cond | None = None) -> Tensor:
        """Return the parameters of each pixel given those before it, `(batch, parameters, height, width)`."""
        embedding, side = self._embedding(len(x), cond), COLUMNS // 2
        v = self.first_above(F.pad(x, (side, side, ROWS, 0))[:, :, :-1])
        h = v + self.first_left(F.pad(x, (ROWS, 0))[..., :-1])
        for layer in self._stack:
            above, left = layer.biases(embedding)
            v, told = layer.vertical(F.pad(v, (0, 0, 1, 0)), above)
            h = layer.horizontal(F.pad(h, (1, 0)), told, left)
        return self._found(h)

    def log_prob(self, x: Tensor, noise: list[Tensor], cond: Cond | None = None) -> Tensor:
        """Return log p(x) of pictures in nats, `(batch,)`; it needs no noise."""
        return self.pixels.log_prob(self(x, cond), x).flatten(1).sum(1)

    def pictures(self, noise: list[Tensor], u: Tensor | None, cond: Cond | None = None) -> Tensor:
        """Return pictures, see `draw`."""
        assert u is not None
        return self.draw(u, cond)

    def draw(self, u: Tensor, cond: Cond | None = None) -> Tensor:
        """Draw pictures pixel by pixel, each feature being computed once and kept as long as others read it.

        Args:
            u: Uniform numbers in [0, 1), `(batch, pixels.uniforms, height, width)`.
            cond: The condition.

        Returns: Pictures, `(batch, channels, height, width)`.
        """
        count, _, height, width = u.shape
        biases = [layer.biases(self._embedding(count, cond)) for layer in self._stack]
        side = COLUMNS // 2
        x = u.new_zeros(count, self.channels, ROWS + height, width, dtype=torch.float32)
        above = [x.new_zeros(count, self.mix.in_channels, 1, width) for _ in self.layers]
        for row in range(height):
            first = v = self.first_above(F.pad(x[:, :, row : row + ROWS], (side, side)))
            told = []
            for number, (layer, (bias, _)) in enumerate(zip(self._stack, biases, strict=True)):
                below = torch.cat([above[number], v], 2)
                above[number] = v
                v, read = layer.vertical(below, bias)
                told.append(read)
            x[:, :, ROWS + row] = self._row(first, told, [bias for _, bias in biases], u[:, :, row])
        return x[:, :, ROWS:]

    def _row(self, first: Tensor, told: list[Tensor], biases: list[Tensor], u: Tensor) -> Tensor:
        """Draw one row, `(batch, channels, width)`.

        Args:
            first: What lies above it as the first layer sees it, `(batch, features, 1, width)`.
            told: What the left stack of each layer reads of that, `(batch, 2·features, 1, width)`.
            biases: What the condition adds to it in each layer.
            u: Uniform numbers, `(batch, uniforms, width)`.
        """
        count, _, width = u.shape
        row = first.new_zeros(count, self.channels, 1, ROWS + width)
        left = [first.new_zeros(count, self.mix.in_channels, 1, 1) for _ in self.layers]
        for column in range(width):
            place = slice(column, column + 1)
            h = first[..., place] + self.first_left(row[..., column : column + ROWS])
            for number, (layer, bias) in enumerate(zip(self._stack, biases, strict=True)):
                both = torch.cat([left[number], h], 3)
                left[number] = h
                h = layer.horizontal(both, told[number][..., place], bias)
            row[..., ROWS + column] = self.pixels.draw(self._found(h), u[:, :, None, place])[..., 0]
        return row[:, :, 0, ROWS:]

    @property
    def _stack(self) -> list[Layer]:
        """The layers."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def _embedding(self, count: int, cond: Cond | None) -> Tensor:
        """Return the embedding of the condition, `(batch, embedding_dim)`."""
        if cond is None or cond.vector is None:
            return self.unconditional.expand(count, -1)
        return self.unconditional + cond.vector

    def _found(self, h: Tensor) -> Tensor:
        """Return the parameters of pixels, of the features of the left stack."""
        found: Tensor = self.last(F.relu(self.mix(F.relu(h))))
        return found
