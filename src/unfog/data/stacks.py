"""Arrays whose rows are pictures, one `.npy` or an `.npz` with labels, indexed so that a row is read by itself."""

import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

PICTURES = ("images", "image", "x", "data", "arr_0")
LABELS = ("labels", "label", "y", "arr_1")
TEXTS = ("captions", "texts", "text")
"""Names of arrays in an `.npz`: the first that is there is used."""
LOCAL, MOST, DIRECTORY = 30, 1 << 28, 1 << 29
"""Bytes of a file's own header in a zip before its name; of an array of labels and of a zip's directory, at most."""


class Array(NamedTuple):
    """An array in a file.

    Attributes:
        offset: Where its values begin.
        shape: Its shape.
        dtype: Type of its values.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Stack(NamedTuple):
    """Pictures in one array, and what is known of them.

    Attributes:
        pictures: The array, `(rows, height, width)`, `(rows, height, width, channels)` or `(rows, channels, height,
            width)`.
        beside: Texts by the suffix of the file that would hold them: `.cls` for labels, `.txt` for captions.
        unused: Names of further arrays.
    """

    pictures: Array
    beside: Mapping[str, list[str]]
    unused: list[str]


def stack_of(path: Path) -> Stack:
    """Return where the pictures of a `.npy` or `.npz` file are.

    Raises: OSError, ValueError: If it is damaged, holds no pictures, or is packed so that rows cannot be read singly.
    """
    with path.open("rb") as file:
        arrays = {"": _header(file)} if path.suffix.lower() == ".npy" else dict(_of_npz(path, file))
        size = path.stat().st_size
        for name, array in arrays.items():
            if array.offset + math.prod(array.shape) * array.dtype.itemsize > size:
                raise ValueError(f"{name or 'it'} is cut off")
        named = next((name for name in ("", *PICTURES) if name in arrays), None) or next(iter(arrays), "")
        if named not in arrays:
            raise ValueError("it holds no arrays")
        pictures = _pictures(arrays.pop(named))
        beside = {}
        for suffix, names in ((".cls", LABELS), (".txt", TEXTS)):
            found = next((name for name in names if name in arrays), None)
            if found is not None and arrays[found].shape in ((pictures.shape[0],), (pictures.shape[0], 1)):
                beside[suffix] = [str(item) for item in _values(file, arrays.pop(found)).reshape(-1).tolist()]
    return Stack(pictures, beside, sorted(arrays))


def check_directory(archive: Path) -> None:
    """Refuse a zip whose directory, as its end says, would take too much memory to read.

    Raises: ValueError: If it is larger than the limit, or there is none.
    """
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - (1 << 16) - 42))
        tail = file.read()
        end = tail.rfind(b"PK\5\6")
        if end < 0:
            raise ValueError("it has no directory")
        if tail[max(0, end - 20) : max(0, end - 16)] != b"PK\6\7":
            size = int.from_bytes(tail[end + 12 : end + 16], "little")
        else:  # zip64
            file.seek(min(int.from_bytes(tail[end - 12 : end - 4], "little"), archive.stat().st_size))
            size = int.from_bytes(file.read(56)[40:48], "little")
    if size > DIRECTORY:
        raise ValueError(f"its directory has more than {DIRECTORY:,} bytes")


def row_of(values: bytes, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a row of a stack, `(height, width)` or `(height, width, channels)`."""
    array = np.frombuffer(values, np.dtype(dtype)).reshape(shape)
    channels_first = array.ndim == 3 and array.shape[0] <= 4 < array.shape[2]
    return np.moveaxis(array, 0, 2) if channels_first else array


def _header(file: BinaryIO) -> Array:
    """Return what the header of a `.npy` file says, with the file at its first value."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    sides, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if fortran and sides[1:]:
        raise ValueError("its values are in Fortran order: save it with numpy.ascontiguousarray")
    return Array(file.tell(), sides, dtype)


def _of_npz(path: Path, file: BinaryIO) -> Iterator[tuple[str, Array]]:
    """Yield the arrays of an `.npz` by name.

    Raises: ValueError: If they are compressed.
    """
    check_directory(path)
    with zipfile.ZipFile(path) as packed:
        for info in packed.infolist()[:100]:
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError("its arrays are compressed: save them with numpy.savez")
            file.seek(info.header_offset)
            head = file.read(LOCAL)
            file.seek(int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little"), 1)
            yield info.filename.removesuffix(".npy"), _header(file)


def _pictures(array: Array) -> Array:
    """Return an array of pictures, checked.

    Raises: ValueError: If it is none.
    """
    shape, axes = array.shape, len(array.shape)
    if axes not in (3, 4) or 0 in shape or array.dtype.kind not in "buif":
        raise ValueError(f"an array of {array.dtype} and shape {shape} is no set of pictures (rows, height, width)")
    if axes == 3 and shape[2] <= 4:
        raise ValueError(f"an array of shape {shape} is one picture: put it into a folder with others")
    return array


def _values(file: BinaryIO, array: Array) -> NDArray[Any]:
    """Return the values of a small array."""
    size = math.prod(array.shape) * array.dtype.itemsize
    if size > MOST:
        raise ValueError(f"labels of {size:,} bytes are too many")
    file.seek(array.offset)
    return np.frombuffer(file.read(size), array.dtype).reshape(array.shape)
