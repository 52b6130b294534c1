"""The recipes of sounds, video, volumes and series: each looks at the data and chooses by a rule, or has its own."""

from dataclasses import replace
from pathlib import Path

from unfog.data.labels import AUTO
from unfog.data.series import Standardised
from unfog.data.sounds import Spectrogram
from unfog.data.waves import ComplexSpectrogram
from unfog.diffusion.times import LogitNormal
from unfog.recipes.hearing import SpectrogramConditioning
from unfog.recipes.networks import CompactSpec, MLPSpec
from unfog.recipes.optimizers import AdamW, Muon
from unfog.recipes.recipe import Recipe
from unfog.recipes.settings import Sampling, Training
from unfog.recipes.sources import Columns, MovingDigits, Oscillators, Recordings, Scans, Solids, Tones, Videos
from unfog.runtime.errors import UserError

Size = int | tuple[int, int]
"""The size of frames: a side, or (height, width)."""
EPOCHS = 60
"""Passes over the rows, at least."""
COARSE = 24
"""Side above which a network works on patches of four."""
NOISY = LogitNormal(mean=1.0)
"""The training times of clips."""
FRAMES = 8
"""Frames of a spectrogram are a multiple of this, so that a network on patches of four can halve them."""


def audio(data: str | None = None, size: Size | None = None, label_from: str = AUTO) -> Recipe:
    """Sounds: your own recordings, or synthesised tones of ten kinds, included.

    The rules for recordings: their most frequent rate, at most 16,000 samples a second; stereo if most are; the length
    that all but a fiftieth have, at most 2 seconds, rounded up to 8 frames. They are diffused as log-mel spectrograms
    of 64 bands, 80 from 16,000 samples a second on, in frames of 64 ms every 16 ms, by the compact network on patches
    of 4×4; guidance 2 if they have classes; 60 epochs, at least 150,000 sounds.
    """
    _no_size("audio", size)
    if data is None:
        if label_from != AUTO:
            raise UserError("the tones of the recipe 'audio' have labels of their own: omit `label_from`")
        return _of_sounds(Tones(), Spectrogram(), classes=10, images=150_000)
    from unfog.data.recordings import suited, surveyed

    look = suited(surveyed(data, label_from=label_from))
    window = 1 << round(0.064 * look.rate).bit_length() - 1
    hop, bands = window // 4, 80 if look.rate >= 16_000 else 64
    frames = -(-(round(look.seconds * look.rate) // hop + 1) // FRAMES) * FRAMES
    source = Recordings(_located(data), look.rate, (frames - 1) * hop, look.channels, label_from=label_from)
    codec = Spectrogram(look.rate, window, hop, bands)
    return _of_sounds(source, codec, look.classes, max(150_000, EPOCHS * look.rows))


def _of_sounds(source: Tones | Recordings, codec: Spectrogram, classes: int, images: int) -> Recipe:
    """Return the recipe of sounds."""
    return Recipe(
        "audio",
        data=source,
        codec=codec,
        network=CompactSpec(width=64, patch=4, middle=3),
        optimizer=Muon(lr=5e-3),
        training=Training(images=images, batch=64),
        sampling=Sampling(guidance=2.0 if classes > 1 else 1.0),
    )


def vocoder(data: str | None = None, size: Size | None = None, label_from: str = AUTO) -> Recipe:
    """Sounds from their spectrograms: your own recordings, or synthesised tones of ten kinds, included.

    A model that is given the log-mel spectrogram of a recording, 64 bands of frames of 64 ms every 16 ms, and finds a
    sound that has it; `unfog sample RUN --condition FILE.wav` rebuilds one. It is diffused as a complex spectrogram of
    frames of 32 ms, by the compact network on patches of 4×4. Rate, channels and length follow the recordings as in
    the recipe `audio`.
    """
    own = audio(data, size, label_from)
    assert isinstance(own.codec, Spectrogram)
    hop = own.codec.hop
    return replace(
        own,
        name="vocoder",
        codec=ComplexSpectrogram(own.codec.rate, 2 * hop),
        conditioning=SpectrogramConditioning(window=own.codec.window, hop=hop, bands=own.codec.bands),
        sampling=Sampling(clip=False),
    )


def video(data: str | None = None, size: Size | None = None, label_from: str = AUTO) -> Recipe:
    """Video: your own clips, or handwritten digits that fly and bounce, included.

    The rules for videos: grey if all are; frames of the largest side of 8, 16, 24, 32 that the median reaches; 16
    frames, or 8 or 4 where most videos are shorter, at their median rate, at most 10 a second. The compact network
    works on patches of 2×2×2, 4×4×4 above 24 pixels, and attends over space and then over time; guidance 2 if they
    have classes; 60 epochs, at least 100,000 clips. Times lie nearer to the noise than usual: frames that show the same
    together need more of it, and paths are decided there.
    """
    if data is None:
        _own("video", size, label_from)
        network = CompactSpec(width=40, patch=2, middle=3, factorised=True)
        return replace(_of_pixels("video", MovingDigits(), network, 120_000, 32, 2.0), times=NOISY)
    from unfog.data.videos import suited, surveyed

    look = suited(surveyed(data, label_from=label_from))
    sides = (look.height, look.width) if size is None else (size, size) if isinstance(size, int) else size
    patch = 4 if max(sides) > COARSE and look.frames % 8 == 0 else 2
    sides = _rounded(sides, 2 * patch)
    source = Videos(_located(data), sides, look.frames, look.fps, look.channels, label_from=label_from)
    network = CompactSpec(width=48 if look.channels == 1 else 64, patch=patch, middle=3, factorised=True)
    guidance = 2.0 if look.classes > 1 else 1.0
    return replace(_of_pixels("video", source, network, max(100_000, EPOCHS * look.rows), 32, guidance), times=NOISY)


def volumes(data: str | None = None, size: Size | None = None, label_from: str = AUTO) -> Recipe:
    """Volumes of voxels: your own, or balls, cubes, cylinders, cones and rings, included.

    The rules for volumes: the largest side of 8, 16, 24, 32 that the median of the shortest sides reaches, their
    numbers as bytes between the percentiles 0.5 and 99.5; the compact network on patches of 2×2×2, 4×4×4 above 24
    voxels; guidance 1.5 if they have classes; 60 epochs, at least 100,000 volumes.
    """
    if data is None:
        _own("volumes", size, label_from)
        return _of_pixels("volumes", Solids(), CompactSpec(width=32, patch=2, middle=2), 100_000, 64, 1.5)
    from unfog.data.scans import span_of, suited, surveyed

    if isinstance(size, tuple):
        raise UserError("volumes have three sides: give size as one side, or set data.size")
    found = surveyed(data, label_from=label_from)
    look = suited(found)
    side = look.side if size is None else size
    patch = 4 if side > COARSE else 2
    side = _rounded((side, side), 2 * patch)[0]
    source = Scans(_located(data), side, span_of(found), label_from=label_from)
    network = CompactSpec(width=48, patch=patch, middle=2)
    guidance = 1.5 if look.classes > 1 else 1.0
    return _of_pixels("volumes", source, network, max(100_000, EPOCHS * look.rows), 64, guidance)


def _of_pixels(
    name: str,
    source: MovingDigits | Videos | Solids | Scans,
    network: CompactSpec,
    images: int,
    batch: int,
    guidance: float,
) -> Recipe:
    """Return the recipe of clips or volumes."""
    return Recipe(
        name,
        data=source,
        network=network,
        optimizer=Muon(lr=5e-3),
        training=Training(images=images, batch=batch),
        sampling=Sampling(guidance=guidance),
    )


def series(data: str | None = None, size: Size | None = None, label_from: str = AUTO) -> Recipe:
    """Series over time with named columns: your own, or noisy oscillations, included.

    The rules for series: of one file the windows of 64 moments, or fewer where it is short; of a folder a series for
    each file, of the length that most have; every column that holds numbers, brought to zero mean and unit variance.
    """
    _no_size("series", size)
    if data is None:
        _own("series", size, label_from)
        return _of_series(Oscillators(), 1, 300_000)
    from unfog.data.columns import look

    found = look(data, label_from=label_from)
    source = Columns(_located(data), found.columns, found.length, label_from=label_from)
    return _of_series(source, found.classes, max(200_000, EPOCHS * found.rows))


def _of_series(source: Oscillators | Columns, classes: int, images: int) -> Recipe:
    """Return the recipe of series."""
    return Recipe(
        "series",
        data=source,
        codec=Standardised(),
        network=CompactSpec(width=48, patch=1, middle=3),
        optimizer=Muon(lr=5e-3),
        training=Training(images=images, batch=128),
        sampling=Sampling(guidance=2.0 if classes > 1 else 1.0, clip=False),
    )


def table(data: str | None = None, size: Size | None = None) -> Recipe:
    """The rows of a table of yours, each by itself: every column that holds numbers."""
    _no_size("table", size)
    if data is None:
        raise UserError("the recipe 'table' needs a CSV or Parquet file: give its path as `data`")
    from unfog.data.columns import look

    found = look(data, "table")
    return Recipe(
        "table",
        data=Columns(_located(data), found.columns, rows="table"),
        codec=Standardised(),
        network=MLPSpec(width=256),
        optimizer=AdamW(lr=2e-3),
        training=Training(images=max(500_000, EPOCHS * found.rows), batch=256),
        sampling=Sampling(batch=1024, clip=False),
    )


def _rounded(sides: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Return sides as multiples of what the network needs, rounded down."""
    height, width = (max(multiple, side // multiple * multiple) for side in sides)
    return height, width


def _no_size(name: str, size: Size | None) -> None:
    """Refuse a size where there are no pictures."""
    if size is not None:
        raise UserError(f"the recipe {name!r} has no pictures: omit size")


def _own(name: str, size: Size | None, label_from: str) -> None:
    """Refuse what the included set of a recipe does not take."""
    if size is not None or label_from != AUTO:
        raise UserError(f"the included set of the recipe {name!r} has sizes and labels of its own: omit them")


def _located(path: str) -> str:
    """Return an absolute path, which stays valid wherever the run is used from."""
    return str(Path(path).expanduser().resolve())
