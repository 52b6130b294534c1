"""From what a user asks for, in words and files, to what a model takes."""

from pathlib import Path

import torch
from torch import Tensor

from unfog.data.folder import pictures_at
from unfog.data.modality import images
from unfog.data.pictures import UnreadableError, describe_picture, read_picture
from unfog.generation.sampler import Sampler
from unfog.recipes.build import build_codec, known_of
from unfog.recipes.conditions import Asked
from unfog.runs.run import Run
from unfog.runtime.errors import UserError


def asked(run: Run, label: str | None, prompt: tuple[str, ...], values: tuple[float, ...], image: Path | None) -> Asked:
    """Return what is asked for, in the form that the model's kind of condition takes."""
    given = {"--label": label, "--prompt": prompt or None, "--values": values or None, "--image": image}
    options = [name for name, value in given.items() if value is not None]
    kind = run.recipe.kind("conditioning")
    takes = {
        "classes": "--label",
        "labels": "--label",
        "text": "--prompt",
        "pretrained": "--prompt",
        "values": "--values",
        "image": "--image",
    }
    if options and options != [takes.get(kind)]:
        instead = f"ask it by {takes[kind]}" if kind in takes else "ask it for nothing"
        raise UserError(f"{' and '.join(options)} cannot be asked of this model (conditioning={kind}): {instead}")
    if image is not None:
        return build_codec(run.recipe).encode(pictures_at(image, known_of(run.recipe).shape))
    return prompt if len(prompt) > 1 else prompt[0] if prompt else values or label


def edited(run: Run, sampler: Sampler, asked: Asked) -> Asked:
    """Return what an edited picture shows: a class must be given, and a text is empty by default."""
    if asked is None and run.recipe.conditioning.captioned:
        return ""
    if asked is None and sampler.classes:
        raise UserError(f"say what the picture shows: --label with one of {', '.join(run.recipe.classes[:10])}")
    return asked


def picture(path: Path, sampler: Sampler, own_size: bool) -> Tensor:
    """Return a picture to edit, uint8 `(channels, height, width)`: of the model's size, or of its own."""
    shape = sampler.stored
    if sampler.modality != images:
        raise UserError("edits are for pictures, and this model is of another kind of data")
    if own_size:
        try:
            shape = (shape[0], *describe_picture(path)[1:])
        except UnreadableError as error:
            raise UserError(f"{path} cannot be read ({error}): give --image a picture") from None
    if not path.is_file():
        raise UserError(f"{path} is no picture: check the path given with --image")
    return pictures_at(path, shape)[0]


def mask(path: Path, image: Path, sampler: Sampler, own_size: bool) -> Tensor:
    """Return where a mask is white, `(height, width)` of bool, cropped and resized as its picture is."""
    try:
        of_mask, of_image = (describe_picture(one)[1:] for one in (path, image))
        if of_mask != of_image:
            sides = [f"{width}×{height}" for height, width in (of_mask, of_image)]
            raise UserError(
                f"the mask {path} has {sides[0]} pixels, and the picture {image} {sides[1]}: give both the same size"
            )
        height, width = of_image if own_size else sampler.stored[1:]
        return torch.from_numpy(read_picture(path, 1, height, width)[0] > 127)
    except UnreadableError as error:
        raise UserError(f"the mask {path} cannot be read: {error}") from None
