"""Runs of sounds, clips, volumes and series do what runs of pictures do: resume, replay, film, report."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import unfog
from unfog.cli.main import main
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.runtime.tensors import read_tensors

QUICK = ("network.width=8", "network.middle=1", "batch=8", "images=64", "training.reports=1", "sampling.steps=2")
OWN = {
    "audio": ("data.count=100", "codec.rounds=1"),
    "video": ("data.count=100", "data.frames=4"),
    "volumes": ("data.count=100",),
    "series": ("data.count=200",),
}


def quick(name: str) -> Recipe:
    return recipe(name).set(*QUICK, *OWN[name])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind, trained for eight steps."""
    root = tmp_path_factory.mktemp("media")
    for name in OWN:
        unfog.train(quick(name), root / name)
    return {name: root / name for name in OWN}


@pytest.mark.parametrize("name", OWN)
def test_a_stopped_training_resumes_to_the_bit(runs: dict[str, Path], tmp_path: Path, name: str) -> None:
    steps = iter([False, False, False, True])
    unfog.train(quick(name), tmp_path / "run", stop=lambda: next(steps))
    before = read_tensors(tmp_path / "run" / "model.safetensors")
    unfog.resume(tmp_path / "run")
    whole, parts = (read_tensors(path / "model.safetensors") for path in (runs[name], tmp_path / "run"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert not all(torch.equal(before[key], parts[key]) for key in whole)


@pytest.mark.parametrize("name", OWN)
def test_sample_i_is_sample_i_and_files_hold_what_was_drawn(runs: dict[str, Path], tmp_path: Path, name: str) -> None:
    run = unfog.load(runs[name])
    drawn = run.sample(5, seed=2)
    assert torch.equal(run.sample(3, seed=2), drawn[:3])
    assert main(["sample", str(runs[name]), "-n", "5", "--seed", "2", "--out", str(tmp_path / "s")]) == 0
    modality = run.recipe.modality
    files = sorted((tmp_path / "s").glob(f"0*{modality.suffix}"))
    assert len(files) == 5
    for file, row in zip(files, drawn, strict=True):
        assert torch.allclose(modality.read(file, tuple(row.shape))[0].double(), row.double(), rtol=1e-5, atol=1e-6)
    with Image.open(tmp_path / "s" / "sheet.png") as sheet:
        assert min(sheet.size) > 20


@pytest.mark.parametrize("name", OWN)
def test_every_verb_that_looks_at_a_run_takes_it(runs: dict[str, Path], tmp_path: Path, name: str) -> None:
    run = str(runs[name])
    assert main(["film", run, "-n", "2", "--out", str(tmp_path / "film")]) == 0
    assert main(["replay", run, "--step", "3", "--out", str(tmp_path / "replay")]) == 0
    assert main(["report", run, "--out", str(tmp_path / "report")]) == 0
    assert main(["recipe", run]) == 0
    for file in ("film/strip.png", "film/film.gif", "film/paths.png", "replay/step-3.png", "report/samples.png"):
        with Image.open(tmp_path / file) as picture:
            assert min(picture.size) > 20
            assert max(picture.size) < 8000
