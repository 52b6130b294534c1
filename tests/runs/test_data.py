"""A run remembers what its data were: what reads them again hears what changed, and nothing is mixed silently."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unfog.cli.main import main
from unfog.data.source import Data
from unfog.recipes.presets import recipe
from unfog.runs.data import NAME, read_data
from unfog.runs.run import begin, read_recipe
from unfog.runtime.errors import UserError
from unfog.training.latents import Encoded

SMALL = ("network.width=8", "training.images=64", "training.batch=16", "training.reports=2", "sampling.steps=2")
MORE = ("optimizer.warmup=16", "sampling.batch=8", "data.size=8")


def paint(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(shade).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures `pets`, and a run on them."""
    home = tmp_path_factory.mktemp("trained")
    for place, name in enumerate(("cat", "dog")):
        for number in range(40):
            paint(home / "pets" / name / f"{number}.png", 100 * place + number)
    options = [word for setting in (*SMALL, *MORE) for word in ("--set", setting)]
    data = ["--data", str(home / "pets"), "--device", "cpu"]
    assert main(["train", "folder", *data, "--out", str(home / "run"), *options]) == 0
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, whose data were moved with it."""
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copytree(trained / "pets", tmp_path / "pets")
    where = tmp_path / "run" / "recipe.json"
    where.write_text(where.read_text().replace(json.dumps(str(trained / "pets")), json.dumps(str(tmp_path / "pets"))))
    return tmp_path


ACCEPTED = pytest.mark.filterwarnings("default:the data of .* changed since it was trained")


@ACCEPTED
@pytest.mark.parametrize(
    "verb", [["train", "--resume"], ["evaluate", "--likelihood", "1"], ["report"]], ids=lambda verb: verb[0]
)
def test_changed_data_are_refused_moved_and_accepted(
    verb: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = verb
    command = [name, *options, str(home / "run"), "--device", "cpu"]
    if name == "evaluate":
        command = [name, str(home / "run"), *options, "--device", "cpu"]
    assert main(command) == 0
    shutil.copytree(home / "pets", home / "elsewhere")
    (home / "pets" / "cat" / "3.png").rename(home / "pets" / "dog" / "a cat.png")
    capsys.readouterr()
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"the data of {home / 'run'} changed since it was trained: 1 file moved (cat/3.png to dog/a cat.png)" in said
    assert (
        "name the folder that holds them with --data, or continue with those of today with --accept-changed-data"
        in said
    )
    assert main([*command, "--data", str(home / "elsewhere")]) == 0
    if name == "train":
        assert read_recipe(home / "run").data == recipe("folder", str(home / "elsewhere")).set("data.size=8").data
        return  # the run remembers where they are now
    capsys.readouterr()
    assert main([*command, "--accept-changed-data"]) == 0
    assert "warning: the data of" in capsys.readouterr().err


@ACCEPTED
def test_accepted_data_are_remembered(home: Path) -> None:
    paint(home / "pets" / "cat" / "more.png", 999)
    command = ["train", "--resume", str(home / "run"), "--device", "cpu"]
    assert main(command) == 2
    assert main([*command, "--accept-changed-data"]) == 0
    assert main(command) == 0
    assert "cat/more.png" in json.loads((home / "run" / NAME).read_text())["files"]


def test_a_run_of_before_remembers_from_now_on(home: Path) -> None:
    (home / "run" / NAME).unlink()
    assert main(["train", "--resume", str(home / "run"), "--device", "cpu"]) == 0
    kept = json.loads((home / "run" / NAME).read_text())
    assert len(kept["files"]) == 80
    assert len(kept["held_out"]) == kept["heldout"] == 8


def test_others_are_warned(home: Path) -> None:
    paint(home / "pets" / "cat" / "more.png", 999)
    with pytest.warns(UserWarning, match=r"changed since it was trained: 1 file added \(cat/more.png\)"):
        read_data(home / "run", read_recipe(home / "run"))


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"digest": "", "train": 1, "heldout": 1, "files": {"a": [1]}, "held_out": []}']
)
def test_a_damaged_memory_is_a_sentence(home: Path, text: str) -> None:
    (home / "run" / NAME).write_text(text)
    with pytest.raises(UserError, match=r"data\.json is damaged: remove it"):
        read_data(home / "run", read_recipe(home / "run"))


def test_flags_that_do_not_apply(home: Path, capsys: pytest.CaptureFixture[str], digits_run: Path) -> None:
    assert main(["train", "points", "--out", str(home / "points"), "--accept-changed-data"]) == 2
    assert "--accept-changed-data is for --resume" in capsys.readouterr().err
    assert main(["evaluate", str(digits_run), "--data", str(home), "--device", "cpu"]) == 2
    assert "--data names the folder of the data, and 'digits' reads none: drop it" in capsys.readouterr().err


def test_latents_belong_to_their_pictures(home: Path) -> None:
    """Where two class folders were swapped, as many pictures of the same size are encoded anew."""
    coder = ("training.images=16", "training.batch=8", "training.reports=1", "network.widths=[4, 4]")
    begin(recipe("autoencoder", str(home / "pets")).set("data.size=16", *coder), home / "coder", device="cpu").save()
    words = ("codec=latents", f"codec.path={home / 'coder'}", "data.size=16", "data.channels=1")
    chosen = recipe("folder", str(home / "pets")).set(*SMALL, *words)

    def latents(out: str) -> dict[str, np.ndarray]:
        """Each picture's latent by its contents."""
        trainer = begin(chosen, home / "latents", device="cpu")
        data: Data = trainer.data
        encoded = trainer.prepared.train
        assert isinstance(encoded, Encoded)
        return {
            row.numpy().tobytes().hex(): z.numpy()
            for row, z in zip(data.train.take(np.arange(len(data.train))).x, encoded.x, strict=True)
        }

    before = latents("before")
    (home / "pets" / "cat").rename(home / "pets" / "aside")
    (home / "pets" / "dog").rename(home / "pets" / "cat")
    (home / "pets" / "aside").rename(home / "pets" / "dog")
    shutil.rmtree(home / "latents" / "checkpoints", ignore_errors=True)
    after = latents("after")
    both = before.keys() & after.keys()
    assert len(both) > 50
    for key in both:
        np.testing.assert_array_equal(before[key], after[key])
