"""The variational objective: a hierarchical VAE, trained on its bound of the likelihood."""

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import numpy as np
from torch import Tensor, nn

from unfog.networks.ladder import Ladder
from unfog.networks.pixels import DISTRIBUTIONS
from unfog.recipes.direct import build_direct
from unfog.recipes.networks import LadderSpec
from unfog.recipes.objective import Context, Draw, HeldOut
from unfog.recipes.optimizers import AdamW, Muon
from unfog.recipes.recipe import Recipe
from unfog.runtime.errors import UserError
from unfog.training.objectives.direct import OfPixels, condition_of, direct_model, noises_of

Pixel = Literal["logistic", "bernoulli"]
"""The distribution of a pixel."""


@dataclass(frozen=True)
class Variational(OfPixels):
    """(-log p(x | z) + share·KL(q(z | x) ‖ p(z))) / numbers of x, in nats, with latents at two resolutions.

    The share rises from 0 to 1 at the beginning, so that latents are used before they cost. Samples show the pixels
    without their own noise, since it is independent from pixel to pixel; black and white ones are drawn.

    Attributes:
        pixels: The distribution of a pixel: a mixture of logistics over 256 values, or Bernoulli for black and white.
        warmup: Fraction of the training in which the share of the divergence rises.

    Source: Kingma & Welling 2014, Auto-Encoding Variational Bayes; Sønderby et al. 2016, Ladder Variational
    Autoencoders, section 2.3, for the warm-up.
    """

    network: ClassVar[type[LadderSpec]] = LadderSpec
    pixels: Pixel = "logistic"
    warmup: float = 0.1

    def __post_init__(self) -> None:
        """Check the fraction."""
        if not 0 <= self.warmup <= 1:
            raise UserError(f"objective.warmup must be from 0 to 1, not {self.warmup}")

    @property
    def usual(self) -> AdamW:
        """Muon."""
        return Muon(lr=3e-3)

    def build(self, recipe: Recipe, most: int) -> nn.Module:
        """Return the network."""
        return build_direct(recipe, most, LadderSpec, False, pixels=DISTRIBUTIONS[self.pixels])

    def check(self, model: nn.Module, held_out: HeldOut, context: Context) -> None:
        """Refuse rows that do not suit the distribution of pixels."""
        super().check(model, held_out, context)
        check_pixels(self.pixels, held_out)

    def losses(self, model: nn.Module, batch: Draw, context: Context) -> dict[str, Tensor]:
        """Return the loss of each row."""
        share = min(1.0, context.progress / self.warmup) if self.warmup else 1.0
        return {"loss": self._bound(model, batch, context, share)}

    def measured(self, model: nn.Module, batch: Draw, context: Context) -> Tensor:
        """Return the negative bound of each row, in nats a number."""
        return self._bound(model, batch, context, 1.0)

    def _bound(self, model: nn.Module, batch: Draw, context: Context, share: float) -> Tensor:
        """Return the negative bound with a share of the divergence."""
        model = direct_model(model)
        network, noise = cast(Ladder, model.network), noises_of(model, batch, context)
        return -network.bound(batch.x0, noise, condition_of(model, batch), share) / batch.x0[0].numel()


def check_pixels(pixels: Pixel, held_out: HeldOut) -> None:
    """Refuse Bernoulli's distribution for pixels that are neither black nor white.

    Raises: UserError: If there are any.
    """
    if pixels == "bernoulli" and bool((held_out(np.arange(16)).x0.abs() != 1).any()):
        raise UserError(
            "objective.pixels=bernoulli is of pixels that are black or white, and these are not: use logistic, or "
            "set data.binary=true where the data have it"
        )
