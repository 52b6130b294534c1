"""What the objectives of GANs, VAEs and autoregressive models share: networks that draw pictures in one call."""

from abc import abstractmethod
from dataclasses import fields, replace
from typing import Any, ClassVar, cast

import numpy as np
from PIL import Image
from torch import Tensor, nn

from unfog.data.codecs import Pixels
from unfog.generation.direct import Direct, noises
from unfog.networks.conditioning import Cond
from unfog.networks.direct import DirectModel, DirectNetwork
from unfog.recipes.build import build_codec, known_of
from unfog.recipes.networks import NetworkSpec
from unfog.recipes.objective import Context, Draw, HeldOut, OneLoss, warn_of_idle
from unfog.recipes.optimizers import AdamW
from unfog.recipes.recipe import Recipe
from unfog.recipes.words import in_words
from unfog.runtime.errors import UserError
from unfog.training.reporting import SHEET

IDLE = ("inputs", "schedule", "target", "variance", "times", "weighting", "solver", "grid")
"""Parts of a recipe that are of denoisers."""


class OfPixels(OneLoss):
    """Base of these objectives."""

    draws: ClassVar[bool] = True
    network: ClassVar[type[Any]]
    """The specification of the network that it trains."""

    @property
    @abstractmethod
    def usual(self) -> AdamW:
        """The optimizer that suits it."""

    def beside(self, recipe: Recipe) -> Recipe:
        """Return a recipe with the network, the optimizer and the sampling that suit the objective."""
        conditioning = recipe.conditioning
        if any(one.name == "dropout" for one in fields(cast(Any, conditioning))):
            conditioning = replace(cast(Any, conditioning), dropout=0.0)  # there is no guidance
        network: NetworkSpec = self.network()
        sampling = replace(recipe.sampling, guidance=1.0)
        return replace(recipe, network=network, optimizer=self.usual, conditioning=conditioning, sampling=sampling)

    def check(self, model: nn.Module, held_out: HeldOut, context: Context) -> None:
        """Refuse rows that are no pixels, and guidance; warn of parts of the recipe that have no use here.

        Raises: UserError: If the rows are no pixels.
        """
        recipe, name = context.recipe, context.recipe.kind("objective")
        if not isinstance(recipe.codec, Pixels):
            raise UserError(f"objective={name} is of pixels: it goes with codec=pixels, not {recipe.kind('codec')!r}")
        self.generator(recipe, model).check(None)
        warn_of_idle(recipe, IDLE, "it trains no denoiser")

    def preview(self, model: nn.Module, held_out: HeldOut, context: Context) -> Image.Image:
        """Return a sheet of samples."""
        found = self.generator(context.recipe, model)
        count = min(SHEET, context.shown or SHEET)
        found = replace(found, precision=context.precision)
        condition = found.condition(count) if found.classes else held_out(np.arange(count)).condition
        labels = in_words(found.conditioning, found.known, condition, None, count)
        return found.modality.labelled(found(count, condition=condition), labels, "samples")

    def generator(self, recipe: Recipe, model: nn.Module) -> Direct:
        """Return what draws pictures."""
        made, codec, known = direct_model(model), build_codec(recipe), known_of(recipe)
        return Direct(made, codec, recipe.sampling, conditioning=recipe.conditioning, known=known)


def direct_model(model: nn.Module) -> DirectModel:
    """Cast a model."""
    assert isinstance(model, DirectModel)
    return model


def condition_of(model: DirectModel, batch: Draw) -> Cond | None:
    """Return what the network is given of the rows of a batch."""
    return model.cond(batch.condition, batch.drop, len(batch.x0))


def noises_of(model: DirectModel, batch: Draw, context: Context) -> list[Tensor]:
    """Return normal noise for the rows of a batch, a function of their numbers."""
    assert batch.numbers is not None, "rows have numbers"
    network, device = cast(DirectNetwork, model.network), batch.x0.device
    first, count = int(batch.numbers[0]), len(batch.numbers)
    return noises(network, context.recipe.seed, "training noise", first, count, device)
