"""The files below a folder: links are followed, each folder is read once, and what is passed over has a reason."""

import os
from collections import deque
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from unfog.data.listing import Unused
from unfog.data.packed import Packed

CLUTTER = ("readme", "license", "licence", "thumbs.db", "desktop.ini", "._")
"""Beginnings of names of files, in lower case, that hold no data: they are passed over without a word."""
MAC = "__MACOSX"
"""The folder that zips made on a Mac have besides what was packed."""
TOOLS = frozenset({".git", ".cache", ".ipynb_checkpoints"})
"""Hidden folders that programs make; they are passed over without a word."""
HIDDEN = "hidden, since their names begin with a dot"


class Walk(NamedTuple):
    """What is below a folder.

    Attributes:
        files: Names of all regular files relative to the folder, sorted.
        unused: What was passed over.
    """

    files: list[str]
    unused: Unused


def walk(root: Path | Packed, suffixes: frozenset[str]) -> Walk:
    """Find the files below a folder, or in archives.

    Args:
        root: The folder.
        suffixes: Suffixes of pictures: hidden files without one of them are passed over without a word.
    """
    if isinstance(root, Packed):
        return _of_names(sorted(root.members), suffixes)
    files: list[str] = []
    unused = Unused()
    real, linked = deque([""]), deque[str]()
    seen: set[tuple[int, int]] = set()
    while real or linked:  # real folders first, so that a folder keeps its own name where a link leads to it too
        folder = real.popleft() if real else linked.popleft()
        try:
            stat = os.stat(root / folder)
            if (stat.st_dev, stat.st_ino) in seen:
                unused.add("links to folders that are read anyway", [folder])
                continue
            seen.add((stat.st_dev, stat.st_ino))
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except PermissionError:
            unused.add("folders that may not be read (permission denied): change their permissions", [folder or "."])
            continue
        except OSError as error:
            unused.add(f"folders that cannot be read ({error.strerror})", [folder or "."])
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            is_folder = os.path.isdir(entry.path)  # unlike the entry's own method, False for a link to itself
            if _passed(name, is_folder, suffixes, unused):
                continue
            if is_folder:
                (linked if entry.is_symlink() else real).append(name)
            elif os.path.isfile(entry.path):
                files.append(name)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                unused.add("links that lead nowhere", [name])
            else:
                unused.add("neither files nor folders", [name])
    return Walk(sorted(files), unused)


def _passed(name: str, is_folder: bool, suffixes: frozenset[str], unused: Unused) -> bool:
    """Return whether a name is passed over, and record it if its owner may have meant it."""
    own = PurePosixPath(name).name
    no_picture = own.startswith("._") or PurePosixPath(own).suffix.lower() not in suffixes
    if own == MAC if is_folder else no_picture and own.lower().startswith(CLUTTER):
        return True
    if own.startswith("."):
        if own not in TOOLS and (is_folder or PurePosixPath(own).suffix.lower() in suffixes):
            unused.add(HIDDEN, [name])
        return True
    return False


def _of_names(names: list[str], suffixes: frozenset[str]) -> Walk:
    """Return the files of an archive, of which names are all that is known."""
    unused = Unused()
    files = []
    for name in names:
        parts = PurePosixPath(name).parts
        hidden = next((place for place, part in enumerate(parts) if part.startswith((".", MAC))), None)
        if hidden is None and not _passed(name, False, suffixes, unused):
            files.append(name)
        elif hidden is not None and hidden + 1 == len(parts):
            _passed(name, False, suffixes, unused)
    return Walk(files, unused)
