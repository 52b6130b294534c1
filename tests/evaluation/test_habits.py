"""What comes first as diffusion draws."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from unfog.data.classic import digits
from unfog.evaluation.habits import ALIKE, alike, arrivals, bands, remembered
from unfog.evaluation.judge import Judge
from unfog.recipes.build import build_codec
from unfog.runs.run import load


def waves(cycles: int, side: int = 32) -> torch.Tensor:
    """A cosine from left to right, `(1, 1, side, side)`."""
    return torch.cos(2 * torch.pi * cycles * torch.arange(side) / side).expand(1, 1, side, side)


def test_bands_are_apart() -> None:
    for cycles, place in ((2, 0), (4, 0), (12, 1)):
        found = bands(5 + waves(cycles))
        energy = [float(one.abs().square().sum()) for one in found]
        assert energy[place] == pytest.approx(32**4 / 2)
        assert energy[1 - place] == pytest.approx(0, abs=1e-6)
    assert all(float(one.abs().sum()) == pytest.approx(0, abs=0.1) for one in bands(waves(6)))  # between both


def test_likeness_is_a_cosine() -> None:
    first, second = torch.randn(2, 5, 40, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    plain = [torch.view_as_real(one).flatten(1) for one in (first, second)]
    assert torch.allclose(alike(first, second), torch.cosine_similarity(*plain))
    assert torch.allclose(alike(first, 3 * first), torch.ones(5, dtype=torch.float64))


def test_arrivals_are_for_good() -> None:
    course = torch.tensor([[0.1, 0.1, 1.0], [0.95, 0.1, 1.0], [0.5, ALIKE, 1.0], [0.95, 0.95, 1.0], [1.0, 1.0, 1.0]])
    assert arrivals(course).tolist() == [0.75, 0.5, 0.0]  # the first one is lost again after the second moment


@pytest.mark.slow
def test_habits_of_a_run(digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unfog.evaluation.judge.RESAMPLES", 40)
    monkeypatch.setattr("unfog.evaluation.habits.STEPS", 5)
    run = load(digits_run)
    judge = Judge(digits(), build_codec(run.recipe).plain, 300)
    found = remembered(tmp_path / "habits.json", run, judge, 300)
    for mean, low, high in (found.layout, found.texture):
        assert 0 <= low <= mean <= high <= 1
    assert set(found.recall) == {"real", "ddim", "ancestral"}
    with monkeypatch.context() as patch:
        patch.setattr("unfog.evaluation.habits.habits", lambda *given: pytest.fail("it is measured already"))
        assert remembered(tmp_path / "habits.json", run, judge, 300) == found
    plain = json.loads((tmp_path / "habits.json").read_text())
    (tmp_path / "habits.json").write_text(json.dumps({**plain, "layout": [0.1]}))
    again = remembered(tmp_path / "habits.json", run, judge, 300)  # damaged: measured again
    assert np.allclose(again.layout, found.layout)
