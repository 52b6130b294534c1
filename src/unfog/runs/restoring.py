"""Turn what a user says of a measured picture, an operator in words or a file, into a measurement."""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unfog.data.pictures import UnreadableError, describe_picture, read_picture
from unfog.generation.operators import Blur, Crop, Downsample, Kernel, Masked, Operator
from unfog.generation.restoring import Measurement, measured
from unfog.generation.sampler import Sampler
from unfog.runs import asking
from unfog.runs.asking import Picture
from unfog.runtime.errors import UserError

FORMS = "blur:DEVIATION, downsample:FACTOR, crop, crop:LEFT,TOP, mask:FILE, kernel:FILE, or the FILE alone"
LARGEST, WIDEST = 255, 4096
"""Side of a kernel and of a mask, at most."""
Sides = tuple[int, int]
"""Height and width."""


def measurement(
    picture: Picture,
    operator: str | Operator,
    sampler: Sampler,
    *,
    noise: float = 0.02,
    own_size: bool = False,
    clean: bool = False,
    seed: int = 0,
) -> tuple[Measurement, Tensor | None]:
    """Return the measurement that a picture is.

    Args:
        picture: What was measured. One in a file that is not as large as the operator makes pictures is resized.
        operator: A linear map of pictures in [-1, 1], or its name: blur:DEVIATION and downsample:FACTOR in pixels;
            crop, the middle of a picture, or crop:LEFT,TOP; a file, which is a mask if it has the picture's size, white
            where nothing is known, else a kernel: mask:FILE and kernel:FILE say which.
        sampler: Of the model that restores.
        noise: Standard deviation of the noise, as a share of the range from black to white.
        own_size: Whether the restored picture gets the size that fits the given one, instead of the model's.
        clean: Whether the picture is a clean one that is to be measured first.
        seed: Of the noise that is then added.

    Returns: The measurement, and the clean picture if one was given.
    Raises: UserError: If operator, files and picture do not fit.
    """
    if not 0 <= noise <= 1:
        raise UserError(f"noise is a share of the range from black to white, from 0 to 1, not {noise}")
    height, width = sampler.stored[1:] if sampler.modality.pixels else (1, 1)
    if clean:
        known = asking.picture(picture, sampler, own_size)
        size = (known.shape[1], known.shape[2])
        made = _operator(operator, size, (max(size[0] // 2, 1), max(size[1] // 2, 1)), picture)
        return measured(known, made, noise, seed), known
    own = _sides(picture, sampler) if own_size or _word(operator) == "crop" else (height, width)
    factor = operator.factor if isinstance(operator, Downsample) else 1
    if _word(operator) == "downsample":
        factor = Downsample(int(_number(str(operator), int))).factor
    size = (own[0] * factor, own[1] * factor) if own_size and _word(operator) != "crop" else (height, width)
    made = _operator(operator, size, own, picture)
    sides = size if isinstance(made, Masked) else made(torch.zeros(1, sampler.stored[0], *size)).shape[2:]
    given = asking.picture(picture, sampler, own_size, (sides[0], sides[1]))
    if not isinstance(picture, Tensor | np.ndarray) and (before := _sides(picture, sampler)) != tuple(sides):
        warnings.warn(
            f"the picture has {before[1]}×{before[0]} pixels and is resized to {sides[1]}×{sides[0]}, which a picture "
            f"of {size[1]}×{size[0]} has when measured: own_size keeps it",
            stacklevel=2,
        )
    return Measurement(given, made, size, noise), None


def _word(operator: str | Operator) -> str:
    """Return the first word of a named operator; empty for a map."""
    return operator.partition(":")[0] if isinstance(operator, str) else ""


def _number(operator: str, kind: type[int] | type[float]) -> float:
    """Return the number behind the word of an operator."""
    word, _, text = operator.partition(":")
    try:
        return kind(text)
    except ValueError:
        example = {"blur": "blur:1.5", "downsample": "downsample:4"}[word]
        raise UserError(f"the operator {operator!r} needs a number of pixels, for instance {example}") from None


def _sides(picture: Picture, sampler: Sampler) -> Sides:
    """Return the height and width that a picture has by itself."""
    one = asking.picture(picture, sampler, True)
    return one.shape[1], one.shape[2]


def _operator(operator: str | Operator, size: Sides, window: Sides, picture: Picture) -> Operator:
    """Return the map that a name or file stands for.

    Args:
        operator: The map or its name.
        size: Of the pictures that it is applied to.
        window: Sides of a crop.
        picture: What was measured, whose size a mask has.
    """
    if not isinstance(operator, str):
        return operator
    word, _, rest = operator.partition(":")
    if word == "blur":
        return Blur(_number(operator, float))
    if word == "downsample":
        return Downsample(int(_number(operator, int)))
    if word == "crop":
        return Crop(_corner(operator, size, window), window)
    if word in ("mask", "kernel"):
        return _mask(Path(rest), size) if word == "mask" else Kernel(_kernel(Path(rest)))
    path = Path(operator)
    if not path.is_file():
        raise UserError(f"the operator {operator!r} is no file and none of {FORMS}")
    return _mask(path, size) if _file_sides(path) == _own(picture, size) else Kernel(_kernel(path))


def _own(picture: Picture, size: Sides) -> Sides:
    """Return the sides of a picture as it was given."""
    if isinstance(picture, Tensor | np.ndarray):
        return size
    return _file_sides(Path(picture)) if isinstance(picture, str | Path) else (picture.height, picture.width)


def _corner(operator: str, size: Sides, window: Sides) -> Sides:
    """Return the first row and column of a crop, by default that of the middle."""
    if operator == "crop":
        return (size[0] - window[0]) // 2, (size[1] - window[1]) // 2
    try:
        left, top = (int(part) for part in operator.partition(":")[2].split(","))
    except ValueError:
        raise UserError(f"the operator {operator!r} is none: crop:LEFT,TOP says where the window begins") from None
    return top, left


def _file_sides(path: Path) -> Sides:
    """Return the height and width of what a file holds."""
    if path.suffix.lower() == ".npy":
        array = _opened(path)
        return (array.shape[0], array.shape[1]) if array.ndim == 2 else (0, 0)
    try:
        return describe_picture(path)[1:]
    except UnreadableError as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _opened(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Return the array of a file, of which nothing but the header was read."""
    try:
        found: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return found


def _values(path: Path, most: int) -> Tensor:
    """Return the numbers of a file, `(height, width)`, with sides of `most` places at most."""
    sides = _file_sides(path)
    if not all(1 <= side <= most for side in sides):
        raise UserError(f"{path} must have two sides of 1 to {most} places, not {sides[1]}×{sides[0]}")
    if path.suffix.lower() != ".npy":
        return torch.from_numpy(read_picture(path, 1, *sides)[0]).double()
    values = _opened(path)
    if values.dtype.kind not in "buif" or not np.isfinite(values).all():
        raise UserError(f"{path} must hold finite numbers")
    return torch.from_numpy(values.astype(np.float64))


def _kernel(path: Path) -> Tensor:
    """Return the kernel in a file, with the sum 1."""
    values = _values(path, LARGEST)
    if abs(float(values.sum())) < 1e-6 * float(values.abs().sum()) or not values.any():
        raise UserError(f"the kernel {path} sums to 0, so that it keeps no brightness: its sum must be another")
    return values / values.sum()


def _mask(path: Path, size: Sides) -> Masked:
    """Return the operator of a mask, white where nothing is known, resized if need be."""
    values = _values(path, WIDEST)
    values = torch.nn.functional.interpolate(values[None, None], size=size, mode="nearest")[0, 0]
    known = (values <= float(values.max()) / 2).float()
    if bool(known.all()) or not bool(known.any()):
        raise UserError(f"the mask {path} is all one value: white is restored, and black is kept")
    return Masked(known)
