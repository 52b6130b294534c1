"""The exact reader: what a picture of the captioned shapes shows, read in closed form, without a network.

A thing is a connected group of pixels that lie on the line from the background to one colour of the palette. Its area
and its centre of mass give, in closed form, the one place and radius that each shape would need; the shape is the one
whose drawing there, sharp or blurred, has the least residual. The residual decides whether the reading is accepted, so
a picture that the palette and the shapes cannot explain is not read at all.

The canonical reading names things in the order of (right + down), from the upper left, with "above" and "left of"
only: the sign of the longer of two distances is the sign of their sum, so that this order fits each relation.
"""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unfog.data.shapes import (
    ARM,
    BACKGROUND,
    COLOURS,
    MOST,
    SHAPES,
    SIZES,
    SQUARE,
    Scene,
    Thing,
    coverage,
)

_GROUND = np.array(BACKGROUND, dtype=np.float64)
_LINES = np.array(list(COLOURS.values()), dtype=np.float64) - _GROUND  # (colours, 3)
_LENGTHS = (_LINES**2).sum(1)
_AREAS = {"circle": np.pi, "square": 4 * SQUARE**2, "triangle": 2.0, "cross": 4 * ARM * (2 - ARM)}  # at radius 1
_LOW = {"triangle": 1 / 3}  # how far the centre of mass is below the centre of the box, at radius 1
_SOFT = (0.0, 0.6, 1.0)  # standard deviations of blur, in pixels, that a thing may have
_BETWEEN = (SIZES["small"] * SIZES["large"]) ** 0.5  # the radius that divides small from large
_SMALLEST, _LARGEST = 0.7 * SIZES["small"], 1.3 * SIZES["large"]
_INSIDE = 0.45  # coverage from which a pixel belongs to a thing; two blurred things do not reach it in between
_STRAY = 80.0  # distance from the background, in grey levels over the three channels, that is not noise
_FEW = 3  # stray pixels that are forgiven
# largest residual as a share of a thing's squared contrast, noise subtracted: that of a diamond is 0.043
_UNEXPLAINED = 0.03

_MEDIAN = 2.366  # of the chi-squared distribution of three channels: gives the noise's variance from the background
_AROUND = np.ones((3, 3), dtype=bool)


class Found(NamedTuple):
    """A thing in a picture, and the centre of its box as shares of the side: 0 is left and above."""

    thing: Thing
    right: float
    down: float


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows what a scene says, one attribute at a time; all are False if it cannot be read."""

    count: bool = False
    colours: bool = False
    shapes: bool = False
    sizes: bool = False
    relations: bool = False

    @property
    def all(self) -> bool:
        """Whether everything is as the scene says."""
        return self.count and self.colours and self.shapes and self.sizes and self.relations

    @property
    def score(self) -> int:
        """How many attributes are as the scene says."""
        return self.count + self.colours + self.shapes + self.sizes + self.relations


def read(picture: NDArray[np.uint8]) -> Scene | None:
    """Return the canonical reading of a picture.

    Args:
        picture: uint8, `(3, side, side)`.

    Returns: The scene, or None if there are no things or too many, or if something else is in the picture.
    Raises: ValueError: If it is no such picture.
    """
    things = find(picture)
    if things is None:
        return None
    relations = tuple(_relation(first, second) for first, second in itertools.pairwise(things))
    return Scene(tuple(one.thing for one in things), relations)


def find(picture: NDArray[np.uint8]) -> list[Found] | None:
    """Return the things in a picture in canonical order, or None if it cannot be read; see `read`."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[0] != 3 or picture.shape[1] != picture.shape[2]:
        raise ValueError(f"a picture is uint8 (3, side, side), not {picture.dtype} {picture.shape}")
    side = picture.shape[1]
    pixels = _explained(picture)
    labels = _groups(pixels, side)
    if labels is None:
        return None
    stray = pixels.squared > _STRAY**2
    quiet = pixels.squared[~ndimage.binary_dilation(labels > 0, _AROUND, 3)]
    noise = float(np.median(quiet)) / _MEDIAN if quiet.size else 0.0
    things = []
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        if box is None:
            continue
        window = tuple(slice(max(0, part.start - 3), part.stop + 3) for part in box)
        near = labels[window]
        mask = ndimage.binary_dilation(near == label, _AROUND, 2)
        mask &= ~ndimage.binary_dilation((near != label) & (near != 0), _AROUND)
        one = _explain(pixels.contrast[window], pixels.along[window], pixels.off[window], mask, noise)
        if one is None:
            return None
        stray[window] &= ~mask
        thing, radius, right, down = one
        if not _SMALLEST < radius / side < _LARGEST:
            return None
        named = Thing("small" if radius / side < _BETWEEN else "large", *thing)
        things.append(Found(named, (right + window[1].start) / side, (down + window[0].start) / side))
    if stray.sum() > _FEW:
        return None
    return sorted(things, key=lambda one: one.right + one.down)


class _Pixels(NamedTuple):
    """A picture as it lies to the palette.

    Attributes:
        contrast: Pixels without the background, `(side, side, 3)`.
        squared: Its squared length, `(side, side)`.
        along: Coverage if the thing there had each colour, `(side, side, colours)`.
        off: Squared residual under each colour, shaped like `along`.
    """

    contrast: NDArray[np.float64]
    squared: NDArray[np.float64]
    along: NDArray[np.float64]
    off: NDArray[np.float64]


def _explained(picture: NDArray[np.uint8]) -> _Pixels:
    """Project each pixel on the line from the background to each colour."""
    contrast = picture.transpose(1, 2, 0) - _GROUND
    along = contrast @ _LINES.T / _LENGTHS
    squared = (contrast**2).sum(2)
    shares = along.clip(0, 1)
    off = squared[..., None] - (2 * along - shares) * shares * _LENGTHS
    return _Pixels(contrast, squared, along, off)


def _groups(pixels: _Pixels, side: int) -> NDArray[np.int32] | None:
    """Return the number of the thing that each pixel belongs to, 0 for none; None if there are none or too many."""
    best = np.take_along_axis(pixels.along, pixels.off.argmin(2)[..., None], 2)[..., 0]
    labels, number = ndimage.label(best > _INSIDE, _AROUND)
    sizes = np.bincount(labels.ravel(), minlength=number + 1)
    least = 4 * (side / 32) ** 2  # the smallest triangle, blurred, has 9 pixels at side 32
    kept = [label for label in range(1, number + 1) if sizes[label] >= least]
    if not 1 <= len(kept) <= MOST:
        return None
    labels[~np.isin(labels, kept)] = 0
    groups: NDArray[np.int32] = labels
    return groups


def _explain(
    contrast: NDArray[np.float64],
    along: NDArray[np.float64],
    off: NDArray[np.float64],
    mask: NDArray[np.bool_],
    noise: float,
) -> tuple[tuple[str, str], float, float, float] | None:
    """Return the thing that explains a window best, or None if its residual is too large.

    Args:
        contrast: Pixels without the background, `(height, width, 3)`.
        along: Coverage if the thing had each colour, `(height, width, colours)`.
        off: Squared residual of each pixel under each colour, shaped like `along`.
        mask: The thing's pixels in the window, `(height, width)`.
        noise: Variance of the noise in each channel.

    Returns: (colour, shape), radius, and the centre of its box (right, down), in pixels of the window.
    """
    colour = int(off[mask].sum(0).argmin())
    part = np.where(mask, along[..., colour], 0.0)
    area = part.sum()
    if area <= 0:
        return None
    right, down = np.arange(part.shape[1]) + 0.5, np.arange(part.shape[0]) + 0.5
    middle, height = (part.sum(0) * right).sum() / area, (part.sum(1) * down).sum() / area
    least, chosen = np.inf, ("", 0.0, 0.0)
    for shape in SHAPES:
        radius = float(np.sqrt(area / _AREAS[shape]))
        centre = float(height - _LOW.get(shape, 0.0) * radius)
        sharp = coverage(shape, right - middle, down[:, None] - centre, radius)
        for blur in _SOFT:
            drawn = (ndimage.gaussian_filter(sharp, blur, mode="constant") if blur else sharp)[mask]
            rest = ((contrast[mask] - drawn[:, None] * _LINES[colour]) ** 2).sum()
            if rest < least:
                least, chosen = rest, (shape, radius, centre)
    shape, radius, centre = chosen
    systematic = least - 3 * noise * mask.sum()
    if systematic > _UNEXPLAINED * area * _LENGTHS[colour]:
        return None
    return (tuple(COLOURS)[colour], shape), radius, float(middle), centre


def matches(picture: NDArray[np.uint8], scene: Scene) -> Verdict:
    """Say whether a picture shows what a scene says, in whatever order the scene says it.

    The things of the scene are assigned to those in the picture so that as much as possible holds. With too many
    things in the picture the rest is said of the best of them; with too few, or if it cannot be read, nothing holds.

    Args:
        picture: uint8, `(3, side, side)`.
        scene: What it should show; each relation is that of two neighbours, so "A above B" is "B below A".

    Returns: The verdict.
    Raises: ValueError: If it is no such picture.
    """
    things = find(picture)
    if things is None:
        return Verdict()
    verdicts = [_compare(chosen, scene, len(things)) for chosen in itertools.permutations(things, len(scene.things))]
    return max(verdicts, key=lambda verdict: verdict.score, default=Verdict())


def _compare(chosen: tuple[Found, ...], scene: Scene, number: int) -> Verdict:
    """Compare things one by one, in this order."""
    pairs = list(zip(chosen, scene.things, strict=True))
    return Verdict(
        count=number == len(scene.things),
        colours=all(one.thing.colour == thing.colour for one, thing in pairs),
        shapes=all(one.thing.shape == thing.shape for one, thing in pairs),
        sizes=all(one.thing.size == thing.size for one, thing in pairs),
        relations=tuple(_relation(*pair) for pair in itertools.pairwise(chosen)) == scene.relations,
    )


def _relation(first: Found, second: Found) -> str:
    """Return how the first thing stands to the second, by the longer of the two distances."""
    right, down = second.right - first.right, second.down - first.down
    if abs(right) > abs(down):
        return "left of" if right > 0 else "right of"
    return "above" if down > 0 else "below"
