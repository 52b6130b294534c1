"""Inspection of an image folder: its contents, its problems, and how to train on it."""

import hashlib
import json
import math
import os
import shlex
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from unfog.data.alike import MOST, SMALLEST
from unfog.data.classic import PACKED
from unfog.data.current import located, metadata_of, unlisted
from unfog.data.findings import FINDINGS, NOTES, compare, reduced
from unfog.data.folder import list_pictures, look, notes_of
from unfog.data.labels import AUTO, check
from unfog.data.levels import survey
from unfog.data.listing import Listing
from unfog.data.metadata import metadata_lines
from unfog.data.modality import images
from unfog.data.packed import ARCHIVES, Member, Packed
from unfog.data.pictures import (
    AS_NOW,
    SUFFIXES,
    Pixels,
    Reading,
    UnreadableError,
    describe_picture,
    opened,
    orientation,
    read_picture,
    values_of,
)
from unfog.data.source import Data, InMemory
from unfog.data.text import WORDS, words_of
from unfog.data.walk import walk
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError, nearby
from unfog.runtime.progress import track

LOOKED, SHOWN = 200, 64
"""Most rows that `quick` decodes, and most images on a sheet."""


class Picture(NamedTuple):
    """A readable image, upright.

    Attributes:
        channels: As counted by `describe_picture`.
        height: Height in pixels.
        width: Width in pixels.
        mode: Pillow's colour mode, or the dtype of an array.
        format: File format.
        orientation: EXIF orientation; 1 is upright.
        constant: Whether all pixels are equal.
        pixels: Hash of the pixels.
    """

    channels: int
    height: int
    width: int
    mode: str
    format: str
    orientation: int
    constant: bool
    pixels: str


@dataclass(frozen=True)
class Report:
    """The result of `inspect`.

    Attributes:
        root: The folder, or the archives.
        files: Names of all files that are, or should be, images.
        pictures: The readable images.
        found: For each kind in `FINDINGS` the files, lines or classes concerned, with a detail for each.
        classes: Number of images in each class.
        captions: Captions that are not empty.
        refusal: Why training refuses the folder, or None.
        shape: The suggested channels, height and width; None if no image is readable.
        notes: What training does with what is there.
        reading: How pictures become bytes.
        label_from: What the classes are.
        grey: Whether all are grey, though saved in colour.
    """

    root: Path | Packed
    files: tuple[str, ...]
    pictures: dict[str, Picture]
    found: dict[str, dict[str, str]]
    classes: dict[str, int]
    captions: tuple[str, ...]
    refusal: str | None
    shape: tuple[int, int, int] | None
    notes: tuple[str, ...] = ()
    reading: Reading = AS_NOW
    label_from: str = AUTO
    grey: bool = False

    __repr__ = brief

    @property
    def healthy(self) -> bool:
        """Whether no fault was found."""
        return self.refusal is None and not any(names for kind, names in self.found.items() if kind not in NOTES)

    @property
    def shared(self) -> float:
        """Share of the captions that occur more than once."""
        counts = Counter(self.captions).values()
        return sum(count for count in counts if count > 1) / max(1, len(self.captions))

    def suggestion(self, side: int | None = None, budget: str | None = None) -> dict[str, object] | None:
        """Return the suggested channels and side, and the command that trains with them.

        Args:
            side: The side that fits a budget; default: that of the pictures.
            budget: The budget, as in the command.
        """
        if self.shape is None:
            return None
        side = side or self.shape[1]
        command = f"unfog train folder {shlex.quote(str(self.root))} --size {side}"
        command += "" if budget is None else f" --budget {budget}"
        command += "" if self.label_from == AUTO else f" --label-from {shlex.quote(self.label_from)}"
        command += " --set data.channels=1 --set network.width=48" if self.grey else ""
        return {"channels": 1 if self.grey else self.shape[0], "side": side, "command": command}

    @property
    def _sizes(self) -> dict[str, tuple[float, float, float]]:
        """Minimum, median and maximum of the sides and of width / height."""
        rows = self.pictures.values()
        sizes: dict[str, list[float]] = {
            "width": [row.width for row in rows],
            "height": [row.height for row in rows],
            "width / height": [row.width / row.height for row in rows],
        }
        return {name: (min(row), float(np.median(row)), max(row)) for name, row in sizes.items() if row}

    def to_json(self) -> str:
        """Return the complete report as JSON, with all files."""
        plain = {
            "folder": str(self.root),
            "files": len(self.files),
            "healthy": self.healthy,
            "refusal": self.refusal,
            "found": {kind: names for kind, names in self.found.items() if names},
            "classes": self.classes,
            "captions": {"count": len(self.captions), "shared": self.shared},
            "sizes": {name: dict(zip(("min", "median", "max"), row, strict=True)) for name, row in self._sizes.items()},
            "notes": self.notes,
            "suggestion": self.suggestion(),
            "pictures": {name: picture._asdict() for name, picture in self.pictures.items()},
        }
        return json.dumps(plain, indent=1) + "\n"

    def text(self, side: int | None = None, budget: str | None = None) -> str:
        """Return the report as text, with at most a few names of each kind; see `suggestion`."""
        rows = self.pictures.values()
        readable = f", {len(rows)} of them readable" if len(rows) < len(self.files) else ""
        lines = [f"folder: {self.root}", f"images: {len(self.files)}{readable}"]
        if rows:
            formats, modes = Counter(row.format for row in rows), Counter(row.mode for row in rows)
            sizes = [f"{name} {_span(*span)}" for name, span in self._sizes.items()]
            lines += [f"formats: {_tally(formats)}; modes: {_tally(modes)}", "; ".join(sizes)]
        if self.classes:
            lines.append(f"classes: {len(self.classes)} ({_tally(self.classes)})")
        if self.captions:
            lines.append(f"captions: {len(self.captions)}, {self.shared:.0%} of them at more than one image")
        for kind, names in self.found.items():
            if names and kind == "unused":
                reasons: dict[str, list[str]] = {}
                for name, why in names.items():
                    reasons.setdefault(why, []).append(name)
                lines += [f"- {kind} ({len(few)}): {why}: {_few(few)}" for why, few in reasons.items()]
            elif names:
                named = [f"{name} ({detail})" if detail else name for name, detail in names.items()]
                lines.append(f"- {kind} ({len(names)}): {FINDINGS[kind]}: {_few(named)}")
        lines += [f"- note: {note}" for note in self.notes]
        if self.refusal is not None:
            lines.append(f"training refuses this folder: {self.refusal}")
        if self.healthy:
            noted = any(self.found.values()) or bool(self.notes)
            lines.append("healthy: no faults found" + (", what is listed above needs no repair" if noted else ""))
        if (suggested := self.suggestion(side, budget)) is not None:
            lines.append("suggested: channels {channels}, side {side}: {command}".format(**suggested))
        return "\n".join(map(_printable, lines))

    def sheet(self) -> Image.Image | None:
        """Draw images as training sees them: some of each kind of finding, then others by folders, evenly spaced.

        Returns: The contact sheet, or None if there are no images to show.
        """
        if self.shape is None:
            return None
        labels: dict[str, str] = {}
        for kind, names in self.found.items():
            labels |= {name: kind for name in list(names)[:8] if name in self.pictures and name not in labels}
        for name in list(self.pictures)[:: max(1, math.ceil(len(self.pictures) / max(1, SHOWN - len(labels))))]:
            labels.setdefault(name, PurePosixPath(name).parent.name)
        drawn, shows = [], []
        for name in list(labels)[:SHOWN]:
            try:
                drawn.append(torch.from_numpy(read_picture(self.root / name, *self.shape, self.reading)))
            except UnreadableError:  # the wrong number of channels, or deleted meanwhile
                continue
            shows.append(labels[name])
        title = f"as training sees them: {len(drawn)} of {len(self.pictures):,}"
        return images.labelled(torch.stack(drawn), shows, title) if drawn else None


def inspect(path: str | Path, console: Console | None = None, label_from: str = AUTO) -> Report:
    """Read every image of a folder and report what is wrong, and what is there but not used.

    Args:
        path: The folder or the archive, as in `unfog train folder`.
        console: Shows the progress; default: standard error.
        label_from: What the classes are, as in `unfog train folder`.

    Returns: The report; broken files never make this fail.
    Raises: UserError: If the folder does not exist, or contains no images.
    """
    check(label_from)
    root = _root(path)
    found: dict[str, dict[str, str]] = {kind: {} for kind in FINDINGS}
    names, passed = walk(root, SUFFIXES)
    below = [name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES]
    sources = metadata_of(names)
    entries = _metadata(root, sources, found) if sources else {}
    files = tuple(sorted({*below, *entries}))
    if not files:
        list_pictures(str(path))  # says why
        raise UserError(f"{root} contains no images: pass the folder that contains them")
    pictures: dict[str, Picture] = {}
    small: dict[str, Pixels] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about much that it can still read
        seen, refusal, shape = _as_training(str(path), Listing(root, files, None, (), unused=passed), label_from)
        for name in track(files, "inspecting", console=console or Console(stderr=True)):
            result, pixels = _examine(root / name, seen.reading)
            if isinstance(result, Picture):
                pictures[name] = result
                if pixels is not None and len(small) < MOST:
                    small[name] = reduced(pixels)
            else:
                fault, reason = result
                found[fault][name] = reason
    if len(pictures) < 2:
        refusal = refusal or f"{root} contains fewer than 2 readable images: add some"
    _judge(pictures, shape or (3, 0, 0), found)
    listing = seen.listing
    if refusal and entries:
        listing.unused.add(unlisted(), sorted({*below} - {*entries} - {*listing.unused.names.get(unlisted(), ())}))
    found["unused"] = {name: why for why, names in listing.unused.names.items() for name in names}
    classes = _classes(listing, entries if label_from == AUTO else {})
    texts = _texts(listing, entries)
    found["empty text"] = {name: "" for name, text in texts.items() if not text.strip()}
    counts = {name: len(words_of(text)) for name, text in texts.items()}
    found["long text"] = {name: f"{count} words" for name, count in counts.items() if count >= WORDS}
    scarce = max(5, max(classes.values(), default=0) / 10)
    found["few"] = {name: str(count) for name, count in sorted(classes.items()) if count < scarce}
    captions = tuple(text for text in texts.values() if text.strip())
    more, grey = compare(listing, small, found)
    notes = (*listing.notes, *seen.notes, *more)
    found_classes = dict(classes.most_common())
    read = (notes, seen.reading, label_from, grey)
    return Report(root, files, pictures, found, found_classes, captions, refusal, shape, *read)


def _root(path: str | Path) -> Path | Packed:
    """Return the folder or the archives to inspect."""
    root = Path(os.path.expanduser(path))
    if not os.path.isdir(root) and not (os.path.isfile(root) and root.suffix.lower() in ARCHIVES | PACKED):
        cure = nearby(root) or "pass the folder of images to inspect"
        raise UserError(f"{root} is not a folder: {cure}")
    return located(str(root))[0]


class Seen(NamedTuple):
    """What training takes from a folder, and how it reads it."""

    listing: Listing
    reading: Reading
    notes: tuple[str, ...]


def _classes(listing: Listing, entries: Mapping[str, Mapping[str, object]]) -> Counter[str]:
    """Return how many pictures each class has: as training counts them, or where it refuses, as metadata say."""
    if entries:
        return Counter(label for entry in entries.values() for label in _labels(entry.get("label")))
    return Counter(listing.classes[label] for label in listing.labels or () if isinstance(label, int))


def _texts(listing: Listing, entries: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    """Return the captions by picture: as training reads them, or where it refuses, as metadata say."""
    if entries:
        return {name: str(entry["text"]) for name, entry in entries.items() if entry.get("text") is not None}
    return dict(zip(listing.files, listing.captions or (), strict=False))


def quick(data: Data, words: int | None = None) -> list[str]:
    """Return what to say of the data before training: what is not used, and each fault of at least 1 % of the rows.

    All rows in memory are checked, as the model will see them; of rows that must be decoded, a sample.

    Args:
        data: The data set.
        words: As for `notes_of`.
    """
    train = data.train
    in_memory = isinstance(getattr(train, "source", train), InMemory)
    rows = np.linspace(0, len(train) - 1, len(train) if in_memory else min(LOOKED, len(train))).round().astype(np.int64)
    seen: set[int] = set()
    counts: Counter[str] = Counter()
    classes = np.zeros(len(train.classes), dtype=np.int64)
    for start in range(0, len(rows), LOOKED):
        batch = train.take(rows[start : start + LOOKED])
        if images.fits(tuple(batch.x.shape[1:])):
            counts["a single colour"] += int((batch.x == batch.x[..., :1, :1]).flatten(1).all(1).sum())
            seen.update(hash(row.numpy().tobytes()) for row in batch.x)
        if batch.labels is not None and len(classes):
            one_hot = batch.labels if batch.labels.ndim == 2 else batch.labels[:, None] == torch.arange(len(classes))
            classes += one_hot.sum(0).numpy()
        counts["captioned without words"] += sum(not text.strip() for text in batch.captions or ())
    counts["duplicates of another"] = len(rows) - len(seen) if seen else 0
    sentences = list(notes_of(data, words))
    for fault, count in counts.items():
        if 0 < len(rows) <= 100 * count:
            advice = "if they are files, `unfog inspect` lists them"
            sentences.append(f"{count} of {len(rows)} training rows are {fault}: {advice}")
    most = int(classes.max(initial=0))
    scarce = [name for name, count in zip(train.classes, classes, strict=True) if 50 * max(1, int(count)) <= most]
    if scarce:
        sentences.append(
            f"{_few(scarce)} have at most 1/50 as many rows as the largest class: add some, or drop the class"
        )
    return sentences


def _metadata(
    root: Path | Packed, sources: Sequence[str], found: dict[str, dict[str, str]]
) -> dict[str, dict[str, object]]:
    """Return the entries of metadata whose files exist, and record their faults in `found`."""
    entries: dict[str, dict[str, object]] = {}
    for line in (line for source in sources for line in metadata_lines(root, source)):
        where = f"line {line.number}" if len(sources) == 1 else f"{line.source}, line {line.number}"
        if isinstance(line.entry, str):
            found["bad line"][where] = line.entry
            continue
        name = str(line.entry["file_name"])
        if name in entries:
            found["repeated"][name] = where
        entries[name] = line.entry
    for key in ("label", "text", "values"):
        without = [name for name, entry in entries.items() if entry.get(key) is None]
        found[f"no {key}"] = dict.fromkeys(without if len(without) < len(entries) else (), "")
    found["orphaned"] = {name: "" for name in entries if not (root / name).is_file()}
    return {name: entry for name, entry in entries.items() if name not in found["orphaned"]}


def _as_training(
    path: str, everything: Listing, label_from: str
) -> tuple[Seen, str | None, tuple[int, int, int] | None]:
    """Return what training uses (if it refuses: all files), the reason if it refuses, and the suggested shape."""
    refusal, listing = None, everything
    try:
        listing = list_pictures(path, label_from=label_from)
    except UserError as error:
        refusal = str(error)
    reading, notes = AS_NOW, tuple[str, ...]()
    try:
        shape = look(listing)
        reading, notes = survey(listing, None)
    except UserError as error:
        return Seen(listing, reading, notes), refusal or str(error), None
    return Seen(listing, reading, notes), refusal, shape


def _examine(path: Path | Member, reading: Reading) -> tuple[Picture | tuple[str, str], Pixels | None]:
    """Return a picture, or the kind of its fault and the reason; and its pixels, where it can be compared."""
    is_array = path.suffix.lower() == ".npy"
    fault = "unreadable"
    try:
        channels, height, width = describe_picture(path)
        if not is_array:
            fault = "truncated"  # from here on the header is intact
        # read greyscale as 3 channels, so that its hash does not depend on the mode
        pixels = read_picture(path, 3 if channels == 1 else channels, height, width, reading)
        if is_array:
            numbers = values_of(path)
            mode, kind, turned = "uint8" if numbers is None else str(numbers.dtype), "NPY", 1
        else:
            mode, kind, turned = _kind(path)
    except Exception as error:  # the file may have been deleted, or not fit into memory
        return (fault, str(error) or type(error).__name__), None
    constant = bool((pixels == pixels[:, :1, :1]).all())
    digest = hashlib.sha256(pixels.data).hexdigest()
    comparable = len(pixels) == 3 and min(height, width) >= SMALLEST
    picture = Picture(channels, height, width, mode, kind, turned, constant, digest)
    return picture, pixels if comparable else None


def _kind(path: Path | Member) -> tuple[str, str, int]:
    """Return mode, format and orientation."""
    with opened(path) as picture:
        return picture.mode, picture.format or "", orientation(picture)


def _judge(pictures: dict[str, Picture], shape: tuple[int, int, int], found: dict[str, dict[str, str]]) -> None:
    """Record the faults of the readable images in `found`, and which ones are unusual."""
    first: dict[tuple[int, int, str], str] = {}
    common = Counter(kind for row in pictures.values() for kind in (row.format, row.mode))
    size = np.median([min(row.height, row.width) for row in pictures.values()] or [1])
    aspect = np.median([row.width / row.height for row in pictures.values()] or [1])
    for name, row in pictures.items():
        short, long = sorted((row.height, row.width))
        sides = f"{row.width}×{row.height}"
        original = first.setdefault((row.height, row.width, row.pixels), name)
        if original != name:
            found["duplicate"][name] = f"same as {original}"
        if row.constant:
            found["constant"][name] = ""
        if row.channels != shape[0] and not {row.channels, shape[0]} <= {1, 3}:
            found["channels"][name] = str(row.channels)
        if 2 * short <= shape[1]:
            found["small"][name] = sides
        if long > 2 * short:
            found["long"][name] = sides
        if row.orientation > 1:
            found["rotated"][name] = f"orientation {row.orientation}"
        odd = [kind for kind in (row.format, row.mode) if 20 * common[kind] < len(pictures)]
        if not (size / 4 <= short <= size * 4 and aspect / 2 <= row.width / row.height <= aspect * 2):
            odd.append(sides)
        if odd:
            found["odd"][name] = ", ".join(odd)


def _labels(label: object) -> set[str]:
    """Return the names of the classes in one line of metadata."""
    if label is None:
        return set()
    return set(map(str, label)) if isinstance(label, list) else {str(label)}


def _tally(counts: Mapping[str, int]) -> str:
    """Return the most common names with their counts."""
    return _few([f"{name} {count}" for name, count in Counter(counts).most_common()], 8)


def _span(low: float, median: float, high: float) -> str:
    """Return minimum, median and maximum as text."""
    low, median, high = (round(number, 2) for number in (low, median, high))
    return f"{low:g}" if low == high else f"{low:g} to {high:g} (median {median:g})"


def _printable(line: str) -> str:
    """Escape the characters that a terminal would not print."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def _few(names: Sequence[str], most: int = 5) -> str:
    """Return the first few names, comma-separated."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
