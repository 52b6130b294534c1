"""The first rules by which a folder was listed: runs of that time read their data by them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from unfog.data.listing import Listing, annotate
from unfog.data.metadata import metadata_lines
from unfog.data.source import MissingDataError
from unfog.runtime.errors import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".npy"})
"""File suffixes of the pictures that were read."""


def list_earlier(root: Path, where: str) -> Listing:
    """List the images of a folder: `metadata.jsonl` decides, else two or more sub-folders are the classes.

    Raises: UserError: If there are no images, or the metadata are damaged.
    """
    if (root / "metadata.jsonl").is_file():
        return _from_metadata(root, where)
    if where:
        raise UserError(f"data.where selects lines of metadata.jsonl, but {root} has none: omit data.where")
    found = (file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    names = (file.relative_to(root) for file in found)
    files = tuple(sorted(file.as_posix() for file in names if not any(part.startswith(".") for part in file.parts)))
    if not files:
        raise MissingDataError(f"{root} contains no images ({', '.join(sorted(SUFFIXES))})", "check the path")
    tops = [file.split("/")[0] if "/" in file else "" for file in files]
    classes = tuple(sorted(set(tops)))
    if "" in classes or len(classes) < 2:
        return Listing(root, files, None, ())
    index = {name: place for place, name in enumerate(classes)}
    return Listing(root, files, tuple(index[top] for top in tops), classes)


def _from_metadata(root: Path, condition: str) -> Listing:
    """Read `metadata.jsonl`."""
    where = root / "metadata.jsonl"
    entries: dict[str, Mapping[str, object]] = {}
    for _, number, entry, _ in metadata_lines(root, "metadata.jsonl", condition, rules=1):
        if isinstance(entry, str):
            raise UserError(f"{where}, line {number}: {entry}: correct the line")
        entries[str(entry["file_name"])] = entry
    if not entries and condition:
        raise UserError(f"no line of {where} matches {condition}: check data.where")
    if not entries:
        raise UserError(f"{where} lists no images: add lines with 'file_name', or remove it")
    return replace(annotate(str(where), entries, rules=1), root=root)
