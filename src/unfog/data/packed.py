"""Archives that are read like folders: tars (WebDataset's shards too) and zips. They are indexed, not unpacked."""

import io
import math
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unfog.data.stacks import check_directory, row_of, stack_of
from unfog.data.tables import rows_of
from unfog.runtime.errors import UserError

TARS = frozenset({".tar"})
ZIPS = frozenset({".zip"})
STACKS = frozenset({".npy", ".npz"})
TABLES = frozenset({".parquet"})
SHARDS = TARS | TABLES
"""Suffixes of files of which a folder may hold several that are one data set."""
ARCHIVES = TARS | ZIPS | STACKS | TABLES
"""File suffixes of the archives that are read, in lower case."""
BLOCK = 512
"""Bytes of a tar's header, of which its parts are multiples."""
HEAD, LARGEST, MEMBERS = 1 << 20, 1 << 28, 5_000_000
"""Limits: bytes of an extended header and of a file, and the number of files."""
KIND, REGULAR = 0o170000, 0o100000
"""The bits of a file's mode that say what it is, and those of a regular file."""


class Place(NamedTuple):
    """Where a file of an archive is.

    Attributes:
        offset: Its first byte, or -1 in a zip.
        size: Its bytes.
        dtype: Type of the values of a row of an array.
        shape: Shape of such a row.
        content: Its bytes themselves, where they lie apart.
    """

    offset: int
    size: int
    dtype: str = ""
    shape: tuple[int, ...] = ()
    content: bytes | None = None


class Stat(NamedTuple):
    """What is asked of a file's status."""

    st_size: int
    st_mtime_ns: int


@dataclass(frozen=True)
class Member:
    """A file in an archive, which can be read as a `Path` can.

    Attributes:
        archive: The archive.
        name: The file's name in it.
        place: Where it is.
    """

    archive: Path
    name: str
    place: Place

    @property
    def suffix(self) -> str:
        """The suffix of the name."""
        return Path(self.name).suffix

    def is_file(self) -> bool:
        """Return whether it is in the archive."""
        return self.place.size >= 0

    def stat(self) -> Stat:
        """Return its size, and when the archive was changed."""
        return Stat(self.place.size, os.stat(self.archive).st_mtime_ns)

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Return its bytes as an open file.

        Raises: OSError: If it is larger than the limit, or the archive is damaged.
        """
        if not 0 <= self.place.size <= LARGEST:
            raise OSError(f"a file of {self.place.size:,} bytes in an archive is too large")
        if self.place.content is not None:
            return io.BytesIO(self.place.content)
        if self.place.offset >= 0:
            with self.archive.open("rb") as file:
                file.seek(self.place.offset)
                return io.BytesIO(file.read(self.place.size))
        try:
            with _zip(self.archive, self.stat().st_mtime_ns).open(self.name) as packed:
                return io.BytesIO(packed.read(self.place.size))
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, KeyError, ValueError) as error:
            raise OSError(f"damaged, locked by a password or packed by an unknown method ({error})") from error

    def array(self) -> NDArray[Any]:
        """Return the array of a `.npy` file, which may not be larger than the file.

        Raises: OSError, ValueError: If it is damaged, or holds Python objects.
        """
        file = self.open()
        if self.place.dtype:
            return row_of(file.read(), self.place.dtype, self.place.shape)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        array = np.frombuffer(file.read(), dtype)[: math.prod(shape)]
        return array.reshape(shape, order="F" if fortran else "C")

    def __str__(self) -> str:
        """Return the archive and the name."""
        return f"{self.archive}/{self.name}"


@dataclass(frozen=True)
class Packed:
    """The files of one or several archives.

    Attributes:
        path: The archive, or the folder of several.
        archives: The archives.
        members: Their files by name: the archive and the place in it.
    """

    path: Path
    archives: tuple[Path, ...]
    members: dict[str, tuple[Path, Place]] = field(repr=False, compare=False)

    def __reduce__(self) -> "tuple[Callable[[Path, tuple[Path, ...]], Packed], tuple[Path, tuple[Path, ...]]]":
        """Send other processes the archives, which they index themselves, once."""
        return _again, (self.path, self.archives)

    def __truediv__(self, name: str) -> Member:
        """Return one of the files, as a folder does."""
        archive, place = self.members.get(name, (self.path, Place(0, -1)))
        return Member(archive, name, place)

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)


def packed(path: Path, archives: tuple[Path, ...]) -> tuple[Packed, list[str]]:
    """Index archives, without reading what is in them.

    Args:
        path: The archive, or the folder that holds them.
        archives: The archives.

    Returns: The files, and the names that occur more than once and are used once.
    Raises: UserError: If one is damaged, or holds too many files.
    """
    members: dict[str, tuple[Path, Place]] = {}
    again = []
    for archive in archives:
        try:
            for name, place in _indexed(archive):
                if name in members:
                    again.append(f"{archive.name}/{name}")
                    continue
                members[name] = archive, place
                if len(members) > MEMBERS:
                    raise UserError(f"{archive} holds more than {MEMBERS:,} files: unpack it into a folder")
        except PermissionError:
            raise UserError(f"{archive} may not be read by you: change its permissions with chmod") from None
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{archive} is no whole archive ({error}): pack or fetch it again") from error
    return Packed(path, archives, members), again


@lru_cache(maxsize=2)
def _again(path: Path, archives: tuple[Path, ...]) -> Packed:
    """Index archives that another process has indexed."""
    return packed(path, archives)[0]


def _indexed(archive: Path) -> Iterator[tuple[str, Place]]:
    """Yield the files of an archive of any kind."""
    suffix = archive.suffix.lower()
    if suffix in TABLES:
        return ((name, Place(0, len(content), content=content)) for name, content in rows_of(archive))
    if suffix in STACKS:
        return _rows(archive)
    return tar_members(archive) if suffix in TARS else _of_zip(archive)


def _rows(archive: Path) -> Iterator[tuple[str, Place]]:
    """Yield the rows of an array as files, with what is known of each as files of the same name."""
    (offset, (count, *shape), dtype), beside, unused = stack_of(archive)
    size, digits = math.prod(shape) * dtype.itemsize, len(str(count - 1))
    for row in range(count):
        name = f"{row:0{digits}}"
        yield f"{name}.npy", Place(offset + row * size, size, dtype.str, tuple(shape))
        for suffix, texts in beside.items():
            yield f"{name}{suffix}", Place(0, len(content := texts[row].encode()), content=content)
    for name in unused:
        yield f"{name} (array)", Place(0, 0, content=b"")


def tar_members(archive: Path) -> Iterator[tuple[str, Place]]:
    """Yield the regular files of a tar: 512 bytes of header each, then the contents in blocks.

    Source: POSIX.1-1988 (ustar), POSIX.1-2001 (pax: `path` and `size`), GNU tar (long names).
    """
    end = archive.stat().st_size
    with archive.open("rb") as file:
        offset, longer = 0, dict[str, bytes]()
        while offset + BLOCK <= end:
            file.seek(offset)
            head = file.read(BLOCK)
            if not head.strip(b"\0"):
                return
            if not _sound(head):
                raise ValueError(f"byte {offset:,} begins no header of a tar; compressed tars must be unpacked first")
            kind, size = head[156:157], _octal(head[124:136])
            name = head[:100].rstrip(b"\0")
            if head[257:262] == b"ustar" and head[345:500].rstrip(b"\0") and kind not in b"LKxg":
                name = head[345:500].rstrip(b"\0") + b"/" + name if head[263:265] == b"00" else name
            if kind in b"Lx":
                longer |= _longer(kind, file.read(min(size, HEAD + 1)))
            else:
                size = int(longer.get("size", size))
                if not 0 <= size <= end - offset - BLOCK:
                    raise ValueError("it is cut off")
                if kind in (b"0", b"\0") and (own := _inside(longer.get("path", name))):
                    yield own, Place(offset + BLOCK, size)
                longer = {} if kind not in b"Kg" else longer
            offset += BLOCK + -(-size // BLOCK) * BLOCK
        if offset != end:
            raise ValueError("it is cut off")


def _sound(head: bytes) -> bool:
    """Return whether a header holds the sum of its bytes, its own counted as spaces."""
    try:
        return _octal(head[148:156]) == sum(head[:148]) + sum(head[156:]) + 8 * 32
    except ValueError:
        return False


def _octal(digits: bytes) -> int:
    """Return a number of a tar's header: octal digits, or base 256 where its first bit is set."""
    if digits[0] & 128:
        return int.from_bytes(digits[1:], "big")
    number = int(digits.split(b"\0")[0].strip() or b"0", 8)
    if number < 0:
        raise ValueError("a number in a header is negative")
    return number


def _longer(kind: bytes, body: bytes) -> dict[str, bytes]:
    """Return what an extended header says of the file after it: its name, and its size."""
    if len(body) > HEAD:
        raise ValueError(f"a header has more than {HEAD:,} bytes")
    if kind == b"L":
        return {"path": body.rstrip(b"\0")}
    found = {}
    while body.strip(b"\0"):
        length = int(body.split(b" ", 1)[0])
        if not 0 < length <= len(body):
            raise ValueError("an extended header is damaged")
        key, _, value = body[:length].split(b" ", 1)[1].rstrip(b"\n").partition(b"=")
        found[key.decode("ascii", "replace")] = value
        body = body[length:]
    return {key: value for key, value in found.items() if key in ("path", "size")}


def _of_zip(archive: Path) -> Iterator[tuple[str, Place]]:
    """Yield the regular files of a zip."""
    check_directory(archive)
    for info in _zip(archive, archive.stat().st_mtime_ns).infolist():
        if not info.is_dir() and (info.external_attr >> 16) & KIND in (0, REGULAR):
            yield info.filename, Place(-1, info.file_size)


@lru_cache(maxsize=8)
def _zip(archive: Path, changed: int) -> zipfile.ZipFile:
    """Open a zip once for each process."""
    return zipfile.ZipFile(archive)


def _inside(name: bytes) -> str:
    """Return a file's name without a leading `./`, as a folder's names are."""
    parts = [part for part in name.decode("utf-8", "surrogateescape").split("/") if part not in ("", ".")]
    return "/".join(parts)
