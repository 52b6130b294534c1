"""What the listing of a folder says: its pictures, what is known of each, and what is there but not used."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch

from unfog.data.packed import Packed
from unfog.runtime.errors import UserError

MARKS = 1 << 27
"""Entries of the multi-label table, at most."""
NAMED = 3
"""Names that a sentence lists, at most."""


class Kind(NamedTuple):
    """The kind of files that a folder of data holds.

    Attributes:
        one: What a file is called in sentences.
        many: The plural.
        suffixes: Their suffixes, in lower case.
    """

    one: str
    many: str
    suffixes: frozenset[str]

    def holds(self, name: str) -> bool:
        """Return whether a file is of this kind, by its name."""
        return name.lower().endswith(tuple(self.suffixes))


class Annotations(NamedTuple):
    """Annotations of some files, as `InMemory` takes them."""

    labels: torch.Tensor | None
    classes: tuple[str, ...]
    captions: tuple[str, ...] | None
    values: torch.Tensor | None
    files: tuple[str, ...]


class Unused:
    """What is there but not used: why, and which names."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.names: dict[str, list[str]] = {}

    def add(self, why: str, names: Iterable[str]) -> None:
        """Record names that one reason keeps from being used."""
        if new := list(names):
            self.names.setdefault(why, []).extend(new)

    def sentences(self) -> tuple[str, ...]:
        """Return a sentence for each reason, with the count and the first names."""
        return tuple(f"not used ({len(names):,}): {why}: {few(names)}" for why, names in self.names.items())


def few(names: Sequence[str], most: int = NAMED) -> str:
    """Return the first few names, comma-separated."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


@dataclass(frozen=True)
class Listing:
    """The contents of a folder.

    Attributes:
        root: The folder, or the archives.
        files: Names of the images relative to `root`, sorted.
        labels: Class index of each file, or for multi-label data one bool per class, or None.
        classes: Names of the classes.
        captions: One text per file, if there are any.
        values: Numbers per file, if there are any.
        held: Whether each file is held out, where the folder itself says so.
        unused: What is there but not used.
        notes: Sentences about what was done with what is there.
        many: What the files are called.
    """

    root: Path | Packed
    files: tuple[str, ...]
    labels: tuple[int, ...] | tuple[tuple[bool, ...], ...] | None
    classes: tuple[str, ...]
    captions: tuple[str, ...] | None = None
    values: tuple[tuple[float, ...], ...] | None = None
    held: tuple[bool, ...] | None = None
    unused: Unused = field(default_factory=Unused, compare=False)
    notes: tuple[str, ...] = ()
    many: str = "pictures"

    def some(self, rows: Sequence[int]) -> "Listing":
        """Return the listing of some of its files."""
        if len(rows) == len(self.files):
            return self
        return replace(
            self,
            files=tuple(self.files[row] for row in rows),
            labels=None if self.labels is None else tuple(self.labels[row] for row in rows),  # type: ignore[arg-type]
            captions=None if self.captions is None else tuple(self.captions[row] for row in rows),
            values=None if self.values is None else tuple(self.values[row] for row in rows),
            held=None if self.held is None else tuple(self.held[row] for row in rows),
        )

    def annotated(self, rows: Sequence[int]) -> Annotations:
        """Return the annotations of these files."""
        labels = None if self.labels is None else torch.tensor([self.labels[row] for row in rows])
        values = None if self.values is None else torch.tensor([self.values[row] for row in rows])
        captions = None if self.captions is None else tuple(self.captions[row] for row in rows)
        return Annotations(labels, self.classes, captions, values, tuple(self.files[row] for row in rows))


def natural(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Return a key that sorts names as people do: 2 before 10, and letters before digits."""
    parts = re.findall(r"\d+|\D+", unicodedata.normalize("NFKC", name).casefold())
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts), name


def shorter_first(name: str) -> tuple[int, str]:
    """Return the key that sorted the labels of metadata under the first rules: by length, then by the name."""
    return len(name), name


Entry = Mapping[str, object]
"""What is known of a picture: `label`, `text` and `values`, where given."""


def annotate(where: str, entries: Mapping[str, Entry], rules: int) -> Listing:
    """Return the listing, without a root, of files of which something is known.

    Args:
        where: What says it, for messages.
        entries: What is known of each file.
        rules: Version of the reading rules.

    Raises: UserError: If something is known of some files only, or does not fit together.
    """
    files = tuple(sorted(entries))
    labels, texts, numbers = ([entries[file].get(key) for file in files] for key in ("label", "text", "values"))
    for key, column in (("label", labels), ("text", texts), ("values", numbers)):
        without = [file for file, value in zip(files, column, strict=True) if value is None]
        if 0 < len(without) < len(files):
            raise UserError(
                f"{where}: {key!r} is missing for {without[0]} ({len(without)} in all): set it in all lines or none"
            )
    captions = tuple(str(text) for text in texts) if all(text is not None for text in texts) else None
    values = None if any(row is None for row in numbers) else tuple(_numbers(where, row) for row in numbers)
    if values is not None and len({len(row) for row in values}) > 1:
        raise UserError(f"{where}: 'values' differs in length between lines: correct the lines")
    nowhere = Path()
    if any(label is None for label in labels) or all(label == [] for label in labels):
        return Listing(nowhere, files, None, (), captions, values)
    names = [set(map(str, label)) if isinstance(label, list) else {str(label)} for label in labels]
    order = shorter_first if rules == 1 else natural
    classes = tuple(sorted(set().union(*names), key=order))
    if any(isinstance(label, list) for label in labels):
        if len(files) * len(classes) > MARKS:
            raise UserError(f"{where}: {len(classes):,} labels for {len(files):,} files are too many: use fewer labels")
        multi_hot = tuple(tuple(name in row for name in classes) for row in names)
        return Listing(nowhere, files, multi_hot, classes, captions, values)
    index = {name: place for place, name in enumerate(classes)}
    return Listing(nowhere, files, tuple(index[next(iter(row))] for row in names), classes, captions, values)


def _numbers(where: str, row: object) -> tuple[float, ...]:
    """Return the numbers of one line."""
    items = row if isinstance(row, list) else [row]
    limit = torch.finfo(torch.float32).max  # infinities and NaN fail the comparison too
    numbers = [item for item in items if isinstance(item, int | float) and not isinstance(item, bool)]
    numbers = [number for number in numbers if abs(number) <= limit]
    if len(numbers) < len(items):
        raise UserError(f"{where}: 'values' must be a list of numbers, not {row!r}: correct the line")
    return tuple(map(float, numbers))
