"""The diffusion transformer (DiT): patches as tokens; time and condition modulate the norms and gates (adaLN-Zero)."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.attention import Attend
from unfog.networks.conditioning import Cond
from unfog.networks.layers import (
    CrossAttention,
    TimeEmbedding,
    at_least,
    concatenated,
    gather,
    positions,
    spread,
    zeroed,
)
from unfog.runtime.brief import outline


class Block(nn.Module):
    """h + gate·f(norm(h)·(1 + scale) + shift), with f attention, then an MLP; the embedding sets gate, scale and shift.

    The gates start at zero, so a block starts as the identity. With tokens, cross-attention comes between the two.

    Source: Peebles & Xie 2023, Scalable Diffusion Models with Transformers, section 3.2 (adaLN-Zero);
    Chen et al. 2024, PixArt-alpha, section 2.3, for the place of the cross-attention.
    """

    def __init__(self, width: int, head: int, ratio: int, dropout: float, context: int | None) -> None:
        """Keep `width` features, in heads of `head`; the MLP is `ratio` times wider; tokens have length `context`."""
        super().__init__()
        self.head = head
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.cross = CrossAttention(width, context, head) if context else None
        self.mlp = perceptron(width, ratio, dropout)
        self.attend = Attend(head)

    def forward(self, h: Tensor, embedding: Tensor, cond: Cond | None) -> Tensor:
        """Map `(batch, places, width)` to the same shape, modulated by the embedding, `(batch, width)`."""
        modulation = self.modulation(F.silu(embedding))[:, None].chunk(6, dim=-1)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation
        h = h + gate * self.attended(norm(h) * (1 + scale) + shift)
        if self.cross is not None:
            h = self.cross(h.transpose(1, 2), cond).transpose(1, 2)
        result: Tensor = h + gate_mlp * self.mlp(norm(h) * (1 + scale_mlp) + shift_mlp)
        return result

    def attended(self, h: Tensor) -> Tensor:
        """Return project(softmax(q·k / sqrt(d))·v) over all places."""
        batch, places, width = h.shape
        q, k, v = self.qkv(h).view(batch, places, 3, -1, self.head).permute(2, 0, 3, 1, 4)
        attended = self.attend(q, k, v).transpose(1, 2).reshape(batch, places, width)
        out: Tensor = self.out(attended)
        return out


def perceptron(width: int, ratio: int, dropout: float) -> nn.Sequential:
    """Return linear, GELU, dropout, linear: an MLP with a hidden layer of ratio·width features."""
    act = nn.GELU(approximate="tanh")
    return nn.Sequential(nn.Linear(width, ratio * width), act, nn.Dropout(dropout), nn.Linear(ratio * width, width))


def norm(h: Tensor) -> Tensor:
    """Apply layer norm over the features, without learned scale and shift."""
    return F.layer_norm(h, h.shape[-1:], eps=1e-6)


class DiT(nn.Module):
    """Patches through `depth` transformer blocks.

    Source: Peebles & Xie 2023; its S, B, L and XL are width 384, 768, 1024 and 1152 at depth 12, 12, 24 and 28.
    """

    channels_last: ClassVar[bool] = False

    __repr__ = outline

    def __init__(
        self,
        channels: int,
        *,
        outputs: int | None = None,
        dims: int = 2,
        context: int | None = None,
        width: int = 128,
        depth: int = 6,
        head: int = 64,
        patch: int = 2,
        ratio: int = 4,
        dropout: float = 0.0,
    ) -> None:
        """Build the network.

        Args:
            channels: Channels of the state.
            outputs: Channels of the output; default: `channels`.
            dims: Space dimensions, 1, 2 or 3.
            context: Length of a condition token; None without tokens.
            width: Features of a patch; a multiple of `head`.
            depth: Number of blocks.
            head: Features of one attention head.
            patch: Side of a patch.
            ratio: Width of the hidden layer of an MLP, over `width`.
            dropout: Dropout inside the MLPs.

        Raises: ValueError: If a number is too small, or `head` does not divide `width`.
        """
        super().__init__()
        at_least(1, width=width, depth=depth, head=head, patch=patch, ratio=ratio)
        if width % head:
            raise ValueError(f"head {head} does not divide width {width}")
        self.embedding_dim, self.multiple = width, patch
        self.time_embedding = TimeEmbedding(256, width)
        self.patch_in = gather(dims, channels, width, patch)
        self.blocks = nn.ModuleList(Block(width, head, ratio, dropout, context) for _ in range(depth))
        self.modulation_out = zeroed(nn.Linear(width, 2 * width))
        self.patch_out = zeroed(spread(dims, width, outputs or channels, patch))

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Map `(batch, channels, *space)` and times `(batch,)` to an output with the same space."""
        embedding = self.time_embedding(time, cond)
        patches = self.patch_in(concatenated(x, cond))
        h = patches.flatten(2).transpose(1, 2)
        h = h + positions(tuple(patches.shape[2:]), h.shape[-1], h)
        for block in self.blocks:
            h = block(h, embedding, cond)
        shift, scale = self.modulation_out(F.silu(embedding))[:, None].chunk(2, dim=-1)
        h = norm(h) * (1 + scale) + shift
        output: Tensor = self.patch_out(h.transpose(1, 2).reshape(patches.shape))
        return output
