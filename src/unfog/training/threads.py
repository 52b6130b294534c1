"""How many threads compute a step: as many as make it shortest, on the machine as it is at the moment."""

import statistics
import time
from collections import deque
from collections.abc import Callable

import torch

KNOWN, TRIED = 5, 3
"""Steps from which a count's seconds are known, and steps of a trial."""
SLOWER, BETTER, HOPELESS = 1.3, 0.95, 1.2
"""How much slower steps become before a trial, and shares of their seconds at which it succeeds or is given up."""
THREADS = 512
"""Most threads that a checkpoint can set."""
SOON, LATE = 4.0, 32.0
"""Seconds to the next trial: after one that succeeded, and at most."""


class Threads:
    """Adapts the number of threads between 1 and what it was at the beginning, by trials of a few steps.

    A thread that shares its core with another program keeps all others waiting, so that fewer are faster on a busy
    machine; on an idle one nothing becomes slower, and one trial is made at the beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with the present number of threads."""
        self.most = self.count = torch.get_num_threads()
        self.clock = clock
        self.seconds: deque[float] = deque(maxlen=2 * KNOWN)
        self.best: dict[int, float] = {}
        self.trial: list[float] | None = None
        self.wait, self.due, self.up, self.known = SOON, clock(), False, 0.0

    def after(self, seconds: float) -> None:
        """Take note of the seconds of a step, and set the number of threads of the next one."""
        if self.most == 1:
            return
        if self.trial is not None:
            self._judge(self.trial, seconds)
            return
        self.seconds.append(seconds)
        if len(self.seconds) < KNOWN:
            return
        usual = self._usual()
        self.best[self.count] = min(usual, self.best.get(self.count, usual))
        fewer = self.count > 1 and (len(self.best) == 1 or usual > SLOWER * self.best[self.count])
        more = self.count < self.most
        changed = usual > SLOWER * self.known > 0  # since the last trial, so that the next one does not wait
        if (fewer or more) and (changed or self.clock() >= self.due):
            self.up = more and not (fewer and self.up)  # both in turns
            self.trial = []
            torch.set_num_threads(min(self.most, 2 * self.count) if self.up else self.count // 2)

    def _usual(self) -> float:
        """Return the seconds of a step at present."""
        return statistics.median(list(self.seconds)[-KNOWN:])

    def _judge(self, trial: list[float], seconds: float) -> None:
        """Go on with a trial, keep its number of threads or go back to the one before."""
        trial.append(seconds)
        usual = self._usual()
        failed = seconds > HOPELESS * usual
        if not failed and len(trial) < TRIED:
            return
        self.trial, self.known = None, usual
        if not failed and statistics.median(trial) < BETTER * usual:
            self.count, self.wait = torch.get_num_threads(), SOON
            self.seconds.clear()
            self.seconds.extend(trial)
            self.known = statistics.median(trial)
        else:
            self.best.setdefault(torch.get_num_threads(), statistics.median(trial))
            torch.set_num_threads(self.count)
            self.wait = min(LATE, 2 * self.wait)
        self.due = self.clock() + self.wait
