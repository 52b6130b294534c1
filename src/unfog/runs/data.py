"""The data of a run folder: `data.json` remembers what they were, and whoever reads them again hears what changed."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Literal

from unfog.data.fingerprint import File, Fingerprint, fingerprint
from unfog.data.source import Data
from unfog.recipes.build import build_data
from unfog.recipes.recipe import Recipe
from unfog.runtime import distributed
from unfog.runtime.errors import UserError
from unfog.runtime.files import parse_json, read_bounded, write_whole

Changed = Literal["refuse", "warn", "accept"]
"""What happens where the data are not those that a run was trained on; `accept` also remembers the new ones."""
NAME = "data.json"
LISTED, LARGEST = 200_000, 1 << 27
"""Files whose names and hashes are kept, at most; beyond, one hash stands for all. Bytes of `data.json`, at most."""


class ChangedDataError(UserError):
    """The data are not those that a run was trained on."""


def read_data(folder: Path, recipe: Recipe, changed: Changed = "warn", data: Data | None = None) -> tuple[Recipe, Data]:
    """Read the data of a run, and compare them with those that it was trained on.

    Args:
        folder: The run folder.
        recipe: Its recipe.
        changed: What to do where they differ.
        data: The data, if they were read already.

    Returns: The recipe, filled in as by `build_data`, and the data.
    Raises: UserError: If the data are missing or damaged.
        ChangedDataError: If they differ, with what changed.
    """
    found, rows = build_data(recipe, data)
    if getattr(recipe.data, "computed", False):  # a function of the recipe
        return found, rows
    before = _remembered(folder)
    now = fingerprint(rows, before)
    differences = "" if before is None else before.differences(now)
    if differences:
        sentence = f"the data of {folder} changed since it was trained: {differences}"
        if changed == "refuse":
            raise ChangedDataError(
                f"{sentence}: restore them, name the folder that holds them with `data`, or continue with those of "
                "today with `accept_changed_data`"
            )
        warnings.warn(sentence, stacklevel=3)
    return found, rows


def remember(folder: Path, recipe: Recipe, data: Data) -> None:
    """Write what the data of a run are into its folder."""
    if distributed.rank() or getattr(recipe.data, "computed", False):
        return
    now = fingerprint(data, _remembered(folder))
    listed = len(now.files) <= LISTED
    kept = {"digest": now.digest, "train": now.train, "heldout": now.heldout}
    files = {"files": now.files if listed else {}, "held_out": sorted(now.held_out) if listed else []}
    write_whole(folder / NAME, json.dumps({"version": 1, **kept, **files}, indent=0).encode())


def moved(recipe: Recipe, where: str | None) -> Recipe:
    """Return a recipe whose data are read from another folder.

    Raises: UserError: If its data are not read from a folder.
    """
    if where is None:
        return recipe
    if not hasattr(recipe.data, "path"):
        raise UserError(f"`data` names the folder of the data, and {recipe.kind('data')!r} reads none: drop it")
    return replace(recipe, data=replace(recipe.data, path=where))  # type: ignore[type-var]  # a spec is a dataclass


def _remembered(folder: Path) -> Fingerprint | None:
    """Return what the data of a run were, or None for a run that does not say.

    Raises: UserError: If the file is damaged.
    """
    where = folder / NAME
    if not where.is_file():
        return None
    try:
        kept = parse_json(read_bounded(where, LARGEST))
        digest, train, heldout = str(kept["digest"]), int(kept["train"]), int(kept["heldout"])
        files = {str(name): _file(entry) for name, entry in kept["files"].items()}
        return Fingerprint(digest, train, heldout, files, frozenset(map(str, kept["held_out"])))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where} is damaged: remove it, and the data are no longer compared") from error


def _file(entry: list[object]) -> File:
    """Return a file's entry, checked."""
    contents, about, size, changed = entry
    if not (isinstance(size, int) and isinstance(changed, int)):
        raise ValueError("not a size and a time")
    return File(str(contents), str(about), size, changed)
