"""How many samples go through the network together: chosen by measurement when a training begins."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from unfog.generation.sampler import Sampler
from unfog.recipes.settings import PORTION
from unfog.runtime import distributed
from unfog.runtime.errors import out_of_memory

SIZES = (PORTION, 16, 8, 4, 2, 1)
"""Portions that are tried; one of 32 would not be four times cheaper."""
CHEAPER, SLOWER = 4.0, 1.05
"""How many times cheaper one sample must be than with the usual portion, and how much slower a large request may be."""
LARGE = 1000
"""Samples in a large request."""
LONG = 8.0
"""Seconds of one evaluation from which on it is not made: the cost of so large a network grows with the rows."""
WARM = 1.0
"""Seconds from which on the first evaluation counts."""
ENOUGH, ROUNDS = 0.1, 5
"""Seconds after which a portion is not timed again, and how often it is timed at most."""


def portion(costs: Mapping[int, float]) -> int:
    """Return the best portion: small, so that one sample is cheap, but not so small that a thousand take longer.

    Args:
        costs: Seconds that one evaluation of each number of rows takes, among them the usual `PORTION`. Infinite where
            memory does not hold as many.

    Returns: The largest portion with which one sample costs at most a quarter and a thousand at most 5 % more than with
        the usual one, which is returned where there is none.
    """
    usual = costs[PORTION]
    good = [
        size
        for size, cost in costs.items()
        if size < PORTION and math.isfinite(cost) and CHEAPER * cost <= usual and _quick(size, cost, usual)
    ]
    return max(good, default=PORTION)


def _quick(size: int, cost: float, usual: float) -> bool:
    """Return whether a large request is at most 5 % slower in portions of a size than in the usual ones."""
    return -(-LARGE // size) * cost <= SLOWER * -(-LARGE // PORTION) * usual


def first_good(cost: Callable[[int], float]) -> int:
    """Return the `portion` of all `SIZES`, measured from the largest on and no further than needed.

    Where one size makes large requests slow, smaller ones make them slower.
    """
    costs: dict[int, float] = {}
    for size in SIZES:
        costs[size] = cost(size)
        if (best := portion(costs)) < PORTION or not _quick(size, costs[size], costs[PORTION]):
            return best
    return PORTION


def measured(sampler: Sampler, condition: Tensor | None) -> int:
    """Return the portion in which a sampler should draw, from timing its network.

    Args:
        sampler: The sampler.
        condition: The condition of one sample, `(1, ...)`, or None.
    """
    single = min(_seconds(sampler, condition, 1))
    if PORTION * single > LONG:
        return first_good(lambda size: size * single)
    return first_good(lambda size: min(_seconds(sampler, condition, size)))


def _seconds(sampler: Sampler, condition: Tensor | None, size: int) -> Iterator[float]:
    """Yield the seconds of evaluations of so many rows, on the slowest process; infinite where memory is too small.

    The first evaluation of each size also chooses kernels, so it counts only where it hides in a long one.
    """
    spent = 0.0
    for number in range(1 + ROUNDS):
        took = distributed.most(_nanoseconds(sampler, condition, size))
        seconds = math.inf if took == sys.maxsize else 1e-9 * took
        if number == 0 and seconds < WARM:
            continue
        yield seconds
        spent += seconds
        if spent >= ENOUGH:
            return


@torch.inference_mode()
def _nanoseconds(sampler: Sampler, condition: Tensor | None, size: int) -> int:
    """Time one evaluation of a portion; `sys.maxsize` where memory does not hold it."""
    part = replace(sampler, settings=replace(sampler.settings, batch=size))
    try:
        with part.arithmetic():
            denoise, times = part.denoise(part.padded(condition, 0))
            x = part.start(0, denoise.schedule, times[0])
            began = time.perf_counter_ns()
            float(denoise(x, times[0]).x0.flatten()[0])  # a GPU is waited for
            return time.perf_counter_ns() - began
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return sys.maxsize
