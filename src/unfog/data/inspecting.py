"""Inspection of data that are no pictures: sounds, videos, volumes, series and texts, by what training would read."""

import json
import os
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from unfog.data.characters import alphabet_of, text_of, texts
from unfog.data.clips import Clips
from unfog.data.folder import notes_of
from unfog.data.labels import AUTO
from unfog.data.listing import few
from unfog.data.modality import Modality
from unfog.data.pictures import SUFFIXES
from unfog.data.series import Series
from unfog.data.sounds import Sounds
from unfog.data.source import Data
from unfog.data.volumes import Volumes, volumes
from unfog.data.walk import walk
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError, unknown

SHOWN = 24
"""Rows on a sheet, at most."""


class Looked(NamedTuple):
    """What a look at data of one kind found.

    Attributes:
        lines: What the files are, in sentences.
        data: What training would read.
        modality: What a row is.
    """

    lines: list[str]
    data: Data
    modality: Modality


@dataclass(frozen=True)
class Inspected:
    """The result of `look_over`.

    Attributes:
        kind: The recipe that trains on such data.
        path: Where they are.
        lines: What the files are, in sentences.
        data: What training reads; None where it refuses them.
        modality: What a row is.
        refusal: Why training refuses them, or None.
        label_from: What the classes are.
    """

    kind: str
    path: Path
    lines: tuple[str, ...]
    data: Data | None
    modality: Modality | None
    refusal: str | None
    label_from: str

    __repr__ = brief

    @property
    def notes(self) -> tuple[str, ...]:
        """What training does with what is there."""
        return () if self.data is None else notes_of(self.data)

    @property
    def command(self) -> str:
        """The command that trains on them."""
        label = "" if self.label_from == AUTO else f" --label-from {shlex.quote(self.label_from)}"
        return f"unfog train {self.kind} --data {shlex.quote(str(self.path))}{label}"

    def text(self) -> str:
        """Return all of it as text."""
        lines = [f"{self.kind}: {self.path}", *self.lines]
        if self.data is not None and self.modality is not None:
            train, held = self.data
            classes = _classes(train.classes, train) if train.classes else []
            lines += [*classes, f"rows: {len(train):,} {self.modality.describe(train.shape)}, {len(held):,} held out"]
        lines += [f"- note: {note}" for note in self.notes]
        if self.refusal is not None:
            lines.append(f"training refuses them: {self.refusal}")
        else:
            lines.append(f"suggested: {self.command}")
        return "\n".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines)

    def to_json(self) -> str:
        """Return all of it as JSON."""
        rows = None if self.data is None else {"train": len(self.data.train), "held out": len(self.data.heldout)}
        shape = None if self.data is None else list(self.data.train.shape)
        plain = {"kind": self.kind, "path": str(self.path), "files": self.lines, "rows": rows, "shape": shape}
        plain |= {"notes": self.notes, "refusal": self.refusal, "suggestion": None if self.refusal else self.command}
        return json.dumps(plain, indent=1) + "\n"

    def sheet(self) -> Image.Image | None:
        """Draw some rows as training sees them, evenly spaced."""
        if self.data is None or self.modality is None:
            return None
        train = self.data.train
        batch = train.take(np.linspace(0, len(train) - 1, min(SHOWN, len(train))).astype(np.int64))
        plain = batch.labels is None or batch.labels[0].ndim > 0
        shows = [""] * len(batch.x) if plain else [train.classes[label] for label in batch.labels.tolist()]  # type: ignore[union-attr]
        return self.modality.labelled(batch.x, shows, f"as training sees them: {len(batch.x)} of {len(train):,}")


def kind_of(path: str | Path) -> str | None:
    """Return the recipe for what most files at a path are; None for pictures, or where there is nothing."""
    place = Path(os.path.expanduser(path))
    if os.path.isfile(place):  # unlike the path's own method, False for a name that is too long
        suffix = place.suffix.lower()
        return "text" if suffix in (".txt", ".md") else "series" if suffix in Series.suffixes else None
    if not os.path.isdir(place):
        return None
    groups = {
        "audio": Sounds.suffixes,
        "video": Clips.suffixes - {".gif"},
        "volumes": Volumes.suffixes,
        "series": Series.suffixes,
    }
    counts = Counter[str]()
    for name in walk(place, frozenset().union(*groups.values(), SUFFIXES)).files:
        lower = name.lower()
        if lower.endswith(tuple(SUFFIXES)):  # arrays may be pictures, and so they are read unless somebody says more
            counts["pictures"] += 1
        for kind, suffixes in groups.items():
            counts[kind] += lower.endswith(tuple(suffixes - {".npy"})) and Path(lower).name != "metadata.csv"
    most = counts.most_common(1)
    return None if not most or most[0][0] == "pictures" or not most[0][1] else most[0][0]


def look_over(path: str | Path, kind: str, label_from: str = AUTO) -> Inspected:
    """Read data as training would, and report what they are, what is wrong, and what is there but not used.

    Args:
        path: The folder or the file.
        kind: The recipe that trains on such data, one of `LOOKS`.
        label_from: What the classes are, as in `unfog train`.

    Raises: UserError: If there is no such kind.
    """
    if kind not in LOOKS:
        raise unknown("kind of data", kind, LOOKS)
    place = Path(os.path.expanduser(path))
    try:
        found = LOOKS[kind](str(place), label_from)
    except UserError as error:
        return Inspected(kind, place, (), None, None, str(error), label_from)
    return Inspected(kind, place, tuple(found.lines), found.data, found.modality, None, label_from)


def _of_sounds(path: str, label_from: str) -> Looked:
    """Look at recordings."""
    from unfog.data.recordings import recordings, suited, surveyed

    found = surveyed(path, label_from=label_from)
    rates, channels = (_tally(getattr(one, name) for one in found.about) for name in ("rate", "channels"))
    lines = [
        f"recordings: {_readable(len(found.about), len(found.bad))}",
        f"seconds {_span([one.seconds for one in found.about])}; samples a second {rates}; channels {channels}",
    ]
    return Looked(lines, recordings(path, label_from=label_from), Sounds(suited(found).rate))


def _of_videos(path: str, label_from: str) -> Looked:
    """Look at videos."""
    from unfog.data.videos import suited, surveyed, videos

    found = surveyed(path, label_from=label_from)
    sizes, frames = _tally(f"{one.width}×{one.height}" for one in found.about), [one.frames for one in found.about]
    rates = _tally(f"{one.fps:g}" for one in found.about)
    lines = [
        f"videos: {_readable(len(found.about), len(found.bad))}",
        f"sizes {sizes}; frames {_span(frames)}; frames a second {rates}",
    ]
    return Looked(lines, videos(path, label_from=label_from), Clips(suited(found).fps))


def _of_volumes(path: str, label_from: str) -> Looked:
    """Look at volumes."""
    from unfog.data.scans import scans, surveyed

    found = surveyed(path, label_from=label_from)
    shapes, types = (
        _tally("×".join(map(str, one.shape)) for one in found.about),
        _tally(one.dtype for one in found.about),
    )
    lines = [f"volumes: {_readable(len(found.about), len(found.bad))}", f"voxels {shapes}; numbers {types}"]
    return Looked(lines, scans(path, label_from=label_from), volumes)


def _of_series(path: str, label_from: str) -> Looked:
    """Look at series."""
    from unfog.data.columns import columns, look

    found = look(path, label_from=label_from)
    lines = [f"columns: {few(found.columns, 12)}", f"moments of a row: {found.length}"]
    return Looked(lines, columns(path, label_from=label_from), Series(found.columns))


def _of_text(path: str, label_from: str) -> Looked:
    """Look at a text."""
    from unfog.data.textfile import textfile

    if label_from != AUTO:
        raise UserError("a text has no classes: omit `label_from`")
    data = textfile(path)
    alphabet = alphabet_of(data)
    rows = data.train.take(np.arange(min(len(data.train), 10_000))).x
    lengths = [len(text_of(row)) for row in rows]
    lines = [f"characters: {len(alphabet)} different ones: {alphabet[:80]}", f"characters of a row {_span(lengths)}"]
    return Looked(lines, data, texts)


LOOKS: dict[str, Callable[[str, str], Looked]] = {
    "audio": _of_sounds,
    "video": _of_videos,
    "volumes": _of_volumes,
    "series": _of_series,
    "text": _of_text,
}
"""How data are looked at, by the recipe that trains on them."""


def _readable(good: int, bad: int) -> str:
    """Return how many files there are."""
    return f"{good + bad:,}" + (f", {good:,} of them readable" if bad else "")


def _span(numbers: Sequence[float]) -> str:
    """Return minimum, median and maximum as text."""
    low, median, high = (round(float(number), 3) for number in (min(numbers), np.median(numbers), max(numbers)))
    return f"{low:g}" if low == high else f"{low:g} to {high:g} (median {median:g})"


def _tally(values: Any) -> str:
    """Return the most frequent values with their counts."""
    counts = Counter(map(str, values)).most_common()
    return counts[0][0] if len(counts) == 1 else few([f"{value} ({count:,})" for value, count in counts], 6)


def _classes(names: Sequence[str], source: Any) -> list[str]:
    """Return how many training rows each class has."""
    labels = source.about(np.arange(len(source))).labels
    if labels is None or labels[:1].numel() != 1:
        return [f"classes: {len(names)}"]
    counts = Counter(names[label] for label in labels.tolist())
    scarce = [name for name in names if counts[name] < max(5, counts.most_common(1)[0][1] / 10)]
    lines = [f"classes: {len(names)} ({few([f'{name} {count}' for name, count in counts.most_common()], 8)})"]
    if scarce:
        lines.append(
            f"- few: {len(scarce)} of them with fewer than 5 rows, or than a tenth of the largest: {few(scarce)}"
        )
    return lines
