"""Stateless randomness: every draw is Philox with the key (seed, purpose) and the counter (step, index).

So an image does not depend on the batch it is drawn in, and a resumed run draws the same numbers as an uninterrupted
one.
"""

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfog.runtime.errors import whole_number

_WORD = (1 << 64) - 1


def stream(seed: int, purpose: str, step: int = 0, index: int = 0, skip: int = 0) -> np.random.Generator:
    """Return the generator of (seed, purpose, step, index), independent of all others.

    Args:
        seed: An integer of 64 bits, from -2^63 to 2^64 - 1.
        purpose: What the draws are for, for instance `"noise"`; each word has its own stream.
        step: Training or sampling step.
        index: Sample within the step or the whole request.
        skip: Blocks of four 64-bit words to skip at the start.

    Returns: A numpy generator with 2^130 words of its own.
    Raises: UserError: If the seed is no such integer: a larger one would repeat the draws of another.
    Source: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3.
    """
    if not (type(seed) is int and -(1 << 63) <= seed <= _WORD):
        seed = whole_number("a seed", seed, -(1 << 63), _WORD, "from -2^63 to 2^64 - 1")
    word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    key = np.array([seed & _WORD, word], dtype=np.uint64)
    counter = np.array([skip, 0, step & _WORD, index & _WORD], dtype=np.uint64)  # the low words count the draws
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def uniform(seed: int, purpose: str, step: int, first: int, count: int, each: int = 1) -> NDArray[np.float64]:
    """Draw u ~ U[0, 1) for samples `first` to `first + count - 1`, independent of the rest of the batch.

    Sample i takes words i·each to (i + 1)·each - 1 of one stream: exactly one word per number.

    Args:
        seed: Seed of the run or request.
        purpose: What the numbers are for.
        step: Training or sampling step.
        first: Index of the first sample.
        count: Number of samples.
        each: Numbers per sample.

    Returns: Uniform numbers, `(count, each)`.
    """
    block, rest = divmod(first * each, 4)
    return stream(seed, purpose, step, skip=block).random(rest + count * each)[rest:].reshape(count, each)


def normal(seed: int, purpose: str, step: int, first: int, count: int, shape: tuple[int, ...]) -> Tensor:
    """Draw z ~ N(0, I) for samples `first` to `first + count - 1`: the inverse normal CDF of `uniform`.

    Args:
        seed: Seed of the run or request.
        purpose: What the noise is for.
        step: Training or sampling step.
        first: Index of the first sample.
        count: Number of samples.
        shape: Shape of one sample.

    Returns: Standard normal noise, `(count, *shape)`, float32.
    """
    u = uniform(seed, purpose, step, first, count, math.prod(shape))
    np.maximum(u, 2.0**-54, out=u)  # 0 becomes -8.3 instead of -infinity
    z: Tensor = torch.special.ndtri(torch.from_numpy(u))
    return z.float().reshape(count, *shape)


def normal_on(
    device: torch.device, batch: int, seed: int, purpose: str, step: int, first: int, count: int, shape: tuple[int, ...]
) -> Tensor:
    """Draw z ~ N(0, I) on the device, seeded by (seed, purpose, step): a GPU would have to wait for `normal`.

    Deterministic on one kind of device. The values depend on how many are drawn at once, so the whole batch is always
    drawn.

    Args:
        device: Device of the generator and of the noise.
        batch: Batch size over all processes; more samples are drawn if `first + count` exceeds it.
        seed: Seed of the run.
        purpose: What the noise is for.
        step: Training step.
        first: Index of the first sample.
        count: Number of samples.
        shape: Shape of one sample.

    Returns: Standard normal noise, `(count, *shape)`, float32.
    """
    generator = torch.Generator(device).manual_seed(int(stream(seed, purpose, step).integers(2**63)))
    total = max(batch, first + count)
    return torch.randn(total, *shape, generator=generator, device=device)[first : first + count]
