"""What a run of a stranger may name: only what lies in its folder."""

from pathlib import Path

from unfog.recipes.recipe import Recipe
from unfog.runtime.errors import UserError


def check_inside(recipe: Recipe, folder: Path) -> None:
    """Refuse a recipe of a run folder, with its paths made absolute, that names something outside of the folder.

    Raises: UserError: If it does.
    """
    for part in (recipe.codec, recipe.conditioning, recipe.objective):
        inner = getattr(part, "path", "")
        if inner and not Path(inner).resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{folder / 'recipe.json'}: {inner} is outside of the run folder, where nothing is read: copy it there"
            )
