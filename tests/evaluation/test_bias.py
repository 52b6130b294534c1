"""How often a rare class is drawn and training rows are copied."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from unfog.evaluation.bias import Bias, Copied, Drawn, bias
from unfog.evaluation.contest import train_or_resume
from unfog.evaluation.families import FAMILIES
from unfog.evaluation.rival_page import Page
from unfog.evaluation.rivals import Contest
from unfog.evaluation.trained import Figure, Trained
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.runtime.errors import UserError

QUIET = Console(quiet=True)
QUICK = (
    "training.batch=16",
    "training.reports=1",
    "training.choices=reference",
    "sampling.steps=3",
    "sampling.batch=64",
)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.05, 0.2, "reflected"), (0.01, 0.09, "amplified"), (0.11, 0.2, "lessened")]
)
def test_verdicts(low: float, high: float, verdict: str) -> None:
    assert Drawn("GAN", "", (low + high) / 2, low, high, 0.1).verdict == verdict


def test_tables_and_page(tmp_path: Path) -> None:
    drawn = [Drawn("GAN", "without a condition", 0.05, 0.04, 0.07, 0.1)]
    copied = [Copied(name, rows, 0.01 * place, 0.0099) for rows in (400, 100) for place, name in enumerate("ab")]
    found = Bias(drawn, copied)
    shares, copies = found.tables()
    assert shares[1] == ["GAN", "without a condition", "5.0% [4.0%, 7.0%]", "10.0%", "amplified"]
    assert copies == [
        ["copies of training rows", "a", "b", "expected"],
        ["100 rows", "0.0%", "1.0%", "1.0%"],
        ["400 rows", "0.0%", "1.0%", "1.0%"],
    ]
    assert json.loads(json.dumps(found.plain()))["drawn"][0]["high"] == 0.07
    one = Trained("GAN", 0, 1, 1, {"frechet/x": Figure(1, None, None, 1, 2)})
    page = Page([one], Contest(recipe("digits"), tmp_path, 60), found)
    assert "amplified" in page.text()
    assert any("rare class" in note for note in page.notes())
    assert not any("rare class" in note for note in Page([one], page.contest).notes())


def test_data_without_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two classes or more"):
        bias(Contest(recipe("digits").set("data=stacked", "conditioning=none"), tmp_path, 60), console=QUIET)


@pytest.mark.slow
def test_bias_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_images(recipe: Recipe, folder: Path, budget: float, device: str, console: Console | None) -> None:
        train_or_resume(recipe.set("training.images=128"), folder, None, device, console)

    monkeypatch.setattr("unfog.evaluation.bias.train_or_resume", of_images)
    monkeypatch.setattr("unfog.evaluation.judge.RESAMPLES", 40)
    monkeypatch.setattr("unfog.evaluation.bias.FAMILIES", FAMILIES[:2])
    monkeypatch.setattr("unfog.evaluation.bias.SHARES", {"": 1.0, "a sixteenth": 1 / 16})
    contest = Contest(recipe("digits").set(*QUICK), tmp_path / "out", 4, count=300)
    found = bias(contest, device="cpu", console=QUIET)
    assert [one.family for one in found.drawn] == ["diffusion", "GAN", *["diffusion"] * 3]
    assert all(one.low <= one.share <= one.high for one in found.drawn)
    assert all(one.trained == pytest.approx(0.1, abs=0.02) for one in found.drawn)
    rows = {one.rows for one in found.copied}
    assert len(rows) == 2
    assert min(rows) == pytest.approx(max(rows) / 16, abs=1)
    assert np.isfinite([one.share for one in found.copied]).all()
    again = bias(contest, device="cpu", console=QUIET)
    assert again.plain() == found.plain()
