"""A sense of proportion: known cases give known sentences, and nothing is stated where nothing was measured."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import MakeRecipe
from unfog.cli.main import main
from unfog.recipes.presets import recipe
from unfog.training import outlook as proportions
from unfog.training import proportion
from unfog.training.outlook import BLOBS, NAMED, REAL, RUNS, Reached, kind_of, outlook, sentence, suggested

FAST = 2.3e11
"""Operations a second of the machine of the measurements."""
SMALL = Reached("drawings", 32, 10_000, 1.0, BLOBS, 4.0, 1.0)
LARGE = Reached("drawings", 64, 100_000, 1.0, NAMED, 1.0, 0.7)


@pytest.mark.parametrize(
    ("side", "minutes", "latents", "expected"),
    [
        (
            64,
            6,
            False,
            "at 64 pixels and 6 minutes: outlines (from measured runs), Fréchet distance 0.78 to 2 (real",
        ),
        (32, 6, False, "at 32 pixels and 6 minutes: drawings that one can name (from measured runs)"),
        (
            128,
            6,
            True,
            "at 128 pixels and 6 minutes: noise in the colours of the pictures (from measured runs); 32",
        ),
        (64, 20, False, "at 64 pixels and 20 minutes: drawings that one can name (from measured runs), Fréchet distan"),
    ],
)
def test_known_cases_say_what_was_seen(side: int, minutes: int, latents: bool, expected: str) -> None:
    said = sentence("drawings", side, minutes * 60 * FAST, latents, FAST)
    assert said is not None
    assert said.startswith(expected)
    assert said.endswith("; 32 pixels or 14 minutes for drawings that one can name") == ((side, minutes) == (64, 6))


@pytest.mark.parametrize("run", RUNS)
def test_a_measured_run_says_itself(run: Reached) -> None:
    """Its stage, and a range that holds its distance."""
    found = outlook(run.kind, run.side, run.operations, bool(run.latent[0]))
    assert found.stage is not None
    assert found.stage >= run.stage
    assert found.between is not None
    low, high, _ = found.between
    assert run.distance is not None
    assert low <= run.distance <= high


def test_operations_count_with_the_square_of_the_side() -> None:
    runs = (SMALL, LARGE)
    assert outlook("drawings", 64, 3.9e13 / 1.1, False, runs).stage is None  # less than was ever measured
    assert outlook("drawings", 64, 4e13, False, runs)[:2] == (BLOBS, True)
    assert outlook("drawings", 32, 2.5e13, False, runs)[:2] == (NAMED, True)
    assert outlook("drawings", 32, 1e13, False, runs)[:2] == (BLOBS, False)
    assert outlook("drawings", 32, 1e13, False, runs).named == 2.5e13
    assert outlook("drawings", 15, 1e20, False, runs).stage is None  # less than half of any


def test_a_distance_is_stated_only_near_measured_runs() -> None:
    later = replace_images(SMALL, 40_000, 1.0)
    other = Reached("drawings", 32, 11_000, 1.0, BLOBS, 9.0, 2.0)  # whose floor says that it is not comparable
    between = outlook("drawings", 32, 2e13, False, (SMALL, other, later)).between
    assert between is not None
    assert between[:2] == pytest.approx((2 / 1.6, 2 * 1.6))  # halfway on the power law from 4 to 1
    far = replace_images(SMALL, 160_000, 1.0)
    assert outlook("drawings", 32, 4e13, False, (SMALL, far)).between is None  # a line of one fast and one slow part
    assert outlook("drawings", 32, 1e12, False, (SMALL, later)).between is None
    assert outlook("drawings", 32, 1e15, False, (SMALL, later)).between is None
    assert outlook("drawings", 32, 1.4e13, False, (SMALL,)).between == (4 / 1.6, 4 * 1.6, 1.0)
    assert outlook("drawings", 32, 1e13, True, (SMALL,)).between is None  # in latents nothing was measured
    other = later._replace(floor=9.0)
    assert outlook("drawings", 32, 2e13, False, (SMALL, other)).between is None  # another protocol
    twin = replace_images(SMALL, 10_500, 9.0)
    assert outlook("drawings", 32, 1.1e13, False, (SMALL, twin, later)).between[1] == 9 * 1.6  # type: ignore[index]


def replace_images(run: Reached, images: int, distance: float) -> Reached:
    """A longer run of the same kind."""
    return run._replace(images=images, distance=distance)


def test_what_nobody_measured_is_not_promised() -> None:
    assert sentence("photos", 64, 1e18, False, FAST) is not None
    assert "for things" not in str(sentence("photos", 64, 1e18, False, FAST)).partition(" no measured run")[0]
    said = str(sentence("photos", 64, 1e14, False, FAST))
    assert said.endswith("no measured run on photos was long enough for things that one can name")


def test_a_size_follows_from_the_budget() -> None:
    assert suggested("drawings", 64, 1e15) == 64
    assert suggested("drawings", 64, 360 * FAST) == 32
    assert suggested("drawings", 32, 1e15) == 32
    assert suggested("photos", 64, 30e12) == 32  # blobs there and at 48, noise at 64
    assert suggested("digits", 28, 1e12) == 28


def test_kinds_are_known_or_seen(tiny: MakeRecipe, tmp_path: Path) -> None:
    ramp = torch.arange(32, dtype=torch.uint8).expand(2, 3, 32, 32)
    flat = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "1.png")
    own = recipe("folder", str(tmp_path))
    assert [kind_of(own, x) for x in (ramp, flat, flat[:, :1], ramp[:, :1])] == [
        "photos",
        "drawings",
        "letters",
        "fashion",
    ]
    assert kind_of(own, flat.float()) is None
    assert kind_of(tiny(), ramp[:, :1]) == "digits"
    assert kind_of(recipe("points"), torch.zeros(2, 2)) is None
    assert len(proportions.STAGES) > REAL


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    """Thirty pictures of 64×64 pixels, each two flat areas."""
    folder = tmp_path / "drawings"
    folder.mkdir()
    for number in range(30):
        pixels = np.full((64, 64, 3), 255, np.uint8)
        pixels[:, : 2 * number + 2] = 8 * number
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_verbs_suggest_a_size_within_a_budget(
    drawings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(proportion, "fastest", lambda recipe, device: FAST / proportion.REACHED)
    assert main(["inspect", str(drawings), "--budget", "6m"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "side 32: unfog train folder" in shown[-2]
    assert "--size 32 --budget 6m" in shown[-2]
    assert shown[-1].startswith("at 32 pixels and 6 minutes: drawings that one can name")
    small = ["--set", "network.width=8", "--set", "sampling.batch=4", "--device", "cpu"]
    assert main(["plan", "folder", "--data", str(drawings), "--budget", "6m", *small]) == 0
    shown, errors = capsys.readouterr()
    assert "images of 3×32×32" in shown
    assert "\nexpect  at 32 pixels" in shown
    assert errors.startswith("size 32, which fits the budget")
    assert main(["plan", "folder", "--data", str(drawings), "--budget", "6m", "--size", "16", *small]) == 0
    assert "images of 3×16×16" in capsys.readouterr().out


def test_train_says_what_to_expect(
    tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(proportion, "fastest", lambda recipe, device: FAST / proportion.REACHED)
    assert proportion.expectation(replace(tiny(), name="digits"), 60) == sentence("digits", 8, 60 * FAST, False, FAST)
    few = ("training.images=64", "network.width=8", "sampling.steps=2", "sampling.batch=4", "training.reports=1")
    sets = [word for one in few for word in ("--set", one)]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(12):
        pixels = np.zeros((8, 8), np.uint8)
        pixels[2, 2:4] = 10 * number, 255  # a sign on its ground
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    arguments = ["train", "folder", "--data", str(pictures), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*arguments, *sets]) == 0
    assert "at 8 pixels" in capsys.readouterr().err.split("training")[0]
