"""Conditioning: what a model is conditioned on in training, and what a request for samples may specify."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from unfog.data.modality import Modality, modality_of
from unfog.data.source import Batch
from unfog.data.text import WORDS, tokenise
from unfog.networks.conditioning import ClassEmbedding, Embedder, NumbersEmbedding, TextEncoder
from unfog.runtime.errors import UserError, unknown

Asked = int | float | str | Sequence[Any] | Mapping[str, Any] | Tensor | None
"""The condition of a request: one value for all samples, or a sequence with one per sample; None for no request."""


class Known(NamedTuple):
    """What a model knows about its data.

    Attributes:
        shape: Shape of one row, as the network sees it.
        classes: Names of the classes.
        prompts: Some captions, or class names, of held-out rows.
        stored: Shape of one row as stored. Default: `shape`.
        own: The modality that the data set names for its rows, if it does.
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    stored: tuple[int, ...] | None = None
    own: Modality | None = None

    @property
    def modality(self) -> Modality:
        """What a row is."""
        return self.own or modality_of(self.stored or self.shape)


class Conditioning(Protocol):
    """One kind of condition: read from rows in training, from a request in sampling, and embedded for the network."""

    @property
    def context(self) -> int | None:
        """Entries of a token that cross-attention reads, or None."""
        ...

    @property
    def captioned(self) -> bool:
        """Whether the condition is read from captions."""
        ...

    @property
    def dropout(self) -> float:
        """Fraction of the rows whose condition is dropped in training, which guidance needs; 0.1 is usual."""
        ...

    def planes(self, known: Known) -> int:
        """Return the number of channels that are concatenated to the state."""
        ...

    def build(self, known: Known, dim: int) -> Embedder | None:
        """Return the embedder for networks with time embeddings of `dim` entries; None if there is no condition."""
        ...

    def read(self, known: Known, batch: Batch, x0: Tensor, u: Tensor) -> Tensor | None:
        """Return the condition of rows as one tensor, `(batch, ...)`, or None.

        Args:
            known: What the model knows about the data.
            batch: The rows as stored.
            x0: The encoded rows.
            u: Uniform numbers, `(batch, 4)`, for random conditions.
        """
        ...

    def ask(self, known: Known, asked: Asked, count: int) -> Tensor | None:
        """Return the condition of `count` samples as one tensor, or None for an unconditional model.

        Raises: UserError: If the model cannot be conditioned on `asked`.
        """
        ...


@runtime_checkable
class Following(Protocol):
    """A condition that samples of another model can be, in a cascade."""

    def following(self, known: Known, rows: Tensor) -> Tensor:
        """Return the condition that samples of the model before are, as stored, `(batch, *shape)`."""
        ...


@runtime_checkable
class Depicting(Protocol):
    """A condition that every picture has by itself, and that can be anything in between."""

    def depicted(self, known: Known, rows: Tensor) -> Tensor:
        """Return the condition of rows as stored, `(rows, numbers)`."""
        ...

    def written(self, known: Known, texts: Sequence[str]) -> Tensor:
        """Return the condition that texts have, `(texts, numbers)`."""
        ...


@runtime_checkable
class Beside(Protocol):
    """A condition with defaults that follow from the data."""

    def beside(self, data: object) -> "Conditioning":
        """Return it with what a data set's specification says, where that was not chosen."""
        ...


@dataclass(frozen=True)
class WithNull:
    """A condition that is dropped now and then in training, so that the model also works without it.

    Attributes:
        dropout: Fraction of the rows whose condition is dropped in training, which guidance needs; 0.1 is usual.
    """

    dropout: float = 0.1
    context: ClassVar[int | None] = None
    captioned: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the dropout."""
        if not 0 <= self.dropout <= 1:
            raise UserError(f"conditioning.dropout must lie between 0 and 1, not {self.dropout}")

    def planes(self, known: Known) -> int:
        """Return 0: no channels are concatenated to the state."""
        return 0


@dataclass(frozen=True)
class ClassConditioning(WithNull):
    """Conditions on the class, requested by number or name; without a request, all classes in turn."""

    def build(self, known: Known, dim: int) -> Embedder | None:
        """Return the embedder, or None where the data have no classes."""
        return ClassEmbedding(len(known.classes), dim) if known.classes else None

    def read(self, known: Known, batch: Batch, x0: Tensor, u: Tensor) -> Tensor | None:
        """Return the class numbers, `(batch,)`."""
        if batch.labels is not None and batch.labels.ndim > 1:
            raise UserError("a row of these data has several labels: train with conditioning=labels")
        return batch.labels

    def ask(self, known: Known, asked: Asked, count: int) -> Tensor | None:
        """Return a class number per sample."""
        if not known.classes:
            _nothing(asked)
            return None
        if asked is None:
            return torch.arange(count) % len(known.classes)
        numbers = [_class_number(known, one) for one in each(asked, count, (int, str))]
        return torch.tensor(numbers, dtype=torch.long)


@dataclass(frozen=True)
class LabelsConditioning(WithNull):
    """Conditions on a set of labels, requested by names separated by commas, or by a tensor of 0 and 1."""

    def build(self, known: Known, dim: int) -> Embedder | None:
        """Return the embedder."""
        if not known.classes:
            raise UserError("conditioning=labels needs data with labels: use conditioning=none")
        return NumbersEmbedding(len(known.classes), dim, flags=True)

    def read(self, known: Known, batch: Batch, x0: Tensor, u: Tensor) -> Tensor | None:
        """Return which labels hold, `(batch, classes)`."""
        assert batch.labels is not None
        return F.one_hot(batch.labels, len(known.classes)).bool() if batch.labels.ndim == 1 else batch.labels

    def ask(self, known: Known, asked: Asked, count: int) -> Tensor | None:
        """Return which labels hold; without a request, each label alone in turn."""
        if asked is None:
            return F.one_hot(torch.arange(count) % len(known.classes), len(known.classes)).bool()
        if isinstance(asked, Tensor):
            return _rows(asked, count, (len(known.classes),)).bool()
        rows = torch.zeros(count, len(known.classes), dtype=torch.bool)
        for row, one in enumerate(each(asked, count, (int, str))):
            whole = not isinstance(one, str) or one in known.classes  # a name may itself contain a comma
            names = [one] if whole else [name.strip() for name in one.split(",") if name.strip()]
            rows[row, [_class_number(known, name) for name in names]] = True
        return rows


@dataclass(frozen=True)
class ValuesConditioning(WithNull):
    """Conditions on numbers of about unit variance.

    Attributes:
        count: Numbers per row.
    """

    count: int = 1

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        if self.count < 1:
            raise UserError(f"conditioning.count must be 1 or more, not {self.count}")

    def build(self, known: Known, dim: int) -> Embedder | None:
        """Return the embedder."""
        return NumbersEmbedding(self.count, dim)

    def read(self, known: Known, batch: Batch, x0: Tensor, u: Tensor) -> Tensor | None:
        """Return the numbers, `(batch, count)`."""
        found = 0 if batch.values is None else batch.values.shape[1]
        if found != self.count:
            raise UserError(f"the data give {found} values for a row, where conditioning.count is {self.count}")
        return batch.values

    def ask(self, known: Known, asked: Asked, count: int) -> Tensor | None:
        """Return the numbers; a single row of them is used for all samples."""
        try:
            rows = torch.as_tensor(asked, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise UserError(f"this model is conditioned on {self.count} numbers, not on {asked!r}") from None
        if rows.ndim < 2:  # with count 1, a sequence holds one number per sample
            rows = rows.reshape(-1, 1) if self.count == 1 else rows.reshape(1, -1)
        if not rows.isfinite().all():
            raise UserError(f"this model is conditioned on finite numbers, not on {asked!r}")
        return _rows(rows.expand(count, -1) if len(rows) == 1 else rows, count, (self.count,))


@dataclass(frozen=True)
class TextConditioning(WithNull):
    """Conditions on a text, read by an encoder that is trained together with the model; the empty text is no condition.

    Where the data have no captions, the names of the classes are the text.

    Attributes:
        width: Entries of a token.
        layers: Transformer layers of the encoder.
        length: Longest text, in words and punctuation marks, including the start token.
    """

    captioned: ClassVar[bool] = True
    width: int = 128
    layers: int = 2
    length: int = WORDS

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if self.width < 1 or self.width % 32 or self.layers < 0 or self.length < 2:
            raise UserError(
                "conditioning.width must be a multiple of 32, layers 0 or more and length 2 or more, not "
                f"{self.width}, {self.layers} and {self.length}"
            )

    @property
    def context(self) -> int:  # type: ignore[override]  # an option here, a constant elsewhere
        """Entries of a token."""
        return self.width

    def build(self, known: Known, dim: int) -> Embedder | None:
        """Return the encoder."""
        return TextEncoder(dim, width=self.width, layers=self.layers, length=self.length)

    def read(self, known: Known, batch: Batch, x0: Tensor, u: Tensor) -> Tensor | None:
        """Return the word numbers of the captions, `(batch, length)`."""
        return tokenise(captions(batch, known.classes), self.length)

    def ask(self, known: Known, asked: Asked, count: int) -> Tensor | None:
        """Return the word numbers of the prompts; without a request, of the known prompts in turn."""
        return tokenise(prompted(known, asked, count), self.length, warn=True)


@dataclass(frozen=True)
class NoConditioning:
    """Unconditional, whatever classes or captions the data have."""

    dropout: ClassVar[float] = 0.0
    context: ClassVar[int | None] = None
    captioned: ClassVar[bool] = False

    def planes(self, known: Known) -> int:
        """Return 0: no channels are concatenated to the state."""
        return 0

    def build(self, known: Known, dim: int) -> Embedder | None:
        """Return no embedder."""
        return None

    def read(self, known: Known, batch: Batch, x0: Tensor, u: Tensor) -> Tensor | None:
        """Return no condition."""
        return None

    def ask(self, known: Known, asked: Asked, count: int) -> Tensor | None:
        """Return no condition."""
        _nothing(asked)
        return None


def captions(batch: Batch, classes: Sequence[str]) -> list[str]:
    """Return a text per row: its caption, else the name of its class.

    Raises: UserError: If the data have neither.
    """
    if batch.captions is not None:
        return batch.captions
    if batch.labels is None:
        raise UserError("conditioning=text needs captions or classes, but the data have neither: use conditioning=none")
    if batch.labels.ndim == 1:
        return [classes[label] for label in batch.labels.tolist()]
    return [", ".join(classes[place] for place in row.nonzero()[:, 0].tolist()) for row in batch.labels]


def _nothing(asked: Asked) -> None:
    """Refuse a condition for an unconditional model."""
    if asked is not None:
        raise UserError("this model was trained without conditions: omit the condition")


def prompted(known: Known, asked: Asked, count: int) -> list[str]:
    """Return the requested text of each sample; without a request the known prompts in turn."""
    if asked is None:
        return [known.prompts[place % len(known.prompts)] if known.prompts else "" for place in range(count)]
    return each(asked, count, (str,))


def each(asked: Asked, count: int, kinds: tuple[type, ...]) -> list[Any]:
    """Return the requested condition of each sample."""
    whole = asked.tolist() if isinstance(asked, Tensor) else asked
    given: list[Any] = list(whole) if isinstance(whole, Iterable) and not isinstance(whole, str) else [whole] * count
    wanted = " or ".join({int: "labels, whole numbers", str: "text"}[kind] for kind in kinds)
    found = []
    for one in given:
        try:
            found.append(one if isinstance(one, str) else index(one))
        except TypeError:
            raise UserError(f"this model is conditioned on {wanted}, not on {one!r}") from None
        if not isinstance(found[-1], kinds):
            raise UserError(f"this model is conditioned on {wanted}, not on {one!r}")
    if len(found) != count:
        raise UserError(f"{len(found)} labels or prompts do not fit {count} samples: give one, or one per sample")
    return found


def _rows(rows: Tensor, count: int, shape: tuple[int, ...]) -> Tensor:
    """Return rows after checking their number and shape."""
    if tuple(rows.shape) != (count, *shape):
        raise UserError(
            f"{count} samples of this model need a condition of shape {(count, *shape)}, not {tuple(rows.shape)}"
        )
    return rows


def _another(number: int, classes: Sequence[str]) -> bool:
    """Return whether a number given as text may mean another class than that of its place, by its name."""
    meant = [place for place, name in enumerate(classes) if name.isdecimal() and int(name) == number]
    return number not in meant and bool(meant or all(name.isdecimal() for name in classes))


def _class_number(known: Known, one: int | str) -> int:
    """Return the number of a class, given its name or its number."""
    if one in known.classes:
        return known.classes.index(str(one))
    try:
        number = int(one)
    except ValueError:
        raise unknown("label", str(one), known.classes) from None
    if not 0 <= number < len(known.classes):
        raise UserError(f"the label {number} is out of range: this model knows 0 to {len(known.classes) - 1}")
    name = known.classes[number]
    if isinstance(one, str) and _another(number, known.classes):
        raise UserError(
            f"the label {one} may mean the class {name!r}, which is number {number}, or one named like it: give the "
            f"name, one of {', '.join(known.classes[:10])}"
        )
    return number
