"""Scaled dot-product attention, shared by all networks."""

from itertools import repeat

import torch
from torch import Tensor
from torch.nn import functional as F

_FEW = 1024
"""Sequence length up to which plain products beat torch's fused attention in bfloat16 on a CPU."""
_AT_ONCE = 2**21
"""Scores computed at a time: four MiB in bfloat16, which fit the cache."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q·k / sqrt(d))·v.

    On a CPU torch's fused attention is slow in bfloat16: forward and backward take 3 to 9 times as long as plain
    products at 20 to 256 places, 1.5 times at a thousand (`benchmarks/attention.py`).

    Args:
        q: Queries, `(batch, heads, places, d)`.
        k: Keys, `(batch, heads, tokens, d)`.
        v: Values, shaped like `k`.
        mask: True for tokens that exist, broadcastable to `(batch, heads, places, tokens)`; default: all exist.

    Returns: `(batch, heads, places, d)`.
    Source: Vaswani et al. 2017, Attention Is All You Need, eq. 1.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and max(q.shape[-2], k.shape[-2]) <= _FEW:
        return formula(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, mask)


def formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute `attend` by plain products, a few heads at a time."""
    count = max(1, _AT_ONCE // (q.shape[2] * k.shape[2]))
    queries, keys, values = (torch.split(part.flatten(0, 1), count) for part in (q, k, v))
    masks = repeat(None) if mask is None else torch.split(mask.expand(*q.shape[:2], -1, -1).flatten(0, 1), count)
    return torch.cat([_few(*chunk) for chunk in zip(queries, keys, values, masks, strict=False)]).view(q.shape)


def _few(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention of a few heads, each `(heads, places, d)`."""
    scores = torch.bmm(q * q.shape[-1] ** -0.5, k.mT)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.bmm(torch.softmax(scores, dim=-1), v)
