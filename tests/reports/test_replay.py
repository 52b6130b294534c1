"""Any step of a run, drawn again: what the training saw to the bit, the loss it had, and the row behind a spike."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from tests.conftest import MakeRecipe
from unfog.cli.main import main
from unfog.data.classic import digits
from unfog.data.modality import paired
from unfog.data.source import Data, InMemory
from unfog.diffusion.schedules import EDM, RectifiedFlow
from unfog.generation.sampler import shown
from unfog.recipes.build import build_data
from unfog.recipes.kinds import KINDS, register
from unfog.recipes.objective import Draw
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.reports.replay import replay
from unfog.runtime.errors import UserError
from unfog.training import loop
from unfog.training.trainer import Trainer

DRAWN = ("augment.flip=true", "augment.crop=1", "conditioning.dropout=0.4", "network.dropout=0.3", "optimizer.warmup=0")
IMPORTANT = ("times=importance", "times.bins=2", "times.base=logit-normal")


def trainer_of(recipe: Recipe, folder: Path) -> Trainer:
    """Return the trainer of a run folder that holds its recipe."""
    found, data = build_data(recipe)
    trainer = Trainer(found, data, folder, torch.device("cpu"))
    loop.write_recipe(trainer)
    return trainer


def noted(trainer: Trainer) -> list[Draw]:
    """Return the list into which the batches go whose loss is taken in training."""
    seen, losses = [], trainer.losses

    def note(draw: Draw) -> dict[str, torch.Tensor]:
        seen.append(Draw(*(None if part is None else part.clone() for part in draw)))  # type: ignore[arg-type]
        return losses(draw)

    trainer.losses = note  # type: ignore[method-assign]
    return seen


def assert_same(first: Draw, second: Draw) -> None:
    assert first.changes is None
    assert second.changes is None
    pair = (one._replace(changes=one.u) for one in (first, second))
    for name, mine, other in zip(Draw._fields, *pair, strict=True):
        assert mine is not None
        assert other is not None
        assert torch.equal(mine, other), name


# What a step saw


@pytest.mark.parametrize("stratified", ["true", "false"])
def test_a_replay_is_what_the_training_saw(tiny: MakeRecipe, tmp_path: Path, stratified: str) -> None:
    trainer = trainer_of(tiny(*DRAWN, f"training.stratified={stratified}"), tmp_path)
    seen = noted(trainer)
    loop.train(trainer, Console(quiet=True))
    assert len(seen) == 16
    for step in (1, 2, 9, 16):
        found = replay(tmp_path, step, "cpu")
        assert_same(found.draw, seen[step - 1])
        t = trainer.recipe.times(seen[step - 1].u, trainer.denoiser.schedule)
        assert [row.t for row in found.rows] == t.tolist()
        assert [row.dropped for row in found.rows] == seen[step - 1].drop.tolist()
        assert [row.shows for row in found.rows] == [str(label) for label in seen[step - 1].condition.tolist()]  # type: ignore[union-attr]
    assert any(row.dropped for row in found.rows)
    assert_same(replay(tmp_path, 1000, "cpu").draw, trainer.draws(999))  # of the future, too


def test_the_rows_are_those_of_the_training_set(tiny: MakeRecipe, tmp_path: Path) -> None:
    trainer_of(tiny(), tmp_path).save()
    train = digits().train
    found = replay(tmp_path, 60, "cpu")  # beyond the first epoch
    x = train.take(np.array([row.row for row in found.rows])).x
    assert torch.equal(x.float() / 127.5 - 1, found.draw.x0)
    assert [row.place for row in found.rows] == list(range(32))


def test_the_loss_is_that_of_the_training(tiny: MakeRecipe, tmp_path: Path) -> None:
    """With the weights of right before the step, and the same dropout, to the bit."""
    trainer = trainer_of(tiny(*DRAWN), tmp_path)
    losses = []
    for step in range(6):
        losses.append(trainer.descend(trainer.draws(step)))
        if step in (2, 4):
            trainer.save()
    for step in (4, 6):
        found = replay(tmp_path, step, "cpu")
        assert found.weights == f"the checkpoint of step {step - 1}"
        assert found.loss == losses[step - 1]
        assert found.loss == pytest.approx(sum(row.loss for row in found.rows) / 32, rel=1e-5)
    assert replay(tmp_path, 5, "cpu").weights == "the checkpoint of step 3"
    assert replay(tmp_path, 500, "cpu").weights == "the checkpoint of step 5"


def test_a_batch_in_portions_is_replayed_in_portions(tiny: MakeRecipe, tmp_path: Path) -> None:
    trainer = trainer_of(tiny(*DRAWN, "training.accumulate=4"), tmp_path)
    trainer.save()
    assert trainer.descend(trainer.draws(0)) == pytest.approx(replay(tmp_path, 1, "cpu").loss, rel=1e-6)


def test_without_a_checkpoint_so_old_the_model_is_used(tiny: MakeRecipe, tmp_path: Path) -> None:
    trainer = trainer_of(tiny(*DRAWN), tmp_path)
    for step in range(3):
        trainer.descend(trainer.draws(step))
    trainer.save()
    found = replay(tmp_path, 3, "cpu")
    assert found.weights.startswith("the averaged weights of the run")
    with torch.no_grad():
        losses = trainer.objective.measured(trainer.averaged.model, trainer.draws(2), trainer.context())
    torch.testing.assert_close(torch.tensor([row.loss for row in found.rows]), losses)


def test_importance_is_exact_from_the_checkpoint_before_and_says_so_elsewhere(tiny: MakeRecipe, tmp_path: Path) -> None:
    trainer = trainer_of(tiny(*IMPORTANT), tmp_path)
    seen, losses = noted(trainer), []
    for step in range(5):
        if step == 4:
            trainer.save()
        losses.append(trainer.descend(trainer.draws(step)))
    found = replay(tmp_path, 5, "cpu")
    assert found.note == ""
    assert_same(found.draw, seen[4])
    assert not torch.equal(seen[4].u, trainer.draws(4).u)  # they are spread
    assert found.loss == losses[4]
    for step in (4, 6):
        note = replay(tmp_path, step, "cpu").note
        assert f"are those of step {step} only where there is a checkpoint of step {step - 1}" in note


# The row behind a spike


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # NaN as a colour
@pytest.mark.parametrize("value", [1e6, math.nan])
def test_the_row_behind_a_spike_is_found(
    tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    victim = 777

    def planted() -> Data:
        rows = digits()
        train = rows.train.take(np.arange(len(rows.train)))
        x = train.x.float() / 127.5 - 1
        x[victim, 0, 3, 3] = value
        return Data(InMemory(x, train.labels, rows.train.classes), rows.heldout)

    monkeypatch.setitem(KINDS, "data", dict(KINDS["data"]))
    register("data", "planted", planted)
    trainer = trainer_of(tiny("data=planted", "codec=identity"), tmp_path)
    losses = [trainer.descend(trainer.draws(step)) for step in range(45)]  # a whole epoch
    trainer.save()
    spike = max(range(45), key=lambda step: (math.isnan(losses[step]), losses[step]))
    found = replay(tmp_path, spike + 1, "cpu")
    assert found.worst.row == victim
    assert sum(row.loss > 10 or math.isnan(row.loss) for row in found.rows) == 1
    assert f"largest: {found.worst.loss:.4g} at place {found.worst.place}; median: " in found.table()
    found.write(tmp_path / "out")
    plain = json.loads((tmp_path / "out" / f"step-{spike + 1}.json").read_text(), parse_constant=pytest.fail)
    assert (plain["rows"][found.worst.place]["loss"] is None) == math.isnan(value)
    assert victim not in {row.row for row in replay(tmp_path, spike + 2, "cpu").rows}


@pytest.mark.filterwarnings("ignore:.*a single colour")  # that is how the rows are told apart here
def test_rows_of_a_folder_are_named(tmp_path: Path, train_into: Callable[[Recipe, str], Path]) -> None:
    for index in range(24):
        where = tmp_path / f"{index % 2}" / f"{index:03}.png"
        where.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), 10 * index, dtype=np.uint8)).save(where)
    small = ("network.width=8", "training.images=64", "training.reports=1", "sampling.steps=2", "training.batch=16")
    found = replay(train_into(recipe("folder", str(tmp_path)).set(*small), "named"), 3, "cpu")
    for row, x0 in zip(found.rows, found.draw.x0, strict=True):
        number = int(Path(row.file).stem)
        assert row.file == f"{number % 2}/{number:03}.png"
        assert row.shows == str(number % 2)
        torch.testing.assert_close(x0, torch.full((1, 8, 8), 10 * number / 127.5 - 1))
    assert found.rows[0].file in found.table()


# What is written


def test_the_sheet_shows_x0_above_x_t(digits_run: Path, tmp_path: Path) -> None:
    found = replay(digits_run, 7, "cpu")
    found.write(tmp_path)
    pixels = np.asarray(Image.open(tmp_path / "step-7.png").convert("L"))
    names = pixels.shape[1] - (16 * 54 + 6) - 4  # at the left of the pictures
    rate = torch.tensor([row.t for row in found.rows]).reshape(-1, 1, 1, 1)
    x_t = (1 - rate) * found.draw.x0 + rate * found.draw.noise  # the run's schedule is flow
    for kind, wanted in enumerate((found.draw.x0, x_t)):
        bytes_of = ((wanted.double() + 1) * 127.5).clamp(0, 255)
        for place in (0, 15, 16, 31):
            top, left = 62 * (2 * (place // 16) + kind), names + 54 * (place % 16)
            shown = pixels[top + 9 : top + 57 : 6, left + 9 : left + 57 : 6]
            assert np.abs(shown - bytes_of[place, 0].numpy()).max() <= 0.6


def test_a_last_row_of_pairs_that_is_short_stays_in_pairs() -> None:
    above = torch.arange(20, dtype=torch.uint8).reshape(20, 1, 1, 1).expand(20, 1, 8, 8)
    pixels = np.asarray(paired(above, above + 100))[9::60, 9::54, 0]  # a row is 60 high, a picture 54 wide
    rest = [96] * 12
    short = [[16, 17, 18, 19, *rest], [116, 117, 118, 119, *rest]]
    assert pixels.tolist() == [list(range(16)), list(range(100, 116)), *short]


def test_points_are_drawn_without_what_is_no_number(points_run: Path, tmp_path: Path) -> None:
    found = replay(points_run, 3, "cpu")
    found.write(tmp_path)
    with Image.open(tmp_path / "step-3.png") as picture:
        assert min(picture.size) > 480
    broken = found.draw.x0.clone()
    broken[5] = math.nan
    without = torch.cat([broken[:5], broken[6:]])
    assert np.array_equal(np.asarray(paired(broken, broken)), np.asarray(paired(without, without)))


def test_states_are_scaled_down_to_what_the_eye_takes() -> None:
    x, t = torch.full((3, 1, 2, 2), 10.0), torch.tensor([0.0, 3.0, 40.0], dtype=torch.float64)
    scaled = shown(x, EDM(), t)[:, 0, 0, 0]
    torch.testing.assert_close(scaled, torch.tensor([10, 10 / math.hypot(1, 3), 10 / math.hypot(1, 40)]))
    assert torch.equal(shown(x, EDM(), t[2])[:1], shown(x, EDM(), t)[2:])
    assert torch.equal(shown(x, RectifiedFlow(), t / 40), x)


def test_the_verb_prints_and_writes(digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(digits_run), "--step", "4", "--out", str(tmp_path), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 4: loss ")
    assert lines[1].split() == ["place", "row", "shows", "condition", "t", "log-SNR", "loss"]
    assert len(lines) == 2 + 32 + 2
    plain = json.loads((tmp_path / "step-4.json").read_text())
    found = replay(digits_run, 4, "cpu")
    assert [row["loss"] for row in plain["rows"]] == [row.loss for row in found.rows]
    assert (plain["step"], plain["seed"], plain["weights"]) == (4, 0, found.weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-4.json", "step-4.png"]


def test_a_run_that_is_told_nothing_drops_nothing(unconditional_run: Path) -> None:
    found = replay(unconditional_run, 2, "cpu")
    assert not any(row.dropped for row in found.rows)
    assert "condition" not in found.table()


@pytest.mark.parametrize(
    ("run", "step", "sentence"),
    [
        ("digits_run", 0, "steps count from 1, as in metrics.jsonl: there is no step 0"),
        ("digits_run", -4, "there is no step -4"),
        ("tmp_path", 3, "is no run folder"),
    ],
)
def test_what_cannot_be_replayed(run: str, step: int, sentence: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(UserError, match=sentence):
        replay(request.getfixturevalue(run), step, "cpu")


def test_a_run_without_weights_says_so(tiny: MakeRecipe, tmp_path: Path) -> None:
    trainer_of(tiny(), tmp_path)
    with pytest.raises(UserError, match=r"model\.safetensors is missing: the run has no weights"):
        replay(tmp_path, 3, "cpu")
