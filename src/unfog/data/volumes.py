"""Volumes as rows of voxels: what such a row is."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unfog.data.modality import Modality
from unfog.data.pictures import UnreadableError, enlargement, tile
from unfog.runtime.files import whole

SURFACES, SURFACE, FACES = 32, 96, 5000
"""Volumes on a sheet up to which their surfaces are drawn, the pixels of one, and its triangles, at most."""


@final
@dataclass(frozen=True)
class Volumes(Modality):
    """Volumes, uint8 `(channels, depth, height, width)`: a `.npy` each. Sheets show slices and the surface.

    A cell holds the middle slices across the three axes, one below the other, and where scikit-image is installed and
    the volumes are few the surface at half of the largest value.
    """

    name: ClassVar[str] = "volumes"
    suffix: ClassVar[str] = ".npy"
    suffixes: ClassVar[frozenset[str]] = frozenset({".npy", ".npz", ".nii", ".nii.gz"})
    axes: ClassVar[tuple[str, ...]] = ("channel", "slice", "row", "column")

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return the volumes with their sides."""
        channels = f", {shape[0]} channels" if shape[0] > 1 else ""
        return f"volumes of {'×'.join(map(str, shape[1:]))} voxels{channels}"

    def sheet(self, samples: Tensor, columns: int, side: int | None = None) -> Image.Image:
        """Draw the slices, and of a few the surfaces, but where a side is asked for, as in films: they take long."""
        first = samples[:, 0]
        scale = enlargement(min(first.shape[1:]), 48 if side is None else max(side, 1))
        surfaces = side is None and len(first) <= SURFACES and bool(find_spec("skimage"))
        return tile(torch.stack([_cell(one, scale, surfaces) for one in first.numpy()]), columns)

    def write(self, samples: Tensor, path: Path) -> None:
        """Write an array file, `(depth, height, width)`, or with channels before them."""
        row = samples[0, 0] if samples.shape[1] == 1 else samples[0]
        with whole(path) as part, part.open("wb") as file:
            np.save(file, row.contiguous().numpy(), allow_pickle=False)

    def read(self, path: Path, shape: tuple[int, ...]) -> Tensor:
        """Return the volume of an array file as `write` writes it."""
        try:
            row = np.load(path, allow_pickle=False, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise UnreadableError(str(error)) from error
        if (row.shape if shape[0] > 1 else (1, *row.shape)) != shape or row.dtype != np.uint8:
            raise UnreadableError(f"its numbers, {row.dtype} of shape {row.shape}, are none of {self.describe(shape)}")
        return torch.from_numpy(np.array(row)).reshape(1, *shape)


volumes = Volumes()


def _cell(volume: NDArray[np.uint8], scale: int, surface: bool) -> Tensor:
    """Return a picture of a volume, `(3, height, width)`: its middle slices, and its surface."""
    slices = [np.take(volume, volume.shape[axis] // 2, axis) for axis in range(3)]
    wide = max(one.shape[1] for one in slices)
    padded = [np.pad(one, ((0, 1), (0, wide - one.shape[1])), constant_values=128) for one in slices]
    shown = Image.fromarray(np.concatenate(padded).repeat(scale, 0).repeat(scale, 1)).convert("RGB")
    if not surface:
        return _tensor(shown)
    both = Image.new("RGB", (shown.width + SURFACE, max(shown.height, SURFACE)), "white")
    both.paste(shown, (0, 0))
    both.paste(_surface(volume), (shown.width, (both.height - SURFACE) // 2))
    return _tensor(both)


def _tensor(picture: Image.Image) -> Tensor:
    """Return a picture as `(3, height, width)`."""
    return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())


def _surface(volume: NDArray[np.uint8]) -> Image.Image:
    """Return the surface of a volume at half of its largest value, seen from an edge; nothing where it is empty."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from skimage.measure import marching_cubes

    empty = Image.new("RGB", (SURFACE, SURFACE), "white")
    padded = np.pad(volume.astype(np.float32), 1)
    if padded.max() < 2:
        return empty
    mesh: Any = marching_cubes
    points, faces, *_ = mesh(padded, float(padded.max()) / 2)
    if len(faces) > FACES:  # of noise, which takes seconds to draw
        points, faces, *_ = mesh(padded, float(padded.max()) / 2, step_size=3)
    figure = Figure(figsize=(1, 1), dpi=SURFACE)
    canvas: Any = FigureCanvasAgg(figure)
    plot: Any = figure.add_axes((-0.2, -0.2, 1.4, 1.4), projection="3d")
    down, up, across = points.T  # slices lie above each other
    plot.plot_trisurf(across, up, faces[:, ::-1], padded.shape[0] - down, color="#5b8fc7", linewidth=0)
    sides = padded.shape
    plot.set(xlim=(0, sides[2]), ylim=(0, sides[1]), zlim=(0, sides[0]), box_aspect=sides[::-1])
    plot.set_axis_off()
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
