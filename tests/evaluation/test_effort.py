"""What an evaluation takes: said first, about two minutes by default, otherwise what was asked for, never silent."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from unfog.cli.main import main
from unfog.data.classic import digits
from unfog.data.codecs import Pixels
from unfog.evaluation import effort as module
from unfog.evaluation.classifier import _network
from unfog.evaluation.effort import LADDER, Costs, effort, measure
from unfog.evaluation.judge import fitted
from unfog.evaluation.levels import rows_for
from unfog.runs.run import load
from unfog.runtime.files import parse_json


def costs(batch: float, fixed: float = 10.0) -> Costs:
    """Of batches of 64 samples, with guidance twice as long."""
    return Costs(fixed, {1.0: batch, 2.0: 2 * batch}, 64, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(("batch", "count", "scales"), [(0.1, 5000, 2), (0.5, 2000, 2), (4.0, 200, 2), (9.0, 200, 1)])
def test_as_many_samples_as_two_minutes_allow(batch: float, count: int, scales: int) -> None:
    found = effort(costs(batch), (1.0, 2.0), 130)
    assert (found.count, len(found.scales)) == (count, scales)
    assert found.seconds <= 90
    rounds = 3 if scales == 2 else 2
    assert found.seconds == pytest.approx(10 + rounds * batch * math.ceil(count / 64))
    assert found.full == pytest.approx(10 + 3 * batch * 79)
    assert f"{count:,} samples" in str(found)
    assert ("would take about" in str(found)) == (count < 5000)
    assert str(found).endswith("-n 5000 --guidance 1 2") == (scales == 1)


def test_what_was_asked_for_is_kept() -> None:
    """However long it takes; where even the least does, that is said too."""
    found = effort(costs(9.0), (1.0, 2.0), 130, 3000)
    assert (found.count, found.scales) == (3000, (1.0, 2.0))
    assert str(found) == "this will take up to about 21 minutes for 3,000 samples"
    slow = effort(costs(900.0), (1.0, 2.0), 130)
    assert (slow.count, slow.scales) == (130, (2.0,))
    assert "up to about 2 hours for 130 samples at guidance 2 only" in str(slow)
    assert effort(costs(900.0), (1.0, 2.0), 130, keep=True).scales == (1.0, 2.0)


def test_half_a_minute_is_kept_for_the_samples() -> None:
    """Otherwise a judge whose training is estimated at two minutes leaves the fewest samples, which say little."""
    found = effort(costs(0.5, fixed=120.0), (1.0, 2.0), 100)
    assert found.count == 1000
    assert found.seconds == pytest.approx(120 + 1.5 * 16)
    assert effort(costs(0.5, fixed=1000.0), (1.0, 2.0), 100).count == 100


def test_portions_are_timed(digits_run: Path, unconditional_run: Path) -> None:
    for path, scales in ((digits_run, (1.0, 2.0)), (unconditional_run, (1.0,))):
        before = torch.random.get_rng_state()
        found = measure(load(path, "cpu"), digits(), scales, 4, 0, Pixels())
        assert torch.equal(torch.random.get_rng_state(), before)
        assert found.size == 64
        assert set(found.batches) == set(scales)
        assert all(0 < seconds < 60 for seconds in (found.fixed, found.row, *found.batches.values()))
        assert found.seconds(1000, scales) < found.seconds(5000, scales)


def test_an_evaluation_says_first_what_it_takes(
    broken: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything else, and draws as many as it says."""
    monkeypatch.setattr(module, "measure", lambda *arguments, **more: costs(8.0))
    monkeypatch.setattr("unfog.evaluation.judge.RESAMPLES", 40)
    assert main(["evaluate", str(broken), "--guidance", "2", "--steps", "1", "--device", "cpu"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"evaluating {broken}"
    what = "this will take up to about 74 s for 200 samples; 5,000 would take about 21 minutes: -n 5000"
    assert lines[1] == f"{broken}: {what}"
    (found,) = parse_json((broken / "evaluation.json").read_text())["evaluations"]
    assert found["scores"]["adherence"]["n"] == 200


def test_large_pictures_cost_the_judge_no_minutes() -> None:
    """Those of 63 pixels and less are judged as before."""
    for side, kernel, stride in ((28, 3, 1), (32, 3, 1), (63, 3, 1), (64, 4, 2), (128, 6, 4), (256, 10, 8)):
        network = _network((3, side, side), 5, 16).eval()
        first = next(part for part in network.modules() if isinstance(part, nn.Conv2d))
        assert (first.kernel_size, first.stride) == ((kernel, kernel), (stride, stride))
        assert network(torch.zeros(2, 3, side, side)).shape == (2, 5)
    assert _network((1, 100, 70), 5, 16).eval()(torch.zeros(1, 1, 100, 70)).shape == (1, 5)
    assert fitted(60_000, 784) == 10_000
    assert fitted(21_000, 3 * 128**2) == 2**26 // (3 * 128**2)
    assert fitted(500, 3 * 640**2) == 200
    assert rows_for(60_000 * 784) == 128
    assert rows_for(2**30) == 16
    assert max(LADDER) == 5000
