"""Augmentation that does not leak: pictures are turned, scaled and shifted, and the network is told how."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from unfog.data.modality import images
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import normal, uniform

NUMBERS = 9
"""Numbers that say how a picture was changed."""


@dataclass(frozen=True)
class Geometry:
    """Random mirroring, scaling, rotation, stretching and shifts of images, which the network is conditioned on.

    Each kind of change is applied with a probability, mirroring left to right to half of the pictures. The network adds
    a linear function of 9 numbers, 0 for an unchanged picture, to its time embedding, so that it draws unchanged ones.

    Attributes:
        probability: Probability of each kind of change.
        scale: Standard deviation of the binary logarithm of size and stretching.
        rotation: Largest rotation as a share of half a turn.
        shift: Standard deviation of shifts as a share of the sides.

    Source: Karras et al. 2022, appendix F.2, table 6; 2020, Training GANs with Limited Data, appendix B.
    """

    probability: float = 0.12
    scale: float = 0.2
    rotation: float = 1.0
    shift: float = 0.125
    flip: ClassVar[bool] = True
    crop: ClassVar[int] = 0
    told: ClassVar[int] = NUMBERS

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (0 <= self.probability <= 1 and 0 <= self.rotation <= 1 and self.scale >= 0 and self.shift >= 0):
            raise UserError(
                "augment.probability and augment.rotation must lie between 0 and 1, augment.scale and augment.shift be "
                "0 or more"
            )

    def numbers(self, seed: int, position: int, count: int) -> Tensor:
        """Return how pictures are changed, a function of (seed, position): 0 where one is not.

        The numbers are: mirrored left to right, and upside down; size, in standard deviations of its logarithm;
        cos - 1 and sin of a rotation; a stretching, by its size, times cos and sin of its direction; and two shifts,
        in standard deviations.

        Args:
            seed: Seed of the run.
            position: Number of rows seen before.
            count: Number of rows.

        Returns: `(count, 9)`, float32.
        """
        u = torch.from_numpy(uniform(seed, "geometry", 0, position, count, 9)).float()
        z = normal(seed, "geometry's sizes", 0, position, count, (4,))
        mirrored = (u[:, 0] < 0.5).float()
        upside, sized, turned, stretched, shifted = (u[:, 1:6] < self.probability).float().T
        upside = upside * (u[:, 8] < 0.5)
        turn = math.pi * self.rotation * (2 * u[:, 6] - 1) * turned
        way = math.pi * (2 * u[:, 7] - 1)
        return torch.stack(
            [
                mirrored,
                upside,
                z[:, 0] * sized,
                turn.cos() - 1,
                turn.sin(),
                z[:, 1] * stretched * way.cos(),
                z[:, 1] * stretched * way.sin(),
                z[:, 2] * shifted,
                z[:, 3] * shifted,
            ],
            dim=1,
        )

    def __call__(self, x: Tensor, seed: int, position: int) -> Tensor:
        """Return changed images, see `changed`; `position` is the number of rows seen before this batch."""
        return self.changed(x, self.numbers(seed, position, len(x)))

    def changed(self, x: Tensor, told: Tensor) -> Tensor:
        """Return images changed as these numbers say.

        Args:
            x: Images, `(batch, channels, height, width)`.
            told: From `numbers`.

        Returns: Images of the same shape and dtype. What lies beyond a border is mirrored.
        Raises: UserError: For rows that are no images.
        """
        if not images.fits(tuple(x.shape[1:])):
            raise UserError("augment=geometry only applies to images: choose augment=flip-crop for other data")
        for number, axis in ((0, -1), (1, -2)):
            x = torch.where(told[:, number, None, None, None] > 0, x.flip(axis), x)
        moved = told[:, 2:].abs().sum(1) > 0  # all others stay what they are, to the bit
        if not moved.any():
            return x
        height, width = x.shape[2:]
        grid = F.affine_grid(self._inverse(told[moved], width / height), [int(moved.sum()), *x.shape[1:]], False)
        found = F.grid_sample(x[moved].float(), grid, "bicubic", "reflection", False)
        whole = not x.is_floating_point()
        x = x.clone()
        x[moved] = (found.round().clamp(0, 255) if whole else found).to(x.dtype)
        return x

    def _inverse(self, told: Tensor, aspect: float) -> Tensor:
        """Return for each picture where its pixels come from, `(batch, 2, 3)`, in coordinates of [-1, 1] a side."""
        size = 2 ** (self.scale * told[:, 2])
        cos, sin = told[:, 3] + 1, told[:, 4]
        amount, way = told[:, 5:7].norm(dim=1), torch.atan2(told[:, 6], told[:, 5])
        long, short = 2 ** (self.scale * amount), 2 ** (-self.scale * amount)
        turn = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
        along = torch.stack([way.cos(), -way.sin(), way.sin(), way.cos()], 1).view(-1, 2, 2)
        stretch = along @ torch.diag_embed(torch.stack([long, short], 1)) @ along.mT
        forward = turn @ stretch * size[:, None, None]
        square = torch.tensor([[aspect, 0.0], [0.0, 1.0]])  # pixels are square, and the coordinates are not
        inverse = torch.linalg.inv(square) @ torch.linalg.inv(forward) @ square
        shift = 2 * self.shift * told[:, 7:9, None]
        return torch.cat([inverse, -inverse @ shift], dim=2)
