"""A cascade of trained models as one model: nothing is trained, samples go through all stages."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, cast

from PIL import Image
from torch import Tensor, nn

from unfog.generation.cascading import Cascading
from unfog.generation.sampler import Sampler
from unfog.recipes.inside import check_inside
from unfog.recipes.objective import Context, Draw, HeldOut, OneLoss
from unfog.recipes.recipe import Recipe
from unfog.runtime.errors import UserError
from unfog.runtime.files import read_bounded

MOST = 8
"""Stages, at most."""


@dataclass(frozen=True)
class Cascade(OneLoss):
    """Several models one behind the other, each of which enlarges or decodes what the one before has drawn.

    Attributes:
        path: The folder that holds the recipe of each stage, `1/recipe.json`, `2/recipe.json` and so on.
        stages: How many there are.
    """

    draws: ClassVar[bool] = True
    path: str = ""
    stages: int = 2

    def __post_init__(self) -> None:
        """Check the number of stages."""
        if not 2 <= self.stages <= MOST:
            raise UserError(f"objective.stages must be from 2 to {MOST}, not {self.stages}")

    def recipes(self) -> list[Recipe]:
        """Return the recipe of each stage.

        Raises: UserError: If one is missing or damaged.
        """
        if not self.path:
            raise UserError("a cascade is made of trained runs: `unfog cascade BASE LARGER --out FOLDER`")
        found = []
        for place in range(1, self.stages + 1):
            where = Path(self.path) / str(place)
            if not (where / "recipe.json").is_file():
                raise UserError(f"{where} has no recipe.json: make the cascade again")
            found.append(Recipe.from_json(read_bounded(where / "recipe.json")).relocated(where))
            check_inside(found[-1], where)
        return found

    def build(self, recipe: Recipe, most: int) -> nn.Module:
        """Return the models of all stages, with freshly drawn weights."""
        stages = self.recipes()
        if any(isinstance(stage.objective, Cascade) for stage in stages):
            raise UserError("a stage of a cascade is itself one: name its stages instead")
        return nn.ModuleList(stage.objective.build(stage, most) for stage in stages)

    def check(self, model: nn.Module, held_out: HeldOut, context: Context) -> None:
        """Refuse to be trained."""
        raise UserError("a cascade is not trained: train its stages, and make it again with `unfog cascade`")

    def losses(self, model: nn.Module, batch: Draw, context: Context) -> dict[str, Tensor]:
        """Refuse to be trained."""
        raise UserError("a cascade is not trained: train its stages, and make it again with `unfog cascade`")

    def measured(self, model: nn.Module, batch: Draw, context: Context) -> Tensor:
        """Refuse to be trained."""
        raise UserError("a cascade is not trained: train its stages, and make it again with `unfog cascade`")

    def preview(self, model: nn.Module, held_out: HeldOut, context: Context) -> Image.Image | None:
        """Return nothing."""
        return None

    def generator(self, recipe: Recipe, model: nn.Module) -> Cascading:
        """Return what draws samples; solver, grid and sampling of the recipe are those of the first stage."""
        assert isinstance(model, nn.ModuleList)
        first, *others = self.recipes()
        first = replace(first, solver=recipe.solver, grid=recipe.grid, sampling=recipe.sampling)
        stages = [
            cast(Sampler, stage.objective.generator(stage, part))
            for stage, part in zip((first, *others), model, strict=True)
        ]
        known = stages[0].known._replace(stored=stages[-1].stored, own=stages[-1].known.own)
        return Cascading(stages=tuple(stages), conditioning=stages[0].conditioning, known=known)
