"""What a row is: a point, an image or another array, each with how to read, write, show and describe it.

The modality of a data set is that of its specification if it names one, else it follows from the shape and the dtype of
a stored row. Nothing outside this file decides anything by the rank of a row.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, final, runtime_checkable

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from unfog.data.lettering import labelled_sheet
from unfog.data.listing import natural
from unfog.data.pictures import (
    SUFFIXES,
    UnreadableError,
    enlargement,
    read_picture,
    row_of,
    save_picture,
    scatter,
    tile,
)
from unfog.runtime.errors import UserError
from unfog.runtime.files import whole, write_whole

COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189))
"""Colours of the channels of a curve."""


class Modality(ABC):
    """One kind of rows. A value without state: two of one class are equal.

    Attributes:
        name: What rows are called in sentences, in the plural.
        suffix: Suffix of the files that samples are written to.
        suffixes: Suffixes of the files that a folder of rows may hold, in lower case; empty where folders are not read.
        axes: Names of the axes of a row; empty where there may be any.
        pixels: Whether values are pixels, bytes from 0 to 255.
        together: Whether rows say something only as a crowd, as points do: one panel shows them all, and one file,
            `{name}{suffix}`, holds them all. Otherwise a sheet has a place for each, and each has a file of its own.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    suffixes: ClassVar[frozenset[str]] = frozenset()
    axes: ClassVar[tuple[str, ...]] = ()
    pixels: ClassVar[bool] = False
    together: ClassVar[bool] = False

    @abstractmethod
    def describe(self, shape: tuple[int, ...]) -> str:
        """Return rows of a shape in words, for instance "images of 1×28×28"."""

    @abstractmethod
    def sheet(self, samples: Tensor, columns: int, side: int | None = None) -> Image.Image:
        """Show rows in one picture.

        Args:
            samples: Rows as stored, `(count, *shape)`.
            columns: Rows that stand side by side.
            side: About how many pixels wide to show a row, or all of them where they share a panel; 0 shows it as it
                is, where it has pixels of its own; default: what suits the modality.
        """

    @abstractmethod
    def write(self, samples: Tensor, path: Path) -> None:
        """Write rows as stored, `(count, *shape)`, to a file: one row where each has its own file.

        Raises: EnvironmentFailure: If the disk fails.
        """

    @abstractmethod
    def read(self, path: Path, shape: tuple[int, ...]) -> Tensor:
        """Return the rows in a file, `(count, *shape)`.

        Raises: UnreadableError: If it is damaged, or holds other data.
        """

    @final
    def paired(
        self, above: Tensor, below: Tensor, columns: int = 16, names: tuple[str, str] = ("", ""), title: str = ""
    ) -> Image.Image:
        """Show pairs of rows, `below` under `above`, or in two panels side by side where all rows share a panel.

        Args:
            above: Rows as stored, `(count, *shape)`.
            below: As many.
            columns: Pairs side by side, at most.
            names: What both are, written at the left.
            title: A line above all.
        """
        if self.together:
            panels = [self.sheet(above, 1), self.sheet(below, 1)]
            if not any(names):
                return row_of(panels)
            return labelled_sheet([(name, [panel]) for name, panel in zip(names, panels, strict=True)], title=title)
        columns = min(columns, len(above))
        parts = zip(torch.split(above, columns), torch.split(below, columns), strict=True)
        strips = [self.sheet(part, columns) for pair in parts for part in pair]
        if not any(names):
            return row_of(strips, down=True)
        return labelled_sheet([(names[place % 2], [strip]) for place, strip in enumerate(strips)], 0, title, True)

    @final
    def labelled(self, samples: Tensor, labels: Sequence[str], title: str = "", side: int | None = None) -> Image.Image:
        """Show rows with what each shows: a block for each label, with the label at the left.

        Args:
            samples: Rows as stored, `(count, *shape)`.
            labels: What each shows, `count` of them; empty for nothing.
            title: A line above all.
            side: As for `sheet`.
        """
        groups: dict[str, list[int]] = {}
        for place, label in enumerate(labels):
            groups.setdefault(label, []).append(place)
        if self.together:
            side = side or (480 if len(groups) == 1 else 200)
            panels = [(label, [self.sheet(samples[places], 1, side)]) for label, places in groups.items()]
            return labelled_sheet(panels, title=title)
        cells, gap = self.cells(samples, side)
        return labelled_sheet([(label, [cells[one] for one in some]) for label, some in groups.items()], gap, title)

    @final
    def compared(self, sets: Sequence[Tensor], names: Sequence[str], labels: Sequence[str], title: str) -> Image.Image:
        """Show sets of rows one above the other, row i of each in one column, in a block for each label, sorted.

        Args:
            sets: Rows as stored, `(count, *shape)` each.
            names: Of the sets, for the title; at the left of panels where all rows of a set share one.
            labels: What each row shows, `count` of them; empty for nothing.
            title: A line above all.
        """
        if self.together:
            panels = [(name, [self.sheet(rows, 1)]) for name, rows in zip(names, sets, strict=True)]
            return labelled_sheet(panels, title=title)
        drawn = [self.cells(rows) for rows in sets]
        columns = [row_of(cells, down=True) for cells in zip(*(cells for cells, _ in drawn), strict=True)]
        blocks: dict[str, list[Image.Image]] = {}
        for label, column in zip(labels, columns, strict=True):
            blocks.setdefault(label, []).append(column)
        ordered = [(label, blocks[label]) for label in sorted(blocks, key=natural)]
        return labelled_sheet(ordered, drawn[0][1], f"from top to bottom: {', '.join(names)}; {title}")

    @final
    def cells(self, samples: Tensor, side: int | None = None) -> tuple[list[Image.Image], int]:
        """Show each row in a picture of its own, all on one scale, where rows do not share a panel.

        Returns: The pictures, and by how many pixels their frames overlap where they stand side by side.
        """
        strip = self.sheet(samples, len(samples), side)
        one, two = (self.sheet(samples[[0] * count], count, side).width for count in (1, 2))
        pitch = two - one  # of a cell; the frame is drawn once more at the end of a strip
        if not pitch or strip.width != len(samples) * pitch + one - pitch:
            return [self.sheet(row[None], 1, side) for row in samples], 0
        lefts = range(0, len(samples) * pitch, pitch)
        return [strip.crop((left, 0, left + one, strip.height)) for left in lefts], one - pitch


@runtime_checkable
class Playing(Protocol):
    """A modality whose rows last: beside a sheet there is something to play."""

    def play(self, samples: Tensor, folder: Path, stem: str) -> list[Path]:
        """Write what plays some rows, and return the files: a sound for each, or all clips in one video.

        Args:
            samples: Rows as stored, `(count, *shape)`.
            folder: Where.
            stem: How the files' names begin.
        """
        ...


@final
@dataclass(frozen=True)
class Points(Modality):
    """Points, float32 `(coordinates,)`: scatter plots, and CSV files with a row for each."""

    name: ClassVar[str] = "points"
    suffix: ClassVar[str] = ".csv"
    axes: ClassVar[tuple[str, ...]] = ("coordinate",)
    together: ClassVar[bool] = True

    def fits(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> bool:
        """Return whether a row has coordinates and nothing else."""
        return len(shape) == 1

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return the points with their number of dimensions."""
        return f"points in {shape[0]} dimension{'s' if shape[0] > 1 else ''}"

    def sheet(self, samples: Tensor, columns: int, side: int | None = None) -> Image.Image:
        """Draw a scatter plot of the first two coordinates."""
        return scatter(samples, side or 480)

    def write(self, samples: Tensor, path: Path) -> None:
        """Write a line for each point, its coordinates separated by commas."""
        write_whole(path, "".join(f"{','.join(map(str, row))}\n" for row in samples.tolist()).encode())

    def read(self, path: Path, shape: tuple[int, ...]) -> Tensor:
        """Return the points of a CSV file."""
        try:
            rows = [[float(word) for word in line.split(",")] for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise UnreadableError(str(error)) from error
        if not all((len(row),) == shape for row in rows):
            raise UnreadableError(f"not every line is one of {self.describe(shape)}")
        return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), *shape)


@final
@dataclass(frozen=True)
class Images(Modality):
    """Images, uint8 `(channels, height, width)`: contact sheets, and a PNG each."""

    name: ClassVar[str] = "images"
    suffix: ClassVar[str] = ".png"
    suffixes: ClassVar[frozenset[str]] = SUFFIXES
    axes: ClassVar[tuple[str, ...]] = ("channel", "row", "column")
    pixels: ClassVar[bool] = True

    def fits(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> bool:
        """Return whether a row has channels, a height and a width, and bytes as values."""
        return len(shape) == 3 and dtype in (None, torch.uint8)

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return the images with their channels and sides."""
        return f"images of {_product(shape)}"

    def sheet(self, samples: Tensor, columns: int, side: int | None = None) -> Image.Image:
        """Lay images out in a grid; one that stands alone, each pixel as it is, has no frame."""
        return _tiled(samples, columns, side)

    def write(self, samples: Tensor, path: Path) -> None:
        """Write a PNG."""
        save_picture(tile(samples, 1, gap=0), path)

    def read(self, path: Path, shape: tuple[int, ...]) -> Tensor:
        """Return the image of a file, cropped and resized to this shape; in grey unless that has three channels."""
        channels, height, width = 3 if shape[0] == 3 else 1, shape[1], shape[2]
        return torch.from_numpy(read_picture(path, channels, height, width))[None]


@final
@dataclass(frozen=True)
class Planes(Modality):
    """Images of channels that are no colours, as of satellites: a `.npy` each, uint8 `(height, width, channels)`.

    It is the form in which a folder of them is read. Sheets show the first channel.
    """

    name: ClassVar[str] = "images"
    suffix: ClassVar[str] = ".npy"
    axes: ClassVar[tuple[str, ...]] = ("channel", "row", "column")
    pixels: ClassVar[bool] = True

    def fits(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> bool:
        """Return whether a row is an image that is neither grey nor in colour."""
        return images.fits(shape, dtype) and shape[0] not in (1, 3)

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return the images with their channels and sides."""
        return images.describe(shape)

    def sheet(self, samples: Tensor, columns: int, side: int | None = None) -> Image.Image:
        """Lay out the first channel of each."""
        return images.sheet(samples, columns, side)

    def write(self, samples: Tensor, path: Path) -> None:
        """Write an array file."""
        with whole(path) as part, part.open("wb") as file:
            np.save(file, samples[0].permute(1, 2, 0).contiguous().numpy(), allow_pickle=False)

    def read(self, path: Path, shape: tuple[int, ...]) -> Tensor:
        """Return the image of an array file, cropped and resized to this shape."""
        channels, height, width = shape
        return torch.from_numpy(read_picture(path, channels, height, width))[None]


@final
@dataclass(frozen=True)
class Arrays(Modality):
    """Series, volumes and images of other numbers than bytes, up to `(channels, depth, height, width)`: a `.npy` each.

    Series are shown as curves, of volumes the middle slice; floating-point numbers span the whole range of a sheet.
    """

    name: ClassVar[str] = "arrays"
    suffix: ClassVar[str] = ".npy"

    def fits(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> bool:
        """Return whether a row has as many axes as some network takes."""
        return 1 <= len(shape) <= 4

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return the arrays with their sides."""
        return f"arrays of {_product(shape)}"

    def sheet(self, samples: Tensor, columns: int, side: int | None = None) -> Image.Image:
        """Draw curves, or a grid of slices."""
        samples = samples.reshape(len(samples), -1, samples.shape[-1]) if samples.ndim < 3 else samples
        if samples.ndim == 3:
            return tile(curves(samples, side or 72), columns)
        slices = samples[:, :, samples.shape[2] // 2] if samples.ndim == 5 else samples
        return _tiled(_as_bytes(slices), columns, side)

    def write(self, samples: Tensor, path: Path) -> None:
        """Write an array file."""
        with whole(path) as part, part.open("wb") as file:
            np.save(file, (samples[0] if len(samples) == 1 else samples).numpy(), allow_pickle=False)

    def read(self, path: Path, shape: tuple[int, ...]) -> Tensor:
        """Return the row of an array file."""
        try:
            row = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UnreadableError(str(error)) from error
        if row.shape != shape:
            raise UnreadableError(f"it has the shape {_product(row.shape)}, not that of {self.describe(shape)}")
        return torch.from_numpy(row)[None]


points, planes, images, arrays = Points(), Planes(), Images(), Arrays()
MODALITIES = (points, planes, images, arrays)
"""The modalities that rows may have whose data set names none: the first one that fits."""


def modality_of(shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Modality:
    """Return the modality of stored rows.

    Args:
        shape: Shape of one row.
        dtype: Their dtype where it is known.

    Raises: UserError: If no modality fits.
    """
    for modality in MODALITIES:
        if modality.fits(shape, dtype):
            return modality
    raise UserError(
        f"rows of shape {shape} are of no known modality: use 1 to 4 axes, or give the data set a modality of its own"
    )


def modality_of_rows(rows: Tensor) -> Modality:
    """Return the modality of rows in memory, `(count, *shape)`."""
    return modality_of(tuple(rows.shape[1:]), rows.dtype)


def sheet(samples: Tensor, columns: int) -> Image.Image:
    """Show rows of a built-in modality: images as an enlarged grid, points as a scatter plot."""
    return modality_of_rows(samples).sheet(samples, columns)


def paired(
    above: Tensor, below: Tensor, columns: int = 16, names: tuple[str, str] = ("", ""), title: str = ""
) -> Image.Image:
    """Show pairs of rows of a built-in modality, `below` under `above`: images in rows, points in two panels."""
    return modality_of_rows(above).paired(above, below, columns, names, title)


def has_plane(modality: Modality, shape: tuple[int, ...] | None) -> bool:
    """Return whether rows are points of the plane, whose velocity field can be drawn."""
    return modality == points and shape == (2,)


def _product(shape: tuple[int, ...]) -> str:
    """Return a shape as people write it."""
    return "×".join(map(str, shape))


def _tiled(pictures: Tensor, columns: int, side: int | None) -> Image.Image:
    """Lay pictures out in a grid, enlarged to about `side` pixels, by default 48."""
    enlarge = enlargement(min(pictures.shape[-2:]), 48 if side is None else side)
    return tile(pictures, columns, enlarge, gap=0 if side == 0 and len(pictures) == 1 else 1)


def _as_bytes(values: Tensor) -> Tensor:
    """Return numbers as 0 to 255: bytes as they are, others from the least to the largest that is finite."""
    if values.dtype == torch.uint8:
        return values
    values = values.double()
    finite = values[values.isfinite()]
    low, high = (finite.min(), finite.max()) if len(finite) else (values.new_zeros(()), values.new_ones(()))
    share = ((values - low) / (high - low).clamp(min=math.ulp(1.0))).nan_to_num(0.0, 1.0, 0.0)
    return (share.clamp(0, 1) * 255).round().to(torch.uint8)


def curves(series: Tensor, side: int) -> Tensor:
    """Return pictures of series, `(count, channels, length)`, on one scale: a curve a channel, 2·`side` wide."""
    pictures = []
    for one in _as_bytes(series).numpy().astype(int):
        canvas = Image.new("RGB", (2 * side, side), "white")
        draw = ImageDraw.Draw(canvas)
        across = np.linspace(2, 2 * side - 3, one.shape[1])
        for place, curve in enumerate(one):
            heights = side - 3 - curve / 255 * (side - 5)
            draw.line(list(zip(across, heights, strict=True)), COLOURS[place % len(COLOURS)])
        pictures.append(torch.from_numpy(np.asarray(canvas).transpose(2, 0, 1).copy()))
    return torch.stack(pictures)
