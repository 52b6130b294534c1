"""Runs that are trained on after their end, and runs that begin with everything of another one."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

import unfog
from tests.conftest import MakeRecipe
from unfog.cli.main import main
from unfog.reports.replay import replay
from unfog.runs.run import Run, load, read_recipe, resume, train
from unfog.runtime.errors import UserError
from unfog.training.budget import trace_of
from unfog.training.metrics import read_metrics

QUIET = Console(quiet=True)


@pytest.fixture
def short(tiny: MakeRecipe, tmp_path: Path) -> Run:
    """A finished run of 320 images."""
    return train(tiny("training.images=320"), tmp_path / "short", device="cpu", console=QUIET)


def rates(folder: Path) -> list[float]:
    return [line["lr"] for line in read_metrics(folder / "metrics.jsonl") if "lr" in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_finished_run_goes_on(short: Run, tmp_path: Path) -> None:
    """Its rate rises and falls once more, and everything else continues."""
    before = weights(short.path)
    longer = short.extend(images=1280, console=QUIET)
    training = read_recipe(short.path).training
    assert (training.images, training.began, training.seconds) == (1600, 320, None)
    first, last = rates(short.path)  # at 9 and 29 of 40 steps
    assert last == pytest.approx(first * (40 - 29) / 20)
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights(short.path).items())
    assert longer.sample(2).shape == (2, 1, 8, 8)
    assert [path.name for path in sorted((short.path / "checkpoints").iterdir())][-1] == "000000050"


def test_what_is_trained_on_is_a_function_of_the_images(tiny: MakeRecipe, tmp_path: Path) -> None:
    """Stopped on the way and resumed, it ends with the same bits."""
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        train(tiny("training.images=320"), folder, device="cpu", console=QUIET)
    resume(folders[0], images=640, device="cpu", console=QUIET)
    calls = itertools.count()
    resume(folders[1], images=640, stop=lambda: next(calls) == 3, device="cpu", console=QUIET)
    again = itertools.count()
    resume(folders[1], stop=lambda: next(again) == 4, device="cpu", console=QUIET)
    assert read_recipe(folders[1]).training.began == 320
    resume(folders[1], device="cpu", console=QUIET)
    one, other = map(weights, folders)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_goes_on_by_the_clock_and_again_by_images(short: Run) -> None:
    short.extend(budget=3, console=QUIET)
    training, trace = read_recipe(short.path).training, trace_of(short.path)
    assert (training.began, training.seconds) == (320, 3)
    assert training.images == 320 + 32 * len(trace.progress)
    assert trace.now == 1
    replay(short.path, 11, "cpu")
    replay(short.path, 3, "cpu")
    load(short.path, "cpu").extend(images=64, console=QUIET)
    assert read_recipe(short.path).training.began == training.images
    assert read_recipe(short.path).training.seconds is None


def test_a_length_is_needed_and_only_one(short: Run) -> None:
    with pytest.raises(UserError, match="give `images` or `budget`"):
        short.extend()
    with pytest.raises(UserError, match="give one of them"):
        short.extend(images=3, budget=3)
    with pytest.raises(UserError, match="the number of images"):
        short.extend(images=0)


def test_training_on_from_the_shell(short: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(short.path), "--device", "cpu"]) == 0
    assert f"to train it further: `unfog train --resume {short.path} --images N`, or --budget" in " ".join(
        capsys.readouterr().err.split()
    )
    assert main(["train", "--resume", str(short.path), "--images", "64", "--device", "cpu"]) == 0
    assert read_recipe(short.path).training.images == 384
    assert main(["train", "--resume", str(short.path), "--images", "64", "--budget", "5s"]) == 2


def test_images_are_the_length_of_a_new_run(tiny: MakeRecipe, tmp_path: Path) -> None:
    words = ["train", "digits", "--out", str(tmp_path / "run"), "--images", "128", "--device", "cpu"]
    small = [word for setting in ("network.width=8", "sampling.steps=2") for word in ("--set", setting)]
    assert main([*words, *small]) == 0
    assert read_recipe(tmp_path / "run").training.images == 128
    assert main(["train", "digits", "--images", "128", "--budget", "3s"]) == 2


def test_a_new_run_takes_everything_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Recipe, data and every setting of its source, but for what is to be different."""
    pictures, numbers = tmp_path / "pictures", np.random.default_rng(0)
    pictures.mkdir()
    for number in range(24):
        Image.fromarray(numbers.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(pictures / f"{number}.png")
    first, second = tmp_path / "first", tmp_path / "second"
    settings = ("network.width=8", "training.images=128", "training.batch=8", "optimizer.lr=0.001", "sampling.steps=2")
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["train", "folder", "--data", str(pictures), "--size", "8", *words, "--out", str(first)]) == 0
    assert main(["train", "--init-from", str(first)]) == 2
    assert "give the new run an --out" in capsys.readouterr().err
    assert main(["train", "--init-from", str(first), "--set", "optimizer.lr=0.0005", "--out", str(second)]) == 0
    one, other = read_recipe(first), read_recipe(second)
    assert other == one.set("optimizer.lr=0.0005")


def test_a_source_by_the_clock_gives_its_seconds_unless_images_are_asked(tiny: MakeRecipe, tmp_path: Path) -> None:
    train(tiny(), tmp_path / "source", budget=3, device="cpu", console=QUIET)
    words = ["train", "--init-from", str(tmp_path / "source"), "--images", "64", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "new")]) == 0
    training = read_recipe(tmp_path / "new").training
    assert (training.images, training.seconds) == (64, None)


def test_a_given_dataset_is_asked_for_again(tmp_path: Path, tiny: MakeRecipe) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    recipe = tiny("conditioning=none", "sampling.guidance=1", "training.images=64")
    run = unfog.train(recipe, tmp_path / "run", dataset=rows, device="cpu", console=QUIET)
    with pytest.raises(UserError, match="dataset"):
        run.extend(images=64, console=QUIET)
    run.extend(images=64, dataset=rows, console=QUIET)
    assert read_recipe(tmp_path / "run").training.images == 128
