"""The condition of a network, and the embedders that produce it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unfog.networks.attention import Attend
from unfog.runtime.brief import brief


@dataclass(frozen=True)
class Cond:
    """The condition of one batch, in the forms that networks accept.

    Attributes:
        vector: Added to the time embedding, `(batch, embedding)`.
        tokens: Keys and values of cross-attention, `(batch, length, context)`.
        mask: True for tokens that exist, `(batch, length)`; None means all.
        concat: Channels concatenated to the state, `(batch, planes, *space)`.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    concat: Tensor | None = None

    __repr__ = brief

    def plus(self, vector: Tensor) -> "Cond":
        """Add a vector, `(batch, embedding)`, to the time embedding as well."""
        return replace(self, vector=vector if self.vector is None else self.vector + vector)

    def followed_by(self, other: "Cond") -> "Cond":
        """Concatenate two batches of conditions; both have the same fields."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return Cond(*(None if first is None else torch.cat([first, second]) for first, second in pairs))


class Embedder(Protocol):
    """Maps the condition of a batch, stored as one tensor, to a `Cond`."""

    def __call__(self, condition: Tensor, drop: Tensor | None = None) -> Cond:
        """Embed conditions, `(batch, ...)`; rows where `drop`, `(batch,)`, is True become unconditional."""
        ...

    def null(self, batch: int) -> Cond:
        """Return the null condition for a batch: unconditional."""
        ...


class ClassEmbedding(nn.Module):
    """A learned vector for each class, and one for the null class, 'no label'."""

    def __init__(self, classes: int, dim: int) -> None:
        """Create `classes` + 1 vectors of length `dim`."""
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, dim)

    def forward(self, condition: Tensor, drop: Tensor | None = None) -> Cond:
        """Embed class numbers, `(batch,)`; `classes` itself is the null class."""
        labels = condition if drop is None else condition.masked_fill(drop, self.classes)
        return Cond(vector=self.table(labels))

    def null(self, batch: int) -> Cond:
        """Return the null condition, 'no label', for a batch."""
        return self.forward(torch.full((batch,), self.classes, device=self.table.weight.device))


class NumbersEmbedding(nn.Module):
    """linear(SiLU(linear(c))) of a vector of numbers, and a learned null vector.

    For multi-label data c is a multi-hot vector; all zeros ('no label holds') is not the null condition ('unknown').
    """

    def __init__(self, numbers: int, dim: int, *, flags: bool = False) -> None:
        """Map `numbers` numbers of about unit variance, or flags, to a vector of length `dim`."""
        super().__init__()
        self.numbers, self.flags = numbers, flags
        self.linear_1, self.linear_2 = nn.Linear(numbers, dim), nn.Linear(dim, dim)
        self.missing = nn.Parameter(torch.zeros(dim))

    def forward(self, condition: Tensor, drop: Tensor | None = None) -> Cond:
        """Embed numbers, `(batch, numbers)`."""
        vector = self.linear_2(F.silu(self.linear_1(condition.float())))
        return Cond(vector=vector if drop is None else torch.where(drop[:, None], self.missing, vector))

    def null(self, batch: int) -> Cond:
        """Return the null condition for a batch."""
        return Cond(vector=self.missing.expand(batch, -1))


class PlanesEmbedding(nn.Module):
    """Channels concatenated to the state, and an indicator channel: 1 if the condition is given, 0 if dropped."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Take channels of this shape, `(planes, *space)`."""
        super().__init__()
        self.given: Tensor
        self.shape = shape
        self.register_buffer("given", torch.ones(1, 1, *shape[1:]), persistent=False)

    def forward(self, condition: Tensor, drop: Tensor | None = None) -> Cond:
        """Append the indicator channel to `(batch, planes, *space)`."""
        planes = torch.cat([condition, self.given.expand(len(condition), *self.given.shape[1:])], 1)
        return Cond(concat=planes if drop is None else planes * (~drop).reshape(-1, *[1] * (planes.ndim - 1)))

    def null(self, batch: int) -> Cond:
        """Return the null condition for a batch: zeros in all channels."""
        return Cond(concat=self.given.new_zeros(batch, self.shape[0] + 1, *self.shape[1:]))


class WordsLayer(nn.Module):
    """h + attention(norm(h)), then h + MLP(norm(h)): a pre-norm transformer layer.

    Source: Vaswani et al. 2017, section 3.1; Xiong et al. 2020, On Layer Normalization (pre-norm).
    """

    def __init__(self, width: int, head: int = 32) -> None:
        """Keep `width` features per word, in heads of `head` features."""
        super().__init__()
        self.head = head
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.attend = Attend()

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """Map words `(batch, length, width)` to the same shape; `mask`, `(batch, length)`, marks the real words."""
        batch, length, width = h.shape
        q, k, v = self.qkv(self.norm(h)).view(batch, length, 3, -1, self.head).permute(2, 0, 3, 1, 4)
        h = h + self.out(self.attend(q, k, v, mask[:, None, None]).transpose(1, 2).reshape(batch, length, width))
        result: Tensor = h + self.mlp(self.norm_mlp(h))
        return result


class TextEncoder(nn.Module):
    """Words through a few transformer layers: one token per word, and the start token projected to a vector.

    A word is a 32-bit number; 1 is the start and 0 is padding (`data.text.tokenise`). Its embedding is the sum of two
    rows of tables of 1,024, chosen by the number's remainder and quotient: so unknown words have embeddings too, and
    two words collide with a probability of one in a million. A convolution mixes neighbouring words, since attention
    is slow to learn that "red" belongs to "circle". The empty text, just the start, is the null condition.

    Source: Vaswani et al. 2017 (layers); Svenstrup et al. 2017, Hash Embeddings.
    """

    ROWS: ClassVar[int] = 1024
    REACH: ClassVar[int] = 2

    def __init__(self, dim: int, *, width: int, layers: int, length: int) -> None:
        """Produce at most `length` tokens of length `width`, and a vector of length `dim`."""
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
        """Encode words, `(batch, length)` of integers."""
        words = condition
        if drop is not None:
            words = torch.where(drop[:, None], F.pad(words[:, :1], (0, words.shape[1] - 1)), words)
        mask = words != 0  # kept at full length, so that a text does not depend on the rest of the batch
        hashed = self.remainder(words % self.ROWS) + self.quotient(words // self.ROWS % self.ROWS)
        hashed = hashed * mask[..., None]
        h = hashed + self.near(hashed.mT).mT + self.place.weight
        for layer in self.layers:
            h = layer(h, mask)
        h = self.norm(h)
        return Cond(vector=self.pooled(h[:, 0]), tokens=h, mask=mask)

    def null(self, batch: int) -> Cond:
        """Return the null condition, the empty text, for a batch."""
        start = torch.zeros(batch, len(self.place.weight), dtype=torch.long, device=self.place.weight.device)
        start[:, 0] = 1
        return self.forward(start)


class SeveralEmbedding(nn.Module):
    """Several embedders side by side: vectors are added, the tokens are those of the one that has some."""

    def __init__(self, parts: Sequence[Embedder], sizes: Sequence[int]) -> None:
        """Take the embedders, and how many numbers each takes for a row."""
        super().__init__()
        self.parts = nn.ModuleList(cast(Sequence[nn.Module], parts))
        self.sizes = tuple(sizes)

    def forward(self, condition: Tensor, drop: Tensor | None = None) -> Cond:
        """Embed whole numbers, `(batch, columns)`: for each part a flag, 0 where it is dropped, then its entries."""
        conds, place = [], 0
        for embedder, size in zip(self.parts, self.sizes, strict=True):
            given, entries = condition[:, place] > 0, condition[:, place + 1 : place + 1 + size]
            place += 1 + size
            absent = ~given if drop is None else ~given | drop
            conds.append(embedder(_entries(embedder, entries, absent), absent))
        return _joined(conds)

    def null(self, batch: int) -> Cond:
        """Return the null condition for a batch: that of every part."""
        return _joined([cast(Embedder, embedder).null(batch) for embedder in self.parts])


def _entries(embedder: nn.Module, entries: Tensor, absent: Tensor) -> Tensor:
    """Return the entries of a part as its embedder takes them."""
    if isinstance(embedder, TextEncoder):
        return entries.masked_fill(absent[:, None], 1)  # 1 is the start, the only word of the empty text
    if isinstance(embedder, ClassEmbedding):
        return entries[:, 0]
    assert isinstance(embedder, NumbersEmbedding)
    return entries if embedder.flags else entries.int().view(torch.float32)


def _joined(conds: Sequence[Cond]) -> Cond:
    """Return conditions as one: the sum of the vectors, and the tokens of the one that has some."""
    vectors = [cond.vector for cond in conds if cond.vector is not None]
    worded = next((cond for cond in conds if cond.tokens is not None), Cond())
    return Cond(vector=torch.stack(vectors).sum(0), tokens=worded.tokens, mask=worded.mask)
