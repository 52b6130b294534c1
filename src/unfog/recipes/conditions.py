"""What a model is told of each row, and what a request may ask of it: the kinds of a recipe's conditioning."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from unfog.data.modality import Modality, images, modality_of
from unfog.data.source import Batch
from unfog.data.text import tokenise
from unfog.networks.conditioning import ClassEmbedding, Embedder, NumbersEmbedding, PlanesEmbedding, TextEncoder
from unfog.runtime.errors import UserError, unknown

Asked = int | float | str | Sequence[Any] | Tensor | None
"""What a request asks for: one thing for all samples, or a sequence with one for each; None asks for nothing."""


class Known(NamedTuple):
    """What a model knows of its data.

    Attributes:
        shape: Shape of one row, as the network sees it.
        classes: Names of the classes.
        prompts: Some captions, or names of classes, of held-out rows.
        stored: Shape of one row as it is stored; the same if left away.
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
    """One kind of condition: from rows in training, from a request in sampling, and into the network."""

    @property
    def context(self) -> int | None:
        """Entries of a token that cross-attention reads, or None."""
        ...

    @property
    def captioned(self) -> bool:
        """Whether rows are read by their captions."""
        ...

    @property
    def dropout(self) -> float:
        """Share of the conditions that are forgotten in training; guidance needs some."""
        ...

    def planes(self, known: Known) -> int:
        """Return how many channels stand beside the state."""
        ...

    def build(self, known: Known, dim: int) -> Embedder | None:
        """Return the embedder for networks with time embeddings of `dim` entries; None if there is nothing to tell."""
        ...

    def read(self, known: Known, batch: Batch, x0: Tensor, u: Tensor) -> Tensor | None:
        """Return the condition of rows as one tensor, `(batch, ...)`, or None.

        Args:
            known: What the model knows of the data.
            batch: The rows as stored.
            x0: The rows encoded.
            u: Uniform numbers, `(batch, 4)`, for conditions that are drawn.
        """
        ...

    def ask(self, known: Known, asked: Asked, count: int) -> Tensor | None:
        """Return the condition of `count` samples as one tensor, or None for a model that is told nothing.

        Raises: UserError: If the model cannot take what is asked.
        """
        ...


@dataclass(frozen=True)
class WithNull:
    """The model is told something, and learns to do without it.

    Attributes:
        dropout: Share of the conditions that are forgotten in training; guidance needs some.
    """

    dropout: float = 0.1
    context: ClassVar[int | None] = None
    captioned: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 <= self.dropout <= 1:
            raise UserError(f"conditioning.dropout is a share between 0 and 1, not {self.dropout}")

    def planes(self, known: Known) -> int:
        """Return that no channels stand beside the state."""
        return 0


@dataclass(frozen=True)
class ClassConditioning(WithNull):
    """The model is told the class, by its number or its name; without a request, all classes in turn."""

    def build(self, known: Known, dim: int) -> Embedder | None:
        """Return the embedder, or None where the data have no classes."""
        return ClassEmbedding(len(known.classes), dim) if known.classes else None

    def read(self, known: Known, batch: Batch, x0: Tensor, u: Tensor) -> Tensor | None:
        """Return the class numbers, `(batch,)`."""
        if batch.labels is not None and batch.labels.ndim > 1:
            raise UserError("a row of these data has several labels: train with --set conditioning=labels")
        return batch.labels

    def ask(self, known: Known, asked: Asked, count: int) -> Tensor | None:
        """Return a class number for each sample."""
        if not known.classes:
            _nothing(asked)
            return None
        if asked is None:
            return torch.arange(count) % len(known.classes)
        numbers = [_class_number(known, one) for one in each(asked, count, (int, str))]
        return torch.tensor(numbers, dtype=torch.long)


@dataclass(frozen=True)
class LabelsConditioning(WithNull):
    """The model is told which of several labels hold; asked by names with commas, or by a tensor of 0 and 1."""

    def build(self, known: Known, dim: int) -> Embedder | None:
        """Return the embedder."""
        if not known.classes:
            raise UserError("conditioning=labels needs data with labels: use conditioning=none")
        return NumbersEmbedding(len(known.classes), dim)

    def read(self, known: Known, batch: Batch, x0: Tensor, u: Tensor) -> Tensor | None:
        """Return which labels hold, `(batch, classes)`."""
        assert batch.labels is not None
        return F.one_hot(batch.labels, len(known.classes)).bool() if batch.labels.ndim == 1 else batch.labels

    def ask(self, known: Known, asked: Asked, count: int) -> Tensor | None:
        """Return which labels hold; without a request, each alone in turn."""
        if asked is None:
            return F.one_hot(torch.arange(count) % len(known.classes), len(known.classes)).bool()
        if isinstance(asked, Tensor):
            return _rows(asked, count, (len(known.classes),)).bool()
        rows = torch.zeros(count, len(known.classes), dtype=torch.bool)
        for row, one in enumerate(each(asked, count, (int, str))):
            whole = not isinstance(one, str) or one in known.classes  # a name may have a comma itself
            names = [one] if whole else [name.strip() for name in one.split(",") if name.strip()]
            rows[row, [_class_number(known, name) for name in names]] = True
        return rows


@dataclass(frozen=True)
class ValuesConditioning(WithNull):
    """The model is told numbers of about unit size.

    Attributes:
        count: How many.
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
        """Return the numbers; one row of them is for all samples."""
        try:
            rows = torch.as_tensor(asked, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise UserError(f"this model is asked by {self.count} numbers, not by {asked!r}") from None
        if rows.ndim < 2:  # of one number, a sequence has one for each sample
            rows = rows.reshape(-1, 1) if self.count == 1 else rows.reshape(1, -1)
        if not rows.isfinite().all():
            raise UserError(f"this model is asked by finite numbers, not by {asked!r}")
        return _rows(rows.expand(count, -1) if len(rows) == 1 else rows, count, (self.count,))


@dataclass(frozen=True)
class TextConditioning(WithNull):
    """The model is told a text, which an encoder of its own reads, trained together with it; the empty text is none.

    Where the data have no captions, the names of the classes are the text.

    Attributes:
        width: Entries of a token.
        layers: Transformer layers of the encoder.
        length: Most words and signs of a text, the start counted.
    """

    captioned: ClassVar[bool] = True
    width: int = 128
    layers: int = 2
    length: int = 32

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if self.width < 1 or self.width % 32 or self.layers < 0 or self.length < 2:
            raise UserError(
                "conditioning.width must be a multiple of 32, layers 0 or more and length 2 or more, not "
                f"{self.width}, {self.layers} and {self.length}"
            )

    @property
    def context(self) -> int:  # type: ignore[override]  # an option here, and nothing elsewhere
        """Entries of a token."""
        return self.width

    def build(self, known: Known, dim: int) -> Embedder | None:
        """Return the encoder."""
        return TextEncoder(dim, width=self.width, layers=self.layers, length=self.length)

    def read(self, known: Known, batch: Batch, x0: Tensor, u: Tensor) -> Tensor | None:
        """Return the words of the captions as numbers, `(batch, length)`."""
        return tokenise(captions(batch, known.classes), self.length)

    def ask(self, known: Known, asked: Asked, count: int) -> Tensor | None:
        """Return the words of the prompts; without a request, of the known prompts in turn."""
        if asked is None:
            prompts = [known.prompts[place % len(known.prompts)] if known.prompts else "" for place in range(count)]
        else:
            prompts = each(asked, count, (str,))
        return tokenise(prompts, self.length, warn=True)


@dataclass(frozen=True)
class ImageConditioning(WithNull):
    """The model is told a poorer version of the picture, in planes beside the state.

    Attributes:
        task: "colour" tells the grey picture, "enlarge" one that is `factor` times smaller, "fill" the picture
            without a box in it, and where the box is.
        factor: How many times smaller.
    """

    task: Literal["colour", "enlarge", "fill"] = "enlarge"
    factor: int = 4

    def planes(self, known: Known) -> int:
        """Return the number of planes, with the one that says whether they are told."""
        return {"colour": 1, "enlarge": known.shape[0], "fill": known.shape[0] + 1}[self.task] + 1

    def build(self, known: Known, dim: int) -> Embedder | None:
        """Return the embedder."""
        if known.modality != images or known.shape != (known.stored or known.shape):
            raise UserError("conditioning=image is for pictures in pixels: use another, or codec=pixels")
        if self.task == "colour" and known.shape[0] == 1:
            raise UserError("conditioning.task=colour needs pictures in colour, and these are grey: use another task")
        if self.task == "enlarge" and (self.factor < 1 or any(side % self.factor for side in known.shape[1:])):
            raise UserError(f"conditioning.factor {self.factor} does not divide the sides {known.shape[1:]}")
        return PlanesEmbedding((self.planes(known) - 1, *known.shape[1:]))

    def read(self, known: Known, batch: Batch, x0: Tensor, u: Tensor) -> Tensor | None:
        """Return the planes, `(batch, planes, height, width)`; the box has a quarter to three quarters of each side."""
        if self.task == "colour":
            return x0.mean(1, keepdim=True)
        if self.task == "enlarge":
            small = F.avg_pool2d(x0, self.factor)
            return F.interpolate(small, scale_factor=float(self.factor), mode="nearest")
        mask = torch.ones(len(x0), 1, *x0.shape[2:])
        for axis, (size, place) in enumerate(zip(u.T[:2], u.T[2:], strict=True)):
            side = x0.shape[2 + axis]
            length = ((0.25 + 0.5 * size) * side).round()
            first = (place * (side - length + 1)).floor()
            at = torch.arange(side)
            inside = (at >= first[:, None]) & (at < (first + length)[:, None])
            mask = mask * inside.reshape(len(x0), 1, *((-1, 1) if axis == 0 else (1, -1)))
        return torch.cat([x0 * (1 - mask), mask], 1)

    def ask(self, known: Known, asked: Asked, count: int) -> Tensor | None:
        """Return the planes of pictures, `(count, channels, height, width)` in [-1, 1]; one is for all samples."""
        if not isinstance(asked, Tensor):
            raise UserError("this model is asked by pictures: give them with --image")
        if tuple(asked.shape[1:]) != known.shape or not len(asked):
            raise UserError(f"this model is asked by pictures of shape {known.shape}, not {tuple(asked.shape[1:])}")
        if not asked.is_floating_point():
            raise UserError("this model is asked by pictures in [-1, 1]: encode bytes, as v/127.5 - 1, before")
        x0 = asked.float()
        planes = self.read(known, Batch(x0), x0, torch.full((len(x0), 4), 0.5))
        return None if planes is None else planes[torch.arange(count) % len(x0)]


@dataclass(frozen=True)
class NoConditioning:
    """The model is told nothing, whatever the data know."""

    dropout: ClassVar[float] = 0.0
    context: ClassVar[int | None] = None
    captioned: ClassVar[bool] = False

    def planes(self, known: Known) -> int:
        """Return that no channels stand beside the state."""
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
    """Return a text for each row: its caption, else the name of its class.

    Raises: UserError: If the data have neither.
    """
    if batch.captions is not None:
        return batch.captions
    if batch.labels is None:
        raise UserError("conditioning=text needs captions or classes, and the data have neither: use conditioning=none")
    if batch.labels.ndim == 1:
        return [classes[label] for label in batch.labels.tolist()]
    return [", ".join(classes[place] for place in row.nonzero()[:, 0].tolist()) for row in batch.labels]


def _nothing(asked: Asked) -> None:
    """Refuse a request to a model that is told nothing."""
    if asked is not None:
        raise UserError("this model was trained without conditions: ask it for nothing")


def each(asked: Asked, count: int, kinds: tuple[type, ...]) -> list[Any]:
    """Return what is asked of each sample."""
    whole = asked.tolist() if isinstance(asked, Tensor) else asked
    given: list[Any] = list(whole) if isinstance(whole, Iterable) and not isinstance(whole, str) else [whole] * count
    wanted = " or ".join({int: "labels, whole numbers", str: "text"}[kind] for kind in kinds)
    found = []
    for one in given:
        try:
            found.append(one if isinstance(one, str) else index(one))
        except TypeError:
            raise UserError(f"this model is asked by {wanted}, not by {one!r}") from None
        if not isinstance(found[-1], kinds):
            raise UserError(f"this model is asked by {wanted}, not by {one!r}")
    if len(found) != count:
        raise UserError(f"{len(found)} labels or prompts do not fit {count} samples")
    return found


def _rows(rows: Tensor, count: int, shape: tuple[int, ...]) -> Tensor:
    """Return rows after a look at their number and shape."""
    if tuple(rows.shape) != (count, *shape):
        raise UserError(
            f"{count} samples of this model are asked by {(count, *shape)} numbers, not {tuple(rows.shape)}"
        )
    return rows


def _class_number(known: Known, one: int | str) -> int:
    """Return the number of a class that is given by its name or its number."""
    if one in known.classes:
        return known.classes.index(str(one))
    try:
        number = int(one)
    except ValueError:
        raise unknown("label", str(one), known.classes) from None
    if not 0 <= number < len(known.classes):
        raise UserError(f"the label {number} is out of range: this model knows 0 to {len(known.classes) - 1}")
    return number
