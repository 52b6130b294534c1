"""Series and tables from CSV, Parquet and array files: columns of numbers, in windows, series or single rows."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from unfog.data.labels import AUTO
from unfog.data.listing import Kind, few
from unfog.data.media import MOST, Survey, gathered, survey
from unfog.data.pictures import UnreadableError
from unfog.data.series import Series, number_of, table_of
from unfog.data.source import Data, InMemory, MissingDataError, Subset, split
from unfog.runtime.errors import EnvironmentFailure, UserError
from unfog.runtime.lines import counted

FILES = Kind("file", "files of series", Series.suffixes)
WINDOW, LONGEST, MULTIPLE = 64, 4096, 4
"""Moments of a window by default and at most; lengths are rounded down to a multiple."""
FEWEST, WIDEST = 100, 1024
"""Rows at least, and columns at most."""
HELD = 0.1
"""Share of a file's rows or moments that is held out."""
NUMERIC = 0.5
"""Share of the cells of a column that must be numbers, or it is not used."""
Rows = Literal["auto", "windows", "table"]
Reals = NDArray[np.float64]


class Numbers(NamedTuple):
    """The numbers of a file.

    Attributes:
        columns: Their names.
        values: `(rows, columns)`; missing ones are NaN.
        notes: What is not used.
    """

    columns: tuple[str, ...]
    values: Reals
    notes: tuple[str, ...] = ()


def numbers_of(path: Path) -> Numbers:
    """Return the columns of a file that hold numbers.

    Raises: UnreadableError: If it cannot be read, or has no such columns.
        EnvironmentFailure: If pyarrow is not installed, and it is a Parquet file.
    """
    if path.suffix.lower() == ".npy":
        return _array(path)
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    names, lines, _ = table_of(path)
    kept: list[str] = []
    columns: list[list[float]] = []
    dropped: list[str] = []
    strange = 0
    for place, name in enumerate(names):
        found = [number_of(line[place]) for line in lines]
        wrong = sum(one is None for one in found)
        if wrong > (1 - NUMERIC) * len(found):
            dropped.append(name)
            continue
        strange += wrong
        kept.append(name)
        columns.append([math.nan if one is None else one for one in found])
    notes = [f"not used ({len(dropped)}): columns that hold no numbers: {few(dropped)}"] if dropped else []
    notes += [f"{counted(strange, 'cell')} that hold no number count as missing"] if strange else []
    return _checked(tuple(kept), np.array(columns, dtype=np.float64).T, tuple(notes))


def _array(path: Path) -> Numbers:
    """Return the numbers of an array file, `(rows, columns)` or `(rows,)`."""
    try:
        values = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UnreadableError(str(error)) from error
    if len(values.shape) not in (1, 2) or values.dtype.kind not in "buif" or values.nbytes > MOST:
        raise UnreadableError(f"its {values.dtype} of shape {values.shape} are no rows and columns of numbers")
    table = np.array(values, dtype=np.float64).reshape(len(values), -1)
    table[~np.isfinite(table)] = math.nan
    return _checked(tuple(f"column {place}" for place in range(1, 1 + table.shape[1])), table, ())


def _parquet(path: Path) -> Numbers:
    """Return the numbers of a Parquet file."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise EnvironmentFailure(f"Parquet is read by pyarrow: pip install 'unfog[parquet]' ({error})") from error
    try:
        file = pq.ParquetFile(str(path))
        schema = file.schema_arrow
        plain = [
            one.name for one in schema if str(one.type).startswith(("int", "uint", "float", "double", "bool", "half"))
        ]
        if file.metadata.num_rows * max(1, len(plain)) * 8 > MOST:
            raise UnreadableError(f"its {file.metadata.num_rows:,} rows take more than {MOST >> 30} GiB")
        table = file.read(columns=plain)
        values = [np.asarray(table[name].to_numpy(), dtype=np.float64) for name in plain]
    except UnreadableError:
        raise
    except Exception as error:  # whatever pyarrow raises: the file is none
        raise UnreadableError(str(error).split("\n")[0] or type(error).__name__) from error
    dropped = [name for name in schema.names if name not in plain]
    notes = (f"not used ({len(dropped)}): columns that hold no numbers: {few(dropped)}",) if dropped else ()
    return _checked(tuple(plain), np.stack(values, 1) if values else np.empty((0, 0)), notes)


def _checked(columns: tuple[str, ...], values: Reals, notes: tuple[str, ...]) -> Numbers:
    """Return numbers after a look at how many columns there are."""
    if not columns:
        raise UnreadableError("it has no column of numbers")
    if len(columns) > WIDEST:
        raise UnreadableError(f"it has {len(columns):,} columns: {WIDEST:,} are the limit")
    return Numbers(columns, values, notes)


class Look(NamedTuple):
    """What suits a file or a folder of series.

    Attributes:
        columns: The columns that are used.
        length: Moments of a row, 0 where rows are those of a table.
        rows: How many there are, about.
        classes: How many classes they have.
    """

    columns: tuple[str, ...]
    length: int
    rows: int
    classes: int


def look(path: str, rows: Rows = "auto", length: int | None = None, label_from: str = AUTO) -> Look:
    """Return what suits a file, or the files of a folder: series of the length that most have, at most 64 moments."""
    place = _existing(path)
    if not place.is_dir():
        numbers = _read(place)
        if rows == "table":
            return Look(numbers.columns, 0, len(numbers.values), 0)
        length = length or min(WINDOW, max(MULTIPLE, len(numbers.values) // 8 // MULTIPLE * MULTIPLE))
        return Look(numbers.columns, length, 2 * len(numbers.values) // length, 0)
    return _suited(survey(path, FILES, numbers_of, "", label_from), length)


def _suited(found: Survey[Numbers], length: int | None) -> Look:
    """Return what suits the files of a folder."""
    columns = Counter(one.columns for one in found.about).most_common(1)[0][0]
    median = int(np.median([len(one.values) for one in found.about]))
    length = length or max(MULTIPLE, min(LONGEST, median) // MULTIPLE * MULTIPLE)
    return Look(columns, length, len(found.about), len(found.listing.classes))


def columns(
    path: str = "",
    names: Sequence[str] = (),
    length: int | None = None,
    rows: Rows = "auto",
    heldout: float = HELD,
    where: str = "",
    label_from: str = AUTO,
) -> Data:
    """Read columns of numbers: the windows of one long series, a series for each file of a folder, or a table.

    Rows with missing numbers are skipped and counted; columns without numbers, such as dates, are not used.

    Args:
        path: A CSV, Parquet or NumPy file, or a folder of them.
        names: The columns to use; default: all that hold numbers.
        length: Moments of a row, a multiple of 4. Default: of one file 64, or less where it is short, each window
            beginning in the middle of the one before; of a folder what most files have.
        rows: "windows", "table" (each row by itself), or "auto", which is windows.
        heldout: Share of the files or of a table's rows to hold out; of one series its last part.
        where: Use only the lines of `metadata.jsonl` with `key=value`.
        label_from: What the class of a file is, see `unfog.data.folder.folder`.

    Returns: Rows, float32 `(columns, length)`, or `(columns,)` of a table.
    Raises: UserError: If a file is missing or lacks a column, or there is too little to learn from.
    """
    if length is not None and (not MULTIPLE <= length <= LONGEST or length % MULTIPLE):
        raise UserError(f"data.length must be a multiple of {MULTIPLE} up to {LONGEST:,}, not {length}")
    if not 0 < heldout < 1:
        raise UserError(f"data.heldout must be between 0 and 1, not {heldout}")
    place = _existing(path)
    if place.is_dir():
        if rows == "table":
            raise UserError("the rows of a table are in one file: give its path")
        return _of_files(path, names, length, heldout, where, label_from)
    numbers = _chosen(path, _read(place), names)
    if rows == "table":
        return _of_rows(path, numbers, heldout)
    return _of_windows(path, numbers, length or look(path, rows).length, heldout)


def _existing(path: str) -> Path:
    """Return a path that exists."""
    if not path:
        raise UserError("no series were given: set data.path")
    place = Path(path).expanduser()
    if not place.exists():
        raise MissingDataError(f"{place} does not exist", "check the path")
    if place.is_file() and place.suffix.lower() not in Series.suffixes:
        raise UserError(f"{place} is none of {', '.join(sorted(Series.suffixes))}: convert it")
    return place


def _read(place: Path) -> Numbers:
    """Return the numbers of a file that the user named."""
    try:
        return numbers_of(place)
    except UnreadableError as error:
        raise UserError(f"{place} cannot be read ({error}): correct it") from None


def _chosen(path: object, numbers: Numbers, names: Sequence[str]) -> Numbers:
    """Return the columns with some names, in their order.

    Raises: UserError: If one is missing.
    """
    if not names:
        return numbers
    missing = [name for name in names if name not in numbers.columns]
    if missing:
        raise UserError(f"{path} lacks the column {missing[0]!r}; it has {few(numbers.columns, 10)}")
    places = [numbers.columns.index(name) for name in names]
    return Numbers(tuple(names), numbers.values[:, places], numbers.notes)


def _of_rows(path: str, numbers: Numbers, heldout: float) -> Data:
    """Return the rows of a table."""
    whole = np.array([np.isfinite(row).all() for row in numbers.values], dtype=bool)
    kept = numbers.values[whole].astype(np.float32)
    notes = [*numbers.notes, *_gaps(int((~whole).sum()), len(whole), "row")]
    if len(kept) < FEWEST:
        raise UserError(f"{path} has {len(kept):,} rows without missing numbers: {FEWEST} or more make a data set")
    keys = [row.tobytes().hex() for row in kept]
    return split(InMemory(torch.from_numpy(kept), notes=tuple(notes)), heldout, keys)


def _of_windows(path: str, numbers: Numbers, length: int, heldout: float) -> Data:
    """Return the windows of a series; none stands in both parts, and the last part of the series is held out."""
    count = len(numbers.values)
    border = count - max(length, int(heldout * count))
    stride = max(1, length // 2)
    starts = np.concatenate(
        [np.arange(0, border - length + 1, stride), np.arange(max(border, 0), count - length + 1, stride)]
    )
    inside = np.concatenate([[0], np.cumsum(~np.isfinite(numbers.values).all(1))])
    whole = np.array([inside[start + length] == inside[start] for start in starts], dtype=bool)
    notes = [*numbers.notes, *_gaps(int((~whole).sum()), len(starts), "window")]
    starts = starts[whole]
    train, held = np.flatnonzero(starts < border), np.flatnonzero(starts >= border)
    if len(train) < 2 or not len(held):
        raise UserError(
            f"{path} has {count:,} moments, of which {len(train)} windows of {length} without missing numbers can be "
            "trained on: give a longer series, or set data.length to less"
        )
    windows = np.stack([numbers.values[start : start + length].T for start in starts]).astype(np.float32)
    source = InMemory(torch.from_numpy(windows), notes=tuple(notes))
    return Data(Subset(source, train), Subset(source, held))


def _of_files(path: str, names: Sequence[str], length: int | None, heldout: float, where: str, label_from: str) -> Data:
    """Return the series in the files of a folder; longer ones are divided."""
    found = survey(path, FILES, numbers_of, where, label_from)
    own = _suited(found, length)
    wanted, moments = tuple(names) or own.columns, own.length
    gaps: list[str] = []

    def rows_of(file: Path, numbers: Numbers) -> list[NDArray[Any]]:
        missing = [name for name in wanted if name not in numbers.columns]
        if missing:
            raise UnreadableError(f"it lacks the column {missing[0]!r}")
        values = _chosen(file, numbers, wanted).values
        if len(values) < moments:
            raise UnreadableError(f"it has {len(values):,} moments, fewer than {moments}")
        parts = [values[first : first + moments] for first in range(0, len(values) - moments + 1, moments)]
        whole = [part.T for part in parts if np.isfinite(part).all()]
        if len(whole) < len(parts):
            gaps.append(file.name)
        if not whole:
            raise UnreadableError("numbers are missing everywhere in it")
        return whole

    def notes() -> list[str]:
        said = [f"with missing numbers, whose windows are skipped: {counted(len(gaps), 'file')} ({few(gaps)})"]
        return (said if gaps else []) + sorted({note for one in found.about for note in one.notes})

    return gathered(found, rows_of, (len(wanted), moments), np.float32, heldout, notes, FILES)


def _gaps(missing: int, total: int, one: str) -> list[str]:
    """Say how many rows have missing numbers."""
    return [f"with missing numbers, and skipped: {counted(missing, one)} of {total:,}"] if missing else []
