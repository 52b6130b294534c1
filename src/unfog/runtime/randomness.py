"""Randomness as a function: every draw is Philox at the key (seed, purpose) and the counter (step, index).

Nothing here carries state, so a picture does not depend on the batch it was drawn in, and a resumed
run draws what the uninterrupted one would have drawn.
"""

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_WORD = (1 << 64) - 1


def stream(seed: int, purpose: str, step: int = 0, index: int = 0, skip: int = 0) -> np.random.Generator:
    """Return the generator of (seed, purpose, step, index), independent of every other one.

    Args:
        seed: Any integer; all 64 bits of it count.
        purpose: What the draws are for, for instance `"noise"`; other words give other streams.
        step: Training or sampling step.
        index: Sample within the step or within the whole request.
        skip: Blocks of four 64-bit words to leave out at the beginning.

    Returns: A numpy generator with 2^130 words of its own.
    Source: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3.
    """
    word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    key = np.array([seed & _WORD, word], dtype=np.uint64)
    counter = np.array([skip, 0, step & _WORD, index & _WORD], dtype=np.uint64)  # the low words count the draws
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def uniform(seed: int, purpose: str, step: int, first: int, count: int, each: int = 1) -> NDArray[np.float64]:
    """Draw u ~ U[0, 1) for samples `first` to `first + count - 1`, whatever stands beside them in the batch.

    Sample i has words i·each to (i + 1)·each - 1 of one stream: a number takes exactly one word.

    Args:
        seed: Seed of the run or request.
        purpose: What the numbers are for.
        step: Training or sampling step.
        first: Number of the first sample.
        count: Number of samples.
        each: Numbers for each sample.

    Returns: Uniform numbers, `(count, each)`.
    """
    block, rest = divmod(first * each, 4)
    return stream(seed, purpose, step, skip=block).random(rest + count * each)[rest:].reshape(count, each)


def normal(seed: int, purpose: str, step: int, first: int, count: int, shape: tuple[int, ...]) -> Tensor:
    """Draw z ~ N(0, I) for samples `first` to `first + count - 1`: the inverse distribution function of `uniform`.

    Args:
        seed: Seed of the run or request.
        purpose: What the noise is for.
        step: Training or sampling step.
        first: Number of the first sample.
        count: Number of samples.
        shape: Shape of one sample.

    Returns: Standard normal noise, `(count, *shape)`, float32.
    """
    u = uniform(seed, purpose, step, first, count, math.prod(shape))
    np.maximum(u, 2.0**-54, out=u)  # so that 0 gives -8.3 and not -infinity
    z: Tensor = torch.special.ndtri(torch.from_numpy(u))
    return z.float().reshape(count, *shape)


def normal_on(
    device: torch.device, batch: int, seed: int, purpose: str, step: int, first: int, count: int, shape: tuple[int, ...]
) -> Tensor:
    """Draw z ~ N(0, I) with a device's own generator, seeded by (seed, purpose, step): a GPU would wait for `normal`.

    A function of its arguments on one kind of device. Its numbers depend on how many are drawn at once, so that the
    whole batch always is.

    Args:
        device: Where to draw, and where the noise lies.
        batch: Samples of a batch, of all processes together; more are drawn where more are asked for.
        seed: Seed of the run.
        purpose: What the noise is for.
        step: Training step.
        first: Number of the first sample.
        count: Number of samples.
        shape: Shape of one sample.

    Returns: Standard normal noise, `(count, *shape)`, float32.
    """
    generator = torch.Generator(device).manual_seed(int(stream(seed, purpose, step).integers(2**63)))
    every = max(batch, first + count)
    return torch.randn(every, *shape, generator=generator, device=device)[first : first + count]
