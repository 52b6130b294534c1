"""The data doctor: what a folder of pictures holds, what is wrong with it, and how to train on it."""

import hashlib
import json
import os
import shlex
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from unfog.data.folder import Listing, list_pictures, look, metadata_lines, pictures_below
from unfog.data.pictures import SUFFIXES, UnreadableError, describe_picture, orientation, read_picture, sheet
from unfog.data.source import Data, InMemory
from unfog.runtime.errors import UserError

FINDINGS = {
    "unreadable": "training skips them; replace or remove them",
    "truncated": "they begin well, but their pixels are cut off or damaged, so training skips them; fetch them again",
    "channels": "they have other channels than the set, so training skips them; convert or remove them",
    "duplicate": "the same pixels as another; keep one, or what is held out has been trained on",
    "constant": "one colour all over; remove them, unless they belong",
    "small": "half the suggested size or less, so they are blurred when enlarged",
    "long": "the centre crop throws more than half away; cut them yourself",
    "loose": "outside of the sub-folders, so the sub-folders are no classes; move them into one",
    "bad line": "lines of metadata.jsonl that cannot be understood; mend them",
    "repeated": "named more than once in metadata.jsonl, where the last line counts",
    "orphaned": "named in metadata.jsonl, but not there; bring the files or remove the lines",
    "unnamed": "not named in metadata.jsonl, so training leaves them out",
    "no label": "missing where other lines have a 'label'; give it in all lines or none",
    "no text": "missing where other lines have a 'text'; give it in all lines or none",
    "no values": "missing where other lines have 'values'; give them in all lines or none",
    "empty text": "captions without a word; describe what is there",
    "few": "classes of fewer than 5 pictures, or than a tenth of the largest class; add some, or drop the class",
    "rotated": "turned by their EXIF orientation; unfog reads them upright, other programs may not",
    "odd": "unlike the rest in format, mode, size or aspect ratio",
}
"""Kinds of findings, and what they mean to whoever wants to train."""
NOTES = frozenset({"rotated", "odd"})
"""Kinds that are no faults."""
LOOKED, SHOWN = 200, 64
"""Rows that a glance decodes, and pictures on a sheet, at most."""


class Picture(NamedTuple):
    """A readable picture, as unfog reads it: upright.

    Attributes:
        channels: As `describe_picture` counts them.
        height: Rows of pixels.
        width: Columns of pixels.
        mode: Pillow's name of the colour mode, or the type of an array.
        format: Name of the file format.
        orientation: EXIF orientation, 1 is upright.
        constant: Whether all pixels are the same.
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
    """What `inspect` found.

    Attributes:
        root: The folder.
        files: Names of all files that are, or should be, pictures.
        pictures: The readable ones.
        found: For each kind of `FINDINGS` the names of the files, lines or classes, and a word about each.
        classes: Number of pictures in each class.
        captions: Captions that have words.
        refusal: Why training refuses the folder, if it does.
        shape: The suggested channels, height and width; None if no picture is readable.
    """

    root: Path
    files: tuple[str, ...]
    pictures: dict[str, Picture]
    found: dict[str, dict[str, str]]
    classes: dict[str, int]
    captions: tuple[str, ...]
    refusal: str | None
    shape: tuple[int, int, int] | None

    @property
    def healthy(self) -> bool:
        """Whether no fault was found."""
        return self.refusal is None and not any(names for kind, names in self.found.items() if kind not in NOTES)

    @property
    def shared(self) -> float:
        """Share of the captions that other pictures have too."""
        counts = Counter(self.captions).values()
        return sum(count for count in counts if count > 1) / max(1, len(self.captions))

    @property
    def suggestion(self) -> dict[str, object] | None:
        """The suggested channels and side, and the command line that trains so."""
        if self.shape is None:
            return None
        command = f"unfog train folder --data {shlex.quote(str(self.root))} --size {self.shape[1]}"
        return {"channels": self.shape[0], "side": self.shape[1], "command": command}

    @property
    def _sizes(self) -> dict[str, tuple[float, float, float]]:
        """Smallest, median and largest of the sides and of width / height."""
        rows = self.pictures.values()
        sizes: dict[str, list[float]] = {
            "width": [row.width for row in rows],
            "height": [row.height for row in rows],
            "width / height": [row.width / row.height for row in rows],
        }
        return {name: (min(found), float(np.median(found)), max(found)) for name, found in sizes.items() if found}

    def to_json(self) -> str:
        """Return everything as JSON text, each file named."""
        plain = {
            "folder": str(self.root),
            "files": len(self.files),
            "healthy": self.healthy,
            "refusal": self.refusal,
            "found": {kind: names for kind, names in self.found.items() if names},
            "classes": self.classes,
            "captions": {"count": len(self.captions), "shared": self.shared},
            "sizes": {name: dict(zip(("min", "median", "max"), row, strict=True)) for name, row in self._sizes.items()},
            "suggestion": self.suggestion,
            "pictures": {name: picture._asdict() for name, picture in self.pictures.items()},
        }
        return json.dumps(plain, indent=1) + "\n"

    def text(self) -> str:
        """Return the report for people: at most a few names of each kind."""
        rows = self.pictures.values()
        readable = f", {len(rows)} of them readable" if len(rows) < len(self.files) else ""
        lines = [f"folder: {self.root}", f"pictures: {len(self.files)}{readable}"]
        if rows:
            formats, modes = Counter(row.format for row in rows), Counter(row.mode for row in rows)
            sizes = [f"{name} {_span(*found)}" for name, found in self._sizes.items()]
            lines += [f"formats: {_tally(formats)}; modes: {_tally(modes)}", "; ".join(sizes)]
        if self.classes:
            lines.append(f"classes: {len(self.classes)} ({_tally(self.classes)})")
        if self.captions:
            lines.append(f"captions: {len(self.captions)}, {self.shared:.0%} of which stand at other pictures too")
        for kind, names in self.found.items():
            if names:
                named = [f"{name} ({more})" if more else name for name, more in names.items()]
                lines.append(f"- {kind} ({len(names)}): {FINDINGS[kind]}: {_few(named)}")
        if self.refusal is not None:
            lines.append(f"training refuses this folder: {self.refusal}")
        if self.healthy:
            lines.append("healthy: no fault was found")
        if self.suggestion is not None:
            lines.append("suggested: channels {channels}, side {side}: {command}".format(**self.suggestion))
        return "\n".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines)

    def sheet(self) -> Image.Image | None:
        """Draw pictures as training sees them: some of each kind of finding, then others, evenly spread.

        Returns: The sheet, or None if there is no picture to show.
        """
        if self.shape is None:
            return None
        faulty = [name for names in self.found.values() for name in [*names][:8] if name in self.pictures]
        others = [*self.pictures][:: -(-len(self.pictures) // SHOWN) or 1]
        drawn = []
        for name in [*dict.fromkeys([*faulty, *others])][:SHOWN]:
            try:
                drawn.append(torch.from_numpy(read_picture(self.root / name, *self.shape)))
            except UnreadableError:  # of other channels, or gone since
                continue
        return sheet(torch.stack(drawn), max(1, round(len(drawn) ** 0.5))) if drawn else None


def inspect(path: str | Path, console: Console | None = None) -> Report:
    """Read every picture of a folder, one at a time, and find what is wrong.

    Args:
        path: The folder, as `unfog train folder` takes it.
        console: Shows the progress; standard error if None.

    Returns: What was found; no file is so broken that this fails.
    Raises: UserError: If there is no folder, or it holds no picture.
    """
    root = Path(os.path.expanduser(path))
    if not os.path.isdir(root):
        raise UserError(f"{root} is no folder: give the folder of pictures to inspect")
    found: dict[str, dict[str, str]] = {kind: {} for kind in FINDINGS}
    below = pictures_below(root)
    told = _metadata(root, found) if (root / "metadata.jsonl").is_file() else None
    files = tuple(sorted({*below, *(told or {})}))
    if not files:
        raise UserError(f"{root} holds no picture ({', '.join(sorted(SUFFIXES))}): give the folder that holds them")
    pictures = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of much that it then reads all the same
        listing, refusal, shape = _as_training(root, files)
        console = console or Console(stderr=True)
        for name in track(files, "inspecting", console=console, transient=True, disable=len(files) < LOOKED):
            seen = _examine(root / name)
            if isinstance(seen, Picture):
                pictures[name] = seen
            else:
                found[seen[0]][name] = seen[1]
    if len(pictures) < 2:
        refusal = refusal or f"{root} holds fewer than 2 readable pictures: add some"
    _judge(pictures, shape or (3, 0, 0), found)
    if told is None:
        classes = Counter(listing.classes[label] for label in listing.labels or () if isinstance(label, int))
        loose = {name: "" for name in files if "/" not in name}
        found["loose"] = loose if len({name.split("/")[0] for name in files if "/" in name}) > 1 else {}
    else:
        found["unnamed"] = dict.fromkeys(sorted({*below} - {*told}), "")
        classes = Counter(label for entry in told.values() for label in _labels(entry.get("label")))
    texts = {name: str(entry["text"]) for name, entry in (told or {}).items() if entry.get("text") is not None}
    found["empty text"] = {name: "" for name, text in texts.items() if not text.strip()}
    scarce = max(5, max(classes.values(), default=0) / 10)
    found["few"] = {name: str(count) for name, count in sorted(classes.items()) if count < scarce}
    captions = tuple(text for text in texts.values() if text.strip())
    return Report(root, files, pictures, found, dict(classes.most_common()), captions, refusal, shape)


def quick(data: Data) -> list[str]:
    """Return what is wrong with the rows to train on, as sentences; what 1 in 100 have is worth one.

    Rows in memory are all looked at, as the model will see them; of others, which must be decoded, some.

    Args:
        data: The set.
    """
    train = data.train
    kept = isinstance(getattr(train, "source", train), InMemory)
    rows = np.linspace(0, len(train) - 1, len(train) if kept else min(LOOKED, len(train))).round().astype(np.int64)
    seen: set[int] = set()
    counts: Counter[str] = Counter()
    classes = np.zeros(len(train.classes), dtype=np.int64)
    for start in range(0, len(rows), LOOKED):
        batch = train.take(rows[start : start + LOOKED])
        if batch.x.ndim == 4:
            counts["of one colour all over"] += int((batch.x == batch.x[..., :1, :1]).flatten(1).all(1).sum())
            seen.update(hash(row.numpy().tobytes()) for row in batch.x)
        if batch.labels is not None and len(classes):
            held = batch.labels if batch.labels.ndim == 2 else batch.labels[:, None] == torch.arange(len(classes))
            classes += held.sum(0).numpy()
        counts["captioned without a word"] += sum(not text.strip() for text in batch.captions or ())
    counts["the same as another"] = len(rows) - len(seen) if seen else 0
    advice = "if they are files, `unfog inspect` names them"
    said = [f"{count} of {len(rows)} rows to train on are {what}: {advice}" for what, count in counts.items()]
    said = [sentence for sentence, count in zip(said, counts.values(), strict=True) if 0 < len(rows) <= 100 * count]
    most = int(classes.max(initial=0))
    scarce = [name for name, count in zip(train.classes, classes, strict=True) if 50 * max(1, int(count)) <= most]
    if scarce:
        said.append(f"a 50th of the largest class's rows or fewer are in {_few(scarce)}: add some, or drop the class")
    return said


def _metadata(root: Path, found: dict[str, dict[str, str]]) -> dict[str, dict[str, object]]:
    """Return what `metadata.jsonl` tells of the files that are there, and note what is wrong with it."""
    entries: dict[str, dict[str, object]] = {}
    for number, entry in metadata_lines(root):
        if isinstance(entry, str):
            found["bad line"][f"line {number}"] = entry
            continue
        name = Path(str(entry["file_name"])).as_posix()  # as the files below the folder are named, without ./ and //
        if name in entries:
            found["repeated"][name] = f"line {number}"
        entries[name] = entry
    for key in ("label", "text", "values"):
        without = [name for name, entry in entries.items() if entry.get(key) is None]
        found[f"no {key}"] = dict.fromkeys(without if len(without) < len(entries) else (), "")
    found["orphaned"] = {name: "" for name in entries if not os.path.isfile(root / name)}
    return {name: entry for name, entry in entries.items() if name not in found["orphaned"]}


def _as_training(root: Path, files: tuple[str, ...]) -> tuple[Listing, str | None, tuple[int, int, int] | None]:
    """Return the listing that training uses, or why there is none and one of all files, and the suggested shape."""
    refusal = None
    try:
        listing = list_pictures(str(root))
    except UserError as error:
        listing, refusal = Listing(root, files, None, ()), str(error)
    try:
        return listing, refusal, look(listing)
    except UserError as error:
        return listing, refusal or str(error), None


def _examine(path: Path) -> Picture | tuple[str, str]:
    """Return what a file shows, or the kind of its fault and the reason."""
    fault, array = "unreadable", path.suffix.lower() == ".npy"
    try:
        channels, height, width = describe_picture(path)
        if not array:
            fault = "truncated"  # from here on: the head is whole
        pixels = read_picture(path, 3 if channels == 1 else channels, height, width)  # grey is the same in any mode
        mode, kind, turned = (str(np.lib.format.open_memmap(path, mode="r").dtype), "NPY", 1) if array else _kind(path)
    except Exception as error:  # a file may be gone, or so large that the memory does not hold it
        return fault, str(error) or type(error).__name__
    constant = bool((pixels == pixels[:, :1, :1]).all())
    digest = hashlib.sha256(pixels.data).hexdigest()
    return Picture(channels, height, width, mode, kind, turned, constant, digest)


def _kind(path: Path) -> tuple[str, str, int]:
    """Return mode, format and orientation."""
    with Image.open(path) as picture:
        return picture.mode, picture.format or "", orientation(picture)


def _judge(pictures: dict[str, Picture], shape: tuple[int, int, int], found: dict[str, dict[str, str]]) -> None:
    """Note what is wrong with the readable pictures, and which ones are unlike the rest."""
    first: dict[tuple[int, int, str], str] = {}
    common = Counter(kind for row in pictures.values() for kind in (row.format, row.mode))
    size = np.median([min(row.height, row.width) for row in pictures.values()] or [1])
    aspect = np.median([row.width / row.height for row in pictures.values()] or [1])
    for name, row in pictures.items():
        short, long = sorted((row.height, row.width))
        sides = f"{row.width}×{row.height}"
        if (original := first.setdefault((row.height, row.width, row.pixels), name)) != name:
            found["duplicate"][name] = f"as {original}"
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
    return {str(one) for one in (label if isinstance(label, list) else [] if label is None else [label])}


def _tally(counts: Mapping[str, int]) -> str:
    """Return the numbers of the most common things."""
    return _few([f"{name} {count}" for name, count in Counter(counts).most_common()], 8)


def _span(low: float, median: float, high: float) -> str:
    """Return smallest, median and largest as words."""
    low, median, high = (round(number, 2) for number in (low, median, high))
    return f"{low:g}" if low == high else f"{low:g} to {high:g} (median {median:g})"


def _few(names: Sequence[str], most: int = 5) -> str:
    """Return the first of some names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
