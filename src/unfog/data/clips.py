"""Clips of video as rows of frames: what such a row is, and how it is written and read."""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unfog.data.modality import Modality
from unfog.data.pictures import UnreadableError, enlargement, opened, readable, save_film, save_video, tile
from unfog.runtime.files import whole

SHOWN = 8
"""Frames of a clip on a sheet, at most, first and last among them."""


@final
@dataclass(frozen=True)
class Clips(Modality):
    """Clips, uint8 `(channels, frames, height, width)`: a GIF each. Sheets show some frames of each from left to right.

    Attributes:
        fps: Frames a second; a GIF counts hundredths of a second.
    """

    name: ClassVar[str] = "clips"
    suffix: ClassVar[str] = ".gif"
    suffixes: ClassVar[frozenset[str]] = frozenset({".gif", ".mp4", ".webm", ".mov", ".mkv"})
    axes: ClassVar[tuple[str, ...]] = ("channel", "frame", "row", "column")
    pixels: ClassVar[bool] = False
    fps: float = 10.0

    @property
    def milliseconds(self) -> int:
        """How long a frame is shown, as a GIF says it."""
        return max(10, 10 * round(100 / self.fps))

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return the clips with their frames and sides."""
        colour = "" if shape[0] == 3 else ", grey" if shape[0] == 1 else f", {shape[0]} channels"
        return f"clips of {shape[1]} frames of {shape[3]}×{shape[2]} pixels{colour}"

    def sheet(self, samples: Tensor, columns: int, side: int | None = None) -> Image.Image:
        """Draw some frames of each clip side by side."""
        picked = np.linspace(0, samples.shape[2] - 1, min(SHOWN, samples.shape[2])).round().astype(int)
        scale = enlargement(min(samples.shape[-2:]), 40 if side is None else max(side, 1))
        strips = samples[:, :, picked].permute(0, 1, 3, 2, 4).flatten(3)
        across = max(1, min(columns, -(-columns * 2 // len(picked))))
        return tile(strips, across, scale)

    def write(self, samples: Tensor, path: Path) -> None:
        """Write a GIF, which repeats; more than 256 colours are rounded to as many."""
        first, *rest = frames_of(samples[0])
        with whole(path) as part:
            first.save(
                part,
                format="GIF",
                save_all=True,
                append_images=rest,
                duration=self.milliseconds,
                loop=0,
                optimize=False,
                disposal=1,
            )

    def read(self, path: Path, shape: tuple[int, ...]) -> Tensor:
        """Return the clip of a GIF as `write` writes it: equal frames are one that lasts longer."""
        frames = []
        with readable(path), opened(path) as file:
            for number in range(min(getattr(file, "n_frames", 1), shape[1])):
                file.seek(number)
                frame = np.asarray(file.convert("RGB" if shape[0] == 3 else "L"))
                lasts = max(1, round(float(file.info.get("duration", 0)) / self.milliseconds))
                frames += [frame] * lasts
        x = np.stack(frames[: shape[1]])
        x = x.transpose(3, 0, 1, 2) if shape[0] == 3 else x[None]
        if x.shape != shape:
            raise UnreadableError(f"its frames are {x.shape}, which is none of the {self.describe(shape)}")
        return torch.from_numpy(x.copy())[None]

    def play(self, samples: Tensor, folder: Path, stem: str) -> list[Path]:
        """Write all clips side by side as one MP4, where PyAV can encode it, else as a GIF."""
        scale, columns = enlargement(min(samples.shape[-2:]), 64), math.ceil(len(samples) ** 0.5)
        pictures = [tile(frame, columns, scale) for frame in samples.unbind(2)]
        if find_spec("av"):
            save_video(pictures, path := folder / f"{stem}.mp4", self.milliseconds)
        else:
            save_film(pictures, path := folder / f"{stem}.gif", self.milliseconds)
        return [path]


def frames_of(clip: Tensor) -> list[Image.Image]:
    """Return the frames of a clip, `(channels, frames, height, width)`, as pictures."""
    return [tile(frame[None], 1, gap=0) if len(frame) == 3 else _grey(frame[0].numpy()) for frame in clip.unbind(1)]


def _grey(frame: NDArray[np.uint8]) -> Image.Image:
    """Return a grey picture; of other channels than three the first is shown."""
    return Image.fromarray(frame)
