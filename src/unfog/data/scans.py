"""A folder of volumes: arrays of NumPy and NIfTI scans, resized to one shape."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.lib.format as layout
from numpy.typing import NDArray

from unfog.data.labels import AUTO
from unfog.data.listing import Kind
from unfog.data.media import Survey, gathered, survey
from unfog.data.pictures import UnreadableError
from unfog.data.source import Data
from unfog.data.volumes import Volumes
from unfog.runtime.errors import EnvironmentFailure, UserError

SCANS = Kind("volume", "volumes", Volumes.suffixes)
VOXELS, SIDES, MOST = 1 << 28, (8, 16, 24, 32), 128
"""Voxels of a file, at most; the sides to choose from; and the longest that may be set."""
LOOKED = 64
"""Files whose numbers are looked at to choose the scale, evenly spread."""


class Header(NamedTuple):
    """What the header of a volume says.

    Attributes:
        shape: Depth, height and width.
        dtype: Type of its numbers.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]


class Look(NamedTuple):
    """What suits a folder of volumes.

    Attributes:
        side: The largest of 8, 16, 24, 32 that the median of the shortest sides reaches.
        rows: How many there are.
        classes: How many classes they have.
    """

    side: int
    rows: int
    classes: int


def header(path: Path) -> Header:
    """Read the header of a volume, and nothing else of it.

    Raises: UnreadableError: If it is none, or too large.
        EnvironmentFailure: If nibabel is not installed, and it is a NIfTI file.
    """
    if not path.is_file():
        raise UnreadableError("there is no such file")
    shape, dtype = (_nifti(path) if _is_nifti(path) else _numpy(path))[:2]
    squeezed = tuple(side for side in shape if side != 1) if len(shape) > 3 else tuple(shape)
    if len(squeezed) != 3 or min(squeezed) < 1:
        raise UnreadableError(f"its shape {'×'.join(map(str, shape))} is not that of a volume")
    if math.prod(squeezed) > VOXELS:
        raise UnreadableError(f"too large: its {math.prod(squeezed):,} voxels are more than {VOXELS:,}")
    if dtype.kind not in "buif":
        raise UnreadableError(f"it holds {dtype} instead of numbers")
    return Header((squeezed[0], squeezed[1], squeezed[2]), dtype)


def _is_nifti(path: Path) -> bool:
    """Return whether a file is a scan by its name."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _numpy(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of the array in a file; of an archive of arrays of its first."""
    try:
        if path.suffix.lower() == ".npz":
            from zipfile import ZipFile

            with ZipFile(path) as archive, archive.open(archive.namelist()[0]) as member:
                return _described(member)
        with path.open("rb") as file:
            return _described(file)
    except Exception as error:  # those of zipfile and zlib are many
        raise UnreadableError(str(error) or type(error).__name__) from error


def _described(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type that the header of an array says."""
    version = layout.read_magic(file)
    read = layout.read_array_header_1_0 if version == (1, 0) else layout.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise UnreadableError("it holds pickled objects, which are not read")
    return tuple(shape), dtype


def _nifti(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], Any]:
    """Return shape and type that the header of a scan says, and the scan, whose numbers have not been read."""
    try:
        import nibabel
    except ImportError as error:
        raise EnvironmentFailure(
            f"NIfTI files are read by nibabel, which is missing: pip install 'unfog[volumes]' ({error})"
        ) from error
    try:
        scan: Any = nibabel.nifti1.Nifti1Image.from_filename(str(path))
        return tuple(scan.shape), np.dtype(scan.get_data_dtype()), scan
    except Exception as error:  # whatever nibabel raises: the file is none
        raise UnreadableError(str(error).split("\n")[0] or type(error).__name__) from error


def read_volume(path: Path, about: Header) -> NDArray[np.float32]:
    """Return the numbers of a volume, `(depth, height, width)`.

    Raises: UnreadableError: If it is damaged, or a number is not finite.
    """
    try:
        if _is_nifti(path):
            values = np.asanyarray(_nifti(path)[2].dataobj)
        elif path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                values = archive[archive.files[0]]
        else:
            values = np.load(path, allow_pickle=False, mmap_mode="r")
        volume = np.array(values, dtype=np.float32).reshape(about.shape)
    except UnreadableError:
        raise
    except Exception as error:  # those of zipfile, zlib and nibabel are many
        raise UnreadableError(str(error) or type(error).__name__) from error
    if not np.isfinite(volume).all():
        raise UnreadableError("it holds numbers that are not finite")
    return volume


def surveyed(path: str, where: str = "", label_from: str = AUTO) -> Survey[Header]:
    """Return what the headers of a folder's volumes say."""
    return survey(path, SCANS, header, where, label_from)


def suited(found: Survey[Header]) -> Look:
    """Return what suits volumes, see `Look`."""
    short = float(np.median([min(one.shape) for one in found.about]))
    side = max([side for side in SIDES if side <= short], default=SIDES[0])
    return Look(side, len(found.about), len(found.listing.classes))


def scans(
    path: str = "",
    size: int | Sequence[int] | None = None,
    span: Sequence[float] | None = None,
    heldout: float = 0.1,
    where: str = "",
    label_from: str = AUTO,
) -> Data:
    """Read a folder of volumes, each resized to one shape, with numbers as bytes.

    Args:
        path: The folder: class sub-folders, `metadata.jsonl`, or just volumes.
        size: Side, or [depth, height, width]; default: the largest of 8, 16, 24, 32 that most volumes reach.
        span: The numbers that become 0 and 255; default: 0 and 255 of bytes, 0 and 1 of booleans, and of others the
            percentiles 0.5 and 99.5 of some volumes.
        heldout: Share of the volumes to hold out, of each class by the hash of their names.
        where: Use only the lines of `metadata.jsonl` with `key=value`.
        label_from: What the class of a volume is, see `unfog.data.folder.folder`.

    Returns: Rows, uint8 `(1, depth, height, width)`; what cannot be read is skipped and said.
    Raises: UserError: If the folder is missing, or less than two volumes can be read.
        EnvironmentFailure: If nibabel is not installed, and there are NIfTI files.
    """
    found = surveyed(path, where, label_from)
    side = suited(found).side
    sides = (side, side, side) if size is None else (size, size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 3 or not all(1 <= one <= MOST for one in sides):
        raise UserError(f"data.size must be a side or three, from 1 to {MOST}, not {size}")
    low, high = span if span is not None else span_of(found)
    if not low < high:
        raise UserError(f"data.span must be two numbers, the smaller first, not {low:g} and {high:g}")

    def rows_of(file: Path, about: Header) -> Iterator[NDArray[np.uint8]]:
        shares = (_resized(read_volume(file, about), sides) - low) / (high - low)
        yield np.round(255 * shares.clip(0, 1)).astype(np.uint8)

    def notes() -> list[str]:
        shapes = {one.shape for one in found.about}
        said = [f"black and white: {low:.4g} and {high:.4g} (data.span)"] if (low, high) != (0, 255) else []
        return said + ([f"resized to one shape: volumes of {len(shapes)} shapes"] if shapes != {sides} else [])

    return gathered(found, rows_of, (1, *sides), np.uint8, heldout, notes, SCANS)


def span_of(found: Survey[Header]) -> tuple[float, float]:
    """Return the numbers that become black and white."""
    kinds = {one.dtype for one in found.about}
    if kinds == {np.dtype(np.uint8)}:
        return 0.0, 255.0
    if kinds == {np.dtype(bool)}:
        return 0.0, 1.0
    assert isinstance(found.listing.root, Path)
    ends = []
    for row in np.linspace(0, len(found.about) - 1, min(LOOKED, len(found.about))).astype(int):
        try:
            volume = read_volume(found.listing.root / found.listing.files[row], found.about[row])
            ends.append(np.percentile(volume, (0.5, 99.5)))
        except UnreadableError:
            continue
    if not ends:
        return 0.0, 1.0
    low, high = np.median(ends, 0).tolist()
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _resized(volume: NDArray[np.float32], sides: Sequence[int]) -> NDArray[np.float32]:
    """Return a volume with these sides: each voxel the mean of those that it covers, or between its neighbours."""
    import torch
    from torch.nn import functional as F

    if volume.shape == tuple(sides):
        return volume
    x = torch.from_numpy(volume)[None, None]
    smaller = tuple(min(own, wanted) for own, wanted in zip(volume.shape, sides, strict=True))
    x = F.adaptive_avg_pool3d(x, (smaller[0], smaller[1], smaller[2]))
    if smaller != tuple(sides):
        x = F.interpolate(x, tuple(sides), mode="trilinear", align_corners=False)
    resized: NDArray[np.float32] = x[0, 0].numpy()
    return resized
