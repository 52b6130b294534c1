"""Formulas that were corrected since a recipe was written."""

from unfog.data.codecs import Pixels
from unfog.recipes.optimizers import AdamW, Muon
from unfog.recipes.recipe import Recipe
from unfog.recipes.settings import LearnedVariance


def corrections(recipe: Recipe) -> list[str]:
    """Return a sentence for each corrected formula that the training of an older recipe meets."""
    if recipe.version > 1:
        return []
    found = []
    if isinstance(recipe.optimizer, Muon) and recipe.optimizer.weight_decay != AdamW().weight_decay:
        found.append(
            f"optimizer.weight_decay={recipe.optimizer.weight_decay:g} now also holds for weights that are no "
            f"matrices, which decayed by {AdamW().weight_decay:g} when this run began"
        )
    if isinstance(recipe.variance, LearnedVariance) and isinstance(recipe.codec, Pixels):
        found.append("the bound that teaches the variance now has open bins for black and white pixels")
    return found
