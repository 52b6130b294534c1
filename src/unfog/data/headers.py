"""The pictures of a WebDataset tar, found from all of its headers at once and not unpacked."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unfog.data.packed import BLOCK, tar_members
from unfog.data.pictures import SUFFIXES
from unfog.data.tables import LABELS, TEXTS
from unfog.runtime.lines import counted

Bytes = NDArray[np.uint8]
Whole = NDArray[np.int64]
ROW = np.dtype([("offset", "<i8"), ("size", "<i8"), ("label", "<i4"), ("text", "<i8"), ("words", "<i8"), ("json", "?")])
"""What is known of a picture: where its bytes are, the number of its class or -1, where its caption is, or -1, and
whether that is in a `.json`."""
MARK, NAME, SIZE, KIND, PREFIX = slice(257, 262), slice(0, 100), slice(124, 136), 156, slice(345, 500)
"""Fields of a header."""
CLASS, CAPTIONS, BOTH = b".cls", (b".txt", b".caption"), b".json"
"""Suffixes of what is known of a picture, which has the same name up to the first dot."""
SHORT = 64
"""Bytes of a class's name and of a pax header that is not read for itself, at most."""
LONGEST = 255
"""Bytes of a name, at most."""
PORTION = 1 << 16
"""Headers that are in memory at a time."""
KNOWN = 1 << 20
"""Bytes of a caption or of a `.json`, at most."""


class Members(NamedTuple):
    """The regular files of a tar in their order.

    Attributes:
        names: Their names, bytes of one length.
        offsets: The first byte of each.
        sizes: The bytes of each.
        cut: Why the tar ends early; empty if it does not.
    """

    names: NDArray[np.bytes_]
    offsets: Whole
    sizes: Whole
    cut: str = ""


class Indexed(NamedTuple):
    """The pictures of a tar.

    Attributes:
        rows: Where they are, `ROW` each.
        classes: Names of their classes; a row's label is a number of these.
        notes: What to say of it.
    """

    rows: NDArray[np.void]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def indexed(path: Path) -> Indexed:
    """Find the pictures of a tar, with their classes and captions.

    Files that have the same name up to the first dot of its last part are one row: a picture, and beside it a class
    (`.cls`), a caption (`.txt`, `.caption`) or both (`.json`).

    Raises: ValueError, OSError: If it is no tar.
    """
    content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    members = _at_once(content)
    if members is None:
        members = _in_turn(path)
    return _paired(content, members, path)


def _at_once(content: Bytes) -> Members | None:
    """Return the files of a tar from a look at every block, or None where the headers must be read one after another.

    Blocks with a header's mark are the headers, if each lies where the one before it says. That is so for the tars that
    WebDataset, tar and Python write, unless names are long.
    """
    blocks = content[: len(content) // BLOCK * BLOCK].reshape(-1, BLOCK)
    places = np.flatnonzero(blocks[:, MARK.start] == ord("u"))
    places = places[(blocks[places, MARK] == np.frombuffer(b"ustar", np.uint8)).all(1)]
    if not len(places) or places[0]:
        return None
    heads = [_fields(blocks[part]) for part in np.array_split(places, -(-len(places) // PORTION))]
    sizes, kinds, names, plain = (np.concatenate(field) for field in zip(*heads, strict=True))
    after = places + 1 + -(-sizes // BLOCK)
    regular, extended = (np.isin(kinds, np.frombuffer(letters, np.uint8)) for letters in (b"0\0", b"xg"))
    strange = not (regular | extended | (kinds == ord("5"))).all() or not plain.all()
    if strange or (after[:-1] != places[1:]).any() or not _plain(blocks, places[extended], sizes[extended]):
        return None
    cut = "" if after[-1] <= len(blocks) else "it is cut off"
    if not cut and blocks[after[-1] :].any():
        return None  # something follows that is no header
    whole = (after <= len(blocks)) & regular
    return Members(names[whole], BLOCK * (places[whole] + 1), sizes[whole], cut)


def _fields(heads: Bytes) -> tuple[Whole, Bytes, NDArray[np.bytes_], NDArray[np.bool_]]:
    """Return of each header the size, the kind and the name, and whether these say all: no prefix, no other digits."""
    sizes, readable = _octal(heads[:, SIZE])
    names = np.ascontiguousarray(heads[:, NAME]).view("S100")[:, 0]
    shorter = names.astype(f"S{max(1, int(np.char.str_len(names).max()))}")
    return sizes, heads[:, KIND].copy(), shorter, readable & ~heads[:, PREFIX].any(1)


def _plain(blocks: Bytes, places: Whole, sizes: Whole) -> bool:
    """Return whether extended headers are short, and say nothing of a file's name or size."""
    if (sizes > SHORT).any() or (places + 1 >= len(blocks)).any():
        return False
    bodies = np.ascontiguousarray(blocks[places + 1, :SHORT]).view(f"S{SHORT}")[:, 0]
    return not any((np.char.find(bodies, key) >= 0).any() for key in (b"path=", b"size="))


def _octal(digits: Bytes) -> tuple[Whole, NDArray[np.bool_]]:
    """Return numbers of octal digits, `(count, 12)`, and whether nothing else stands before a space or zero."""
    found = np.zeros(len(digits), np.int64)
    over, readable = np.zeros(len(digits), bool), np.ones(len(digits), bool)
    for column in digits.T:
        digit = (column >= ord("0")) & (column <= ord("7"))
        over |= (column == 0) | (column == ord(" "))
        readable &= digit | over
        found = np.where(over, found, 8 * found + column.astype(np.int64) - ord("0"))
    return found, readable


def _in_turn(path: Path) -> Members:
    """Return the files of a tar, whose headers are read one after another; of one that is cut off, those before."""
    names: list[bytes] = []
    places: list[tuple[int, int]] = []
    cut = ""
    try:
        for name, place in tar_members(path):
            encoded = name.encode("utf-8", "surrogateescape")
            if len(encoded) > LONGEST:
                raise ValueError(f"a name has more than {LONGEST} bytes")
            names.append(encoded)
            places.append((place.offset, place.size))
    except ValueError as error:
        if not names:
            raise
        cut = str(error)
    table = np.array(places, np.int64).reshape(-1, 2)
    return Members(np.array(names, "S"), table[:, 0], table[:, 1], cut)


def _paired(content: Bytes, members: Members, path: Path) -> Indexed:
    """Return the rows that the files of a tar make."""
    keys, suffixes = _parted(members.names)
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    group = np.cumsum(np.isin(np.arange(len(keys)), starts)) - 1
    pictures = np.flatnonzero(np.isin(suffixes, [suffix.encode() for suffix in SUFFIXES]))
    own, first = np.unique(group[pictures], return_index=True)
    rows = np.zeros(len(own), ROW)
    rows["offset"], rows["size"] = members.offsets[pictures[first]], members.sizes[pictures[first]]
    rows["label"], rows["text"] = -1, -1
    notes = [members.cut + f": what lies before, {counted(len(rows), 'picture')}, is used"] if members.cut else []
    if many := len(pictures) - len(own):
        notes.append(f"not used, since one before has the same name: {counted(many, 'picture')}")
    beside = {suffix: np.flatnonzero(suffixes == suffix) for suffix in (CLASS, *CAPTIONS, BOTH)}
    classes: tuple[str, ...] = ()
    for suffix in (*CAPTIONS, BOTH):
        at, which = _matched(own, group, beside[suffix])
        free = rows["text"][at] < 0
        at, which = at[free], which[free]
        rows["text"][at], rows["words"][at], rows["json"][at] = (
            members.offsets[which],
            members.sizes[which],
            suffix == BOTH,
        )
    without = int((rows["text"] < 0).sum())
    if 0 < without < len(rows):
        notes.append(f"without a caption, and given an empty one: {counted(without, 'picture')}")
    at, which = _matched(own, group, beside[CLASS])
    if len(at):
        classes, rows["label"][at] = _named(content, members.offsets[which], members.sizes[which])
    elif len(beside[BOTH]):
        at, which = _matched(own, group, beside[BOTH])
        classes, rows["label"][at] = _listed(content, members.offsets[which], members.sizes[which])
    if classes and (rows["label"] < 0).any():
        raise ValueError(f"no class for {int((rows['label'] < 0).sum()):,} of its {counted(len(rows), 'picture')}")
    return Indexed(rows, classes, tuple(f"{path.name}: {note}" for note in notes))


def _parted(names: NDArray[np.bytes_]) -> tuple[NDArray[np.bytes_], NDArray[np.bytes_]]:
    """Return names up to the first dot of their last part, and the rest in lower case."""
    width = max(1, names.dtype.itemsize)
    letters = np.ascontiguousarray(names).view(np.uint8).reshape(len(names), width)
    columns = np.arange(width)
    slash = np.where(letters == ord("/"), columns, -1).max(1, initial=-1)
    dots = (letters == ord(".")) & (columns > slash[:, None])
    dot = np.where(dots.any(1), dots.argmax(1), width)
    keys = np.ascontiguousarray(np.where(columns < dot[:, None], letters, 0)).view(f"S{width}")[:, 0]
    ends = np.minimum(dot[:, None] + np.arange(10), width - 1)
    tails = np.where(dot[:, None] + np.arange(10) < width, np.take_along_axis(letters, ends, 1), 0)
    return keys, np.char.lower(np.ascontiguousarray(tails).view("S10")[:, 0])


def _matched(own: Whole, group: Whole, files: Whole) -> tuple[Whole, Whole]:
    """Return the rows that have such a file beside their picture, and the files."""
    place = np.searchsorted(own, group[files])
    there = (place < len(own)) & (own[np.minimum(place, len(own) - 1)] == group[files]) if len(own) else place < 0
    return place[there], files[there]


def _named(content: Bytes, offsets: Whole, sizes: Whole) -> tuple[tuple[str, ...], Whole]:
    """Return the names of classes that are written in short files, and the number of each file's.

    Raises: ValueError: If one is too long.
    """
    if (sizes > SHORT).any():
        raise ValueError(f"a class's name has more than {SHORT} bytes")
    letters = content[np.minimum(offsets[:, None] + np.arange(SHORT), len(content) - 1)]
    letters = np.where(np.arange(SHORT) < sizes[:, None], letters, 0)
    texts = np.char.strip(np.ascontiguousarray(letters).view(f"S{SHORT}")[:, 0])
    names, numbers = np.unique(texts, return_inverse=True)
    return tuple(name.decode("utf-8", "replace") for name in names.tolist()), numbers


def _listed(content: Bytes, offsets: Whole, sizes: Whole) -> tuple[tuple[str, ...], Whole]:
    """Return the names of classes that `.json` files give as "label" or "class", and the number of each file's."""
    names: dict[str, int] = {}
    numbers = [
        -1 if label is None else names.setdefault(label, len(names)) for label in _labels(content, offsets, sizes)
    ]
    return tuple(names), np.array(numbers, np.int64)


def _labels(content: Bytes, offsets: Whole, sizes: Whole) -> Iterator[str | None]:
    """Yield the class that each `.json` file gives."""
    for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
        found = entry(content[offset : offset + size].tobytes())
        label = next((found[key] for key in LABELS if key in found), None)
        yield None if label is None else str(label)


def entry(text: bytes) -> dict[str, object]:
    """Return what a `.json` file says of its picture; nothing if it is damaged, too long or no object."""
    try:
        found = json.loads(text) if len(text) <= KNOWN else None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def caption(text: bytes, listed: bool) -> str:
    """Return the caption in a file beside a picture: all of it, or what a `.json` says under "text" or "caption"."""
    if listed:
        found = entry(text)
        return str(next((found[key] for key in TEXTS if key in found), ""))
    return text[:KNOWN].decode("utf-8", "replace").strip()
