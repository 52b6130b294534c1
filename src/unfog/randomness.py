"""Randomness as a function: every draw is Philox at the key (seed, purpose) and the counter (step, index).

Nothing here carries state, so a picture does not depend on the batch it was drawn in, and a resumed
run draws what the uninterrupted one would have drawn.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

_WORD = (1 << 64) - 1


def stream(seed: int, purpose: str, step: int = 0, index: int = 0) -> np.random.Generator:
    """Return the generator of (seed, purpose, step, index), independent of every other one.

    Args:
        seed: Any integer; all 64 bits of it count.
        purpose: What the draws are for, for instance `"noise"`; other words give other streams.
        step: Training or sampling step.
        index: Sample within the step or within the whole request.

    Returns: A numpy generator with 2^128 draws of its own.
    Source: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3.
    """
    word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    key = np.array([seed & _WORD, word], dtype=np.uint64)
    counter = np.array([0, 0, step & _WORD, index & _WORD], dtype=np.uint64)  # the low words count the draws
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normal(seed: int, purpose: str, step: int, indices: Iterable[int], shape: tuple[int, ...]) -> Tensor:
    """Draw z ~ N(0, I) for each sample index, whatever stands beside it in the batch.

    Args:
        seed: Seed of the run or request.
        purpose: What the noise is for.
        step: Training or sampling step.
        indices: One sample index for each row of the result.
        shape: Shape of one sample.

    Returns: Standard normal noise, `(len(indices), *shape)`, float32.
    """
    rows = [stream(seed, purpose, step, index).standard_normal(shape, dtype=np.float32) for index in indices]
    return torch.from_numpy(np.stack(rows))


def uniform(seed: int, purpose: str, step: int, indices: Iterable[int]) -> Tensor:
    """Draw u ~ U[0, 1) for each sample index.

    Args:
        seed: Seed of the run or request.
        purpose: What the numbers are for.
        step: Training or sampling step.
        indices: One sample index for each entry of the result.

    Returns: Uniform numbers, `(len(indices),)`, float64.
    """
    return torch.tensor([stream(seed, purpose, step, index).random() for index in indices], dtype=torch.float64)
