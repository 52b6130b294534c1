"""Reading a run folder: its recipe and its model."""

from pathlib import Path

import torch
from torch import nn

from unfog.recipes.build import Undrawn, build_model
from unfog.recipes.choices import apply
from unfog.recipes.inside import check_inside
from unfog.recipes.recipe import Recipe
from unfog.runtime.contained import check_contained
from unfog.runtime.device import place
from unfog.runtime.errors import UserError, nearby
from unfog.runtime.files import read_bounded
from unfog.runtime.tensors import load_into, read_tensors
from unfog.training.checkpoint import steps
from unfog.training.objectives.contrastive import Contrastive
from unfog.training.objectives.reconstruction import Reconstruction

SMALL = 10_000_000
"""Parameters that a network may have even if the run's file holds fewer: the weights are then compared by name."""


def read_model(path: Path, recipe: Recipe, device: torch.device) -> nn.Module:
    """Return the averaged weights of a run on a device, ready to use."""
    weights = read_tensors(path / "model.safetensors")
    with Undrawn():
        model = build_model(recipe, max(SMALL, sum(tensor.numel() for tensor in weights.values())))
    load_into(model, weights, path / "model.safetensors")
    place(model, device)
    apply(model, recipe.training.choices)
    return model.eval().requires_grad_(False)


def read_recipe(path: Path) -> Recipe:
    """Read the recipe of a run folder.

    Raises: UserError: If there is none, or it is damaged or from a newer version.
    """
    check_contained(path)
    where = path / "recipe.json"
    if not where.is_file():
        cure = nearby(path) or "give a folder that `unfog train` wrote"
        raise UserError(f"{path} is no run folder (it has no recipe.json): {cure}")
    text = read_bounded(where)
    try:
        recipe = Recipe.from_json(text)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if recipe.shape is None:
        raise UserError(f"{where}: the recipe names no shape, so the run never began: train it")
    recipe = recipe.relocated(path)
    check_inside(recipe, path)
    return recipe


def drawing_recipe(path: Path) -> Recipe:
    """Read the recipe of a run folder whose model draws samples.

    Raises: UserError: As `read_recipe`, and if the model draws none by itself.
    """
    recipe = read_recipe(path)
    if isinstance(recipe.objective, Reconstruction):
        raise UserError(
            f"{path} holds an autoencoder, which draws nothing by itself: train a model in its latents with "
            f"codec=latents and codec.path={path}, or measure it with `unfog evaluate {path}`"
        )
    if isinstance(recipe.objective, Contrastive):
        raise UserError(
            f"{path} holds encoders of pictures and texts, which draw nothing: train the recipes prior and decoder "
            f"with them, or measure them with `unfog evaluate {path}`"
        )
    if not recipe.objective.draws:
        raise UserError(f"{path} holds a model of the objective {recipe.kind('objective')!r}, which draws no samples")
    return recipe


def check_vacant(out: Path) -> None:
    """Raise a UserError for a path that cannot become a run folder."""
    if steps(out / "checkpoints") or (out / "model.safetensors").exists():
        resuming = f"`unfog train --resume {out}`"
        raise UserError(f"{out} holds another run: choose another `out`, or resume it with {resuming}")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose another `out`")


def check_apart(folder: Path, recipe: Recipe) -> None:
    """Refuse to write into the folder of a recipe's data, where the next training would read what is written as data.

    Raises: UserError: If the folder is that of the data, or lies in it.
    """
    where = getattr(recipe.data, "path", None)
    if not isinstance(where, str) or not where:
        return
    data = Path(where).expanduser()
    if data.is_dir() and folder.resolve().is_relative_to(data.resolve()):
        raise UserError(
            f"{folder} lies in {where}, the data of the model, and the next training would read what is written there "
            "as data: choose another `out`"
        )
