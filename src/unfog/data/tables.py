"""Parquet files of pictures as `datasets` writes them: a column of encoded pictures, with labels and captions."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfog.runtime.errors import UserError

PICTURES = ("image", "img", "picture", "jpg", "png")
LABELS = ("label", "labels", "class")
TEXTS = ("text", "caption", "prompt")
"""Names of columns: the first that is there is used."""
GROUP, TOTAL, PORTION = 1 << 31, 1 << 30, 256
"""Bytes of a row group and of all pictures, at most, and rows that are read at a time."""


def rows_of(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the contents of the files that the rows of a Parquet file stand for.

    The first word of a file's name, as in `train-00000-of-00002.parquet`, is the folder of its rows. A picture's class
    and caption are files of its name, `.cls` and `.txt`. Columns that are not read are empty files.

    Raises: UserError: Without pyarrow, or if there are no pictures, or more bytes of them than are kept in memory.
        ValueError, OSError: If the file is damaged.
    """
    found = columns_of(path)
    column, label, text = found.picture, found.label, found.text
    stem, total, row = f"{path.stem.split('-')[0]}/{path.stem}", 0, 0
    for batch in found.file.iter_batches(batch_size=PORTION, columns=list(found.used)):
        for cells in batch.to_pylist():
            content = bytes_of(cells[column])
            total += len(content)
            if total > TOTAL:
                raise UserError(f"{path} holds more than {TOTAL:,} bytes of pictures: unpack them into a folder")
            name = f"{stem}-{row:08}"
            yield f"{name}.png", content  # a picture's kind is told by its contents
            if label is not None and cells[label] is not None:
                yield f"{name}.cls", named(cells[label], found.classes).encode()
            if text is not None and cells[text] is not None:
                yield f"{name}.txt", str(cells[text]).encode()
            row += 1
    for name in found.names:
        if name not in found.used:
            yield f"{path.name}/{name} (column)", b""


@dataclass(frozen=True)
class Columns:
    """What is read of a Parquet file.

    Attributes:
        file: The file, opened by pyarrow.
        names: Names of its columns.
        picture: The column of pictures.
        label: The column of classes, if there is one.
        text: The column of captions, if there is one.
        classes: Names of the classes whose numbers the column holds; empty where it holds names.
    """

    file: Any
    names: tuple[str, ...]
    picture: str
    label: str | None
    text: str | None
    classes: tuple[str, ...]

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that are read."""
        return tuple(name for name in (self.picture, self.label, self.text) if name is not None)

    def classes_in_use(self) -> tuple[str, ...]:
        """Return the names of all classes: those that the file names, else those that its rows have.

        Raises: ValueError: If rows have no class, or one that the file does not name.
        """
        if self.label is None:
            return ()
        batches = self.file.iter_batches(batch_size=1 << 16, columns=[self.label])
        found = dict.fromkeys(cell for batch in batches for cell in batch.column(0).unique().to_pylist())
        names = dict.fromkeys(named(cell, self.classes) for cell in found if cell is not None)
        if None in found or (self.classes and not names.keys() <= set(self.classes)):
            raise ValueError(f"the column {self.label!r} has rows without a class")
        return self.classes or tuple(names)


def columns_of(path: Path) -> Columns:
    """Open a Parquet file of pictures, after checking that its row groups fit into memory.

    Raises: UserError: Without pyarrow, or if there are no pictures.
        ValueError, OSError: If the file is damaged.
    """
    table, names = _opened(path)
    picture, label, text = (_first(choice, names) for choice in (PICTURES, LABELS, TEXTS))
    if picture is None:
        raise UserError(f"{path} has no column of pictures ({', '.join(PICTURES)}), only {', '.join(names)}")
    return Columns(table, tuple(names), picture, label, text, _class_names(table.schema_arrow.metadata, label))


def _opened(path: Path) -> tuple[Any, list[str]]:
    """Return a Parquet file and the names of its columns, after checking that its groups fit into memory."""
    try:
        import pyarrow.parquet  # imported here, since it is an extra
    except ImportError:
        raise UserError(
            f"{path} is a Parquet file, and to read it pyarrow is missing: install it with pip install 'unfog[parquet]'"
        ) from None
    table = pyarrow.parquet.ParquetFile(path)
    sizes = [table.metadata.row_group(group).total_byte_size for group in range(table.metadata.num_row_groups)]
    if max(sizes, default=0) > GROUP:
        raise ValueError(f"a row group of {max(sizes):,} bytes is too large")
    return table, [str(name) for name in table.schema_arrow.names]


def _first(choice: tuple[str, ...], names: list[str]) -> str | None:
    """Return the first of some names that is there."""
    return next((name for name in choice if name in names), None)


def bytes_of(cell: object) -> bytes:
    """Return the encoded picture of a cell; none is an unreadable one."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    return content if isinstance(content, bytes) else b""


def _class_names(metadata: Mapping[bytes, bytes] | None, label: str | None) -> tuple[str, ...]:
    """Return the names of the classes that `datasets` wrote into a file's metadata, empty if it wrote none."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (ValueError, KeyError, TypeError):
        return ()


def named(label: object, classes: Sequence[str]) -> str:
    """Return the name of a class."""
    if isinstance(label, int) and 0 <= label < len(classes):
        return classes[label]
    return str(label)
