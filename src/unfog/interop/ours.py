"""What diffusers has no place for, in a file of ours beside an exported model: class names and settings of sampling."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfog.interop import files
from unfog.recipes.recipe import Recipe
from unfog.recipes.schema import fits
from unfog.runtime.errors import UserError
from unfog.runtime.files import write_whole

NAME = "unfog.json"
"""The file, which diffusers ignores."""
CARRIED = ("steps", "guidance", "guidance_rescale", "clip", "keep_eps", "batch")
"""Settings of sampling that the file keeps."""
MOST_CLASSES = 100_000


@dataclass(frozen=True)
class Kept:
    """What the file holds.

    Attributes:
        classes: Names of the classes; the null class is the row of the table after theirs.
        sampling: Settings of sampling.
    """

    classes: tuple[str, ...]
    sampling: Mapping[str, Any]


def write(folder: Path, recipe: Recipe) -> None:
    """Write the file for a recipe.

    Raises: EnvironmentFailure: If the disk fails.
    """
    sampling = {name: getattr(recipe.sampling, name) for name in CARRIED}
    plain = {"version": 1, "classes": list(recipe.classes), "sampling": sampling}
    write_whole(folder / NAME, (json.dumps(plain, indent=2) + "\n").encode())


def read(folder: Path) -> Kept | None:
    """Return what the file in a folder holds; None without one.

    Raises: UserError: If it is damaged, or of a newer version.
    """
    file = folder / NAME
    if not file.is_file():
        return None
    plain = files.config(file)
    if plain.get("version") != 1:
        raise UserError(f"{file} has the version {plain.get('version')!r}, not 1: update unfog, or remove the file")
    classes, sampling = plain.get("classes", []), plain.get("sampling")
    if not fits(classes, list[str]) or not isinstance(sampling, dict) or not sampling.keys() <= set(CARRIED):
        raise UserError(f"{file} is damaged: restore it, or remove it to import without names of classes")
    return Kept(tuple(classes), sampling)


def class_names(folder: Path, index: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """Return the names of the classes of a model, and whether its last row is that of no class.

    Names are those of our file, else `id2label` of the pipeline, else numbers; only a model of ours has a null class.

    Raises: UserError: If they are not as many as the classes of the network, or these are too many.
    """
    count = given.get("num_class_embeds")
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_CLASSES:
        raise UserError(f"{folder}: num_class_embeds must be a whole number from 1 to {MOST_CLASSES:,}, not {count!r}")
    if (kept := read(folder)) is not None:
        if len(kept.classes) != count - 1:
            raise UserError(f"{folder / NAME} names {len(kept.classes)} classes, but the network has {count - 1}")
        return kept.classes, True
    labels = index.get("id2label")
    if labels is None:
        return tuple(map(str, range(count))), False
    wanted = {str(number) for number in range(count)}
    if not isinstance(labels, dict) or labels.keys() != wanted or not fits(list(labels.values()), list[str]):
        raise UserError(f"{folder}: id2label must name each of the {count} classes of the network by its number")
    return tuple(labels[str(number)] for number in range(count)), False
