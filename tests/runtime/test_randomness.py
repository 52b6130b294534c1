"""Randomness is a function of (seed, purpose, step, index), and has the distribution that it claims."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from unfog.runtime.randomness import normal, stream, uniform


@given(first=st.integers(0, 10**6), count=st.integers(1, 20), each=st.integers(1, 9), cut=st.integers(0, 20))
def test_numbers_do_not_depend_on_the_batch(first: int, count: int, each: int, cut: int) -> None:
    whole = uniform(5, "x", 3, first, count, each)
    cut = min(cut, count)
    parts = [uniform(5, "x", 3, first, cut, each), uniform(5, "x", 3, first + cut, count - cut, each)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_noise_of_a_sample_is_the_same_in_every_batch() -> None:
    whole = normal(0, "noise", 7, 0, 12, (1, 3, 3))
    assert torch.equal(normal(0, "noise", 7, 5, 2, (1, 3, 3)), whole[5:7])


def test_every_argument_matters() -> None:
    base = normal(0, "noise", 0, 0, 1, (8,))
    others = [normal(1, "noise", 0, 0, 1, (8,)), normal(0, "start", 0, 0, 1, (8,)), normal(0, "noise", 1, 0, 1, (8,))]
    assert not any(torch.equal(base, other) for other in others)
    assert not torch.equal(normal(1 << 40, "noise", 0, 0, 1, (8,)), base)  # the high bits of a seed count
    assert not torch.equal(normal(-1, "noise", 0, 0, 1, (8,)), base)
    assert stream(0, "a", 1, 2).random() != stream(0, "a", 2, 1).random()


def test_noise_is_standard_normal() -> None:
    z = normal(0, "noise", 0, 0, 200, (1000,)).flatten().double().numpy()
    assert stats.kstest(z, "norm").pvalue > 0.001
    assert abs(float(np.corrcoef(z[:-1], z[1:])[0, 1])) < 0.01


def test_noise_is_finite_for_every_word() -> None:
    """The smallest and the largest uniform number give finite noise."""
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64).clamp(min=2.0**-54)
    assert torch.special.ndtri(ends).isfinite().all()
