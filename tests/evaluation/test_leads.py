"""Tuned grids next to others: paired intervals on Gaussians with known distances, and features that are kept."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from unfog.evaluation import leads as module
from unfog.evaluation.bench import bench
from unfog.evaluation.distances import Rows
from unfog.evaluation.intervals import Protocol, Scored, Sets, plain
from unfog.evaluation.leads import Lead, leads, read_features, write_features
from unfog.evaluation.results import Measured, Setting
from unfog.runs import tuned
from unfog.runs.run import Run, load
from unfog.runs.tuning import fit

COUNT = 400
QUIET = Console(quiet=True)


def _measured(grid: str, guidance: float, value: float) -> Measured:
    protocol = Protocol("frechet/x", "x", Sets("y", COUNT, 0))
    score = Scored(value, value, value, COUNT, 0, 9, protocol)
    return Measured(Setting("ddim", grid, guidance), 4, 4, score, score, None)


def _lead(
    shift: float, values: tuple[float, float] = (1.0, 2.0), seed: int = 0, noise: float = 0.02
) -> tuple[Lead, ...]:
    """Compare a set with one that lies `shift` farther from the reference, of the same draws but for some noise."""
    draw = np.random.default_rng(seed)
    base: Rows = draw.normal(0.4, 1.0, (COUNT, 3))
    cells = {
        (Setting("ddim", "tuned", 2.0), 4): base + [0.3, 0, 0],
        (Setting("ddim", "uniform", 2.0), 4): base + [0.3 + shift, 0, 0] + draw.normal(0, noise, (COUNT, 3)),
        (Setting("ddim", "uniform", 1.0), 4): base,
        (Setting("ddim", "uniform", 2.0), 8): base,
    }
    scores = {cell: _measured(cell[0].grid, cell[0].guidance, 0.5) for cell in cells}
    for place, value in enumerate(values):
        cell = list(cells)[place]
        scores[cell] = _measured(cell[0].grid, cell[0].guidance, value)
    judge: Any = SimpleNamespace(m=COUNT, first=SimpleNamespace(train=draw.normal(0.4, 1.0, (5000, 3))))
    return leads(scores, (4, 8, 16), cells, judge)


def test_the_interval_holds_the_known_difference_and_is_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """|0.3 + 0.2|² - 0.3² = 0.16; unpaired, the chances of either set alone make it four times as wide."""
    (lead,) = _lead(0.2)
    assert lead.nfe == 4, "no other tuned one, and none to compare with"
    assert (lead.one.setting.grid, lead.other.setting) == ("tuned", Setting("ddim", "uniform", 2.0))
    monkeypatch.setattr(module, "RESAMPLES", 80)
    intervals = [_lead(0.2, seed=seed)[0].interval for seed in range(10)]
    assert sum(low < -0.16 < high for low, high in intervals) >= 8, "95 % of them, about"
    assert all(high < 0 and high - low < 0.1 for low, high in intervals)
    assert _lead(-0.2, seed=1)[0].interval.low > 0, "the other is nearer"
    assert str(lead).startswith("4 evaluations: ddim, grid tuned, compared with ddim, grid uniform: distance -1 [-0.")


def test_features_are_kept_and_damaged_ones_are_not_used(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 2))
    for key in ("whole", "cut", "nan", "objects", "few"):
        write_features(tmp_path, key, rows)
    place = tmp_path / "features"
    (place / "cut.npy").write_bytes((place / "cut.npy").read_bytes()[:-9])
    np.save(place / "nan.npy", rows * np.nan)
    np.save(place / "objects.npy", np.array([[{}, {}]] * 5, dtype=object), allow_pickle=True)
    np.save(place / "few.npy", rows[:4])
    found = read_features(tmp_path, ["whole", "cut", "nan", "objects", "few", "missing"], 5)
    assert found.keys() == {"whole"}
    assert np.array_equal(found["whole"], rows)


def test_bench_compares_what_was_tuned(digits_run: Path, tmp_path: Path) -> None:
    """And measures again what lost its features, with the same figures."""
    run = _copied(digits_run, tmp_path)
    tuned.keep(run.path, fit(run, [3], solver="dpmpp-2m", guidance=2.0, rounds=2, console=QUIET))
    given: Any = {"solvers": ("dpmpp-2m",), "guidance": (2,), "nfe": (6,), "count": 130, "console": QUIET}
    found = bench(run, grids=("uniform", "tuned"), **given)
    (lead,) = found.leads
    values = [one.fidelity.value for one in (lead.one, lead.other)]
    assert [one.setting.grid for one in (lead.one, lead.other)] == ["tuned", "uniform"]
    assert lead.interval.low <= values[0] - values[1] <= lead.interval.high
    assert str(lead) in " ".join(found.table().split())
    assert plain(lead._asdict())
    for file in (run.path / "bench" / "features").iterdir():
        file.unlink()
    again = bench(run, grids=("uniform", "tuned"), **given)
    assert again == found
    assert not bench(run, grids=("uniform",), **given).leads


def _copied(run: Path, folder: Path) -> Run:
    for name in ("recipe.json", "model.safetensors"):
        (folder / name).write_bytes((run / name).read_bytes())
    return load(folder, "cpu")


@pytest.mark.parametrize("seed", range(3))
def test_one_and_the_same_set_is_not_told_apart(seed: int) -> None:
    base = np.random.default_rng(seed).normal(0.4, 1.0, (COUNT, 3))
    cells = {(Setting("ddim", grid, 1.0), 4): base for grid in ("tuned", "uniform")}
    judge: Any = SimpleNamespace(m=COUNT, first=SimpleNamespace(train=base + 0.1))
    scores = {cell: _measured(cell[0].grid, 1.0, 0.5) for cell in cells}
    (lead,) = leads(scores, (4,), cells, judge)
    assert lead.interval == (0, 0)
    assert str(lead).endswith("not told apart")
