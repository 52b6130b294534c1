"""Near-duplicates in a set of pictures: copies that were resized, recoded, mirrored, cropped, greyed, turned or framed.

Each picture becomes four small descriptors: its brightness on 12 × 12 cells without the average of the cells around,
scaled to one length; the same mirrored; and both again of its middle, an eighth narrower. Two pictures are as similar
as the best of their descriptors' products. Descriptors are whole numbers, so that every machine finds the same pairs.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unfog.data.modality import images
from unfog.data.source import Indices

CELLS = 12
"""Cells of a descriptor along each side."""
AROUND = 2
"""Cells to each side of which the average is taken away."""
LENGTH = 2048
"""Length of a descriptor: products are below its square, 2^22, and so exact in float32, in whatever order."""
ALIKE, SAME = 0.85, 0.98
"""Similarity of near-duplicates, and that from which on two pictures are the same whatever the rest of the set is."""
NEIGHBOURS, NEARER = 30, 0.3
"""In a set of things that all look alike, as digits do, a near-duplicate is nearer than 0.3 of the distance, one minus
the similarity, to the 30th neighbour of either picture."""
FLAT = 1.5
"""Contrast, in steps of 255, below which a picture has nothing to compare."""
FRAME, EVEN = 0.13, 12
"""Width of a border, at most, as a share of the side; and by how many steps of 255 the pixels of a border differ."""
SMALLEST = 16
"""Side of the pictures, at least: smaller ones are compared by their bytes alone."""
WHOLE, MOST = 20_000, 100_000
"""Pictures up to which each is compared with all others, and pictures that are looked at, at most. In between, each is
compared with those next to it by name, as many as keep the number of comparisons."""
ROWS, PIXELS = 256, 1 << 22
"""Pictures whose similarities to all others are in memory at a time, and pixels that become descriptors at a time."""
PARTNERS = 64
"""Pairs that are kept of each picture with those after it, at most; its group stays connected."""

Numbers = npt.NDArray[np.float64]
Codes = npt.NDArray[np.float32]


class Pairs(NamedTuple):
    """Pairs of pictures that are alike.

    Attributes:
        first: Row of the earlier one.
        second: Row of the later one.
        same: Whether they are the same but for how they were saved, and neither mirrored nor edited visibly.
        looked: How many rows were looked at.
        reach: With how many of the rows after it each was compared.
    """

    first: Indices
    second: Indices
    same: npt.NDArray[np.bool_]
    looked: int
    reach: int


class Look(NamedTuple):
    """What a look at the pixels of a set says.

    Attributes:
        pairs: Which are alike.
        framed: Rows with a border of one colour on all sides.
        grey: Whether all are grey, though they have three channels.
    """

    pairs: Pairs
    framed: Indices
    grey: bool


def look_at(x: Tensor) -> Look | None:
    """Look at the pictures of a set for near-duplicates, borders and colours.

    Args:
        x: Pictures as stored, `(rows, channels, height, width)`, uint8.

    Returns: What was seen; None for pictures of another number of channels than 1 and 3, or of less than 16 pixels.
    """
    shape = tuple(x.shape[1:])
    if not images.fits(shape) or shape[0] not in (1, 3) or min(shape[1:]) < SMALLEST:
        return None
    at_once = max(1, PIXELS // (x.shape[2] * x.shape[3]))
    some = x[:MOST]
    seen = [_described(some[start : start + at_once]) for start in range(0, len(some), at_once)]
    codes = np.concatenate([codes for codes, _, _ in seen], axis=1)
    corners = np.concatenate([corners for _, _, corners in seen])
    unlike = abs(corners - np.median(corners)) > EVEN  # the others' ground is no border
    framed = np.flatnonzero(np.concatenate([framed for _, framed, _ in seen]) & unlike)
    return Look(_pairs(codes), framed, x.shape[1] == 3 and _colourless(x, at_once))


def groups_of(pairs: Pairs, rows: int) -> Indices:
    """Return for each row the number of its group: those that pairs connect belong together."""
    from scipy.sparse import coo_matrix  # here, since they take a fifth of a second to import
    from scipy.sparse.csgraph import connected_components

    links = coo_matrix((np.ones(len(pairs.first)), (pairs.first, pairs.second)), shape=(rows, rows))
    return np.asarray(connected_components(links, directed=False)[1], dtype=np.int64)


def _colourless(x: Tensor, at_once: int) -> bool:
    """Return whether the three channels of all pictures agree, but for a step of rounding."""
    parts = (x[start : start + at_once].to(torch.int16) for start in range(0, len(x), at_once))
    return all(int((part.amax(1) - part.amin(1)).max()) <= 1 for part in parts)


def _described(x: Tensor) -> tuple[Codes, npt.NDArray[np.bool_], Numbers]:
    """Return the descriptors of some pictures, `(4, rows, 144)`, which have a border, and the colour of a corner.

    The descriptors leave out what has one colour on all sides.
    """
    colours = np.array([77, 150, 29]) if x.shape[1] == 3 else np.array([256])
    grey = np.tensordot(x.numpy().astype(np.int64), colours, axes=(1, 0)) / 256
    (top, bottom), (left, right) = _edges(grey), _edges(grey.transpose(0, 2, 1))
    framed = (top > 0) & (bottom > 0) & (left > 0) & (right > 0)
    top, bottom, left, right = (np.where(framed, edge, 0) for edge in (top, bottom, left, right))
    straight = framed & _straight(grey, top, left)
    codes = []
    for inner in (0, 1):
        down = _weights(grey.shape[1], top, bottom, inner)
        across = _weights(grey.shape[2], left, right, inner)
        cells = down @ grey @ across.transpose(0, 2, 1)
        codes += [_code(cells), _code(cells[:, :, ::-1])]
    return np.stack(codes), straight, grey[:, 0, 0]


def _edges(grey: Numbers) -> tuple[Indices, Indices]:
    """Return how many lines from the top and from the bottom on have the colour of the first pixel, up to a limit."""
    most = max(1, int(grey.shape[1] * FRAME))
    colour = grey[:, :1, :1]
    ends = (grey[:, :most], grey[:, ::-1][:, :most])
    above, below = (np.cumprod((abs(lines - colour) <= EVEN).all(2), axis=1).sum(1) for lines in ends)
    return above, below


def _straight(grey: Numbers, top: Indices, left: Indices) -> npt.NDArray[np.bool_]:
    """Return whether what follows a margin is a straight edge, as of a border, and not a thing on plain ground."""
    rows = np.arange(len(grey))
    colour = grey[:, 0, :1]
    below, beside = abs(grey[rows, top] - colour) > EVEN, abs(grey[rows, :, left] - colour) > EVEN
    return np.asarray((below.mean(1) > 0.5) & (beside.mean(1) > 0.5))


def _weights(side: int, before: Indices, after: Indices, inner: int) -> Numbers:
    """Return how much of each pixel lies in each cell, `(rows, cells, side)`, as whole numbers over a common divisor.

    Args:
        side: Pixels of the pictures.
        before: Pixels that are left out at the start.
        after: Pixels that are left out at the end.
        inner: 1 to leave out another sixteenth at both ends.
    """
    length = (side - before - after)[:, None, None]
    unit, step = 16 * CELLS, (16 - 2 * inner) * length
    start = unit * before[:, None, None] + inner * CELLS * length + step * np.arange(CELLS)[:, None]
    pixel = unit * np.arange(side)
    overlap = np.minimum(pixel + unit, start + step) - np.maximum(pixel, start)
    return np.asarray(overlap.clip(0) / step, dtype=np.float64)


def _code(cells: Numbers) -> Codes:
    """Return the descriptors of brightness on cells; all zeros where there is nothing to compare."""
    wide = 2 * AROUND + 1
    padded = np.pad(cells, ((0, 0), (AROUND, AROUND), (AROUND, AROUND)), mode="edge")
    sums = np.pad(padded, ((0, 0), (1, 0), (1, 0))).cumsum(1).cumsum(2)
    around = sums[:, wide:, wide:] - sums[:, :-wide, wide:] - sums[:, wide:, :-wide] + sums[:, :-wide, :-wide]
    rows = (cells - around / wide**2).reshape(len(cells), -1)
    rows = rows - rows.mean(1, keepdims=True)
    size = np.sqrt((rows * rows).sum(1, keepdims=True))
    enough = size >= FLAT * CELLS
    return np.where(enough, (rows * (LENGTH / np.where(enough, size, 1))).round(), 0).astype(np.float32)


def _pairs(codes: Codes) -> Pairs:
    """Return the pairs that are alike among pictures with these descriptors, `(4, rows, 144)`."""
    whole, mirrored, inner, inner_mirrored = codes
    rows = len(whole)
    reach = rows if rows <= WHOLE else WHOLE**2 // (2 * rows)
    found: list[tuple[Indices, Indices, Codes]] = []
    for start in range(0, rows, ROWS):
        stop = min(start + ROWS, rows)
        later = slice(start, min(rows, stop + reach))
        best = whole[start:stop] @ whole[later].T
        for mine, others in (
            (whole, mirrored),
            (whole, inner),
            (whole, inner_mirrored),
            (inner, whole),
            (inner_mirrored, whole),
        ):
            np.maximum(best, mine[start:stop] @ others[later].T, out=best)
        good = np.triu(best > ALIKE * LENGTH**2, 1)
        good &= good.cumsum(1) <= PARTNERS
        one, other = np.nonzero(good)
        found.append((one + start, other + start, best[one, other]))
    first, second, likeness = (np.concatenate(column) for column in zip(*found, strict=True))
    apart = LENGTH**2 - likeness.astype(np.float64)
    typical = _typical(whole, mirrored, np.union1d(first, second), reach)
    near = apart < NEARER * np.minimum(typical[first], typical[second])
    kept = near | (apart < (1 - SAME) * LENGTH**2)
    first, second = first[kept], second[kept]
    plain = np.einsum("ij,ij->i", whole[first].astype(np.float64), whole[second].astype(np.float64))
    return Pairs(first, second, plain >= SAME * LENGTH**2, rows, reach)


def _typical(whole: Codes, mirrored: Codes, wanted: Indices, reach: int) -> Numbers:
    """Return the distances of some pictures to their 30th neighbours, or in a small set to the half-way one."""
    typical = np.zeros(len(whole))
    place = min(NEIGHBOURS, len(whole) // 2)
    for start in range(0, len(wanted), ROWS):
        rows = wanted[start : start + ROWS]
        others = slice(max(0, int(rows[0]) - reach), int(rows[-1]) + reach + 1)
        best = np.maximum(whole[rows] @ whole[others].T, whole[rows] @ mirrored[others].T)
        typical[rows] = LENGTH**2 - np.partition(best, -1 - place, axis=1)[:, -1 - place]
    return typical
