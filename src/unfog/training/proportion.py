"""Size and network against budget and machine, before a training begins."""

from dataclasses import replace

import torch

from unfog.data.buckets import rows_of_training
from unfog.data.source import Data
from unfog.recipes.latents import LatentCodec
from unfog.recipes.recipe import Recipe
from unfog.runtime import distributed
from unfog.runtime.device import choose_device
from unfog.training.counting import cost
from unfog.training.latents import check_time
from unfog.training.objectives.reconstruction import autoencoder_recipe
from unfog.training.outlook import kind_of, sentence, suggested
from unfog.training.plan import seen
from unfog.training.rehearsal import REACHED, encoding, fastest, undisturbed


def suggested_side(recipe: Recipe, budget: float, device: str = "auto") -> int | None:
    """Return the side, at most a recipe's own, at which a budget shows most; None where nothing was measured.

    Args:
        recipe: A recipe for pictures.
        budget: Seconds of its training.
        device: Where to compute; its speed is that of a convolution, of which networks reach a half.
    """
    recipe, look = seen(recipe)
    kind = kind_of(recipe, look.x)
    if kind is None:
        return None
    return suggested(kind, max(look.x.shape[2:]), budget * REACHED * fastest(recipe, choose_device(device)))


def expectation(recipe: Recipe, budget: float | None = None, device: str = "auto") -> str | None:
    """Return in one line what to expect of a training; None where nothing was measured, as of flow maps.

    Args:
        recipe: What is to be trained.
        budget: Seconds to use instead of the recipe's number of images.
        device: Where to compute, see `suggested_side`.
    """
    recipe, look = seen(recipe)
    kind, latents = kind_of(recipe, look.x), isinstance(recipe.codec, LatentCodec)
    if kind is None or not recipe.objective.denoises or recipe.objective.jumps or (latents and budget is None):
        return None
    speed = REACHED * fastest(recipe, choose_device(device))
    if budget is None:
        operations = float(recipe.training.images * cost(recipe, look.data.train).operations)
    else:
        operations = budget * speed
    return sentence(kind, max(look.x.shape[2:]), operations, latents, speed)


def check_encoding(recipe: Recipe, codec: LatentCodec, data: Data, budget: float, device: torch.device) -> None:
    """Refuse a budget of which encoding leaves hardly anything even on an idle machine, and not after minutes.

    Args:
        recipe: In latents, with its shape filled in.
        codec: Its codec, whose autoencoder is to be trained first.
        data: Its data.
        budget: Seconds of the whole training.
        device: Where to compute.

    Raises: UserError: If training the autoencoder and encoding take all of the budget.
    """
    inner = replace(autoencoder_recipe(recipe, codec), shape=recipe.shape)
    each = encoding(cost(inner, data.train).operations, undisturbed(recipe, device))
    count = len(data.heldout) + (1 + recipe.augment.flip) * len(rows_of_training(data.train))
    check_time(count, distributed.agreed(count * each), codec.share, budget)
