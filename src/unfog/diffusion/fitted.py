"""A multistep rule whose coefficients are free: fitted to one model, one grid and one number of steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unfog.diffusion.denoiser import Denoise, on_clock
from unfog.diffusion.grids import TimesGrid
from unfog.diffusion.sampling import trajectory
from unfog.diffusion.schedules import Schedule
from unfog.diffusion.solvers import Noise, Solver, Step
from unfog.diffusion.targets import Prediction
from unfog.runtime.brief import brief
from unfog.runtime.errors import UserError

_NEAR = 1e-6
"""How far a time may be, as a share of t_max, from the one that a rule was fitted to."""
Shares = Sequence[Sequence[float]]
"""S_kj, for k = 1 ... steps a row of k numbers."""


@dataclass(frozen=True)
class FittedGrid(TimesGrid):
    """Times that were fitted to a model, so that nobody need doubt them."""


@dataclass(frozen=True)
class Fitted(Solver):
    """x_k = (sigma_k/sigma_0)·x_0 + alpha_k·sum_j<k S_kj·x0_j: any linear rule with one evaluation a step.

    x_k is the state at time t_k, x0_j what the model predicted at t_j. DDIM, DPM-Solver++ of all orders, UniPC and
    Adams-Bashforth are such rules, see `shares_of`; here S is free.

    Attributes:
        times: The falling times t_0 ... t_steps that the rule is for, on the schedule's own clock.
        shares: S.
        start: Name of the solver whose place it takes.

    Source: Frankel et al. 2025, S4S: Solving for a Diffusion Model Solver, section 4; Zhao et al. 2023, UniPC, eq. 3.
    """

    times: Sequence[float]
    shares: Shares
    start: str = "fitted"
    order = 1

    __repr__ = brief

    def __post_init__(self) -> None:
        """Check the numbers of rows and of numbers."""
        if [len(row) for row in self.shares] != list(range(1, len(self.times))) or not self.shares:
            raise UserError("the shares of a fitted rule are a row for each step, the first of one number, then of two")

    @property
    def memory(self) -> int:
        """All past steps."""
        return len(self.shares)

    def step(self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, past: Sequence[Step], noise: Noise) -> Step:
        """Take the step that follows the past ones.

        Raises: UserError: If the times are not those of the rule.
        """
        k, schedule = len(past), denoise.schedule
        wanted = zip((t, s), (*self.times[k : k + 2], -1.0, -1.0), strict=False)
        if any(abs(float(given) - own) > _NEAR * schedule.t_max for given, own in wanted):
            raise UserError("a fitted rule takes the steps that it was fitted to: use its own times, all of them")
        prediction = denoise(x, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.numbers(t), schedule.numbers(s)
        ratio = sigma_s / sigma_t
        state = ratio * x
        so_far = (*(self.shares[k - 1] if k else ()), 0.0)
        known = (*(step.prediction.x0 for step in past), prediction.x0)
        for x0, share, old in zip(known, self.shares[k], so_far, strict=True):
            state = torch.add(state, x0, alpha=alpha_s * share - ratio * alpha_t * old)
        return Step(t, s, state, prediction)


class _Unit:
    """A denoiser of coefficients: its k-th prediction of x0 is the k-th unit vector."""

    def __init__(self, schedule: Schedule, steps: int) -> None:
        """Begin without a call; states have a place for the noise and one for each prediction."""
        self.schedule, self.steps = schedule, steps
        self.states: list[Tensor] = []

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Keep the state, and predict."""
        self.states.append(x)
        x0 = torch.zeros_like(x)
        x0[:, min(len(self.states), self.steps)] = 1
        alpha, sigma = self.schedule.numbers(t)
        return Prediction(x0, (x - alpha * x0) / sigma)


def shares_of(solver: Solver, schedule: Schedule, times: Tensor) -> list[list[float]] | None:
    """Return S of a solver's own coefficients, found by applying it to unit vectors.

    Args:
        solver: The solver.
        schedule: The schedule.
        times: Falling times on its clock, `(steps + 1,)`.

    Returns: The rows; None where a step draws noise, or evaluates the model more than once.
    """
    steps = len(times) - 1
    if solver.stochastic:
        return None
    unit = _Unit(schedule, steps)
    denoise, own = on_clock(unit, times, solver.clock)
    last = torch.zeros(1, steps + 1, dtype=torch.float64)
    last[:, 0] = denoise.schedule.numbers(own[0])[1]
    for step in trajectory(denoise, last, own, solver):
        last = step.x
    if len(unit.states) != steps:
        return None
    last = last * schedule.numbers(times[-1])[0] / denoise.schedule.numbers(own[-1])[0]
    states = zip(times[1:], [*unit.states[1:], last], strict=True)
    return [(state[0, 1 : k + 1] / schedule.numbers(t)[0]).tolist() for k, (t, state) in enumerate(states, 1)]


def followed(
    denoise: Denoise, start: Tensor, times: Tensor, shares: Shares, known: Sequence[Tensor] = ()
) -> tuple[Tensor, list[Tensor]]:
    """Return the state that a fitted rule ends in, and its predictions of x0.

    Args:
        denoise: The denoiser.
        start: State at the first time.
        times: The times, `(steps + 1,)`.
        shares: S.
        known: The first predictions, where they are known already.
    """
    schedule, found = denoise.schedule, list(known)
    loud = schedule.numbers(times[0])[1]

    def state(k: int) -> Tensor:
        alpha, sigma = schedule.numbers(times[k])
        x = sigma / loud * start
        for x0, share in zip(found, shares[k - 1] if k else (), strict=False):
            x = torch.add(x, x0, alpha=alpha * share)
        return x

    for k in range(len(found), len(times) - 1):
        found.append(denoise(state(k), times[k]).x0)
    return state(len(times) - 1), found
