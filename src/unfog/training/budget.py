"""Trainings by the clock: their progress is the share of the time that is used, and a trace makes them repeatable."""

import math
import statistics
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from unfog.runtime import distributed
from unfog.runtime.errors import UserError
from unfog.runtime.tensors import read_tensors, write_tensors
from unfog.training import checkpoint
from unfog.training.threads import THREADS, Threads

LATEST = 21
"""Steps whose median is the present pace."""
EXIT = 0.5
"""Seconds from the last file that a training writes to the end of its process."""
FEWER = 0.1
"""Share of the steps with fewer threads from which on that is said."""
NEARLY = math.nextafter(1.0, 0.0)
"""The largest share below 1."""
FOLLOWED = "follow.safetensors"
"""File in a run folder with the trace of another training that is repeated there."""


def clock() -> float:
    """Return the first process's clock in seconds, so that all processes agree on what is due."""
    return distributed.agreed(time.monotonic())


@dataclass(frozen=True)
class Budget:
    """A promise about the clock.

    Attributes:
        seconds: From the start to the last file that is written.
        started: When it started, by `time.monotonic`.
    """

    seconds: float
    started: float = field(default_factory=lambda: clock())

    @property
    def end(self) -> float:
        """When it ends."""
        return self.started + self.seconds


@dataclass
class Trace:
    """How a training by the clock went, step by step, and how far it is.

    Attributes:
        progress: Share of the time that was used when each step began.
        threads: Threads that computed each step.
        now: Share that is used now; 1 is the end.
        span: Seconds from the first step to the end.
    """

    progress: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    now: float = 0.0
    span: float = 0.0

    def begin(self) -> None:
        """Note that a step begins."""
        self.progress.append(self.now)
        self.threads.append(torch.get_num_threads())

    @property
    def pace(self) -> float:
        """Share of the time that a step takes: the median of the latest steps, so that a pause does not count."""
        took = [b - a for a, b in pairwise(self.progress[-LATEST - 1 :])]
        return statistics.median(took) if took else 0.0

    @property
    def steps(self) -> float:
        """The number of the present step, counted in steps of the present pace.

        An average over so many steps is one over time: where steps become slower, the slower ones count for more.
        """
        return 1 + self.progress[-1] / self.pace if self.pace > 0 else float(max(1, len(self.progress)))

    def before(self, step: int) -> "Trace":
        """Return the trace as it was when step number `step`, from 0, was about to begin."""
        return Trace(self.progress[:step], self.threads[:step], [*self.progress, self.now][step], self.span)

    def tensors(self) -> dict[str, Tensor]:
        """Return the trace as tensors."""
        return {
            "progress": torch.tensor([*self.progress, self.now], dtype=torch.float64),
            "threads": torch.tensor(self.threads, dtype=torch.int64),
            "span": torch.tensor(self.span, dtype=torch.float64),
        }

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], where: Path) -> Self:
        """Return the trace that `tensors` wrote.

        Raises: UserError: If it is missing or damaged.
        """
        kinds = {"progress": (1, torch.float64), "threads": (1, torch.int64), "span": (0, torch.float64)}
        if {name: (tensor.ndim, tensor.dtype) for name, tensor in tensors.items()} != kinds:
            raise UserError(f"{where} holds no trace of a training by the clock")
        progress, threads, span = (tensors[name] for name in kinds)
        rising = len(progress) == len(threads) + 1 and bool((progress.diff() >= 0).all())
        if not (rising and progress[0] >= 0 and progress[-1] <= 1 and 0 <= span < 1e12):
            raise UserError(f"the trace in {where} is damaged: its progress does not rise from 0 to 1")
        if len(threads) and not (threads.min() >= 1 and threads.max() <= THREADS):
            raise UserError(f"the trace in {where} is damaged: it names impossible numbers of threads")
        *begun, now = progress.tolist()
        return cls(begun, threads.tolist(), now, float(span))


def trace_of(run: Path) -> Trace:
    """Read the trace of a run that was trained by the clock.

    Raises: UserError: If there is none.
    """
    tensors, _ = checkpoint.latest(run / "checkpoints")
    own = {name.removeprefix("trace/"): tensor for name, tensor in tensors.items() if name.startswith("trace/")}
    if not own:
        raise UserError(f"{run} was not trained by the clock, and has no trace to follow: omit `follow`")
    return Trace.of(own, run)


def write_followed(trace: Trace, folder: Path) -> None:
    """Write down in a new run folder which trace its training follows."""
    write_tensors(folder / FOLLOWED, trace.tensors())


def followed(folder: Path) -> Trace | None:
    """Return the trace that the training of a run folder follows, if it follows one."""
    where = folder / FOLLOWED
    return Trace.of(read_tensors(where), where) if where.exists() else None


class Following:
    """Repeats the trace of another training: the same progress and threads at each step."""

    def __init__(self, trace: Trace, pattern: Trace) -> None:
        """Continue `trace` as `pattern` went on."""
        self.trace, self.shares = trace, [*pattern.progress, pattern.now]
        self.threads = pattern.threads
        trace.span = pattern.span

    def begin(self) -> None:
        """Begin a step."""
        step = len(self.trace.progress)
        self.trace.now = self.shares[step]
        torch.set_num_threads(self.threads[step])
        self.trace.begin()

    def end(self) -> None:
        """End the step."""
        self.trace.now = self.shares[len(self.trace.progress)]

    def reported(self, seconds: float) -> None:
        """Take no note of a report."""

    @property
    def left(self) -> float:
        """Seconds that are left, roughly."""
        return (1 - self.trace.now) * self.trace.span


class Clocked:
    """Ends a training with its budget: moves its progress by the clock, and adapts its threads."""

    def __init__(self, trace: Trace, budget: Budget, adapt: bool) -> None:
        """Begin, or resume, a training.

        Args:
            trace: Its trace so far.
            budget: What is left of the budget.
            adapt: Whether the number of threads follows the machine.
        """
        self.trace, self.budget = trace, budget
        self.ends = distributed.agreed(budget.end) - EXIT  # each process began at a time of its own
        self.threads = Threads() if adapt else None
        self.closing = 0.0
        self.taken: deque[float] = deque(maxlen=LATEST)
        self.looked = self.began = clock()

    @property
    def left(self) -> float:
        """Seconds that are left for steps."""
        return self.ends - self.closing - self.looked

    def begin(self) -> None:
        """Begin a step, whose end alone can be that of the training."""
        self._look()
        self.trace.now = min(self.trace.now, NEARLY)
        self.trace.span = self.trace.span or self.left
        self.trace.begin()
        self.began = self.looked

    def end(self) -> None:
        """End the step; the training ends with it if less than half a step is left.

        Raises: UserError: If this was the first step.
        """
        self._look()
        self.taken.append(self.looked - self.began)
        if self.left < statistics.median(self.taken) / 2:
            self.trace.now = 1.0
            if len(self.trace.progress) == 1:
                before, step = self.began - self.budget.started, self.taken[-1]
                raise UserError(
                    f"a budget of {self.budget.seconds:g} s is too short: it took {before:.1f} s to begin, one step "
                    f"takes {step:.2g} s and the end {EXIT:g} s: give at least {before + 20 * step + EXIT:.0f} s"
                )
        elif self.threads is not None:
            self.threads.after(self.taken[-1])

    def reported(self, seconds: float) -> None:
        """Take note of what a report took, since the last one takes as long."""
        self.closing = seconds

    def fewer(self) -> str:
        """Return a sentence if fewer threads than there are computed a good part of the training; else ""."""
        counts, most = self.trace.threads, 0 if self.threads is None else self.threads.most
        share = sum(count < most for count in counts) / max(1, len(counts))
        if share < FEWER:
            return ""
        return f"{share:.0%} of the steps were computed with fewer than {most} threads, which was faster"

    def _look(self) -> None:
        """Move the progress: the time since the last look is a share of what was left then."""
        left, before = self.left, self.looked
        self.looked = clock()
        passed = (self.looked - before) / left if left > 0 else 1.0
        self.trace.now = min(1.0, self.trace.now + (1 - self.trace.now) * passed)


Pacer = Clocked | Following
"""Moves the progress of a training that is not as long as its images."""
