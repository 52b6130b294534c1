"""Pictures of many shapes: each is cropped to one of a few shapes of about the same area, and a batch has one shape."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console

from unfog.data.listing import Listing
from unfog.data.pictures import LONGEST, UnreadableError, describe_picture
from unfog.data.source import Batch, Data, Indices, Source, Subset, ordered
from unfog.runtime.errors import Remark, UserError
from unfog.runtime.progress import track

Shares = npt.NDArray[np.float64]
Sides = tuple[int, int]
"""Height and width."""
MOST = 16
"""Shapes, at most."""
LEAST = 32
"""Pictures of a shape, at least: fewer are cropped to another one."""
LONG = 2
"""How many times longer a side may be than that of a square of the same area."""
FINE = 8
"""Sides are multiples of a power of two, which is at most this part of the side of such a square, and 4 or more."""


class Crops(NamedTuple):
    """To which shape each picture is cropped.

    Attributes:
        sides: The shapes, that of most pictures first.
        which: The number of each picture's shape, `(pictures,)`.
        lost: Share of the pixels that is cropped away, on average.
        alone: The same with one shape.
    """

    sides: tuple[Sides, ...]
    which: Indices
    lost: float = 0.0
    alone: float = 0.0

    @property
    def note(self) -> tuple[str, ...]:
        """What to say of shapes that were chosen."""
        if self.lost == self.alone:
            return ()
        counts = np.bincount(self.which, minlength=len(self.sides))
        named = [f"{width}x{height}" for height, width in self.sides]
        listed = ", ".join(f"{count:,} to {one}" for one, count in zip(named, counts, strict=True))
        others = f"; what is held out, and evaluated, are those of {named[0]}" if len(named) > 1 else ""
        loss = f"which loses {self.lost:.1%} of their pixels instead of {self.alone:.1%}"
        return (Remark(f"pictures are cropped, {listed} pixels, {loss}{others}"),)


def in_buckets(listing: Listing, base: Sides, buckets: int | Sequence[Sequence[int]]) -> Crops:
    """Choose the shapes to which the pictures of a folder are cropped.

    Args:
        listing: The folder.
        base: Height and width of the one shape that there would be otherwise; the others have about its area.
        buckets: Shapes, at most, or the shapes.

    Raises: UserError: If there shall be less than one, or more than 16, or one has impossible sides.
    """
    given = () if isinstance(buckets, int) else tuple(dict.fromkeys(map(_sides, buckets)))
    most = buckets if isinstance(buckets, int) else len(given)
    if not 1 <= most <= MOST:
        raise UserError(f"data.buckets must be from 1 to {MOST}, or as many pairs [height, width], not {buckets}")
    if most == 1 and not given:
        return Crops((base,), np.zeros(len(listing.files), np.int64))
    sides = []
    for file in track(listing.files, "reading the shapes of pictures", console=Console(stderr=True)):
        try:
            sides.append(describe_picture(listing.root / file)[1:])
        except UnreadableError:  # said when its pixels are read
            sides.append(base)
    return cropped(sides, base, given) if given else crops(sides, base, most)


def _sides(pair: Sequence[int]) -> Sides:
    """Return height and width of a shape that was given."""
    if len(pair) != 2 or not 1 <= min(pair) <= max(pair) <= LONGEST:
        raise UserError(f"a shape in data.buckets must be [height, width], from 1 to {LONGEST:,}, not {list(pair)}")
    return pair[0], pair[1]


def cropped(sides: Sequence[Sides], base: Sides, found: Sequence[Sides]) -> Crops:
    """Choose the best of some shapes for each picture.

    Args:
        sides: Height and width of each picture.
        base: The shape to compare with.
        found: The shapes.
    """
    lost = losses(sides, (*found, base))
    which = lost[:, :-1].argmin(1)
    return Crops(tuple(found), which, float(lost[:, :-1].min(1).mean()), float(lost[:, -1].mean()))


def losses(sides: Sequence[Sides], found: Sequence[Sides]) -> Shares:
    """Return which share of each picture is cropped away for each shape, `(pictures, shapes)`.

    That is 1 - exp(-|difference of the logarithms of the aspect ratios|).
    """
    own, to = (np.log([height / width for height, width in some]) for some in (sides, found))
    return np.asarray(-np.expm1(-np.abs(own[:, None] - to)))


def crops(sides: Sequence[Sides], base: Sides, most: int) -> Crops:
    """Choose the shapes that crop the least, one after the other, and the best of them for each picture.

    Args:
        sides: Height and width of each picture.
        base: As for `in_buckets`.
        most: Shapes, at most.
    """
    found = candidates(base)
    lost = losses(sides, found)
    chosen: list[int] = []
    least = np.ones(len(sides))
    while len(chosen) < min(most, len(found)):
        left = np.minimum(least[:, None], lost).mean(0)
        best = int(left.argmin())
        gained = np.count_nonzero(lost[:, best] < least)
        if chosen and (left[best] >= least.mean() or gained < min(LEAST, len(sides))):
            break
        chosen.append(best)
        least = np.minimum(least, lost[:, best])
    which = lost[:, chosen].argmin(1)
    counts = np.bincount(which, minlength=len(chosen))
    kept = [place for place in np.argsort(-counts, kind="stable") if counts[place] >= LEAST] or [int(counts.argmax())]
    counts = np.bincount(lost[:, [chosen[place] for place in kept]].argmin(1), minlength=len(kept))
    order = np.argsort(-counts, kind="stable")
    return cropped(sides, base, [found[chosen[kept[place]]] for place in order])


def candidates(base: Sides) -> tuple[Sides, ...]:
    """Return shapes of at most the area of one, that one first, each with the longest sides that the area allows."""
    side = math.sqrt(base[0] * base[1])
    unit = max(4, 2 ** int(math.log2(side / FINE))) if side >= FINE else 1
    found = [base]
    for across in range(unit, int(LONG * side) + 1, unit):
        down = int(base[0] * base[1] / across) // unit * unit
        if side / LONG <= min(across, down) and max(across, down) <= LONG * side:
            found.append((down, across))
    return tuple(dict.fromkeys(found))


def by_shape(which: Indices, train: Indices, held: Indices, part: Callable[[int, Indices], Source]) -> Data:
    """Return the data set of the pictures of the first shape; those of others are only trained on.

    Args:
        which: The number of each row's shape.
        train: Rows to train on.
        held: Rows that are held out.
        part: Returns a source of rows that have the shape of a number.

    Raises: UserError: If no row of the first shape is in one of the parts.
    """
    own, *others = (train[which[train] == shape] for shape in range(int(which.max()) + 1))
    mine = held[which[held] == 0]
    if not len(own) or not len(mine):
        raise UserError("the pictures of the first shape are too few to hold one out: change data.buckets")
    main = part(0, own)
    further = tuple(part(shape, rows) for shape, rows in enumerate(others, 1) if len(rows))
    if further:
        inner, chosen = (main.source, main.rows) if isinstance(main, Subset) else (main, np.arange(len(main)))
        main = Subset(inner, chosen, further)
    return Data(main, part(0, mine))


class Turns:
    """The rows of several sources, each of a shape of its own: the batches of a training take turns with them.

    The batches of a source are spread evenly over all, as many as its share of the rows, and go through its rows as
    those of a training with this source alone do.

    Attributes:
        parts: The sources, that of most rows first.
        shape: Shape of a row of the first.
        classes: Names of the classes of all.
        slow: Whether rows are slow to load.
    """

    notes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, parts: Sequence[Source]) -> None:
        """Take turns with `parts`."""
        self.parts = tuple(parts)
        self.shape, self.classes = parts[0].shape, parts[0].classes
        self.slow = any(part.slow for part in parts)
        self.firsts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.firsts[-1])

    def order(self, seed: int, position: int, count: int) -> Indices:
        """Return the rows of a batch of `count`, the first of which has this position: all of one source."""
        which, earlier = turn([len(part) for part in self.parts], position // count)
        return ordered(self.parts[which], seed, earlier * count, count) + int(self.firsts[which])

    def take(self, indices: Indices) -> Batch:
        """Return rows of one source.

        Raises: ValueError: If they belong to several.
        """
        which, rows = self._place(indices)
        return self.parts[which].take(rows)

    def about(self, indices: Indices) -> Batch:
        """Return the annotations of rows of one source."""
        which, rows = self._place(indices)
        return self.parts[which].about(rows)

    def _place(self, indices: Indices) -> tuple[int, Indices]:
        """Return the number of the source of rows, and their numbers there."""
        which = np.unique(np.searchsorted(self.firsts, indices, side="right") - 1)
        if len(which) != 1:
            raise ValueError(f"a batch has rows of one shape, not of {len(which)}")
        return int(which[0]), indices - self.firsts[which[0]]


def turn(rows: Sequence[int], step: int) -> tuple[int, int]:
    """Return whose turn a step is, and how many turns it had before.

    Turn j of a source with n rows comes at (j + 1/2)/n, and steps are in the order of these numbers.

    Args:
        rows: Rows of each source.
        step: Number of the step, from 0.
    """
    # up to this moment there were at most `step` turns, and at least as many less two for each source
    moment = Fraction(max(0, step - len(rows)), sum(rows))
    turns = [math.floor(moment * count + Fraction(1, 2)) for count in rows]
    while True:
        which = min(range(len(rows)), key=lambda place: (Fraction(2 * turns[place] + 1, rows[place]), place))
        if sum(turns) == step:
            return which, turns[which]
        turns[which] += 1


def rows_of_training(source: Source) -> Source:
    """Return all rows of a training, whose batches take turns with the shapes if there are several."""
    parts = shapes_of(source)
    return Turns(parts) if len(parts) > 1 else source


def shapes_of(source: Source) -> tuple[Source, ...]:
    """Return a source of training rows and those of other shapes that go with it."""
    others: tuple[Source, ...] = getattr(source, "others", ())
    return source, *others
