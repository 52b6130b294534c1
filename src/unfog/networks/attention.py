"""Scaled dot-product attention, shared by all networks."""

from itertools import repeat
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.flash import flash, takes

Form = Literal["rule", "plain", "fused", "flash"]
"""How attention is computed: by plain products, by torch's fused kernel, by our own for small heads, or as the rule of
`attend` says."""
_FEW = 1024
"""Sequence length up to which the rule takes plain products in bfloat16 on a CPU."""
_AT_ONCE = 2**21
"""Scores computed at a time: four MiB in bfloat16, which fit the cache."""


class Attend(nn.Module):
    """Attention as part of a network, without weights.

    Attributes:
        head: Channels of a head, where they are known and nothing is masked.
        form: How it is computed.
    """

    def __init__(self, head: int = 0) -> None:
        """Follow the rule until somebody chooses."""
        super().__init__()
        self.head = head
        self.form: Form = "rule"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return `attend` of queries, keys and values, `(batch, heads, places, d)`."""
        return attend(q, k, v, mask, self.form)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, form: Form = "rule") -> Tensor:
    """Return softmax(q·k / sqrt(d))·v.

    The rule: in bfloat16 on a CPU torch's fused attention is slow, and plain products are taken for up to 1,024 places.
    On one AMD and one Intel processor forward and backward took 3 to 9 times as long as these at 20 to 256 places, 1.5
    times at a thousand (`benchmarks/attention.py`); a training measures it.

    Args:
        q: Queries, `(batch, heads, places, d)`.
        k: Keys, `(batch, heads, tokens, d)`.
        v: Values, shaped like `k`.
        mask: True for tokens that exist, broadcastable to `(batch, heads, places, tokens)`; default: all exist.
        form: How it is computed; the results agree up to rounding. Where there is no kernel, "flash" is the rule.

    Returns: `(batch, heads, places, d)`.
    Source: Vaswani et al. 2017, Attention Is All You Need, eq. 1.
    """
    if form == "flash" and mask is None and takes(q, k, v):
        return flash(q, k, v)
    ruled = q.device.type == "cpu" and q.dtype == torch.bfloat16 and max(q.shape[-2], k.shape[-2]) <= _FEW
    if form == "plain" or (form in ("rule", "flash") and ruled):
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
