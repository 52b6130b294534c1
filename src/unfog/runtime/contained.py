"""Folders from strangers: nothing in them may lead out of them, block a reader or fill the disk."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from unfog.runtime.errors import EnvironmentFailure, UserError
from unfog.runtime.files import check_name, disk

MOST_ENTRIES = 1_000_000
"""Files and folders in a run or model folder, at most."""


def check_contained(folder: Path) -> None:
    """Refuse a run or model folder of which a part is not in it.

    Links may lead to files and folders below it. A snapshot in the cache of the Hugging Face hub consists of links to
    the blobs beside it, which count as its own.

    Raises: UserError: If a link leads out of the folder, something in it is neither file, folder nor link, or it has
        more than a million entries.
    """
    check_name(folder)
    real = folder.resolve()
    roots = [real]
    if real.parent.name == "snapshots" and real.parent.parent.name.startswith(("models--", "datasets--")):
        roots.append(real.parent.parent / "blobs")
    for count, entry in enumerate(_entries(folder)):
        if count >= MOST_ENTRIES:
            raise UserError(f"{folder} has more than {MOST_ENTRIES:,} entries: give the folder of one model")
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            if not any(target.is_relative_to(root) for root in roots):
                raise UserError(
                    f"{entry.path} is a link to {target}, which is outside of {folder}: replace it with what it links "
                    "to, if you trust it"
                )
        elif not (entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)):
            raise UserError(f"{entry.path} is neither a file nor a folder, but a pipe or a device: remove it")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Return everything below a folder, following no link; what may not be read is left to its reader."""
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                for entry in found:
                    yield entry
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:
            continue


def copy_flat(source: Path, target: Path, suffixes: frozenset[str]) -> list[str]:
    """Copy the files of a folder that have certain suffixes, without its subfolders.

    Args:
        source: A folder that `check_contained` accepted.
        target: Where to; made if it does not exist.
        suffixes: Suffixes of files to copy, such as ".json".

    Returns: The names of what is not copied.
    Raises: EnvironmentFailure: If the disk is too full, or fails.
    """
    files = [one for one in sorted(source.iterdir()) if one.suffix in suffixes and one.is_file()]
    with disk(target):
        target.mkdir(parents=True, exist_ok=True)
        size, free = sum(one.stat().st_size for one in files), shutil.disk_usage(target).free
        if size > free:
            raise EnvironmentFailure(f"{source} takes {size:,} bytes, and the disk of {target} has {free:,}: make room")
        for one in files:
            shutil.copyfile(one, target / one.name)
    return sorted({one.name for one in source.iterdir()} - {one.name for one in files})
