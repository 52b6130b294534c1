"""The classic data sets in their original formats: digits, MNIST, Fashion-MNIST and CIFAR-10."""

import gzip
import math
import os
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from unfog.data.download import fetch
from unfog.data.source import Data, InMemory, MissingDataError, split
from unfog.runtime.errors import UserError, nearby
from unfog.runtime.files import cache_folder, disk, locked, unreadable
from unfog.runtime.randomness import stream

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_MD5 = {
    _MNIST: (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    _FASHION: (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
}
LARGEST = 1 << 30
"""Largest uncompressed size of a file, in bytes."""
PACKED = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".parquet", ".arrow", ".h5"})
"""File suffixes of what must be unpacked before it is a folder of data."""
CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
"""Names of the classes of Fashion-MNIST."""
_THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_NUMERALS = tuple("0123456789")


def digits() -> Data:
    """Return scikit-learn's 1,797 handwritten digits, 1×8×8, a fifth of them held out; no download needed.

    Source: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits (UCI).
    """
    from sklearn.datasets import load_digits  # imported here, since scikit-learn takes a second to import

    pixels, labels = load_digits(return_X_y=True)
    x = np.round(pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    return split(InMemory(torch.from_numpy(x), torch.from_numpy(labels.astype(np.int64)), _NUMERALS), 0.2)


def mnist(path: str | None = None, *, binary: bool = False) -> Data:
    """Read MNIST, 1×28×28: 60,000 digits, and 10,000 held out.

    Args:
        path: Folder with the four idx files, compressed (.gz) or not; downloaded to the cache if None.
        binary: Whether each pixel is black or white, see `binarised`.

    Returns: The data set with its official split.
    Source: LeCun, Cortes & Burges, The MNIST database.
    """
    data = _idx_set(_MNIST, "mnist", path, _NUMERALS)
    return binarised(data) if binary else data


def fashion(path: str | None = None, *, binary: bool = False) -> Data:
    """Read Fashion-MNIST, 1×28×28: 60,000 images of clothes, and 10,000 held out.

    Args:
        path: Folder with the four idx files, compressed (.gz) or not; downloaded to the cache if None.
        binary: Whether each pixel is black or white, see `binarised`.

    Returns: The data set with its official split.
    Source: Xiao, Rasul & Vollgraf 2017, Fashion-MNIST.
    """
    data = _idx_set(_FASHION, "fashion", path, CLOTHES)
    return binarised(data) if binary else data


def binarised(data: Data) -> Data:
    """Return pictures in memory with each pixel v drawn white with probability v/255, else black, always the same.

    Source: Salakhutdinov & Murray 2008, On the Quantitative Analysis of Deep Belief Networks, section 5.2.
    """
    parts = []
    for part, purpose in zip(data, ("binarised", "binarised, held out"), strict=True):
        assert isinstance(part, InMemory)
        draw, rows = stream(0, purpose), part.x.flatten(1).numpy()
        some = np.array_split(rows, -(-len(rows) // 1000))
        white = np.concatenate([draw.random(one.shape, dtype=np.float32) < one / 255 for one in some])
        parts.append(replace(part, x=torch.from_numpy(255 * white.astype(np.uint8)).reshape(part.x.shape)))
    return Data(*parts)


def cifar10(path: str | None = None) -> Data:
    """Read CIFAR-10, 3×32×32: 50,000 images of ten classes, and 10,000 held out.

    Args:
        path: Folder with `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, or its parent; downloaded to
            the cache if None.

    Returns: The data set with its official split.
    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    folder = _cifar_folder() if path is None else existing(path)
    if (folder / "cifar-10-batches-bin").is_dir():
        folder = folder / "cifar-10-batches-bin"
    names = sorted(file.name for file in folder.glob("data_batch_*.bin"))
    if not names:
        raise UserError(f"{folder} contains no data_batch_*.bin: pass the folder of the binary version of CIFAR-10")
    train = [_cifar_file(folder / name) for name in names]
    pictures, labels = (torch.cat(part) for part in zip(*train, strict=True))
    return Data(InMemory(pictures, labels, _THINGS), InMemory(*_cifar_file(folder / "test_batch.bin"), _THINGS))


def existing(path: str, archives: frozenset[str] = frozenset()) -> Path:
    """Return `path` as an existing folder.

    Args:
        path: The path.
        archives: Suffixes of archives that may stand for one.

    Raises: UserError: If it does not exist, or is not a folder.
    """
    if not path:
        raise UserError("no data folder was given: set data.path")
    folder = Path(path)
    try:
        folder = folder.expanduser()
        exists = folder.exists()
    except (RuntimeError, OSError, ValueError):  # no such user's home, a name too long, a zero byte
        exists = False
    if not exists:
        raise MissingDataError(f"the data folder {folder} does not exist", nearby(folder) or "check the path")
    if not folder.is_dir() and folder.suffix.lower() in PACKED - archives:
        read = f"; {', '.join(sorted(archives))} files are read as they are" if archives else ""
        cure = f"unpack it and set data.path to the folder{read}"
        raise MissingDataError(f"{folder} is not a folder but packed", cure)
    if not folder.is_dir() and not (folder.is_file() and folder.suffix.lower() in archives):
        raise MissingDataError(f"{folder} is not a folder", "set data.path to the folder that contains the data")
    return folder


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes: a magic number, the sizes, the bytes.

    Args:
        path: The file; compressed if it ends in .gz.

    Returns: The array in the file.
    Raises: UserError: If the file is damaged, or too large.
    """
    with _opened_idx(path) as file:
        sizes = _sizes(path, file)
        count = math.prod(sizes)
        room = (
            1100 * path.stat().st_size
        )  # gzip cannot compress further, so a larger count is false: do not allocate for it
        body = file.read(min(count, room, LARGEST) + 1)
    if len(body) > LARGEST:
        raise UserError(f"{path} contains more than {LARGEST:,} values: use a smaller data set, or a folder of images")
    if len(body) != count:
        actual = "more" if len(body) > count else f"{len(body)}"
        raise UserError(f"{path} contains {actual} values, but its header says {sizes}: download it again")
    return np.frombuffer(body, np.uint8).reshape(sizes)


def idx_sizes(path: Path) -> tuple[int, ...]:
    """Return the shape of the array in an idx file, by its header.

    Raises: UserError: If it is no idx file of unsigned bytes.
    """
    with _opened_idx(path) as file:
        return _sizes(path, file)


@contextmanager
def _opened_idx(path: Path) -> Iterator[BufferedIOBase]:
    """Open an idx file, compressed or not, and say in one sentence why it cannot be read."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error, PermissionError) as error:
        raise unreadable(path, error, "download it again") from error


def _sizes(path: Path, file: BufferedIOBase) -> tuple[int, ...]:
    """Read the header of an idx file."""
    head = file.read(4)
    axes = head[3] if len(head) > 3 else 0
    head += file.read(4 * axes)
    if len(head) != 4 + 4 * axes or head[:3] != b"\x00\x00\x08" or axes > 8:
        raise unreadable(path, ValueError("not an idx file of unsigned bytes"), "download it again")
    return struct.unpack(f">{axes}I", head[4:])


def _idx_set(url: str, name: str, path: str | None, classes: tuple[str, ...]) -> Data:
    """Read the four idx files of a data set."""
    if path is None:
        files = [
            fetch(f"{url}{file}.gz", cache_folder() / name / f"{file}.gz", md5)
            for file, md5 in zip(_FILES, _MD5[url], strict=True)
        ]
    else:
        folder = existing(path)
        files = [_either(folder, file) for file in _FILES]
    arrays = [read_idx(file) for file in files]
    parts = []
    for pictures, labels, file in ((arrays[0], arrays[1], files[1]), (arrays[2], arrays[3], files[3])):
        if pictures.ndim != 3 or 0 in pictures.shape or labels.shape != pictures.shape[:1]:
            raise UserError(f"{file} does not have one label for each image: download labels and images again")
        if labels.max() >= len(classes):
            raise UserError(f"{file} contains the label {labels.max()}, but there are {len(classes)} classes")
        x, y = torch.from_numpy(pictures.copy()), torch.from_numpy(labels.astype(np.int64))
        parts.append(InMemory(x.unsqueeze(1), y, classes))
    return Data(*parts)


def _either(folder: Path, name: str) -> Path:
    """Return the path of a file, compressed or not."""
    for file in (folder / f"{name}.gz", folder / name):
        if file.is_file():
            return file
    raise UserError(f"{folder} contains neither {name}.gz nor {name}: pass the folder of the original idx files")


def _cifar_folder() -> Path:
    """Download CIFAR-10 and extract it to the cache, atomically."""
    cache, name = cache_folder(), "cifar-10-batches-bin"
    if (cache / name).is_dir():
        return cache
    with locked(cache, wait=True):
        if not (cache / name).is_dir():
            _extract_cifar(cache, name)
    return cache


def _extract_cifar(cache: Path, name: str) -> None:
    """Download the archive and extract it, into a folder whose lock is held."""
    archive = fetch(_CIFAR, cache / "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")
    with disk(cache), tempfile.TemporaryDirectory(dir=cache) as part:
        try:
            with tarfile.open(archive) as packed:
                packed.extractall(part, members=_bounded(packed), filter="data")
            if not (Path(part) / name).is_dir():
                raise tarfile.TarError(f"it contains no {name}")
        except (tarfile.TarError, ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{archive} is damaged ({error}): remove it to download it again") from error
        os.replace(Path(part) / name, cache / name)


def _bounded(packed: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an archive.

    Raises: tarfile.TarError: If there are too many, their total size is too large, or one is a link or a device.
    """
    remaining = LARGEST
    for number, member in enumerate(packed):
        if not (member.isreg() or member.isdir()):
            raise tarfile.TarError(f"its {member.name!r} is neither a file nor a folder")
        remaining -= member.size
        if number > 100 or remaining < 0:
            raise tarfile.TarError(f"it contains more than 100 files or {LARGEST:,} bytes")
        yield member


def _cifar_file(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Read records of one label and 3,072 pixels each."""
    if not path.is_file():
        raise UserError(f"{path} is missing: extract the binary version of CIFAR-10 again")
    size = path.stat().st_size
    records = np.fromfile(path, np.uint8).reshape(-1, 3073) if size <= LARGEST and size % 3073 == 0 else None
    if records is None or len(records) == 0 or records[:, 0].max() > 9:
        raise unreadable(path, ValueError("not a list of labelled 3×32×32 images"), "extract it again")
    return torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy()), torch.from_numpy(
        records[:, 0].astype(np.int64)
    )
