"""Several conditions of one network at once, stored as one row of whole numbers."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from unfog.networks.conditioning import Cond, Embedder


class Columns(NamedTuple):
    """How the condition of one part stands in a row of whole numbers.

    Attributes:
        size: Columns.
        form: "number" for one number without an axis of its own, "numbers", or "floats", float32 by their bits.
    """

    size: int
    form: Literal["number", "numbers", "floats"] = "numbers"

    def packed(self, entries: Tensor) -> Tensor:
        """Return entries of rows, `(batch, ...)`, as int64 `(batch, size)`."""
        rows = entries.reshape(len(entries), self.size)
        return rows.float().view(torch.int32).long() if self.form == "floats" else rows.long()

    def unpacked(self, columns: Tensor) -> Tensor:
        """Return what `packed` got; flags come back as whole numbers."""
        if self.form == "floats":
            return columns.int().view(torch.float32)
        return columns[:, 0] if self.form == "number" else columns


class SeveralEmbedding(nn.Module):
    """Several embedders side by side: vectors are added, and tokens, of one length, follow each other."""

    def __init__(self, parts: Sequence[Embedder], columns: Sequence[Columns]) -> None:
        """Take the embedders, and how the condition of each stands in a row."""
        super().__init__()
        self.parts = nn.ModuleList(cast(Sequence[nn.Module], parts))
        self.columns = tuple(columns)

    def forward(self, condition: Tensor, drop: Tensor | None = None) -> Cond:
        """Embed whole numbers, `(batch, columns)`: for each part a flag, 0 where it is dropped, then its columns."""
        conds, place = [], 0
        for embedder, own in zip(self.parts, self.columns, strict=True):
            given, entries = condition[:, place] > 0, condition[:, place + 1 : place + 1 + own.size]
            place += 1 + own.size
            absent = ~given if drop is None else ~given | drop
            conds.append(embedder(own.unpacked(entries), absent))
        return _joined(conds)

    def null(self, batch: int) -> Cond:
        """Return the null condition for a batch: that of every part."""
        return _joined([cast(Embedder, embedder).null(batch) for embedder in self.parts])


def _joined(conds: Sequence[Cond]) -> Cond:
    """Return conditions as one: the sum of the vectors, and the tokens behind each other."""
    vectors = [cond.vector for cond in conds if cond.vector is not None]
    tokens = [(cond.tokens, cond.mask) for cond in conds if cond.tokens is not None]
    if len(tokens) > 1:
        masks = [h.new_ones(h.shape[:2], dtype=torch.bool) if mask is None else mask for h, mask in tokens]
        tokens = [(torch.cat([h for h, _ in tokens], 1), torch.cat(masks, 1))]
    joined, mask = tokens[0] if tokens else (None, None)
    return Cond(vector=torch.stack(vectors).sum(0), tokens=joined, mask=mask)
