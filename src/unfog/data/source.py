"""The interface of data sets: a shape, classes, and rows by index."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unfog.data.modality import images
from unfog.data.packed import Packed
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import stream


class MissingDataError(UserError):
    """Data that a recipe names are not where it says.

    Attributes:
        what: What is missing, without what helps.
    """

    def __init__(self, what: str, cure: str) -> None:
        """Take both halves of the sentence."""
        super().__init__(f"{what}: {cure}")
        self.what = what


Indices = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Rows of a data set with their annotations.

    Attributes:
        x: The rows as stored, `(batch, *shape)`.
        labels: Class indices, `(batch,)`, or for multi-label data `(batch, classes)` of bool.
        captions: One text per row.
        values: Numbers per row, `(batch, numbers)`, float32.
        files: Source file of each row, relative to the data folder.
    """

    x: Tensor
    labels: Tensor | None = None
    captions: list[str] | None = None
    values: Tensor | None = None
    files: list[str] | None = None

    def __repr__(self) -> str:
        """Return the fields by their shapes."""
        return brief(self)


class Source(Protocol):
    """Rows of data with random access by index."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row: `(channels, height, width)`, or `(coordinates,)` for points."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty without classes."""
        ...

    @property
    def slow(self) -> bool:
        """Whether rows are slow to load, so that prefetching pays off."""
        ...

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def take(self, indices: Indices) -> Batch:
        """Return the rows with these indices."""
        ...

    def about(self, indices: Indices) -> Batch:
        """Return the annotations of these rows; `x` is empty, `(batch, 0)`."""
        ...


@runtime_checkable
class Ordered(Protocol):
    """A source whose rows are best read in an order of its own."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say of the data before training."""
        ...

    def order(self, seed: int, position: int, count: int) -> Indices:
        """Return `count` row indices from `position` on in an endless stream of epochs, a function of the seed."""
        ...


@dataclass(frozen=True)
class InMemory:
    """A data set in memory, as tensors.

    Attributes:
        x: All rows, `(rows, *shape)`: uint8 for images, float32 for points.
        labels: Class indices, `(rows,)`, or for multi-label data `(rows, classes)` of bool, or None.
        classes: Names of the classes.
        captions: One text per row, or None.
        values: Numbers per row, `(rows, numbers)`, or None.
        files: Source file of each row, or None.
        root: The folder or archive that these are relative to.
        notes: What to say of the data before training.
        span: What became black and white, where that was chosen by looking at all rows.
    """

    x: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    captions: tuple[str, ...] | None = None
    values: Tensor | None = None
    files: tuple[str, ...] | None = None
    root: Path | Packed | None = None
    notes: tuple[str, ...] = ()
    span: tuple[float, float] | None = None
    slow: ClassVar[bool] = False

    __repr__ = brief

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.x)

    def take(self, indices: Indices) -> Batch:
        """Return the rows with these indices."""
        return self.about(indices)._replace(x=self.x[torch.from_numpy(indices)])

    def about(self, indices: Indices) -> Batch:
        """Return the annotations of these rows."""
        rows = torch.from_numpy(indices)
        labels = None if self.labels is None else self.labels[rows]
        captions = None if self.captions is None else [self.captions[row] for row in indices]
        values = None if self.values is None else self.values[rows]
        files = None if self.files is None else [self.files[row] for row in indices]
        return Batch(torch.empty(len(rows), 0), labels, captions, values, files)


class Subset:
    """Some rows of a source, reindexed from 0.

    Attributes:
        source: The source.
        rows: Which of its rows.
        others: Training rows of other shapes, with which batches take turns.
    """

    def __init__(self, source: Source, rows: Indices, others: tuple[Source, ...] = ()) -> None:
        """Select these rows of `source`."""
        self.source, self.rows, self.others = source, rows, others
        self.shape, self.classes, self.slow = source.shape, source.classes, source.slow

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def take(self, indices: Indices) -> Batch:
        """Return the rows with these indices."""
        return self.source.take(self.rows[indices])

    def about(self, indices: Indices) -> Batch:
        """Return the annotations of these rows."""
        return self.source.about(self.rows[indices])


class Data(NamedTuple):
    """A data set: a training part, and a held-out part that is never trained on."""

    train: Source
    heldout: Source

    def __repr__(self) -> str:
        """Return the fields by their shapes."""
        return brief(self)


def split(source: Source, share: float, names: Sequence[str] | None = None) -> Data:
    """Hold out a share of the rows: those whose names have the smallest hashes.

    Args:
        source: The whole data set.
        share: The share to hold out; at least one row, and never all.
        names: A stable name for each row; default: its index.

    Returns: The two parts, the same on every call.
    """
    train, heldout = split_rows(names if names is not None else [str(row) for row in range(len(source))], share)
    return Data(Subset(source, train), Subset(source, heldout))


def split_rows(names: Sequence[str], share: float) -> tuple[Indices, Indices]:
    """Return the indices of the training rows and of the held-out rows, each sorted, split by the hashes of the names.

    Rows with equal names end up in the same part.

    Raises: UserError: If all rows have the same name.
    """
    hashes = [_hashed(name) for name in names]
    order = np.array(sorted(range(len(names)), key=lambda row: hashes[row]), dtype=np.int64)
    count = min(max(1, round(share * len(names))), len(names) - 1)
    while count < len(names) and hashes[order[count]] == hashes[order[count - 1]]:
        count += 1
    if count == len(names):
        raise UserError("all rows belong to one group, so none can be held out: check data.together")
    return np.sort(order[count:]), np.sort(order[:count])


def split_groups(groups: Sequence[str], share: float) -> tuple[Indices, Indices] | None:
    """Return the training rows and the held-out rows as `split_rows` does, with whole groups held out.

    Groups are taken in the order of their hashes; one that would make the held-out part larger than 3/2 of its share is
    left out. With one row in each group the parts are those of `split_rows`.

    Args:
        groups: Name of the group of each row.
        share: The share to hold out.

    Returns: The parts, or None if groups are so large that less than half of the share can be held out.
    """
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    count = min(max(1, round(share * len(groups))), len(groups) - 1)
    held: list[int] = []
    for group in sorted(rows, key=_hashed):
        if len(held) < count and len(held) + len(rows[group]) <= min(1.5 * count, len(groups) - 1):
            held += rows[group]
    if 2 * len(held) < count:
        return None
    return np.setdiff1d(np.arange(len(groups)), held), np.sort(np.array(held, dtype=np.int64))


def split_classes(groups: Sequence[str], classes: Sequence[str], share: float) -> tuple[Indices, Indices] | None:
    """Return the parts as `split_groups` does, but about the share of each class; what rounding leaves goes on.

    Args:
        groups: Name of the group of each row.
        classes: Name of the class of each row; a group belongs to that of its first row.
        share: The share to hold out.

    Returns: The parts, those of `split_groups` if there is one class, or None where too little can be held out.
    """
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    members: dict[str, list[str]] = {}
    for group, own in rows.items():
        members.setdefault(classes[own[0]], []).append(group)
    count = min(max(1, round(share * len(groups))), len(groups) - 1)
    held: list[int] = []
    passed = 0
    for name in sorted(members):
        size = sum(len(rows[group]) for group in members[name])
        passed += size
        wanted = (count if passed == len(groups) else round(share * passed)) - len(held)
        chosen: list[int] = []
        for group in sorted(members[name], key=_hashed):
            if len(chosen) < wanted and len(chosen) + len(rows[group]) <= min(1.5 * wanted, size - 1):
                chosen += rows[group]
        held += chosen
    if 2 * len(held) < count:
        return None
    return np.setdiff1d(np.arange(len(groups)), held), np.sort(np.array(held, dtype=np.int64))


def _hashed(name: str) -> bytes:
    """Return the hash of a name."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def shuffled(rows: int, seed: int, position: int, count: int) -> Indices:
    """Return `count` row indices from `position` on in an endless stream of shuffled epochs.

    Each epoch is a permutation of all rows, a function of (seed, epoch) alone.

    Args:
        rows: Number of rows of the data set.
        seed: Seed of the run.
        position: Number of rows seen before.
        count: Number of rows to return.

    Returns: Row indices, `(count,)`.
    """
    places = np.arange(position, position + count, dtype=np.int64)
    epochs, offsets = places // rows, places % rows
    order = {epoch: _order(rows, seed, int(epoch)) for epoch in np.unique(epochs)}
    return np.array([order[epoch][offset] for epoch, offset in zip(epochs, offsets, strict=True)], dtype=np.int64)


@lru_cache(maxsize=2)  # a batch may span two epochs; shuffling a million rows takes 14 ms
def _order(rows: int, seed: int, epoch: int) -> Indices:
    """Return the permutation of an epoch."""
    return stream(seed, "order", epoch).permutation(rows)


def ordered(source: Source, seed: int, position: int, count: int) -> Indices:
    """Return `count` row indices of a source from `position` on: in its own order if it has one, else `shuffled`."""
    if isinstance(source, Ordered):
        return source.order(seed, position, count)
    return shuffled(len(source), seed, position, count)


def windowed(blocks: Indices, seed: int, position: int, count: int, window: int) -> Indices:
    """Return row indices as `shuffled` does, of rows that are near each other in few blocks at a time.

    In each epoch the blocks are shuffled, and then the rows of each window over the rows of the blocks in that order.
    With one window it is a permutation of all rows like any other.

    Args:
        blocks: Rows of each block, `(blocks,)`.
        seed: Seed of the run.
        position: Number of rows seen before.
        count: Number of rows to return.
        window: Rows of a window.

    Returns: Row indices, `(count,)`.
    """
    starts = np.concatenate([[0], np.cumsum(blocks)])
    epochs, offsets = np.divmod(np.arange(position, position + count, dtype=np.int64), starts[-1])
    found = np.empty(count, np.int64)
    for epoch in np.unique(epochs).tolist():
        order = _order(len(blocks), seed, epoch)
        ends = np.cumsum(blocks[order])
        for number in np.unique(offsets[epochs == epoch] // window).tolist():
            here = (epochs == epoch) & (offsets // window == number)
            first = number * window
            places = first + _window(min(window, int(starts[-1]) - first), seed, epoch, number)[offsets[here] - first]
            at = np.searchsorted(ends, places, side="right")
            found[here] = starts[order[at]] + places - (ends[at] - blocks[order[at]])
    return found


@lru_cache(maxsize=4)
def _window(rows: int, seed: int, epoch: int, number: int) -> Indices:
    """Return the permutation of a window."""
    return stream(seed, "window", epoch, number).permutation(rows)


class Augmentation(Protocol):
    """Random changes of rows, a function of (seed, position in the stream of rows)."""

    @property
    def flip(self) -> bool:
        """Whether images are mirrored left to right."""
        ...

    @property
    def crop(self) -> int:
        """By how many pixels images are shifted, at most."""
        ...

    @property
    def told(self) -> int:
        """How many numbers the network is told of how a row was changed."""
        ...

    def numbers(self, seed: int, position: int, count: int) -> Tensor | None:
        """Return these numbers, `(count, told)`, or None if there are none."""
        ...

    def __call__(self, x: Tensor, seed: int, position: int) -> Tensor:
        """Return changed rows of the same shape and dtype."""
        ...


@dataclass(frozen=True)
class Augment:
    """Random flips and shifts of images, a function of (seed, position in the stream of rows).

    Attributes:
        flip: Mirror horizontally with probability 1/2.
        crop: Shift by up to this many pixels in each direction, repeating the border.
    """

    flip: bool = False
    crop: int = 0
    told: ClassVar[int] = 0

    def numbers(self, seed: int, position: int, count: int) -> None:
        """Say nothing of how pictures were changed: the network draws mirrored and shifted ones, too."""

    def __post_init__(self) -> None:
        """Check the shift."""
        if self.crop < 0:
            raise UserError(f"augment.crop must be a number of pixels, 0 or more, not {self.crop}")

    def __call__(self, x: Tensor, seed: int, position: int) -> Tensor:
        """Return augmented images.

        Args:
            x: Images, `(batch, channels, height, width)`.
            seed: Seed of the run.
            position: Number of rows seen before this batch.

        Returns: Images of the same shape and dtype.
        """
        if not (self.flip or self.crop):
            return x
        if not images.fits(tuple(x.shape[1:])):
            raise UserError("augment.flip and augment.crop only apply to images: switch them off for other data")
        height, width = x.shape[2:]
        for axis in (-2, -1) if self.crop else ():  # pad all at once: a single row would take as long
            places = torch.arange(-self.crop, x.shape[axis] + self.crop, device=x.device)
            x = x.index_select(axis, places.clamp(0, x.shape[axis] - 1))
        rows = []
        for offset, row in enumerate(x):
            draw = stream(seed, "augment", position + offset)
            mirrored = row.flip(-1) if self.flip and draw.random() < 0.5 else row
            down, right = draw.integers(2 * self.crop + 1, size=2) if self.crop else (0, 0)
            rows.append(mirrored[:, down : down + height, right : right + width])
        return torch.stack(rows)
