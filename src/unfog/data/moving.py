"""Moving digits, included: scikit-learn's handwritten digits, which fly and bounce off the walls, and their tracker."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfog.data.classic import digits
from unfog.data.source import Batch, Data, Indices, Source
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import stream

SIDE, DIGIT = 20, 8
"""Pixels of a frame's side, and of a digit's."""
SPEEDS = (0.8, 1.6)
"""Pixels a frame, least and largest."""
ROOM = SIDE - DIGIT
"""Pixels that a digit can move along each axis."""
FEWEST, MOST = 100, 10_000_000
"""Rows, at least and at most."""
OFFSETS = (2.0, 5.0)
"""Pixels from the upper left corner of a digit to its centre of mass, least and largest."""
TURNS, MOVES = 24, 41
"""Places and velocities from which a path is sought, along each axis."""
Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Moving:
    """A source of clips: row i is a function of (seed, part, i) alone.

    Attributes:
        images: The digits that fly, uint8 `(digits, 1, 8, 8)`.
        labels: What they are, `(digits,)`.
        count: Number of rows.
        frames: Frames of a clip.
        seed: Seed of the clips.
        part: "train" or "held out", which have other paths.
        classes: Names of the classes.
    """

    images: Tensor
    labels: Tensor
    count: int
    frames: int
    seed: int
    part: str
    classes: tuple[str, ...]
    slow: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return (1, self.frames, SIDE, SIDE)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.count

    def take(self, indices: Indices) -> Batch:
        """Return clips, uint8 `(batch, 1, frames, 20, 20)`, with what flies in each."""
        draws = self._draws(indices)
        chosen = self._chosen(draws)
        angle, speed = 2 * math.pi * draws[:, 1], SPEEDS[0] + (SPEEDS[1] - SPEEDS[0]) * draws[:, 2]
        velocity = speed[:, None] * np.stack([np.sin(angle), np.cos(angle)], 1)
        places = bounced(ROOM * draws[:, 3:, None], velocity[..., None], np.arange(self.frames))
        x = placed(self.images[torch.from_numpy(chosen), 0].numpy(), places)
        return Batch(torch.from_numpy(x)[:, None], self.labels[torch.from_numpy(chosen)])

    def about(self, indices: Indices) -> Batch:
        """Return what flies in these clips."""
        labels = self.labels[torch.from_numpy(self._chosen(self._draws(indices)))]
        return Batch(torch.empty(len(indices), 0), labels)

    def _draws(self, indices: Indices) -> Reals:
        """Return the uniform numbers of some rows, `(rows, 5)`: digit, direction, speed, and place."""
        purpose = f"moving digits/{self.part}"
        return np.array([stream(self.seed, purpose, int(row)).random(5) for row in indices]).reshape(-1, 5)

    def _chosen(self, draws: Reals) -> Indices:
        """Return which of the digits fly."""
        chosen: Indices = (len(self.labels) * draws[:, 0]).astype(np.int64)
        return chosen


def moving(count: int = 20_000, frames: int = 16, seed: int = 0) -> Data:
    """Let digits of 8×8 pixels fly in frames of 20×20, at 0.8 to 1.6 pixels a frame, and bounce off the walls.

    A digit between pixels is interpolated linearly. A tenth as many clips are held out, of held-out digits.

    Args:
        count: Number of training clips.
        frames: Frames of a clip, a multiple of 4 from 4 to 64.
        seed: Seed of the clips.

    Returns: Rows, uint8 `(1, frames, 20, 20)`, with the digits as classes.
    Raises: UserError: If a number is out of range.
    """
    if not FEWEST <= count <= MOST:
        raise UserError(f"data.count must be from {FEWEST} to {MOST:,}, not {count}")
    if not 4 <= frames <= 64 or frames % 4:
        raise UserError(f"data.frames must be a multiple of 4 from 4 to 64, not {frames}")

    def part(source: Source, name: str, rows: int) -> Moving:
        all_of = source.take(np.arange(len(source)))
        assert all_of.labels is not None
        return Moving(all_of.x, all_of.labels, rows, frames, seed, name, source.classes)

    train, held = digits()
    return Data(part(train, "train", count), part(held, "held out", max(1, count // 10)))


def bounced(start: Reals, velocity: Reals, time: Reals | NDArray[np.int64]) -> Reals:
    """Return where something is that bounces between 0 and the end of its room, at each time."""
    way = (start + velocity * time) % (2 * ROOM)
    place: Reals = np.where(way > ROOM, 2 * ROOM - way, way)
    return place


def placed(images: NDArray[np.uint8], places: Reals) -> NDArray[np.uint8]:
    """Return frames with pictures at places between pixels, `(rows, frames, 20, 20)`.

    Args:
        images: Pictures, `(rows, 8, 8)`.
        places: Down and right of their upper left corners, `(rows, 2, frames)`.
    """
    grid, own = np.arange(SIDE)[:, None], np.arange(DIGIT)
    # the share of pixel j of the picture in pixel i of the frame: a hat of width 1 around its place
    down, right = (np.clip(1 - np.abs(grid - own - places[:, axis, :, None, None]), 0, None) for axis in range(2))
    frames = np.einsum("ntij,njk,ntlk->ntil", down, images.astype(np.float64), right, optimize=True)
    pixels: NDArray[np.uint8] = np.round(frames).astype(np.uint8)
    return pixels


def tracked(clips: NDArray[np.uint8]) -> Reals:
    """Return the centre of mass of each frame, down and right, `(clips, 2, frames)`, in pixels."""
    mass = clips[:, 0].astype(np.float64)
    whole = mass.sum((2, 3)).clip(min=1e-9)
    places = np.arange(SIDE)
    return np.stack([(mass.sum(3) * places).sum(2) / whole, (mass.sum(2) * places).sum(2) / whole], 1)


def strayed(clips: NDArray[np.uint8]) -> Reals:
    """Return how far the centre of each clip is from the best bouncing path: the RMS distance in pixels, `(clips,)`.

    Along each axis place, velocity and the offset of the mass in its digit are sought on a grid, and refined.
    """
    centres = tracked(clips)
    squares = np.stack([_misfit(centres[:, axis]) for axis in range(2)])
    distance: Reals = np.sqrt(squares.sum(0))
    return distance


def _misfit(centres: Reals) -> Reals:
    """Return the mean squared distance from the best path along one axis, `(clips,)`."""
    time = np.arange(centres.shape[1])
    starts, speeds = np.linspace(0, ROOM, TURNS), np.linspace(-SPEEDS[1], SPEEDS[1], MOVES)
    paths = bounced(starts[:, None, None], speeds[:, None], time)  # (starts, speeds, frames)
    flat = (paths - paths.mean(-1, keepdims=True)).reshape(-1, len(time))
    own = centres - centres.mean(-1, keepdims=True)  # the best offset is the difference of the means
    means = centres.mean(-1)[:, None]
    errors = (flat**2).mean(1) - 2 * own @ flat.T / len(time) + (own**2).mean(1, keepdims=True)
    errors += _beyond(means - paths.mean(-1).reshape(-1))
    best = errors.argmin(1)
    start, speed = starts[best // MOVES], speeds[best % MOVES]
    wide, fast = starts[1] - starts[0], speeds[1] - speeds[0]
    steps = np.stack(np.meshgrid([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0], indexing="ij"), -1).reshape(-1, 2)
    least = errors.min(1)
    for _ in range(8):
        wide, fast = wide / 2, fast / 2
        tried_start, tried_speed = start[:, None] + wide * steps[:, 0], speed[:, None] + fast * steps[:, 1]
        paths = bounced(tried_start[..., None], tried_speed[..., None], time)
        gaps = paths - paths.mean(-1, keepdims=True) - own[:, None]
        errors = (gaps**2).mean(-1) + _beyond(means - paths.mean(-1))
        pick = errors.argmin(1)[:, None]
        start, speed = np.take_along_axis(tried_start, pick, 1)[:, 0], np.take_along_axis(tried_speed, pick, 1)[:, 0]
        least = np.minimum(least, errors.min(1))
    misfit: Reals = least.clip(min=0)
    return misfit


def _beyond(offsets: Reals) -> Reals:
    """Return the squares by which offsets of the mass are beyond those that digits have."""
    squares: Reals = (offsets - offsets.clip(*OFFSETS)) ** 2
    return squares
