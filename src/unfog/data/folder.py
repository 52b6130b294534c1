"""A folder of images: with class sub-folders, with `metadata.jsonl`, or plain."""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
import torch

from unfog.data.alike import look_at
from unfog.data.buckets import Crops, by_shape, in_buckets
from unfog.data.classic import existing
from unfog.data.current import list_current, located
from unfog.data.earlier import list_earlier
from unfog.data.heldout import Parts, findings, parts_of
from unfog.data.labels import AUTO, RULES
from unfog.data.levels import LOOKED, Survey, survey
from unfog.data.listing import Annotations, Listing
from unfog.data.packed import Packed
from unfog.data.pictures import (
    AS_NOW,
    SUFFIXES,
    Pixels,
    Reading,
    UnreadableError,
    describe_picture,
    read_picture,
    resized,
    sides_of,
)
from unfog.data.source import (
    Batch,
    Data,
    Indices,
    InMemory,
    MissingDataError,
    Ordered,
    Subset,
)
from unfog.data.text import words_of
from unfog.data.walk import walk
from unfog.runtime.errors import UserError

IN_MEMORY = 1 << 30
"""Data sets up to this many bytes are decoded once and kept; larger ones are decoded by worker processes."""
UNSEEN = "near-duplicates were not sought, since the pictures do not fit in memory: `unfog inspect` seeks them"
"""What is said of a set that is decoded as it is trained on."""
PLANES = 1024
"""Channels, at most."""


def list_pictures(path: str, where: str = "", rules: int = RULES, label_from: str = AUTO) -> Listing:
    """List the images of a folder or an archive: their classes, captions and values, and what is not used.

    Metadata decide where there are any (`metadata.jsonl`, `metadata.csv`, EDM's `dataset.json`): each line has a
    `file_name` and annotations, `label` (a name or a list of names), `text`, and `values` (a list of numbers).
    Otherwise captions lie beside the pictures (`x.txt` or `x.caption`), and two or more sub-folders are the classes.

    Args:
        path: The folder, a tar or a zip, or a folder of tars.
        where: Filter for the lines of metadata, see `folder`.
        rules: Version of the reading rules.
        label_from: What the classes are, see `folder`.

    Returns: The listing.
    Raises: UserError: If the folder does not exist or contains no images, or its metadata are damaged.
    """
    if rules == 1 and label_from != AUTO:
        raise UserError("the first rules of reading know no `label_from`: omit it, or data.rules")
    if rules == 1:
        return list_earlier(existing(path), where)
    return list_current(*located(path), where, label_from)


def pictures_below(root: Path) -> list[str]:
    """Return the names of all images below a folder, sorted, without hidden files and folders."""
    return [name for name in walk(root, SUFFIXES).files if PurePosixPath(name).suffix.lower() in SUFFIXES]


@dataclass(frozen=True)
class Streamed:
    """Images decoded on demand by worker processes.

    Attributes:
        read: Reads the pixels of one file, or returns why it cannot.
        files: The files.
        annotations: The annotations of the files.
        shape: `(channels, height, width)`.
        workers: Number of processes; with 0 files are decoded in this one.
        root: The folder or archive of the files.
        notes: What to say of the data before training.
        span: What became black and white, where that was chosen by looking at the files.
    """

    read: "Callable[[str], Pixels | str]"
    files: tuple[str, ...]
    annotations: Annotations
    shape: tuple[int, ...]
    workers: int
    root: Path | Packed
    notes: tuple[str, ...] = ()
    span: tuple[float, float] | None = None
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
        rows = [int(row) for row in indices]
        pixels = self._decoded([self.files[row] for row in rows])
        for place, result in enumerate(pixels):
            tried = 0
            while isinstance(result, str):
                if rows[place] not in self._bad:
                    self._bad.add(rows[place])
                    warnings.warn(f"skipped {self.files[rows[place]]}: {result}", stacklevel=2)
                tried += 1
                if tried > len(self.files):
                    raise UserError("none of the images can be read: check the path")
                rows[place] = (rows[place] + 1) % len(self.files)
                result = self.read(self.files[rows[place]])
            pixels[place] = result
        x = torch.from_numpy(np.stack([row for row in pixels if not isinstance(row, str)]))
        return self.about(np.array(rows))._replace(x=x)

    def _decoded(self, files: list[str]) -> "list[Pixels | str]":
        """Return the pixels of each file, or why it cannot be read."""
        if not self.workers:
            return [self.read(file) for file in files]
        if not self._pool:  # spawned, since forking a process with torch threads is unsafe
            self._pool.append(ProcessPoolExecutor(self.workers, mp_context=get_context("spawn")))
        return list(self._pool[0].map(self.read, files, chunksize=8))

    def about(self, indices: Indices) -> Batch:
        """Return the annotations of these files."""
        return InMemory(torch.empty(len(self.files), 0), *self.annotations).about(indices)


def _read_or_reason(
    root: Path | Packed, shape: tuple[int, int, int], file: str, reading: Reading = AS_NOW
) -> "Pixels | str":
    """Read one image, or return why it cannot be read; the caller words the error."""
    try:
        return read_picture(root / file, *shape, reading)
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
    range: Sequence[float] | None = None,
    rules: int = RULES,
    label_from: str = AUTO,
    glance: bool = False,
    buckets: int | Sequence[Sequence[int]] = 1,
) -> Data:
    """Read a folder of images, each centre-cropped and resized to one shape, or to one of a few.

    Args:
        path: The folder: class sub-folders, `metadata.jsonl`, or just images; or an archive.
        size: Side, or [height, width]; default: what suits the pictures.
        channels: 1 or 3 (or as many as the arrays have); default: what suits the pictures.
        heldout: Share of the images to hold out, of each class by the hash of their names. Near-duplicates are on one
            side, if all images fit in memory.
        workers: Processes that decode a data set too large for memory.
        where: Use only the lines of `metadata.jsonl` with `key=value`; the value is JSON or a string.
        together: Delimiter characters, for instance ":". Images whose captions agree up to the first of them are held
            out together, unless these are many or their captions repeat, as names of classes do. Default: images are
            split by their names.
        range: What becomes black and white in images whose numbers are no bytes; default: what all of them need.
        rules: Version of the reading rules.
        label_from: What the class of a picture is: `folder`, the first folder below the root (or below `train/`);
            `parent`, the folder that holds it; `path`, all folders above it; `prefix`, the first part of its file's
            name, up to `_`, `-` or a space; `csv`, the label in the metadata, or `csv:COLUMN`, another column of them.
            Default: the metadata, else `.cls` files, else the first folders.
        glance: Decode no picture but those that are asked for, and look at some only to choose `range`.
        buckets: Shapes, at most, of about the same area, or the shapes, each [height, width]; an image is cropped to
            that which loses least of it. Those of the most frequent shape, or of the first that was given, are the data
            set; training takes turns with the others.

    Returns: The data set; unreadable images are skipped with a warning.
    Raises: UserError: If the folder does not exist, or none of its images can be read.
    """
    if not 1 <= rules <= RULES:
        raise UserError(f"data.rules must be from 1 to {RULES}, not {rules}")
    listing = list_pictures(path, where, rules, label_from)
    found_channels, *found_sides = look(listing)
    if together and listing.captions is None and (rules < 3 or not listing.classes):
        raise UserError("data.together splits by captions, but the folder has none: omit data.together")
    height, width = sides_of(size) or found_sides
    shape = (found_channels if channels is None else channels, height, width)
    if not 0 < heldout < 1:
        raise UserError(f"data.heldout must be between 0 and 1, not {heldout}")
    if not 1 <= shape[0] <= PLANES or workers < 1:
        raise UserError(
            f"data.channels must be from 1 to {PLANES} and data.workers 1 or more, not {shape[0]} and {workers}"
        )
    if len(listing.files) < 2:
        raise UserError(f"{listing.root} contains one image: a data set needs 2 or more")
    crops = in_buckets(listing, (height, width), buckets)
    largest = shape[0] * max(down * across for down, across in crops.sides)
    later = glance or len(listing.files) * largest > IN_MEMORY
    seen = survey(listing, range, LOOKED if later else None) if rules > 1 else Survey(Reading(profiles=False))
    pixels = seen.reading._replace(coarse=rules > 3)
    reading = _Folder(
        listing,
        crops,
        [partial(_read_or_reason, listing.root, (shape[0], *sides), reading=pixels) for sides in crops.sides],
        shape,
        partial(parts_of, listing, heldout=heldout, together=together, rules=rules),
        seen.reading.levels,
        (*listing.unused.sentences(), *listing.notes, *seen.notes, *crops.note),
    )
    unseen = (UNSEEN,) if rules > 2 and not glance else ()
    return reading.streamed(0 if glance else workers, unseen) if later else reading.in_memory(look=rules > 2)


@dataclass(frozen=True)
class _Folder:
    """A folder that is about to be read.

    Attributes:
        listing: What is in it.
        crops: To which shape each picture is cropped.
        readers: Read a picture as each of these shapes.
        shape: The shape of which the others have about the area.
        parts: Splits rows into those to train on and those that are held out.
        levels: What becomes black and white.
        notes: What to say of it.
    """

    listing: Listing
    crops: Crops
    readers: "Sequence[Callable[[str], Pixels | str]]"
    shape: tuple[int, int, int]
    parts: Callable[..., Parts]
    levels: tuple[float, float] | None
    notes: tuple[str, ...]

    def streamed(self, workers: int, notes: tuple[str, ...]) -> Data:
        """Return the data set, whose pictures are decoded as they are asked for."""
        listing, pool = self.listing, list[ProcessPoolExecutor]()
        train, held, why = self.parts(list(np.arange(len(listing.files))))

        def part(which: int, rows: Indices) -> Streamed:  # a source for each part, so that replacements stay within it
            chosen, shape = [int(row) for row in rows], (self.shape[0], *self.crops.sides[which])
            files, annotations = tuple(listing.files[row] for row in chosen), listing.annotated(chosen)
            said = (*self.notes, *notes, *why)
            return Streamed(
                self.readers[which], files, annotations, shape, workers, listing.root, said, self.levels, pool
            )

        return by_shape(self.crops.which, train, held, part)

    def in_memory(self, look: bool) -> Data:
        """Return the data set with all of its pictures in memory, after a look for near-duplicates if wanted."""
        listing, which = self.listing, self.crops.which
        pixels = [self.readers[shape](file) for shape, file in zip(which.tolist(), listing.files, strict=True)]
        readable = [row for row, result in enumerate(pixels) if not isinstance(result, str)]
        _report(listing, pixels)
        if len(readable) < 2:
            raise UserError(f"{listing.root} contains {len(readable)} readable images: a data set needs 2 or more")
        rows = [row for row in pixels if not isinstance(row, str)]
        own = which[readable]
        places = [np.flatnonzero(own == shape) for shape, _ in enumerate(self.crops.sides)]
        stacks = [torch.from_numpy(np.stack([rows[place] for place in mine])) for mine in places if len(mine)]
        alike = (
            stacks[0]
            if len(stacks) == 1
            else torch.from_numpy(np.stack([resized(row, *self.shape[1:]) for row in rows]))
        )
        looked = look_at(alike) if look else None
        train, held, why = self.parts(readable, look=looked)
        notes = (*self.notes, *findings(listing, readable, looked, held), *why)
        sources = {
            int(own[mine[0]]): InMemory(
                x,
                *listing.annotated([readable[place] for place in mine]),
                root=listing.root,
                notes=notes,
                span=self.levels,
            )
            for mine, x in zip([mine for mine in places if len(mine)], stacks, strict=True)
        }
        return by_shape(
            own, train, held, lambda shape, some: Subset(sources[shape], np.searchsorted(places[shape], some))
        )


def _report(listing: Listing, pixels: "list[Pixels | str]") -> None:
    """Warn about unreadable files; raise if there are no others."""
    bad = [(file, why) for file, why in zip(listing.files, pixels, strict=True) if isinstance(why, str)]
    if not bad:
        return
    named = "; ".join(f"{file} ({why})" for file, why in bad[:3]) + ("; ..." if len(bad) > 3 else "")
    if len(bad) == len(listing.files):
        raise UserError(f"none of the {len(bad)} images in {listing.root} can be read: {named}")
    warnings.warn(f"skipped {len(bad)} of {len(pixels)} images in {listing.root}: {named}", stacklevel=3)


def notes_of(data: Data, words: int | None = None) -> tuple[str, ...]:
    """Return what there is to say of a data set's files: what is not used, and what was done with the rest.

    Args:
        data: The data set.
        words: Words and punctuation marks of a caption that the model reads, with the start; None: all.
    """
    inner = getattr(data.train, "source", data.train)
    if isinstance(inner, Ordered):
        return inner.notes
    if not isinstance(inner, InMemory | Streamed):
        return ()
    known = inner.annotations if isinstance(inner, Streamed) else inner
    texts = known.captions if words and known.captions is not None else ()
    cut = [text for text in texts if len(words_of(text)) >= (words or 0)]
    if not cut:
        return inner.notes
    sentence = (
        f"not used ({len(cut):,}): the ends of captions, of which the model reads {(words or 0) - 1} words: shorten "
        f"them, or raise conditioning.length ({cut[0][:60]!r}, ...)"
    )
    return (*inner.notes, sentence)


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
        raise MissingDataError(f"none of the images in {listing.root} can be read", "check the path")
    return suited(seen)


def suited(seen: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    """Return the channels and the sides that suit pictures of these channels, heights and widths, see `look`."""
    short = float(np.median([min(height, width) for _, height, width in seen]))
    side = max([side for side in (8, 16, 28, 32, 48, 64) if side <= short], default=8)
    return max(channels for channels, _, _ in seen), side, side
