"""Trackers get what metrics.jsonl gets, and a missing one is a sentence."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from unfog.recipes.recipe import Recipe
from unfog.runs.run import fit, refit
from unfog.runtime.errors import UserError
from unfog.training.loggers import LOGGERS, Line, loggers
from unfog.training.metrics import read_metrics

MakeRecipe = Callable[..., Recipe]
QUIET = Console(quiet=True)


class Tracker:
    """Remembers what it gets."""

    def __init__(self, folder: Path, recipe: str, step: int) -> None:
        self.lines: list[Line] = []
        self.pictures: list[tuple[int, tuple[int, int]]] = []
        self.closed = 0
        self.recipe = recipe

    def line(self, line: Line) -> None:
        self.lines.append(line)

    def picture(self, step: int, path: Path) -> None:
        with Image.open(path) as sheet:
            self.pictures.append((step, sheet.size))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def opened_trackers(monkeypatch: pytest.MonkeyPatch) -> list[Tracker]:
    """Every logger that is opened under the name tensorboard."""
    opened: list[Tracker] = []

    def begin(folder: Path, recipe: str, step: int) -> Tracker:
        opened.append(Tracker(folder, recipe, step))
        return opened[-1]

    monkeypatch.setitem(LOGGERS, "tensorboard", begin)
    return opened


def test_a_logger_gets_every_line_and_every_sheet(
    tiny: MakeRecipe, tmp_path: Path, opened_trackers: list[Tracker]
) -> None:
    chosen = tiny("training.images=1280", "training.reports=2")
    fit(chosen, tmp_path / "run", device="cpu", console=QUIET, log=("tensorboard", "tensorboard"))
    (one,) = opened_trackers
    assert one.lines == read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [step for step, _ in one.pictures] == [20, 40]
    assert one.closed == 1
    assert Recipe.from_json(one.recipe).shape == (1, 8, 8)


def test_a_logger_is_closed_after_an_error(tiny: MakeRecipe, tmp_path: Path, opened_trackers: list[Tracker]) -> None:
    with pytest.raises(UserError, match="finite"):
        fit(
            tiny("optimizer.lr=1e30", "optimizer.clip=1e30"),
            tmp_path / "run",
            device="cpu",
            console=QUIET,
            log=("tensorboard",),
        )
    assert opened_trackers[0].closed == 1


def test_a_resumed_training_is_logged_on(tiny: MakeRecipe, tmp_path: Path, opened_trackers: list[Tracker]) -> None:
    fit(tiny(), tmp_path / "run", device="cpu", console=QUIET)
    refit(tmp_path / "run", device="cpu", console=QUIET, log=("tensorboard",))
    assert opened_trackers == []  # there was nothing left to do


class Broken(Tracker):
    """Has no network."""

    def line(self, line: Line) -> None:
        raise OSError("no network")


def test_a_tracker_that_fails_costs_no_training(
    tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOGGERS, "wandb", Broken)
    with pytest.warns(UserWarning, match=r"Broken failed \(no network\) and was disabled"):
        fit(tiny(), tmp_path / "run", device="cpu", console=QUIET, log=("wandb",))
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_an_unknown_logger(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown logger 'tensorbord': did you mean 'tensorboard'"):
        loggers(("tensorbord",), tmp_path, "{}")


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_tracker_is_a_sentence(
    tiny: MakeRecipe, tmp_path: Path, name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"the logger {name} needs the extra '{name}': pip install 'unfog\[{name}\]'"):
        fit(tiny(), tmp_path / "run", device="cpu", console=QUIET, log=(name,))


def test_tensorboard_holds_the_figures(tiny: MakeRecipe, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fit(tiny("training.images=1280"), tmp_path / "run", device="cpu", console=QUIET, log=("tensorboard",))
    found = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for name in ("loss", "held_out_loss", "lr", "images"):
        wanted = [(line["step"], line[name]) for line in lines if name in line]
        scalars = [(event.step, event.value) for event in found.Scalars(name)]
        assert [step for step, _ in scalars] == [step for step, _ in wanted]
        assert np.allclose([value for _, value in scalars], [value for _, value in wanted], rtol=1e-5)
    assert [event.step for event in found.Images("samples")] == [40]
    assert "recipe/text_summary" in found.Tags()["tensors"]


@pytest.mark.slow
def test_weights_and_biases_works_offline(tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network or an account; the folder of the run holds it all."""
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    fit(tiny("training.images=640"), tmp_path / "run", device="cpu", console=QUIET, log=("wandb",))
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert any(path.suffix == ".wandb" and path.stat().st_size > 0 for path in folder.iterdir())
    assert list(folder.rglob("samples_*.png"))
    assert os.environ.get("WANDB_API_KEY") is None
