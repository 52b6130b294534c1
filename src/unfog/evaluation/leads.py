"""By how much one measurement leads another: distances of samples from the same noises, compared in pairs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unfog.evaluation.compare import RESAMPLES, block_mean, number
from unfog.evaluation.distances import Rows, moments
from unfog.evaluation.intervals import Interval, bootstrap
from unfog.evaluation.judge import Judge
from unfog.evaluation.results import Measured, Setting
from unfog.runs.tuned import GRID
from unfog.runtime.files import disk, whole
from unfog.runtime.lines import counted

Cell = tuple[Setting, int]
"""A setting, and the requested number of evaluations."""


class Lead(NamedTuple):
    """One measurement next to another of as many evaluations and the same guidance.

    Attributes:
        nfe: The requested number of evaluations.
        one: The one.
        other: The other.
        interval: Of the difference of their distances, one less other.
    """

    nfe: int
    one: Measured
    other: Measured
    interval: Interval

    def __str__(self) -> str:
        """Return the comparison as a sentence."""
        value = self.one.fidelity.value - self.other.fidelity.value
        low, high = map(number, self.interval)
        apart = "" if self.interval.low > 0 or self.interval.high < 0 else ", not told apart"
        names = f"{_named(self.one)}, compared with {_named(self.other)}"
        change = f"distance {number(value)} [{low}, {high}] (lower is better, 95 %)"
        return f"{counted(self.nfe, 'evaluation')}: {names}: {change}{apart}"


def _named(one: Measured) -> str:
    """Return what was measured in a few words."""
    setting = one.setting
    return f"{f'{setting.run}, ' if setting.run else ''}{setting.solver}, grid {setting.grid}"


def write_features(folder: Path, key: str, rows: Rows) -> None:
    """Keep the features of a measurement's samples.

    Raises: EnvironmentFailure: If the disk fails.
    """
    path = _file(folder, key)
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part, part.open("wb") as file:
        np.save(file, rows)


def read_features(folder: Path, keys: Iterable[str], count: int) -> dict[str, Rows]:
    """Return the features of so many samples of measurements, without those that are missing or damaged."""
    found: dict[str, Rows] = {}
    for key in keys:
        try:
            rows = np.load(_file(folder, key), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            continue
        if rows.ndim == 2 and len(rows) == count and rows.dtype == np.float64 and np.isfinite(rows).all():
            found[key] = rows
    return found


def _file(folder: Path, key: str) -> Path:
    """Return where the features of a measurement are."""
    return folder / "features" / f"{key}.npy"


def leads(
    cells: Mapping[Cell, Measured], nfe: Sequence[int], features: Mapping[Cell, Rows], judge: Judge
) -> tuple[Lead, ...]:
    """Return how the best of each run compares with that of the first, or of one run the tuned with the other grids.

    Args:
        cells: The measurements.
        nfe: The numbers of evaluations.
        features: Those of a measurement's samples, `(n, d)`, from the same noises for all.
        judge: What measured them.
    """
    found, reference = list[Lead](), moments(judge.first.train)
    for wanted, one, other in _pairs(cells, nfe):
        blocks = cells[one].fidelity.n // judge.m

        def gap(mine: Rows, others: Rows, blocks: int = blocks) -> float:
            return block_mean(mine, blocks, reference) - block_mean(others, blocks, reference)

        rows = (features[cell][: blocks * judge.m] for cell in (one, other))
        interval = bootstrap(gap, *rows, resamples=RESAMPLES, method="halves", paired=True)
        found.append(Lead(wanted, cells[one], cells[other], interval))
    return tuple(found)


def _pairs(cells: Mapping[Cell, Measured], nfe: Sequence[int]) -> Iterator[tuple[int, Cell, Cell]]:
    """Yield the measurements to compare for each number of evaluations: the best of two sides under one guidance."""
    runs = list(dict.fromkeys(setting.run for setting, _ in cells))

    def side(setting: Setting) -> str:
        return setting.run if len(runs) > 1 else GRID if setting.grid == GRID else ""

    base = runs[0] if len(runs) > 1 else ""
    for wanted in nfe:
        best: dict[tuple[str, float], Cell] = {}
        for cell in sorted((cell for cell in cells if cell[1] == wanted), key=lambda cell: cells[cell].fidelity.value):
            best.setdefault((side(cell[0]), cell[0].guidance), cell)
        for (name, guidance), cell in best.items():
            if name != base and (base, guidance) in best:
                yield wanted, cell, best[base, guidance]
