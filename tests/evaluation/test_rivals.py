"""`unfog rivals`: families trained alike, measured alike, and a table of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from unfog.cli.main import main
from unfog.evaluation import rivals as room
from unfog.evaluation.rivals import FAMILIES, Figure, Page, Trained, code_lines, rivals, spread, table
from unfog.recipes.presets import recipe
from unfog.runtime.errors import UserError

QUIET = Console(quiet=True)
TRAINED = Trained("GAN", 0, 6400, 1000, {"recall": Figure(0.5, 0.4, 0.6, 0.9, 0.01)}, 0.02, 0.01, 0.1, 0.01, None, "")


@pytest.mark.slow
def test_families_are_trained_measured_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table, JSON and a sheet; what was measured is not measured again, unless with another number of samples."""
    words = ["rivals", "--data", "digits", "--budget", "3s", "-n", "300", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("unfog.evaluation.judge.RESAMPLES", 40)
    assert main([*words, "--set", "training.batch=32", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for name in ("diffusion", "GAN", "VAE", "autoregressive", "recall", "seconds a picture, alone", "collapsed"):
        assert name in printed
    written = json.loads((tmp_path / "out" / "rivals.json").read_text())
    trained = {one["family"]: one for one in written["trained"]}
    assert list(trained) == [family.name for family in FAMILIES]
    assert {name: one["way"] for name, one in trained.items()} == {
        "diffusion": "flow",
        "GAN": "",
        "VAE": "bound",
        "autoregressive": "exact",
    }
    assert trained["GAN"]["bits"] is None
    assert all(one["single"] > 0 and one["images"] >= 32 for one in trained.values())
    page = (tmp_path / "out" / "rivals.md").read_text()
    assert "![samples](rivals.png)" in page
    assert (tmp_path / "out" / "rivals.png").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(room, "_measured", lambda *given: pytest.fail("it is measured already"))
        assert main([*words, "--set", "training.batch=32", "--device", "cpu"]) == 0
    assert main([*words, "--set", "training.batch=16", "--device", "cpu"]) == 2
    assert "holds a run of another recipe" in capsys.readouterr().err
    for damaged in ("{}", "[]", "{", '{"count": 300, "scores": 1}'):
        (tmp_path / "out" / "gan-0" / "rival.json").write_text(damaged)
        assert room._kept(tmp_path / "out" / "gan-0" / "rival.json", 300) is None
    assert room._kept(tmp_path / "out" / "vae-0" / "rival.json", 400) is None
    assert room._kept(tmp_path / "out" / "vae-0" / "rival.json", 300) is not None


def test_what_a_family_cannot_learn_is_refused_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="codec=pixels|is of pixels|no pictures|knows classes only|cannot be built"):
        rivals(recipe("points"), tmp_path, 60, console=QUIET)
    with pytest.raises(UserError, match="one seed or more"):
        rivals(recipe("digits"), tmp_path, 60, 0, console=QUIET)
    assert not list(tmp_path.iterdir())


def test_a_training_that_reaches_next_to_nothing_has_collapsed() -> None:
    assert not TRAINED.collapsed
    assert replace(TRAINED, scores={"recall": Figure(0.08, None, None, 0.9, 0.01)}).collapsed
    assert replace(TRAINED, scores={"coverage": Figure(0.0, None, None, 0.9, 0.01)}).collapsed
    assert not replace(TRAINED, scores={"frechet": Figure(0.0, None, None, 0.9, 0.01)}).collapsed


def test_a_table_has_the_spread_over_seeds() -> None:
    other = replace(TRAINED, seed=1, scores={"recall": Figure(0.3, 0.2, 0.4, 0.9, 0.01)}, bits=None)
    likely = replace(TRAINED, family="VAE", bits=(1.25, 0.125), way="bound")
    rows = {row[0]: row[1:] for row in table([TRAINED, other, likely])}
    assert rows[""] == ["GAN", "VAE", "real data", "noise"]
    assert rows["recall"] == ["0.4 (0.3 to 0.5)", "0.5", "0.9", "0.01"]
    assert rows["bits a number, held out"][:2] == ["none", "1.250 ± 0.125, bound"]
    assert rows["collapsed"][:2] == ["0 of 2", "0 of 1"]
    assert rows["copies, share near training rows"][2] == "0.01"
    assert spread([]) == "-"
    assert spread([1234.5]) == "1,234"
    assert "2 seeds" in Page([TRAINED, other], recipe("digits"), 180, 300).notes()[0]


def test_lines_of_code_are_those_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '"""A module.\n\nOf two lines."""\n\n# why\nx = 1\n\n\ndef f() -> None:\n    """Do it."""\n    return "a"\n'
    monkeypatch.setattr(room.inspect, "getsource", lambda module: text)
    assert code_lines("runtime.version") == 3


def test_families_have_modules_of_their_own() -> None:
    assert all(family.lines > 50 for family in FAMILIES)
