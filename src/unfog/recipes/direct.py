"""Models that draw pictures in one call as parts of a recipe: a GAN, a VAE, an autoregressive network."""

from collections.abc import Mapping
from functools import partial
from typing import cast

from torch import nn

from unfog.networks.direct import DirectModel
from unfog.recipes.build import drawn, known_of
from unfog.recipes.conditions import ClassConditioning, NoConditioning
from unfog.recipes.kinds import kind_of
from unfog.recipes.networks import WholeSpec
from unfog.recipes.recipe import Recipe
from unfog.runtime.errors import UserError


def build_direct(recipe: Recipe, most: int, spec: type[WholeSpec], judged: bool, **decided: object) -> DirectModel:
    """Return a network that draws pictures, and what embeds its condition, with freshly drawn weights.

    Args:
        recipe: The recipe, with its shape filled in.
        most: Most parameters that it may have.
        spec: The kind of network that the objective trains.
        judged: Whether there is a critic, which embeds conditions by itself, and is built as conditional or not.
        **decided: What the objective decides of the network.

    Raises: UserError: If the parts do not fit together, or it would be too large.
    """
    if not isinstance(recipe.network, spec):
        kind = kind_of("network", spec())
        raise UserError(f"objective={recipe.kind('objective')} trains network={kind}, not {recipe.kind('network')!r}")
    return drawn(recipe, most, partial(_model, recipe, recipe.network, judged, decided))


def _model(recipe: Recipe, spec: WholeSpec, judged: bool, decided: Mapping[str, object]) -> DirectModel:
    """Return the network and what embeds its condition, once more for a critic."""
    known, conditioning = known_of(recipe), recipe.conditioning
    if not isinstance(conditioning, ClassConditioning | NoConditioning):
        raise UserError(
            f"objective={recipe.kind('objective')} knows classes only: set conditioning=classes or none, not "
            f"{recipe.kind('conditioning')}"
        )
    conditional = bool(known.classes) and not isinstance(conditioning, NoConditioning)
    network = spec.whole(known.shape, **decided, **({"conditional": conditional} if judged else {}))
    embedders = [conditioning.build(known, network.embedding_dim) if conditional else None for _ in range(1 + judged)]
    return DirectModel(cast(nn.Module, network), *embedders)
