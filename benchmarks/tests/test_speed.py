"""The benchmarks: that they measure what they say; how fast anything is, no test says."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed")
import rig
import sampling
import scaling
import startup
import training

from unfog.recipes.kinds import KINDS
from unfog.recipes.networks import CompactSpec
from unfog.recipes.recipe import Recipe
from unfog.recipes.sources import Digits

CPU = torch.device("cpu")


def test_turns_are_taken_one_after_the_other_and_their_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []
    lengths = {"a": iter([9, 9, 1, 3, 2]), "b": iter([9, 9, 10, 10, 70])}

    def take(name: str) -> None:
        calls.append(name)
        clock[0] += next(lengths[name])

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    variants = {name: (lambda name=name: take(name)) for name in "ab"}
    found = rig.interleaved(variants, rounds=3, seconds=0, device=CPU, what="")
    assert calls == [*"aabb", *"ababab"]
    assert found == {"a": 2, "b": 10}


def test_a_table_is_written_for_people_and_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = rig.Table(
        "Title", "A note.", [{"what": "one", "x": 1234.5, "y": 0.01234}, {"what": "two", "x": None, "y": 1}]
    )
    rig.write([table], tmp_path / "new" / "page", CPU, "Page")
    text = (tmp_path / "new" / "page.md").read_text()
    assert "| one | 1,234 | 0.0123 |\n| two |  | 1 |" in text
    assert text in capsys.readouterr().out
    plain = json.loads((tmp_path / "new" / "page.json").read_text())
    assert plain["tables"][0]["rows"][0]["x"] == 1234.5
    assert plain["machine"]["torch"] == torch.__version__


def test_operations_are_counted_there_and_back() -> None:
    layer = torch.nn.Conv2d(4, 8, 3, padding=1)

    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = layer(layer_in(x))
            return found

    layer_in = torch.nn.Conv2d(1, 4, 1)
    first, second = 2 * 1 * 4 * 36, 2 * 4 * 8 * 9 * 36
    assert rig.training_flops(Network(), (1, 6, 6)) == 2 * first + 3 * second  # the state needs no gradient


def test_every_solver_is_measured_beside_the_network() -> None:
    table = sampling.solver_costs(1, 0.0, CPU)
    assert [row["solver"] for row in table.rows] == list(KINDS["solver"])
    assert all(row["µs a step, 1×1×8×8"] > 0 for row in table.rows)  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("rule", sampling.RULES)
def test_both_sides_take_ten_steps(rule: str) -> None:
    scheduler, solver, steps = sampling.RULES[rule]
    x, network = torch.randn(2, 1, 4, 4), Tenth()
    theirs = sampling.theirs(network, scheduler, steps, x)()
    assert network.calls == sampling.TIMED
    ours = sampling.ours(network, solver, steps, x, low=False)()
    assert network.calls == 2 * sampling.TIMED
    assert all(isinstance(found, torch.Tensor) and found.isfinite().all() for found in (theirs, ours))


class Tenth(torch.nn.Module):
    """Says a tenth of the state."""

    calls = 0

    def forward(self, x: torch.Tensor, time: torch.Tensor, cond: object = None) -> torch.Tensor:
        """Return x/10."""
        self.calls += 1
        return 0.1 * x


def test_a_training_step_is_a_step_of_the_project(tmp_path: Path) -> None:
    step, trainer = training.ours((1, 8, 8), tmp_path, CPU, "network.width=8", "training.batch=4")
    assert step() > 0
    assert trainer.step == 1
    assert trainer.denoiser.network.channels_last


def test_processes_are_counted_each_for_itself() -> None:
    found = startup.spent([sys.executable, "-S", "-c", "print(1); x = bytearray(100_000_000); print(2)"])
    small = startup.spent([sys.executable, "-S", "-c", "pass"])
    assert found.said == "1\n2"
    assert found.seconds > 0
    assert 90e6 < found.peak - small.peak < 130e6
    with pytest.raises(subprocess.CalledProcessError):
        startup.spent([sys.executable, "-S", "-c", "raise SystemExit(3)"])


def test_every_place_of_a_curve_is_a_recipe() -> None:
    for along in scaling.curves().values():
        for side, settings, _ in along.values():
            recipe = Recipe("bench", Digits(), CompactSpec(), shape=(3, side, side))
            built = recipe.set(*settings)
            assert built.training.batch >= 1
            assert built.network.build(channels=3, outputs=3, dims=2, context=None).multiple <= side
