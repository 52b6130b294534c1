"""A Parquet file of pictures as one shard of a data set: row groups are read as they are needed, and some are kept."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfog.data.source import Indices
from unfog.data.tables import Columns, bytes_of, columns_of, named
from unfog.data.tars import SIGNED, Cells, Stamp

KEPT = 1 << 29
"""Bytes of row groups that are kept in memory, at most, unless two are larger."""
_groups: "OrderedDict[tuple[Path, Stamp, int], tuple[Any, int]]" = OrderedDict()


@dataclass(frozen=True)
class Groups:
    """A Parquet file, see `unfog.data.tables`.

    Attributes:
        path: The file.
        stamp: What it was when its footer was read.
        blocks: Rows of each row group.
        classes: Names of its classes.
        columns: What is read of it.
        notes: What to say of it.
        held: Bytes of a row.
    """

    path: Path
    stamp: Stamp
    blocks: tuple[int, ...]
    classes: tuple[str, ...]
    columns: Columns
    notes: tuple[str, ...]
    held: float

    @classmethod
    def of(cls, path: Path, stamp: Stamp) -> "Groups":
        """Read a file's footer, and its column of classes.

        Raises: UserError: Without pyarrow, or if there are no pictures.
            OSError, ValueError: If it is damaged.
        """
        columns = columns_of(path)
        about = columns.file.metadata
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
        rows = tuple(int(group.num_rows) for group in groups)
        size = sum(group.total_byte_size for group in groups)
        unused = [name for name in columns.names if name not in columns.used]
        notes = (f"{path.name}: columns that are not used: {', '.join(unused)}",) if unused else ()
        return cls(path, stamp, rows, columns.classes_in_use(), columns, notes, size / max(1, sum(rows)))

    @property
    def captioned(self) -> bool:
        """Whether there is a column of captions."""
        return self.columns.text is not None

    def read(self, rows: Indices) -> Cells:
        """Read rows by their numbers; their row groups stay in memory for a while."""
        if Stamp.of(self.path) != self.stamp:
            raise OSError("it changed since the training began")
        firsts = np.concatenate([[0], np.cumsum(self.blocks)])
        which = np.searchsorted(firsts, rows, side="right") - 1
        numbers = {name: place for place, name in enumerate(self.classes)}
        columns, pictures, labels, texts = self.columns, [], [], []
        for row, number in zip(rows.tolist(), which.tolist(), strict=True):
            cell = {name: column[row - int(firsts[number])].as_py() for name, column in self._group(number).items()}
            pictures.append(bytes_of(cell[columns.picture]))
            label = None if columns.label is None else cell[columns.label]
            labels.append(-1 if label is None else numbers[named(label, columns.classes)])
            texts.append("" if columns.text is None else str(cell[columns.text] or ""))
        return Cells(pictures, np.array(labels, np.int64), texts if self.captioned else None)

    def _group(self, number: int) -> dict[str, Any]:
        """Return the columns of a row group, from memory or else read."""
        key = (self.path, self.stamp, number)
        if key not in _groups:
            table = self.columns.file.read_row_group(number, columns=list(self.columns.used))
            _groups[key] = {name: table.column(name) for name in self.columns.used}, int(table.nbytes)
            while len(_groups) > 2 and sum(size for _, size in _groups.values()) > KEPT:
                _groups.popitem(last=False)
        _groups.move_to_end(key)
        return _groups[key][0]  # type: ignore[no-any-return]  # pyarrow has no types

    def signature(self) -> str:
        """Return the hash of what the footer says of all rows, and of the first rows themselves."""
        about = self.columns.file.metadata
        sizes = [about.row_group(number).total_byte_size for number in range(about.num_row_groups)]
        sha = hashlib.sha256(repr((self.blocks, sizes, self.classes)).encode())
        found = self.read(np.arange(min(SIGNED, self.blocks[0]), dtype=np.int64))
        for picture in found.pictures:
            sha.update(picture)
        sha.update(repr((found.labels.tolist(), found.captions)).encode())
        return sha.hexdigest()
