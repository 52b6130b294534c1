"""Whether other programs use the machine, and what fewer threads would then give."""

import os
import statistics
import time

import torch

LOADED = 0.5
"""Load of the last minute below which a machine is not looked at."""
ROUNDS, SIDE = 9, 384
"""Products that are timed, and the side of their matrices: a few milliseconds each."""
GAIN = 0.85
"""Share of one thread's seconds that all threads take at most on an idle machine; with two it is about a half."""
WORTH = 1.2
"""How much faster one thread must be to be named."""


def shared() -> str:
    """Return a sentence if other programs use the machine so that one thread computes faster than all; else ""."""
    count = torch.get_num_threads()
    if count == 1 or not hasattr(os, "getloadavg") or os.getloadavg()[0] < LOADED:
        return ""
    all_threads, one = _both()
    if all_threads < WORTH * one:
        return ""
    return (
        f"other programs use this machine: one thread is {all_threads / one:.1f} times as fast as {count} now; "
        "OMP_NUM_THREADS=1 before the command sets it"
    )


def disturbed() -> bool:
    """Return whether all threads gain little over one, as where other programs use their cores.

    Timings then say nothing of the machine as it is when idle: with a core too few some forms of a computation become
    five times slower than others. A single thread cannot tell.
    """
    if torch.get_num_threads() == 1:
        return False
    all_threads, one = _both()
    return all_threads > GAIN * one


def _both() -> tuple[float, float]:
    """Return the seconds of a product with all threads, and with one."""
    count = torch.get_num_threads()
    all_threads = _seconds()
    torch.set_num_threads(1)
    one = _seconds()
    torch.set_num_threads(count)
    return all_threads, one


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
