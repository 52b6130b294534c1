"""What the three calls of a loop of one's own say of things that they cannot take."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import unfog
from unfog.runtime.errors import UserError


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return self.layer(x)


class Pair(Network):
    def forward(self, x: Tensor, t: Tensor) -> Any:
        return (self.layer(x),)


DENOISER = unfog.Denoiser(Network(), unfog.RectifiedFlow())
ROWS = torch.ones(4, 2)


def draw(shape: Any = (4, 2), steps: Any = 2, **options: Any) -> Tensor:
    return unfog.sample(DENOISER, shape, steps, **options)


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: draw(steps="20"), "number of steps must be a whole number, 1 or more, not '20'"),
        (lambda: draw(steps=2.5), "number of steps must be a whole number, 1 or more, not 2.5"),
        (lambda: draw(steps=True), "number of steps must be a whole number, 1 or more, not True"),
        (lambda: draw(steps=None), "number of steps must be a whole number, 1 or more, not None"),
        (lambda: draw(shape=4), r"shape of samples is \(count, \*row\), each 1 or more, not 4"),
        (lambda: draw(shape=()), r"shape of samples is \(count, \*row\)"),
        (lambda: draw(shape="ab"), r"shape of samples is \(count, \*row\)"),
        (lambda: draw(shape=(4, 1.5)), "whole number, 1 or more, not 1.5"),
        (lambda: draw(grid=5), "the grid must be a value or one of uniform, .*, not 5"),
        (lambda: draw(solver=5), "the solver must be a value or one of ancestral, .*, not 5"),
        (lambda: draw(solver="euler_a"), "unknown solver 'euler_a': did you mean 'euler-ancestral'"),
        (lambda: draw(solver="DDIM"), "unknown solver 'DDIM': did you mean 'ddim'"),
        (lambda: draw(solver="DPM++ 2M"), "did you mean 'dpmpp-2m'"),
        (lambda: draw(seed="a"), r"a seed must be a whole number from -2\^63 to 2\^64 - 1, not 'a'"),
        (lambda: draw(seed=None), "a seed must be a whole number .*, not None"),
        (lambda: draw(seed=1.5), "a seed must be a whole number .*, not 1.5"),
        (lambda: draw(seed=2**64), "a seed must be a whole number .*, not 18446744073709551616"),
        (lambda: draw(noise=3), "the noise must be a tensor, not 3"),
        (lambda: unfog.sample(Network(), (4, 2)), "a Network has no schedule: wrap it"),  # type: ignore[arg-type]
        (lambda: unfog.denoising_loss(DENOISER, [[1.0, 2.0]]), "the data must be a tensor"),  # type: ignore[arg-type]
        (lambda: unfog.denoising_loss(DENOISER, torch.tensor(1.0)), "the data must be a tensor"),
        (lambda: unfog.denoising_loss(DENOISER, ROWS, noise="n"), "the noise must be a tensor"),  # type: ignore[arg-type]
        (lambda: unfog.denoising_loss(DENOISER, ROWS, weighting="n"), "unknown weighting 'n'"),
        (lambda: unfog.denoising_loss(DENOISER, ROWS, weighting=5), "the weighting must be a value or one of"),  # type: ignore[arg-type]
        (lambda: unfog.denoising_loss(DENOISER, ROWS, times="epsilon"), "unknown times 'epsilon'"),
        (
            lambda: unfog.denoising_loss(unfog.Denoiser(Pair(), unfog.RectifiedFlow()), ROWS),
            "the network must return a tensor, not a tuple",
        ),
        (lambda: unfog.Mixture(torch.ones(2), torch.zeros(2, 1), torch.ones(2, 1)), "sum to 1, not to 2: divide them"),
        (lambda: unfog.Mixture(torch.tensor([1.5, -0.5]), torch.zeros(2, 1), torch.ones(2, 1)), "are 0 or more"),
        (lambda: unfog.Mixture(torch.ones(1), torch.zeros(2, 1), torch.ones(2, 1)), "one weight for each row"),
        (lambda: unfog.wrap_diffusers(Network(), None), "not Network and NoneType"),  # type: ignore[arg-type]
    ],
)
def test_misuse_gets_a_sentence(act: Callable[[], object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        act()


def test_whole_numbers_of_any_type_are_numbers() -> None:
    wanted = draw(seed=7)
    assert torch.equal(draw(shape=torch.Size((4, 2)), steps=np.int64(2), seed=np.int64(7)), wanted)
    assert torch.equal(draw(shape=[np.int32(4), 2.0], seed=np.uint64(7)), wanted)


def test_names_are_values() -> None:
    torch.manual_seed(0)
    one = unfog.denoising_loss(DENOISER, ROWS, times="uniform", weighting="min-snr")
    torch.manual_seed(0)
    other = unfog.denoising_loss(DENOISER, ROWS, times=unfog.Uniform(), weighting=unfog.MinSNR())
    assert torch.equal(one, other)
