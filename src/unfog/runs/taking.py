"""What a run takes into its folder, so that the folder alone is the model."""

import shutil
from dataclasses import replace
from pathlib import Path

from unfog.recipes.embedded import CaptionConditioning
from unfog.recipes.encoders import EmbeddingConditioning, encoder
from unfog.recipes.latents import LatentCodec, autoencoder
from unfog.recipes.recipe import Recipe
from unfog.recipes.text_encoders import PretrainedConditioning, copy_encoder
from unfog.runtime import distributed
from unfog.runtime.files import disk, whole


def taken_in(recipe: Recipe, out: Path) -> Recipe:
    """Return a recipe whose autoencoder and encoders, if it names some, were copied into a run folder.

    Raises: UserError: If one is missing, or does not fit the data.
    """
    codec, conditioning, runs = recipe.codec, recipe.conditioning, {}
    if isinstance(codec, LatentCodec) and codec.path:
        autoencoder(codec.path, (recipe.shape or (0,))[0])  # a mistake shows before anything is written
        runs["autoencoder"] = Path(codec.path)
        recipe = replace(recipe, codec=replace(codec, path=str((out / "autoencoder").resolve())))
    if isinstance(conditioning, EmbeddingConditioning | CaptionConditioning):
        shape = recipe.shape if isinstance(conditioning, EmbeddingConditioning) else None
        encoder(conditioning.path, "conditioning.path", shape)
        runs["encoder"] = Path(conditioning.path).expanduser()
        recipe = replace(recipe, conditioning=replace(conditioning, path=str((out / "encoder").resolve())))
    if isinstance(conditioning, PretrainedConditioning):
        recipe = replace(recipe, conditioning=replace(conditioning, path=str((out / "text").resolve())))
    if distributed.rank() == 0:
        for own, run in runs.items():
            _copy(run, out / own)
        if isinstance(conditioning, PretrainedConditioning) and not (out / "text").exists():
            copy_encoder(conditioning.path, out / "text")
    distributed.agreed(0)
    return recipe


def _copy(run: Path, own: Path) -> None:
    """Copy what a model is from a run folder into another folder."""
    with disk(own):
        own.mkdir(parents=True, exist_ok=True)
    for name in ("recipe.json", "model.safetensors"):
        if (run / name).resolve() != (own / name).resolve():
            with whole(own / name) as part:
                shutil.copyfile(run / name, part)
