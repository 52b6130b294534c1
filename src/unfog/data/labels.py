"""Which part of a picture's name is its class, where the user says so."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

from unfog.data.listing import Kind, Unused, few
from unfog.runtime.errors import UserError, unknown

AUTO = "auto"
"""Metadata decide, else `.cls` files, else the first folders."""
RULES = 4
"""Version of the rules by which folders are read; runs of before read theirs by those of their time."""
CSV = "csv"
"""The column `label` of the metadata, or `csv:COLUMN` another one."""
PARTS: dict[str, Callable[[PurePosixPath], str]] = {
    "folder": lambda name: name.parts[0] if len(name.parts) > 1 else "",
    "parent": lambda name: name.parent.name,
    "path": lambda name: "" if len(name.parts) == 1 else str(name.parent),
    "prefix": lambda name: re.split(r"[_\- ]", name.stem, maxsplit=1)[0],
}
"""What a class is called, by a picture's name below the root, or below `train/`: the first folder, the folder that
holds the picture, all folders, or the first part of the file's name, which ends at `_`, `-` or a space."""


def check(label_from: str) -> None:
    """Raise a UserError for something that labels cannot come from."""
    if label_from not in (AUTO, *PARTS) and not (label_from == CSV or column_of(label_from)):
        raise unknown("origin of labels", label_from, [AUTO, *PARTS, CSV, "csv:COLUMN"])


def column_of(label_from: str) -> str:
    """Return the column of the metadata that holds the labels, empty if another one than `label` was not named."""
    kind, _, column = label_from.partition(":")
    return column if kind == CSV else ""


def by_name(
    label_from: str, where: object, names: Mapping[str, str], notes: list[str], unused: Unused, kind: Kind
) -> dict[str, str]:
    """Return the class of each picture that has one.

    Args:
        label_from: One of `PARTS`.
        where: The folder, for messages.
        names: Names of the pictures, and their names below `train/`, where there is one.
        notes: Where to say what was done.
        unused: Where to record pictures without a class.
        kind: The kind of the files.

    Raises: UserError: If there is one class for all pictures, or for each its own.
    """
    paths = {name: PurePosixPath(unicodedata.normalize("NFC", inner)) for name, inner in names.items()}
    found = {name: label for name, path in paths.items() if (label := PARTS[label_from](path))}
    classes = sorted(set(found.values()))
    if len(classes) < 2:
        raise UserError(
            f"labels from {label_from} make {few(classes) or 'none'} the only class in {where}: choose another "
            f"`label_from` ({', '.join([*PARTS, CSV])}), or omit it"
        )
    if label_from == "prefix" and len(classes) == len(found):
        raise UserError(
            f"labels from prefix make each {kind.one} in {where} its own class ({few(classes)}): the first part of a "
            "file's name ends at _, - or a space; choose another `label_from`, or omit it"
        )
    unused.add(f"{kind.many} that have no class by their {label_from}", [name for name in names if name not in found])
    places: dict[str, set[PurePosixPath]] = defaultdict(set)
    for name, label in found.items():
        places[label].add(paths[name].parent)
    if label_from == "parent" and (shared := [label for label in classes if len(places[label]) > 1]):
        notes.append(
            f"folders of the same name are one class, wherever they lie ({few(shared)}): data.label_from=path keeps "
            "them apart"
        )
    return found
