"""Attention, the one line that all networks share."""

from itertools import repeat

import torch
from torch import Tensor
from torch.nn import functional as F

_FEW = 1024
"""Places up to which the formula, written out, is quicker on a CPU than torch's fused attention in bfloat16."""
_AT_ONCE = 2**21
"""Scores that the formula works on at a time: four MiB in bfloat16, which stay near the processor."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q·k / sqrt(d))·v.

    On a CPU torch's fused attention is slow in bfloat16: three to nine times as long, there and back, as the formula
    for 20 to 256 places, 1.5 times for a thousand (`benchmarks/attention.py`).

    Args:
        q: Queries, `(batch, heads, places, d)`.
        k: Keys, `(batch, heads, tokens, d)`.
        v: Values, of the same shape.
        mask: Which tokens there are, broadcast to `(batch, heads, places, tokens)`, of bool; None is all.

    Returns: `(batch, heads, places, d)`.
    Source: Vaswani et al. 2017, Attention Is All You Need, eq. 1.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and max(q.shape[-2], k.shape[-2]) <= _FEW:
        return formula(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, mask)


def formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return what `attend` returns, step by step, for some heads of some rows at a time."""
    some = max(1, _AT_ONCE // (q.shape[2] * k.shape[2]))
    masks = repeat(None) if mask is None else torch.split(mask.expand(*q.shape[:2], -1, -1).flatten(0, 1), some)
    parts = (torch.split(part.flatten(0, 1), some) for part in (q, k, v))
    return torch.cat([_few(*few) for few in zip(*parts, masks, strict=False)]).view(q.shape)


def _few(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention of some heads, each `(heads, places, d)`."""
    scores = torch.bmm(q * q.shape[-1] ** -0.5, k.mT)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.bmm(torch.softmax(scores, dim=-1), v)
