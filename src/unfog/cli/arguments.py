"""Parsing of arguments that several verbs share."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from unfog.runtime.errors import UserError

if TYPE_CHECKING:
    from unfog.recipes.recipe import Recipe


def chosen(
    recipe: str,
    data: str | None,
    size: int | None,
    settings: tuple[str, ...],
    precision: str,
    init_from: Path | None = None,
) -> "Recipe":
    """Return the recipe named on the command line, as that of a run to start from, with its settings applied."""
    from unfog.recipes.presets import recipe as find
    from unfog.runs.run import read_recipe

    if not recipe:
        raise UserError("name a recipe to train, for instance 'digits'; `unfog recipes` lists them")
    found = find(recipe, data, size)
    if init_from is not None:
        found = found.starting_from(read_recipe(init_from))
    found = found.set(*settings)
    return found if precision == "auto" else found.set(f"training.precision={precision}")


def prompts(texts: tuple[str, ...]) -> str | tuple[str, ...] | None:
    """Return one prompt for all samples, or several that are taken in turn; None for none."""
    return texts if len(texts) > 1 else texts[0] if texts else None


def folder(path: Path) -> Path:
    """Return the path of a folder that exists or can be made."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: choose another --out")
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
    """Return the seconds of a text like 90s, 10m or 2h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|min|h|)", text.strip())
    if not found or not 0 < float(found[1]) <= 1e9:
        raise UserError(f"--budget takes a time like 90s, 10m or 2h, not {text!r}")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}[found[2]]
