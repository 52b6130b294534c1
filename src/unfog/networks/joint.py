"""The two-stream diffusion transformer (MM-DiT): joint attention over patches and words, separate weights for each."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.attention import Attend
from unfog.networks.conditioning import Cond
from unfog.networks.dit import norm, perceptron
from unfog.networks.layers import TimeEmbedding, at_least, concatenated, gather, positions, spread, zeroed
from unfog.runtime.brief import outline


class Stream(nn.Module):
    """The weights of one of the two streams in a block: modulation, projections, MLP."""

    def __init__(self, width: int, head: int, ratio: int, dropout: float, goes_on: bool = True) -> None:
        """Keep `width` features, in heads of `head`; with `goes_on` False the stream only provides keys and values."""
        super().__init__()
        self.head, self.goes_on = head, goes_on
        self.modulation = zeroed(nn.Linear(width, (6 if goes_on else 2) * width))
        self.kv, self.norm_k = nn.Linear(width, 2 * width), nn.RMSNorm(head)
        if goes_on:
            self.q, self.norm_q, self.out = nn.Linear(width, width), nn.RMSNorm(head), nn.Linear(width, width)
            self.mlp = perceptron(width, ratio, dropout)

    def modulate(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """Return shift and scale for the attention, and, unless the stream ends here, its gate and those of the MLP."""
        modulation: Tensor = self.modulation(F.silu(embedding))[:, None]
        return modulation.chunk(6 if self.goes_on else 2, dim=-1)

    def heads(self, x: Tensor) -> Tensor:
        """Return features, `(batch, length, k·width)`, as `(batch, k·heads, length, head)`."""
        return x.view(*x.shape[:2], -1, self.head).transpose(1, 2)

    def go_on(self, h: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """Return the state after the block: h + gate·out(attended), then h + gate·MLP(norm(h)·(1 + scale) + shift)."""
        _, _, gate, shift, scale, gate_mlp = modulation
        h = h + gate * self.out(attended)
        return torch.add(h, gate_mlp * self.mlp(norm(h) * (1 + scale) + shift))


class JointBlock(nn.Module):
    """Joint attention over patches and words, and an MLP for each; gates start at zero.

    Source: Esser et al. 2024, Scaling Rectified Flow Transformers, section 4 (MM-DiT, with normed queries and keys).
    """

    def __init__(self, width: int, head: int, ratio: int, dropout: float, last: bool) -> None:
        """Keep `width` features in both streams; the last block does not update the words."""
        super().__init__()
        self.patches = Stream(width, head, ratio, dropout)
        self.words = Stream(width, head, ratio, dropout, goes_on=not last)
        self.attend = Attend()

    def forward(self, h: Tensor, words: Tensor, mask: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Map patches `(batch, places, width)` and words `(batch, length, width)` to the same shapes.

        Args:
            h: Patches.
            words: Words.
            mask: True for patches and words that exist, `(batch, 1, 1, places + length)`.
            embedding: Time and condition, `(batch, width)`.
        """
        streams, states = (self.patches, self.words), (h, words)
        modulations = [stream.modulate(embedding) for stream in streams]
        inputs = [norm(x) * (1 + scale) + shift for x, (shift, scale, *_) in zip(states, modulations, strict=True)]
        keys, values, queries = [], [], []
        for stream, x in zip(streams, inputs, strict=True):
            k, v = stream.heads(stream.kv(x)).chunk(2, dim=1)
            keys.append(_normed(stream.norm_k, k))
            values.append(v)
            if stream.goes_on:
                queries.append(_normed(stream.norm_q, stream.heads(stream.q(x))))
        q, k, v = (torch.cat(parts, dim=2) for parts in (queries, keys, values))
        attended = self.attend(q, k, v, mask)
        flat = attended.transpose(1, 2).flatten(2)
        places = h.shape[1]
        h = self.patches.go_on(h, flat[:, :places], modulations[0])
        if self.words.goes_on:
            words = self.words.go_on(words, flat[:, places:], modulations[1])
        return h, words


def _normed(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a norm in float32 to features that may be of half precision."""
    output: Tensor = layer(x.float())
    return output.to(x.dtype)


class JointDiT(nn.Module):
    """Patches and words through `depth` joint blocks.

    Source: Esser et al. 2024, section 4.
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
            context: Length of a condition token.
            width: Features of a patch and of a word; a multiple of `head`.
            depth: Number of blocks.
            head: Features of one attention head.
            patch: Side of a patch.
            ratio: Width of the hidden layer of an MLP, over `width`.
            dropout: Dropout inside the MLPs.

        Raises: ValueError: If a number is too small, `head` does not divide `width`, or `context` is None.
        """
        super().__init__()
        at_least(1, width=width, depth=depth, head=head, patch=patch, ratio=ratio)
        if width % head:
            raise ValueError(f"head {head} does not divide width {width}")
        if context is None:
            raise ValueError("it needs tokens: set conditioning=text or conditioning=pretrained")
        self.embedding_dim, self.multiple = width, patch
        self.time_embedding = TimeEmbedding(256, width)
        self.patch_in = gather(dims, channels, width, patch)
        self.words_in = nn.Linear(context, width)
        self.blocks = nn.ModuleList(
            JointBlock(width, head, ratio, dropout, last=place == depth - 1) for place in range(depth)
        )
        self.modulation_out = zeroed(nn.Linear(width, 2 * width))
        self.patch_out = zeroed(spread(dims, width, outputs or channels, patch))

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Map `(batch, channels, *space)` and times `(batch,)` to an output with the same space.

        Raises: ValueError: If the condition has no tokens.
        """
        if cond is None or cond.tokens is None:
            raise ValueError("this network needs a condition with tokens: pass cond with tokens")
        embedding = self.time_embedding(time, cond)
        patches = self.patch_in(concatenated(x, cond))
        h = patches.flatten(2).transpose(1, 2)
        h = h + positions(tuple(patches.shape[2:]), h.shape[-1], h)
        words = self.words_in(cond.tokens)
        exist = torch.ones(words.shape[:2], dtype=torch.bool, device=h.device) if cond.mask is None else cond.mask
        mask = F.pad(exist, (h.shape[1], 0), value=True)[:, None, None]
        for block in self.blocks:
            h, words = block(h, words, mask, embedding)
        shift, scale = self.modulation_out(F.silu(embedding))[:, None].chunk(2, dim=-1)
        h = norm(h) * (1 + scale) + shift
        output: Tensor = self.patch_out(h.transpose(1, 2).reshape(patches.shape))
        return output
