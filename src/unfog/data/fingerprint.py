"""What the rows of a data set are, by their contents: the same wherever the folder lies, whatever its files' dates."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from unfog.data.buckets import shapes_of
from unfog.data.folder import Streamed
from unfog.data.packed import Member, Packed
from unfog.data.shards import ShardRows
from unfog.data.source import Data, InMemory, Source, Subset
from unfog.data.tars import Shard
from unfog.runtime.errors import UserError
from unfog.runtime.progress import track

PORTION, DRAWN = 1024, 64
"""Rows that are hashed at a time, and rows that stand for a source whose rows are drawn on demand."""
SIGNS = 16
"""Hexadecimal digits that are kept of a file's hash: two of a million files agree by chance once in 40 million sets."""
NAMED = 3
"""Files that a sentence names, at most."""


class File(NamedTuple):
    """A file of a data set.

    Attributes:
        contents: Hash of its bytes.
        about: Hash of its class, caption and numbers.
        size: Its bytes.
        changed: When it was changed, in nanoseconds; with `size` it saves hashing the same file again.
    """

    contents: str
    about: str
    size: int
    changed: int


@dataclass(frozen=True)
class Fingerprint:
    """What the rows of a data set are.

    Attributes:
        digest: Hash of all rows, of their annotations, and of which are held out.
        train: Number of training rows.
        heldout: Number of held-out rows.
        files: The files by their names relative to the folder; empty for data that are no files.
        held_out: Names of the held-out files.
    """

    digest: str
    train: int
    heldout: int
    files: Mapping[str, File]
    held_out: frozenset[str]

    def differences(self, now: "Fingerprint") -> str:
        """Say in one clause what changed since; empty if nothing did."""
        if self.digest == now.digest:
            return ""
        before, after = self.files, now.files
        if not (before and after):
            return (
                f"{self.train:,} + {self.heldout:,} rows then, {now.train:,} + {now.heldout:,} now, with other contents"
            )
        gone, new = before.keys() - after.keys(), after.keys() - before.keys()
        places = {after[name].contents: name for name in sorted(new)}
        moved = {name: places[before[name].contents] for name in sorted(gone) if before[name].contents in places}
        both = before.keys() & after.keys()
        kinds = {
            "added": new - set(moved.values()),
            "removed": gone - moved.keys(),
            "moved": {f"{old} to {place}" for old, place in moved.items()},
            "edited": {name for name in both if before[name].contents != after[name].contents},
            "with another label, caption or number": {name for name in both if before[name].about != after[name].about},
        }
        clauses = [_clause(names, kind) for kind, names in kinds.items() if names]
        return "; ".join(clauses) or "other rows are held out"


def _clause(names: Iterable[str], kind: str) -> str:
    """Say how many files changed in one way, and name the first of them."""
    listed = sorted(names)
    more = ", ..." if len(listed) > NAMED else ""
    return f"{len(listed):,} {'file' if len(listed) == 1 else 'files'} {kind} ({', '.join(listed[:NAMED])}{more})"


def fingerprint(data: Data, known: Fingerprint | None = None) -> Fingerprint:
    """Return what the rows of a data set are.

    Args:
        data: The data set.
        known: An earlier fingerprint; files of the same name, size and time of change are not hashed again.

    Raises: UserError: If a file vanished.
    """
    train = shapes_of(data.train)
    sources = (*train, data.heldout)
    files = [_files(source, known) for source in sources]
    parts = [_rows_digest(source, own) for source, own in zip(sources, files, strict=True)]
    about = [text for source in sources for text in _described(source)]
    digest = hashlib.sha256(repr((parts, about)).encode("utf-8", "surrogateescape")).hexdigest()
    rows, every = sum(map(len, train)), {name: file for own in files for name, file in own.items()}
    return Fingerprint(digest, rows, len(data.heldout), every, frozenset(files[-1]))


def rows_digest(source: Source) -> str:
    """Return the hash of the rows of a source in their order, without their annotations.

    Of rows that come from files it is that of the files' bytes; rows that are drawn on demand are a function of the
    recipe, and the first 64 stand for all.
    """
    return _rows_digest(source, _files(source, None))


def _rows_digest(source: Source, files: Mapping[str, File]) -> str:
    """Return the hash of the rows of a source, whose files are known."""
    sha = hashlib.sha256(repr((len(source), source.shape, [file.contents for file in files.values()])).encode())
    rows = np.arange(0 if files else len(source) if isinstance(_inner(source), InMemory) else min(DRAWN, len(source)))
    for first in range(0, len(rows), PORTION):
        sha.update(source.take(rows[first : first + PORTION]).x.numpy().tobytes())
    return sha.hexdigest()


def _inner(source: Source) -> Source:
    """Return the source whose rows a source selects."""
    return source.source if isinstance(source, Subset) else source


def _files(source: Source, known: Fingerprint | None) -> dict[str, File]:
    """Return the files of a source in the order of its rows, empty if its rows are no files."""
    inner, earlier = _inner(source), {} if known is None else known.files
    if isinstance(inner, ShardRows):
        found = track(inner.shards, "checking which shards these are", console=Console(stderr=True))
        return {str(shard.path.relative_to(inner.root.parent)): _shard(shard, earlier, inner.root) for shard in found}
    root = inner.root if isinstance(inner, InMemory | Streamed) else None
    names = source.about(np.arange(len(source))).files
    if root is None or names is None:
        return {}
    hashing = partial(_file, root, earlier)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashed = pool.map(hashing, names)
        contents = list(track(hashed, "checking which pictures these are", len(names), console=Console(stderr=True)))
    described = [
        hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:SIGNS] for text in _described(source)
    ]
    return {
        name: File(found, about, size, changed)
        for name, about, (found, size, changed) in zip(names, described, contents, strict=True)
    }


def _shard(shard: Shard, earlier: Mapping[str, File], root: Path) -> File:
    """Return the entry of a shard."""
    before = earlier.get(str(shard.path.relative_to(root.parent)))
    if before is not None and (before.size, before.changed) == shard.stamp:
        return before
    return File(shard.signature(), "", *shard.stamp)


def _file(root: Path | Packed, earlier: Mapping[str, File], name: str) -> tuple[str, int, int]:
    """Return the hash of a file, its size and its time of change."""
    try:
        stat = (root / name).stat()
        before = earlier.get(name)
        if before is not None and (before.size, before.changed) == (stat.st_size, stat.st_mtime_ns):
            return before.contents, before.size, before.changed
        return _hashed(root / name, stat.st_size, stat.st_mtime_ns), stat.st_size, stat.st_mtime_ns
    except FileNotFoundError:
        raise UserError(
            f"{root / name} vanished while the data were read: start again, and change no data meanwhile"
        ) from None


@lru_cache(maxsize=1 << 20)  # a training asks for the same files twice
def _hashed(path: Path | Member, size: int, changed: int) -> str:
    """Return the hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:SIGNS]


def _described(source: Source) -> list[str]:
    """Return the annotations of each row as a text; for rows that are drawn on demand, of none."""
    inner = _inner(source)
    if not isinstance(inner, InMemory | Streamed):
        return []
    about = source.about(np.arange(len(source)))
    columns: list[list[object]] = [] if about.captions is None else [list(about.captions)]
    if about.labels is not None:
        names = source.classes
        columns.append(
            [names[row] for row in about.labels.tolist()]
            if about.labels.ndim == 1
            else [[name for name, held in zip(names, row, strict=True) if held] for row in about.labels.tolist()]
        )
    if about.values is not None:
        columns.append(about.values.tolist())
    return [repr(row) for row in zip(*columns, strict=True)] if columns else [""] * len(source)
