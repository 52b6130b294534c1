"""How sharp pictures are, against pictures whose spectrum is known."""

import numpy as np
import pytest
import torch

from unfog.evaluation.sharpness import MEASURES, edges, fineness, gradients, sharpness, slope


def waves(cycles: int, side: int = 32) -> torch.Tensor:
    """A cosine of so many cycles from left to right, `(1, 1, side, side)`."""
    wave = 127.5 + 100 * torch.cos(2 * torch.pi * cycles * torch.arange(side) / side)
    return wave.expand(1, 1, side, side)


def test_the_energy_of_a_wave_is_fine_above_half_the_nyquist_frequency() -> None:
    assert fineness(waves(4)) == pytest.approx(0.0, abs=1e-9)
    assert fineness(waves(8)) == pytest.approx(0.0, abs=1e-9)  # a quarter of a cycle a pixel
    assert fineness(waves(9)) == pytest.approx(1.0)
    both = waves(4) + waves(12)
    assert fineness(both) == pytest.approx(0.5)
    assert fineness(both.mT) == pytest.approx(0.5)
    assert fineness(torch.full((1, 3, 8, 8), 77)) == pytest.approx(0.0)
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 1, 32, 32)))
    assert fineness(noise).mean() == pytest.approx(1 - np.pi * 0.25**2, abs=0.02)  # the area outside of the circle


def test_gradients_of_a_ramp() -> None:
    ramp = (4.0 * torch.arange(16)).expand(1, 1, 16, 16)
    assert torch.allclose(gradients(ramp), torch.tensor(4 / 255, dtype=torch.float64))
    assert slope(ramp + ramp.mT) == pytest.approx(4 * 2**0.5 / 255)
    step = torch.zeros(1, 1, 21, 21)
    step[..., 10:] = 255.0
    assert slope(step) == pytest.approx(1 / 20)
    assert edges(step) == pytest.approx(1.0)  # one column of twenty is all that is steep


def test_what_is_blurred_is_less_sharp_by_every_measure() -> None:
    real = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (40, 3, 16, 16))).to(torch.uint8)
    blurred = torch.nn.functional.avg_pool2d(real.float(), 3, 1, 1).to(torch.uint8)
    found = sharpness(blurred, real, real)
    assert list(found) == list(MEASURES)
    for one in found.values():
        assert one.low is not None
        assert one.high is not None
        assert one.low <= one.value <= one.high < one.floor == one.ceiling
