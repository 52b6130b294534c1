"""What the verbs of the command line share: from the words that were typed to the values that are meant."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from unfog.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from unfog.blueprint import Recipe
    from unfog.conditions import Asked
    from unfog.generation import Sampler
    from unfog.run import Run


def chosen(recipe: str, data: str | None, size: int | None, settings: tuple[str, ...], precision: str) -> "Recipe":
    """Return the recipe that a training is asked for."""
    from unfog.recipes import recipe as find

    if not recipe:
        raise UserError("name a recipe to train, for instance 'digits'; `unfog recipes` lists them")
    found = find(recipe, data, size).set(*settings)
    return found if precision == "auto" else found.set(f"training.precision={precision}")


def folder(path: Path) -> Path:
    """Return a path that is a folder or can become one."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: choose another --out")
    return path


def file(path: Path, option: str) -> None:
    """Refuse what is a folder, and make the folder that the file will lie in."""
    from unfog.files import disk

    if path.is_dir():
        raise UserError(f"{path} is a folder: give {option} the name of a file")
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def asked(
    run: "Run", label: str | None, prompt: tuple[str, ...], values: tuple[float, ...], image: Path | None
) -> "Asked":
    """Return what is asked for, in the form that the model's kind of condition takes."""
    given = {"--label": label, "--prompt": prompt or None, "--values": values or None, "--image": image}
    options = [name for name, value in given.items() if value is not None]
    kind = run.recipe.conditioning.kind
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
        from unfog.data.folder import pictures_at

        return run.recipe.build_codec().encode(pictures_at(image, run.recipe.known.shape))
    return prompt if len(prompt) > 1 else prompt[0] if prompt else values or label


def edited(run: "Run", sampler: "Sampler", asked: "Asked") -> "Asked":
    """Return what an edited picture shows: a class must be said, and a text is empty if it is not."""
    if asked is None and run.recipe.conditioning.kind in ("text", "pretrained"):
        return ""
    if asked is None and sampler.classes:
        raise UserError(f"say what the picture shows: --label with one of {', '.join(run.recipe.classes[:10])}")
    return asked


def picture(path: Path, sampler: "Sampler", own_size: bool) -> "Tensor":
    """Return a picture to edit, uint8 `(channels, height, width)`: of the model's size, or of its own."""
    from unfog.data.folder import pictures_at
    from unfog.data.pictures import UnreadableError, describe_picture

    shape = sampler.stored
    if len(shape) != 3:
        raise UserError("edits are for pictures, and this model is of another kind of data")
    if own_size:
        try:
            shape = (shape[0], *describe_picture(path)[1:])
        except UnreadableError as error:
            raise UserError(f"{path} cannot be read ({error}): give --image a picture") from None
    if not path.is_file():
        raise UserError(f"{path} is no picture: check the path given with --image")
    return pictures_at(path, shape)[0]


def mask(path: Path, image: Path, sampler: "Sampler", own_size: bool) -> "Tensor":
    """Return where a mask is white, `(height, width)` of bool, cropped and resized as its picture is."""
    import torch

    from unfog.data.pictures import UnreadableError, describe_picture, read_picture

    try:
        of_mask, of_image = (describe_picture(one)[1:] for one in (path, image))
        if of_mask != of_image:
            sides = [f"{width}×{height}" for height, width in (of_mask, of_image)]
            raise UserError(
                f"the mask {path} has {sides[0]} pixels, and the picture {image} {sides[1]}: make them alike"
            )
        height, width = of_image if own_size else sampler.stored[1:]
        return torch.from_numpy(read_picture(path, 1, height, width)[0] > 127)
    except UnreadableError as error:
        raise UserError(f"the mask {path} cannot be read: {error}") from None


def seconds(text: str) -> float:
    """Return the seconds of a text like 90s, 10m or 2h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|min|h|)", text.strip())
    if not found or not 0 < float(found[1]) <= 1e9:
        raise UserError(f"--budget takes a time like 90s, 10m or 2h, not {text!r}")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}[found[2]]
