"""Masked diffusion: a model of texts, trained to find the characters that are hidden."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from PIL import Image
from torch import Tensor, nn

from unfog.data.characters import Characters
from unfog.diffusion.schedules import RectifiedFlow
from unfog.diffusion.targets import X0
from unfog.generation.unmasking import Order, Unmasker, Unmasking, hiding, surprise
from unfog.recipes.build import build_codec, build_denoiser, known_of
from unfog.recipes.objective import Context, Draw, HeldOut, OneLoss, Seen, warn_of_idle
from unfog.recipes.recipe import Recipe
from unfog.recipes.words import in_words
from unfog.runtime.errors import UserError
from unfog.runtime.lines import counted
from unfog.training.objectives.denoising import condition_of

SHOWN = 24
"""Texts on a sheet."""
IDLE = ("inputs", "schedule", "target", "variance", "weighting", "solver")
"""Parts of a recipe that are of numbers, which texts are not."""


@dataclass(frozen=True)
class Masked(OneLoss):
    """(1/l)·Σ -log p(x_i | what is seen) over the l hidden of L characters, l drawn from 1 to L: in nats a character.

    Its mean is a bound of -log p(x)/L: that of writing the characters one by one in a random order, and that of the
    absorbing process in which each character is hidden with probability t, from t = 0 to 1.

    Attributes:
        order: Which characters are found first when it samples, see `unfog.generation.unmasking.order_of`.

    Source: Austin et al. 2021, Structured Denoising Diffusion Models in Discrete State-Spaces; Sahoo et al. 2024,
    Simple and Effective Masked Diffusion Language Models; Nie et al. 2025, Large Language Diffusion Models, for l.
    """

    order: Order = "auto"
    before: ClassVar[Mapping[str, object]] = {"order": "random"}
    draws: ClassVar[bool] = True

    def build(self, recipe: Recipe, most: int) -> nn.Module:
        """Return the network that finds characters, and what embeds the condition.

        Raises: UserError: If the rows are no texts.
        """
        if not isinstance(recipe.codec, Characters):
            raise UserError("objective=masked goes with codec=characters: use the recipe 'text'")
        return Unmasker(build_denoiser(replace(recipe, schedule=RectifiedFlow(), target=X0()), most))

    def check(self, model: nn.Module, held_out: HeldOut, context: Context) -> None:
        """Warn of parts of the recipe that were chosen and have no use here."""
        warn_of_idle(context.recipe, IDLE, "it hides characters, evenly")

    def losses(self, model: nn.Module, batch: Draw, context: Context) -> dict[str, Tensor]:
        """Return the loss of each row."""
        return {"loss": self.measured(model, batch, context)}

    def measured(self, model: nn.Module, batch: Draw, context: Context) -> Tensor:
        """Return nats a character of each row."""
        model = _unmasker(model)
        hidden, t = hiding(batch.u, batch.noise[:, 0])
        logits = model(batch.x0 * ~hidden[:, None], t, condition_of(model.denoiser, batch))
        return (surprise(logits, batch.x0) * hidden).sum(1) / hidden.sum(1)

    def seen(self, batch: Draw, context: Context) -> Seen:
        """Return the rows without the characters that are hidden."""
        hidden, t = hiding(batch.u, batch.noise[:, 0])
        return Seen(batch.x0 * ~hidden[:, None], t, batch.x0)

    def preview(self, model: nn.Module, held_out: HeldOut, context: Context) -> Image.Image:
        """Return a sheet of samples."""
        found = self.generator(context.recipe, model)
        count = min(SHOWN, context.shown or SHOWN)
        found = replace(found, precision=context.precision, settings=replace(found.settings, batch=count))
        named = found.classes or found.conditioning.captioned
        condition = found.condition(count) if named else held_out(np.arange(count)).condition
        labels = in_words(found.conditioning, found.known, condition, None, count)
        drawn = found(count, condition=condition)
        return found.modality.labelled(drawn, labels, counted(found.settings.steps, "step"))

    def generator(self, recipe: Recipe, model: nn.Module) -> Unmasking:
        """Return what draws texts."""
        return Unmasking(
            _unmasker(model),
            build_codec(recipe),
            recipe.sampling,
            self.order,
            conditioning=recipe.conditioning,
            known=known_of(recipe),
        )


def _unmasker(model: nn.Module) -> Unmasker:
    """Cast a model."""
    assert isinstance(model, Unmasker)
    return model
