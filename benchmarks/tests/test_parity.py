"""diffusers' schedulers and our solvers, with one network: equal trajectories, and known errors of the former."""

import math

import pytest
import torch

from unfog.diffusion import solvers

pytest.importorskip("diffusers")
import parity

pytestmark = [
    pytest.mark.parity,
    # numpy speaks of the tensors that diffusers hands to it
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]
PAIRS = [
    pytest.param(pair, id=pair.id, marks=[pytest.mark.slow] if pair.steps >= 1000 else []) for pair in parity.pairs()
]


@pytest.mark.parametrize("pair", PAIRS)
def test_trajectories_are_equal(pair: parity.Pair) -> None:
    assert parity.largest_difference(pair) <= parity.TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("pair", parity.wrong_times()[1:], ids=lambda pair: pair.id)
def test_ddim_of_diffusers_misses_the_next_timestep(pair: parity.Pair) -> None:
    """It steps by 1000 // n, on every grid: with many steps what is left of the error is theirs alone."""
    ours, theirs = parity.errors(pair)
    assert ours < 0.01
    assert theirs > 5 * ours


@pytest.mark.slow
def test_third_order_rule_of_diffusers_is_of_second_order() -> None:
    """After two exact steps, over 80 and 160 steps down to the first trained time."""
    coarse, fine = parity.third_order_errors(80), parity.third_order_errors(160)
    ours, theirs = (math.log2(a / b) for a, b in zip(coarse, fine, strict=True))
    assert ours == pytest.approx(3, abs=0.15)
    assert theirs == pytest.approx(2, abs=0.15)


def test_third_order_rule_of_diffusers_halves_the_quadratic_term(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours becomes equal to theirs, and is not before, with half of the mean of u²."""
    pair, moments = parity.third_order(20), solvers._moments
    assert parity.largest_difference(pair) > 1e-3

    def halved(h: float, count: int) -> tuple[float, ...]:
        first, *rest = moments(h, count)
        return (first, *(value / 2 for value in rest))

    monkeypatch.setattr(solvers, "_moments", halved)
    assert parity.largest_difference(pair) <= parity.TOLERANCE


@pytest.mark.parametrize("pair", parity.noisy_ends(), ids=lambda pair: pair.id)
def test_ddpm_of_diffusers_leaves_noise_on_its_data(pair: parity.Pair) -> None:
    """All states but the last are equal; the last one is ours and noise of the step's variance beta."""
    x = parity.start(pair)
    ours, theirs = parity.ours(pair, x), parity.theirs(pair, x)
    torch.testing.assert_close(ours[-2], theirs[-2], rtol=0, atol=parity.TOLERANCE)
    left = float(parity.TABLE.sigma(pair.times[-2])) * parity.draw(pair.steps - 1, x)
    torch.testing.assert_close(theirs[-1], ours[-1] + left, rtol=0, atol=parity.TOLERANCE)
