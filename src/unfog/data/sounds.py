"""Sounds as rows of samples: what such a row is, and the codec in which they are diffused."""

import io
import wave
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from unfog.data.codecs import Unlearned
from unfog.data.modality import Modality
from unfog.data.pictures import UnreadableError, tile
from unfog.data.spectra import Mel, griffin_lim, linear, log_mel, power_of
from unfog.runtime.errors import UserError
from unfog.runtime.files import write_whole

FULL, LOUDEST = 32767, 0.99
"""The largest number of a sample of 16 bits, and the largest share of it in a sound that is made here."""
WIDE, TALL, MARGIN = 128, 40, 3
"""Pixels of a waveform on a sheet: its width, its height, and those between it and the spectrogram."""


@final
@dataclass(frozen=True)
class Sounds(Modality):
    """Sounds, int16 `(channels, samples)`: a WAV each. Sheets show the waveform above the log-mel spectrogram.

    Attributes:
        rate: Samples a second.
    """

    name: ClassVar[str] = "sounds"
    suffix: ClassVar[str] = ".wav"
    suffixes: ClassVar[frozenset[str]] = frozenset({".wav", ".flac", ".ogg", ".mp3"})
    axes: ClassVar[tuple[str, ...]] = ("channel", "sample")
    rate: int = 8000

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return the sounds with their length, rate and channels."""
        how = {1: "mono", 2: "stereo"}.get(shape[0], f"{shape[0]} channels")
        return f"sounds of {shape[-1] / self.rate:.3g} s, {how}, {self.rate:,} samples a second"

    def sheet(self, samples: Tensor, columns: int, side: int | None = None) -> Image.Image:
        """Draw the waveform of each sound, and below it the spectrogram from low to high; channels are mixed."""
        mixed = samples.float().mean(1) / FULL
        levels = log_mel(mixed, Mel.usual(self.rate))
        wide = WIDE if side is None or side < WIDE else side
        cells = [_cell(sound.numpy(), level.numpy(), wide) for sound, level in zip(mixed, levels, strict=True)]
        return tile(torch.stack(cells), columns)

    def play(self, samples: Tensor, folder: Path, stem: str) -> list[Path]:
        """Write a WAV for each sound."""
        paths = [folder / f"{stem}-{place:02}.wav" for place in range(len(samples))]
        for path, sound in zip(paths, samples, strict=True):
            self.write(sound[None], path)
        return paths

    def write(self, samples: Tensor, path: Path) -> None:
        """Write a WAV of 16 bits."""
        target = io.BytesIO()
        with wave.open(target, "wb") as file:
            file.setnchannels(samples.shape[1])
            file.setsampwidth(2)
            file.setframerate(self.rate)
            file.writeframes(samples[0].T.contiguous().numpy().astype("<i2").tobytes())
        write_whole(path, target.getvalue())

    def read(self, path: Path, shape: tuple[int, ...]) -> Tensor:
        """Return the sound of a WAV as `write` writes it."""
        try:
            with wave.open(str(path), "rb") as file:
                found = file.getnchannels(), file.getnframes(), file.getframerate(), file.getsampwidth()
                if found != (*shape, self.rate, 2):
                    channels, length, rate, width = found
                    raise UnreadableError(
                        f"it has {length:,} samples at {rate:,} a second, {channels} channels and {8 * width} bits, "
                        f"which is none of the {self.describe(shape)}"
                    )
                data = np.frombuffer(file.readframes(shape[1]), "<i2")
        except (OSError, EOFError, wave.Error) as error:
            raise UnreadableError(str(error)) from error
        if len(data) != shape[0] * shape[1]:
            raise UnreadableError("it ends too early")
        return torch.from_numpy(data.astype(np.int16).reshape(shape[1], shape[0]).T.copy())[None]


def spectrograms(x: Tensor, mel: Mel) -> Tensor:
    """Return the levels of sounds as stored, `(batch, channels, samples)`, as `(batch, channels, bands, frames)`."""
    levels = log_mel(x.flatten(0, 1).float() / FULL, mel)
    return levels.reshape(*x.shape[:2], *levels.shape[1:])


def stored(waves: Tensor) -> Tensor:
    """Return waves, full scale 1, as samples of 16 bits, each sound that would clip made quieter."""
    peaks = waves.abs().amax((1, 2), keepdim=True)
    return (waves * (LOUDEST / peaks.clamp(min=LOUDEST)) * FULL).round().to(torch.int16)


def _cell(sound: NDArray[Any], level: NDArray[Any], wide: int) -> Tensor:
    """Return a picture of a sound, `(3, height, width)`: waveform above spectrogram."""
    edges = np.linspace(0, len(sound), wide + 1).astype(int)
    canvas = Image.new("RGB", (wide, TALL), "white")
    draw = ImageDraw.Draw(canvas)
    for column, (first, last) in enumerate(pairwise(edges)):
        part = sound[first : max(last, first + 1)]
        high, low = ((1 - value) * (TALL - 1) / 2 for value in (part.max(), part.min()))
        draw.line([(column, high), (column, low)], (31, 119, 180))
    shades = np.round(127.5 * (1 - level[::-1])).astype(np.uint8)  # loud is dark, low is below
    below = Image.fromarray(shades).resize((wide, shades.shape[0]), Image.Resampling.BILINEAR).convert("RGB")
    both = Image.new("RGB", (wide, TALL + MARGIN + below.height), "white")
    both.paste(canvas, (0, 0))
    both.paste(below, (0, TALL + MARGIN))
    return torch.from_numpy(np.asarray(both).transpose(2, 0, 1).copy())


@dataclass(frozen=True)
class Spectrogram(Unlearned):
    """Samples of 16 bits to log-mel spectrograms, levels in [-1, 1], and back by the algorithm of Griffin and Lim.

    A spectrogram has no phases: those of a sample are sought until it has the spectrogram that was drawn, as nearly as
    a sound can. Sounds are compared by spectrograms of shorter frames.

    Attributes:
        rate: Samples a second.
        window: Samples of a frame.
        hop: Samples from one frame to the next.
        bands: Mel bands of a frame.
        floor: Decibels below full scale at which levels end.
        rounds: Steps in which phases are sought.
        bounds: Of the levels.
        bin_width: None: levels are continuous.

    Source: Griffin & Lim 1984, Signal estimation from modified short-time Fourier transform.
    """

    rate: int = 8000
    window: int = 512
    hop: int = 128
    bands: int = 64
    floor: float = -80.0
    rounds: int = 60
    bounds: tuple[float, float] | None = field(default=(-1.0, 1.0), init=False)
    bin_width: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 1000 <= self.rate <= 192_000:
            raise UserError(f"codec.rate must be from 1,000 to 192,000 samples a second, not {self.rate}")
        if not 16 <= self.window <= 8192 or not 1 <= self.hop <= self.window // 2:
            raise UserError(
                f"codec.window must be from 16 to 8,192 and codec.hop at most half of it, not {self.window} and "
                f"{self.hop}"
            )
        if not 4 <= self.bands <= 512 or not -200 <= self.floor < 0 or not 0 <= self.rounds <= 10_000:
            raise UserError(
                "codec.bands must be from 4 to 512, codec.floor from -200 to 0 and codec.rounds from 0 to 10,000, not "
                f"{self.bands}, {self.floor:g} and {self.rounds}"
            )

    @property
    def mel(self) -> Mel:
        """How the spectrograms are taken."""
        return Mel(self.rate, self.window, self.hop, self.bands, self.floor)

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return (channels, bands, frames).

        Raises: UserError: If the sounds are none, or their samples no multiple of the hop.
        """
        channels, *samples = stored
        if samples != [sum(samples[:1])] or samples[0] % self.hop:
            raise UserError(
                f"the codec 'spectrogram' takes sounds, (channels, samples), of a multiple of {self.hop} samples, not "
                f"rows of {stored}"
            )
        return channels, self.bands, samples[0] // self.hop + 1

    def encode(self, x: Tensor) -> Tensor:
        """Map samples, `(batch, channels, samples)`, to levels, float32 `(batch, channels, bands, frames)`."""
        return spectrograms(x, self.mel)

    def decode(self, z: Tensor) -> Tensor:
        """Map levels to samples, as many as reach to the middle of the last frame; what would clip is made quieter."""
        length = (z.shape[-1] - 1) * self.hop
        waves = torch.cat([self._sound(one, length) for one in torch.split(z.float().flatten(0, 1), 1)])
        return stored(waves.reshape(*z.shape[:2], length))

    def _sound(self, level: Tensor, length: int) -> Tensor:
        """Return one sound of such levels: by itself, since rounding would depend on what stands beside it."""
        return griffin_lim(linear(power_of(level, self.mel), self.mel), self.mel, length, self.rounds)

    def compared(self, x: Tensor) -> Tensor:
        """Return spectrograms of frames of 32 ms, `(batch, channels, bands, frames)`."""
        return spectrograms(x, Mel.usual(self.rate))
