"""What every data set is to the rest of the house: a shape, classes, and rows by their number."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unfog.runtime.errors import UserError
from unfog.runtime.randomness import stream

Indices = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Rows of a data set, and what is known of each.

    Attributes:
        x: The rows as stored, `(batch, *shape)`.
        labels: Class numbers, `(batch,)`, or for several labels at once which hold, `(batch, classes)` of bool.
        captions: A text for each.
        values: Numbers for each, `(batch, numbers)`, float32.
        files: Where each comes from, below the folder of the data.
    """

    x: Tensor
    labels: Tensor | None = None
    captions: list[str] | None = None
    values: Tensor | None = None
    files: list[str] | None = None


class Source(Protocol):
    """Rows of data that are asked for by number, in any order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row: `(channels, height, width)`, or `(coordinates,)` for points."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty where there are none."""
        ...

    @property
    def slow(self) -> bool:
        """Whether rows take so long to fetch that they are worth fetching ahead."""
        ...

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def take(self, indices: Indices) -> Batch:
        """Return the rows with these numbers."""
        ...

    def about(self, indices: Indices) -> Batch:
        """Return what is known of these rows, with rows of no number each instead of their own."""
        ...


@dataclass(frozen=True)
class InMemory:
    """A set that fits in memory, as tensors.

    Attributes:
        x: All rows, `(rows, *shape)`: uint8 for pictures, float32 for points.
        labels: Class numbers, `(rows,)`, or which labels hold, `(rows, classes)` of bool, or None.
        classes: Names of the classes.
        captions: A text for each row, or None.
        values: Numbers for each row, `(rows, numbers)`, or None.
        files: Where each row comes from, or None.
    """

    x: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    captions: tuple[str, ...] | None = None
    values: Tensor | None = None
    files: tuple[str, ...] | None = None
    slow: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.x)

    def take(self, indices: Indices) -> Batch:
        """Return the rows with these numbers."""
        return self.about(indices)._replace(x=self.x[torch.from_numpy(indices)])

    def about(self, indices: Indices) -> Batch:
        """Return what is known of these rows."""
        rows = torch.from_numpy(indices)
        texts = (self.captions, self.files)
        captions, files = (None if part is None else [part[row] for row in indices] for part in texts)
        labels, values = (None if part is None else part[rows] for part in (self.labels, self.values))
        return Batch(torch.empty(len(rows), 0), labels, captions, values, files)


class Subset:
    """Some rows of a source, renumbered."""

    def __init__(self, source: Source, rows: Indices) -> None:
        """Stand for these rows of `source`."""
        self.source, self.rows = source, rows
        self.shape, self.classes, self.slow = source.shape, source.classes, source.slow

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def take(self, indices: Indices) -> Batch:
        """Return the rows with these numbers."""
        return self.source.take(self.rows[indices])

    def about(self, indices: Indices) -> Batch:
        """Return what is known of these rows."""
        return self.source.about(self.rows[indices])


class Data(NamedTuple):
    """A data set: what is trained on, and what is held out and never trained on."""

    train: Source
    heldout: Source


def split(source: Source, share: float, names: Sequence[str] | None = None) -> Data:
    """Hold out a fixed share of the rows: those whose names have the smallest hashes.

    Args:
        source: The whole set.
        share: The share that is held out; at least one row of two or more.
        names: A stable name for each row; its number where there is none.

    Returns: The two parts, the same ones each time.
    """
    train, heldout = split_rows(names if names is not None else [str(row) for row in range(len(source))], share)
    return Data(Subset(source, train), Subset(source, heldout))


def split_rows(names: Sequence[str], share: float) -> tuple[Indices, Indices]:
    """Return the rows to train on and those to hold out, each rising, by the hashes of their names.

    Rows of one name stay on one side.

    Raises: UserError: If all rows have one name.
    """
    hashes = [hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in names]
    order = np.array(sorted(range(len(names)), key=lambda row: hashes[row]), dtype=np.int64)
    count = min(max(1, round(share * len(names))), len(names) - 1)
    while count < len(names) and hashes[order[count]] == hashes[order[count - 1]]:
        count += 1
    if count == len(names):
        raise UserError("all rows belong together, so that none can be held out: check data.together")
    return np.sort(order[count:]), np.sort(order[:count])


def shuffled(rows: int, seed: int, position: int, count: int) -> Indices:
    """Return which rows stand at places `position`.. of an endless stream of shuffled epochs.

    Each epoch is one permutation of all rows, a function of (seed, epoch) alone.

    Args:
        rows: Number of rows of the set.
        seed: Seed of the run.
        position: Rows that were seen before.
        count: How many rows to return.

    Returns: Row numbers, `(count,)`.
    """
    places = np.arange(position, position + count, dtype=np.int64)
    epochs, offsets = places // rows, places % rows
    order = {epoch: _order(rows, seed, int(epoch)) for epoch in np.unique(epochs)}
    return np.array([order[epoch][offset] for epoch, offset in zip(epochs, offsets, strict=True)], dtype=np.int64)


@lru_cache(maxsize=2)  # a batch may lie across two epochs; a million rows take 14 ms to shuffle
def _order(rows: int, seed: int, epoch: int) -> Indices:
    """Return the permutation of an epoch."""
    return stream(seed, "order", epoch).permutation(rows)


@dataclass(frozen=True)
class Augment:
    """Random flips and shifts of pictures, a function of (seed, position in the stream of rows).

    Attributes:
        flip: Mirror left and right half of the time.
        crop: Shift by up to this many pixels each way, the border repeated.
    """

    flip: bool = False
    crop: int = 0

    def __post_init__(self) -> None:
        """Check the shift."""
        if self.crop < 0:
            raise UserError(f"augment.crop is a number of pixels, 0 or more, not {self.crop}")

    def __call__(self, x: Tensor, seed: int, position: int) -> Tensor:
        """Return augmented pictures.

        Args:
            x: Pictures, `(batch, channels, height, width)`.
            seed: Seed of the run.
            position: Rows that were seen before this batch.

        Returns: Pictures of the same shape and dtype.
        """
        if not (self.flip or self.crop):
            return x
        if x.ndim != 4:
            raise UserError("augment.flip and augment.crop are for pictures: leave them off for points")
        height, width = x.shape[2:]
        for axis in (-2, -1) if self.crop else ():  # the border of all at once: a row would cost as much
            places = torch.arange(-self.crop, x.shape[axis] + self.crop, device=x.device)
            x = x.index_select(axis, places.clamp(0, x.shape[axis] - 1))
        rows = []
        for offset, row in enumerate(x):
            draw = stream(seed, "augment", position + offset)
            mirrored = row.flip(-1) if self.flip and draw.random() < 0.5 else row
            down, right = draw.integers(2 * self.crop + 1, size=2) if self.crop else (0, 0)
            rows.append(mirrored[:, down : down + height, right : right + width])
        return torch.stack(rows)
