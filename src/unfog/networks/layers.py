"""Layers shared by the networks, for one, two or three space dimensions."""

import math
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.attention import Attend
from unfog.networks.conditioning import Cond
from unfog.networks.modulated import modulated, takes

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class Network(Protocol):
    """The interface of the networks in this package."""

    channels_last: ClassVar[bool]
    """Whether the channels-last memory format is faster for 2-D states on a CPU."""
    embedding_dim: int
    """Length of the time embedding and of `Cond.vector`."""
    multiple: int
    """Each side of the input must be a multiple of this."""

    def __call__(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Map a state `(batch, channels, *space)` and times `(batch,)` to an output with the same space."""
        ...


def at_least(minimum: int, **values: int) -> None:
    """Raise a ValueError for a value below `minimum`."""
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"{name} must be {minimum} or more")


def conv(dims: int, inputs: int, outputs: int, kernel: int = 3) -> nn.Module:
    """Return a convolution over `dims` space dimensions that keeps the size."""
    at_least(1, **{"space dimensions of this network": dims})
    return _CONV[dims](inputs, outputs, kernel, padding=kernel // 2)


class Halving(nn.Module):
    """A convolution with kernel 3 and stride 2 that halves each side, zero-padded at both ends or only at the end."""

    def __init__(self, dims: int, channels: int, pad_behind: bool = False) -> None:
        """Keep `channels` channels; `pad_behind` pads only the end of each side."""
        super().__init__()
        self.behind = (0, 1) * dims if pad_behind else ()
        self.conv = _CONV[dims](channels, channels, 3, stride=2, padding=0 if pad_behind else 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, channels, *space)` to `(batch, channels, *(space/2))`."""
        output: Tensor = self.conv(F.pad(x, self.behind) if self.behind else x)
        return output


def gather(dims: int, inputs: int, outputs: int, side: int) -> nn.Module:
    """Return the convolution that maps each patch with this side to one place."""
    at_least(1, **{"space dimensions of this network": dims})
    return _CONV[dims](inputs, outputs, side, stride=side)


def spread(dims: int, inputs: int, outputs: int, side: int) -> nn.Module:
    """Return the transposed convolution that maps each place to a patch with this side."""
    return _CONV_TRANSPOSE[dims](inputs, outputs, side, stride=side)


def enlarged(x: Tensor, layer: nn.Module) -> Tensor:
    """Return layer(nearest-neighbour upsampling of x by 2), in (2/3)^dims of the multiplications.

    Upsampled neighbours are equal, so their weights can be added first. This gives a transposed convolution with stride
    2, whose kernel of 4 is the flipped kernel of 3 with adjacent weights summed.

    Args:
        x: `(batch, inputs, *space)`.
        layer: A convolution with kernel 3, from `conv`.

    Returns: `(batch, outputs, *(2·space))`.
    """
    dims, weight = x.ndim - 2, layer.get_parameter("weight")
    flipped = weight.transpose(0, 1).flip(tuple(range(2, x.ndim)))
    kernel = 2**dims * _POOL[dims](flipped, 2, stride=1, padding=1)
    return _TRANSPOSED[dims](x, kernel, layer.get_parameter("bias"), stride=2, padding=1)


def zeroed(module: nn.Module) -> nn.Module:
    """Set all parameters to zero and return the module: its residual block starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def concatenated(x: Tensor, cond: Cond | None) -> Tensor:
    """Concatenate the condition's `concat` channels, if any, to the state."""
    return x if cond is None or cond.concat is None else torch.cat([x, cond.concat.to(x.dtype)], dim=1)


def over_space(vector: Tensor, like: Tensor) -> Tensor:
    """View `(batch, channels)` as `(batch, channels, 1, ...)`, with the rank of `like`."""
    return vector.reshape(*vector.shape, *([1] * (like.ndim - 2)))


def sinusoidal(time: Tensor, dim: int, longest: float = 10_000.0, shift: int = 0) -> Tensor:
    """Embed times as [cos(time·w_i), sin(time·w_i)] with w_i = longest^(-i / (dim/2 - shift)).

    Args:
        time: Times, `(batch,)`, with a range of about a thousand.
        dim: Length of the embedding, even.
        longest: Longest wavelength over 2 pi, reached at the last i if `shift` is 1.
        shift: 0, or 1 as in DDPM.

    Returns: The embedding, `(batch, dim)`, float32.
    Source: Vaswani et al. 2017, section 3.5; Ho et al. 2020, appendix B.
    """
    half = dim // 2
    slope = -math.log(longest) / max(half - shift, 1)
    rates = torch.exp(torch.arange(half, device=time.device, dtype=torch.float32) * slope)
    angles = time.float()[:, None] * rates[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def positions(sides: tuple[int, ...], dim: int, like: Tensor) -> Tensor:
    """Return fixed position embeddings of a grid, `(places, dim)`: sines and cosines of each coordinate.

    Source: Dosovitskiy et al. 2021, appendix D.4 (2-D sine-cosine).
    """
    share = dim // len(sides) // 2 * 2
    axes = torch.meshgrid(*(torch.arange(side, device=like.device) for side in sides), indexing="ij")
    parts = [sinusoidal(axis.flatten(), share) for axis in axes]
    return F.pad(torch.cat(parts, -1), (0, dim - share * len(sides))).to(like.dtype)


class TimeEmbedding(nn.Module):
    """linear(SiLU(linear(sinusoidal(time)))) + cond.vector: the embedding that modulates every block."""

    def __init__(self, frequencies: int, dim: int, shift: int = 0, sines_first: bool = False) -> None:
        """Embed times in `frequencies` sines and cosines (see `sinusoidal`), and map them to length `dim`."""
        super().__init__()
        if frequencies < 2 or frequencies % 2:
            raise ValueError("the width must be even, 2 or more: times are embedded as pairs of a sine and a cosine")
        self.frequencies, self.shift, self.sines_first = frequencies, shift, sines_first
        self.linear_1 = nn.Linear(frequencies, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Return the embedding, `(batch, dim)`, of times `(batch,)` and a condition's vector."""
        waves = sinusoidal(time, self.frequencies, shift=self.shift)
        if self.sines_first:
            waves = waves.roll(self.frequencies // 2, -1)
        embedding: Tensor = self.linear_2(F.silu(self.linear_1(waves.to(self.linear_1.weight.dtype))))
        if cond is not None and cond.vector is not None:
            embedding = embedding + cond.vector
        return embedding


class ScalarEmbedding(nn.Module):
    """linear(SiLU(linear(sinusoidal(number)))), 0 before training: one more number that a network is given.

    It is added to the time embedding, as `Cond.vector` is, so that every network with one can take it.
    """

    def __init__(self, dim: int, low: float = 0.0, high: float = 1.0, frequencies: int = 32) -> None:
        """Map numbers between `low` and `high`, which become 0 and 1,000, to vectors of length `dim`."""
        super().__init__()
        self.low, self.high, self.frequencies = low, high, frequencies
        self.linear_1, self.linear_2 = nn.Linear(frequencies, dim), zeroed(nn.Linear(dim, dim))

    def forward(self, number: Tensor) -> Tensor:
        """Embed numbers, `(batch,)`, as `(batch, dim)`."""
        place = 1000 * (number - self.low) / (self.high - self.low)
        waves = sinusoidal(place, self.frequencies).to(self.linear_1.weight.dtype)
        embedding: Tensor = self.linear_2(F.silu(self.linear_1(waves)))
        return embedding


class ChannelNorm(nn.Module):
    """Layer norm over the channels at each place: (x - mean) / std, with learned scale and shift if `affine`.

    In channels-last format this is one pass over contiguous memory, while group norm needs several. With `fused` what
    follows it is in the same pass, where `networks.modulated` has a kernel.
    """

    def __init__(self, channels: int, affine: bool = True) -> None:
        """Normalise `channels` channels."""
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=affine)
        self.fused = False

    def forward(self, x: Tensor, modulation: Tensor | None = None, act: bool = False) -> Tensor:
        """Return norm(x), or norm(x)·(1 + scale) + shift, and SiLU of it if `act`.

        Args:
            x: `(batch, channels, *space)`, normalised over its second axis.
            modulation: Scales and behind them shifts, `(batch, 2·channels)`.
            act: Whether SiLU follows.
        """
        places = x.movedim(1, -1)
        if self.fused and takes(places):
            return modulated(places, *self._factors(modulation), self.norm.eps, act).movedim(-1, 1)
        normed: Tensor = self.norm(places).movedim(-1, 1)
        if modulation is not None:
            scale, shift = over_space(modulation, x).chunk(2, dim=1)
            normed = normed * (1 + scale) + shift
        return F.silu(normed) if act else normed

    def _factors(self, modulation: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what the normalised numbers are multiplied by, and what is added: one row, or `(batch, channels)`."""
        scale, shift = self.norm.weight, self.norm.bias
        if scale is None:
            scale, shift = torch.ones(self.norm.normalized_shape), torch.zeros(self.norm.normalized_shape)
        if modulation is None:
            return scale[None].float(), shift[None].float()
        more, further = modulation.float().chunk(2, dim=1)
        return scale * (1 + more), shift * (1 + more) + further


class SelfAttention(nn.Module):
    """x + project(softmax(q·k / sqrt(d))·v) over all places of x.

    Source: Vaswani et al. 2017, eq. 1; in a U-Net, Ho et al. 2020, appendix B.
    """

    def __init__(self, norm: nn.Module, channels: int, head: int = 64) -> None:
        """Attend over `channels` channels in heads of `head` channels (one head if that does not divide them)."""
        super().__init__()
        self.heads = channels // head if channels % head == 0 else 1
        self.norm = norm
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.attend = Attend(channels // self.heads)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, channels, *space)` to the same shape."""
        batch, channels = x.shape[:2]
        places = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(places).view(batch, -1, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        attended = self.attend(q, k, v).transpose(1, 2).reshape(batch, -1, channels)
        return torch.add(x, self.out(attended).transpose(1, 2).reshape(x.shape))


class CrossAttention(nn.Module):
    """x + project(softmax(q·k / sqrt(d))·v), q from the places of x, k and v from the condition's tokens.

    The projection starts at zero, so that a network starts unconditional.

    Source: Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion Models, section 3.3.
    """

    def __init__(self, channels: int, context: int, head: int = 32) -> None:
        """Attend from `channels` channels to tokens of length `context`, in heads of `head` channels."""
        super().__init__()
        self.heads = channels // head if channels % head == 0 else 1
        self.norm = ChannelNorm(channels)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(context, 2 * channels)
        self.out = zeroed(nn.Linear(channels, channels))
        self.attend = Attend(channels // self.heads)

    def forward(self, x: Tensor, cond: Cond | None) -> Tensor:
        """Map `(batch, channels, *space)` to the same shape; without tokens return x."""
        if cond is None or cond.tokens is None:
            return x
        batch, channels = x.shape[:2]
        q = self.q(self.norm(x).flatten(2).transpose(1, 2)).view(batch, -1, self.heads, channels // self.heads)
        k, v = self.kv(cond.tokens).view(batch, -1, 2, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        mask = None if cond.mask is None else cond.mask[:, None, None]
        attended: Tensor = self.attend(q.transpose(1, 2), k, v, mask)
        out = self.out(attended.transpose(1, 2).reshape(batch, -1, channels))
        return torch.add(x, out.transpose(1, 2).reshape(x.shape))
