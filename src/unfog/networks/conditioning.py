"""What a network may be told beside the noisy state, and the embedders that make it."""

from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.attention import attend


@dataclass(frozen=True)
class Cond:
    """The condition of one batch, in the forms that a network can take.

    Attributes:
        vector: Added to the time embedding, `(batch, embedding)`.
        tokens: What cross-attention reads, `(batch, length, context)`.
        mask: Which tokens there are, `(batch, length)` of bool; None is all.
        concat: Planes beside the state, `(batch, planes, *space)`.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    concat: Tensor | None = None

    def followed_by(self, other: "Cond") -> "Cond":
        """Return the condition of both batches, one after the other; both are in the same forms."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return Cond(*(None if one is None else torch.cat([one, more]) for one, more in pairs))


class Embedder(Protocol):
    """Turns one tensor, in which the condition of a batch is written, into a `Cond`."""

    def __call__(self, condition: Tensor, drop: Tensor | None = None) -> Cond:
        """Embed a condition, `(batch, ...)`; where `drop`, `(batch,)` of bool, is set, as if nothing were told."""
        ...

    def null(self, batch: int) -> Cond:
        """Return the condition 'nothing is told' for a batch."""
        ...


class ClassEmbedding(nn.Module):
    """A learned vector for each class, and one more, the null class, for 'no label'."""

    def __init__(self, classes: int, dim: int) -> None:
        """Make a table of `classes` + 1 vectors of `dim` entries."""
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, dim)

    def forward(self, condition: Tensor, drop: Tensor | None = None) -> Cond:
        """Embed class numbers, `(batch,)`; `classes` itself is the null class."""
        labels = condition if drop is None else condition.masked_fill(drop, self.classes)
        return Cond(vector=self.table(labels))

    def null(self, batch: int) -> Cond:
        """Return the condition 'no label' for a batch."""
        return self.forward(torch.full((batch,), self.classes, device=self.table.weight.device))


class NumbersEmbedding(nn.Module):
    """linear(SiLU(linear(c))) of a row of numbers, and a learned vector for 'not told'.

    For several labels at once, c is 1 where a label holds and 0 elsewhere; 'none of them' is not 'not told'.
    """

    def __init__(self, numbers: int, dim: int) -> None:
        """Map `numbers` numbers of about unit size to `dim` entries."""
        super().__init__()
        self.numbers = numbers
        self.linear_1, self.linear_2 = nn.Linear(numbers, dim), nn.Linear(dim, dim)
        self.missing = nn.Parameter(torch.zeros(dim))

    def forward(self, condition: Tensor, drop: Tensor | None = None) -> Cond:
        """Embed numbers, `(batch, numbers)`."""
        vector = self.linear_2(F.silu(self.linear_1(condition.float())))
        return Cond(vector=vector if drop is None else torch.where(drop[:, None], self.missing, vector))

    def null(self, batch: int) -> Cond:
        """Return the condition 'not told' for a batch."""
        return Cond(vector=self.missing.expand(batch, -1))


class PlanesEmbedding(nn.Module):
    """Planes that are put beside the state, and one more that is 1 where they are told and 0 where they are not."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Expect planes of this shape, `(planes, *space)`."""
        super().__init__()
        self.told: Tensor
        self.shape = shape
        self.register_buffer("told", torch.ones(1, 1, *shape[1:]), persistent=False)

    def forward(self, condition: Tensor, drop: Tensor | None = None) -> Cond:
        """Append the plane 'told' to planes, `(batch, planes, *space)`."""
        planes = torch.cat([condition, self.told.expand(len(condition), *self.told.shape[1:])], 1)
        return Cond(concat=planes if drop is None else planes * (~drop).reshape(-1, *[1] * (planes.ndim - 1)))

    def null(self, batch: int) -> Cond:
        """Return planes of nothing."""
        return Cond(concat=self.told.new_zeros(batch, self.shape[0] + 1, *self.shape[1:]))


class WordsLayer(nn.Module):
    """h + attention(norm(h)), then h + perceptron(norm(h)): a transformer layer with the norms ahead.

    Source: Vaswani et al. 2017, section 3.1; Xiong et al. 2020, On Layer Normalization (where the norms stand).
    """

    def __init__(self, width: int, head: int = 32) -> None:
        """Keep `width` entries a word, in heads of `head`."""
        super().__init__()
        self.head = head
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """Map words `(batch, length, width)`, of which the mask `(batch, length)` says which there are."""
        batch, length, width = h.shape
        q, k, v = self.qkv(self.norm(h)).view(batch, length, 3, -1, self.head).permute(2, 0, 3, 1, 4)
        h = h + self.out(attend(q, k, v, mask[:, None, None]).transpose(1, 2).reshape(batch, length, width))
        result: Tensor = h + self.mlp(self.norm_mlp(h))
        return result


class TextEncoder(nn.Module):
    """Words through a few transformer layers: a token for each, and the first, the start, as a vector besides.

    A word is a 32-bit number, 1 the start and 0 no word (`data.text.tokenise`). Its vector is the sum of two rows, the
    number's remainder and quotient choosing one of a thousand each: so every word has one, unknown words too, and two
    words share theirs by a chance of one in a million. A convolution shows each word its neighbours: that "red" belongs
    to "circle" attention finds out only slowly. The empty text, the start alone, means 'nothing is told'.

    Source: Vaswani et al. 2017 (layers); Svenstrup et al. 2017, Hash Embeddings.
    """

    ROWS: ClassVar[int] = 1024
    REACH: ClassVar[int] = 2

    def __init__(self, dim: int, *, width: int, layers: int, length: int) -> None:
        """Give tokens of `width` entries, at most `length` of them, and a vector of `dim` entries."""
        super().__init__()
        self.remainder, self.quotient = nn.Embedding(self.ROWS, width), nn.Embedding(self.ROWS, width)
        self.place = nn.Embedding(length, width)
        self.near = nn.Conv1d(width, width, 2 * self.REACH + 1, padding=self.REACH)
        for table in (self.remainder, self.quotient, self.place):
            nn.init.normal_(table.weight, std=0.5)
        self.layers = nn.ModuleList(WordsLayer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.pooled = nn.Linear(width, dim)

    def forward(self, condition: Tensor, drop: Tensor | None = None) -> Cond:
        """Encode words, `(batch, length)` of whole numbers."""
        words = condition
        if drop is not None:
            words = torch.where(drop[:, None], F.pad(words[:, :1], (0, words.shape[1] - 1)), words)
        mask = words != 0  # kept at full length, so that no text depends on those beside it
        hashed = self.remainder(words % self.ROWS) + self.quotient(words // self.ROWS % self.ROWS)
        hashed = hashed * mask[..., None]
        h = hashed + self.near(hashed.mT).mT + self.place.weight
        for layer in self.layers:
            h = layer(h, mask)
        h = self.norm(h)
        return Cond(vector=self.pooled(h[:, 0]), tokens=h, mask=mask)

    def null(self, batch: int) -> Cond:
        """Return the condition 'no text' for a batch."""
        start = torch.zeros(batch, len(self.place.weight), dtype=torch.long, device=self.place.weight.device)
        start[:, 0] = 1
        return self.forward(start)
