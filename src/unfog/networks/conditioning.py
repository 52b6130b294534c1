"""What a network may be told beside the noisy state, and the embedders that make it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Cond:
    """The condition of one batch, in the forms that a network can take.

    Attributes:
        vector: Added to the time embedding, `(batch, embedding)`.
    """

    vector: Tensor | None = None


class ClassEmbedding(nn.Module):
    """A learned vector for each class, and one more, the null class, for 'no label'."""

    def __init__(self, classes: int, dim: int) -> None:
        """Make a table of `classes` + 1 vectors of `dim` entries."""
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, dim)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, labels: Tensor, drop: Tensor | None = None) -> Cond:
        """Embed labels, with those marked in `drop` replaced by the null class.

        Args:
            labels: Class numbers, `(batch,)`; `classes` itself is the null class.
            drop: Which labels to forget, `(batch,)` of bool.

        Returns: A `Cond` with `vector` of shape `(batch, dim)`.
        """
        if drop is not None:
            labels = labels.masked_fill(drop, self.classes)
        return Cond(vector=self.table(labels))

    def null(self, batch: int) -> Cond:
        """Return the condition 'no label' for a batch."""
        return self.forward(torch.full((batch,), self.classes, device=self.table.weight.device))
