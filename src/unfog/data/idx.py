"""Sets of idx files, the format of MNIST: any number of classes, any sides, names of classes, transposed pictures."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from unfog.data.classic import existing, idx_sizes, read_idx
from unfog.data.metadata import text_of
from unfog.data.pictures import fitted, sides_of
from unfog.data.source import Data, InMemory, MissingDataError, split
from unfog.runtime.errors import UserError

NAME = re.compile(r"(?P<set>.*?)(?P<part>train|t10k|test)-(?P<what>images|labels)[-.]idx\d-ubyte(\.gz)?")
"""Name of a file: the set's own name if it has one, the part, and what it holds."""
BELOW = ("", "raw", "gzip")
"""Where in a folder the files may lie: torchvision puts them into `raw`, EMNIST's archive into `gzip`."""
TRANSPOSED = "emnist-"
"""Beginning of the names of sets whose pictures are transposed."""
SHARE = 0.1
"""What is held out of a set without a test part."""
MAPPING = 1 << 20
"""Bytes of a mapping file, at most."""


class IdxSet(NamedTuple):
    """The files of a set.

    Attributes:
        name: What their names begin with, `emnist-letters-`; empty for names like MNIST's.
        folder: Where they lie.
        files: The files by part and content: `train-images`, `train-labels`, `test-images`, `test-labels`.
    """

    name: str
    folder: Path
    files: dict[str, Path]

    def file(self, what: str) -> Path:
        """Return a file.

        Raises: UserError: If it is missing.
        """
        if what in self.files:
            return self.files[what]
        axes = 3 if what.endswith("images") else 1
        name = f"{self.name}{what}-idx{axes}-ubyte"
        raise UserError(f"{self.folder} contains neither {name}.gz nor {name}: add it from the original files")


def sets_of(folder: Path) -> dict[str, IdxSet]:
    """Return the sets of idx files in a folder, or else one level below, by name; of two forms the compressed one."""
    found: dict[str, IdxSet] = {}
    for place in (folder / name for name in BELOW):
        for file in sorted(place.iterdir()) if place.is_dir() else ():
            if (matched := NAME.fullmatch(file.name)) and file.is_file():
                own = found.setdefault(matched["set"], IdxSet(matched["set"], place, {}))
                part = "train" if matched["part"] == "train" else "test"
                own.files[f"{part}-{matched['what']}"] = file  # sorted, so that `.gz` comes last
        if found:
            break
    return found


def find(path: str) -> IdxSet:
    """Return the set at a path: a folder that holds one set, or any file of a set.

    Raises: UserError: If there is none, or several.
    """
    if is_file(path):
        file = Path(path).expanduser()
        return next(one for one in sets_of(file.parent).values() if _name_of(file) == one.name)
    folder = existing(path)
    found = sets_of(folder)
    if not found:
        what = "neither train-images-idx3-ubyte.gz nor a set with a name, as emnist-letters-train-images-idx3-ubyte.gz"
        raise MissingDataError(f"{folder} contains {what}", "pass the folder of the original idx files")
    if len(found) > 1:
        names = ", ".join(_title(name) for name in sorted(found))
        first = found[min(found)]
        raise UserError(
            f"{first.folder} contains {len(found)} sets of idx files ({names}): choose one by any of its files, for "
            f"instance {min(first.files.values())} instead of the folder"
        )
    return next(iter(found.values()))


def is_file(path: str) -> bool:
    """Return whether a path is that of an idx file by its name."""
    try:
        file = Path(path).expanduser()
        return bool(NAME.fullmatch(file.name)) and file.is_file()
    except (RuntimeError, OSError, ValueError):  # no such user's home, a name too long, a zero byte
        return False


def holds(path: str) -> bool:
    """Return whether a path is that of an idx file, or of a folder with some."""
    try:
        return is_file(path) or bool(sets_of(Path(path).expanduser()))
    except (RuntimeError, OSError, ValueError):
        return False


def _name_of(file: Path) -> str | None:
    """Return the name of a file's set."""
    matched = NAME.fullmatch(file.name)
    return None if matched is None else matched["set"]


def _title(name: str) -> str:
    """Return the name of a set in words."""
    return name.rstrip("-_. ") or "one with MNIST's own names"


def sides_at(path: str) -> tuple[int, int]:
    """Return (height, width) of the pictures of a set, by the header of their file; the set may be transposed.

    Raises: UserError: If there is no set, or its header is damaged.
    """
    file = find(path).file("train-images")
    sizes = idx_sizes(file)
    if len(sizes) != 3:
        raise UserError(f"{file} holds an array of shape {sizes} and no pictures: check the path")
    return sizes[1], sizes[2]


def idx(
    path: str = "",
    size: int | Sequence[int] | None = None,
    transposed: bool | None = None,
    names: Sequence[str] = (),
) -> Data:
    """Read a set of idx files of grey pictures.

    The test part is held out, or a tenth where there is none. The classes are the labels that occur in training, in
    their order; a file `NAMEmapping.txt` names them: a label and its characters' codes, or a name, in each line.

    Args:
        path: The folder of the set, or any of its files where a folder holds several sets; compressed (.gz) or not.
        size: Side, or [height, width]; default: as they are.
        transposed: Whether rows and columns are swapped in the files; default: where they are EMNIST's by their names.
        names: Names of the classes 0, 1, ...; default: those of the mapping file, or else the labels.

    Returns: The data set.
    Raises: UserError: If files are missing, damaged, or do not fit together.
    Source: LeCun, Cortes & Burges, The MNIST database; Cohen et al. 2017, EMNIST.
    """
    found = find(path)
    turned = found.name.startswith(TRANSPOSED) if transposed is None else transposed
    parts = ["train", *(["test"] if {"test-images", "test-labels"} & found.files.keys() else [])]
    arrays = [_part(found, part) for part in parts]
    values, classes = _classes(found, [labels for _, labels in arrays], tuple(names))
    index = np.full(256, -1)
    index[values] = np.arange(len(values))
    notes = []
    if turned and transposed is None:
        notes.append(
            f"rows and columns are swapped back, as for all {TRANSPOSED}* files; not with data.transposed=false"
        )
    if len(parts) == 1:
        notes.append(f"{SHARE:.0%} of the pictures are held out, since {found.folder} has no test part")
    elif unknown := int((index[arrays[1][1]] < 0).sum()):
        notes.append(f"not used ({unknown:,}): held-out pictures of a class that is not in the training part")
    sources = []
    for (pictures, labels), part in zip(arrays, parts, strict=True):
        kept = index[labels] >= 0
        if not kept.any() or pictures.shape[1:] != arrays[0][0].shape[1:]:
            raise UserError(f"{found.folder}: the {part} part has other classes or sides than the training part")
        x = pictures if kept.all() else pictures[kept]
        x = _resized(x.transpose(0, 2, 1) if turned else x, sides_of(size))
        rows = torch.from_numpy(np.array(x, order="C"))[:, None]
        sources.append(InMemory(rows, torch.from_numpy(index[labels[kept]]), classes, notes=tuple(notes)))
    return Data(*sources) if len(sources) == 2 else split(sources[0], SHARE)


def _part(found: IdxSet, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return pictures and labels of a part."""
    files = found.file(f"{part}-images"), found.file(f"{part}-labels")
    pictures, labels = read_idx(files[0]), read_idx(files[1])
    if pictures.ndim != 3 or 0 in pictures.shape or labels.shape != pictures.shape[:1]:
        raise UserError(f"{files[1]} does not have one label for each image: download labels and images again")
    return pictures, labels


def _classes(
    found: IdxSet, labels: Sequence[NDArray[np.uint8]], names: tuple[str, ...]
) -> tuple[list[int], tuple[str, ...]]:
    """Return the labels that are classes, and their names."""
    values = [int(value) for value in np.unique(labels[0])]
    most = max(int(part.max()) for part in labels)
    mapping = found.folder / f"{found.name}mapping.txt"
    if names:
        if most >= len(names):
            raise UserError(
                f"{found.file('train-labels')} contains the label {most}, but data.names has {len(names)} names, from "
                "0 on: give each label one, or omit data.names"
            )
        return list(range(len(names))), names
    if not mapping.is_file():
        return values, tuple(str(value) for value in values)
    mapped = _mapped(mapping)
    if strange := [value for value in values if value not in mapped]:
        raise UserError(f"{mapping} names no class for the label {strange[0]}: add a line, or remove the file")
    return values, tuple(mapped[value] for value in values)


def _mapped(path: Path) -> dict[int, str]:
    """Return the names of labels by a mapping file; of several characters, as of both cases of a letter, the first.

    Raises: UserError: If a line is invalid, or two labels have one name.
    """
    found: dict[int, str] = {}
    for number, line in enumerate(text_of(path, MAPPING).splitlines(), 1):
        if not line.strip():
            continue
        label, *words = line.split()
        coded = bool(words) and all(re.fullmatch(r"[0-9]{1,6}", word) for word in words)
        name = chr(int(words[0])) if coded else " ".join(words)
        if not re.fullmatch(r"[0-9]{1,3}", label) or not name.strip() or not name.isprintable():
            raise UserError(f"{path}, line {number}: not a label and the code of its character, as in '1 65 97'")
        if name in found.values():
            raise UserError(f"{path}, line {number}: another label is named {name!r} too: correct the line")
        found[int(label)] = name
    return found


def _resized(pictures: NDArray[np.uint8], sides: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Return pictures centre-cropped and resized to (height, width)."""
    if sides is None or sides == pictures.shape[1:]:
        return pictures
    return np.stack([np.asarray(fitted(Image.fromarray(picture), *sides)) for picture in pictures])
