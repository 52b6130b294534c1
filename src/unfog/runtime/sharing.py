"""Whether other programs use the machine, and what fewer threads would then give."""

import os
import statistics
import time

import torch

LOADED = 0.5
"""Load of the last minute below which a machine is not looked at."""
ROUNDS, SIDE = 9, 384
"""Products that are timed, and the side of their matrices: a few milliseconds each."""
WORTH = 1.2
"""How much faster one thread must be to be named."""


def shared() -> str:
    """Return a sentence if other programs use the machine so that one thread computes faster than all; else ""."""
    count = torch.get_num_threads()
    if count == 1 or not hasattr(os, "getloadavg") or os.getloadavg()[0] < LOADED:
        return ""
    all_threads = _seconds()
    torch.set_num_threads(1)
    one = _seconds()
    torch.set_num_threads(count)
    if all_threads < WORTH * one:
        return ""
    return (
        f"other programs use this machine: one thread is {all_threads / one:.1f} times as fast as {count} now; "
        "OMP_NUM_THREADS=1 before the command sets it"
    )


def _seconds() -> float:
    """Return the seconds of a product of matrices, the mean over some, as threads wait for each other now and then."""
    x = torch.ones(SIDE, SIDE)
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(4):
            x = (x @ x).clamp_(0, 1)
        taken.append(time.perf_counter() - began)
    return statistics.fmean(taken)
