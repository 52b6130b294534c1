"""Parsing of arguments that several verbs share."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from unfog.runtime.errors import UserError

began: float | None = None
"""When the command began, by `time.monotonic`."""

if TYPE_CHECKING:
    from unfog.recipes.presets import Size
    from unfog.recipes.recipe import Recipe


def chosen(
    recipe: str,
    data: str | None,
    size: "Size | None",
    settings: tuple[str, ...],
    precision: str,
    init_from: Path | None = None,
    label_from: str | None = None,
) -> "Recipe":
    """Return the recipe named on the command line, as that of a run to start from, with its settings applied."""
    from unfog.data.labels import AUTO
    from unfog.recipes.presets import LABELLED, RECIPES
    from unfog.recipes.presets import recipe as find
    from unfog.recipes.vocabulary import path_of
    from unfog.runs.run import read_recipe

    if not recipe and init_from is None:
        raise UserError("name a recipe to train, for instance 'digits'; `unfog recipes` lists them")
    if recipe and recipe not in RECIPES and (Path(recipe) / "recipe.json").exists():
        raise UserError(
            f"{recipe} is a run, and this takes a recipe: `unfog train --resume {recipe} --budget 10m` trains it on"
        )
    if recipe and recipe not in RECIPES and Path(recipe).exists():
        raise UserError(f"{recipe} is no recipe but a path: name a recipe before it, for instance folder {recipe}")
    set_so = [setting.partition("=")[2].strip() for setting in settings if path_of(setting) == "data.label_from"]
    if recipe:
        set_so = set_so if recipe in LABELLED else []
        found = find(recipe, data, size, (set_so or [label_from or AUTO])[-1])  # the recipe depends on the classes
        if init_from is not None:
            found = found.starting_from(read_recipe(init_from))
    else:
        assert init_from is not None
        own = {"data.path": data, "data.size": size, "data.label_from": label_from}
        found = read_recipe(init_from).anew().set(*(f"{path}={json.dumps(own[path])}" for path in own if own[path]))
    if {path_of(setting) for setting in settings} & {"training.images", "training.epochs"}:
        found = found.set("training.seconds=null")  # that of the run to start from
    found = found.set(*settings)
    return found if precision == "auto" else found.set(f"training.precision={precision}")


def prompts(texts: tuple[str, ...]) -> str | tuple[str, ...] | None:
    """Return one prompt for all samples, or several that are taken in turn; None for none."""
    return texts if len(texts) > 1 else texts[0] if texts else None


def folder(path: Path, recipe: "Recipe | None" = None) -> Path:
    """Return the path of a folder that exists or can be made, and is not among the data of a recipe."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: choose another --out")
    if recipe is not None:
        from unfog.runs.reading import check_apart

        check_apart(path, recipe)
    return path


@contextmanager
def writing(path: Path | None, option: str) -> Iterator[None]:
    """Make the parent folder of a file, if one is given, and hold the file's lock while its content is computed.

    Raises: UserError: If the path is that of a folder, or another process writes the file.
    """
    from unfog.runtime.files import locked_file

    if path is not None and path.is_dir():
        raise UserError(f"{path} is a folder: give {option} the path of a file")
    with nullcontext() if path is None else locked_file(path):
        yield


def seconds(text: str) -> float:
    """Return the seconds of a text like 90s, 10m, 2h or 1h30m."""
    plain, number = text.strip(), r"(\d+(?:\.\d+)?)"
    if re.fullmatch(number, plain) and float(plain) > 0:
        raise UserError(f"--budget {plain} has no unit: write {plain}m or {plain}s")
    found = re.fullmatch(rf"(?:{number}h)?(?:{number}m(?:in)?)?(?:{number}s)?", plain)
    parts = (0, 0, 0) if found is None else (float(part or 0) for part in found.groups())
    total = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=True))
    if not 0 < total <= 1e9:
        raise UserError(f"--budget takes a time like 90s, 10m, 2h or 1h30m, not {text!r}")
    return total


def sides(text: str) -> "Size":
    """Return the side of a text like 64, or (height, width) of one like 256x192, which is WIDTHxHEIGHT."""
    found = re.fullmatch(r"(\d{1,9})(?:[xX×](\d{1,9}))?", text.strip())
    if not found:
        raise UserError(f"--size takes a side or WIDTHxHEIGHT in pixels, for instance 64 or 256x192, not {text!r}")
    width, height = int(found[1]), int(found[2] or found[1])
    return width if width == height else (height, width)
