"""Turn a user's request, in words, files and pictures, into what a model takes."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unfog.data.pictures import UnreadableError, describe_picture, read_picture
from unfog.data.sounds import Sounds
from unfog.generation.sampler import Sampler
from unfog.recipes.build import build_codec, known_of, stored_shape
from unfog.recipes.conditions import Asked, Depicting
from unfog.recipes.recipe import Recipe
from unfog.recipes.several import SeveralConditions
from unfog.runtime.errors import UserError

Label = int | str | Sequence[int] | Sequence[str] | Tensor
"""A class by its number or its name, for all samples or one for each; several labels as one text with commas."""
Prompt = str | Sequence[str]
"""A text for all samples, or one for each."""
Values = float | Sequence[float] | Sequence[Sequence[float]] | Tensor
"""Numbers for all samples, or a row of them for each."""
Picture = str | Path | Image.Image | Tensor | NDArray[Any]
"""A path, a Pillow image, or uint8 `(channels, height, width)` as a tensor or array."""
LARGEST, PROMPTS = 1 << 20, 10_000
"""Bytes of a file of prompts, and prompts in it, at most."""
TAKES = {
    "classes": "label",
    "labels": "label",
    "text": "prompt",
    "pretrained": "prompt",
    "values": "values",
    "image": "image",
    "caption": "prompt",
    "spectrogram": "condition",
    "embedding": "image",
}
"""The parameter that each kind of condition is given by."""


def asked(
    recipe: Recipe,
    *,
    label: Label | None = None,
    prompt: Prompt | None = None,
    values: Values | None = None,
    image: Picture | None = None,
    condition: Picture | None = None,
) -> Asked:
    """Return the request in the form that the model's kind of condition takes.

    Args:
        recipe: The recipe of the model.
        label: A class or several, for models that are conditioned on labels.
        prompt: A text or several, for models that are conditioned on text.
        values: Numbers, for models that are conditioned on numbers.
        image: A picture, or a path to a folder of them, for models that are conditioned on images; of tensors and
            arrays also several, `(count, channels, height, width)`, and floats that are encoded already.
        condition: What the model is conditioned on, whatever that is: a label, a text, numbers, a picture, a sound.

    Raises: UserError: If one is given that the model does not take, or more than one where it takes only one.
    """
    kind = recipe.kind("conditioning")
    if condition is not None and (own := TAKES.get(kind)) != "condition" and own is not None:
        if any(one is not None for one in (label, prompt, values, image)):
            raise UserError(f"`condition` and another name say what samples show: give `{own}` alone")
        return asked(recipe, **cast(Any, {own: condition}))
    given = {"label": label, "prompt": prompt, "values": values, "image": image, "condition": condition}
    names = [name for name, value in given.items() if value is not None]
    if isinstance(recipe.conditioning, SeveralConditions):
        return _of_each({name: given[name] for name in names}, recipe.conditioning)
    if kind == "embedding" and names in (["image"], ["prompt"], ["condition"]):
        return prompt if prompt is not None else _depicted(condition if image is None else image, recipe)
    if names and names != [TAKES.get(kind)]:
        instead = f"use `{TAKES[kind]}`" if kind in TAKES else "give no condition"
        options = " and ".join(f"`{name}`" for name in names)
        raise UserError(f"this model (conditioning={kind}) does not take {options}: {instead}")
    if image is not None:
        return _encoded_pictures(image, recipe)
    if condition is not None:
        return _sounds(condition, recipe)
    return next((value for value in (label, prompt, values) if value is not None), None)


def labels(recipe: Recipe, text: str | None) -> str | tuple[str, ...] | None:
    """Return the labels that a text names: one for all samples, or several to be taken in turn.

    Names are separated by commas; `all` is every class. A class of the whole text's name goes first. A model of several
    labels at once reads the commas itself, as one sample's labels.
    """
    parts = recipe.conditioning.named if isinstance(recipe.conditioning, SeveralConditions) else {}
    kinds = set(parts) or {recipe.kind("conditioning")}
    if text in recipe.classes and text == "all":
        warnings.warn(
            "'all' is a class of this model, so it alone is drawn: without a label all classes come in turn",
            stacklevel=3,
        )
    if text is None or text in recipe.classes or not kinds & {"classes", "labels"}:
        return text
    if text == "all" and recipe.classes:
        return recipe.classes
    names = _listed(text, recipe.classes)
    return text if "labels" in kinds or len(names) < 2 else names


def _listed(text: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names in a list with commas; a class whose name has commas is one of them."""
    words, names = text.split(","), []
    while words:
        ends = (end for end in range(len(words), 1, -1) if ",".join(words[:end]).strip() in classes)
        end = next(ends, 1)
        names.append(",".join(words[:end]).strip())
        words = words[end:]
    return tuple(name for name in names if name)


def prompts_in(path: Path) -> tuple[str, ...]:
    """Return the prompts in a text file: a line each, without blank ones.

    Raises: UserError: If the file cannot be read, is no UTF-8, or holds none or too many.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give a text file with a prompt on each line"
        ) from None
    if len(data) > LARGEST:
        raise UserError(f"{path} has more than {LARGEST:,} bytes: give a text file with a prompt on each line")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}, is not UTF-8: save the file in that encoding") from None
    found = tuple(line.strip() for line in lines if line.strip())
    if not 1 <= len(found) <= PROMPTS:
        raise UserError(f"{path} holds {len(found):,} prompts: give 1 to {PROMPTS:,}, each on a line")
    return found


def _of_each(given: dict[str, Any], conditioning: SeveralConditions) -> Asked:
    """Return the request by condition, or None if nothing is requested."""
    takes = {TAKES[name]: name for name in conditioning.named}
    for option in given:
        if option not in takes:
            known = ", ".join(f"`{one}`" for one in takes)
            raise UserError(f"this model does not take `{option}`: use any of {known}")
    return {takes[option]: value for option, value in given.items()} or None


def _encoded_pictures(image: Picture, recipe: Recipe) -> Tensor:
    """Return pictures to condition on, encoded, `(count, channels, height, width)`."""
    from unfog.data.folder import pictures_at  # which reads folders, and takes long to load

    if isinstance(image, Tensor | np.ndarray):
        rows = torch.as_tensor(image)
        rows = rows[None] if rows.ndim == 3 else rows
        return rows if rows.is_floating_point() else build_codec(recipe).encode(rows)
    with _file(image) as path:
        return build_codec(recipe).encode(pictures_at(path, known_of(recipe).shape))


def _sounds(sound: Picture, recipe: Recipe) -> Tensor:
    """Return sounds to condition on, int16 `(count, channels, samples)`, or levels of spectrograms as they are."""
    if isinstance(sound, Tensor | np.ndarray):
        rows = torch.as_tensor(sound)
        return rows[None] if rows.ndim == 2 + rows.is_floating_point() else rows
    if not isinstance(sound, str | Path):
        raise UserError("this model is conditioned on sounds: give a recording, or a tensor")
    from unfog.data.recordings import sounds_at  # which takes long to load

    modality = recipe.modality
    assert isinstance(modality, Sounds), "conditioning=spectrogram is for sounds"
    return sounds_at(Path(sound), modality.rate, stored_shape(recipe))


def _depicted(image: Picture | None, recipe: Recipe) -> Tensor:
    """Return pictures whose embeddings are the condition, as stored, or embeddings as they are."""
    assert image is not None
    if isinstance(image, Tensor | np.ndarray):
        rows = torch.as_tensor(image)
        return rows[None] if rows.ndim in (1, 3) else rows
    from unfog.data.folder import pictures_at  # as above

    with _file(image) as path:
        return pictures_at(path, stored_shape(recipe))


def edited(recipe: Recipe, sampler: Sampler, asked: Asked) -> Asked:
    """Return what an edited picture shows: a class must be given, and a text is empty by default."""
    if asked is None and isinstance(sampler.conditioning, Depicting):
        return None  # the picture itself
    if asked is None and recipe.conditioning.captioned:
        return ""
    if asked is None and sampler.classes:
        raise UserError(f"say what the picture shows: `label` with one of {', '.join(recipe.classes[:10])}")
    return asked


def check_guided(asked: Asked, guidance: float | None) -> None:
    """Raise a UserError for a scale of guidance that was given without a condition to guide by."""
    if asked is None and guidance not in (None, 1):
        raise UserError(f"guidance {guidance:g} needs something to guide by: give `label` or `prompt`, or omit it")


def picture(image: Picture, sampler: Sampler, own_size: bool, sides: tuple[int, int] | None = None) -> Tensor:
    """Return a picture to edit, uint8 `(channels, height, width)`: of the model's size, or of its own.

    Tensors and arrays keep their size.

    Args:
        image: The picture.
        sampler: Of the model.
        own_size: Whether one of a file keeps its size.
        sides: Height and width that it gets instead.

    Raises: UserError: If it cannot be read, or the model is of another kind of data.
    """
    if not sampler.modality.pixels:
        raise UserError("only models of pictures can edit, and this one was trained on another kind of data")
    if isinstance(image, Tensor | np.ndarray):
        return _pixels(image)
    with _file(image) as path:
        shape = sampler.stored if sides is None else (sampler.stored[0], *sides)
        return _read(path, shape, own_size and sides is None)


def _pixels(image: Tensor | NDArray[Any]) -> Tensor:
    """Return a picture that is a tensor or an array."""
    rows = torch.as_tensor(image)
    if rows.ndim != 3 or rows.dtype != torch.uint8:
        raise UserError(
            "a picture to edit is uint8 of shape (channels, height, width), a path or a Pillow image, not "
            f"{str(rows.dtype).removeprefix('torch.')} of shape {tuple(rows.shape)}"
        )
    return rows.cpu()


def _read(path: Path, shape: tuple[int, ...], own_size: bool) -> Tensor:
    """Return a picture from its file."""
    from unfog.data.folder import pictures_at

    if own_size:
        try:
            shape = (shape[0], *describe_picture(path)[1:])
        except UnreadableError as error:
            raise UserError(f"{path} cannot be read ({error}): give `image` a picture") from None
    if not path.is_file():
        raise UserError(f"{path} is no picture: check the path given with `image`")
    return pictures_at(path, shape)[0]


def mask(where: Picture, image: Picture, sampler: Sampler, own_size: bool) -> Tensor:
    """Return where a mask is white, `(height, width)` of bool, cropped and resized as its picture is.

    Args:
        where: A path or a Pillow image; or a tensor or array of bool, `(height, width)`, which stays as it is.
        image: The picture that it belongs to.
        sampler: The sampler whose model edits it.
        own_size: Whether the picture keeps its size.

    Raises: UserError: If it cannot be read, or is of another size than its picture.
    """
    if isinstance(where, Tensor | np.ndarray):
        return torch.as_tensor(where).bool().cpu()
    if isinstance(image, Tensor | np.ndarray):
        height, width = image.shape[-2:]
        with _file(where) as path:
            return _white(path, height, width)
    with _file(where) as of_mask, _file(image) as of_image:
        return _fitted(of_mask, of_image, None if own_size else sampler.stored[1:])


def _fitted(path: Path, image: Path, size: Sequence[int] | None) -> Tensor:
    """Return where the mask in a file is white, for the picture in a file."""
    try:
        of_mask, of_image = (describe_picture(one)[1:] for one in (path, image))
    except UnreadableError as error:
        raise UserError(f"the mask {path} cannot be read: {error}") from None
    if of_mask != of_image:
        sides = [f"{width}×{height}" for height, width in (of_mask, of_image)]
        raise UserError(
            f"the mask {path} has {sides[0]} pixels, and the picture {image} {sides[1]}: give both the same size"
        )
    height, width = size or of_image
    return _white(path, height, width)


def _white(path: Path, height: int, width: int) -> Tensor:
    """Return where a mask is white."""
    try:
        return torch.from_numpy(read_picture(path, 1, height, width)[0] > 127)
    except UnreadableError as error:
        raise UserError(f"the mask {path} cannot be read: {error}") from None


@contextmanager
def _file(image: str | Path | Image.Image) -> Iterator[Path]:
    """Give the path of a picture, so that one from memory is read as those from files are."""
    if not isinstance(image, Image.Image):
        yield Path(image)
        return
    with TemporaryDirectory(prefix="unfog-") as folder:
        path = Path(folder) / "picture.png"
        image.save(path)
        yield path


def in_turn(asked: Asked, count: int) -> Asked:
    """Return several prompts or labels, a tuple of texts, in turn for each of `count` samples; else what was given.

    Where several conditions are requested by name, each is taken in turn by itself.
    """
    if isinstance(asked, Mapping):
        return {name: in_turn(one, count) for name, one in asked.items()}
    if isinstance(asked, tuple) and asked and isinstance(asked[0], str):
        return [asked[place % len(asked)] for place in range(count)]
    return asked
