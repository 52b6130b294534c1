"""The race against other toolkits: its report on made-up runs, going on where it stopped, and ours on the digits."""

import importlib.util
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import contestant
import peers
import pytest
import race
import torch
from PIL import Image
from race import Entry, Race

from unfog.recipes.recipe import Recipe
from unfog.runs.run import load

COUNT = 100
"""The least that the judge of the digits compares."""
TOLD = {
    "threads": 1,
    "torch": "none",
    "parameters": 1,
    "learning_rate": 0.1,
    "batch": 2,
    "precision": "float32",
    "source": "nowhere",
}


def scored(value: float, n: int = 1000) -> dict[str, Any]:
    """A made-up score."""
    ends = {"low": value - 1, "high": value + 1, "floor": 1.5, "ceiling": 900.0}
    return {"value": value, **ends, "n": n, "evaluations": 25, "protocol": "made up"}


def result(label: str, seed: int, distances: dict[int, float]) -> dict[str, Any]:
    """A made-up run, a tenth of a second late at each moment."""
    snapshots = [
        {"moment": moment, "seconds": moment + 0.1, "images": 100 * moment, "file": "x", "score": scored(value)}
        for moment, value in distances.items()
    ]
    return {"label": label, "contestant": label, "seed": seed, **TOLD, "snapshots": snapshots}


@pytest.fixture
def found(tmp_path: Path) -> Race:
    """A race with two runs of ours and one of another, which has been drawn by its own sampler too."""
    other = result("other, tuned", 0, {15: 400.0, 60: 40.0}) | {"default": scored(33.0, 256)}
    ours = [result("unfog", seed, {15: 20.0 + seed}) for seed in range(2)]
    for number, one in enumerate([*ours, other]):
        (tmp_path / f"{number}-seed{one['seed']}.json").write_text(json.dumps(one))
    return Race("mnist", None, tmp_path)


def test_report(found: Race) -> None:
    """Runs are averaged and shown with their range, a single one with its interval; the own sampler stands apart."""
    found.report()
    points = json.loads((found.out / "race.json").read_text())
    by_name = {(one["label"], one["own_sampler"], one["seconds"]): one for one in points}
    assert len(by_name) == len(points) == 4
    ours, late = by_name["unfog", False, 15.1], by_name["other, tuned", False, 60.1]
    assert [ours[name] for name in ("distance", "low", "high", "runs", "images")] == [20.5, 20, 21, 2, 1500]
    assert [late[name] for name in ("distance", "low", "high", "runs", "images")] == [40, 39, 41, 1, 6000]
    assert by_name["other, tuned", True, 60.1]["n"] == 256
    page = (found.out / "race.md").read_text()
    assert "| unfog | 15 | not in 15 | not in 15 | not in 15 | not in 15 | not in 15 |" in page
    assert "| other, tuned | 60 | not in 60 | not in 60 | not in 60 | not in 60 | not in 60 |" in page
    assert "| other, tuned | 1 | 60 | 6,000 | 1000 | 25 | 40 | 39 to 41 | 1.5 |" in page
    with Image.open(found.out / "race.png") as picture:
        assert len(set(picture.convert("L").get_flattened_data())) > 50


def test_nothing_is_reported_of_nothing(tmp_path: Path) -> None:
    Race("mnist", None, tmp_path).report()
    assert list(tmp_path.iterdir()) == []


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A score that fails costs no training, and a training that was killed begins anew in an empty folder."""
    trained, drawn, begun = [], [], time.time()
    entry, here = Entry("lucidrains", (1.0, 2.0), 1e-3, 4), Race("mnist", None, tmp_path)

    def train(command: list[str], check: bool) -> None:
        trained.append(command)
        assert list((tmp_path / entry.name).iterdir()) == []
        snapshots = [{"moment": one, "seconds": one, "images": 4, "file": f"{one:g}"} for one in entry.moments]
        (tmp_path / entry.name / "trained.json").write_text(json.dumps({**TOLD, "snapshots": snapshots}))

    def score(self: Race, entry: Entry, file: str, n: int, evaluations: int | None) -> dict[str, Any]:
        drawn.append((file, evaluations))
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return scored(7.0, n)

    monkeypatch.setattr(subprocess, "run", train)
    monkeypatch.setattr(Race, "score", score)
    (tmp_path / entry.name).mkdir()
    (tmp_path / entry.name / "1.safetensors").touch()  # of a training that was killed
    with pytest.raises(KeyboardInterrupt):
        here.run(entry, 9, entry.moments)
    assert ["score" in one for one in here.run(entry, 9)["snapshots"]] == [False, True]
    assert drawn == [("2", 25), ("1", 25)]
    assert [one["score"]["value"] for one in here.run(entry, 9, entry.moments)["snapshots"]] == [7.0, 7.0]
    assert drawn[2:] == [("1", 25)]
    here.run(entry, 9, entry.moments)
    for _ in range(2):
        here.default(entry, 9)
    assert drawn[3:] == [("2", None)]
    ((_, script, *arguments),) = trained
    assert Path(script).name == "contestant.py"
    assert arguments[:6] == ["lucidrains", "--moments", "1", "2", "--seed", "0"]
    assert begun <= float(arguments[-1]) <= time.time()


def test_the_best_learning_rate_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three, one of which ended in no number; one that is the peer's own with its own batch is no second run."""
    here = Race("mnist", None, tmp_path)
    rates = [factor * peers.PEERS["lucidrains"].rate for factor in race.FACTORS]
    values = dict(zip(rates, (50.0, 40.0, math.nan), strict=True))

    def run(self: Race, entry: Entry, n: int) -> dict[str, Any]:
        assert entry.learning_rate is not None
        assert self.out == tmp_path / "tune"
        return {"snapshots": [{"score": scored(values[entry.learning_rate], n)}]}

    def rows() -> list[tuple[str, float | None]]:
        return [(one.label, one.learning_rate) for one in race.entries(here, ["unfog", "lucidrains"], 1, 0.25, 2)]

    monkeypatch.setattr(Race, "run", run)
    ours, shipped = [("unfog", None)] * 2, ("lucidrains, as shipped", rates[0])
    assert rows() == [*ours, shipped]
    race.find_rates(here, ["lucidrains"], 1)
    assert rows() == [*ours, shipped, ("lucidrains, tuned", rates[1])]
    values[rates[0]] = 30.0
    race.find_rates(here, ["lucidrains"], 1)
    assert rows() == [*ours, shipped]


def test_moments_end_with_the_run() -> None:
    assert race.until(1) == (15, 30, 60)
    assert race.until(0.1) == (6,)
    assert race.until(30) == race.MOMENTS


def test_the_clock_stands_still_while_weights_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    clock = contestant.Clock(900.0)
    with clock.standing():
        now[0] = 1030.0
    assert clock.seconds == 100
    now[0] = 1031.0
    assert clock.seconds == 101


def test_ours(tmp_path: Path, tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done when it says so, used no classes, and draws better digits than noise."""
    monkeypatch.setattr("unfog.recipes.presets.recipe", lambda kind, data: tiny())
    entry, here, started = Entry("unfog", (6.0,)), Race("digits", None, tmp_path), time.time()
    where = tmp_path / entry.name
    where.mkdir()
    contestant.main("unfog", out=where, started=started, moments=entry.moments, kind="digits")
    took = time.time() - started
    (snapshot,) = here.run(entry, COUNT)["snapshots"]
    assert 0 < snapshot["seconds"] <= took
    assert snapshot["images"] > 0
    assert load(where / "run").denoiser.embedder is None
    assert snapshot["score"]["evaluations"] == race.EVALUATIONS
    assert snapshot["score"]["value"] < snapshot["score"]["ceiling"]
    here.report()
    assert "| unfog |" in (tmp_path / "race.md").read_text()


def test_moments_choose_our_trainings(tmp_path: Path) -> None:
    """Each is a training, and the last always takes part."""
    here = Race("cifar10", None, tmp_path)
    found = race.entries(here, ["unfog", "diffusers"], 60, 60, 2, (15, 900), shipped=False)
    assert [(one.moments, one.seed) for one in found] == [((m,), seed) for seed in (0, 1) for m in (15, 900, 3600)]


@pytest.mark.parity
@pytest.mark.parametrize("shape", [peers.SHAPE, (3, 32, 32)])
@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("lucidrains", "denoising_diffusion_pytorch"),
        ("smalldiffusion", "smalldiffusion"),
        ("diffusers", "diffusers"),
    ],
)
def test_peers(name: str, needs: str, shape: tuple[int, ...]) -> None:
    """A step lowers the loss, weights come back, and pictures cost the evaluations that are asked for."""
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    torch.manual_seed(0)
    peer, x0 = peers.PEERS[name](shape=shape), torch.rand(2, *shape) * 2 - 1
    losses = [peer.step(x0) for _ in range(4)]
    assert min(losses[1:]) < losses[0]
    peer.network.load_state_dict(peer.averaged())
    pictures, spent = peers.drawn(peer, 3, 2, batch=2)
    assert (pictures.shape, pictures.dtype, spent) == ((3, *shape), torch.uint8, 2)
    assert not isinstance(sys.modules.get("torchvision"), MagicMock)
