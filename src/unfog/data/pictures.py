"""Images as arrays: read files of any mode and size, crop and resize; write contact sheets and films."""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError, features
from torch import Tensor

from unfog.data.packed import Member
from unfog.runtime.errors import UserError
from unfog.runtime.files import is_pointer, whole

AVIF = "avif" in features.modules and features.check("avif") is True
"""Whether Pillow reads AVIF: before 11.3 it did not, and it may be built without."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".npy"}) | {
    ".jfif",
    ".jpe",
    *([".avif"] if AVIF else []),
}
"""File suffixes of images, in lower case."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", *(["AVIF"] if AVIF else []))
"""Accepted formats, whatever the suffix: for some others Pillow runs external programs."""
PROFILE = 1 << 22
"""Bytes of a colour profile, at most; those of cameras and screens have some thousand."""

LONGEST = 4096
"""The longest side to which pictures are resized."""
ENOUGH = 2
"""How many times longer than those of the result the sides of a JPEG must be after a coarse decoding."""

Pixels = NDArray[np.uint8]


class Levels(NamedTuple):
    """What becomes 0 and 255 in the pictures of a set whose numbers are no bytes."""

    black: float
    white: float

    def of(self, values: NDArray[Any]) -> Pixels:
        """Return numbers as bytes; those beyond the ends become 0 and 255."""
        share = (values.astype(np.float64) - self.black) / (self.white - self.black)
        return (share.clip(0, 1) * 255).round().astype(np.uint8)


class Reading(NamedTuple):
    """How the pictures of a set become bytes.

    Attributes:
        levels: The ends of numbers that are no bytes; None goes by the format and, without a range of its own, by the
            picture.
        profiles: Whether colour profiles are converted to sRGB.
        coarse: Whether JPEGs are decoded at a part of their size where that is enough.
    """

    levels: Levels | None = None
    profiles: bool = True
    coarse: bool = True


AS_NOW = Reading()
"""How a picture is read that belongs to no set."""


class UnreadableError(ValueError):
    """A file is not a readable image; the message says why."""


def read_picture(path: Path | Member, channels: int, height: int, width: int, reading: Reading = AS_NOW) -> Pixels:
    """Read an image, centre-crop it to the aspect ratio of (height, width) and resize it.

    Transparency is blended with white, the EXIF orientation is applied, colours are converted to sRGB, and numbers that
    are no bytes are scaled to bytes.

    Args:
        path: An image, or a `.npy` array `(height, width)` or `(height, width, channels)`: uint8, uint16, or
            floats in [0, 1].
        channels: 1 for greyscale, 3 for colour; other numbers only for arrays with as many channels.
        height: Height of the result.
        width: Width of the result.
        reading: How its values become bytes.

    Returns: Pixels, `(channels, height, width)`.
    Raises: UnreadableError: If the file is not a readable image.
    """
    with readable(path):
        if path.suffix.lower() == ".npy":
            planes = [Image.fromarray(plane) for plane in _array_planes(path, channels, reading)]
        else:
            with opened(path) as picture:
                if reading.coarse:
                    _coarsen(picture, height, width)
                planes = [_to_mode(picture, "L" if channels == 1 else "RGB", reading)]
        planes = [fitted(plane, height, width) for plane in planes]
    several = [np.asarray(plane) for plane in planes]
    pixels = (several[0] if len(several) == 1 else np.stack(several, axis=-1)).reshape(height, width, -1)
    if pixels.shape[2] != channels:
        raise UnreadableError(f"it has {pixels.shape[2]} channels, but the data set has {channels}")
    return pixels.transpose(2, 0, 1).copy()  # Pillow's own array cannot be written to


def _coarsen(picture: Image.Image, height: int, width: int) -> None:
    """Let a JPEG be decoded at a half, a quarter or an eighth of its size, from fewer of its coefficients.

    Of what is cropped to (height, width) at least twice the sides are left, for the resizing to average.
    """
    if picture.format == "JPEG":
        down, across = (height, width) if orientation(picture) < 5 else (width, height)
        times = min(picture.width / across, picture.height / down) / ENOUGH
        if times >= 2:  # the largest power of two below it is taken
            picture.draft(picture.mode, (int(picture.width / times), int(picture.height / times)))


def fitted(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Return a picture centre-cropped to the aspect ratio of (height, width) and resized; itself if it is so large."""
    if picture.size == (width, height):
        return picture
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return pixels, `(channels, height, width)`, centre-cropped and resized as `fitted` does, channel by channel."""
    return np.stack([np.asarray(fitted(Image.fromarray(plane), height, width)) for plane in pixels])


def sides_of(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Return (height, width) of the setting `data.size`.

    Raises: UserError: If it is none.
    """
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else size
    if len(sides) != 2 or min(sides) < 1 or max(sides) > LONGEST:
        raise UserError(f"data.size must be a side or [height, width], from 1 to {LONGEST}, not {size}")
    return sides[0], sides[1]


def describe_picture(path: Path | Member) -> tuple[int, int, int]:
    """Return (channels, height, width) of an image with its orientation applied: 1 channel for grey modes, else 3.

    Raises: UnreadableError: If the file is not an image.
    """
    with readable(path):
        if path.suffix.lower() == ".npy":
            array = _array(path)
            if array.ndim not in (2, 3):
                raise UnreadableError(f"an array with {array.ndim} axes is not an image")
            return (1 if array.ndim == 2 else array.shape[2]), array.shape[0], array.shape[1]
        with opened(path) as picture:
            grey = picture.mode in ("1", "L", "LA", "I", "F") or picture.mode.startswith("I;16")
            turned = orientation(picture) >= 5 and picture.format != "TIFF"  # for TIFF, Pillow swaps the sides itself
            width, height = picture.size[::-1] if turned else picture.size
            return (1 if grey else 3), height, width


def decoded(path: Path) -> Image.Image:
    """Return an image file as RGB, whatever its size.

    Raises: UnreadableError: If the file is not a readable image.
    """
    with readable(path), opened(path) as picture:
        return picture.convert("RGB")


@contextmanager
def readable(path: Path | Member) -> Iterator[None]:
    """Say in one sentence why an image cannot be read.

    Raises: UnreadableError: If it cannot.
    """
    try:
        yield
    except UnreadableError:
        raise
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        raise UnreadableError(_reason(error, path)) from error


def _reason(error: Exception, path: Path | Member) -> str:
    """Return why an image cannot be read."""
    if isinstance(path, Path) and is_pointer(path):
        return "a Git LFS pointer and not the file itself: run `git lfs pull`"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, UnidentifiedImageError):
        return "cannot identify its format"
    too_large = isinstance(error, MemoryError | Image.DecompressionBombError | Image.DecompressionBombWarning)
    return ("too large: " if too_large else "") + (str(error) or type(error).__name__)


@contextmanager
def opened(source: Path | Member | BinaryIO) -> Iterator[Image.Image]:
    """Open an image, the only way in which unfog opens one: its header is read, and its pixels where they are used.

    Args:
        source: The path of a file, a member of an archive, or a file that is open.

    Raises: UnreadableError: If there is no such file, or it has more pixels than Pillow thinks harmless.
        OSError: If it is of none of the `FORMATS`, or damaged.
    """
    with ExitStack() as stack:
        file = source
        if isinstance(source, Path | Member):
            if not source.is_file():  # opening a named pipe would block forever
                raise UnreadableError("there is no such file")
            file = cast(BinaryIO, stack.enter_context(source.open("rb")))
        picture = stack.enter_context(Image.open(cast(BinaryIO, file), formats=FORMATS))
        _check_pixels(picture.width * picture.height)
        yield picture


def _check_pixels(pixels: int) -> None:
    """Raise an UnreadableError above Pillow's limit for decompression bombs."""
    if pixels > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise UnreadableError(f"too large: its {pixels:,} pixels are more than {Image.MAX_IMAGE_PIXELS:,}")


def _array(path: Path | Member) -> NDArray[Any]:
    """Memory-map an array file: one shorter than its header claims is refused without allocating memory."""
    if not path.is_file():
        raise UnreadableError("there is no such file")
    if not isinstance(path, Path):
        return path.array()
    array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    return array


def orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation: 1 is upright, 5 and above swap height and width."""
    value = Image.Image.getexif(picture).get(ExifTags.Base.Orientation)  # the method of PNG would decode the pixels
    return value if isinstance(value, int) and 2 <= value <= 8 else 1


def _array_planes(path: Path | Member, channels: int, reading: Reading) -> list[Pixels]:
    """Return the channels of an array file as uint8."""
    array = _array(path)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or 0 in array.shape:
        raise UnreadableError(f"an array of shape {array.shape} is not an image")
    if array.shape[2] not in (1, 3, channels):
        raise UnreadableError(f"it has {array.shape[2]} channels, but the data set has {channels}")
    _check_pixels(array.shape[0] * array.shape[1])
    if reading.levels and array.dtype != np.uint8:
        array = reading.levels.of(_finite(array))
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = (array / 257).round().astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise UnreadableError("its values are not all between 0 and 1")
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        raise UnreadableError(f"an array of {array.dtype} is not an image: use uint8, uint16, or floats in [0, 1]")
    if channels == 1 and array.shape[2] == 3:
        array = np.asarray(Image.fromarray(array).convert("L"))[..., None]
    elif channels == 3 and array.shape[2] == 1:
        array = array.repeat(3, axis=2)
    return [np.ascontiguousarray(array[..., plane]) for plane in range(array.shape[2])]


def values_of(path: Path | Member) -> NDArray[Any] | None:
    """Return the numbers of a picture that has others than bytes, or None if it has bytes.

    Raises: UnreadableError: If the file is not a readable image.
    """
    with readable(path):
        if path.suffix.lower() == ".npy":
            array = _array(path)
            return None if array.dtype == np.uint8 else _finite(array)
        with opened(path) as picture:
            return _finite(np.asarray(picture)) if _counts(picture) else None


def holds_several(path: Path | Member) -> bool:
    """Return whether an image file holds several pages or frames, of which the first is read; they are not counted."""
    try:
        if path.suffix.lower() == ".npy":
            return False
        with opened(path) as picture:
            return bool(getattr(picture, "is_animated", False))
    except Exception:  # whoever reads it says why it cannot be read
        return False


def _counts(picture: Image.Image) -> bool:
    """Return whether the values of a picture are no bytes."""
    return picture.mode.startswith("I") or picture.mode == "F"


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    """Return numbers that are all finite.

    Raises: UnreadableError: If they are not, or are no real numbers.
    """
    if values.dtype.kind not in "buif":
        raise UnreadableError(f"an array of {values.dtype} is not an image: use integers or floats")
    if not np.isfinite(values).all():
        raise UnreadableError("its values are not all finite")
    return values


def _to_mode(picture: Image.Image, mode: str, reading: Reading) -> Image.Image:
    """Return the image upright, on white, in 8-bit greyscale or RGB."""
    sixteen_bits = picture.mode.startswith("I;16")
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # a copy costs a fifth of decoding a small picture
        picture = ImageOps.exif_transpose(picture)
    if _counts(picture) and reading.levels:
        return Image.fromarray(reading.levels.of(_finite(np.asarray(picture)))).convert(mode)
    if _counts(picture):
        values = _finite(np.asarray(picture, dtype=np.float64))
        ranges = (1.0, 255.0, 65535.0) if picture.mode == "F" else (255.0, 65535.0)  # the smallest that fits
        top = 65535.0 if sixteen_bits else next((limit for limit in ranges if values.max() <= limit), ranges[-1])
        return Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8)).convert(mode)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        front = picture.convert("RGBA")
        front = _in_srgb(front, picture) if reading.profiles else front
        white = Image.new("RGBA", front.size, "white")
        return Image.alpha_composite(white, front).convert(mode)
    picture = _in_srgb(picture, picture) if reading.profiles else picture
    return picture.convert(mode)


def _in_srgb(picture: Image.Image, source: Image.Image) -> Image.Image:
    """Return a picture with its colours converted to sRGB, if its file has another profile that fits them.

    Greyscale pictures stay so. A profile that is damaged, or for other colours than the picture's, is not used.

    Args:
        picture: What to convert.
        source: The picture as it was opened, with its profile.
    """
    profile = source.info.get("icc_profile")
    if not isinstance(profile, bytes) or not 0 < len(profile) <= PROFILE or source.mode == "1":
        return picture
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(opened).lower():
            return picture
        alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
        colours = picture if alpha is None and picture.mode != "P" else picture.convert("RGB")
        if opened.profile.xcolor_space.strip() == "GRAY" and colours.mode == "RGB":
            colours = colours.convert("L")
        converted = ImageCms.profileToProfile(colours, opened, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return picture
    if converted is None:
        return picture
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def tile(pictures: Tensor, columns: int, enlarge: int = 1, gap: int = 1) -> Image.Image:
    """Lay out images in a grid, row by row.

    Args:
        pictures: uint8, `(count, channels, height, width)`; with other than 3 channels the first is shown in grey.
        columns: Images per row.
        enlarge: Integer factor by which each pixel is enlarged.
        gap: Pixels between images, before enlarging.

    Returns: The contact sheet.
    """
    count, channels, height, width = pictures.shape
    rows = -(-count // columns)
    shown = pictures if channels == 3 else pictures[:, :1].expand(-1, 3, -1, -1)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 96, dtype=np.uint8)
    for index, picture in enumerate(shown.permute(0, 2, 3, 1).numpy()):
        row, column = divmod(index, columns)
        top, left = gap + row * (height + gap), gap + column * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return Image.fromarray(sheet).resize((sheet.shape[1] * enlarge, sheet.shape[0] * enlarge), Image.Resampling.NEAREST)


def enlargement(side: int, wanted: int = 64) -> int:
    """Return the integer factor that enlarges a side to about `wanted` pixels."""
    return max(1, round(wanted / side))


def scatter(points: Tensor, side: int = 480, limit: float = 3.0) -> Image.Image:
    """Draw a scatter plot of the first two coordinates, within ±limit.

    Args:
        points: `(count, coordinates)`.
        side: Side of the image in pixels.
        limit: Half the side of the window.

    Returns: The image.
    """
    canvas = np.full((side, side, 3), 255, dtype=np.uint8)
    near = points[(points[:, :2].abs() < limit).all(1), :2]  # this also drops NaN
    places = ((near.float().numpy() / limit + 1) / 2 * (side - 1)).round().astype(int)
    places = places[((places >= 1) & (places < side - 1)).all(axis=1)]
    for right, down in ((0, 0), (0, 1), (1, 0), (1, 1)):
        canvas[side - 1 - places[:, 1] - down, places[:, 0] + right] = (31, 119, 180)
    return Image.fromarray(canvas)


def row_of(pictures: Sequence[Image.Image], down: bool = False) -> Image.Image:
    """Concatenate images of one size horizontally, or vertically if `down`."""
    return Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures], axis=0 if down else 1))


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG atomically.

    Raises: EnvironmentFailure: If the disk fails.
    """
    with whole(path) as part:
        picture.save(part, format="PNG")


def save_film(frames: Sequence[Image.Image], path: Path, milliseconds: int) -> None:
    """Write an animated GIF that shows the last frame for two seconds.

    Raises: UserError: If there are no frames.
        EnvironmentFailure: If the disk fails.
    """
    if not frames:
        raise UserError("a film needs at least one frame")
    palette = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames]
    times = [milliseconds] * (len(frames) - 1) + [2000]
    with whole(path) as part:
        palette[0].save(part, format="GIF", save_all=True, append_images=palette[1:], duration=times, loop=0)


def save_video(frames: Sequence[Image.Image], path: Path, milliseconds: int) -> None:
    """Write an MP4 (H.264) that shows the last frame for two seconds; needs the extra 'video'.

    Raises: UserError: If there are no frames.
        EnvironmentFailure: If the disk fails.
    """
    import av

    if not frames:
        raise UserError("a film needs at least one frame")
    width, height = (side + side % 2 for side in frames[0].size)  # yuv420p needs even sides
    with whole(path) as part, av.open(part, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=round(1000 / milliseconds), options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in [*frames, *[frames[-1]] * (2000 // milliseconds)]:
            even = ImageOps.expand(frame.convert("RGB"), (0, 0, width - frame.width, height - frame.height))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(even), "rgb24")))
        file.mux(stream.encode())
