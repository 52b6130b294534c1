"""One scale for all pictures of a set whose numbers are no bytes: 12 bits in 16, signed and floating-point numbers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unfog.data.listing import Listing
from unfog.data.pictures import AS_NOW, Levels, Reading, UnreadableError, holds_several, values_of
from unfog.runtime.errors import UserError
from unfog.runtime.lines import counted

LOOKED = 1000
"""Pictures that are looked at in a set too large for memory, evenly spaced."""
DEEP = (".png", ".tif", ".tiff", ".pgm", ".ppm", ".npy")
"""Suffixes of pictures that may hold other numbers than bytes."""
APART = 16
"""How many times larger than the fractions of a set its whole numbers may be."""
BITS = (1, 8, 10, 12, 14, 16, 24, 32)
"""Bits of whole numbers that have a full range of their own."""


class Survey(NamedTuple):
    """What a look at the pictures of a set says.

    Attributes:
        reading: How they become bytes.
        notes: What to say of it.
    """

    reading: Reading
    notes: tuple[str, ...] = ()


def survey(listing: Listing, span: Sequence[float] | None, sample: int | None = None) -> Survey:
    """Look at the pictures of a set, and record in its listing those of which only a part is read.

    Args:
        listing: The pictures.
        span: What becomes black and white, if it was set.
        sample: How many to look at; default: all.

    Raises: UserError: If the span is none, or the pictures have no common scale.
    """
    files = listing.files[:: -(-len(listing.files) // (sample or len(listing.files)))]
    several = [file for file in files if holds_several(listing.root / file)]
    listing.unused.add("pictures of which only the first page or frame is read", several)
    ends, count = _ends(listing, files)
    if span is not None:
        levels = _checked(span)
    elif not ends:
        return Survey(AS_NOW)
    else:
        levels = levels_of(ends, str(listing.root))
    if not ends:
        return Survey(Reading(levels))
    low, high = min(low for low, _ in ends.values()), max(high for _, high in ends.values())
    note = (
        f"numbers from {low:g} to {high:g} in {counted(count, 'picture')}: on one scale for all, {levels.black:g} is "
        f"black and {levels.white:g} white (data.range=[{levels.black:g},{levels.white:g}])"
    )
    return Survey(Reading(levels), (note,))


Ends = dict[bool, tuple[float, float]]
"""The least and the largest number, of whole numbers (True) and of fractions (False)."""


def _ends(listing: Listing, files: Sequence[str]) -> tuple[Ends, int]:
    """Return the ends of the numbers in those of some files that hold others than bytes, and how many do."""
    ends: Ends = {}
    count = 0
    for file in files:
        if not file.lower().endswith(DEEP):
            continue
        try:
            values = values_of(listing.root / file)
        except UnreadableError:  # it is named where it is read
            continue
        if values is None or not values.size:
            continue
        count += 1
        whole = values.dtype.kind != "f"
        low, high = ends.get(whole, (math.inf, -math.inf))
        ends[whole] = min(low, float(values.min())), max(high, float(values.max()))
    return ends, count


def levels_of(ends: Ends, where: str) -> Levels:
    """Choose what becomes black and white in a set.

    Whole numbers from 0 on have the range of the fewest bits that hold them: 1, 8, 10, 12, 14, 16 and more. Fractions
    have [0, 1] or [-1, 1] if they lie within, else from 0 on [0, largest]. All others go from the least to the largest.

    Args:
        ends: The ends of the numbers.
        where: The folder, for messages.

    Raises: UserError: If there are whole numbers 16 times as large as all fractions, which have no common scale.
    """
    if len(ends) == 2 and APART * ends[False][1] < ends[True][1]:
        raise UserError(
            f"{where} holds fractions up to {ends[False][1]:g} and whole numbers up to {ends[True][1]:g}: convert them "
            "to one kind, or set data.range"
        )
    low, high = min(low for low, _ in ends.values()), max(high for _, high in ends.values())
    if low >= 0 and False not in ends:
        return Levels(0, next((2**bits - 1 for bits in BITS if high < 2**bits), high))
    if False in ends and low >= -1 and high <= 1:
        return Levels(0 if low >= 0 else -1, 1)
    black = min(low, 0)
    return Levels(black, high if high > black else black + 1)


def _checked(span: Sequence[float]) -> Levels:
    """Return a span as levels."""
    if len(span) != 2 or not np.isfinite(span).all() or not span[0] < span[1]:
        raise UserError(f"data.range must be [black, white], two numbers of which the first is less, not {list(span)}")
    return Levels(float(span[0]), float(span[1]))
