"""unfog.json in an exported folder: what diffusers' own files do not say about a model."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from unfog.interop import files, schedulers
from unfog.recipes.parse import from_plain, to_plain
from unfog.recipes.recipe import Recipe
from unfog.runtime.errors import UserError

NAME = "unfog.json"
FIELDS = ("inputs", "schedule", "target", "times", "weighting", "solver", "grid", "sampling")
"""Parts of a recipe that are carried. They hold as long as the scheduler's configuration means the same."""


def write(recipe: Recipe) -> bytes:
    """Return the contents of unfog.json for a recipe."""
    plain: dict[str, Any] = {name: to_plain(name, getattr(recipe, name)) for name in FIELDS}
    plain |= {"classes": recipe.classes, "prompts": recipe.prompts}
    return (json.dumps(plain, indent=1) + "\n").encode()


def restored(recipe: Recipe, folder: Path, scheduler: Mapping[str, Any]) -> tuple[Recipe, tuple[str, ...]]:
    """Return an imported recipe with what unfog.json says, and a note where that no longer holds.

    Args:
        recipe: The recipe as diffusers' files say it.
        folder: The pipeline's folder.
        scheduler: The scheduler's configuration in it.

    Raises: UserError: If the file is damaged.
    """
    if not (folder / NAME).is_file():
        return recipe, ()
    given = files.config(folder / NAME)
    try:
        parts = {name: from_plain(name, given[name]) for name in FIELDS}
        found = replace(recipe, **cast(Any, parts), prompts=_texts(given.get("prompts", [])))
    except (UserError, KeyError) as error:
        raise UserError(f"{folder / NAME}: {error}: restore it, or remove it") from None
    try:
        same = schedulers.write(found) == dict(scheduler)
    except UserError:
        same = False
    if not same:
        return recipe, (f"only the classes in {NAME} are used: the scheduler was changed since the export",)
    return found, ()


def classes(
    folder: Path, entries: Mapping[str, Any], config: Mapping[str, Any], rows: int
) -> tuple[tuple[str, ...], bool]:
    """Return the names of a model's classes, and whether the last row of its table is the null class, 'no label'.

    They are in unfog.json, or else in `id2label` of model_index.json or of the U-Net's configuration.

    Args:
        folder: The pipeline's folder.
        entries: Its model_index.json.
        config: The U-Net's configuration.
        rows: Rows of the table of classes.

    Raises: UserError: If there are names for another number of classes.
    """
    names: tuple[str, ...] = ()
    where = folder / NAME
    if where.is_file():
        names = _texts(files.config(where).get("classes", []))
    elif isinstance(labels := entries.get("id2label", config.get("id2label")), dict):
        where = folder / "model_index.json"
        names = tuple(str(labels.get(str(number))) for number in range(min(len(labels), rows)))
    if not names:
        return tuple(str(number) for number in range(rows)), False
    if len(names) not in (rows, rows - 1) or len(set(names)) < len(names):
        raise UserError(f"{where} names {len(names):,} classes, but the U-Net has {rows:,}: restore the names")
    return names, len(names) == rows - 1


def _texts(given: object) -> tuple[str, ...]:
    """Return a list of texts."""
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise UserError(f"{NAME}: classes and prompts must be lists of texts: restore it, or remove it")
    return tuple(given)
