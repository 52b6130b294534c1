"""Few steps, fitted to a model: times, and coefficients of a rule, that end where many steps do.

What is fitted is the least squares of the end points, by the Levenberg-Marquardt method: the changes of the end points
under small changes of each number, by differences, then the change of all numbers that would be best if end points were
linear in them. No score and no data are needed.

Source: Tong et al. 2024, Learning to Discretize Denoising Diffusion ODEs (LD3), for times by end points; Frankel et al.
2025, S4S, for coefficients.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from unfog.diffusion.denoiser import Denoise
from unfog.diffusion.fitted import Fitted, FittedGrid, followed, shares_of
from unfog.diffusion.grids import Grid, KarrasGrid, LogSNRGrid, PolynomialGrid, UniformGrid
from unfog.diffusion.schedules import Schedule
from unfog.diffusion.solvers import Solver
from unfog.generation.sampler import Sampler
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError

ROWS = 64
"""Samples that are fitted, at most, and as many others that decide."""
NUMBERS = 1 << 26
"""Numbers of all changes of the end points, at most."""
FINE = 48
"""Steps that lead to the end points."""
ROUNDS = 10
"""Changes of all numbers, at most."""
ENOUGH, PATIENCE = 0.02, 2
"""Share by which a round must lower the distance of the other samples, and rounds after another that may fail to."""
SHIFTS, SHARE = (0.1, 0.01, 0.001), 0.05
"""By how much a time is changed in log(sigma/alpha), less where another time is near; and a share."""
DAMPING, TRIES = 1e-2, 6
"""First damping of a change, as a share of the diagonal; and how often it is raised for one change."""
APART = 1e-4
"""Least distance of two times, as a share of t_max."""
Watch = Callable[[int], object]
"""Is called with a number of evaluations of a portion after each change that was tried."""


class Numbers(NamedTuple):
    """What is fitted.

    Attributes:
        times: The times, `(steps + 1,)`, of which the first and the last stay.
        shares: S of a linear rule; None where only times are fitted.
    """

    times: Tensor
    shares: list[list[float]] | None


@dataclass(frozen=True)
class Tuned:
    """A rule and its times, fitted to a model.

    Attributes:
        solver: The rule: the given one, or one with coefficients of its own.
        grid: The times.
        before: Mean square by which the given rule misses the end points of other samples on the best of the usual
            grids.
        after: The same of this one.
        better: How many standard errors the difference is below 0.
        usual: Name of that grid.
    """

    solver: Solver
    grid: FittedGrid
    before: float
    after: float
    better: float
    usual: str

    __repr__ = brief

    @property
    def helps(self) -> bool:
        """Whether it is surely nearer."""
        return self.better > 2


@dataclass(frozen=True)
class Portion:
    """Samples that are drawn in few steps, and where they should end.

    Attributes:
        sampler: Draws them; its batch is their number.
        condition: Their condition.
        first: Number of the first.
        ends: Where many steps lead, `(batch, *shape)`.
    """

    sampler: Sampler
    condition: Tensor | None
    first: int
    ends: Tensor

    __repr__ = brief

    @classmethod
    def of(cls, sampler: Sampler, condition: Tensor | None, first: int) -> "Portion":
        """Return a portion with the ends that many steps of the sampler lead to."""
        part = None if condition is None else condition[first : first + sampler.size]
        fine = replace(sampler, settings=replace(sampler.settings, steps=max(FINE, 2 * sampler.settings.steps)))
        ends = _last(fine, part, first)
        if not ends.isfinite().all():
            raise UserError("the samples of the model are not finite: tune another run")
        return cls(sampler, part, first, ends)

    def drawn(self, numbers: Numbers, known: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        """Return where the samples end by some numbers, and the predictions of x0 of a linear rule."""
        grid = _grid(numbers.times, self.sampler.denoiser.schedule)
        if numbers.shares is None:
            return _last(replace(self.sampler, grid=grid), self.condition, self.first), []
        denoise, start = self._start(numbers.times)
        with torch.inference_mode(), self.sampler.arithmetic():
            return followed(denoise, start, numbers.times, numbers.shares, known)

    def _start(self, times: Tensor) -> tuple[Denoise, Tensor]:
        """Return the denoiser on the schedule's own clock, and the noise."""
        own = replace(self.sampler, solver=Fitted((1.0, 0.0), ((1.0,),)))
        denoise, _ = own.denoise(self.condition)
        return denoise, own.start(self.first, denoise.schedule, times[0])

    def missed(self, ends: Tensor) -> Tensor:
        """Return the mean square of what each sample misses, `(batch,)`."""
        return (ends - self.ends).float().square().flatten(1).mean(1)


def grids() -> dict[str, Grid]:
    """Return the usual grids by name."""
    return {
        "uniform": UniformGrid(),
        "karras": KarrasGrid(),
        "log-snr": LogSNRGrid(),
        "quadratic": PolynomialGrid(2.0),
    }


def rows_for(sampler: Sampler) -> int:
    """Return how many samples are fitted."""
    numbers = sampler.settings.steps * (sampler.settings.steps + 3) // 2
    return max(4, min(ROWS, NUMBERS // (numbers * math.prod(sampler.shape))))


def tune(fitted: Portion, others: Portion, *, rounds: int = ROUNDS, watch: Watch = lambda evaluations: None) -> Tuned:
    """Fit times, and where the sampler's rule is linear its coefficients, to the end points of many steps.

    Args:
        fitted: Samples that are fitted; their sampler has the rule to start from and the number of steps.
        others: As many others, which say when to stop and whether it helped.
        rounds: Changes of all numbers, at most.
        watch: Is told of evaluations.

    Raises: UserError: If the rule draws noise, or has one step and only times.
    """
    sampler = fitted.sampler
    schedule, solver, steps = sampler.denoiser.schedule, sampler.solver, sampler.settings.steps
    if solver.stochastic:
        raise UserError("a solver that draws noise at each step ends at no one point, and cannot be tuned")
    usual, numbers, missed = _best(others, {**grids(), "the run's": sampler.grid})
    if numbers.shares is None and steps == 1:
        raise UserError("a single step has nothing to tune: take two steps or more")
    best, least, damping, poor = numbers, missed, DAMPING, 0
    for _ in range(rounds):
        changed, damping = _changed(fitted, numbers, damping, watch)
        if changed is None:
            break
        numbers = changed
        now = others.missed(others.drawn(numbers)[0])
        gained = 1 - float(now.mean() / least.mean())
        if gained > 0:
            best, least = numbers, now
        poor = poor + 1 if gained < ENOUGH else 0
        if poor == PATIENCE:
            break
    less = (missed - least).double()
    error = float(less.std() / math.sqrt(len(less)))
    better = float(less.mean()) / error if error else 0.0
    grid = _grid(best.times, schedule)
    rule = solver if best.shares is None else Fitted(tuple(best.times.tolist()), tuple(map(tuple, best.shares)))
    return Tuned(rule, grid, float(missed.mean()), float(least.mean()), better, usual)


def _best(portion: Portion, usual: dict[str, Grid]) -> tuple[str, Numbers, Tensor]:
    """Return the grid on which a portion's own rule is nearest, as numbers to start from, and what it misses."""
    sampler, found = portion.sampler, {}
    for name, grid in usual.items():
        try:
            times = grid(sampler.denoiser.schedule, sampler.settings.steps)
        except UserError:  # a grid of other numbers of steps, or too few of them
            continue
        numbers = Numbers(times, _shares(sampler, times))
        missed = portion.missed(portion.drawn(numbers)[0])
        if missed.isfinite().all():
            found[name] = numbers, missed
    if not found:
        raise UserError("none of the usual grids fits so few steps: take more steps")
    name = min(found, key=lambda name: float(found[name][1].mean()))
    return name, *found[name]


def _shares(sampler: Sampler, times: Tensor) -> list[list[float]] | None:
    """Return S of a sampler's solver; None where only times can be fitted, as with CFG++, whose pair is not of x_t."""
    if sampler.settings.guidance_kind == "cfg++":
        return None
    return shares_of(sampler.solver, sampler.denoiser.schedule, times)


def _changed(portion: Portion, numbers: Numbers, damping: float, watch: Watch) -> tuple[Numbers | None, float]:
    """Return numbers with which a portion ends nearer, None where none are found, and the damping for the next."""
    ends, known = portion.drawn(numbers)
    off, tried = (ends - portion.ends).float().flatten(), _tried(numbers, portion.sampler.denoiser.schedule)
    changes = torch.empty(len(tried), off.numel())
    for row, (first, size, other) in zip(changes, tried, strict=True):
        moved, _ = portion.drawn(other, known[:first])
        row.copy_(((moved - ends) / size).float().flatten())
        watch(len(numbers.times) - 1 - first)
    gram, slope = (changes @ changes.T).double(), (changes @ off).double()
    before = float(off.square().mean())
    for _ in range(TRIES):
        damped = gram + torch.diag(damping * gram.diagonal() + 1e-9 * gram.diagonal().max())
        step = torch.linalg.solve(damped, -slope).tolist()
        better = _moved(numbers, portion.sampler.denoiser.schedule, step)
        if better is not None and float(portion.missed(portion.drawn(better)[0]).mean()) < before:
            return better, max(damping / 5, 1e-4)
        watch(len(numbers.times) - 1)
        damping *= 5
    return None, damping


def _tried(numbers: Numbers, schedule: Schedule) -> list[tuple[int, float, Numbers]]:
    """Return the numbers with each one changed a little: the first prediction that it changes, by how much, and all."""
    steps = len(numbers.times) - 1
    found = []
    for place in range(_count(numbers)):
        for size in SHIFTS if place < steps - 1 else (SHARE,):
            changes = [0.0] * _count(numbers)
            changes[place] = size
            other = _moved(numbers, schedule, changes, apart=0.0)
            if other is not None:
                found.append((_first(place, steps), size, other))
                break
        else:
            raise UserError("the times of so many steps are too near each other to be tuned: take fewer steps")
    return found


def _count(numbers: Numbers) -> int:
    """Return how many numbers are free."""
    return len(numbers.times) - 2 + sum(map(len, numbers.shares or ()))


def _first(place: int, steps: int) -> int:
    """Return the number of the first prediction that a free number changes: those before are kept."""
    if place < steps - 1:
        return place + 1
    place -= steps - 1
    row = 1
    while place >= row:
        place, row = place - row, row + 1
    return row


def _moved(numbers: Numbers, schedule: Schedule, changes: Sequence[float], apart: float = APART) -> Numbers | None:
    """Return the numbers changed: first the times between the ends, in log(sigma/alpha), then the shares row by row.

    None where times would no longer fall, each by more than `apart` as a share of t_max.
    """
    free = iter(changes)
    inner = [schedule.time(schedule.log_snr(t) - 2 * next(free)) for t in numbers.times[1:-1]]
    times = torch.stack([numbers.times[0], *inner, numbers.times[-1]])
    shares = None if numbers.shares is None else [[one + next(free) for one in row] for row in numbers.shares]
    if (times.diff() < -apart * schedule.t_max).all():
        return Numbers(times, shares)
    return None


def _grid(times: Tensor, schedule: Schedule) -> FittedGrid:
    """Return times as a grid."""
    return FittedGrid(tuple((times / schedule.t_max).tolist()))


def _last(sampler: Sampler, condition: Tensor | None, first: int) -> Tensor:
    """Return where a portion ends."""
    for step in sampler.steps(first, condition):
        x = step.x
    return x
