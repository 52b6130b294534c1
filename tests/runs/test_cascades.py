"""Cascades: several runs as one, which draws small pictures and enlarges them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import unfog
from unfog.cli.main import main
from unfog.recipes.presets import recipe
from unfog.runs.cascades import cascade
from unfog.runtime.errors import UserError

QUICK = (
    "network.width=8",
    "network.middle=1",
    "training.images=64",
    "training.reports=1",
    "sampling.steps=2",
    "sampling.batch=2",
)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of pictures of 8 pixels in two classes, and one that makes 16 of 8."""
    root = tmp_path_factory.mktemp("cascade")
    for place in range(24):
        folder = root / "pictures" / "ab"[place % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(place).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{place}.png")
    small = recipe("folder", str(root / "pictures"), 8).set(*QUICK, "batch=8")
    large = recipe("super-resolution", str(root / "pictures"), 16).set(*QUICK, "batch=8")
    unfog.train(small, root / "small")
    unfog.train(large, root / "large")
    return root / "small", root / "large"


@pytest.fixture(scope="module")
def made(stages: tuple[Path, Path]) -> Path:
    return cascade(stages, stages[0].parent / "cascade")


def test_samples_are_those_of_the_first_run_enlarged_by_the_second(stages: tuple[Path, Path], made: Path) -> None:
    run, small, large = (unfog.load(path) for path in (made, *stages))
    assert run.recipe.shape == (3, 16, 16)
    drawn = run.sample(5, label="b", seed=3)
    assert drawn.shape == (5, 3, 16, 16)
    assert drawn.dtype == torch.uint8
    size = run.generator().size
    first = small.sample(5, label="b", seed=3, batch=size)
    wide = F.interpolate(first.float(), (16, 16), mode="nearest").to(torch.uint8)
    assert size == 2
    for first in (0, 2):  # a batch, and the next one
        pair = torch.cat([torch.zeros(first, 3, 16, 16, dtype=torch.uint8), wide[first : first + 2]])
        assert torch.equal(large.sample(first + 2, image=pair, seed=3)[first:], drawn[first : first + 2])
    assert torch.equal(run.sample(3, label="b", seed=3), drawn[:3])  # sample i is sample i
    assert not torch.equal(run.sample(5, label="b", seed=4), drawn)
    assert run.sample(2, steps=3).shape == (2, 3, 16, 16)


def test_the_folder_is_all_that_is_needed(stages: tuple[Path, Path], made: Path, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(made, moved)
    assert torch.equal(unfog.load(moved).sample(2), unfog.load(made).sample(2))
    assert str(stages[0].parent) not in (moved / "recipe.json").read_text().replace(
        str(stages[0].parent / "pictures"), ""
    )


def test_a_cascade_is_sampled_and_reported_on_the_command_line(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(made), "-n", "4", "--out", str(tmp_path / "samples")]) == 0
    assert len(list((tmp_path / "samples").glob("0*.png"))) == 4
    assert main(["film", str(made), "--out", str(tmp_path / "film")]) == 2
    assert "not sampled step by step" in capsys.readouterr().err
    assert main(["export", str(made), str(tmp_path / "exported")]) == 2
    assert main(["train", "--resume", str(made)]) == 2


def test_noise_in_what_is_enlarged_is_chosen(stages: tuple[Path, Path], made: Path, tmp_path: Path) -> None:
    noisy = cascade(stages, tmp_path / "noisy", noise=0.3)
    assert not torch.equal(unfog.load(noisy).sample(2), unfog.load(made).sample(2))
    assert json.loads((noisy / "2" / "recipe.json").read_text())["conditioning"]["noise_at"] == 0.3
    with pytest.raises(UserError, match=r"trained with noise of up to 0\.5 in the small pictures, not 0\.9"):
        cascade(stages, tmp_path / "more", noise=0.9)


def test_runs_that_do_not_fit_are_refused(
    stages: tuple[Path, Path], digits_run: Path, made: Path, tmp_path: Path
) -> None:
    small, large = stages
    with pytest.raises(UserError, match="has 2 to 8 runs, not 1"):
        cascade([small], tmp_path / "one")
    with pytest.raises(UserError, match="neither enlarges pictures nor decodes embeddings"):
        cascade([small, small], tmp_path / "same")
    with pytest.raises(UserError, match=r"enlarges pictures of 3×8×8, and .* draws 1×8×8"):
        cascade([digits_run, large], tmp_path / "grey")
    with pytest.raises(UserError, match="is not sampled step by step"):
        cascade([made, large], tmp_path / "nested")
    with pytest.raises(UserError, match="holds another run"):
        cascade(stages, made)


def test_a_stage_of_a_stranger_reads_nothing_outside(made: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(made, tmp_path / "bad")
    plain = json.loads((tmp_path / "bad" / "recipe.json").read_text())
    plain["objective"]["path"] = str(made)
    (tmp_path / "bad" / "recipe.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match="outside of the run folder"):
        unfog.load(tmp_path / "bad")
    with pytest.raises(UserError, match=r"a cascade is made of trained runs"):
        unfog.train(recipe("digits").set("objective=cascade"), tmp_path / "run")
