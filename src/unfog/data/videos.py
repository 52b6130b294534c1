"""A folder of videos: GIF, MP4, WebM, MOV and MKV, or a folder of frames for each, as clips of one size and length."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unfog.data.classic import existing
from unfog.data.clips import Clips
from unfog.data.labels import AUTO
from unfog.data.listing import Kind, Listing, natural
from unfog.data.media import Survey, gathered, survey, told
from unfog.data.pictures import SUFFIXES, UnreadableError, fitted, opened, readable, sides_of
from unfog.data.source import Data
from unfog.data.walk import walk
from unfog.runtime.errors import EnvironmentFailure, UserError
from unfog.runtime.lines import counted

VIDEOS = Kind("video", "videos", Clips.suffixes)
DEMUXERS = {".mp4": "mov", ".mov": "mov", ".webm": "matroska", ".mkv": "matroska"}
"""What takes a container apart, by the file's suffix alone: a playlist that is named .mp4 is a damaged MP4."""
PIXELS, FRAMES = 1 << 25, 1 << 16
"""Pixels of a frame, and frames of a file that are looked at, at most."""
USUAL, SIDES, FASTEST = 16, (8, 16, 24, 32), 10.0
"""Frames of a clip, the sides to choose from, and the most frames a second, by default."""
MOST = (256, 256)
"""Frames of a clip, and pixels of its sides, at most."""
TIMES = 2.0
"""Videos that are so many times longer than a clip are divided into several."""
Rows = Literal["auto", "clips", "windows"]
Frame = NDArray[np.uint8]


class Header(NamedTuple):
    """What is known of a video before it is decoded.

    Attributes:
        height: Pixels of a frame, down.
        width: Pixels of a frame, across.
        fps: Frames a second; 0 where frames are pictures in a folder.
        frames: How many there are, about; 0 where the file does not say.
        grey: Whether its first frame is grey.
    """

    height: int
    width: int
    fps: float
    frames: int
    grey: bool


class Look(NamedTuple):
    """What suits a folder of videos.

    Attributes:
        channels: 1 if the first frames of all are grey.
        height: Of a frame: the largest of 8, 16, 24, 32 that the median of the shorter sides reaches.
        width: As `height`.
        frames: 16, or less where most videos are shorter.
        fps: The median, at most 10.
        rows: How many there are.
        classes: How many classes they have.
    """

    channels: int
    height: int
    width: int
    frames: int
    fps: float
    rows: int
    classes: int


def surveyed(path: str, where: str = "", label_from: str = AUTO) -> Survey[Header]:
    """Return what is known of the videos of a folder, or of its folders of frames where it holds no videos."""
    root = existing(path)
    names = walk(root, Clips.suffixes | SUFFIXES).files
    if any(VIDEOS.holds(name) for name in names):
        return survey(path, VIDEOS, header, where, label_from)
    if where or label_from != AUTO:
        raise UserError("folders of frames have no metadata, and their classes are the folders above them: omit both")
    return _of_frames(root, names)


def _of_frames(root: Path, names: list[str]) -> Survey[Header]:
    """Return folders that hold pictures as videos; the folders above them are the classes, if there are several."""
    inside: dict[str, list[str]] = {}
    for name in names:
        path = Path(name)
        if path.suffix.lower() in SUFFIXES and path.suffix.lower() != ".npy" and str(path.parent) != ".":
            inside.setdefault(str(path.parent), []).append(name)
    about: dict[str, Header] = {}
    bad: dict[str, str] = {}
    for folder, frames in sorted(inside.items()):
        try:
            about[folder] = _picture(root / min(frames, key=natural))._replace(fps=0.0, frames=len(frames))
        except UnreadableError as error:
            bad[folder] = str(error)
    if not about:
        why = f": {told(bad)}" if bad else f" ({', '.join(sorted(VIDEOS.suffixes))}), and no folders of frames"
        raise UserError(f"{root} contains no videos{why}: check the path")
    tops = {folder: Path(folder).parts[0] for folder in about if len(Path(folder).parts) > 1}
    classes = tuple(sorted(set(tops.values()), key=natural))
    known = len(tops) == len(about) and len(classes) > 1
    labels = tuple(classes.index(tops[folder]) for folder in about) if known else None
    listing = Listing(root, tuple(about), labels, classes if known else (), many=VIDEOS.many)
    return Survey(listing, tuple(about.values()), bad)


def header(path: Path) -> Header:
    """Read what is known of a video without decoding more than its first frame.

    Raises: UnreadableError: If it is none, or its frames are too large.
        EnvironmentFailure: If PyAV is not installed, and it is no GIF.
    """
    if path.suffix.lower() == ".gif":
        return _picture(path)
    with _container(path) as (file, stream):
        first = next(_decoded(file, stream), None)
        if first is None:
            raise UnreadableError("it has no frames")
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        frames = int(stream.frames or (float(file.duration or 0) / 1e6 * rate))
        return Header(first.height, first.width, rate, frames, _grey(first))


def _picture(path: Path) -> Header:
    """Return what is known of a GIF, or of one frame."""
    with readable(path), opened(path) as file:
        count = int(getattr(file, "n_frames", 1))
        lasts = float(file.info.get("duration", 0)) or 100.0
        return Header(file.height, file.width, 1000 / lasts, count, _grey(file.convert("RGB")))


def _grey(picture: Image.Image) -> bool:
    """Return whether a picture has no colours."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    return bool((np.ptp(pixels, axis=2) <= 8).all())


@contextmanager
def _container(path: Path) -> "Iterator[tuple[Any, Any]]":
    """Open a video with the demuxer of its suffix, which reads this one file and nothing that it names."""
    try:
        import av
    except ImportError as error:
        raise EnvironmentFailure(
            f"videos are read by PyAV, which is missing: pip install 'unfog[video]' ({error})"
        ) from error
    if not path.is_file():
        raise UnreadableError("there is no such file")
    options = {"protocol_whitelist": "file", "enable_drefs": "0"}
    try:
        with av.open(str(path), format=DEMUXERS[path.suffix.lower()], options=options) as file:
            if not file.streams.video:
                raise UnreadableError("it has no picture")
            stream = file.streams.video[0]
            if not 0 < stream.codec_context.width * stream.codec_context.height <= PIXELS:
                raise UnreadableError(f"too large: its frames have more than {PIXELS:,} pixels, or do not say")
            yield file, stream
    except (av.FFmpegError, OSError, ValueError, KeyError) as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(getattr(error, "strerror", None) or str(error) or type(error).__name__) from error


def _decoded(file: Any, stream: Any) -> Iterator[Image.Image]:
    """Yield the frames of an open video."""
    for frame in file.decode(stream):
        yield frame.to_image()


def frames_of(path: Path) -> Iterator[tuple[float, Image.Image]]:
    """Yield the frames of a video, of a GIF or of a folder, each with the second at which it is shown.

    Raises: UnreadableError: If it is damaged.
    """
    if path.is_dir():
        names = [one for one in path.iterdir() if one.suffix.lower() in SUFFIXES]
        for place, name in enumerate(sorted(names, key=lambda one: natural(one.name))):
            with readable(name), opened(name) as picture:
                yield float(place), picture.convert("RGB")
        return
    if path.suffix.lower() == ".gif":
        with readable(path), opened(path) as file:
            second = 0.0
            for number in range(min(int(getattr(file, "n_frames", 1)), FRAMES)):
                file.seek(number)
                yield second, file.convert("RGB")
                second += (float(file.info.get("duration", 0)) or 100.0) / 1000
        return
    with _container(path) as (file, stream):
        rate = float(stream.average_rate or 25)
        for number, frame in enumerate(file.decode(stream)):
            if number >= FRAMES:
                return
            yield (number / rate if frame.time is None else float(frame.time)), frame.to_image()


def suited(found: Survey[Header]) -> Look:
    """Return what suits videos, see `Look`."""
    about = found.about
    short = float(np.median([min(one.height, one.width) for one in about]))
    side = max([side for side in SIDES if side <= short], default=SIDES[0])
    fps = min(FASTEST, float(np.median([one.fps for one in about]))) or FASTEST
    lengths = [one.frames if one.fps == 0 else one.frames / one.fps * fps for one in about]
    usual = float(np.median([length or USUAL for length in lengths]))
    frames = max([count for count in (4, 8, USUAL) if count <= usual + 0.5], default=4)
    channels = 1 if all(one.grey for one in about) else 3
    return Look(channels, side, side, frames, fps, len(about), len(found.listing.classes))


def videos(
    path: str = "",
    size: int | tuple[int, int] | None = None,
    frames: int | None = None,
    fps: float | None = None,
    channels: int | None = None,
    rows: Rows = "auto",
    heldout: float = 0.1,
    where: str = "",
    label_from: str = AUTO,
) -> Data:
    """Read a folder of videos, or of folders of frames, as clips.

    Frames are taken at a rate, centre-cropped and resized. Longer videos are divided into several clips, and the clips
    of one video are on one side of the split; shorter ones are skipped.

    Args:
        path: The folder: class sub-folders, `metadata.jsonl`, or just videos; or a folder of frames for each clip.
        size: Side, or [height, width]; default: the largest of 8, 16, 24, 32 that most videos reach.
        frames: Frames of a clip; default: 16, or less where most videos are shorter.
        fps: Frames a second; default: the median of the videos, at most 10. Of folders of frames all are taken.
        channels: 1 or 3; default: 1 if all are grey.
        rows: "clips", one for each video; "windows", as many as it is long; "auto": windows where the median video is
            twice as long as a clip.
        heldout: Share of the videos to hold out, of each class by the hash of their names.
        where: Use only the lines of `metadata.jsonl` with `key=value`.
        label_from: What the class of a video is, see `unfog.data.folder.folder`.

    Returns: Rows, uint8 `(channels, frames, height, width)`; what cannot be read is skipped and said.
    Raises: UserError: If the folder is missing, or less than two videos can be read.
        EnvironmentFailure: If PyAV is not installed, and there are others than GIFs.
    """
    found = surveyed(path, where, label_from)
    own = suited(found)
    height, width = sides_of(size) or (own.height, own.width)
    frames, fps, channels = frames or own.frames, fps or own.fps, channels or own.channels
    if not 1 <= frames <= MOST[0] or max(height, width) > MOST[1] or channels not in (1, 3) or not 0 < fps <= 240:
        raise UserError(
            f"clips have 1 to {MOST[0]} frames of up to {MOST[1]} pixels a side in 1 or 3 channels at up to 240 frames "
            f"a second, not {frames} of {width}×{height} in {channels} at {fps:g}"
        )
    lengths = [one.frames if one.fps == 0 else one.frames / one.fps * fps for one in found.about]
    cut = rows == "windows" or (rows == "auto" and float(np.median(lengths)) >= TIMES * frames)
    shape = (channels, frames, height, width)

    def rows_of(file: Path, about: Header) -> Iterator[Frame]:
        taken = _taken(file, about, fps, lambda picture: _pixels(picture, channels, height, width))
        clip: list[Frame] = []
        made = 0
        for frame in taken:
            clip.append(frame)
            if len(clip) == frames:
                yield np.stack(clip, 1)
                clip, made = [], made + 1
                if not cut:
                    return
        if not made:
            raise UnreadableError(f"it has {counted(len(clip), 'frame')}, fewer than {frames}")

    return gathered(found, rows_of, shape, np.uint8, heldout, lambda: _notes(found, frames, fps, cut), VIDEOS)


def _notes(found: Survey[Header], frames: int, fps: float, cut: bool) -> list[str]:
    """Say what is done with videos that are not as the rows are."""
    total, notes = len(found.about), []
    other = sum(one.fps not in (0.0, fps) for one in found.about)
    if other:
        notes.append(f"taken at {fps:g} frames a second: {counted(other, 'video')} of {total:,} at another rate")
    sizes = {(one.height, one.width) for one in found.about}
    if len(sizes) > 1:
        notes.append(f"cropped and resized to one size: videos of {len(sizes)} sizes")
    if cut:
        notes.append(f"rows are windows of {frames} frames")
    return notes


def _taken(file: Path, about: Header, fps: float, pixels: Callable[[Image.Image], Frame]) -> Iterator[Frame]:
    """Yield the frames of a video at a rate: at each moment the one that is shown; of a folder all."""
    if about.fps == 0:
        yield from (pixels(picture) for _, picture in frames_of(file))
        return
    number, last = 0, None
    start = None
    for second, picture in frames_of(file):
        start = second if start is None else start
        while last is not None and number / fps < second - start - 1e-6:
            yield last
            number += 1
        last = pixels(picture)
    if last is not None:
        yield last


def _pixels(picture: Image.Image, channels: int, height: int, width: int) -> Frame:
    """Return a frame as `(channels, height, width)`."""
    shown = np.asarray(fitted(picture.convert("L" if channels == 1 else "RGB"), height, width))
    return shown[None] if channels == 1 else shown.transpose(2, 0, 1)
