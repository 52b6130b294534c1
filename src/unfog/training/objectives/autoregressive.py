"""The autoregressive objective: a PixelCNN, which writes a picture pixel by pixel."""

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn

from unfog.networks.gated import GatedPixelCNN
from unfog.networks.pixels import DISTRIBUTIONS
from unfog.recipes.direct import build_direct
from unfog.recipes.networks import GatedSpec
from unfog.recipes.objective import Context, Draw, HeldOut
from unfog.recipes.optimizers import AdamW, Muon
from unfog.recipes.recipe import Recipe
from unfog.training.objectives.direct import OfPixels, condition_of, direct_model
from unfog.training.objectives.variational import Pixel, check_pixels


@dataclass(frozen=True)
class Autoregressive(OfPixels):
    """-log p(x) / numbers of x = -(1/N)·sum of log p(x_i | x_1 .. x_(i-1)), in nats: the exact likelihood.

    Attributes:
        pixels: The distribution of a pixel: a mixture of logistics over 256 values, or Bernoulli for black and white.

    Source: van den Oord et al. 2016, Conditional Image Generation with PixelCNN Decoders; Salimans et al. 2017,
    PixelCNN++, for the mixture.
    """

    network: ClassVar[type[GatedSpec]] = GatedSpec
    pixels: Pixel = "logistic"

    @property
    def usual(self) -> AdamW:
        """Muon."""
        return Muon(lr=3e-3)

    def build(self, recipe: Recipe, most: int) -> nn.Module:
        """Return the network."""
        return build_direct(recipe, most, GatedSpec, False, pixels=DISTRIBUTIONS[self.pixels])

    def check(self, model: nn.Module, held_out: HeldOut, context: Context) -> None:
        """Refuse rows that do not suit the distribution of pixels."""
        super().check(model, held_out, context)
        check_pixels(self.pixels, held_out)

    def losses(self, model: nn.Module, batch: Draw, context: Context) -> dict[str, Tensor]:
        """Return the loss of each row."""
        return {"loss": self.measured(model, batch, context)}

    def measured(self, model: nn.Module, batch: Draw, context: Context) -> Tensor:
        """Return -log p of each row, in nats a number."""
        model = direct_model(model)
        network = cast(GatedPixelCNN, model.network)
        return -network.log_prob(batch.x0, [], condition_of(model, batch)) / batch.x0[0].numel()
