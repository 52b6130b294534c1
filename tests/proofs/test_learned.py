"""Learned flow maps against the exact one: a short training is nearer than none, and a faulty one is not."""

from collections.abc import Callable

import pytest
import torch
from rich.console import Console

from unfog.diffusion.schedules import Schedule
from unfog.proofs import learned
from unfog.proofs.learned import KINDS, Learned, Report, measured, of_data, of_trajectories, trained, untrained
from unfog.proofs.orders import mixture

DATA = mixture(2, 2)
STEPS = 250


def _ends(loss: learned.Loss, steps: int = STEPS) -> float:
    """By how much the end points of a shortly trained map are off."""
    return measured(trained(untrained(2), loss, steps), DATA)[0]


def test_a_short_training_helps_either_way() -> None:
    before = measured(untrained(2), DATA)[0]
    assert before > learned.CONTROL
    assert _ends(of_trajectories(DATA)) < 0.2
    assert _ends(of_data(DATA)) < 0.3


def test_the_exact_map_is_not_off() -> None:
    """The mean of Gaussian data of no variance: every map that leads there."""
    model = untrained(2)
    assert measured(model, DATA) == measured(model, DATA)
    noise = torch.randn(5, 2)
    torch.testing.assert_close(learned.led(model, noise, 0.7, 0.7), noise)


@pytest.mark.slow
def test_maps_with_a_wrong_sign_end_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., object] = Schedule.pair
    good = _ends(of_data(DATA), 600)
    monkeypatch.setattr(Schedule, "pair", lambda self, x_t, x_s, t, s: right(self, x_t, 2 * x_t - x_s, t, s))
    assert _ends(of_data(DATA), 600) > 3 * good
    assert _ends(of_trajectories(DATA), 600) > 3 * good


def test_a_report_shows_every_map_and_fails_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "STEPS", dict.fromkeys(learned.STEPS, 2))
    threads = torch.get_num_threads()
    report = learned.verify(Console(quiet=True))
    assert torch.get_num_threads() == threads
    assert [(row.name, row.dim) for row in report.rows] == [(name, dim) for dim in (2, 8) for name in KINDS]
    assert not report.passed  # after two steps
    assert '"passed": false' in report.to_json()
    good = Learned("from data", 2, 0.02, 0.01, 0.9)
    assert good.passed
    assert Report([good]).passed
    for wrong in (
        {"ends": 0.04},
        {"composed": 0.07},
        {"untrained": 0.1},
        {"ends": float("nan")},
        {"composed": float("nan")},
    ):
        assert not Learned(**{**good.__dict__, **wrong}).passed
