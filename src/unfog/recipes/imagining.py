"""The recipes of DALL-E 2's mechanism: an encoder of pictures and captions, a prior, and a decoder."""

from dataclasses import replace

from unfog.data.codecs import Identity
from unfog.recipes.conditions import TextConditioning
from unfog.recipes.embedded import CaptionConditioning, Embedded
from unfog.recipes.encoders import EmbeddingConditioning
from unfog.recipes.kinds import class_of
from unfog.recipes.networks import MLPSpec, TowerSpec
from unfog.recipes.optimizers import AdamW
from unfog.recipes.recipe import Recipe
from unfog.recipes.settings import Sampling, Training


def encoder_of(captioned: Recipe) -> Recipe:
    """Return the recipe of a dual encoder of the pictures and captions of another recipe."""
    return Recipe(
        "encoder",
        data=captioned.data,
        network=TowerSpec(),
        objective=class_of("objective", "contrastive")(),
        conditioning=_words(captioned),
        optimizer=AdamW(lr=1e-3),
        training=Training(images=max(200_000, captioned.training.images // 2), batch=256),
    )


def prior_of(captioned: Recipe) -> Recipe:
    """Return the recipe of a prior, from the captions of another recipe to embeddings of its pictures."""
    return Recipe(
        "prior",
        data=Embedded(captioned.data),
        codec=Identity(),
        network=MLPSpec(width=512, depth=4),
        conditioning=CaptionConditioning(),
        optimizer=AdamW(lr=1e-3),
        training=Training(images=max(200_000, captioned.training.images // 2), batch=256),
        sampling=Sampling(guidance=1.5, batch=256, clip=False),
    )


def decoder_of(captioned: Recipe) -> Recipe:
    """Return the recipe of a decoder, from embeddings to the pictures of another recipe."""
    return replace(
        captioned,
        name="decoder",
        conditioning=EmbeddingConditioning(),
        sampling=replace(captioned.sampling, guidance=1.5),
    )


def _words(captioned: Recipe) -> TextConditioning:
    """Return the conditioning on the captions of a recipe."""
    own = captioned.conditioning
    return own if isinstance(own, TextConditioning) else TextConditioning()
