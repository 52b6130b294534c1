"""Series and tables as rows of named columns: what such rows are, and the codec that brings columns to one scale."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unfog.data.codecs import Unlearned
from unfog.data.modality import Modality, curves
from unfog.data.pictures import UnreadableError, scatter, tile
from unfog.data.source import Data
from unfog.runtime.errors import UserError
from unfog.runtime.files import write_whole

LARGEST = 1 << 26
"""Bytes of a CSV file, at most: its cells take thirty times as much memory."""
LOOKED = 100_000
"""Rows in which means and deviations are measured, at most."""
GAPS = frozenset({"", "na", "n/a", "nan", "null", "none", "-", "?"})
"""Cells, in lower case, that say that a number is missing."""


def table_of(path: Path, most: int = LARGEST) -> tuple[tuple[str, ...], list[list[str]], int]:
    """Return the columns of a CSV file, the cells of its rows, and the line on which the first of them stands.

    The first line names the columns, unless all of it are numbers; commas, semicolons or tabs separate them.

    Raises: UnreadableError: If it cannot be read, or its rows are of different lengths.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from error
    if len(data) > most:
        raise UnreadableError(f"it has more than {most:,} bytes, and a larger table is read as Parquet")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"line {data.count(chr(10).encode(), 0, error.start) + 1} is not UTF-8") from error
    mark = max(",;\t", key=text.partition("\n")[0].count)
    try:
        lines = [line for line in csv.reader(io.StringIO(text), delimiter=mark) if line]
    except csv.Error as error:
        raise UnreadableError(str(error)) from error
    if not lines:
        raise UnreadableError("it is empty")
    plain = all(number_of(cell) is not None for cell in lines[0])
    names = tuple(map(str.strip, lines[0]))
    if plain:
        names = _names((), len(names))
    if len(set(names)) < len(names):
        raise UnreadableError("two of its columns have one name")
    first = 1 if plain else 2
    for number, line in enumerate(lines[first - 1 :], first):
        if len(line) != len(names):
            raise UnreadableError(f"row {number} has {len(line)} cells where there are {len(names)} columns")
    return names, lines[first - 1 :], first


def cells_of(path: Path) -> tuple[tuple[str, ...], list[list[float]]]:
    """Return the columns of a CSV file and its rows of numbers; missing ones are NaN.

    Raises: UnreadableError: If it cannot be read, or a cell is neither a number nor empty.
    """
    names, lines, first = table_of(path)
    rows = []
    for number, line in enumerate(lines, first):
        numbers = [number_of(cell) for cell in line]
        if None in numbers:
            place = numbers.index(None)
            raise UnreadableError(f"row {number}, column {names[place]!r}: {line[place][:40]!r} is no number")
        rows.append([one for one in numbers if one is not None])
    return names, rows


def number_of(cell: str) -> float | None:
    """Return the number of a cell, NaN where it is missing, or None where it is something else."""
    if cell.strip().lower() in GAPS:
        return math.nan
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def written(columns: Sequence[str], rows: Sequence[Sequence[float]]) -> bytes:
    """Return a CSV file: the names of the columns, and a line for each row; missing numbers are empty cells."""
    target = io.StringIO()
    lines = csv.writer(target, lineterminator="\n")
    lines.writerow(columns)
    lines.writerows([["" if math.isnan(one) else f"{one:.7g}" for one in row] for row in rows])
    return target.getvalue().encode()


@final
@dataclass(frozen=True)
class Series(Modality):
    """Series over time, float32 `(columns, length)`: a CSV each, with a line for each moment. Sheets show curves.

    Attributes:
        columns: Names of the columns.
    """

    name: ClassVar[str] = "series"
    suffix: ClassVar[str] = ".csv"
    suffixes: ClassVar[frozenset[str]] = frozenset({".csv", ".tsv", ".parquet", ".npy"})
    axes: ClassVar[tuple[str, ...]] = ("column", "moment")
    columns: tuple[str, ...] = ()

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return the series with their length and columns."""
        return f"series of {shape[-1]} moments of {_named(self.columns, shape[0])}"

    def sheet(self, samples: Tensor, columns: int, side: int | None = None) -> Image.Image:
        """Draw a curve for each column, all on one scale from the least to the largest number."""
        return tile(curves(samples, side or 72), columns)

    def write(self, samples: Tensor, path: Path) -> None:
        """Write a CSV file."""
        write_whole(path, written(_names(self.columns, samples.shape[1]), samples[0].T.tolist()))

    def read(self, path: Path, shape: tuple[int, ...]) -> Tensor:
        """Return the series of a CSV file; missing numbers are NaN."""
        rows = _rows_of(path, _names(self.columns, shape[0]))
        if len(rows) != shape[1]:
            raise UnreadableError(f"it has {len(rows):,} moments where the model has {shape[1]:,}")
        return torch.tensor(rows, dtype=torch.float32).T[None].contiguous()


@final
@dataclass(frozen=True)
class Table(Modality):
    """Rows of a table, float32 `(columns,)`: one CSV file for all. Sheets show the first two columns.

    Attributes:
        columns: Names of the columns.
    """

    name: ClassVar[str] = "rows"
    suffix: ClassVar[str] = ".csv"
    suffixes: ClassVar[frozenset[str]] = frozenset({".csv", ".tsv", ".parquet"})
    axes: ClassVar[tuple[str, ...]] = ("column",)
    together: ClassVar[bool] = True
    columns: tuple[str, ...] = ()

    def describe(self, shape: tuple[int, ...]) -> str:
        """Return the rows with their columns."""
        return f"rows of {_named(self.columns, shape[0])}"

    def sheet(self, samples: Tensor, columns: int, side: int | None = None) -> Image.Image:
        """Draw the first two columns as a scatter plot, each at zero mean and unit deviation."""
        some = samples[:, :2].double()
        scaled = (some - some.mean(0)) / some.std(0, correction=0).clamp(min=1e-12)
        return scatter(scaled.float(), side or 480)

    def write(self, samples: Tensor, path: Path) -> None:
        """Write a CSV file."""
        write_whole(path, written(_names(self.columns, samples.shape[1]), samples.tolist()))

    def read(self, path: Path, shape: tuple[int, ...]) -> Tensor:
        """Return the rows of a CSV file; missing numbers are NaN."""
        rows = _rows_of(path, _names(self.columns, shape[0]))
        return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), *shape)


def _names(columns: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Return the names of columns, numbers where they have none."""
    return columns or tuple(f"column {place}" for place in range(1, 1 + count))


def _rows_of(path: Path, columns: Sequence[str]) -> list[list[float]]:
    """Return the rows of a CSV file in the order of some columns.

    Raises: UnreadableError: If it cannot be read, or lacks a column.
    """
    names, rows = cells_of(path)
    missing = [one for one in columns if one not in names]
    if missing and (len(names) != len(columns) or names[0] != "column 1"):
        raise UnreadableError(f"it lacks the column {missing[0]!r}")
    places = range(len(columns)) if missing else [names.index(one) for one in columns]
    return [[row[place] for place in places] for row in rows]


def _named(columns: Sequence[str], count: int) -> str:
    """Return columns in words."""
    if not columns:
        return f"{count} column{'s' if count > 1 else ''}"
    return ", ".join(columns[:4]) + (", ..." if len(columns) > 4 else "")


@dataclass(frozen=True)
class Standardised(Unlearned):
    """Columns to x0 = (x - mean) / deviation, each of zero mean and unit variance, and back.

    Attributes:
        mean: Of each column; filled in from the data.
        deviation: Of each column; filled in from the data.
        bounds: None: x0 is not bounded.
        bin_width: None: x0 is continuous.
    """

    mean: Sequence[float] = ()
    deviation: Sequence[float] = ()
    bounds: tuple[float, float] | None = field(default=None, init=False)
    bin_width: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Check the numbers."""
        if len(self.mean) != len(self.deviation) or (self.deviation and min(self.deviation) <= 0):
            raise UserError("codec.mean and codec.deviation need a number for each column, and deviations above 0")

    def fitted(self, data: Data, modality: Modality) -> Self:
        """Return it with means and deviations of the training rows, if it has none yet."""
        if self.deviation:
            return self
        rows = data.train.take(np.linspace(0, len(data.train) - 1, min(LOOKED, len(data.train))).astype(np.int64)).x
        each = rows.double().transpose(0, 1).flatten(1)
        mean, deviation = ([float(f"{one:.7g}") for one in part.tolist()] for part in (each.mean(1), each.std(1)))
        return replace(self, mean=tuple(mean), deviation=tuple(one or 1.0 for one in deviation))

    def encode(self, x: Tensor) -> Tensor:
        """Map numbers, `(batch, columns, ...)`, to float32 of unit variance."""
        mean, deviation = self._numbers(x)
        return (x.float() - mean) / deviation

    def decode(self, z: Tensor) -> Tensor:
        """Map states back to numbers, float32."""
        mean, deviation = self._numbers(z)
        return z.float() * deviation + mean

    def _numbers(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and deviations, over the axis of columns."""
        rank = (-1, *[1] * (like.ndim - 2))
        return tuple(  # type: ignore[return-value]  # two of them
            torch.tensor(one or [default], dtype=torch.float32, device=like.device).reshape(rank)
            for one, default in ((self.mean, 0.0), (self.deviation, 1.0))
        )
