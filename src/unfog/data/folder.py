"""A folder of images: with class sub-folders, with `metadata.jsonl`, or plain."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from unfog.data.classic import existing
from unfog.data.modality import images
from unfog.data.pictures import Pixels, UnreadableError, describe_picture, read_picture
from unfog.data.source import Batch, Data, Indices, InMemory, MissingDataError, Source, split, split_rows
from unfog.runtime.errors import UserError
from unfog.runtime.files import parse_json

IN_MEMORY = 1 << 30
"""Data sets up to this many bytes are decoded once and kept; larger ones are decoded by worker processes."""
LINE, MARKS, PLANES = 1 << 20, 1 << 27, 1024
"""Limits: characters per line of `metadata.jsonl`, entries of the multi-label table, and channels."""


class Annotations(NamedTuple):
    """Annotations of some files, as `InMemory` takes them."""

    labels: torch.Tensor | None
    classes: tuple[str, ...]
    captions: tuple[str, ...] | None
    values: torch.Tensor | None
    files: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """The contents of a folder.

    Attributes:
        root: The folder.
        files: Paths of the images relative to `root`, sorted.
        labels: Class index of each file, or for multi-label data one bool per class, or None.
        classes: Names of the classes.
        captions: One text per file, if `metadata.jsonl` has them.
        values: Numbers per file, if `metadata.jsonl` has them.
    """

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...] | tuple[tuple[bool, ...], ...] | None
    classes: tuple[str, ...]
    captions: tuple[str, ...] | None = None
    values: tuple[tuple[float, ...], ...] | None = None

    def annotated(self, rows: Sequence[int]) -> Annotations:
        """Return the annotations of these files."""
        labels = None if self.labels is None else torch.tensor([self.labels[row] for row in rows])
        values = None if self.values is None else torch.tensor([self.values[row] for row in rows])
        captions = None if self.captions is None else tuple(self.captions[row] for row in rows)
        return Annotations(labels, self.classes, captions, values, tuple(self.files[row] for row in rows))


def list_pictures(path: str, where: str = "") -> Listing:
    """List the images of a folder and their classes.

    If there is a `metadata.jsonl`, it decides: each line has a `file_name` and annotations, `label` (a name or a list
    of names), `text`, and `values` (a list of numbers). Otherwise two or more sub-folders are the classes.

    Args:
        path: The folder.
        where: Filter for the lines of `metadata.jsonl`, see `folder`.

    Returns: The listing.
    Raises: UserError: If the folder does not exist or contains no images, or its metadata is damaged.
    """
    root = existing(path)
    if (root / "metadata.jsonl").is_file():
        return _from_metadata(root, where)
    if where:
        raise UserError(f"data.where selects lines of metadata.jsonl, but {root} has none: omit data.where")
    files = pictures_below(root)
    if not files:
        raise MissingDataError(f"{root} contains no images ({', '.join(sorted(images.suffixes))})", "check data.path")
    tops = [file.split("/")[0] if "/" in file else "" for file in files]
    classes = tuple(sorted(set(tops)))
    if "" in classes or len(classes) < 2:
        return Listing(root, tuple(files), None, ())
    index = {name: place for place, name in enumerate(classes)}
    return Listing(root, tuple(files), tuple(index[top] for top in tops), classes)


def pictures_below(root: Path) -> list[str]:
    """Return the names of all images below a folder, sorted, without hidden files and folders."""
    files = (file for file in root.rglob("*") if file.suffix.lower() in images.suffixes and file.is_file())
    names = (file.relative_to(root) for file in files)
    return sorted(file.as_posix() for file in names if not any(part.startswith(".") for part in file.parts))


def metadata_lines(root: Path, where: str = "") -> Iterator[tuple[int, dict[str, object] | str]]:
    """Yield the number of each line of `metadata.jsonl` with its entry, or with a message if it is invalid.

    Args:
        root: The folder.
        where: Filter for the lines, see `folder`.
    """
    for number, line in enumerate(_lines(root / "metadata.jsonl"), 1):
        if line.strip():
            entry = _entry(root, line)
            if isinstance(entry, str) or _holds(entry, where):
                yield number, entry


def _holds(entry: dict[str, object], where: str) -> bool:
    """Return whether an entry matches the filter."""
    key, equals, text = where.partition("=")
    if where and not equals:
        raise UserError(f"data.where must be key=value, for instance group=Objects, not {where!r}")
    try:
        wanted: object = parse_json(text)
    except ValueError:
        wanted = text
    return not where or entry.get(key.strip()) in (wanted, text)


def _entry(root: Path, line: str) -> dict[str, object] | str:
    """Return the entry in a line of metadata, or a message if it is invalid."""
    try:
        entry = parse_json(line)
        name = entry["file_name"]
    except (ValueError, KeyError, TypeError):
        return "not a JSON object with 'file_name'"
    if not isinstance(name, str) or not _below(root, name):
        return f"{name!r} is not a file below the folder"
    label, text = entry.get("label"), entry.get("text")
    names = label if isinstance(label, list) else []
    if isinstance(label, dict) or any(isinstance(item, dict | list | None) for item in names):
        return f"'label' must be a name or a list of names, not {label!r}"
    if isinstance(text, dict | list):
        return f"'text' must be a string, not {text!r}"
    return dict(entry)


def _from_metadata(root: Path, condition: str) -> Listing:
    """Read `metadata.jsonl`."""
    where = root / "metadata.jsonl"
    entries: dict[str, dict[str, object]] = {}
    for number, entry in metadata_lines(root, condition):
        if isinstance(entry, str):
            raise UserError(f"{where}, line {number}: {entry}: correct the line")
        entries[str(entry["file_name"])] = entry
    if not entries and condition:
        raise UserError(f"no line of {where} matches {condition}: check data.where")
    if not entries:
        raise UserError(f"{where} lists no images: add lines with 'file_name', or remove it")
    files = tuple(sorted(entries))
    labels = [entries[file].get("label") for file in files]
    texts = [entries[file].get("text") for file in files]
    numbers = [entries[file].get("values") for file in files]
    for key, column in (("label", labels), ("text", texts), ("values", numbers)):
        without = [file for file, value in zip(files, column, strict=True) if value is None]
        if 0 < len(without) < len(files):
            raise UserError(
                f"{where}: {key!r} is missing for {without[0]} ({len(without)} in all): set it in all lines or none"
            )
    captions = tuple(str(text) for text in texts) if all(text is not None for text in texts) else None
    values = None if any(row is None for row in numbers) else tuple(_numbers(where, row) for row in numbers)
    if values is not None and len({len(row) for row in values}) > 1:
        raise UserError(f"{where}: 'values' differs in length between lines: correct the lines")
    if any(label is None for label in labels) or all(label == [] for label in labels):
        return Listing(root, files, None, (), captions, values)
    names = [set(map(str, label)) if isinstance(label, list) else {str(label)} for label in labels]
    classes = tuple(sorted(set().union(*names), key=lambda name: (len(name), name)))
    if any(isinstance(label, list) for label in labels):
        if len(files) * len(classes) > MARKS:
            raise UserError(f"{where}: {len(classes):,} labels for {len(files):,} files are too many: use fewer labels")
        multi_hot = tuple(tuple(name in row for name in classes) for row in names)
        return Listing(root, files, multi_hot, classes, captions, values)
    index = {name: place for place, name in enumerate(classes)}
    return Listing(root, files, tuple(index[next(iter(row))] for row in names), classes, captions, values)


def _lines(where: Path) -> Iterator[str]:
    """Yield the lines of a text file.

    Raises: UserError: If a line is too long.
    """
    with where.open(encoding="utf-8-sig", errors="replace") as file:
        while line := file.readline(LINE + 1):
            if len(line) > LINE:
                raise UserError(f"{where} has a line of more than {LINE:,} characters: shorten it")
            yield line


def _below(root: Path, name: str) -> bool:
    """Return whether a name lies below a folder, with symlinks resolved."""
    try:
        return (root / name).resolve().is_relative_to(root.resolve())
    except (ValueError, RuntimeError):  # a null byte, a lone surrogate, a symlink loop
        return False


def _numbers(where: Path, row: object) -> tuple[float, ...]:
    """Return the numbers of one line."""
    items = row if isinstance(row, list) else [row]
    limit = torch.finfo(torch.float32).max  # infinities and NaN fail the comparison too
    numbers = [item for item in items if isinstance(item, int | float) and not isinstance(item, bool)]
    numbers = [number for number in numbers if abs(number) <= limit]
    if len(numbers) < len(items):
        raise UserError(f"{where}: 'values' must be a list of numbers, not {row!r}: correct the line")
    return tuple(map(float, numbers))


@dataclass(frozen=True)
class Streamed:
    """Images decoded on demand by worker processes.

    Attributes:
        read: Reads the pixels of one file, or returns why it cannot.
        files: The files.
        annotations: The annotations of the files.
        shape: `(channels, height, width)`.
        workers: Number of processes.
        root: The folder of the files.
    """

    read: "Callable[[str], Pixels | str]"
    files: tuple[str, ...]
    annotations: Annotations
    shape: tuple[int, ...]
    workers: int
    root: Path
    slow: ClassVar[bool] = True
    _pool: list[ProcessPoolExecutor] = field(default_factory=list, compare=False, repr=False)
    _bad: set[int] = field(default_factory=set, compare=False, repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.annotations.classes

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.files)

    def take(self, indices: Indices) -> Batch:
        """Decode these files; the next readable file replaces an unreadable one, with one warning."""
        if not self._pool:  # spawned, since forking a process with torch threads is unsafe
            self._pool.append(ProcessPoolExecutor(self.workers, mp_context=get_context("spawn")))
        rows = [int(row) for row in indices]
        pixels = list(self._pool[0].map(self.read, [self.files[row] for row in rows], chunksize=8))
        for place, result in enumerate(pixels):
            tried = 0
            while isinstance(result, str):
                if rows[place] not in self._bad:
                    self._bad.add(rows[place])
                    warnings.warn(f"skipped {self.files[rows[place]]}: {result}", stacklevel=2)
                tried += 1
                if tried > len(self.files):
                    raise UserError("none of the images can be read: check data.path")
                rows[place] = (rows[place] + 1) % len(self.files)
                result = self.read(self.files[rows[place]])
            pixels[place] = result
        x = torch.from_numpy(np.stack([row for row in pixels if not isinstance(row, str)]))
        return self.about(np.array(rows))._replace(x=x)

    def about(self, indices: Indices) -> Batch:
        """Return the annotations of these files."""
        return InMemory(torch.empty(len(self.files), 0), *self.annotations).about(indices)


def _read_or_reason(root: Path, shape: tuple[int, int, int], file: str) -> "Pixels | str":
    """Read one image, or return why it cannot be read; the caller words the error."""
    try:
        return read_picture(root / file, *shape)
    except UnreadableError as error:
        return str(error)


def folder(
    path: str = "",
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    heldout: float = 0.1,
    workers: int = 2,
    where: str = "",
    together: str = "",
) -> Data:
    """Read a folder of images, each centre-cropped and resized to one shape.

    Args:
        path: The folder: class sub-folders, `metadata.jsonl`, or just images.
        size: Side, or [height, width]; default: chosen by `look`.
        channels: 1 or 3 (or as many as the arrays have); default: chosen by `look`.
        heldout: Share of the images to hold out, by the hash of their names.
        workers: Processes that decode a data set too large for memory.
        where: Use only the lines of `metadata.jsonl` with `key=value`; the value is JSON or a string.
        together: Delimiter characters, for instance ":". Images whose captions agree up to the first of them are held
            out together. Default: images are split by their names.

    Returns: The data set; unreadable images are skipped with a warning.
    Raises: UserError: If the folder does not exist, or none of its images can be read.
    """
    listing = list_pictures(path, where)
    found_channels, *found_sides = look(listing)
    keys = _keys(listing, together)
    height, width = _sides(size) or found_sides
    shape = (found_channels if channels is None else channels, height, width)
    if not 0 < heldout < 1:
        raise UserError(f"data.heldout must be between 0 and 1, not {heldout}")
    if not 1 <= shape[0] <= PLANES or workers < 1:
        raise UserError(
            f"data.channels must be from 1 to {PLANES} and data.workers 1 or more, not {shape[0]} and {workers}"
        )
    if len(listing.files) < 2:
        raise UserError(f"{listing.root} contains one image: a data set needs 2 or more")
    read = partial(_read_or_reason, listing.root, shape)
    if len(listing.files) * int(np.prod(shape)) > IN_MEMORY:
        parts = [_streamed(listing, rows, read, shape, workers) for rows in split_rows(keys, heldout)]
        return Data(*parts)
    pixels = [read(file) for file in listing.files]
    readable = [row for row, result in enumerate(pixels) if not isinstance(result, str)]
    _report(listing, pixels)
    if len(readable) < 2:
        raise UserError(f"{listing.root} contains {len(readable)} readable images: a data set needs 2 or more")
    x = torch.from_numpy(np.stack([row for row in pixels if not isinstance(row, str)]))
    source: Source = InMemory(x, *listing.annotated(readable), root=listing.root)
    return split(source, heldout, [keys[row] for row in readable])


def _keys(listing: Listing, together: str) -> tuple[str, ...]:
    """Return the key of each file by which the data set is split."""
    if not together:
        return listing.files
    if listing.captions is None:
        raise UserError("data.together splits by captions, but the folder has none: omit data.together")
    return tuple(re.split(f"[{re.escape(together)}]", text, maxsplit=1)[0].strip() for text in listing.captions)


def _streamed(
    listing: Listing, rows: Indices, read: "Callable[[str], Pixels | str]", shape: tuple[int, ...], workers: int
) -> Streamed:
    """Return some files of a listing as their own source, so that replacements stay within the same part."""
    chosen = [int(row) for row in rows]
    files = tuple(listing.files[row] for row in chosen)
    return Streamed(read, files, listing.annotated(chosen), shape, workers, listing.root)


def _report(listing: Listing, pixels: "list[Pixels | str]") -> None:
    """Warn about unreadable files; raise if there are no others."""
    bad = [(file, why) for file, why in zip(listing.files, pixels, strict=True) if isinstance(why, str)]
    if not bad:
        return
    named = "; ".join(f"{file} ({why})" for file, why in bad[:3]) + ("; ..." if len(bad) > 3 else "")
    if len(bad) == len(listing.files):
        raise UserError(f"none of the {len(bad)} images in {listing.root} can be read: {named}")
    warnings.warn(f"skipped {len(bad)} of {len(pixels)} images in {listing.root}: {named}", stacklevel=3)


def pictures_at(path: Path, shape: tuple[int, ...]) -> torch.Tensor:
    """Read an image, or all images of a folder, as stored in a data set of this shape.

    Raises: UserError: If there are no images, or one cannot be read.
    """
    if not path.exists():
        raise UserError(f"the image {path} does not exist: check the path")
    files = [path] if path.is_file() else [path / file for file in list_pictures(str(path)).files]
    channels, height, width = shape
    rows = []
    for file in files:
        try:
            rows.append(read_picture(file, channels, height, width))
        except UnreadableError as error:
            raise UserError(f"the image {file} cannot be read ({error}): check the path") from None
    return torch.from_numpy(np.stack(rows))


def look(listing: Listing, sample: int = 200) -> tuple[int, int, int]:
    """Choose (channels, height, width) for a folder from up to `sample` of its images.

    Greyscale if all are, else colour. The side is the largest of 8, 16, 28, 32, 48, 64 that does not exceed the median
    of the shorter sides: pixel diffusion on larger images is too slow on most machines.

    Args:
        listing: The contents of the folder.
        sample: Number of files to inspect, evenly spaced.

    Returns: Channels, height and width.
    Raises: UserError: If none of them can be read.
    """
    picked = listing.files[:: -(-len(listing.files) // sample)]
    seen = []
    for file in picked:
        try:
            seen.append(describe_picture(listing.root / file))
        except UnreadableError:
            continue
    if not seen:
        raise MissingDataError(f"none of the images in {listing.root} can be read", "check data.path")
    short = float(np.median([min(height, width) for _, height, width in seen]))
    side = max([side for side in (8, 16, 28, 32, 48, 64) if side <= short], default=8)
    return max(channels for channels, _, _ in seen), side, side


def _sides(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Return (height, width) of a size setting."""
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else size
    if len(sides) != 2 or min(sides) < 1 or max(sides) > 4096:
        raise UserError(f"data.size must be a side or [height, width], from 1 to 4096, not {size}")
    return sides[0], sides[1]
