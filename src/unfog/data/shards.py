"""Shards of pictures that are read as they are trained on: tars as WebDataset writes them, and Parquet files."""

import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from rich.console import Console

from unfog.data.classic import existing
from unfog.data.current import HELD
from unfog.data.folder import suited
from unfog.data.groups import Groups
from unfog.data.headers import Whole
from unfog.data.listing import few, natural
from unfog.data.packed import ARCHIVES, SHARDS, TABLES, Member, Place
from unfog.data.pictures import SUFFIXES, Pixels, UnreadableError, describe_picture, read_picture, sides_of
from unfog.data.source import Batch, Data, Indices, MissingDataError, windowed
from unfog.data.tars import Shard, Stamp, Tar
from unfog.data.walk import walk
from unfog.runtime.errors import EnvironmentFailure, Remark, UserError
from unfog.runtime.progress import track

WINDOW, BYTES = 65_536, 1 << 28
"""Rows among which rows are shuffled, and bytes of those that must be held in memory for it, at most."""
WHOLE = 1 << 30
"""Bytes of shards up to which they are read at once, as a folder is."""
UNSEEN = Remark("near-duplicates are not sought in shards: some may be held out and trained on")
"""What is said of every set of shards."""
LOOKED = 200
"""Pictures that are looked at to choose a size."""


@dataclass(frozen=True)
class ShardRows:
    """The training rows or the held-out rows of shards.

    Of `every` rows in a row one is held out, in the middle; with 0 the shards are all of one part.

    Attributes:
        shards: The shards.
        root: Their folder.
        shape: `(channels, height, width)`.
        classes: Names of the classes of all shards.
        every: Of how many rows one is held out.
        held: Whether these are the held-out rows.
        window: Rows among which rows are shuffled.
        notes: What to say of the data before training.
    """

    shards: tuple[Shard, ...]
    root: Path
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    every: int
    held: bool
    window: int
    notes: tuple[str, ...] = ()
    slow: ClassVar[bool] = False  # on a CPU a thread that decodes ahead would share the cores with the network
    _bad: set[object] = field(default_factory=set, compare=False, repr=False)

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._own(self.firsts[-1]))

    @cached_property
    def firsts(self) -> Whole:
        """The number of the first row of each shard among all rows, and of the row after the last."""
        return _sums([sum(shard.blocks) for shard in self.shards])

    @cached_property
    def lengths(self) -> Whole:
        """Rows of this part in each block of all shards."""
        return np.diff(self._own(_sums([block for shard in self.shards for block in shard.blocks])))

    def _own(self, row: "Whole | int") -> Whole:
        """Return how many rows of this part lie before a row of all rows."""
        if not self.every:
            return np.asarray(row)
        held = (np.asarray(row) + self.every - 1 - self.every // 2) // self.every
        return held if self.held else row - held

    def _whole(self, rows: Indices) -> Indices:
        """Return the numbers among all rows of rows of this part."""
        if not self.every:
            return rows.copy()
        if self.held:
            return rows * self.every + self.every // 2
        group, place = np.divmod(rows, self.every - 1)
        return group * self.every + place + (place >= self.every // 2)

    def order(self, seed: int, position: int, count: int) -> Indices:
        """Return rows from a position on in an endless stream of epochs, shuffled within windows of blocks."""
        return windowed(self.lengths, seed, position, count, self.window)

    def about(self, indices: Indices) -> Batch:
        """Return the annotations of rows."""
        return self._batch(self._cells(indices))

    def take(self, indices: Indices) -> Batch:
        """Decode rows; another row replaces one that cannot be read, with one warning."""
        cells = self._cells(indices)
        pixels = []
        for place, (row, cell) in enumerate(zip(indices.tolist(), cells, strict=True)):
            found, tried = self._decoded(cell), 0
            while found is None:
                tried, row = tried + 1, (row + 1) % len(self)
                if tried > self.window:
                    raise UserError(f"none of {tried:,} pictures in {self.root} can be read: check the path")
                cells[place] = self._cells(np.array([row]))[0]
                found = self._decoded(cells[place])
            pixels.append(found)
        return self._batch(cells)._replace(x=torch.from_numpy(np.stack(pixels)))

    def _decoded(self, cell: "Cell") -> Pixels | None:
        """Return the pixels of a row, or None if they cannot be read, which is said once."""
        try:
            return read_picture(cell.picture, *self.shape)
        except UnreadableError as error:
            self._say(str(cell.picture), f"skipped {cell.picture}: {error}")
            return None

    def _say(self, what: object, sentence: str) -> None:
        """Warn once."""
        if what not in self._bad:
            self._bad.add(what)
            warnings.warn(sentence, stacklevel=4)

    def _cells(self, indices: Indices) -> "list[Cell]":
        """Read rows, each shard's at once; rows of a shard that cannot be read are replaced by those of the next."""
        rows = self._whole(indices)
        found: list[Cell | None] = [None] * len(rows)
        for _ in range(len(self.shards)):
            open_ = np.array([place for place, cell in enumerate(found) if cell is None], np.int64)
            if not len(open_):
                break
            which = np.searchsorted(self.firsts, rows[open_], side="right") - 1
            for number in np.unique(which).tolist():
                places = open_[which == number]
                for place, cell in zip(places.tolist(), self._of(number, rows[places]) or [], strict=False):
                    found[place] = cell
                if found[places[0]] is None:
                    rows[places] = self._elsewhere(number, rows[places])
        cells = [cell for cell in found if cell is not None]
        if len(cells) < len(rows):
            raise EnvironmentFailure(f"none of the shards in {self.root} can be read any more: check the disk")
        return cells

    def _elsewhere(self, number: int, rows: Indices) -> Indices:
        """Return rows of the next shard in place of those of one."""
        after = (number + 1) % len(self.shards)
        first, end = self.firsts[after], self.firsts[after + 1]
        own = self._own(first) + (rows - self.firsts[number]) % max(1, self._own(end) - self._own(first))
        return self._whole(own)

    def _of(self, number: int, rows: Indices) -> "list[Cell] | None":
        """Return rows of one shard, or None if it cannot be read, which is said once."""
        shard = self.shards[number]
        own = rows - self.firsts[number]
        try:
            cells = shard.read(own)
        except (OSError, ValueError) as error:
            self._say(shard.path, f"{shard.path} is skipped: {error}")
            return None
        names = {name: place for place, name in enumerate(self.classes)}
        numbers = [names[name] for name in shard.classes]
        return [
            Cell(
                Member(shard.path, f"{row + 1:,}", Place(0, len(picture), content=picture)),
                numbers[label] if 0 <= label < len(numbers) else -1,
                "" if cells.captions is None else cells.captions[place],
            )
            for place, (row, picture, label) in enumerate(
                zip(own.tolist(), cells.pictures, cells.labels.tolist(), strict=True)
            )
        ]

    def _batch(self, cells: "list[Cell]") -> Batch:
        """Return the annotations of cells."""
        labels = torch.tensor([cell.label for cell in cells]) if self.classes else None
        captions = [cell.caption for cell in cells] if self.shards[0].captioned else None
        files = [f"{cell.picture.archive.name}/{cell.picture.name}" for cell in cells]
        return Batch(torch.empty(len(cells), 0), labels, captions, None, files)


class Cell(NamedTuple):
    """A row.

    Attributes:
        picture: Its encoded picture.
        label: The number of its class, or -1.
        caption: Its caption.
    """

    picture: Member
    label: int
    caption: str


def streams(path: str) -> bool:
    """Return whether a path is that of shards which are too large to be read at once: more than 1 GiB of them."""
    try:
        return sum(file.stat().st_size for file in _files(existing(path, ARCHIVES))) > WHOLE
    except (OSError, MissingDataError):
        return False


def _files(place: Path) -> list[Path]:
    """Return the shards at a path, itself or in a folder that holds no pictures of its own."""
    if place.is_file():
        return [place] if place.suffix.lower() in SHARDS else []
    if any(Path(name).suffix.lower() in SUFFIXES for name in walk(place, SUFFIXES).files):
        return []
    return sorted(one for one in place.rglob("*") if one.suffix.lower() in SHARDS and one.is_file())


def shards(
    path: str = "",
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    heldout: int = 5000,
    window: int | None = None,
) -> Data:
    """Shards of pictures that are read as they are trained on, in memory that does not grow with their number.

    A picture's class is in `.cls`, or under "label" or "class" of its `.json`, or in the column `label`; its caption in
    `.txt`, under "text" or "caption", or in a column of these names. Rows are shuffled in two steps: the blocks of all
    shards (tars, or row groups of Parquet files), and then the rows of a window over these.

    Args:
        path: A folder of tars or Parquet files, or one of them.
        size: Side, or [height, width]; default: what suits the pictures.
        channels: 1 or 3; default: what suits the pictures.
        heldout: Rows to hold out, evenly spaced, at most a tenth of all.
        window: Rows among which rows are shuffled; default: 65,536, or as many as 256 MB hold of a Parquet file.

    Raises: UserError: If there are no shards, or one is damaged, or its classes or captions are missing.
    """
    place = existing(path, SHARDS)
    files = _files(place)
    if not files:
        raise UserError(f"{place} contains no shards ({', '.join(sorted(SHARDS))}): check the path")
    if heldout < 1 or (window is not None and window < 1):
        raise UserError(f"data.heldout and data.window must be 1 or more, not {heldout} and {window}")
    console = Console(stderr=True)
    train, held, notes = _parted(files, place)
    console = Console(stderr=True)
    files = [*train, *held]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # which mostly wait for the disk
        found = list(track(pool.map(_opened, files), "reading the headers of shards", len(files), console=console))
    _agree(kept := [shard for shard in found if _rows([shard])])
    parts = [tuple(shard for shard in kept if (shard.path in held) == which) for which in (False, True)]
    rows = _rows(kept)
    if not _rows(parts[0]) or rows < 2 or (held and not _rows(parts[1])):
        raise UserError(
            f"{place} contains {rows:,} pictures in {len(files):,} shards: each part needs one, and all two"
        )
    every = 0 if held else max(2, rows // min(heldout, max(1, rows // 10)))
    shape, classes = (
        _shape(kept, size, channels),
        tuple(sorted({name for one in kept for name in one.classes}, key=natural)),
    )
    heaviest = max(shard.held for shard in kept)
    shuffled = window or max(1, min(WINDOW, int(BYTES / heaviest) if heaviest else WINDOW))
    said: set[object] = set()
    sentences = (*notes, *(note for shard in found for note in shard.notes), UNSEEN)
    return Data(
        ShardRows(parts[0], place, shape, classes, every, False, shuffled, sentences, said),
        ShardRows(parts[1] if held else parts[0], place, shape, classes, every, True, shuffled, (), said),
    )


def _rows(found: Sequence[Shard]) -> int:
    """Return how many rows there are."""
    return sum(sum(shard.blocks) for shard in found)


def _parted(files: Sequence[Path], place: Path) -> tuple[list[Path], set[Path], tuple[str, ...]]:
    """Return the shards to train on, those that their names or folders say are held out, and what is not used.

    Of several kinds of the second the first in the order of `HELD` is held out. Where all names say it, none is.
    """
    kinds: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", str(file.relative_to(place if place.is_dir() else file.parent)).lower())
        kinds.setdefault(next((word for word in HELD if word in words), ""), []).append(file)
    train = kinds.pop("", [])
    if not train:
        return list(files), set(), ()
    first = min(kinds, key=HELD.index, default="")
    notes = tuple(
        f"not used ({len(own):,}): shards named {kind!r}, since those named {first!r} are held out: "
        f"{few([file.name for file in own])}"
        for kind, own in kinds.items()
        if kind != first
    )
    return train, set(kinds.get(first, [])), notes


def _agree(found: Sequence[Shard]) -> None:
    """Refuse shards of which some have classes or captions and others have none."""
    for what, has in (("classes", lambda shard: bool(shard.classes)), ("captions", lambda shard: shard.captioned)):
        without = [shard for shard in found if not has(shard)]
        if 0 < len(without) < len(found):
            raise UserError(
                f"{without[0].path} has no {what}, and {len(found) - len(without):,} other shards have some: add them, "
                "or move it elsewhere"
            )


def _shape(found: Sequence[Shard], size: int | Sequence[int] | None, channels: int | None) -> tuple[int, int, int]:
    """Return the shape of a row: as asked, else what suits some of the pictures."""
    seen = []
    for shard in found[:: -(-len(found) // LOOKED)]:
        count = sum(shard.blocks)
        rows = np.unique(np.linspace(0, count - 1, min(count, max(1, LOOKED // len(found)))).astype(np.int64))
        for picture in shard.read(rows).pictures:
            try:
                seen.append(describe_picture(Member(shard.path, "", Place(0, len(picture), content=picture))))
            except UnreadableError:
                continue
    if not seen:
        raise UserError(f"none of the pictures in {found[0].path} and other shards can be read: check the path")
    own, *sides = suited(seen)
    height, width = sides_of(size) or sides
    own = own if channels is None else channels
    if own not in (1, 3):
        raise UserError(f"data.channels of shards must be 1 or 3, not {own}")
    return own, height, width


def _opened(path: Path) -> Shard:
    """Index a shard, or return its index if it was made before.

    Raises: UserError: If it is damaged.
    """
    try:
        return _indexed(path, Stamp.of(path))
    except PermissionError:
        raise UserError(f"{path} may not be read by you: change its permissions with chmod") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no shard of pictures ({error}): pack or fetch it again") from error


@lru_cache(maxsize=1 << 16)  # a recipe looks at them, and then the training does
def _indexed(path: Path, stamp: Stamp) -> Shard:
    """Index a shard."""
    return Groups.of(path, stamp) if path.suffix.lower() in TABLES else Tar.of(path, stamp)


def _sums(lengths: Sequence[int]) -> Whole:
    """Return the sums of the lengths before each, and of all."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
