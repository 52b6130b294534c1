"""A folder of sounds: WAV, FLAC, OGG and MP3, resampled to one rate and brought to one length."""

import math
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from unfog.data.labels import AUTO
from unfog.data.listing import Kind, few
from unfog.data.media import Survey, gathered, survey
from unfog.data.pictures import UnreadableError
from unfog.data.sounds import FULL, Sounds
from unfog.data.source import Data
from unfog.runtime.errors import EnvironmentFailure, UserError
from unfog.runtime.lines import counted

RECORDINGS = Kind("recording", "recordings", Sounds.suffixes)
FORMATS = frozenset({"WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3"})
"""Containers that are read, as libsndfile calls them, whatever a file's suffix says."""
RATES, HIGHEST = (1000, 192_000), 16_000
"""Samples a second that are read, and the largest rate that is chosen."""
LONGEST, MOST, TIMES = 30.0, 3600.0, 4.0
"""Seconds of a row, and of a file, at most; files that are so many times longer than a row are cut into windows."""
SAMPLES = 1 << 28
"""Samples of a file over all channels, at most: 1 GiB once they are decoded."""
PEAK, SILENT, CLIPPED = 0.9, 10 ** (-60 / 20), 0.001
"""Largest sample of a row of full scale 1, below which a file is silent, and the share of samples at full scale from
which it counts as clipped."""
Rows = Literal["auto", "clips", "windows"]
Wave = NDArray[np.float32]


class Header(NamedTuple):
    """What the header of a recording says.

    Attributes:
        rate: Samples a second.
        channels: 1 for mono, 2 for stereo.
        seconds: Its length.
    """

    rate: int
    channels: int
    seconds: float


class Look(NamedTuple):
    """What suits a folder of recordings.

    Attributes:
        rate: Samples a second: the most frequent rate, at most 16,000.
        channels: 2 if most are in stereo.
        seconds: The length that all but a fiftieth of them have or are below, at most 2.
        rows: How many there are.
        classes: How many classes they have.
    """

    rate: int
    channels: int
    seconds: float
    rows: int
    classes: int


def header(path: Path) -> Header:
    """Read the header of a recording.

    Raises: UnreadableError: If it is none, empty, or too long.
        EnvironmentFailure: If soundfile is not installed.
    """
    sound = _package()
    if not path.is_file():
        raise UnreadableError("there is no such file")
    try:
        found = sound.info(str(path))
    except (sound.SoundFileError, RuntimeError, OSError, ValueError) as error:
        raise UnreadableError(_reason(error)) from error
    if found.format not in FORMATS:
        raise UnreadableError(f"its container {found.format} is not read")
    if found.frames <= 0:
        raise UnreadableError("it is empty")
    if not RATES[0] <= found.samplerate <= RATES[1] or not 1 <= found.channels <= 64:
        raise UnreadableError(f"{found.samplerate:,} samples a second in {found.channels} channels are not read")
    seconds = found.frames / found.samplerate
    if seconds > MOST:
        raise UnreadableError(f"it lasts {seconds:,.0f} s, more than {MOST:,.0f}")
    if found.frames * found.channels > SAMPLES:
        raise UnreadableError(f"too large: its {found.frames * found.channels:,} samples are more than {SAMPLES:,}")
    return Header(found.samplerate, found.channels, seconds)


def _package() -> Any:
    """Return soundfile.

    Raises: EnvironmentFailure: If it is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise EnvironmentFailure(
            f"sounds are read by soundfile, which is missing: pip install 'unfog[audio]' ({error})"
        ) from error
    return soundfile


def _reason(error: Exception) -> str:
    """Return why a file cannot be read, without its path."""
    return str(error).rpartition(": ")[2].strip().rstrip(".") or type(error).__name__


def surveyed(path: str, where: str = "", label_from: str = AUTO) -> Survey[Header]:
    """Return what the headers of a folder's recordings say."""
    return survey(path, RECORDINGS, header, where, label_from)


def suited(found: Survey[Header]) -> Look:
    """Return the rate, the channels and the length that suit recordings, see `Look`."""
    rate = min(HIGHEST, Counter(one.rate for one in found.about).most_common(1)[0][0])
    channels = 2 if 2 * sum(one.channels > 1 for one in found.about) > len(found.about) else 1
    seconds = min(2.0, float(np.percentile([one.seconds for one in found.about], 98)))
    return Look(rate, channels, seconds, len(found.about), len(found.listing.classes))


def recordings(
    path: str = "",
    rate: int | None = None,
    length: int | None = None,
    channels: int | None = None,
    rows: Rows = "auto",
    loudness: bool = True,
    heldout: float = 0.1,
    where: str = "",
    label_from: str = AUTO,
) -> Data:
    """Read a folder of recordings.

    Each is resampled, mixed to the channels that are wanted, and brought to one length: shorter ones end in silence,
    longer ones are cut, or where rows are windows divided into several.

    Args:
        path: The folder: class sub-folders, `metadata.jsonl`, or just recordings.
        rate: Samples a second; default: the most frequent rate, at most 16,000.
        length: Samples of a row; default: what all but a fiftieth of the recordings have, at most 2 seconds.
        channels: 1 or 2; default: 2 if most are in stereo.
        rows: "clips", a row for each file; "windows", as many as it is long; "auto": windows where the median file is
            four times as long as a row.
        loudness: Whether each row is brought to the same peak, 0.9 of full scale.
        heldout: Share of the recordings to hold out, of each class by the hash of their names.
        where: Use only the lines of `metadata.jsonl` with `key=value`.
        label_from: What the class of a recording is, see `unfog.data.folder.folder`.

    Returns: Rows, int16 `(channels, length)`; what cannot be read, and what is silent, is skipped and said.
    Raises: UserError: If the folder is missing, or less than two recordings can be read.
        EnvironmentFailure: If soundfile is not installed.
    """
    found = surveyed(path, where, label_from)
    own = suited(found)
    rate, channels = own.rate if rate is None else rate, own.channels if channels is None else channels
    if not RATES[0] <= rate <= RATES[1] or channels not in (1, 2):
        raise UserError(
            f"data.rate must be from {RATES[0]:,} to {RATES[1]:,} and data.channels 1 or 2, not {rate} and {channels}"
        )
    length = max(1, round(own.seconds * rate)) if length is None else length
    if not 16 <= length <= LONGEST * rate:
        raise UserError(f"data.length must be from 16 samples to {LONGEST:g} s, not {length} at {rate:,} a second")
    median = float(np.median([one.seconds for one in found.about]))
    cut = rows == "windows" or (rows == "auto" and median * rate >= TIMES * length)
    clipped: list[str] = []

    def rows_of(file: Path, about: Header) -> Iterator[NDArray[np.int16]]:
        sound = _read(file, about, rate, channels, None if cut else length)
        if np.mean(np.abs(sound) >= 1 - 2**-15) > CLIPPED:
            clipped.append(file.name)
        if float(np.abs(sound).max(initial=0.0)) < SILENT:
            raise UnreadableError("it is silent")
        for part in _parts(sound, length, cut):
            if float(np.abs(part).max()) >= SILENT:
                yield _levelled(part, loudness)

    def notes() -> list[str]:
        full = f"clipped, a thousandth of their samples or more at full scale: {counted(len(clipped), 'recording')}"
        return _notes(found, rate, channels, length, cut) + ([f"{full} ({few(clipped)})"] if clipped else [])

    return gathered(found, rows_of, (channels, length), np.int16, heldout, notes, RECORDINGS)


def sounds_at(path: Path, rate: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Read a recording, or all recordings of a folder, as stored in a data set of this rate and shape.

    Each is brought to the peak that the rows of a data set have; what is longer or shorter is cut or ends in silence,
    and said.

    Returns: int16 `(recordings, channels, samples)`.
    Raises: UserError: If there are none, or one cannot be read or is silent.
    """
    if not path.exists():
        raise UserError(f"the recording {path} does not exist: check the path")
    files = [path] if path.is_file() else [path / file for file in surveyed(str(path)).listing.files]
    rows = []
    for file in files:
        try:
            about = header(file)
            sound = _read(file, about, rate, shape[0], shape[1])
            if float(np.abs(sound).max(initial=0.0)) < SILENT:
                raise UnreadableError("it is silent")
        except UnreadableError as error:
            raise UserError(f"the recording {file} cannot be read ({error}): check the path") from None
        if abs(about.seconds * rate - shape[1]) > 1:
            what = "cut" if about.seconds * rate > shape[1] else "followed by silence"
            warnings.warn(
                f"{file.name} of {about.seconds:.3g} s is {what}: the model takes {shape[1] / rate:.3g} s", stacklevel=2
            )
        rows.append(_levelled(next(_parts(sound, shape[1], False)), True))
    return torch.from_numpy(np.stack(rows))


def _notes(found: Survey[Header], rate: int, channels: int, length: int, cut: bool) -> list[str]:
    """Say what is done with recordings that are not as the rows are."""
    total, notes = len(found.about), []
    other = sum(one.rate != rate for one in found.about)
    if other:
        notes.append(f"resampled to {rate:,} samples a second: {counted(other, 'recording')} of {total:,}")
    mixed = sum(one.channels != channels for one in found.about)
    if mixed:
        notes.append(f"mixed to {'mono' if channels == 1 else 'stereo'}: {counted(mixed, 'recording')} of {total:,}")
    longer = sum(one.seconds * rate > length + 1 for one in found.about)
    if longer and not cut:
        notes.append(f"cut to {length / rate:.3g} s: {counted(longer, 'recording')} of {total:,}")
    if cut:
        notes.append(f"rows are windows of {length / rate:.3g} s")
    return notes


def _read(path: Path, about: Header, rate: int, channels: int, length: int | None) -> Wave:
    """Return a recording at a rate, `(channels, samples)`; with a length no more than that is read."""
    sound = _package()
    most = -1 if length is None else math.ceil((length / rate + 0.1) * about.rate)
    try:
        data, found = sound.read(str(path), frames=most, dtype="float32", always_2d=True)
    except (sound.SoundFileError, RuntimeError, OSError, ValueError) as error:
        raise UnreadableError(_reason(error)) from error
    if not len(data):
        raise UnreadableError("it is empty")
    if not np.isfinite(data).all():
        raise UnreadableError("it holds numbers that are not finite")
    mixed = data.T if data.shape[1] == channels else np.repeat(data.mean(1)[None], channels, 0)
    if found != rate:
        from scipy.signal import resample_poly  # slow to import, and seldom needed

        shared = math.gcd(rate, found)
        mixed = resample_poly(mixed, rate // shared, found // shared, axis=1)
    return np.ascontiguousarray(mixed[:, :length], dtype=np.float32)


def _parts(sound: Wave, length: int, cut: bool) -> Iterator[Wave]:
    """Yield the rows of a recording; the last window of a long one ends with it."""
    samples = sound.shape[1]
    if not cut or samples <= length:
        yield np.pad(sound[:, :length], ((0, 0), (0, max(0, length - samples))))
        return
    starts = [*range(0, samples - length, length), samples - length]
    for start in starts:
        yield sound[:, start : start + length]


def _levelled(part: Wave, loudness: bool) -> NDArray[np.int16]:
    """Return a row as 16 bits, at the peak that all have if wanted."""
    scaled = part * (PEAK / float(np.abs(part).max())) if loudness else part
    rounded: NDArray[np.int16] = np.round(np.clip(scaled, -1, 1) * FULL).astype(np.int16)
    return rounded
