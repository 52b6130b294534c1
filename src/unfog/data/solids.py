"""Solids of voxels, included: balls, cubes, cylinders, cones and rings, and an exact reader of them."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from unfog.data.source import Data, InMemory, split
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import stream

SIDE = 16
"""Voxels along each side of a volume."""
KINDS = ("ball", "cube", "cylinder", "cone", "ring")
FEWEST, MOST = 100, 1_000_000
"""Rows, at least and at most."""
SIZES = (3.5, 6.0)
"""Half the height of a solid in voxels, least and largest; a solid keeps a voxel from each wall."""
TUBE = 0.4
"""Radius of a ring's tube over the half of its whole width."""
PORTION = 4096
"""Rows that are drawn at a time."""
TRIED, STEP = 4, 0.05
"""Kinds and axes that are sharpened, and the step of their slopes, in voxels."""
UNEXPLAINED = 0.04
"""Largest residual that is read, as a share of the squares of a volume."""
Reals = NDArray[np.float64]


class Solid(NamedTuple):
    """One solid.

    Attributes:
        kind: Number of its kind.
        axis: The axis that it is turned about, 0 to 2; of balls and cubes it does not matter.
        size: Half its height, in voxels.
        centre: Of its box, in voxels.
    """

    kind: int
    axis: int
    size: float
    centre: tuple[float, float, float]


def solids(count: int = 20_000, seed: int = 0) -> Data:
    """Draw solids of any size, place and axis, a fifth of each kind; a tenth is held out.

    A voxel is the share of it that lies inside: half, less the signed distance of its centre to the surface, from 0 to
    1, as a byte.

    Args:
        count: Number of volumes.
        seed: Seed of the volumes.

    Returns: Rows, uint8 `(1, 16, 16, 16)`, with their kinds as classes.
    Raises: UserError: If the count is out of range.
    """
    if not FEWEST <= count <= MOST:
        raise UserError(f"data.count must be from {FEWEST} to {MOST:,}, not {count}")
    u = stream(seed, "solids").random((count, 5))
    labels = np.arange(count) % len(KINDS)
    size = SIZES[0] + (SIZES[1] - SIZES[0]) * u[:, 0]
    room = (SIDE - 2 - 2 * size)[:, None] * (u[:, 2:] - 0.5)
    centre, axis = SIDE / 2 + room, (3 * u[:, 1]).astype(int)
    x = np.empty((count, 1, SIDE, SIDE, SIDE), np.uint8)
    for first in range(0, count, PORTION):
        some = slice(first, first + PORTION)
        for kind in range(len(KINDS)):
            for turned in range(3):
                mine = np.flatnonzero((labels[some] == kind) & (axis[some] == turned)) + first
                x[mine, 0] = np.round(255 * drawn(kind, turned, size[mine], centre[mine]))
    return split(InMemory(torch.from_numpy(x), torch.from_numpy(labels), KINDS), 0.1)


def drawn(kind: int, axis: int, size: Reals, centre: Reals) -> Reals:
    """Return solids of a kind and an axis as shares of voxels, `(n, 16, 16, 16)`.

    Args:
        kind: Number of the kind.
        axis: The axis that they are turned about.
        size: Half the heights, `(n,)`.
        centre: Of the boxes, `(n, 3)`.
    """
    places = np.arange(SIDE) + 0.5
    offsets = [
        (places - centre[:, one, None]).reshape(-1, *[SIDE if other == one else 1 for other in range(3)])
        for one in range(3)
    ]
    along, first, second = offsets[axis], *(offsets[other] for other in range(3) if other != axis)
    distance = DISTANCES[kind](along, first, second, size.reshape(-1, 1, 1, 1))
    shares: Reals = np.broadcast_to(np.clip(0.5 - distance, 0, 1), (len(size), SIDE, SIDE, SIDE))
    return shares


def _ball(along: Reals, first: Reals, second: Reals, size: Reals) -> Reals:
    """Return the signed distance to a ball."""
    distance: Reals = np.sqrt(along**2 + first**2 + second**2) - size
    return distance


def _cube(along: Reals, first: Reals, second: Reals, size: Reals) -> Reals:
    """Return it to a cube, whose sides are as long as a ball of this size is wide over the cube root of two."""
    side = size / 2 ** (1 / 3)
    distance: Reals = np.maximum(np.maximum(np.abs(along), np.abs(first)), np.abs(second)) - side
    return distance


def _cylinder(along: Reals, first: Reals, second: Reals, size: Reals) -> Reals:
    """Return it to a cylinder, 1.6 times as high as wide."""
    distance: Reals = np.maximum(np.sqrt(first**2 + second**2) - size / 1.6, np.abs(along) - size)
    return distance


def _cone(along: Reals, first: Reals, second: Reals, size: Reals) -> Reals:
    """Return it to a cone, as high as wide, whose tip points to lower places."""
    slant = (2 * np.sqrt(first**2 + second**2) - (along + size)) / math.sqrt(5)
    distance: Reals = np.maximum(slant, along - size)
    return distance


def _ring(along: Reals, first: Reals, second: Reals, size: Reals) -> Reals:
    """Return it to a ring, whose tube is two fifths of its half width."""
    tube = TUBE * size
    distance: Reals = np.sqrt((np.sqrt(first**2 + second**2) - (size - tube)) ** 2 + along**2) - tube
    return distance


DISTANCES: tuple[Callable[[Reals, Reals, Reals, Reals], Reals], ...] = (_ball, _cube, _cylinder, _cone, _ring)


def read(volume: NDArray[np.uint8]) -> Solid | None:
    """Return the solid in a volume, uint8 `(1, 16, 16, 16)`, or None if none of the kinds explains it.

    Volume and centre of mass give, for each kind and axis, the one size and place that it would need; a few steps of
    least squares sharpen them. The kind is the one whose drawing leaves the least residual, if that is small.
    """
    shares = volume[0] / 255.0
    squares = float((shares**2).sum())
    if squares < 20:
        return None
    mass = shares.sum()
    middle = [
        float((shares.sum(tuple(o for o in range(3) if o != one)) * (np.arange(SIDE) + 0.5)).sum() / mass)
        for one in range(3)
    ]
    guesses = [(kind, axis, _guess(kind, axis, mass, middle)) for kind in range(len(KINDS)) for axis in range(3)]
    guesses = [one for one in guesses if one[0] > 1 or one[1] == 0]  # balls and cubes look alike about all axes
    guesses.sort(key=lambda one: _residual(shares, *one))
    tried = [_sharpened(shares, *one) for one in guesses[:TRIED]]
    least = min(range(TRIED), key=lambda place: _residual(shares, *guesses[place][:2], tried[place]))
    kind, axis, _ = guesses[least]
    size, *centre = tried[least].tolist()
    if _residual(shares, kind, axis, tried[least]) > UNEXPLAINED * squares:
        return None
    return Solid(kind, axis, size, (centre[0], centre[1], centre[2]))


def kinds(volumes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the kind of each volume, `(n,)`, -1 where none can be read."""
    read_ones = (read(volume) for volume in volumes)
    return np.array([-1 if solid is None else solid.kind for solid in read_ones], dtype=np.int64)


def _unit(kind: int) -> tuple[float, float]:
    """Return the volume of a solid of size 1, and how far its centre of mass is behind its box's centre."""
    tube = TUBE
    volumes = (4 / 3 * math.pi, 4.0, 2 * math.pi / 1.6**2, 2 / 3 * math.pi, 2 * math.pi**2 * (1 - tube) * tube**2)
    return volumes[kind], 0.5 if KINDS[kind] == "cone" else 0.0


def _guess(kind: int, axis: int, mass: float, middle: list[float]) -> Reals:
    """Return size and centre that a solid would need for its mass and centre of mass, `(4,)`."""
    unit, behind = _unit(kind)
    size = (mass / unit) ** (1 / 3)
    guess = np.array([size, *middle])
    guess[1 + axis] -= behind * size
    return guess


def _residual(shares: Reals, kind: int, axis: int, numbers: Reals) -> float:
    """Return the squares that a solid of these numbers leaves."""
    return float(((shares - drawn(kind, axis, numbers[:1], numbers[None, 1:])[0]) ** 2).sum())


def _sharpened(shares: Reals, kind: int, axis: int, guess: Reals) -> Reals:
    """Return the size and the centre, `(4,)`, after a few steps of least squares."""
    for _ in range(3):
        tried = guess + STEP * np.concatenate([np.zeros((1, 4)), np.eye(4)])
        pictures = drawn(kind, axis, tried[:, 0], tried[:, 1:]).reshape(5, -1)
        slopes = (pictures[1:] - pictures[0]).T / STEP
        change = np.linalg.lstsq(slopes, shares.ravel() - pictures[0], rcond=None)[0]
        guess = guess + change.clip(-0.5, 0.5)
        guess[0] = min(max(guess[0], 1.0), SIDE / 2)
    return guess
