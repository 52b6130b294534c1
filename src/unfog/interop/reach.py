"""What the model of a recipe can be exported to, known before it is trained."""

from collections.abc import Callable
from typing import Any

from unfog.interop import export, onnx
from unfog.recipes.recipe import Recipe
from unfog.runtime.errors import UserError

FORMATS: dict[str, Callable[[Recipe], Any]] = {"diffusers": export.fit, "ONNX": onnx.fit}
"""The formats of `unfog export`, and what refuses a recipe that does not fit."""


def reach(recipe: Recipe) -> dict[str, str]:
    """Return for each format why the recipe's model cannot be exported to it; an empty text where it can."""
    return {name: _refusal(check, recipe) for name, check in FORMATS.items()}


def line(recipe: Recipe) -> str:
    """Return the same in words."""
    found = reach(recipe)
    able = [name for name, why in found.items() if not why]
    refused = "".join(f"; not to {name}: {why}" for name, why in found.items() if why)
    return f"to {' and '.join(able)}{refused}" if able else refused.removeprefix("; ")


def _refusal(check: Callable[[Recipe], Any], recipe: Recipe) -> str:
    """Return the sentence with which a check refuses a recipe, or nothing."""
    try:
        check(recipe)
    except UserError as error:
        return str(error)
    return ""
