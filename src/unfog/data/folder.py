"""A folder of pictures: class sub-folders, or `metadata.jsonl`, or neither."""

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
from unfog.data.pictures import SUFFIXES, Pixels, UnreadableError, describe_picture, read_picture
from unfog.data.source import Batch, Data, Indices, InMemory, Source, split, split_rows
from unfog.runtime.errors import UserError
from unfog.runtime.files import parse_json

IN_MEMORY = 1 << 30
"""Sets of at most this many bytes are decoded once and kept; larger ones stream through processes."""
LINE, MARKS, PLANES = 1 << 20, 1 << 27, 1024
"""Signs in a line of `metadata.jsonl`, labels over all files where a file may have several, and channels, at most."""


class Told(NamedTuple):
    """What is known of some files, as `InMemory` takes it."""

    labels: torch.Tensor | None
    classes: tuple[str, ...]
    captions: tuple[str, ...] | None
    values: torch.Tensor | None
    files: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Attributes:
        root: The folder.
        files: Paths of the pictures below `root`, sorted.
        labels: Class number of each file, or which labels hold where a file has several, or None.
        classes: Names of the classes.
        captions: A text for each file where `metadata.jsonl` gives them.
        values: Numbers for each file, likewise.
    """

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...] | tuple[tuple[bool, ...], ...] | None
    classes: tuple[str, ...]
    captions: tuple[str, ...] | None = None
    values: tuple[tuple[float, ...], ...] | None = None

    def told(self, rows: Sequence[int]) -> Told:
        """Return what is known of some files."""
        labels = None if self.labels is None else torch.tensor([self.labels[row] for row in rows])
        values = None if self.values is None else torch.tensor([self.values[row] for row in rows])
        captions = None if self.captions is None else tuple(self.captions[row] for row in rows)
        return Told(labels, self.classes, captions, values, tuple(self.files[row] for row in rows))


def list_pictures(path: str, where: str = "") -> Listing:
    """Find the pictures of a folder and their classes.

    `metadata.jsonl` decides where there is one: lines with `file_name` and what is known of it: `label`, a name or a
    list of several, `text`, and `values`, a list of numbers. Else the sub-folders are the classes; else there are none.

    Args:
        path: The folder.
        where: Only the lines in which this holds, see `folder`.

    Returns: The listing.
    Raises: UserError: If the folder is missing or holds no picture, or its metadata is damaged.
    """
    root = existing(path)
    if (root / "metadata.jsonl").is_file():
        return _from_metadata(root, where)
    if where:
        raise UserError(f"data.where chooses lines of metadata.jsonl, and {root} has none: leave it away")
    files = pictures_below(root)
    if not files:
        raise UserError(f"{root} holds no picture ({', '.join(sorted(SUFFIXES))}): check the path given with --data")
    tops = [file.split("/")[0] if "/" in file else "" for file in files]
    classes = tuple(sorted(set(tops)))
    if "" in classes or len(classes) < 2:
        return Listing(root, tuple(files), None, ())
    number = {name: place for place, name in enumerate(classes)}
    return Listing(root, tuple(files), tuple(number[top] for top in tops), classes)


def pictures_below(root: Path) -> list[str]:
    """Return the names of all pictures below a folder, sorted; what is hidden, or in a hidden folder, is none."""
    found = (file.relative_to(root) for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    return sorted(file.as_posix() for file in found if not any(part.startswith(".") for part in file.parts))


def metadata_lines(root: Path, where: str = "") -> Iterator[tuple[int, dict[str, object] | str]]:
    """Yield the number of each line of `metadata.jsonl` and what it holds, or else what is wrong with it.

    Args:
        root: The folder.
        where: Only the lines in which this holds, see `folder`.
    """
    for number, line in enumerate(_lines(root / "metadata.jsonl"), 1):
        if line.strip():
            entry = _entry(root, line)
            if isinstance(entry, str) or _holds(entry, where):
                yield number, entry


def _holds(entry: dict[str, object], where: str) -> bool:
    """Say whether a line has the value that is asked for."""
    key, equals, text = where.partition("=")
    if where and not equals:
        raise UserError(f"data.where is key=value, for instance group=Objects, not {where!r}")
    try:
        wanted: object = parse_json(text)
    except ValueError:
        wanted = text
    return not where or entry.get(key.strip()) in (wanted, text)


def _entry(root: Path, line: str) -> dict[str, object] | str:
    """Return what a line of metadata holds, or else what is wrong with it."""
    try:
        entry = parse_json(line)
        name = entry["file_name"]
    except (ValueError, KeyError, TypeError):
        return "not a JSON object with 'file_name'"
    if not isinstance(name, str) or not _below(root, name):
        return f"{name!r} is no file below the folder"
    label, text = entry.get("label"), entry.get("text")
    several = label if isinstance(label, list) else []
    if isinstance(label, dict) or any(isinstance(one, dict | list | None) for one in several):
        return f"'label' is a name, or a list of names, not {label!r}"
    if isinstance(text, dict | list):
        return f"'text' is a text, not {text!r}"
    return dict(entry)


def _from_metadata(root: Path, condition: str) -> Listing:
    """Read `metadata.jsonl`."""
    where = root / "metadata.jsonl"
    entries: dict[str, dict[str, object]] = {}
    for number, entry in metadata_lines(root, condition):
        if isinstance(entry, str):
            raise UserError(f"{where}, line {number}: {entry}: mend the line")
        entries[str(entry["file_name"])] = entry
    if not entries and condition:
        raise UserError(f"in no line of {where} {condition} holds: check data.where")
    if not entries:
        raise UserError(f"{where} names no picture: add lines with 'file_name', or remove it")
    files = tuple(sorted(entries))
    given, texts, numbers = ([entries[file].get(key) for file in files] for key in ("label", "text", "values"))
    for key, column in (("label", given), ("text", texts), ("values", numbers)):
        without = [file for file, found in zip(files, column, strict=True) if found is None]
        if 0 < len(without) < len(files):
            raise UserError(
                f"{where}: {key!r} is missing for {without[0]} ({len(without)} in all): give it in all lines or none"
            )
    captions = tuple(str(text) for text in texts) if all(text is not None for text in texts) else None
    values = None if any(row is None for row in numbers) else tuple(_numbers(where, row) for row in numbers)
    if values is not None and len({len(row) for row in values}) > 1:
        raise UserError(f"{where}: 'values' has not the same number of numbers in every line: mend the lines")
    if any(label is None for label in given) or all(label == [] for label in given):
        return Listing(root, files, None, (), captions, values)
    names = [{str(one) for one in (label if isinstance(label, list) else [label])} for label in given]
    classes = tuple(sorted(set().union(*names), key=lambda name: (len(name), name)))
    if any(isinstance(label, list) for label in given):
        if len(files) * len(classes) > MARKS:
            raise UserError(f"{where}: {len(classes):,} labels of {len(files):,} files are too many: give fewer labels")
        held = tuple(tuple(name in row for name in classes) for row in names)
        return Listing(root, files, held, classes, captions, values)
    number_of = {name: place for place, name in enumerate(classes)}
    return Listing(root, files, tuple(number_of[next(iter(row))] for row in names), classes, captions, values)


def _lines(where: Path) -> Iterator[str]:
    """Yield the lines of a text.

    Raises: UserError: If one is longer than what is worth reading.
    """
    with where.open(encoding="utf-8-sig", errors="replace") as file:
        while line := file.readline(LINE + 1):
            if len(line) > LINE:
                raise UserError(f"{where} has a line of more than {LINE:,} signs: shorten it")
            yield line


def _below(root: Path, name: str) -> bool:
    """Say whether a name is that of something below a folder, links followed."""
    try:
        return (root / name).resolve().is_relative_to(root.resolve())
    except (ValueError, RuntimeError):  # a zero byte, half of a pair of surrogates, a link to itself
        return False


def _numbers(where: Path, row: object) -> tuple[float, ...]:
    """Return the numbers of one line."""
    plain = row if isinstance(row, list) else [row]
    most = torch.finfo(torch.float32).max  # what is larger, or no number at all, compares as false
    good = [one for one in plain if isinstance(one, int | float) and not isinstance(one, bool) and abs(one) <= most]
    if len(good) < len(plain):
        raise UserError(f"{where}: 'values' must be a list of numbers, not {row!r}: mend the line")
    return tuple(map(float, good))


@dataclass(frozen=True)
class Streamed:
    """Pictures that are decoded when they are asked for, by worker processes.

    Attributes:
        read: Reads one file to pixels, or returns the reason why it cannot.
        files: The files.
        told: What is known of each file.
        shape: `(channels, height, width)`.
        workers: Number of processes.
    """

    read: "Callable[[str], Pixels | str]"
    files: tuple[str, ...]
    told: Told
    shape: tuple[int, ...]
    workers: int
    slow: ClassVar[bool] = True
    _pool: list[ProcessPoolExecutor] = field(default_factory=list, compare=False, repr=False)
    _bad: set[int] = field(default_factory=set, compare=False, repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.told.classes

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.files)

    def take(self, indices: Indices) -> Batch:
        """Decode these files; one that is unreadable is named once, and the next readable one stands in."""
        if not self._pool:  # spawned, since a fork would copy the threads of torch in an unknown state
            self._pool.append(ProcessPoolExecutor(self.workers, mp_context=get_context("spawn")))
        rows = [int(row) for row in indices]
        pixels = list(self._pool[0].map(self.read, [self.files[row] for row in rows], chunksize=8))
        for place, found in enumerate(pixels):
            tried = 0
            while isinstance(found, str):
                if rows[place] not in self._bad:
                    self._bad.add(rows[place])
                    warnings.warn(f"skipped {self.files[rows[place]]}: {found}", stacklevel=2)
                if (tried := tried + 1) > len(self.files):
                    raise UserError("none of the pictures can be read: check the folder given with --data")
                rows[place] = (rows[place] + 1) % len(self.files)
                found = self.read(self.files[rows[place]])
            pixels[place] = found
        x = torch.from_numpy(np.stack([row for row in pixels if not isinstance(row, str)]))
        return self.about(np.array(rows))._replace(x=x)

    def about(self, indices: Indices) -> Batch:
        """Return what is known of these files."""
        return InMemory(torch.empty(len(self.files), 0), *self.told).about(indices)


def _read_or_reason(root: Path, shape: tuple[int, int, int], file: str) -> "Pixels | str":
    """Read one picture, or return why it cannot be read: exceptions are for the caller to word."""
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
    """Read a folder of pictures, each centre-cropped to the wanted shape and resized.

    Args:
        path: The folder: class sub-folders, `metadata.jsonl`, or just pictures.
        size: Side, or [height, width]; None chooses as `look` does.
        channels: 1 or 3 (or as many as the arrays have); None chooses as `look` does.
        heldout: Share of the pictures that is held out, by the hash of their names.
        workers: Processes that decode a set too large for memory.
        where: Only the lines of `metadata.jsonl` in which this holds: `key=value`, the value as JSON or a text.
        together: Signs that end the part of a caption, for instance ":", by which pictures are split: those whose
            captions begin alike are held out together. By their names if left away.

    Returns: The set; unreadable pictures are named in a warning, skipped and counted.
    Raises: UserError: If there is no folder, or no picture in it can be read.
    """
    listing = list_pictures(path, where)
    found = look(listing)
    keys = _keys(listing, together)
    height, width = _sides(size) or (found[1], found[2])
    shape = (found[0] if channels is None else channels, height, width)
    if not 0 < heldout < 1:
        raise UserError(f"data.heldout is a share between 0 and 1, not {heldout}")
    if not 1 <= shape[0] <= PLANES or workers < 1:
        raise UserError(
            f"data.channels is a number from 1 to {PLANES}, and data.workers 1 or more, not {shape[0]} and {workers}"
        )
    if len(listing.files) < 2:
        raise UserError(f"{listing.root} holds one picture: a set needs 2 or more")
    read = partial(_read_or_reason, listing.root, shape)
    if len(listing.files) * int(np.prod(shape)) > IN_MEMORY:
        parts = [_streamed(listing, rows, read, shape, workers) for rows in split_rows(keys, heldout)]
        return Data(*parts)
    pixels = [read(file) for file in listing.files]
    good = [row for row, found_row in enumerate(pixels) if not isinstance(found_row, str)]
    _report(listing, pixels)
    if len(good) < 2:
        raise UserError(f"{listing.root} holds {len(good)} readable pictures: a set needs 2 or more")
    x = torch.from_numpy(np.stack([row for row in pixels if not isinstance(row, str)]))
    source: Source = InMemory(x, *listing.told(good))
    return split(source, heldout, [keys[row] for row in good])


def _keys(listing: Listing, together: str) -> tuple[str, ...]:
    """Return for each file what its side is drawn by."""
    if not together:
        return listing.files
    if listing.captions is None:
        raise UserError("data.together splits by captions, and the folder has none: leave it away")
    return tuple(re.split(f"[{re.escape(together)}]", text, maxsplit=1)[0].strip() for text in listing.captions)


def _streamed(
    listing: Listing, rows: Indices, read: "Callable[[str], Pixels | str]", shape: tuple[int, ...], workers: int
) -> Streamed:
    """Return some files of a listing as a source of its own, so that stand-ins come from the same side."""
    chosen = [int(row) for row in rows]
    return Streamed(read, tuple(listing.files[row] for row in chosen), listing.told(chosen), shape, workers)


def _report(listing: Listing, pixels: "list[Pixels | str]") -> None:
    """Warn of the unreadable files; raise if there is no other."""
    bad = [(file, why) for file, why in zip(listing.files, pixels, strict=True) if isinstance(why, str)]
    if not bad:
        return
    named = "; ".join(f"{file} ({why})" for file, why in bad[:3]) + ("; ..." if len(bad) > 3 else "")
    if len(bad) == len(listing.files):
        raise UserError(f"none of the {len(bad)} pictures in {listing.root} can be read: {named}")
    warnings.warn(f"skipped {len(bad)} of {len(pixels)} pictures in {listing.root}: {named}", stacklevel=3)


def pictures_at(path: Path, shape: tuple[int, ...]) -> torch.Tensor:
    """Read a picture, or those of a folder, in the form in which a set of this shape stores them.

    Raises: UserError: If there is none, or one cannot be read.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: check the path given with --image")
    files = [path] if path.is_file() else [path / file for file in list_pictures(str(path)).files]
    channels, height, width = shape
    rows = []
    for file in files:
        try:
            rows.append(read_picture(file, channels, height, width))
        except UnreadableError as error:
            raise UserError(f"{file} cannot be read ({error}): check the path given with --image") from None
    return torch.from_numpy(np.stack(rows))


def look(listing: Listing, sample: int = 200) -> tuple[int, int, int]:
    """Choose (channels, height, width) for a folder by looking at up to `sample` of its pictures.

    Grey if all are grey, else colour. The side is the largest of 8, 16, 28, 32, 48, 64 that the median of
    the shorter sides reaches: larger pictures are too slow in pixels on most machines.

    Args:
        listing: What the folder holds.
        sample: How many files to look at, evenly spread.

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
        raise UserError(f"none of the pictures in {listing.root} can be read: check the path given with --data")
    short = float(np.median([min(height, width) for _, height, width in seen]))
    side = max([side for side in (8, 16, 28, 32, 48, 64) if side <= short], default=8)
    return max(channels for channels, _, _ in seen), side, side


def _sides(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Return (height, width) of a size as the user gives it."""
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else size
    if len(sides) != 2 or min(sides) < 1 or max(sides) > 4096:
        raise UserError(f"data.size is a side or [height, width] between 1 and 4096, not {size}")
    return sides[0], sides[1]
