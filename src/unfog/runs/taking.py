"""What a run takes into its folder, so that the folder alone is the model."""

import shutil
from dataclasses import replace
from pathlib import Path

from unfog.recipes.latents import LatentCodec, autoencoder
from unfog.recipes.recipe import Recipe
from unfog.recipes.text_encoders import PretrainedConditioning, copy_encoder
from unfog.runtime import distributed
from unfog.runtime.files import disk, whole


def taken_in(recipe: Recipe, out: Path) -> Recipe:
    """Return a recipe whose autoencoder and text encoder, if it names some, were copied into a run folder.

    Raises: UserError: If one is missing, or does not fit the data.
    """
    codec, conditioning = recipe.codec, recipe.conditioning
    coder = codec.path if isinstance(codec, LatentCodec) else ""
    if isinstance(codec, LatentCodec) and coder:
        autoencoder(coder, (recipe.shape or (0,))[0])  # a mistake shows before anything is written
        recipe = replace(recipe, codec=replace(codec, path=str((out / "autoencoder").resolve())))
    if isinstance(conditioning, PretrainedConditioning):
        recipe = replace(recipe, conditioning=replace(conditioning, path=str((out / "text").resolve())))
    if distributed.rank() == 0:
        for name in ("recipe.json", "model.safetensors") if coder else ():
            own = out / "autoencoder" / name
            with disk(own):
                own.parent.mkdir(parents=True, exist_ok=True)
            with whole(own) as part:
                shutil.copyfile(Path(coder) / name, part)
        if isinstance(conditioning, PretrainedConditioning) and not (out / "text").exists():
            copy_encoder(conditioning.path, out / "text")
    distributed.agreed(0)
    return recipe
