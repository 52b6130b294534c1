"""Embeddings of the rows of a data set, which keep its captions and classes."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from unfog.data.source import Batch, Data, Indices, Source


@dataclass(frozen=True)
class EmbeddedRows:
    """A source whose rows are the embeddings of another one's, computed when they are taken.

    Attributes:
        rows: The rows that are embedded.
        embed: Maps rows as stored to embeddings, `(batch, dim)`.
        dim: Length of an embedding.
    """

    rows: Source
    embed: Callable[[Tensor], Tensor]
    dim: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return (self.dim,)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.rows.classes

    @property
    def slow(self) -> bool:
        """Whether rows are slow to load: the embeddings are computed."""
        return True

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def take(self, indices: Indices) -> Batch:
        """Return embeddings with the annotations of their rows."""
        found = self.rows.take(indices)
        return found._replace(x=self.embed(found.x))

    def about(self, indices: Indices) -> Batch:
        """Return the annotations of rows."""
        return self.rows.about(indices)


def embedded(data: Data, embed: Callable[[Tensor], Tensor], dim: int) -> Data:
    """Return the embeddings of the rows of a data set, float32 `(dim,)`.

    Args:
        data: The data set.
        embed: Maps rows as stored to embeddings, `(batch, dim)`.
        dim: Length of an embedding.
    """
    return Data(EmbeddedRows(data.train, embed, dim), EmbeddedRows(data.heldout, embed, dim))
