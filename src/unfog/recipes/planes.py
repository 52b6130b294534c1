"""Conditioning on pictures, which are concatenated to the state: to colour, to enlarge, to fill in."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from unfog.data.codecs import Pixels
from unfog.data.source import Batch
from unfog.networks.conditioning import Embedder, PlanesEmbedding
from unfog.recipes.conditions import Asked, Known, WithNull
from unfog.runtime.errors import UserError
from unfog.runtime.randomness import normal

BITS = 1 << 52
"""Seeds of the noise of a condition: one for each uniform number that a row draws."""


@dataclass(frozen=True)
class ImageConditioning(WithNull):
    """Conditions on a degraded version of the picture, concatenated to the state as further channels.

    With `noise`, in training the small picture becomes (1 - s)·small + s·eps, with s uniform from 0 to `noise`, and the
    model is given s: so it does not rely on details of small pictures that another model has drawn.

    Attributes:
        task: "colour" gives the grey picture, "enlarge" one that is `factor` times smaller, "fill" the picture with a
            box cut out, and a mask of the box.
        factor: How many times smaller the picture is.
        small: The shorter side of the small picture, instead of `factor`; `conditioning.from` is its other name.
        noise: The largest share of noise in the small picture, from 0 to below 1; 0 is none.
        noise_at: The share of noise in sampling, up to `noise`.

    Source: Ho et al. 2022, Cascaded Diffusion Models, section 4 (conditioning augmentation); Saharia et al. 2022,
    Imagen, section 2.3 (the model is given its level).
    """

    task: Literal["colour", "enlarge", "fill"] = "enlarge"
    factor: int = 4
    small: int | None = None
    noise: float = 0.0
    noise_at: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if not 0 <= self.noise_at <= self.noise < 1:
            raise UserError(
                "conditioning.noise must be from 0 to below 1, and conditioning.noise_at at most as large, not "
                f"{self.noise:g} and {self.noise_at:g}"
            )
        if self.noise and self.task != "enlarge":
            raise UserError("conditioning.noise goes with conditioning.task=enlarge: omit it")

    def planes(self, known: Known) -> int:
        """Return the number of planes, including the one that marks a dropped condition."""
        own = {"colour": 1, "enlarge": known.shape[0] + bool(self.noise), "fill": known.shape[0] + 1}
        return own[self.task] + 1

    def build(self, known: Known, dim: int) -> Embedder | None:
        """Return the embedder."""
        if not known.modality.pixels or known.shape != (known.stored or known.shape):
            raise UserError("conditioning=image is for pictures in pixels: use another conditioning, or codec=pixels")
        if self.task == "colour" and known.shape[0] == 1:
            raise UserError("conditioning.task=colour needs pictures in colour, but these are grey: use another task")
        factor = self.factor_of(known)
        if self.task == "enlarge" and (factor < 1 or any(side % factor for side in known.shape[1:])):
            raise UserError(f"conditioning.factor {factor} does not divide the sides {known.shape[1:]}")
        return PlanesEmbedding((self.planes(known) - 1, *known.shape[1:]))

    def factor_of(self, known: Known) -> int:
        """Return how many times smaller the picture is.

        Raises: UserError: If its side does not divide that of the large ones.
        """
        if self.small is None:
            return self.factor
        side = min(known.shape[1:])
        if not 1 <= self.small <= side or side % self.small:
            raise UserError(f"conditioning.from {self.small} does not divide the side {side}")
        return side // self.small

    def read(self, known: Known, batch: Batch, x0: Tensor, u: Tensor) -> Tensor | None:
        """Return the planes, `(batch, planes, height, width)`; a box spans a quarter to three quarters of each side."""
        if self.task == "colour":
            return x0.mean(1, keepdim=True)
        if self.task == "enlarge":
            return self._enlarged(x0, u, self.factor_of(known))
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
        """Return the planes of pictures `(count, channels, height, width)` in [-1, 1]; one is used for all samples."""
        if not isinstance(asked, Tensor):
            raise UserError("this model is conditioned on images: give one as `image`")
        if tuple(asked.shape[1:]) != known.shape or not len(asked):
            raise UserError(f"this model is conditioned on images of shape {known.shape}, not {tuple(asked.shape[1:])}")
        if not asked.is_floating_point():
            raise UserError("this model is conditioned on images in [-1, 1]: convert bytes v to v/127.5 - 1 first")
        x0 = asked.float()[torch.arange(count if self.noise_at else min(count, len(asked))) % len(asked)]
        u = torch.full((len(x0), 4), 0.5, dtype=torch.float64)
        if self.noise:
            u[:, 0] = self.noise_at / self.noise
            u[:, 3] = (torch.arange(len(x0)) + 0.5) / BITS  # noise of its own for each sample
        planes = self.read(known, Batch(x0), x0, u)
        return None if planes is None else planes[torch.arange(count) % len(x0)]

    def following(self, known: Known, rows: Tensor) -> Tensor:
        """Return the planes of small pictures that another model has drawn, uint8 `(batch, channels, *sides)`."""
        sides = tuple(known.shape[1:])
        large = F.interpolate(rows.float(), sides, mode="nearest").to(rows)
        planes = self.ask(known, Pixels().encode(large), len(rows))
        assert planes is not None, "a condition of pictures"
        return planes

    def _enlarged(self, x0: Tensor, u: Tensor, factor: int) -> Tensor:
        """Return small pictures with their noise, enlarged, and the share of noise as a further plane."""
        small = F.avg_pool2d(x0, factor)
        if not self.noise:
            return F.interpolate(small, scale_factor=float(factor), mode="nearest")
        share = (self.noise * u[:, 0]).to(x0).reshape(-1, 1, 1, 1)
        seeds = (u[:, 3].double() * BITS).long().tolist()
        shape = tuple(small.shape[1:])
        eps = torch.cat([normal(seed, "noise of a condition", 0, 0, 1, shape) for seed in seeds]).to(x0)
        noisy = F.interpolate((1 - share) * small + share * eps, scale_factor=float(factor), mode="nearest")
        return torch.cat([noisy, share.expand(-1, 1, *x0.shape[2:])], 1)
