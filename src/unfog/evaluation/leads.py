"""By how much what was tuned leads: the distances of samples from the same noises, compared in pairs."""

from collections.abc import Iterable, Mapping, Sequence
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

Cell = tuple[Setting, int]
"""A setting, and the requested number of evaluations."""


class Lead(NamedTuple):
    """The best tuned measurement of so many evaluations next to the best other one.

    Attributes:
        tuned: The one.
        other: The other, with the same guidance.
        interval: Of the difference of their distances, tuned less other.
    """

    tuned: Measured
    other: Measured
    interval: Interval

    def __str__(self) -> str:
        """Return the comparison as a sentence."""
        value = self.tuned.fidelity.value - self.other.fidelity.value
        other = f"{self.other.setting.solver}, grid {self.other.setting.grid}"
        low, high = map(number, self.interval)
        said = f"{number(value)} [{low}, {high}] from {other}, the best that is not"
        return f"{self.tuned.setting.solver} in {self.tuned.steps} steps: {said}"


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
) -> dict[int, Lead]:
    """Return for each number of evaluations that has both a tuned and another measurement how they compare.

    Args:
        cells: The measurements.
        nfe: The numbers of evaluations.
        features: Those of a measurement's samples, `(n, d)`, from the same noises for all.
        judge: What measured them.
    """
    found, reference = {}, moments(judge.first.train)
    for wanted in nfe:
        here = sorted((cell for cell in cells if cell[1] == wanted), key=lambda cell: cells[cell].fidelity.value)
        best = next((cell for cell in here if cell[0].grid == GRID), None)
        others = (cell for cell in here if cell[0].grid != GRID and best and cell[0].guidance == best[0].guidance)
        other = next(others, None)
        if best is None or other is None:
            continue
        blocks = cells[best].fidelity.n // judge.m

        def gap(tuned: Rows, usual: Rows, blocks: int = blocks) -> float:
            return block_mean(tuned, blocks, reference) - block_mean(usual, blocks, reference)

        rows = (features[cell][: blocks * judge.m] for cell in (best, other))
        interval = bootstrap(gap, *rows, resamples=RESAMPLES, method="halves", paired=True)
        found[wanted] = Lead(cells[best], cells[other], interval)
    return found
