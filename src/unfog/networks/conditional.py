"""The U-Net of latent diffusion, conditioned on text: the topology of diffusers' `UNet2DConditionModel`."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.attention import Attend
from unfog.networks.conditioning import Cond
from unfog.networks.layers import TimeEmbedding, at_least, zeroed
from unfog.networks.unet import Ladder, group_norm
from unfog.runtime.brief import outline


class TransformerLayer(nn.Module):
    """h + attention(norm(h)), then h + cross-attention(norm(h)), then h + gated MLP(norm(h)).

    Source: Rombach et al. 2022, appendix E.2.1; Shazeer 2020, GLU Variants Improve Transformer, section 2 (the gate).
    """

    def __init__(self, channels: int, heads: int, context: int, ratio: int = 4) -> None:
        """Keep `channels` channels, with `heads` heads; tokens have length `context`."""
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.qkv, self.out = nn.Linear(channels, 3 * channels, bias=False), nn.Linear(channels, channels)
        self.q, self.kv = nn.Linear(channels, channels, bias=False), nn.Linear(context, 2 * channels, bias=False)
        self.out_cross = nn.Linear(channels, channels)
        self.attend = Attend(channels // heads)
        self.mlp_in, self.mlp_out = nn.Linear(channels, 2 * ratio * channels), nn.Linear(ratio * channels, channels)

    def forward(self, h: Tensor, cond: Cond | None) -> Tensor:
        """Map `(batch, places, channels)` to the same shape."""
        h = h + self.out(self._attend(*self.qkv(self.norm1(h)).chunk(3, -1)))
        if cond is not None and cond.tokens is not None:
            mask = None if cond.mask is None else cond.mask[:, None, None]
            k, v = self.kv(cond.tokens).chunk(2, -1)
            h = h + self.out_cross(self._attend(self.q(self.norm2(h)), k, v, mask))
        hidden, gate = self.mlp_in(self.norm3(h)).chunk(2, -1)
        result: Tensor = h + self.mlp_out(hidden * F.gelu(gate))
        return result

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return multi-head attention, `(batch, places, channels)`."""
        q, k, v = (part.view(*part.shape[:2], self.heads, -1).transpose(1, 2) for part in (q, k, v))
        attended: Tensor = self.attend(q, k, v, mask)
        return attended.transpose(1, 2).flatten(2)


class Transformer(nn.Module):
    """x + project(layers(project(norm(x)))), the places as a sequence; the last projection starts at zero."""

    def __init__(self, channels: int, heads: int, context: int, layers: int, groups: int) -> None:
        """Build `layers` layers of `channels` channels."""
        super().__init__()
        self.norm = group_norm(channels, groups, 1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.layers = nn.ModuleList(TransformerLayer(channels, heads, context) for _ in range(layers))
        self.proj_out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, cond: Cond | None) -> Tensor:
        """Map `(batch, channels, *space)` to the same shape."""
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for layer in self.layers:
            h = layer(h, cond)
        return torch.add(x, self.proj_out(h).transpose(1, 2).reshape(x.shape))


class ConditionalUNet(Ladder):
    """A U-Net with transformers at some levels and in the middle.

    Source: Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion Models, section 3.3.
    """

    __repr__ = outline

    def __init__(
        self,
        channels: int,
        *,
        outputs: int | None = None,
        dims: int = 2,
        context: int | None = None,
        widths: Sequence[int] = (64, 128, 128),
        blocks: int = 1,
        attention: Sequence[bool] = (True, True, False),
        heads: Sequence[int] = (2, 4, 4),
        layers: int = 1,
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
            context: Length of a condition token.
            widths: Channels of each level, finest first; each further level halves the sides.
            blocks: Residual blocks per level.
            attention: Which levels have transformers; the middle always has one.
            heads: Attention heads of each level; the middle has as many as the last level.
            layers: Layers per transformer.
            dropout: Dropout inside the residual blocks.
            groups: Groups of the group norms.
            epsilon: Added to the variance in the norms of the residual blocks.
            pad_behind: Whether downsampling pads only the end of each side.
            time_shift: `shift` of `sinusoidal`.
            sines_first: Whether the sines of the time embedding precede its cosines.

        Raises: ValueError: If a list does not name every level, a number is too small, or `context` is None.
        """
        if not len(attention) == len(heads) == len(widths):
            raise ValueError(
                f"attention has {len(attention)} levels and heads has {len(heads)}, but widths has {len(widths)}"
            )
        if context is None:
            raise ValueError("it needs tokens: set conditioning=text or conditioning=pretrained")
        at_least(1, levels=len(widths), layers=layers, groups=groups)
        for width, count in zip(widths, heads, strict=True):
            if count < 1 or width % count:
                raise ValueError(f"{count} heads do not divide {width} channels")
        tokens = context

        def attends(channels: int, level: int | None) -> tuple[nn.Module, nn.Module | None]:
            if level is not None and not attention[level]:
                return nn.Identity(), None
            return nn.Identity(), Transformer(channels, heads[-1 if level is None else level], tokens, layers, groups)

        norm = partial(group_norm, groups=groups, epsilon=epsilon)
        time = TimeEmbedding(widths[0], 4 * widths[0], time_shift, sines_first)
        super().__init__(channels, outputs or channels, dims, widths, blocks, attends, norm, dropout, pad_behind, time)
