"""A training in small: counted operations, rows within limits, and lines from few rows to many."""

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from tests.conftest import MakeRecipe
from unfog.data.source import Data
from unfog.recipes.build import build_data
from unfog.recipes.objective import Draw
from unfog.recipes.presets import recipe
from unfog.recipes.recipe import Recipe
from unfog.training import plan as planning
from unfog.training import rehearsal
from unfog.training.counting import KEPT, Cost, cost, rows_within
from unfog.training.rehearsal import Allowance, Line, Untrained, affordable, timed
from unfog.training.trainer import Trainer

QUIET = Console(quiet=True)


def long() -> Allowance:
    """An hour, and plenty of memory."""
    return Allowance(time.monotonic() + 3600, 1e12)


# Counting


def test_operations_are_those_of_a_convolution_by_hand(tiny: MakeRecipe) -> None:
    """2·outputs·inputs·9·places forward, as many for the gradient of the weights, none for that of the data."""
    found, data = build_data(tiny("conditioning=none"))

    class One(type(found.objective)):  # type: ignore[misc]  # a class that is only known here
        def build(self, recipe: Recipe, most: int) -> nn.Module:
            return nn.Conv2d(1, 6, 3, padding=1, bias=False)

        def losses(self, model: nn.Module, batch: Draw, context: object) -> dict[str, torch.Tensor]:
            return {"loss": model(batch.x0).square().flatten(1).mean(1)}

    counted = cost(replace(found, objective=One()), data.train)
    assert counted.forward == 2 * 6 * 1 * 9 * 8 * 8
    assert counted.operations == 2 * counted.forward
    assert counted.parameters == 54
    assert counted.kept == 4 * (8 * 8 + 6 * 8 * 8)  # what the convolution read, and what was squared


def test_a_model_of_any_size_is_counted_without_memory(tiny: MakeRecipe) -> None:
    """Some 40 GB with all that belongs to it; and a wide picture."""
    found, data = build_data(tiny("network.width=1024", "conditioning=none"))
    before = rehearsal.resident()
    counted = cost(replace(found, shape=(1, 2048, 2048)), data.train)
    assert counted.parameters > 4e8
    assert counted.operations > 1e14
    assert rehearsal.resident() - before < 2e8


# From few rows to many


@pytest.mark.parametrize("portion", [1, 3, 8, 64, 1000])
@pytest.mark.parametrize("most", [0, 1, 5, 40, 10_000])
def test_few_rows_tell_what_many_take(portion: int, most: int) -> None:
    """Where seconds are 0.02 + 0.003·rows, with no more rows than memory holds; the first step takes far longer."""
    tried: list[int] = []

    def take(rows: int) -> float:
        tried.append(rows)
        return 0.02 + 0.003 * rows + (5 if rows not in tried[:-1] else 0)

    line, rows = timed(take, portion, most, long())
    assert max(tried) <= max(1, min(portion, most))
    assert rows[-1] == max(tried)
    if portion == 1 or most > 1:
        assert line(portion) == pytest.approx(0.02 + 0.003 * portion)
    else:
        assert line(portion) == pytest.approx(0.023 * portion)


@pytest.mark.parametrize("seconds", [0.5, 4.0, 20.0])
def test_rows_are_as_few_as_the_seconds_demand(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of 0.2 s, on a clock that only steps move."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def take(rows: int) -> float:
        now[0] += 0.2 * rows
        return 0.2 * rows

    line, _ = timed(take, 64, 10**6, Allowance(seconds, 1e12))
    assert line(64) == pytest.approx(12.8)
    assert now[0] <= max(0.4, seconds + 1.0)
    now[0], steps = 0.0, []
    timed(lambda rows: steps.append(rows) or take(rows), 64, 10**6, Allowance(0.5, 1e12))
    assert steps == [1]  # a second one would not have fitted


def test_a_line_has_no_part_below_nothing() -> None:
    assert Line.through((4, 3.0), (16, 2.0)) == Line(2.0, 0.0)  # noise
    assert Line.through((4, 0.1), (16, 16.0)) == Line(0.0, 1.0)
    assert Line.through((1, 2.0), (1, 2.0)) == Line(0.0, 2.0)


# Within limits


def test_rows_within_memory_leave_room_for_the_weights() -> None:
    counted = Cost(1, 1, kept=1000, parameters=10)
    assert rows_within(counted, 200) == 0
    assert rows_within(counted, 200 + math.ceil(7 * KEPT * 1000)) == 7
    assert rows_within(replace(counted, parameters=10**12), 1e9) == 0


def test_sides_are_halved_until_a_row_is_small_enough(tiny: MakeRecipe) -> None:
    found, data = build_data(tiny())
    large = replace(found, shape=(1, 512, 512))
    whole = cost(large, data.train)
    for memory in (1e9, 1e7):
        small = affordable(large, whole, data.train, Allowance(time.monotonic() + 3600, memory))
        assert small is not None
        assert rows_within(small[1], memory) >= 1
        assert cost(small[0], data.train) == small[1]
    assert small[0].shape is not None
    assert 8 <= small[0].shape[1] < 512
    assert affordable(large, whole, data.train, Allowance(time.monotonic() + 3600, 1e5)) is None  # the weights alone


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Forty colour pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("side", [32, 640])
def test_no_large_picture_goes_through_a_network(side: int, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the data set read, or an autoencoder trained."""
    taken: list[tuple[int, ...]] = []
    read: list[str] = []

    def descend(trainer: Trainer, draw: Draw) -> float:
        taken.append(tuple(draw.x0.shape))
        return 0.0

    opened = planning.Folder.build

    def look(self: planning.Folder, glance: bool = False) -> Data:
        data = opened(self, glance)
        decode = data.train.read  # type: ignore[attr-defined]
        object.__setattr__(data.train, "read", lambda file: read.append(file) or decode(file))
        return data

    monkeypatch.setattr(Trainer, "descend", descend)
    monkeypatch.setattr(planning, "choose_portion", lambda trainer: None)
    monkeypatch.setattr(planning.Folder, "build", look)
    monkeypatch.setattr(rehearsal, "BURST", 0.0)
    found = planning.plan(recipe("folder", str(photos), side), device="cpu", console=QUIET)
    assert len(read) <= planning.FEW
    assert max(math.prod(shape) for shape in taken) * 4 < 2e8
    assert (found.first is not None) == (side > 64)
    if found.first is not None:
        assert found.first.share < 1
        assert "smaller rows, and scaled by counted operations" in " ".join(found.table().split())
        assert found.first.pace.step > 0


def test_a_busy_machine_is_taken_for_what_it_is_when_idle(tiny: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads of which one waits for its core compute less than one alone; a budget was refused for that."""
    speeds = {2: 1e9, 1: 3e9}
    monkeypatch.setattr(rehearsal, "fastest", lambda recipe, device: speeds[torch.get_num_threads()])
    count = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert rehearsal.undisturbed(tiny(), torch.device("cpu")) == 6e9
        assert torch.get_num_threads() == 2
        speeds[2] = 7e9
        assert rehearsal.undisturbed(tiny(), torch.device("cpu")) == 7e9
    finally:
        torch.set_num_threads(count)


def test_what_stands_for_an_autoencoder_has_its_shapes() -> None:
    codec = Untrained(4, 8)
    assert codec.build((3, 20, 33)) is codec
    assert codec.encode(torch.zeros(2, 3, 20, 33)).shape == (2, *codec.shape((3, 20, 33))) == (2, 4, 3, 5)
    assert codec.plain is codec
