"""A tar of pictures as one shard of a data set, whose index is kept in the cache."""

import hashlib
import json
import os
import warnings
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from unfog.data.headers import ROW, Indexed, Whole, caption, indexed
from unfog.data.packed import LARGEST
from unfog.data.source import Indices
from unfog.runtime.errors import EnvironmentFailure
from unfog.runtime.files import cache_folder, parse_json, read_bounded, whole, write_whole

SIGNED = 16
"""Pictures of a shard whose bytes stand for all of them, with the places and sizes of all."""
VERSION = 1
"""Version of the index in the cache."""


class Stamp(NamedTuple):
    """A file's size in bytes, and when it was changed, in nanoseconds."""

    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """Return those of a file."""
        stat = os.stat(path)
        return cls(stat.st_size, stat.st_mtime_ns)


class Cells(NamedTuple):
    """Some rows of a shard.

    Attributes:
        pictures: Encoded pictures.
        labels: Number of each one's class among the shard's, `(rows,)`, -1 for none.
        captions: One text per row, or None.
    """

    pictures: list[bytes]
    labels: Whole
    captions: list[str] | None


class Shard(Protocol):
    """A file with rows."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def stamp(self) -> Stamp:
        """What it was when it was indexed."""
        ...

    @property
    def blocks(self) -> tuple[int, ...]:
        """Rows of each part that is read at once."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes."""
        ...

    @property
    def captioned(self) -> bool:
        """Whether its rows have captions."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say of it."""
        ...

    @property
    def held(self) -> float:
        """Bytes that a row takes in memory while other rows of its block are read."""
        ...

    def read(self, rows: Indices) -> Cells:
        """Return rows by their numbers.

        Raises: OSError, ValueError: If the file is damaged or changed.
        """
        ...

    def signature(self) -> str:
        """Return a hash of its contents: of what is known of all rows, and of the bytes of some."""
        ...


@dataclass(frozen=True)
class Tar:
    """A tar as WebDataset writes it, see `unfog.data.headers`.

    Attributes:
        path: The file.
        stamp: What it was when it was indexed.
        rows: Its rows, `ROW` each.
        classes: Names of its classes.
        notes: What to say of it.
    """

    path: Path
    stamp: Stamp
    rows: NDArray[np.void]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    held: ClassVar[float] = 0.0

    @classmethod
    def of(cls, path: Path, stamp: Stamp) -> "Tar":
        """Index a tar.

        Raises: OSError, ValueError: If it is damaged.
        """
        return cls(path, stamp, *_remembered(path, stamp))

    @property
    def blocks(self) -> tuple[int, ...]:
        """One for all rows."""
        return (len(self.rows),)

    @property
    def captioned(self) -> bool:
        """Whether there is a caption beside the first picture."""
        return bool(len(self.rows)) and int(self.rows["text"][0]) >= 0

    def read(self, rows: Indices) -> Cells:
        """Read rows by their numbers, one after another in the file."""
        found = self.rows[rows]
        if Stamp.of(self.path) != self.stamp:
            raise OSError("it changed since the training began")
        with self.path.open("rb") as file:
            texts: list[str] | None = None
            read = partial(os.pread, file.fileno())
            pictures = [
                read(min(size, LARGEST), offset)
                for size, offset in zip(found["size"].tolist(), found["offset"].tolist(), strict=True)
            ]
            if self.captioned:
                wanted = (found[name].tolist() for name in ("words", "text", "json"))
                texts = [
                    caption(read(min(size, LARGEST), offset), listed) if offset >= 0 else ""
                    for size, offset, listed in zip(*wanted, strict=True)
                ]
        return Cells(pictures, found["label"].astype(np.int64), texts)

    def signature(self) -> str:
        """Return the hash of the rows' places and of the bytes of some pictures."""
        sha = hashlib.sha256(repr((len(self.rows), self.classes)).encode())
        for name in ROW.names or ():
            sha.update(self.rows[name].tobytes())
        some = np.unique(np.linspace(0, len(self.rows) - 1, min(SIGNED, len(self.rows))).astype(np.int64))
        for picture in self.read(some).pictures:
            sha.update(picture)
        return sha.hexdigest()


def _remembered(path: Path, stamp: Stamp) -> Indexed:
    """Return the index of a tar, from the cache or else made and kept there."""
    key = hashlib.sha256(repr((str(path.resolve()), stamp, VERSION)).encode()).hexdigest()[:24]
    table, beside = (cache_folder() / "shards" / f"{key}{suffix}" for suffix in (".npy", ".json"))
    try:
        known = parse_json(read_bounded(beside))
        rows = np.load(table, mmap_mode="r", allow_pickle=False)
        if rows.dtype == ROW and rows.ndim == 1 and len(rows) == known["rows"]:
            return Indexed(rows, tuple(map(str, known["classes"])), tuple(map(str, known["notes"])))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing or damaged: it is made anew
    found = indexed(path)
    try:
        table.parent.mkdir(parents=True, exist_ok=True)
        with whole(table) as part, part.open("wb") as file:
            np.save(file, found.rows)
        kept = {"rows": len(found.rows), "classes": found.classes, "notes": found.notes}
        write_whole(beside, json.dumps(kept).encode())
    except (OSError, EnvironmentFailure) as error:
        _unkept(str(table.parent), str(error))
    return found


@lru_cache(maxsize=1)
def _unkept(folder: str, why: str) -> None:
    """Warn once that indices cannot be kept."""
    sentence = f"the places of pictures in shards cannot be kept in {folder} ({why}): they are sought anew each time"
    warnings.warn(sentence, stacklevel=6)
