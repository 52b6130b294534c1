"""Attention, the one line that all networks share."""

import torch
from torch import Tensor
from torch.nn import functional as F

_FEW = 256
"""Places up to which the formula, written out, is quicker on a CPU than torch's fused attention in bfloat16."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q·k / sqrt(d))·v.

    On a CPU torch's fused attention goes back slowly in bfloat16: three to five times as long as the formula for 20 to
    64 places, as long for a thousand (`benchmarks/attention.py`).

    Args:
        q: Queries, `(batch, heads, places, d)`.
        k: Keys, `(batch, heads, tokens, d)`.
        v: Values, of the same shape.
        mask: Which tokens there are, broadcast to `(batch, heads, places, tokens)`, of bool; None is all.

    Returns: `(batch, heads, places, d)`.
    Source: Vaswani et al. 2017, Attention Is All You Need, eq. 1.
    """
    quicker = q.device.type == "cpu" and q.dtype == torch.bfloat16 and max(q.shape[-2], k.shape[-2]) <= _FEW
    return formula(q, k, v, mask) if quicker else F.scaled_dot_product_attention(q, k, v, mask)


def formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return what `attend` returns, step by step."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, dim=-1) @ v
